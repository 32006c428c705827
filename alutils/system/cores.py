"""How many cores this process may use. The Makefile runs it before anything is installed: it needs Python alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use, at least 1.

    Its CPU affinity (``taskset``, Slurm) and the quotas of its control groups (containers, Kubernetes; part of a core
    counts as one) limit them, and not what the machine has.

    Args:
        root: of the file system in which the control groups are looked up.

    >>> 1 <= usable_cores() <= os.cpu_count()
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """The limits of the process's control groups and of all that these lie in, in cores."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    paths = {}  # "" is that of version 2
    for line in groups:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controller not in paths or (controller and controller not in options.split(",")):
            continue
        top, mounted_at = before.split(" ")[3:5]
        mount = root / mounted_at.lstrip("/")
        # A container sees its own group at the top of the mount, by whichever name the machine has for it
        path = paths[controller]
        folder = mount / path.relative_to(top) if path.is_relative_to(top) else mount
        while folder.is_relative_to(mount):
            yield from _quota(folder)
            folder = folder.parent


def _quota(folder: Path) -> Iterator[float]:
    """The limit of one control group, in cores; nothing where it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such limit here
        return


if __name__ == "__main__":
    print(usable_cores())
