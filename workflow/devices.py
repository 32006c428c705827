"""Which GPU a job computes on: the first with a free place. A file lock holds the place while the job runs."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL_SECONDS = 0.5


def visible_devices() -> list[str]:
    """The GPUs that may be used: those that ``CUDA_VISIBLE_DEVICES`` names and that exist; without the variable all.

    Empty where there are none. The list is read as CUDA reads it. It holds either numbers or identifiers ("GPU-...",
    "MIG-..."), and the first entry decides which. It ends at the first entry that names no device: "-1", "NoDevFiles"
    or a number too large hide what follows. If it names a device twice, none may be used. Without nvidia-smi,
    which says what devices there are, each entry of the right form counts.
    """
    there, listed = _devices_there(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None or there == []:
        return [number for number, _ in there or []]
    kind = next((kind for kind in ("GPU-", "MIG-") if listed.strip().startswith(kind)), None)
    named: list[str] = []
    for entry in map(str.strip, listed.split(",")):
        if kind is None:
            number = re.match(r"\+?(\d+)", entry)  # CUDA reads "1st" as 1
            exists = number and (there is None or int(number[1]) < len(there))
            name = str(int(number[1])) if number else ""
        else:
            matching = sum(identifier.startswith(entry) for _, identifier in there or [])  # a part of it will do
            exists = entry.startswith(kind) and (there is None or kind == "MIG-" or matching == 1)
            name = entry
        if not exists:
            break
        named.append(name)
    return named if len(set(named)) == len(named) else []


def _devices_there() -> list[tuple[str, str]] | None:
    """Number and identifier of each GPU of this machine; None if there is no nvidia-smi to ask."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        return None
    except (OSError, subprocess.CalledProcessError):  # no driver, or no device
        return []
    return [(number.strip(), name.strip()) for number, _, name in (line.partition(",") for line in lines) if number]


@contextmanager
def one_device(runs_per_gpu: int) -> Iterator[Mapping[str, str]]:
    """Wait for a place on a GPU and hold it; without a GPU, go on at once.

    The places are files in the system's temporary folder, so that all batches of a user on a machine share them. They
    are given back when the process ends, however it ends. Each Slurm allocation has devices and so places of its own.

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
