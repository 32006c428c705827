"""Where and with what a run is made: versions, hardware, the state of the code and the time."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "segmentation_models_pytorch", "numpy", "alutils")


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where and with what a run on ``device`` is made, as plain values for JSON.

    ``git_commit`` and ``git_dirty`` (uncommitted changes, except of results and figures, or new files in alutils or
    profiles) are None where the package does not lie in a git checkout of its own. ``time`` is UTC.

    >>> sorted(provenance())[:4]
    ['alutils', 'cpu', 'device', 'git_commit']
    """
    device = torch.device(device)
    commit, dirty = _git_state(Path(__file__).resolve().parents[2])
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'no GNU C library'}",
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "git_commit": commit,
        "git_dirty": dirty,
    }


def _git_state(root: Path) -> tuple[str | None, bool | None]:
    code = ("--", ".", ":(exclude)results", ":(exclude)figures")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None  # the package is installed somewhere below another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", *code)
        new = git("ls-files", "--others", "--exclude-standard", "--", "alutils", "profiles")
        return git("rev-parse", "HEAD"), bool(changed or new)
    except (OSError, subprocess.SubprocessError):
        return None, None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux, where platform.processor() is empty
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
