"""How many cores this process may use. The Makefile runs it before anything is installed, so it needs only Python."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that the CPU affinity (``taskset``, Slurm) and the control groups' quotas (containers) leave, at least 1.

    Part of a core counts as one. ``root`` is that of the file system in which the control groups are looked up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """The limits, in cores, of the process's control groups of either version and of all that these lie in."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        own = mount / path.lstrip("/")  # a container may not see it, but sees its limits at the mount
        for folder in (folder for folder in (own, *own.parents) if folder.is_relative_to(mount)):
            try:
                quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
                if int(quota) > 0:
                    yield int(quota) / int(period)
            except (OSError, ValueError):  # there is no such file, or it says "max"
                continue


if __name__ == "__main__":
    print(usable_cores())
