"""One long run: nothing grows that need not."""

import gc

import numpy as np
import psutil
from test_active_learning import disks, make_experiment

from alutils import Splits, run_active_learning


def test_a_long_run_needs_no_more_memory_files_or_threads_as_it_goes_on(tmp_path, times):
    """A round leaves its record: the masks of its query, 1 KiB here, and its tables, some 50 KiB of Python objects.

    The activations of one image in training are 10 MiB, a model is 45 MiB. What the C library keeps of freed memory is
    no part of it. The rounds that count begin when the network has met all sizes of the last batch, for each of which
    its library prepares itself once.
    """
    n_rounds, first = times(24, 120), 16
    experiment = make_experiment(cold_start=8, query_size=1, n_queries=n_rounds - 1, batch_size=8)
    splits = Splits(disks(n_rounds + 8, "train"), disks(3, "val"), disks(3, "test_"))
    me, seen = psutil.Process(), []
    for _ in run_active_learning(experiment, splits, tmp_path, device="cpu", progress=False):
        gc.collect()
        psutil.heap_trim()
        seen.append((me.memory_info().rss / 2**20, me.num_fds(), me.num_threads()))
    memory, files, threads = np.array(seen)[first:].T
    assert len(seen) == n_rounds
    assert memory[-1] - memory[0] < 5 + 0.1 * len(memory), memory
    assert files.min() == files.max() and threads.min() == threads.max()
