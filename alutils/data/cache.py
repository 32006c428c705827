"""The decode cache: planes (colour channels and masks) in a memory-mapped NumPy file, with a checksum as JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import platformdirs
import torch
from filelock import FileLock

from alutils.data.splits import picture_sums
from alutils.system.checks import DataError, expanded
from alutils.system.files import CannotWrite, remove_leftovers, replacing
from alutils.system.tensors import is_number

Shape = tuple[int, int, int]
Decode = Callable[[BinaryIO, int], tuple[list, torch.Tensor]]


class Cache(NamedTuple):
    """Planes, uint8 (P, S, S), the sum of each, int64 (P,), and what was noted of the files, as JSON holds it."""

    planes: torch.Tensor
    sums: torch.Tensor
    notes: list[Any]


def cached(path: Path, shape: Shape, decode: Decode) -> Cache:
    """The cache at ``path``, made if it is not there or is damaged.

    Args:
        path: of the NumPy file, in a folder from :func:`cache_folder`.
        shape: of its planes.
        decode: writes the planes to a file, from a byte position on, and returns the notes and the sums. One process
            at a time decodes into a path; the others wait.

    Raises:
        DataError: if the cache cannot be written, and whatever ``decode`` raises; then no cache is left.
    """
    try:
        cache = _open(path, shape)
        if not cache:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                cache = _open(path, shape, warn=True)  # by now another process may have written it
                if not cache:
                    _write(path, shape, decode)
                    cache = _open(path, shape)
                    if not cache:
                        raise OSError(errno.EIO, "it is not as it was written: check the disk")
    except OSError as error:
        reason = error.reason if isinstance(error, CannotWrite) else error.strerror
        remedy = "pass another cache_dir, or set ALUTILS_CACHE"
        raise DataError(f"the decode cache {path} cannot be written ({reason}): {remedy}") from None
    with suppress(OSError):  # a folder that may only be read
        os.utime(path)  # by which sweep_caches sees what is in use
    return cache


def cache_folder(cache_dir: str | Path | None) -> Path:
    """The folder of the caches: ``cache_dir``, else ``ALUTILS_CACHE``, else the user's cache folder."""
    given = cache_dir or os.environ.get("ALUTILS_CACHE") or platformdirs.user_cache_dir("alutils")
    return expanded("ALUTILS_CACHE or cache_dir", given)


def _open(path: Path, shape: Shape, *, warn: bool = False) -> Cache | None:
    """None if there is no cache or it is damaged."""
    if not path.exists():
        return None
    try:
        planes = torch.from_numpy(np.load(path, mmap_mode="c"))  # what is written to it goes to private pages
        if planes.dtype != torch.uint8 or planes.shape != shape:
            raise ValueError(f"it holds {planes.dtype} {tuple(planes.shape)} instead of uint8 {shape}")
        sums = picture_sums(planes[:, None])
        written = json.loads(path.with_suffix(".json").read_bytes())
        if written != _record(written["notes"], sums):
            raise ValueError("its pixels do not fit its checksum")
    except Exception as error:  # NumPy and json raise half a dozen types on damaged files
        if warn:
            warnings.warn(f"the decode cache {path} is damaged and is made anew: {error}", stacklevel=5)
        return None
    return Cache(planes, sums, written["notes"])


def _record(notes: list[Any], sums: torch.Tensor) -> dict[str, Any]:
    """What the JSON file holds. The sums change with each flipped bit and take a tenth of the time of a CRC-32."""
    digest = hashlib.sha256(json.dumps(notes).encode() + sums.numpy().astype("<i8").tobytes())
    return {"notes": notes, "sha256": digest.hexdigest()}


def _write(path: Path, shape: Shape, decode: Decode) -> None:
    """Write both files, the checksum last, in place of what is damaged. The lock must be held."""
    remove_leftovers(path.parent, path.stem)
    for damaged in (path.with_suffix(".json"), path):
        damaged.unlink(missing_ok=True)
    n_bytes, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise OSError(errno.ENOSPC, f"it needs {n_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: make room")
    with replacing(path) as unfinished:
        start = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape).offset
        with unfinished.open("r+b") as file:  # a full disk is an error here, but kills a process that writes to a map
            notes, sums = decode(file, start)
    with replacing(path.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(_record(notes, sums)), encoding="utf-8")


def sweep_caches(cache_dir: str | Path | None = None, *, days: float = 30) -> list[Path]:
    """Delete the decode caches that were not opened for ``days`` (0: all) and return them; the data is not touched.

    Args:
        cache_dir: their folder, as in :func:`~alutils.data.isic2018.load_isic2018`.
        days: at least 0.

    Raises:
        ValueError: if ``days`` is not such a number.
        DataError: if a file cannot be deleted.

    >>> import tempfile
    >>> sweep_caches(tempfile.mkdtemp())
    []
    """
    if not is_number(days) or not days >= 0:
        raise ValueError(f"days must be a number of at least 0, got {days!r}")
    latest, caches = time.time() - 24 * 3600 * days, cache_folder(cache_dir).glob(f"*-*-{'[0-9a-f]' * 24}.npy")
    try:
        unused = sorted(path for path in caches if path.stat().st_mtime <= latest)
        for path in unused:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"the decode cache {error.filename} cannot be deleted: {error.strerror}") from None
    return unused
