"""Ctrl-C in a notebook and in a terminal: what was running stops with a clear word and goes on when started again."""

import io
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from test_active_learning import contents, lines_of
from tiny import assert_as_if_undisturbed, run_kind
from tiny_batch import TINY, job, make_project, tables_without_batch

HERE = Path(__file__).resolve().parent
PATIENCE = 120  # seconds until a kernel or a job counts as hung

SETUP = f"""
import sys, time
sys.path[:0] = [{str(HERE.parent)!r}, {str(HERE)!r}]
from test_active_learning import make_splits, run_active_learning
from tiny import KINDS, on_each_change
rounds_to_go = changes_to_go = 0

def wait_for_ctrl_c():
    print("waiting", flush=True)
    time.sleep({PATIENCE})

def wait_in_a_save(event, path):
    global changes_to_go
    changes_to_go -= 1
    if changes_to_go == 0:
        wait_for_ctrl_c()
"""

CELL = """
print("started", flush=True)
arm = run_active_learning(KINDS[{kind!r}], make_splits(), {folder!r}, device="cpu", progress=False)
for one in arm:
    rounds_to_go -= 1
    if rounds_to_go == 0:
        wait_for_ctrl_c()
"""


class Notebook:
    """A kernel, and what a person does with it."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def begin(self, code):
        # For a moment after an error the kernel drops what else it is asked, unless told otherwise
        self.cell = self.client.execute(code, stop_on_error=False)

    def wait_for_print(self, text):
        said = ""
        while text not in said:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") == self.cell and message["msg_type"] == "stream":
                said += message["content"]["text"]

    def ends_within(self, seconds):
        """Whether the cell ended so soon; then ``outcome`` says how: "ok", or the error's name."""
        try:
            reply = self.client.get_shell_msg(timeout=seconds)["content"]
        except Exception as nothing_came:
            if type(nothing_came).__name__ != "Empty":
                raise
            return False
        self.outcome = reply["status"] if reply["status"] == "ok" else reply["ename"]
        print(*reply.get("traceback", []), sep="\n")  # pytest shows it where a test fails
        return True

    def run(self, code):
        self.begin(code)
        assert self.ends_within(PATIENCE)
        return self.outcome

    def press_ctrl_c(self):
        self.manager.interrupt_kernel()
        assert self.ends_within(PATIENCE)
        assert self.manager.is_alive()


