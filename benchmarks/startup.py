"""The start of a batch's job: its kernel does not look for garbage among what it imports (workflow/run_notebook.py).

    python benchmarks/startup.py

A job whose notebook makes notebook 04's imports, uses what its arm begins with and ends; with Python's usual search for
garbage and without, in turns. The target: at most 0.8 of the time.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from frame import ROOT, in_turns, median_ratio, parser, report

USED = "_ = alutils.run_active_learning, alutils.unet_for, alutils.make_synthetic"
JOB = """
import pathlib, sys
sys.path.insert(0, {workflow!r})
import run_notebook
run_notebook.ROOT = pathlib.Path({project!r})
{change}
run_notebook.execute({{"name": "start", "notebook": "start", "parameters": {{}}}}, run_notebook.ROOT / "start")
"""
CHANGES = {"the batch's": "", "usual": "run_notebook.KERNEL_START = 'pass'"}


def make_notebook(folder: Path) -> None:
    """The parameters and the imports of notebook 04, and a use of what is imported when it is first used."""
    notebook = nbformat.read(ROOT / "notebooks" / "04_image_al.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    imports = next(cell for cell in code if "import alutils" in cell.source)
    parameters = next(cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    notebook.cells = [parameters, imports, nbformat.v4.new_code_cell(USED)]
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / "start.ipynb")


def start(project: str, change: str) -> None:
    code = JOB.format(workflow=str(ROOT / "workflow"), project=project, change=change)
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=5)
    settings = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_notebook(Path(folder))
        jobs = {name: functools.partial(start, folder, change) for name, change in CHANGES.items()}
        times = in_turns(jobs, settings.repetitions)
    rows = [
        {
            "garbage collector": name,
            "job_s": statistics.median(taken),
            "over_usual": median_ratio(times, name, over="usual"),
        }
        for name, taken in times.items()
    ]
    report(settings.out, rows, settings.device)


if __name__ == "__main__":
    main()
