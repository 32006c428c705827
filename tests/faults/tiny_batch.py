"""The batch with tiny runs, and how to kill its processes."""

import shutil
import sys
from functools import cache
from pathlib import Path

import nbformat
import psutil
from test_active_learning import contents, run
from test_batch import ARM

from alutils import Experiment, make_synthetic

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

from batch import Batch  # noqa: E402

TINY = {
    "n_synthetic": [10, 4, 4], "cold_start": 4, "query_size": 2, "n_queries": 2, "epochs": 1,
    "decoder_channels": [16, 16, 16, 16, 16],
}  # fmt: skip
"""Overrides of the profile quick."""

SUMMARY = """
from pathlib import Path

Path(output_dir).mkdir(parents=True, exist_ok=True)
_ = Path(output_dir, "summary.md").write_text("")
"""


def make_project(folder):
    """A copy of the batch; its notebook 04 runs its arm and no more, the others do nothing."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("workflow", "alutils", "profiles", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", folder)
    for path in (folder / "notebooks").glob("0*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        code = ARM if path.stem == "04_image_al" else SUMMARY
        notebook.cells = [*parameters, nbformat.v4.new_code_cell(code.strip())]
        nbformat.write(notebook, path)


def kill_family(process):
    """SIGKILL for a process and all that it started, which cannot start more meanwhile."""
    process.suspend()
    family = [process, *process.children(recursive=True)]
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def job(name, **config):
    """What the batch hands to ``run_notebook.py`` for the job of this name."""
    return Batch(config).job(name)


synthetic = cache(make_synthetic)


def tables_without_batch(folder, arm, seed, **changes):
    """The tables of a run of the batch, made without it and with ``changes`` of ``TINY``; the folder is removed."""
    experiment = Experiment.from_profile("quick", **{**TINY, **changes}, strategy=arm, seed=seed)
    run(folder, experiment, synthetic(*experiment.n_synthetic, image_size=experiment.image_size))
    tables = contents(folder)
    shutil.rmtree(folder)
    return tables
