"""The committed notebooks are executed, readable and accessible; they run with other parameters and data."""

import itertools
import json
import re
import statistics
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from PIL import Image

from alutils import ConfigError, DataError, Experiment, make_synthetic, run_active_learning
from alutils.lab.notebook import open_workspace
from alutils.training import TrainingDiverged

ROOT = Path(__file__).resolve().parent.parent
TOUR = ROOT / "notebooks" / "00_tour.ipynb"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
RESULTS = ROOT / "notebooks" / "06_results.ipynb"  # reads what the others wrote
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
by_name_of_those_that_train = pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path not in (TOUR, RESULTS)], ids=lambda path: path.stem
)

TINY = "{n_synthetic: [24, 8, 8], cold_start: 8, query_size: 8, n_queries: 1, epochs: 1, mc_samples: 2}"


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@by_name
def test_it_is_committed_executed_from_top_to_bottom_without_errors_or_warnings(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = list(itertools.chain.from_iterable(cell.outputs for cell in cells))
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]


@by_name
def test_every_picture_has_alternative_text(path):
    pictures = 0
    for cell in code_cells(path):
        for output in cell.outputs:
            for kind in set(output.get("data", {})) & {"image/png", "image/jpeg", "image/svg+xml"}:
                pictures += 1
                assert len(output.metadata[kind]["alt"]) > 40, cell.source
    assert pictures >= 3


@by_name
def test_it_can_be_read(path):
    cells = code_cells(path)
    assert (8 if path == TOUR else 15) <= len(cells) <= 30
    lines = [len(cell.source.splitlines()) for cell in cells]
    assert statistics.median(lines) <= 6 and max(lines) <= 40
    assert path.stat().st_size < 400_000
    prose = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert statistics.median(len(cell.source.split()) for cell in prose) > 20


@by_name
def test_what_the_text_sees_in_a_figure_or_table_is_in_the_outputs(path):
    shown = []
    for cell in code_cells(path):
        for output in cell.outputs:
            data, about = output.get("data", {}), output.get("metadata", {})
            shown += [output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")]
            shown += [kind["alt"] for kind in about.values() if isinstance(kind, dict) and "alt" in kind]
    numbers = map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?", " ".join(shown)))
    values = [value for number in numbers for value in (number, 100 * number)]
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "markdown" or "What do we see?" not in cell.source:
            continue
        prose = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|^#.*$|sections?\s\d\.\d+", "", cell.source, flags=re.MULTILINE)
        for text in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", prose):
            digits = len(text.partition(".")[2])
            assert any(f"{value:.{digits}f}" == text for value in values), f"{cell.id}: {text}"


MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|private|work|mnt|srv|var|opt|content)/[^\s\"'<>]*")


def machine_paths(notebook):
    """The absolute paths in what running a notebook left in it: outputs and metadata, without the bytes of pictures."""

    def texts(value, key=""):
        if isinstance(value, str):
            yield from () if key in ("image/png", "image/jpeg") else (value,)
        elif isinstance(value, dict | list):
            for name, part in value.items() if isinstance(value, dict) else enumerate(value):
                yield from texts(part, name)

    left = [notebook.metadata, *([cell.metadata, cell.get("outputs", [])] for cell in notebook.cells)]
    return [path for text in texts(left) for path in MACHINE_PATH.findall(text)]


@by_name
def test_it_names_no_path_of_the_machine_it_ran_on(path):
    assert machine_paths(nbformat.read(path, as_version=4)) == []


def test_a_path_of_the_machine_is_found_in_outputs_and_metadata_and_not_in_what_was_written_by_hand():
    output = nbformat.v4.new_output
    outputs = [
        output("stream", text="saved:\n/home/ana/runs/a.png and runs/tmp/b.png\n"),
        output("display_data", {"text/html": "<a href='/Users/ana/c'>", "image/png": "+/tmp/iVBORw0KGgo="}),
        output("display_data", {"image/png": "AAAA"}, metadata={"image/png": {"alt": "in (/tmp/x/d.png)"}}),
        output("execute_result", {"text/plain": "[PosixPath('/work/e'), 'https://host/home/', '/data/PH2']"}),
    ]
    code = nbformat.v4.new_code_cell("path = '/home/ana/f'", outputs=outputs, metadata={"papermill": {"in": "/opt/g"}})
    prose = nbformat.v4.new_markdown_cell("For example `/tmp/out`.")
    notebook = nbformat.v4.new_notebook(cells=[prose, code], metadata={"path": "/root/h"})
    found = ["/root/h", "/opt/g", "/home/ana/runs/a.png", "/Users/ana/c", "/tmp/x/d.png)", "/work/e"]
    assert machine_paths(notebook) == found


@by_name_of_those_that_train
def test_it_takes_the_common_parameters(path):
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    names = {line.split(" = ")[0] for line in cell.source.splitlines()}
    assert {"profile", "data_root", "seed", "device", "output_dir", "overrides"} <= names


def test_notebook_3_looks_at_the_model_that_notebook_2_trained():
    printed = {}
    for name in ("02_model", "03_uncertainty"):
        outputs = [output for cell in code_cells(ROOT / "notebooks" / f"{name}.ipynb") for output in cell.outputs]
        text = "".join(output.get("text", "") for output in outputs)
        printed[name] = re.findall(r"mean Dice on 128 test images (\d\.\d+)", text)
    assert len(printed["02_model"]) == 1 and printed["02_model"] == printed["03_uncertainty"]


