"""The official archives of ISIC 2018 Task 1: downloaded, resumed, verified and unpacked.

As a command: ``alutils-download ROOT``. The usual library for this, pooch, starts an interrupted download of 11 GB from
the beginning; hence requests.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock
from tqdm import tqdm

from alutils.data.isic2018 import FOLDERS, OFFICIAL_COUNTS, count_images
from alutils.system.checks import ConfigError, expanded


class DownloadError(RuntimeError):
    """The data set cannot be downloaded or unpacked; the message names the file or the address and the remedy."""


@dataclass(frozen=True)
class Archive:
    """A zip file that holds one folder of its own name.

    Args:
        name: file name, ending in ``.zip``.
        size: in bytes.
        sha256: in lower-case hexadecimal digits.
        n_images: images or masks in it; None: not known.
    """

    name: str
    size: int
    sha256: str
    n_images: int | None = None

    @property
    def folder(self) -> str:
        return self.name.removesuffix(".zip")


_COUNTS = {folder: OFFICIAL_COUNTS[split] for split, folders in FOLDERS.items() for folder in folders}

ARCHIVES = tuple(
    Archive(f"ISIC2018_{name}.zip", size, sha256, _COUNTS[f"ISIC2018_{name}"])
    for name, size, sha256 in (
        ("Task1-2_Training_Input", 11_165_358_566, "80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f"),
        ("Task1_Training_GroundTruth", 27_402_895, "99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c"),
        ("Task1-2_Validation_Input", 239_231_159, "0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797"),
        ("Task1_Validation_GroundTruth", 759_706, "f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285"),
        ("Task1-2_Test_Input", 2_370_457_338, "e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d"),
        ("Task1_Test_GroundTruth", 9_680_101, "2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82"),
    )
)
"""The six official archives of ISIC 2018 Task 1."""

BASE_URLS = (
    "https://isic-archive.s3.amazonaws.com/challenges/2018/",
    "https://isic-challenge-data.s3.amazonaws.com/2018/",
)
"""The addresses that have them; the second is a mirror for when the first fails."""

_ATTEMPTS = 4  # at each address, while the file does not grow
_FIRST_WAIT = 1.0  # seconds before the second attempt, doubled for each further one
_TIMEOUTS = (10, 60)  # seconds to connect, and without a byte arriving
_CHUNK = 1 << 16  # bytes; a chunk in which the connection breaks is lost
_UNPACKED = 1.1  # unpacked size over the archive's: JPEG and PNG hardly shrink in a zip file


def download_isic2018(
    root: str | Path,
    *,
    archives: Sequence[Archive] = ARCHIVES,
    base_urls: Sequence[str] = BASE_URLS,
    keep_archives: bool = False,
) -> Path:
    """Fetch and unpack the official archives (13.8 GB), so that ``load_isic2018(root)`` reads them.

    A second call does what the first left undone: it skips folders that are there and resumes interrupted downloads
    (``.part`` files). A zip file that the user put into ``root`` is verified, used and never deleted.

    Args:
        root: the folder that takes the six folders; made if need be.
        archives: what to fetch.
        base_urls: addresses to which an archive's name is appended, in the order in which they are tried.
        keep_archives: keep the downloaded zip files after unpacking.

    Returns:
        ``root``.

    Raises:
        DownloadError: if a folder that is there has fewer images than its archive, the disk is too small or cannot be
            written, no address delivers, or an archive is corrupt. No folder is ever left half unpacked.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:  # without archives=, all six are fetched
    ...     download_isic2018(root, archives=()) == Path(root)
    True
    """
    root = expanded("root", root)
    _check_counts(root, archives)
    if all(_is_unpacked(root, archive) for archive in archives):  # also where nothing may be written
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):  # two processes must not append to one file
            missing = [archive for archive in archives if not _is_unpacked(root, archive)]
            _check_disk(root, missing, keep_archives)
            for archive in missing:
                _get_and_unpack(root, archive, base_urls, keep_archives)
    except OSError as error:
        raise DownloadError(
            f"{root} cannot be written: {error}. Make room or choose another folder, and call again."
        ) from None
    return root


def _get_and_unpack(root: Path, archive: Archive, base_urls: Sequence[str], keep_archive: bool) -> None:
    path, part = root / archive.name, root / f"{archive.name}.part"
    if path.exists():  # the user's own, or kept by an earlier call
        _verify(path, archive, "Move it away, or put the right file there, and call again.")
        _unpack(path, archive)
        return
    urls = [f"{base_url.rstrip('/')}/{archive.name}" for base_url in base_urls]
    _download(urls, part, archive.size)
    try:
        _verify(part, archive, f"It was deleted. Call again, or fetch {urls[0]} in a browser and put it into {root}.")
    except DownloadError:
        part.unlink()
        raise
    _unpack(part, archive)
    if keep_archive:
        part.replace(path)
    else:
        part.unlink()


def _is_unpacked(root: Path, archive: Archive) -> bool:
    """Folders get their name only when they are complete; an empty one was made by hand. Hidden files do not count."""
    folder = root / archive.folder
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _check_counts(root: Path, archives: Sequence[Archive]) -> None:
    """Raise one error that says how many files each folder has and should have; a partial copy is not the data set."""
    short = []
    for archive in archives:
        if archive.n_images and _is_unpacked(root, archive):
            found = count_images(root / archive.folder)
            if found < archive.n_images:
                short.append(f"  {archive.folder} has {found:,} of {archive.n_images:,} files")
    if short:
        lines = [
            f"{root} has only a part of ISIC 2018; nothing was downloaded:",
            *short,
            "remedy: to fetch these folders whole, move them away and call again; to use the part, leave them there: "
            "load_isic2018 reads it if each image has its mask",
        ]
        raise DownloadError("\n".join(lines))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_disk(root: Path, missing: Sequence[Archive], keep_archives: bool) -> None:
    """Refuse to start what the disk cannot take: everything unpacked, and all archives or the largest of them."""
    there = [max(_size(root / archive.name), _size(root / f"{archive.name}.part")) for archive in missing]
    lacking = [max(0, archive.size - size) for archive, size in zip(missing, there, strict=True)]
    needed = _UNPACKED * sum(archive.size for archive in missing)
    needed += sum(lacking) if keep_archives else max(lacking, default=0)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DownloadError(
            f"{root} has {free / 1e9:.2f} GB free, but fetching and unpacking {len(missing)} archives takes about "
            f"{needed / 1e9:.2f} GB: make room, or choose a folder on another disk. Nothing was downloaded."
        )


def _verify(path: Path, archive: Archive, remedy: str) -> None:
    tqdm.write(f"verifying {archive.name}", file=sys.stderr)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise DownloadError(
            f"{path} is not the official archive: it has {_size(path):,} bytes and the SHA-256 {found} instead of "
            f"{archive.size:,} bytes and {archive.sha256}. {remedy}"
        )


def _download(urls: Sequence[str], part: Path, size: int) -> None:
    """Bring ``part`` to its full size from the first address that delivers."""
    failures = ""
    for url in urls:
        attempt, largest, failure = 0, _size(part), None
        while attempt < _ATTEMPTS:
            if attempt:
                time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return _fetch(url, part, size)
            except requests.RequestException as error:
                failure = error
            attempt = 1 if _size(part) > largest else attempt + 1
            largest = max(largest, _size(part))
        failures += f"  {url}: {failure}\n"
    raise DownloadError(
        f"{part.stem} cannot be downloaded:\n{failures}remedy: check the network and call again (what has arrived is "
        f"kept); or fetch the file in a browser and put it into {part.parent}, where the next call finds it."
    )


def _fetch(url: str, part: Path, size: int) -> None:
    """Ask once for what ``part`` lacks of ``size`` bytes; a server that ignores the range sends all of them."""
    have = _size(part) if _size(part) <= size else 0
    if have == size:
        return
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response:
        response.raise_for_status()
        start = have if response.status_code == 206 else 0
        announced = response.headers.get("Content-Length")
        if announced != str(size - start):  # a log-in page must not overwrite what has arrived
            raise requests.HTTPError(f"the server announces {announced} bytes instead of {size - start}")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm.wrapattr(file, "write", total=size, initial=start, desc=part.stem, mininterval=1) as progress,
        ):
            for chunk in response.iter_content(_CHUNK):
                progress.write(chunk)
    if _size(part) < size:
        raise requests.ConnectionError(f"the connection ended after {_size(part):,} of {size:,} bytes")


def _unpack(path: Path, archive: Archive) -> None:
    """Unpack beside the target and rename, so that an interrupt leaves no half folder under the final name.

    The archive has its pinned SHA-256 by now, and ``zipfile`` drops absolute paths and ``..`` from its members' names.
    """
    unfinished, target = path.with_name(f".{archive.folder}.part"), path.with_name(archive.folder)
    if unfinished.exists():  # left by a killed process, since this one holds the lock
        shutil.rmtree(unfinished)
    try:
        with zipfile.ZipFile(path) as zipped:
            for member in tqdm(zipped.namelist(), desc=f"unpacking {archive.folder}", unit="file", mininterval=1):
                zipped.extract(member, unfinished)
        if not (unfinished / archive.folder).is_dir():
            raise zipfile.BadZipFile(f"it has no folder {archive.folder}")
        aside = path.with_name(f".{archive.folder}.hidden")
        if target.exists():  # with hidden files at most, or it would have been skipped
            target.replace(aside)
        (unfinished / archive.folder).replace(target)
        if aside.exists():
            for hidden in list(aside.iterdir()):
                hidden.replace(target / hidden.name)
            aside.rmdir()
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(f"{path} cannot be unpacked: {error}. Move it away and call again.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``alutils-download ROOT``; returns its exit status.

    Raises:
        SystemExit: if the arguments cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="alutils-download", description="Fetch and unpack ISIC 2018 Task 1 (13.8 GB)."
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder that takes the six official folders")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files after unpacking")
    options = parser.parse_args(arguments)
    try:
        download_isic2018(options.root, keep_archives=options.keep_archives)
    except (ConfigError, DownloadError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130
    print(f"ISIC 2018 Task 1 is complete in {options.root}")
    return 0
