"""A disk that can be filled and made read-only."""

import shutil
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(folder, size):
    """A file system of so many bytes, or of "16k", at ``folder``."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk, options):
    """With "ro" nothing can be written any more, with "rw" it can again; "size=1m" is another size."""
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