@pytest.fixture(scope="module")
def notebook():
    notebook = Notebook()
    assert notebook.run(SETUP) == "ok"
    yield notebook
    notebook.client.stop_channels()
    notebook.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Of each of two kinds: the tables, and how long the cell takes."""
    found, folder = {}, tmp_path_factory.mktemp("undisturbed")
    for kind in ("full", "partial-refreshed"):
        began = time.perf_counter()
        run_kind(folder / kind, kind)
        found[kind] = contents(folder / kind), time.perf_counter() - began
    return found


def test_a_notebook_interrupted_at_random_moments_goes_on(tmp_path, notebook, undisturbed, times, tally):
    n_interrupts, rng, survived = times(2, 10), random.Random(0), 0
    while survived < n_interrupts:
        kind = ("full", "partial-refreshed")[survived % 2]
        tables, seconds = undisturbed[kind]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        cell = CELL.format(kind=kind, folder=str(folder))
        notebook.begin(cell)
        notebook.wait_for_print("started")
        if not notebook.ends_within(rng.uniform(0, seconds)):
            notebook.press_ctrl_c()
            survived += notebook.outcome == "KeyboardInterrupt"
        assert notebook.outcome in ("ok", "KeyboardInterrupt")
        assert notebook.run(cell) == "ok"
        assert_as_if_undisturbed(folder, tables)
    tally("Ctrl-C in a notebook at a random moment", n_interrupts)


def test_a_notebook_interrupted_in_a_save_goes_on(tmp_path, notebook, undisturbed, times, tally):
    n_interrupts, rng = times(2, 10), random.Random(0)
    assert notebook.run(f"on_each_change({str(tmp_path)!r}, wait_in_a_save)") == "ok"
    for number in range(n_interrupts):
        kind = ("full", "partial-refreshed")[number % 2]
        cell = CELL.format(kind=kind, folder=str(tmp_path / str(number)))
        assert notebook.run(f"changes_to_go = {rng.randint(1, 20)}") == "ok"
        notebook.begin(cell)
        notebook.wait_for_print("waiting")
        notebook.press_ctrl_c()
        assert notebook.outcome == "KeyboardInterrupt"
        assert notebook.run(cell) == "ok"
        assert_as_if_undisturbed(tmp_path / str(number), undisturbed[kind][0])
    tally("Ctrl-C in a notebook in the middle of a save", n_interrupts)


class InterruptedFile(io.FileIO):
    """Ctrl-C comes while it is written to for the n-th time."""

    n = 0

    def write(self, content):
        InterruptedFile.n -= 1
        if InterruptedFile.n == 0:
            raise KeyboardInterrupt
        return super().write(content)


def test_an_interrupt_while_a_state_is_written_is_an_interrupt(tmp_path, monkeypatch, undisturbed, times, tally):
    """torch.save would make another error of it."""
    path_open = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *a, **k: (InterruptedFile if mode in ("wb", "ab") else path_open)(path, mode, *a, **k),
    )
    n_interrupts, rng = times(3, 10), random.Random(0)
    for number in range(n_interrupts):
        InterruptedFile.n = rng.randint(1, 300)
        with pytest.raises(KeyboardInterrupt):
            run_kind(tmp_path / str(number), "full")
        run_kind(tmp_path / str(number), "full")
        assert_as_if_undisturbed(tmp_path / str(number), undisturbed["full"][0])
    tally("Ctrl-C while a state is written", n_interrupts)


def test_an_interrupt_within_torchs_optimizer_leaves_gradients_on(tmp_path, monkeypatch, undisturbed, tally):
    """It switches them off for a step, and a Ctrl-C may come just before it switches them on again."""

    def interrupted(*_, **__):
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alutils.steps.fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_kind(tmp_path, "full")
    assert torch.is_grad_enabled()
    run_kind(tmp_path, "full")
    assert_as_if_undisturbed(tmp_path, undisturbed["full"][0])
    tally("Ctrl-C in the middle of a training step", 1)


def test_a_notebook_interrupted_in_its_own_code_between_two_rounds_goes_on(tmp_path, notebook, undisturbed, tally):
    """The variable still holds the unfinished run when the cell asks for it anew."""
    cell = CELL.format(kind="full", folder=str(tmp_path))
    assert notebook.run("rounds_to_go = 2") == "ok"
    notebook.begin(cell)
    notebook.wait_for_print("waiting")
    notebook.press_ctrl_c()
    assert notebook.outcome == "KeyboardInterrupt"
    assert notebook.run(cell) == "ok"
    assert_as_if_undisturbed(tmp_path, undisturbed["full"][0])
    tally("Ctrl-C in a notebook between two rounds", 1)


def test_a_job_that_is_told_to_stop_says_so_and_goes_on(tmp_path, times, tally):
    """By SIGTERM, which shutdowns and clusters send; with all faults by SIGINT too (for that see test_batch.py)."""
    project, runs, name = tmp_path / "project", tmp_path / "runs", "04_image_al/entropy-seed0"
    make_project(project)
    (runs / name).mkdir(parents=True)
    longer = {"n_synthetic": [24, 4, 4], "n_queries": 8}
    program = project / "workflow" / "run_notebook.py"
    command = [sys.executable, program, job(name, overrides=json.dumps({**TINY, **longer})), runs, "0"]
    folder = runs / name

    n_rounds, signals = 0, (signal.SIGTERM, signal.SIGINT)[: times(1, 2)]
    for sent in signals:
        with subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) as process:
            while len(lines_of(folder)) <= n_rounds:
                assert process.poll() is None
                time.sleep(0.005)
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(sent)
            said = process.communicate(timeout=PATIENCE)[1]
        n_rounds = len(lines_of(folder))
        assert process.returncode != 0
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []  # no kernel is left behind
        assert not (folder / "done.json").exists()
        assert "stopped; start the batch again and it goes on from here" in said.splitlines(), (sent, said)

    expected = tables_without_batch(tmp_path / "undisturbed", "entropy", 0, **longer)
    assert n_rounds < len(expected["round"])
    assert tables_without_batch(folder, "entropy", 0, **longer) == expected
    tally("SIGINT or SIGTERM to a job of the batch", len(signals))
