"""What the batch says on the terminal: each round as it ends, how much is done, and that a stopped batch goes on."""

from __future__ import annotations

import atexit
import json
import logging
import math
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alutils.queries.registry import BASELINES

if TYPE_CHECKING:
    from batch import Batch

POLL_SECONDS = 2.0


class Watch:
    """Reads what the jobs write, so that it works for any number of them on any machine that shares the folder.

    Args:
        batch: whose jobs they are.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch, self.folder = batch, Path(batch.runs)
        self.jobs = {name: json.loads(batch.job(name)) for name in batch.names}
        self.runs = {f"{notebook}/{run}": notebook for notebook, runs in batch.runs_of.items() for run in runs}
        self.done = {name for name in self.jobs if self._is_done(name)}
        if len(self.done) < len(self.jobs):
            self.done.discard("06_results")  # made anew after the others
        self.summary = self._changed("06_results")
        self.rounds = {name: self._rounds(name) for name in self.runs}
        self.began, self.steps_before = time.monotonic(), self._steps()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._keep_looking, daemon=True)

    def start(self) -> None:
        """Begin to look, every ``POLL_SECONDS``."""
        self.thread.start()

    def end(self) -> None:
        """Look once more, then no longer."""
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()
        self.look()

    def look(self) -> None:
        """Say what is new since the last time."""
        news = []
        for name in [name for name in self.runs if name not in self.done]:
            rounds = self._rounds(name)
            if len(rounds) > len(self.rounds[name]):
                self.rounds[name], (_, dice) = rounds, rounds[-1]
                news.append(f"{name}: round {len(rounds)}{self._of_rounds(name)}, validation Dice {dice:.3f}")
        for name in [name for name in self.jobs if name not in self.done]:
            if self._is_done(name) and (name != "06_results" or self._changed(name) != self.summary):
                self.done.add(name)
                news.append(f"{name}: done")
        for line in news:
            print(f"{line}; {len(self.done)} of {len(self.jobs)} jobs done{self._time_left()}", file=sys.stderr)

    def _keep_looking(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            self.look()

    def _is_done(self, name: str) -> bool:
        return self._holds(name, "done.json")

    def _holds(self, name: str, mark: str) -> bool:
        """Whether the mark is of this job, and not of one with other code or parameters."""
        found = _read_json(self.folder / name / mark)
        return {key: found.get(key) for key in self.jobs[name]} == self.jobs[name]

    def _changed(self, name: str) -> float:
        with suppress(OSError):
            return (self.folder / name / "done.json").stat().st_mtime
        return 0.0

    def _rounds(self, name: str) -> list[tuple[int, float]]:
        """Steps and validation Dice of the rounds that are on disk; half a line may follow them."""
        with suppress(OSError):
            if self._holds(name, "job.json"):
                whole = (self.folder / name / "rounds.jsonl").read_text(encoding="utf-8").rpartition("\n")[0]
                return [(line["steps"], line["val_dice"]) for line in map(json.loads, whole.splitlines())]
        return []

    def _of_rounds(self, name: str) -> str:
        """How many there will be; empty while a network disk does not show the run's record yet."""
        if self.jobs[name]["parameters"]["strategy"] in BASELINES:
            return " of 1"
        record = _read_json(self.folder / name / "run.json")
        if "data" not in record:
            return ""
        experiment = self.batch.experiments[self.runs[name]]
        return f" of {len(experiment.labelled_among(record['data']['train']['images']))}"

    def _steps(self) -> float:
        """Optimizer steps that the runs have made."""
        made = {name: sum(steps for steps, _ in rounds) for name, rounds in self.rounds.items()}
        return sum(self._planned(name) if name in self.done else min(made[name], self._planned(name)) for name in made)

    def _planned(self, name: str) -> int:
        return self.batch.experiments[self.runs[name]].n_training_steps

    def _time_left(self) -> str:
        """From how long the steps took so far; empty where there were none, or none are left."""
        now, planned = self._steps(), sum(map(self._planned, self.runs))
        if not self.steps_before < now < planned:
            return ""
        seconds = (planned - now) * (time.monotonic() - self.began) / (now - self.steps_before)
        return f", about {_written(seconds)} left"


def say_at_the_end() -> threading.Event:
    """After Ctrl-C, which sets the event, end with a line that says what comes of it, without Snakemake's errors."""
    stopped = threading.Event()

    def stop(*arguments: Any) -> None:
        if not stopped.is_set():
            stopped.set()
            atexit.register(print, "stopped; start the batch again and it goes on from here", file=sys.stderr)
            logging.getLogger("snakemake.logging").addFilter(lambda record: record.levelno < logging.ERROR)
        signal.default_int_handler(*arguments)

    signal.signal(signal.SIGINT, stop)
    return stopped


def _read_json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _written(seconds: float) -> str:
    """
    >>> _written(20), _written(1000), _written(10_000)
    ('1 min', '17 min', '2.8 h')
    """
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
