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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import requests
from filelock import FileLock
from tqdm import tqdm

from alutils.system.checks import ConfigError, expanded


class DownloadError(RuntimeError):
    """The data set cannot be downloaded or unpacked; the message names the file or the address and the remedy."""


class Archive(NamedTuple):
    """A zip file that holds one folder of its own name."""

    name: str
    size: int  # bytes
    sha256: str

    def folder(self, root: Path) -> Path:
        return root / self.name.removesuffix(".zip")


ARCHIVES = tuple(
    Archive(f"ISIC2018_{name}.zip", size, sha256)
    for name, size, sha256 in (
        ("Task1-2_Training_Input", 11_165_358_566, "80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f"),
        ("Task1_Training_GroundTruth", 27_402_895, "99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c"),
        ("Task1-2_Validation_Input", 239_231_159, "0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797"),
        ("Task1_Validation_GroundTruth", 759_706, "f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285"),
        ("Task1-2_Test_Input", 2_370_457_338, "e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d"),
        ("Task1_Test_GroundTruth", 9_680_101, "2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82"),
    )
)
BASE_URLS = (  # the second is tried where the first fails
    "https://isic-archive.s3.amazonaws.com/challenges/2018/",
    "https://isic-challenge-data.s3.amazonaws.com/2018/",
)
_WAITS = (0, 1, 2, 4, 8)  # seconds before each round of attempts at all addresses
_TIMEOUTS = (10, 60)  # seconds to connect, and without a byte arriving
_CHUNK = 1 << 16  # bytes; a chunk in which the connection breaks is lost


def download_isic2018(
    root: str | Path, *, archives: Sequence[Archive] = ARCHIVES, base_urls: Sequence[str] = BASE_URLS
) -> Path:
    """Fetch and unpack the official archives (13.8 GB) into ``root``, so that ``load_isic2018(root)`` reads them.

    A second call skips the folders that are there and resumes interrupted downloads (``.part`` files). A zip file that
    the user put into ``root`` is verified, used and never deleted.

    Returns:
        ``root``.

    Raises:
        DownloadError: if the disk is too small or cannot be written, no address delivers, or an archive is corrupt. No
            folder is ever left half unpacked.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:  # without archives=, all six are fetched
    ...     download_isic2018(root, archives=()) == Path(root)
    True
    """
    root = expanded("root", root)
    if not _missing(root, archives):  # before anything is written: the folder may be read-only
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):  # two processes must not append to one file
            missing = _missing(root, archives)
            _check_disk(root, missing)
            for archive in missing:
                path = root / archive.name  # the user's own
                if not path.exists():
                    path = root / f"{archive.name}.part"
                    _download([f"{url.rstrip('/')}/{archive.name}" for url in base_urls], path, archive.size)
                _verify(path, archive)
                _unpack(path, archive.folder(root))
                if path.suffix == ".part":
                    path.unlink()
    except OSError as error:
        raise DownloadError(f"{root} cannot be written: {error}; make room or choose another, and call again") from None
    return root


def _missing(root: Path, archives: Sequence[Archive]) -> list[Archive]:
    return [archive for archive in archives if not any(archive.folder(root).glob("ISIC_*"))]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_disk(root: Path, missing: Sequence[Archive]) -> None:
    """Refuse to start what the disk cannot take: everything unpacked, and the archive that lacks most."""
    lacking = [a.size - max(_size(root / a.name), _size(root / f"{a.name}.part")) for a in missing]
    unpacked = 1.1 * sum(archive.size for archive in missing)  # JPEG and PNG hardly shrink in a zip
    needed = unpacked + max(lacking, default=0)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DownloadError(
            f"{root} has {free / 1e9:.2f} GB free, but fetching and unpacking {len(missing)} archives takes about "
            f"{needed / 1e9:.2f} GB: make room, or choose a folder on another disk. Nothing was downloaded."
        )


def _verify(path: Path, archive: Archive) -> None:
    """Compare the SHA-256; what the user put there is never deleted."""
    tqdm.write(f"verifying {archive.name}", file=sys.stderr)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        if path.suffix == ".part":
            path.unlink()
        raise DownloadError(
            f"{path} is not the official archive: its SHA-256 is {found} instead of {archive.sha256}. Delete it if it "
            f"is still there, and call again; or fetch {archive.name} in a browser and put it into {path.parent}."
        )


def _download(urls: Sequence[str], part: Path, size: int) -> None:
    """Bring ``part`` to its full size; each attempt goes on where the last one broke off."""
    failures = {}
    for wait in _WAITS:
        time.sleep(wait)
        for url in urls:
            try:
                return _fetch(url, part, size)
            except requests.RequestException as error:
                failures[url] = f"  {url}: {error}\n"
    raise DownloadError(
        f"{part.stem} cannot be downloaded:\n{''.join(failures.values())}remedy: check the network and call again "
        f"(what has arrived is kept), or fetch the file in a browser and put it into {part.parent}"
    )


def _fetch(url: str, part: Path, size: int) -> None:
    """Ask once for what ``part`` lacks of ``size`` bytes; a server that ignores the range sends all of them."""
    have = _size(part)
    if have >= size:
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


def _unpack(path: Path, target: Path) -> None:
    """Unpack beside the target and rename, so that an interrupt leaves no half folder under the final name."""
    unfinished = target.with_name(f".{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process, since this one holds the lock
    try:
        with zipfile.ZipFile(path) as zipped:
            for member in tqdm(zipped.namelist(), desc=f"unpacking {target.name}", unit="file", mininterval=1):
                zipped.extract(member, unfinished)
        (unfinished / target.name).replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> str | None:
    """The command ``alutils-download ROOT``; what it returns goes to ``sys.exit``: nothing, or what went wrong."""
    parser = argparse.ArgumentParser("alutils-download", description="Fetch and unpack ISIC 2018 Task 1 (13.8 GB).")
    parser.add_argument("root", metavar="ROOT", help="the folder that takes the six official folders")
    options = parser.parse_args(arguments)
    try:
        download_isic2018(options.root)
    except (ConfigError, DownloadError) as error:
        return str(error)
    except KeyboardInterrupt:
        return "interrupted; the same command continues where this one stopped"
    print(f"the six folders of ISIC 2018 Task 1 are in {options.root}")
    return None
