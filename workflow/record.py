"""Record the runs of results/, as the plan (workflow/records.yaml) lists them.

    python workflow/record.py --list                        what is done and what is left
    python workflow/record.py study study-methods --jobs 2  run what is left, two at a time, and collect it
    python workflow/record.py study --collect               collect what is finished; without NAME: of all folders
    python workflow/record.py study/random-seed3            make one run, here in runs/results/ (again: delete it there)

Finished runs are not run again, in whichever of runs/results/ and results/ they are, and a stopped run goes on. The
same command can therefore be stopped and given again until all is done.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pandas as pd
from code_hash import code_of_commit
from recordings import PLAN, Recording, RecordsPlan, in_order, read_plan

from alutils.lab.notebook import RESULTS_DIR, ROOT, RUNS_DIR, open_workspace
from alutils.loop import run_active_learning
from alutils.runs.collect import finished_records, write_results
from alutils.runs.folder import RecordsError
from alutils.runs.provenance import provenance
from alutils.system.checks import ConfigError, DataError, listed
from alutils.system.device import OutOfMemory, resolve_device, working_dtype
from alutils.system.files import CannotWrite
from alutils.system.weights import WeightsError
from alutils.training import TrainingDiverged

EXPECTED_ERRORS = (ConfigError, DataError, RecordsError, WeightsError, OutOfMemory, CannotWrite, TrainingDiverged)
"""They are told in one line; any other is a fault of ours."""

Records = dict[str, dict[str, Any]]
"""Finished runs by name, with what their run.json holds."""


def run_script(main: Callable[[], object]) -> None:
    """Call a script's ``main``; one of :data:`EXPECTED_ERRORS` ends the process with its message and exit status 1."""
    try:
        main()
    except EXPECTED_ERRORS as error:
        sys.exit(" ".join(map(str.strip, str(error).splitlines())))  # settings have a line each


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="folders of the plan, or one run: FOLDER/RUN")
    parser.add_argument("--list", action="store_true", help="only show what is done and left, without names of all")
    parser.add_argument("--collect", action="store_true", help="only collect what is finished")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes side by side, each with one thread; 1 by default"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plan", type=Path, default=PLAN, help="another plan than workflow/records.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS_DIR, help="another folder than results/")
    options = parser.parse_args()
    try:
        plan = read_plan(options.plan)
        names = options.names or (list(plan.recordings) if options.list or options.collect else [])
        if not names or options.jobs < 1:
            parser.error("give at least one NAME, --list or --collect" if not names else "--jobs: must be at least 1")
        if len(names) == 1 and "/" in names[0]:
            return _record(plan, names[0], options.device)
        recordings = plan.named(names)
        if options.list:
            print(_progress(recordings, options.results).to_string(index=False))
            return 0
        failed = [] if options.collect else _run_all(recordings, plan, options)
        for recording in recordings:
            done = finished(recording, options.results)
            if done or options.names:
                failed += _collect(recording, done, plan, options.results)
    except EXPECTED_ERRORS as error:
        failed = [str(error)]
    if failed:
        print("", *failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def _record(plan: RecordsPlan, name: str, device: str) -> int:
    """Make one run, in this process."""
    folder, _, run = name.partition("/")
    (recording,) = plan.named([folder])
    if run not in recording.experiments:
        raise ConfigError(f"{folder} has no run '{run}', but {', '.join(recording.runs_of(recording.seeds[:1]))}, ...")
    work = workspace_of(recording, device)
    runs = run_active_learning(
        recording.experiments[run], work.splits, RUNS_DIR / "results" / name, device=device, progress=False
    )
    *_, last = runs
    print(f"{name}: validation Dice {last.val_dice:.3f}, test Dice {last.test_dice:.3f}", flush=True)
    return 0


def workspace_of(recording: Recording, device: str) -> Any:
    """The pictures and settings of a recording, checked."""
    return open_workspace(
        "results",
        profile=recording.profile,
        data_root=recording.data,
        overrides=recording.overrides,
        device=device,
    )


def _run_all(recordings: list[Recording], plan: RecordsPlan, options: argparse.Namespace) -> list[str]:
    """Make all runs that are left, each in a process of its own; returns a line about each one that failed."""
    done = {recording.name: finished(recording, options.results) for recording in recordings}
    waiting = [(recording, run) for recording, run in in_order(recordings) if run not in done[recording.name]]
    for recording in {recording.name: recording for recording, _ in waiting}.values():
        _refuse_to_mix(recording, plan, {**done[recording.name], "the runs to come": _to_come(recording, options)})
        _refuse_other_pictures(recording, done[recording.name])
    processes, failed = set(), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stopping = threading.Event()

    def run_one(name: str) -> str:
        if stopping.is_set():
            return ""
        command = [sys.executable, __file__, name, "--device", options.device, "--plan", str(options.plan)]
        with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment) as process:
            processes.add(process)
            output, error = process.communicate()
            processes.remove(process)
        if process.returncode == 0:
            print(output.strip(), flush=True)
        return "" if process.returncode == 0 or stopping.is_set() else f"{name}: {error.strip() or process.returncode}"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(run_one, f"{recording.name}/{run}") for recording, run in waiting]
        try:
            for number, job in enumerate(as_completed(jobs), start=1):
                failed += filter(None, [job.result()])
                print(f"{number} of {len(jobs)} runs over, {len(failed)} failed", flush=True)
        except KeyboardInterrupt:
            stopping.set()
            for process in tuple(processes):
                process.terminate()
            failed.append("stopped; the same command goes on from here")
    return failed


