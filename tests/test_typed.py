"""What a user typed is what is used: home folders, papermill's numbers, the names of a notebook's parameters."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import torch
from click.testing import CliRunner
from papermill.cli import papermill as papermill_command
from test_active_learning import make_experiment, make_splits

from alutils import HumanOracle, download_isic2018, load_isic2018, run_active_learning
from alutils.experiment import Experiment
from alutils.lab import notebook
from alutils.lab.annotator import Annotator
from alutils.lab.drawing import drawing_table
from alutils.lab.notebook import copy_figures, open_workspace, refuse_unknown_parameters
from alutils.model import build_unet
from alutils.runs.collect import load_results
from alutils.system.checks import ConfigError, DataError, expanded

ROOT = Path(__file__).resolve().parent.parent
TINY = {"overrides": "{n_synthetic: [2, 1, 1]}", "device": "cpu"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


# Paths


def test_a_tilde_is_the_home_folder_wherever_something_is_written(home):
    run_active_learning(make_experiment(), make_splits(), "~/run", device="cpu", progress=False)
    oracle = HumanOracle(make_splits().train, "~/drawn")
    with pytest.raises(Exception, match=r"images are to be drawn in .*home.drawn"):
        oracle.annotate(torch.tensor([0]))
    annotator = Annotator(oracle.requests(), "~/by_hand")
    annotator.save()
    assert (home / "run" / ".lock").exists() and (home / "drawn" / "requests").is_dir()
    assert drawing_table("~/by_hand")["image_id"].tolist() == ["train0"]
    assert open_workspace("01_data", output_dir="~/out", **TINY).output_dir == home / "out"
    assert download_isic2018("~/isic", archives=()) == home / "isic"
    assert list(Path.cwd().iterdir()) == []  # no folder called ~


def test_a_tilde_is_the_home_folder_wherever_something_is_read(home):
    (home / "deep").mkdir(parents=True)
    (home / "mine.yaml").write_text("{epochs: 7}")
    (home / "deep" / "fig2.png").touch()
    assert Experiment.from_profile("~/mine.yaml").epochs == 7
    torch.save(build_unet(encoder_weights=None, seed=3).encoder.state_dict(), home / "weights.pth")
    assert torch.equal(
        build_unet(encoder_weights="~/weights.pth").encoder.conv1.weight,
        build_unet(encoder_weights=None, seed=3).encoder.conv1.weight,
    )
    assert copy_figures("~/deep", ["fig2"], home / "figures") == ["fig2.png"]
    with pytest.raises(DataError, match=r"home.isic"):
        load_isic2018("~/isic", 64)
    with pytest.raises(Exception, match=r"no finished run below /.*home.runs"):
        load_results("~/runs")


def test_a_tilde_is_the_home_folder_in_environment_variables(home):
    names = {"RUNS": "~/r", "FIGURES": "~/f"}
    code = "from alutils.lab.notebook import RUNS_DIR, FIGURES_DIR; print(RUNS_DIR, FIGURES_DIR)"
    environment = {**os.environ, **{f"ALUTILS_{name}": value for name, value in names.items()}}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(home / "r"), str(home / "f")]


@pytest.mark.parametrize("path", [5, None, b"bytes", "a\0b", "~nobody-of-that-name/x"])
def test_what_cannot_be_a_path_is_refused_with_the_parameters_name(path):
    with pytest.raises(ConfigError, match="^output_dir: "):
        expanded("output_dir", path)


# Numbers


@pytest.mark.parametrize("name", ["output_dir", "data_root", "device", "profile", "strategy"])
def test_digits_that_papermill_made_a_number_are_refused_with_the_way_to_write_them(name):
    with pytest.raises(ConfigError, match=rf"^{name}: must be text, got 20240501.* -r {name} and .*\"20240501\"$"):
        open_workspace("04_image_al", **{**TINY, name: 20240501})


def test_that_way_works(tmp_path):
    out = tmp_path / "out.ipynb"
    arguments = [
        ROOT / "notebooks" / "01_data.ipynb",
        out,
        "--prepare-only",
        "-r",
        "output_dir",
        "007",
        "-p",
        "seed",
        "1",
    ]
    done = CliRunner().invoke(papermill_command, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    (cell,) = [c for c in nbformat.read(out, as_version=4).cells if "injected-parameters" in c.metadata.get("tags", [])]
    given = {}
    exec(cell.source, given)
    assert given["output_dir"] == "007" and given["seed"] == 1


# Names


def given_to(name, *cells, monkeypatch):
    shell = SimpleNamespace(history_manager=SimpleNamespace(input_hist_raw=["", *cells, "the cell that asks"]))
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
    refuse_unknown_parameters(name)


@pytest.mark.parametrize(
    "cells",
    [
        ["# Parameters\nseed = 1\n"],  # an executed notebook: its own parameters ran in another kernel
        ["%time x = 1", "# Parameters\nseed = 1\n", "!ls"],
        ["# Parameters\n%time\n!ls\nseed = 1\n"],
        ["# Parameters\nsed = 1\n", "# Parameters\nseed = 1\n"],  # mended, and run again
        ["sed = 1"],
        ["# Parameters\nseed = (\n"],
    ],
)
def test_parameters_that_the_notebook_has_are_accepted_whatever_ran_before(cells, monkeypatch):
    given_to("04_image_al", *cells, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    "cells", [["# Parameters\nsed = 1\n"], ["sed = 2", "# Parameters\n%time\nseed = 1\nsed = 1\n"]]
)
def test_parameters_that_it_lacks_are_refused_by_name(cells, monkeypatch):
    with pytest.raises(ConfigError, match="^sed: this notebook has no such parameter; did you mean 'seed'?"):
        given_to("04_image_al", *cells, monkeypatch=monkeypatch)
    given_to("no_such_notebook", *cells, monkeypatch=monkeypatch)  # nobody knows its names


def test_papermill_is_refused_what_the_results_notebook_lacks_or_cannot_read(tmp_path):
    for parameters, message in (({"run": "x"}, "run: this notebook has no such"), ({"runs": 7}, "-r runs and")):
        with pytest.raises(papermill.PapermillExecutionError, match=message):
            out = tmp_path / "out.ipynb"
            papermill.execute_notebook(ROOT / "notebooks" / "06_results.ipynb", out, parameters, progress_bar=False)
