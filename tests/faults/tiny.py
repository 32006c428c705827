"""Tiny runs to disturb, and what they must leave behind: for the tests that kill, interrupt and soak."""

import multiprocessing
import os
import sys
from pathlib import Path

from test_active_learning import contents, make_experiment, make_partial, run

CONTEXT = multiprocessing.get_context("forkserver")  # forks from a process that has imported torch, and no more
CONTEXT.set_forkserver_preload(["alutils.loop", "alutils.data.isic2018"])  # "alutils" alone would load nothing

KINDS = {
    "full": make_experiment(),
    "partial": make_partial("partial", n_queries=2),
    "partial-refreshed": make_partial("partial-refreshed", n_queries=2),
    "mc_dropout": make_experiment(strategy="mc_dropout"),
}
"""What must survive: whole masks, masks that a model completes once or anew each round, and random forward passes."""


def run_kind(folder, kind):
    """All rounds of one of ``KINDS``."""
    return run(folder, KINDS[kind])


def assert_as_if_undisturbed(folder, expected):
    """The tables are ``expected``, to the byte, and no half-written file is left."""
    assert contents(folder) == expected
    assert [path.name for path in Path(folder).rglob(".*.tmp")] == []


def on_each_change(folder, act):
    """Call ``act(event, path)`` before this process opens a file below ``folder`` to write, renames or deletes one.

    However the code writes its files, the interpreter announces these (sys.addaudithook); it goes on to the end of the
    process.
    """
    top = os.path.join(os.path.abspath(folder), "")  # noqa: PTH100, PTH118

    def hook(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove")) and not isinstance(arguments[0], int):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
            if path.startswith(top):
                act(event, Path(path))

    sys.addaudithook(hook)