def _to_come(recording: Recording, options: argparse.Namespace) -> dict[str, Any]:
    """What the record of a run made now would say about where it was made."""
    (first, *_), device = recording.experiments.values(), resolve_device(options.device)
    dtype = working_dtype(device, first.precision)
    return {"provenance": [{**provenance(device), "precision": str(dtype).removeprefix("torch.")}]}


def _refuse_to_mix(recording: Recording, plan: RecordsPlan, records: Records) -> None:
    """Refuse runs of several precisions, or of codes that are not the same and that the plan does not call so."""
    arms = "-".join(sorted({experiment.strategy for experiment in recording.experiments.values()}))
    named = {code: codes[0] for codes in plan.same_code for code in codes}
    values: dict[str, dict[str, list[str]]] = {"precision": {}, "code": {}}
    for run, record in records.items():
        for start in record["provenance"]:
            commit = str(start.get("git_commit"))
            code = f"{commit} with changes" if start.get("git_dirty") else code_of_commit(ROOT, commit, arms)
            for name, value in (("precision", start.get("precision")), ("code", named.get(code, code))):
                values[name].setdefault(str(value), []).append(run)
    for name, runs in values.items():
        if len(runs) > 1:
            lines = [f"{name} {value}: {listed(dict.fromkeys(found))}" for value, found in runs.items()]
            remedy = {
                "precision": "Record all on machines that compute alike",
                "code": "Commit changes before recording, list codes that compute the same under same_code in the plan",
            }
            raise RecordsError(
                f"{recording.name}: the runs of a folder must have one {name}, and these differ:\n  "
                + "\n  ".join(lines)
                + f"\n{remedy[name]}, or move the runs that do not belong here away"
            )


def _refuse_other_pictures(recording: Recording, done: Records) -> None:
    """Refuse to go on with pictures that are not those of the finished runs."""
    if not done:
        return
    checksums = {name: split.checksum for name, split in workspace_of(recording, "cpu").splits.named.items()}
    for run, record in done.items():
        for name, checksum in checksums.items():
            if record["data"][name]["checksum"] != checksum:
                raise ConfigError(
                    f"{recording.name}: the {name} pictures in {recording.data or 'the generator'} are not those of "
                    f"{run}; give the same, or move results/{recording.name} and runs/results/{recording.name} away"
                )


def finished(recording: Recording, results: Path) -> Records:
    """The recording's finished runs: those in runs/, and else those that ``results`` holds with the plan's settings."""
    runs = RUNS_DIR / "results" / recording.name
    collected, found = finished_records(results / recording.name), finished_records(runs)
    for run in found.keys() & recording.experiments.keys():
        if not _planned(recording, run, found[run]):
            raise RecordsError(f"{runs / run} was made with other settings than the plan's; move it away")
    return {run: r for run, r in {**collected, **found}.items() if _planned(recording, run, r)}


def _planned(recording: Recording, run: str, record: Mapping[str, Any]) -> bool:
    if run not in recording.experiments:
        return False
    settings = recording.experiments[run].model_dump(mode="json")
    return all(value == settings[name] for name, value in record["experiment"].items()) and (
        settings.keys() - {"degenerate_masks"} <= record["experiment"].keys()
    )


def _collect(recording: Recording, done: Records, plan: RecordsPlan, results: Path) -> list[str]:
    """Write the finished runs to ``results``; returns why not, if they do not belong together."""
    if not done:
        return [f"{recording.name}: no run is finished"]
    try:
        _refuse_to_mix(recording, plan, done)
        folders = [folder / recording.name for folder in (results, RUNS_DIR / "results")]
        write_results(results / recording.name, *filter(Path.is_dir, folders), only=done)
    except RecordsError as error:
        return [str(error)]
    print(f"{results / recording.name}: {len(done)} of {len(recording.experiments)} runs; {_made_with(done)}")
    return []


def _made_with(records: Records) -> str:
    last = [record["provenance"][-1] for record in records.values()]
    lengths = {"git_commit": 8, "precision": None, "cpu": None}
    return "; ".join(", ".join(sorted({str(start.get(name))[:n] for start in last})) for name, n in lengths.items())


def _progress(recordings: list[Recording], results: Path) -> pd.DataFrame:
    """What is done and left per recording, and the hours of one core that the rest takes at the mean of those done."""
    done = {recording.name: finished(recording, results) for recording in recordings}
    seconds: dict[str, list[float]] = {}
    for recording in recordings:
        seconds.setdefault(recording.profile, []).extend(r["seconds"] for r in done[recording.name].values())
    rows = []
    for recording in recordings:
        records, left = done[recording.name], len(recording.experiments) - len(done[recording.name])
        known = [record["seconds"] for record in records.values()] or seconds[recording.profile] or [float("nan")]
        collected = finished_records(results / recording.name).keys() & records.keys()
        hours = round(left * sum(known) / len(known) / 3600, 1)
        rows.append((recording.name, len(records), len(collected), left, hours, _made_with(records)))
    return pd.DataFrame(rows, columns=["folder", "done", "collected", "left", "hours left", "made with"])


if __name__ == "__main__":
    sys.exit(main())