def run(path, out, **parameters):
    papermill.execute_notebook(
        path, out / path.name, {"output_dir": str(out / "files"), **parameters}, cwd=out, progress_bar=False
    )
    return nbformat.read(out / path.name, as_version=4)


def write_isic_folder(root):
    """A folder in the layout of ISIC 2018: synthetic pictures, enlarged to several sizes that are not square."""
    splits = make_synthetic(24, 8, 8, image_size=64)
    for name, split in (("Training", splits.train), ("Validation", splits.val), ("Test", splits.test)):
        images, masks = root / f"ISIC2018_Task1-2_{name}_Input", root / f"ISIC2018_Task1_{name}_GroundTruth"
        images.mkdir(parents=True)
        masks.mkdir()
        for i, (image, mask) in enumerate(zip(split.images, split.masks, strict=True)):
            size = (100 + 10 * (i % 3), 80)
            stem = f"ISIC_{name}_{i:04d}"
            Image.fromarray(np.asarray(image.permute(1, 2, 0))).resize(size).save(images / f"{stem}.jpg", quality=95)
            nearest = Image.fromarray(255 * np.asarray(mask[0])).resize(size, Image.Resampling.NEAREST)
            nearest.save(masks / f"{stem}_segmentation.png")


@by_name_of_those_that_train
def test_papermill_runs_it_with_other_parameters_on_a_folder_of_isic_2018(path, tmp_path, monkeypatch):
    """On synthetic images ``make test`` runs every notebook anyhow (tests/brief.py)."""
    monkeypatch.setenv("ALUTILS_CACHE", str(tmp_path / "cache"))
    write_isic_folder(tmp_path / "isic")
    notebook = run(path, tmp_path, data_root=str(tmp_path / "isic"), seed=3, device="cpu", overrides=TINY)
    assert "ISIC 2018" in json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert list((tmp_path / "files").glob("*.png"))
    arms = path.stem in ("04_image_al", "05b_partial_loop", "08_annotate")
    assert any((tmp_path / "files").rglob("run.json")) == arms  # 06 compares all runs that it finds


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("01_data", {"sed": 1}, "sed: this notebook has no such parameter; did you mean 'seed'?"),
        ("04_image_al", {"strategy": "entorpy"}, "there is no 'entorpy'; did you mean 'entropy'?"),
        ("05b_partial_loop", {"strategy": "full"}, "annotation: 'partial' is about queried images"),
        ("06_results", {"runs": "/nowhere/at/all"}, "there is no finished run below /nowhere/at/all"),
    ],
)
def test_wrong_parameters_stop_a_notebook_at_once_by_name(name, parameters, message, tmp_path):
    if name in ("04_image_al", "05b_partial_loop"):
        parameters = {**parameters, "overrides": TINY}
    with pytest.raises(papermill.PapermillExecutionError) as stopped:
        run(ROOT / "notebooks" / f"{name}.ipynb", tmp_path, **parameters)
    assert message in str(stopped.value)
    assert stopped.value.exec_count <= 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"profile": "quik"}, "did you mean 'quick'?"),
        ({"device": "gpu"}, "device: 'gpu' cannot be used here"),
        ({"data_root": "nowhere"}, "nowhere does not exist"),
        ({"overrides": "{epoch: 1}"}, "did you mean 'epochs'?"),
        ({"overrides": "epochs=1"}, "overrides must be a mapping"),
        ({"seed": "one"}, "seed: .* integer"),
        ({"annotation": "partail"}, "annotation: .*'partial'"),
        ({"tau_u": 0.6}, "tau_u: .* 0.5, got 0.6"),
    ],
)
def test_a_wrong_value_is_refused_by_name_before_any_data_is_made(parameters, message):
    with pytest.raises((ConfigError, DataError), match=message):
        open_workspace("05b_partial_loop", **parameters)


def test_the_results_of_runs_are_tables_figures_and_a_summary_that_lists_what_diverged(tmp_path):
    splits = make_synthetic(12, 4, 4, image_size=64)
    arms = ({}, {"strategy": "random"}, {"annotation": "partial", "tau_u": 0.375})
    for i, settings in enumerate(arms):
        experiment = Experiment.from_profile("quick", cold_start=4, query_size=4, n_queries=1, epochs=1, **settings)
        list(run_active_learning(experiment, splits, tmp_path / "runs" / str(i), progress=False))
    wild = experiment.model_copy(update={"seed": 7, "learning_rate": 1e30})
    with pytest.raises(TrainingDiverged):
        list(run_active_learning(wild, splits, tmp_path / "runs" / "wild", progress=False))
    notebook = run(RESULTS, tmp_path, runs=str(tmp_path / "runs"))

    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "this run, profile quick, synthetic images" in shown and "recorded: synthetic images" in shown
    made = {path.name for path in (tmp_path / "files").iterdir()}
    stems = {"table1", "table2", "modes", "claims", "ledger"}
    assert {f"{stem}{suffix}" for stem in stems for suffix in (".csv", ".md")} < made
    assert {f"{stem}{suffix}" for stem in ("fig1", "fig4", "fig5") for suffix in (".png", ".svg")} < made
    table = pd.read_csv(tmp_path / "files" / "table1.csv", index_col="arm")
    assert table.loc["random", "seeds"] == 1 and table.loc["random", "images"] == 8

    (cell,) = [cell for cell in notebook.cells if "load_diverged(" in cell.source]
    assert "wild" in json.dumps(cell.outputs)
    summary = (tmp_path / "files" / "summary.md").read_text()
    assert summary.startswith("# this run, profile quick")
    assert "# Runs without a result: their training diverged" in summary and "| wild " in summary
