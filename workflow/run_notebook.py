"""Run one notebook of the batch: ``python workflow/run_notebook.py JOB RUNS PLACES``.

JOB is what ``Batch.job`` returns, RUNS the folder of all runs, PLACES how many jobs share a GPU, 0 for a job without.

A job that was stopped goes on in its folder. A folder that other code or other parameters began is put aside: it goes
from ``RUNS/...`` to ``RUNS.stale/...``, in place of what was there. ``done.json`` is written when all went well, and
when a training diverged: that is an outcome, which notebook 06 lists, and the other runs go on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devices import one_device
from filelock import FileLock

from alutils.system.files import write_json

ROOT = Path(__file__).resolve().parent.parent

KERNEL_START = "import atexit, gc; gc.set_threshold(100_000, 100); atexit.register(gc.freeze); del atexit, gc"
"""What a kernel does before the first cell.

Python looks for garbage among all objects of the libraries, though these stay to the end: many times while they are
imported, and once more when the process ends. That takes a second or more (benchmarks/startup.py).
"""


def main() -> None:
    job, runs, places = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    folder = Path(runs, job["name"])
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # a batch that was killed may have left this job at work
        begin(folder, Path(f"{runs}.stale", job["name"]), job)
        with one_device(places) if places else nullcontext({"CUDA_VISIBLE_DEVICES": ""}) as device:
            os.environ.update(device)
            outcome = execute(job, folder)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / "done.json", {**job, "outcome": outcome, "finished": now})


def begin(folder: Path, aside: Path, job: dict[str, Any]) -> None:
    """Make the folder the job's own: put aside what other code or parameters began, and note whose it is now."""
    note = folder / "job.json"
    if any(folder.iterdir()) and not (note.exists() and json.loads(note.read_text(encoding="utf-8")) == job):
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        print(f"{folder} was made by other code or parameters: moved to {aside}", file=sys.stderr)
    write_json(note, job)


def execute(job: dict[str, Any], folder: Path) -> str:
    """Run the notebook; exit with a message that names the executed copy if a cell fails.

    Returns:
        "finished", or "diverged" where that is what the run's record says.
    """
    # jsonschema would import it for a check that notebooks have no use for; building its grammar takes a second
    sys.modules["rfc3987_syntax"] = None
    import papermill  # here, after the waiting, because it takes half a second

    notebook, executed = ROOT / "notebooks" / f"{job['notebook']}.ipynb", f"{folder}.ipynb"
    parameters = {"output_dir": str(folder), **job["parameters"]}
    # A kernel is interrupted before it is told to end; now and then it notes that as an error
    options = ["--IPKernelApp.log_level=CRITICAL", f"--IPKernelApp.exec_lines={KERNEL_START}"]
    try:
        papermill.execute_notebook(notebook, executed, parameters, progress_bar=False, extra_arguments=options)
    except Exception as error:  # a failing cell, a dead kernel, a notebook that cannot be read or written
        found = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else f"{type(error).__name__}: {error}"
        if any(
            json.loads(record.read_text(encoding="utf-8"))["status"] == "diverged"
            for record in folder.rglob("run.json")
        ):
            print(f"DIVERGED {job['name']}: {found}", file=sys.stderr)
            return "diverged"
        sys.exit(f"FAILED {job['name']}: {found}\n  the traceback is in {executed}")
    return "finished"


def stop(*_: object) -> None:
    asked_to_stop.set()
    raise KeyboardInterrupt


if __name__ == "__main__":
    asked_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the second is how a cluster stops a job
        signal.signal(number, stop)
    try:
        main()
    except BaseException:  # where the kernel ended first, an error that says so
        if not asked_to_stop.is_set():
            raise
        logging.getLogger("asyncio").disabled = True  # it would tell of the kernel's end too, and after us
        sys.exit("stopped; start the batch again and it goes on from here")
