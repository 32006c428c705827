"""The batch: what is run, what is run again, and what happens when something fails or is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import psutil
import pytest
import yaml
from filelock import FileLock

from alutils import Experiment, make_synthetic, run_active_learning
from alutils.lab.notebook import RUNS_DIR, open_workspace
from alutils.runs.collect import load_runs
from alutils.runs.folder import read_record, read_rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import run_notebook  # noqa: E402
import watch  # noqa: E402
from batch import Batch, ConfigError, as_typed, check_for_cluster  # noqa: E402
from grid import GRID, Cell  # noqa: E402

ONE_OF_EACH = {"seeds": 0, "strategies": "random", "cells": "[[partial, 0.25, 0.25]]"}
NAMES = [
    "01_data", "02_model", "03_uncertainty", "04_image_al", "05_partial_annotation", "05b_partial_loop", "06_results",
    "07_methods",
]  # fmt: skip


def command(*arguments, project=ROOT, cores=1, **config):
    options = ["--profile", project / "workflow" / "local", "--snakefile", project / "Snakefile", "--cores", cores]
    entries = [f"{key}={value}" for key, value in config.items()]
    program = [sys.executable, "-m", "snakemake"]
    return [str(part) for part in (*program, *arguments, *options, *(["--config", *entries] if entries else []))]


def snakemake(cwd, *arguments, project=ROOT, cores=1, env=None, **config):
    """Snakemake's exit status and all that it said."""
    done = subprocess.run(
        command(*arguments, project=project, cores=cores, **config),
        cwd=cwd, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def announced(said):
    """The jobs of a dry run: {notebook: number of jobs}."""
    table = re.search(r"Job stats:\njob .*\n[- ]+\n((?:.+\n)+)", said)
    counts = {} if table is None else {name: int(n) for name, n in re.findall(r"^(\S+) +(\d+)$", table[1], re.M)}
    return {name: n for name, n in counts.items() if name not in ("all", "total")}


@pytest.fixture
def project(tmp_path):
    """A copy of the project in a folder with a space in its name, whose notebooks note their parameters and no more."""
    project = tmp_path / "the project"
    shutil.copytree(ROOT / "workflow", project / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("alutils", "profiles"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", project)
    (project / "notebooks").mkdir()
    for name in NAMES:
        original = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        parameters = next(cell for cell in original.cells if "parameters" in cell.metadata.get("tags", []))
        summary = "\nPath(output_dir, 'summary.md').write_text('# Results')" if name == "06_results" else ""
        code = (
            "import gc, json, os\nfrom pathlib import Path\n\nPath(output_dir).mkdir(parents=True, exist_ok=True)\n"
            "given = [globals().get('overrides'), os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES']]\n"
            "given += [gc.get_threshold()[0]]\n"
            "Path(output_dir, 'given.json').write_text(json.dumps(given))" + summary
        )
        original.cells = [nbformat.v4.new_markdown_cell("prose"), parameters, nbformat.v4.new_code_cell(code)]
        nbformat.write(original, project / "notebooks" / f"{name}.ipynb")
    return project


def edit(project, name, kind, source):
    path = project / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    [*_, cell] = [cell for cell in notebook.cells if cell.cell_type == kind]
    cell.source = source
    nbformat.write(notebook, path)


# What is run


@pytest.mark.parametrize(
    ("config", "n_table1", "n_table2"),
    [
        ({}, 3 * 6, 6),
        ({"profile": "paper", "seeds": "0 1 2 3 4"}, 7 * 5, (5 + 4) * 5),
        ({"profile": "paper", "seeds": [7], "table2_seeds": "1,2", "strategies": "random entropy"}, 2, 2 * (5 + 4)),
    ],
)
def test_it_has_a_job_for_each_run(config, n_table1, n_table2):
    runs = Batch(config).runs_of
    assert (len(runs["04_image_al"]), len(runs["05b_partial_loop"])) == (n_table1, n_table2)


def test_a_dry_run_announces_the_jobs_and_names_a_folder_as_it_was_typed(tmp_path):
    status, said = snakemake(tmp_path, "--dry-run", "--quiet", "rules", "host", runs="007")
    assert status == 0 and re.search(r"^runs +007$", said, re.M)
    assert announced(said) == dict.fromkeys(NAMES, 1) | {"04_image_al": 3 * 6, "05b_partial_loop": 6}


@pytest.mark.parametrize("arguments", [["-C", "runs=2024_05_01"], ["--config=runs=1e5"], ["--config", "runs='0o17'"]])
def test_a_folder_is_named_as_it_was_typed(arguments):
    typed = arguments[-1].rpartition("runs=")[2].strip("'")
    assert as_typed({"runs": 7, "seeds": 7}, ["snakemake", *arguments]) == {"runs": typed, "seeds": 7}


def test_cells_that_stand_for_one_another_give_the_same_labels_and_others_do_not():
    p = np.linspace(0, 1, 10_001)
    written = {cell: np.where(abs(0.5 - p) <= cell.tau_u, -1, p >= cell.tau_b) for cell in GRID}  # -1: the human's
    for cell, other in combinations(GRID, 2):
        assert np.array_equal(written[cell], written[other]) == (cell.distinct == other.distinct), (cell, other)
    assert {str(cell.distinct) for cell in GRID} == {
        "partial-0.125-0.25", "partial-0.125-0.5", "partial-0.125-0.75", "partial-0.25-0.5", "partial-0.375-0.5",
    }  # fmt: skip
    assert Cell("human-only", 0.25, 0.25).distinct == Cell("human-only", 0.25, 0.25)


def parameters_of(name, **config):
    return json.loads(Batch(config).job(name))["parameters"]


def test_a_run_is_given_its_parameters():
    config = {"profile": "paper", "data": str(ROOT), "overrides": "{n_queries: 3, encoder_weights: 'a: b'}"}
    arm = parameters_of("04_image_al/full-seed1", **config)
    assert (arm["profile"], arm["data_root"], arm["strategy"], arm["seed"]) == ("paper", str(ROOT), "full", 1)
    cell = parameters_of("05b_partial_loop/partial-0.25-0.5-seed0", **config)
    assert (cell["annotation"], cell["tau_u"], cell["tau_b"], cell["seed"]) == ("partial", 0.25, 0.5, 0)
    assert arm["compare"] is cell["compare"] is False
    assert yaml.safe_load(arm["overrides"]) == {"n_queries": 3, "encoder_weights": "a: b"}
    assert yaml.safe_load(cell["overrides"]) == {"n_queries": 20, "encoder_weights": "a: b"}  # Table II's own
    assert parameters_of("06_results", **config)["output_dir"] == "figures/paper"
    assert parameters_of("01_data")["overrides"] == parameters_of("01_data")["data_root"] == ""


def test_a_path_begins_in_the_home_folder_where_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(ROOT / "profiles" / "quick.yaml", tmp_path / "mine.yaml")
    batch = Batch({"profile": "~/mine.yaml", "data": "~", "runs": "~/runs", "figures": "~/figures"})
    assert Batch({"runs": "a~b"}).runs == "a~b"
    assert (batch.profile, batch.data) == (str(tmp_path / "mine.yaml"), str(tmp_path))
    assert (batch.runs, batch.figures) == (str(tmp_path / "runs"), str(tmp_path / "figures"))


def test_a_shipped_profile_is_the_same_batch_however_it_is_written(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("quick", "paper"):
        plain = Batch({"profile": name})
        for written in (f"profiles/{name}.yaml", f"./profiles/{name}.yaml", ROOT / "profiles" / f"{name}.yaml"):
            again = Batch({"profile": written})
            assert again.plan == plain.plan and [*map(again.job, again.names)] == [*map(plain.job, plain.names)]


def test_a_profile_elsewhere_does_not_share_the_folders_of_a_shipped_one(tmp_path):
    shutil.copy(ROOT / "profiles" / "quick.yaml", tmp_path)
    with pytest.raises(ConfigError, match=r"profile: .*quick.yaml has the name of .*; give the file another name, or"):
        Batch({"profile": tmp_path / "quick.yaml"})
    assert Batch({"profile": tmp_path / "quick.yaml", "runs": "mine", "figures": "drawn"}).runs == "mine"


def test_what_a_cluster_s_jobs_would_get_otherwise_is_refused():
    check_for_cluster(["runs=2024_05_01", "data=it's here", 'overrides={loss: "dice"}'])
    for text in ("$(touch made)", "`x`", "C:\\isic", 'it\'s "mine"', "two\nrows"):
        with pytest.raises(ConfigError, match=f"^data: .*{re.escape(repr(text))}.* --configfile"):
            check_for_cluster(["runs=2024_05_01", f"data={text}"])


def test_a_cluster_is_refused_what_its_shells_would_change(tmp_path):
    odd = ["--config", 'overrides={encoder_weights: "$HOME.pth"}']
    program = [sys.executable, "-m", "snakemake", "--executor", "slurm", "--jobs", "2", "--dry-run", "--snakefile"]
    done = subprocess.run([*program, ROOT / "Snakefile", *odd], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "error: overrides: a cluster's jobs would not get" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_number_in_a_file_of_settings_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "mine.yaml").write_text("runs: 2024_05_01")
    status, said = snakemake(tmp_path, "--configfile", "mine.yaml")
    assert status == 1 and "runs: must be text, but 20240501 was read" in said and "put it into quotes" in said
    assert "Traceback" not in said and not (tmp_path / "runs").exists()


def test_seeds_can_be_written_in_several_ways():
    for value in ("0 3", "0,3", [0, 3], ["0", "3", "0"]):
        assert Batch({"seeds": value}).seeds == [0, 3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sedes": "0"}, "sedes: the batch has no such setting; did you mean 'seeds'?"),
        ({"profile": "quik"}, "there is no profile file .*quik.yaml; did you mean 'quick'?"),
        ({"data": "nowhere/at/all"}, "data: there is no folder /.*/nowhere/at/all; give one with images and masks"),
        ({"seeds": "0 one"}, "seeds: each must be a whole number from 0 .*, got 'one'"),
        ({"table2_seeds": -1}, "table2_seeds: .*, got -1"),
        ({"strategies": "random power-kcentre"}, "in 'power-kcentre' the wrapper 'power' needs a score for each image"),
        ({"strategies": "random entorpy"}, "strategies: there is no 'entorpy'; did you mean 'entropy'?"),
        ({"cells": [["partail", 0.25, 0.25]]}, "cells: there is no annotation 'partail'; did you mean 'partial'?"),
        ({"cells": [["partial", 0.75, 0.25]]}, "cells: partial-0.75-0.25: .*\n.*tau_u: input should be less"),
        ({"cells": "grid"}, r"cells: each must be \[annotation, tau_u, tau_b\], .*, got grid"),
        ({"overrides": "{epoch: 1}"}, "epoch: there is no such setting; did you mean 'epochs'?"),
        ({"overrides": "epochs=1"}, "overrides must be a mapping"),
        ({"table2_overrides": "{n_queries: many}"}, "n_queries: .*valid integer"),
        ({"runs_per_gpu": 0}, "runs_per_gpu: must be a whole number of at least 1, got 0"),
        ({"runs": "runs/{seed}"}, "runs: must not contain braces"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        Batch(config)


def test_data_that_no_description_fits_are_refused_before_any_job(tmp_path):
    status, said = snakemake(tmp_path, "--dry-run", data=tmp_path)
    assert status == 1 and "holds none of the known data sets" in said and not announced(said)


def test_a_notebook_run_by_hand_writes_where_no_batch_reads():
    parameters = {"overrides": "{n_synthetic: [4, 2, 2]}", "device": "cpu"}
    folder = open_workspace("04_image_al", **parameters).output_dir.relative_to(RUNS_DIR)
    for profile in ("quick", "paper", "study"):
        assert not folder.is_relative_to(Path(Batch({"profile": profile}).runs).relative_to("runs"))


# What is run again


def test_only_what_changed_is_run_again(project):
    fake = "import pathlib, sys, json\nname = json.loads(sys.argv[1])['name']\n"
    fake += "pathlib.Path(sys.argv[2], name, 'done.json').write_text(sys.argv[1])\n"
    fake += "name == '06_results' and pathlib.Path('figures/quick/summary.md').write_text('')\n"
    (project / "workflow" / "run_notebook.py").write_text(fake)
    status, said = snakemake(project, project=project, **ONE_OF_EACH)
    assert status == 0, said

    def stale():
        status, said = snakemake(project, "--dry-run", "--quiet", "rules", "host", project=project, **ONE_OF_EACH)
        assert status == 0, said
        return sorted(announced(said))

    edit(project, "04_image_al", "markdown", "better prose")
    assert stale() == []
    edit(project, "02_model", "code", "better = 'code'")
    (project / "runs/quick/05b_partial_loop/partial-0.25-0.5-seed0/done.json").unlink()
    assert stale() == ["02_model", "05b_partial_loop", "06_results"]


def test_a_folder_of_other_code_is_put_aside_and_a_job_s_own_is_kept(tmp_path, capsys):
    folder, aside = tmp_path / "runs" / "a", tmp_path / "runs.stale" / "a"
    folder.mkdir(parents=True)
    run_notebook.begin(folder, aside, {"code": "one"})
    (folder / "state.pt").write_text("half done by one")
    run_notebook.begin(folder, aside, {"code": "one"})
    assert (folder / "state.pt").exists() and not aside.exists()
    run_notebook.begin(folder, aside, {"code": "two"})
    assert [path.name for path in folder.iterdir()] == ["job.json"]
    assert (aside / "state.pt").read_text() == "half done by one" and "moved to" in capsys.readouterr().err
    (folder / "state.pt").write_text("half done by two")
    (folder / "job.json").unlink()
    run_notebook.begin(folder, aside, {"code": "three"})
    assert (aside / "state.pt").read_text() == "half done by two" and not (folder / "state.pt").exists()


# When something fails


DIVERGES = """
from pathlib import Path
class TrainingDiverged(RuntimeError): pass
Path(output_dir, 'run').mkdir(parents=True)
Path(output_dir, 'run', 'run.json').write_text('{"status": "diverged"}')
raise TrainingDiverged('the loss was nan')
"""


def test_a_failing_notebook_leaves_its_traceback_a_training_may_diverge_and_the_others_finish(project):
    edit(project, "03_uncertainty", "code", "raise RuntimeError('as expected')")
    edit(project, "04_image_al", "code", DIVERGES)
    config = {**ONE_OF_EACH, "overrides": "{epochs: 2}", "runs": "my runs", "figures": "my figures"}
    env = {"CUDA_VISIBLE_DEVICES": "5,6", "TMPDIR": str(project)}
    status, said = snakemake(project, project=project, cores=2, env=env, **config)
    assert status == 1
    assert "FAILED 03_uncertainty: RuntimeError: as expected\n  the traceback is in my runs/03" in said
    assert "DIVERGED 04_image_al/random-seed0: TrainingDiverged: the loss was nan" in said
    assert "not finished, see:\n  my runs/03_uncertainty.ipynb\n" in said[said.rindex(" steps") :]

    runs = project / "my runs"
    failed = nbformat.read(runs / "03_uncertainty.ipynb", as_version=4)
    errors = [out.ename for cell in failed.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert errors == ["RuntimeError"]
    done = {str(path.parent.relative_to(runs)): json.loads(path.read_text()) for path in runs.rglob("done.json")}
    arm, cell = "04_image_al/random-seed0", "05b_partial_loop/partial-0.25-0.5-seed0"
    assert {name: mark["outcome"] for name, mark in done.items()} == {
        arm: "diverged",
        **dict.fromkeys(["01_data", "02_model", "05_partial_annotation", cell, "06_results", "07_methods"], "finished"),
    }  # fmt: skip
    assert (project / "my figures" / "summary.md").exists()
    for folder in ("my runs", "my figures"):  # a README in each says what lies there, by which settings
        assert re.search(r"^overrides +{epochs: 2}$", (project / folder / "README.md").read_text(), re.MULTILINE)

    for name in ("01_data", "02_model", cell):
        given, threads, device, threshold = json.loads((runs / name / "given.json").read_text())
        assert yaml.safe_load(given) == {"epochs": 2} and threads == "1" and device in ("5", "6")
        assert threshold > 10_000  # a batch's kernel does not look for garbage among what it imports
    assert json.loads((project / "my figures" / "given.json").read_text())[1:3] == ["1", ""]
    executed = nbformat.read(runs / "01_data.ipynb", as_version=4)
    assert not [cell.source for cell in executed.cells if "set_threshold" in cell.source]
    assert [cell.execution_count for cell in executed.cells if cell.cell_type == "code"] == [1, 2, 3]


def test_ctrl_c_ends_with_what_comes_of_it_and_without_tracebacks(project):
    edit(project, "03_uncertainty", "code", "import time\nopen('begun', 'w').close()\ntime.sleep(600)")
    with subprocess.Popen(
        command("runs/quick/03_uncertainty/done.json", project=project),
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as batch:  # fmt: skip
        while not (project / "begun").exists():
            assert batch.poll() is None
            time.sleep(0.02)
        os.killpg(batch.pid, signal.SIGINT)
        said = batch.communicate(timeout=60)[0]
    assert batch.returncode != 0
    assert said.splitlines()[-1] == "stopped; start the batch again and it goes on from here"
    assert not re.search("Traceback|RuleException|Error|Command", said[said.index("Terminating") :])
    assert not (project / "runs/quick/03_uncertainty/done.json").exists()


def test_each_round_and_each_job_that_ends_is_told_with_what_is_left(tmp_path, capsys, monkeypatch):
    config = {"runs": tmp_path, "strategies": "random full", "seeds": 0, "cells": [["partial", 0.25, 0.5]]}
    batch, now = Batch(config), iter(range(0, 6000, 600))
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: next(now)))

    def write(name, mark, **changes):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / mark).write_text(json.dumps({**json.loads(batch.job(name)), **changes}))

    def rounds(name, *steps):
        record = {"experiment": batch.experiments["04_image_al"].model_copy(update={"strategy": name[12:-6]})}
        record = {"experiment": record["experiment"].model_dump(mode="json"), "data": {"train": {"images": 60}}}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        lines = [json.dumps({"round": k, "steps": n, "val_dice": 0.8125}) + "\n" for k, n in enumerate(steps)]
        (tmp_path / name / "rounds.jsonl").write_text("".join(lines) + '{"round": 9, "st')  # the next is under way

    first, second = "04_image_al/random-seed0", "04_image_al/full-seed0"
    write("01_data", "done.json")
    write(first, "job.json")
    rounds(first, 9)  # a batch that goes on
    write(second, "job.json", code="older")
    write(second, "done.json", code="older")
    rounds(second, 324)
    seen = watch.Watch(batch)
    seen.look()
    assert capsys.readouterr().err == ""
    rounds(first, 9, 18, 54)
    seen.look()
    assert (
        capsys.readouterr().err == f"{first}: round 3 of 8, validation Dice 0.812; 1 of 9 jobs done, about 2.1 h left\n"
    )
    write(second, "job.json")
    rounds(second, 324)
    write("02_model", "done.json")
    seen.look()
    told = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in told] == [
        f"{second}: round 1 of 1, validation Dice 0.812", "02_model: done"
    ]  # fmt: skip
    for name in batch.names:
        write(name, "done.json", outcome="finished")
    seen.end()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 7 and all(line.endswith("done; 9 of 9 jobs done") for line in told)


def test_a_round_is_told_before_a_network_disk_shows_the_run_s_record(tmp_path, capsys):
    batch = Batch({"runs": tmp_path, "seeds": 0, "cells": [["partial", 0.25, 0.5]]})
    seen = watch.Watch(batch)
    for arm in ("random", "full"):
        folder = tmp_path / "04_image_al" / f"{arm}-seed0"
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(batch.job(f"04_image_al/{arm}-seed0"))
        (folder / "rounds.jsonl").write_text('{"round": 0, "steps": 9, "val_dice": 0.5}\n')
    seen.end()
    told = [line.split(";")[0] for line in capsys.readouterr().err.splitlines()]
    rounds = {"random": "round 1", "full": "round 1 of 1"}
    assert told == [f"04_image_al/{arm}-seed0: {which}, validation Dice 0.500" for arm, which in rounds.items()]


def kill_all(process):
    """SIGKILL for a process and all that it started, as at a power cut."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGSTOP)
    for member in family:
        member.kill()
    psutil.wait_procs(family[1:], timeout=10)


ARM = """
import alutils
from alutils.lab.notebook import open_workspace

parameters = {"profile": profile, "data_root": data_root, "device": device, "overrides": overrides}
work = open_workspace("04_image_al", output_dir=output_dir, seed=seed, strategy=strategy, **parameters)
folder, device = work.output_dir, str(work.device)
_ = list(alutils.run_active_learning(work.experiment, work.splits, folder, device=device, progress=False))
"""


def test_a_batch_killed_in_the_middle_goes_on_from_the_last_round(project, tmp_path):
    edit(project, "04_image_al", "code", ARM)
    tiny = {"n_synthetic": [24, 8, 8], "cold_start": 8, "query_size": 2, "n_queries": 7, "epochs": 1}
    config = {"project": project, "overrides": json.dumps(tiny), "strategies": "entropy", "seeds": 3}
    target = "runs/quick/04_image_al/entropy-seed3/done.json"
    folder = tmp_path / "runs" / "quick" / "04_image_al" / "entropy-seed3"
    with subprocess.Popen(
        command(target, **config), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as batch:
        while not (folder / "state.pt").exists():
            assert batch.poll() is None
            time.sleep(0.005)
        kill_all(psutil.Process(batch.pid))
    before = read_rounds(folder, read_record(folder))
    assert "image_id" not in before[-1]["test_dice_per_image"]  # which only the last round has

    status, said = snakemake(tmp_path, target, **config)
    assert status == 0, said
    after = read_rounds(folder, read_record(folder))
    assert len(before) < len(after)
    assert after[0] == before[0]  # with the seconds that it took

    experiment = Experiment.from_profile("quick", **tiny, strategy="entropy", seed=3)
    splits = make_synthetic(*experiment.n_synthetic, image_size=experiment.image_size)
    undisturbed = tmp_path / "undisturbed"
    list(run_active_learning(experiment, splits, undisturbed, device="cpu", progress=False))
    visible = [
        {path.name for path in place.glob("[!.]*")} for place in (folder, undisturbed)
    ]  # half a file may be left
    assert visible[0] == visible[1] | {"job.json", "done.json"}
    assert list((tmp_path / "runs").rglob("run.json")) == [folder / "run.json"]
    assert load_runs(tmp_path / "runs" / "quick")["run"].tolist() == ["04_image_al/entropy-seed3"]
    expected = read_rounds(undisturbed, read_record(undisturbed))
    assert [{**line, "seconds": 0} for line in after] == [{**line, "seconds": 0} for line in expected]


def test_a_job_waits_for_the_same_job_of_a_batch_that_was_killed(tmp_path, monkeypatch):
    order, job = [], {"name": "01_data", "notebook": "01_data"}
    (tmp_path / "01_data").mkdir()
    monkeypatch.setattr(sys, "argv", ["run_notebook.py", json.dumps(job), str(tmp_path), "0"])
    monkeypatch.setattr(run_notebook, "execute", lambda job, folder: order.append("the job"))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    waiting = threading.Thread(target=run_notebook.main)
    with FileLock(tmp_path / ".01_data.lock"):
        waiting.start()
        waiting.join(0.2)
        order.append("the other")
    waiting.join()
    assert order == ["the other", "the job"] and (tmp_path / "01_data" / "done.json").exists()
