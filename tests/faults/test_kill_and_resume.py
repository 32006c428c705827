"""Runs killed with SIGKILL, at random moments and while they write: each goes on as if it had not been killed."""

import itertools
import os
import random
import signal
import time
from functools import cache
from types import SimpleNamespace

import pytest
from test_active_learning import contents
from tiny import CONTEXT, KINDS, assert_as_if_undisturbed, on_each_change, run_kind


def live(folder, kind, last_change):
    """A run that dies at its change of files number ``last_change``; if it does not, it notes how many there were.

    A new file that is to be put in place is only half written then; one that is kept under another name was whole.
    """
    n_changes = 0

    def count_or_die(event, path):
        nonlocal n_changes
        n_changes += 1
        if n_changes == last_change:
            if event == "os.rename" and path.suffix == ".tmp":
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    on_each_change(folder, count_or_die)
    run_kind(folder, kind)
    folder.with_suffix(".changes").write_text(str(n_changes))


def start(folder, kind, last_change=0):
    child = CONTEXT.Process(target=live, args=(folder, kind, last_change))
    child.start()
    return child


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Of a kind of run: its tables, how long it takes, and how often it changes a file."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start(folder / "first", "full").join()  # waits for the imports, which later ones do not

    @cache
    def of(kind):
        began = time.perf_counter()
        start(folder / kind, kind).join()
        seconds, n_changes = time.perf_counter() - began, int((folder / f"{kind}.changes").read_text())
        return SimpleNamespace(tables=contents(folder / kind), seconds=seconds, n_changes=n_changes)

    return of


def kill_and_compare(folder, kind, n_kills, expected, end):
    """Start runs and ``end`` them until that succeeded ``n_kills`` times; what is finished must be as ``expected``.

    A run may be killed again as it recovers. The last one is left to finish.
    """
    killed = 0
    for number in itertools.count():
        while (alive := killed < n_kills) and end(folder / str(number)) == -signal.SIGKILL:
            killed += 1
        if not alive:
            child = start(folder / str(number), kind)
            child.join()
            assert child.exitcode == 0
        assert_as_if_undisturbed(folder / str(number), expected)
        if not alive:
            return


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_random_moments_goes_on_as_if_it_had_not_been(tmp_path, undisturbed, times, tally, kind):
    n_kills, usual, rng = times(1, 8), undisturbed(kind), random.Random(kind)

    def kill_some_time(folder):
        child = start(folder, kind)
        child.join(rng.uniform(0, usual.seconds))
        child.kill()
        child.join()
        return child.exitcode

    kill_and_compare(tmp_path, kind, n_kills, usual.tables, kill_some_time)
    tally("SIGKILL at a random moment of a run", n_kills)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_with_half_a_file_written_goes_on_as_if_it_had_not_been(tmp_path, undisturbed, times, tally, kind):
    n_kills, usual, rng = times(1, 5), undisturbed(kind), random.Random(kind)
    assert usual.n_changes > 15  # the hook sees the files

    def kill_in_a_save(folder):
        child = start(folder, kind, rng.randint(1, usual.n_changes))
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        return child.exitcode

    kill_and_compare(tmp_path, kind, n_kills, usual.tables, kill_in_a_save)
    tally("SIGKILL in the middle of a save", n_kills)
