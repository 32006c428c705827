"""What the batch costs: 20 runs of notebooks that do nothing, by the Snakefile and by plain calls of papermill.

    python benchmarks/batch_overhead.py

Both run as many at a time as there are cores, in turns. The target: under 20 % more.
"""

from __future__ import annotations

import functools
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from frame import ROOT, in_turns, median_ratio, parser, report

from alutils.system.cores import usable_cores

SETTINGS = ("strategies=random entropy bald full", "seeds=0 1 2", "table2_seeds=0 1", "cells=[[partial,0.25,0.5]]")
N_RUNS = 20  # notebooks 01, 02, 03, 05, 06 and 07, 12 runs of 04, two of 05b


def make_project(folder: Path) -> None:
    """A copy of the batch whose notebooks do no more than write a summary, which notebook 06 must leave."""
    for name in ("workflow", "alutils", "profiles", "notebooks"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    for path in (folder / "notebooks").glob("0*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        code = "from pathlib import Path\n\nPath(output_dir).mkdir(parents=True, exist_ok=True)\n"
        code += "_ = Path(output_dir, 'summary.md').write_text('')"
        notebook.cells = [*parameters, nbformat.v4.new_code_cell(code)]
        nbformat.write(notebook, path)


def run(*command: object, cwd: Path) -> None:
    arguments = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(arguments, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout}")


def plain_calls(project: Path, cores: int) -> None:
    def call(i: int) -> None:
        run("papermill", "notebooks/04_image_al.ipynb", f"{i}.ipynb", "-p", "output_dir", f"plain/{i}", cwd=project)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(call, range(N_RUNS)))


def batch(project: Path, cores: int) -> None:
    shutil.rmtree(project / "runs", ignore_errors=True)
    run("snakemake", "--profile", "workflow/local", "--cores", cores, "--config", *SETTINGS, cwd=project)
    n_done = len(list(project.glob("runs/**/done.json")))
    if n_done != N_RUNS:
        sys.exit(f"the batch made {n_done} runs instead of {N_RUNS}")


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--cores", type=int, default=usable_cores())
    options.add_argument("--repetitions", type=int, default=3)
    settings = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        make_project(project)
        contenders = {
            "plain": functools.partial(plain_calls, project, settings.cores),
            "batch": functools.partial(batch, project, settings.cores),
        }
        times = in_turns(contenders, settings.repetitions)
    row = {"runs": N_RUNS, "cores": settings.cores}
    row |= {f"{name}_s": statistics.median(taken) for name, taken in times.items()}
    row["overhead_percent"] = 100 * (median_ratio(times, "batch", over="plain") - 1)
    report(settings.out, [row], settings.device)


if __name__ == "__main__":
    main()
