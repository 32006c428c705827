"""The frame of the benchmarks: turns, ratios, memory, reports."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


SCRIPT = """
import json, multiprocessing, operator, os, sys, time
import torch
sys.path.insert(0, {!r})
import frame

def note(folder, name):
    kept = bytearray(300 * 2**20 if name == "b" else 1)

    def work():
        child = multiprocessing.get_context("fork").Process(target=time.time)
        child.start()
        child.join()
        with open(folder + "/calls", "a") as file:
            print(name, os.getpid(), torch.get_num_threads(), child.exitcode, len(kept) > 0, file=file)
    return work

def fail():
    raise KeyError("no such thing")

if __name__ == "__main__":
    cpu = torch.device("cpu")
    small, large = (frame.peak_mib(operator.mul, b"x", n * 2**20) for n in (1, 400))
    makers = {{name: (note, sys.argv[1], name) for name in "ab"}}
    times, peaks = frame.apart_in_turns(makers, 2, threads=1, device=cpu)
    counts = {{name: len(taken) for name, taken in times.items()}}
    print(json.dumps([large - small, counts, peaks, os.getpid()]), flush=True)
    frame.apart_in_turns({{"a": (fail,)}}, 1, threads=1, device=cpu)
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The script's folder and what it said: in a process of its own, as this one may have held more than the work."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "script.py").write_text(SCRIPT.format(str(BENCHMARKS)))
    command = [sys.executable, folder / "script.py", folder]
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture
def frame(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("frame")


def test_contenders_go_in_turns_and_the_warm_up_does_not_count(frame):
    calls = []
    contenders = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = frame.in_turns(contenders, repetitions=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}


def test_contenders_apart_work_in_turns_each_in_a_process_of_its_own_that_may_have_children(done):
    folder, finished = done
    _, counts, peaks, parent = json.loads(finished.stdout)
    calls = [line.split() for line in (folder / "calls").read_text().splitlines()]
    assert [name for name, *_ in calls] == ["a", "b"] * 3
    assert counts == {"a": 2, "b": 2}
    processes = {(name, process) for name, process, *_ in calls}
    assert len(processes) == 2 and len({process for _, process in processes} | {str(parent)}) == 3
    assert {(threads, exit_code) for _, _, threads, exit_code, _ in calls} == {("1", "0")}
    assert 250 < peaks["b"] - peaks["a"] < 350


def test_a_contender_that_cannot_be_made_ends_the_benchmark_with_its_error(done):
    _, finished = done
    assert finished.returncode != 0 and "no such thing" in finished.stderr and "process ended" in finished.stderr


def test_peak_memory_is_that_of_the_work(done):
    assert 350 < json.loads(done[1].stdout)[0] < 450


def test_the_ratio_is_the_median_of_the_turns_and_not_that_of_the_medians(frame):
    times = {"a": [1.0, 9.0, 4.0], "b": [1.0, 3.0, 8.0]}  # ratios 1, 3 and 0.5; the medians are 4 and 3
    assert frame.median_ratio(times, "a", "b") == 1.0


def test_a_report_is_written_with_the_machine(frame, tmp_path, capsys):
    frame.report(tmp_path / "x.json", [{"what": "a", "seconds": 0.5}], torch.device("cpu"), size=64)
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["rows"] == [{"what": "a", "seconds": 0.5}] and written["size"] == 64
    assert {"cpu", "torch", "git_commit", "threads"} <= written["machine"].keys()
    assert "seconds" in capsys.readouterr().out


def test_each_benchmark_says_how_it_is_run_and_what_its_target_is():
    for path in sorted(BENCHMARKS.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name not in ("frame.py", "paper_hours.py", "augment.py"):
            assert f"python benchmarks/{path.name}" in text and "target" in text.split('"""')[1], path.name
