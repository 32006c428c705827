"""Many runs with many deaths: nothing is lost."""

import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import product

import numpy as np
import psutil
from tiny import CONTEXT, assert_as_if_undisturbed
from tiny_batch import TINY, kill_family, make_project, tables_without_batch

ARMS = ("random", "entropy")


class Killer(threading.Thread):
    """Watches the jobs below a Snakemake process and kills the ``chosen`` ones, each once at a random moment.

    How long jobs live at least it learns from those that ended; until then it takes less than the imports need.
    """

    def __init__(self, snakemake, chosen, killed):
        super().__init__(daemon=True)
        self.snakemake, self.chosen, self.killed = psutil.Process(snakemake.pid), chosen, killed
        self.lives, self.over = [3.0], threading.Event()

    def run(self):
        born, ends = {}, {}
        while not self.over.wait(0.02):
            jobs = jobs_below(self.snakemake)
            for process in born.keys() - jobs.keys():
                self.lives.append(time.monotonic() - born.pop(process))
            for process in jobs.keys() - born.keys():
                born[process] = time.monotonic()
                if (name := jobs[process]) in self.chosen - self.killed:
                    ends[process] = born[process] + random.Random(name).uniform(0, np.quantile(self.lives, 0.1))
            for process in [one for one, end in ends.items() if time.monotonic() > end]:
                del ends[process]
                if process in jobs:
                    del born[process]
                    self.killed.add(jobs[process])
                    kill_family(process)


def jobs_below(snakemake):
    """{process: the run's name}, of the jobs at work."""
    found = {}
    try:
        for process in snakemake.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended just now
                program = process.cmdline()
                if len(program) > 2 and program[1].endswith("run_notebook.py"):
                    found[process] = json.loads(program[2])["name"].rpartition("/")[2]
    except psutil.NoSuchProcess:
        return {}
    return found


def test_a_batch_whose_jobs_are_killed_loses_no_run(tmp_path, times, tally):
    seeds = range(times(2, 200) // len(ARMS))
    runs = list(product(ARMS, seeds))
    names = [f"{arm}-seed{seed}" for arm, seed in runs]
    chosen, killed = set(random.Random(0).sample(names, max(1, len(names) // 5))), set()
    project, log = tmp_path / "project", tmp_path / "log.txt"
    make_project(project)
    targets = [f"runs/quick/04_image_al/{name}/done.json" for name in names]
    options = ["--profile", "workflow/local", "--cores", "2", "--config", f"strategies={' '.join(ARMS)}"]
    options += [f"seeds={' '.join(map(str, seeds))}", f"overrides={json.dumps(TINY)}"]
    command = [sys.executable, "-m", "snakemake", *targets, *options]
    for _ in range(3):
        with log.open("w") as said, subprocess.Popen(command, cwd=project, stdout=said, stderr=said) as batch:
            killer = Killer(batch, chosen, killed)
            killer.start()
            status = batch.wait()
            killer.over.set()
            killer.join()
        if status == 0:
            break
    assert status == 0, log.read_text()
    assert killed

    with ProcessPoolExecutor(2, CONTEXT) as pool:
        folders = [tmp_path / name for name in names]
        expected = pool.map(tables_without_batch, folders, *zip(*runs, strict=True))
        for name, tables in zip(names, expected, strict=True):
            assert_as_if_undisturbed(project / "runs/quick/04_image_al" / name, tables)
    tally("SIGKILL of a job of a batch with all its processes", len(killed))
