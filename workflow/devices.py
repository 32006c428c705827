"""Which GPU a job computes on: the first with a free place, held by a file lock for as long as the job runs."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL_SECONDS = 0.5


def visible_devices() -> list[str]:
    """The GPUs that may be used: the entries of ``CUDA_VISIBLE_DEVICES``, else the numbers that nvidia-smi lists.

    Empty where there are none. As CUDA does, entries after "-1" are left out.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        try:
            listed = ",".join(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())
        except (OSError, subprocess.CalledProcessError):
            return []
    entries = [entry.strip() for entry in listed.split(",")]
    return [entry for entry in itertools.takewhile(lambda entry: entry != "-1", entries) if entry]


@contextmanager
def one_device(runs_per_gpu: int) -> Iterator[Mapping[str, str]]:
    """Wait for a place on a GPU and hold it; nothing is waited for where there is no GPU.

    The places are files in the system's temporary folder, so that all batches of a user on a machine share them. They
    are given back when the process ends, however that is. Within a Slurm allocation, whose devices are its own, the
    places are the allocation's.

    Args:
        runs_per_gpu: places on each GPU, at least 1.

    Yields:
        The environment variables that make the GPU the only visible one; none without a GPU.
    """
    devices = visible_devices()
    if not devices:
        yield {}
        return
    order = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as nvidia-smi counts
    owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', '')}"
    while True:
        for slot, device in itertools.product(range(runs_per_gpu), devices):  # the emptiest GPU first
            name = f"alutils-gpu-{owner}-{device.replace('/', '_')}-{slot}.lock"
            try:
                place = FileLock(Path(tempfile.gettempdir()) / name).acquire(timeout=0)
            except Timeout:
                continue
            with place:
                yield {"CUDA_VISIBLE_DEVICES": device, **order}
            return
        time.sleep(POLL_SECONDS)
