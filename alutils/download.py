"""The official ISIC 2018 Task 1 archives: fetched, resumed, verified and unpacked.

As a command: ``alutils-download ROOT``. The usual library for this, pooch, starts an interrupted download
of 11 GB from the beginning, hence requests.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import stat
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


class DownloadError(RuntimeError):
    """The data set cannot be had; the message names the file or the address and the remedy."""


class _Unusable(Exception):
    """What this address answers will not get better by asking again."""


@dataclass(frozen=True)
class Archive:
    """A zip file that holds one folder of its own name.

    Args:
        name: file name, ending in ``.zip``.
        size: in bytes.
        sha256: in lower-case hexadecimal digits.
    """

    name: str
    size: int
    sha256: str

    @property
    def folder(self) -> str:
        return self.name.removesuffix(".zip")


ARCHIVES = (
    Archive(
        "ISIC2018_Task1-2_Training_Input.zip",
        11_165_358_566,
        "80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f",
    ),
    Archive(
        "ISIC2018_Task1_Training_GroundTruth.zip",
        27_402_895,
        "99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c",
    ),
    Archive(
        "ISIC2018_Task1-2_Validation_Input.zip",
        239_231_159,
        "0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797",
    ),
    Archive(
        "ISIC2018_Task1_Validation_GroundTruth.zip",
        759_706,
        "f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285",
    ),
    Archive(
        "ISIC2018_Task1-2_Test_Input.zip",
        2_370_457_338,
        "e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d",
    ),
    Archive(
        "ISIC2018_Task1_Test_GroundTruth.zip",
        9_680_101,
        "2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82",
    ),
)
"""The six official archives of ISIC 2018 Task 1."""

BASE_URLS = (
    "https://isic-archive.s3.amazonaws.com/challenges/2018/",
    "https://isic-challenge-data.s3.amazonaws.com/2018/",
)
"""Where they lie; the second is a mirror for when the first fails."""

_ATTEMPTS = 4  # at each address, while the file does not grow
_FIRST_WAIT = 1.0  # seconds before the second attempt, doubled each time
_TIMEOUTS = (10, 60)  # seconds to connect, and without a byte arriving
_CHUNK = 1 << 16  # bytes; a chunk in which the connection breaks is lost
_UNPACKED = 1.1  # unpacked size over the archive's: JPEG and PNG hardly shrink in a zip file
_LARGEST_RATIO = 100  # of a member's unpacked to its packed size, beyond the allowance
_RATIO_ALLOWANCE = 1 << 20  # bytes: a small text or an empty mask may shrink a lot


def download_isic2018(
    root: str | Path,
    *,
    archives: Sequence[Archive] = ARCHIVES,
    base_urls: Sequence[str] = BASE_URLS,
    keep_archives: bool = False,
) -> Path:
    """Fetch and unpack the official archives (13.8 GB), so that ``load_isic2018(root)`` reads them.

    A second call does what the first left undone: folders that are there are skipped, interrupted downloads resumed
    (``.part`` files), and a zip file that was put into ``root`` by hand is used, and never deleted.

    Args:
        root: the folder that takes the six folders; made if need be.
        archives: what to fetch.
        base_urls: addresses to which an archive's name is appended, tried in this order.
        keep_archives: keep the downloaded zip files after unpacking.

    Returns:
        ``root``.

    Raises:
        DownloadError: if the disk is too small, no address answers, or an archive is corrupt or not safe to unpack.
            No folder is ever left half unpacked.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:  # without archives=, all six are fetched
    ...     download_isic2018(root, archives=()) == Path(root)
    True
    """
    root = Path(root).expanduser()
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
    path, is_ours = _get_archive(root, archive, base_urls)
    _unpack(path, root, archive)
    if is_ours and keep_archive:
        path.replace(root / archive.name)
    elif is_ours:
        path.unlink()


def _is_unpacked(root: Path, archive: Archive) -> bool:
    """Folders get their final name only when they are complete; an empty one was made by hand."""
    folder = root / archive.folder
    return folder.is_dir() and any(folder.iterdir())


def _part(root: Path, archive: Archive) -> Path:
    return root / f"{archive.name}.part"


def _check_disk(root: Path, missing: Sequence[Archive], keep_archives: bool) -> None:
    """Refuse to start what the disk cannot take: everything unpacked, and the archives or the largest of them."""
    if not missing:  # another process has just finished
        return
    downloads = []
    for archive in missing:
        there = [path.stat().st_size for path in (root / archive.name, _part(root, archive)) if path.exists()]
        downloads.append(max(0, archive.size - max(there, default=0)))
    unpacked = sum(archive.size for archive in missing) * _UNPACKED
    needed = unpacked + (sum(downloads) if keep_archives else max(downloads))
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DownloadError(
            f"{root} has {free / 1e9:.2f} GB free, but fetching and unpacking {len(missing)} archives takes about "
            f"{needed / 1e9:.2f} GB: make room, or choose a folder on another disk. Nothing was downloaded."
        )


# --- fetching --------------------------------------------------------------------------------------------------------


def _get_archive(root: Path, archive: Archive, base_urls: Sequence[str]) -> tuple[Path, bool]:
    """The verified archive, and whether this module downloaded it: a file of the final name is the user's."""
    path = root / archive.name
    if path.exists():
        wrong = _what_is_wrong(path, archive)
        if wrong:
            raise DownloadError(
                f"{path} is not the official archive: {wrong}. Delete it, or put the right file there, and call again."
            )
        return path, False

    part = _part(root, archive)
    _download(archive, part, base_urls)
    wrong = _what_is_wrong(part, archive)
    if wrong:
        part.unlink()
        raise DownloadError(
            f"the downloaded {archive.name} is corrupt and was deleted: {wrong}. Call again to fetch it anew; if that "
            f"does not help, fetch {_url(base_urls[0], archive)} in a browser and put it into {root}."
        )
    return part, True


def _what_is_wrong(path: Path, archive: Archive) -> str | None:
    size = path.stat().st_size
    if size != archive.size:
        return f"it has {size:,} bytes instead of {archive.size:,}"
    tqdm.write(f"verifying {archive.name}", file=sys.stderr)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == archive.sha256 else f"its SHA-256 is {found} instead of {archive.sha256}"


def _url(base_url: str, archive: Archive) -> str:
    return f"{base_url.rstrip('/')}/{archive.name}"


def _download(archive: Archive, part: Path, base_urls: Sequence[str]) -> None:
    """Bring ``part`` to the archive's size from the first address that delivers."""
    failures = []
    for base_url in base_urls:
        url = _url(base_url, archive)
        left, most = _ATTEMPTS, _size(part)
        while left:
            try:
                _fetch(url, part, archive.size)
                return
            except _Unusable as error:
                failures.append(f"{url}: {error}")
                break
            except requests.RequestException as error:
                left = (_ATTEMPTS if _size(part) > most else left) - 1
                most = max(most, _size(part))
                if left:
                    time.sleep(_FIRST_WAIT * 2 ** (_ATTEMPTS - 1 - left))
                else:
                    failures.append(f"{url}: {error}")
    raise DownloadError(
        "\n".join(
            [
                f"{archive.name} cannot be downloaded:",
                *(f"  {failure}" for failure in failures),
                "remedy: check the network and call again (what has arrived is kept and continued); or fetch the file "
                f"in a browser and put it into {part.parent}, where the next call finds it.",
            ]
        )
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, size: int) -> None:
    """One request for what ``part`` still lacks of ``size`` bytes.

    Raises:
        requests.RequestException: worth another attempt.
        _Unusable: not worth one.
    """
    if _size(part) > size:
        part.unlink()
    have = _size(part)
    if have == size:
        return
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file, or the counts would not fit
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response:
        code = response.status_code
        if code == 416 and have:
            part.unlink()
            raise requests.HTTPError("the server refused to continue the download")
        if code in (408, 429) or code >= 500:
            raise requests.HTTPError(f"{code} {response.reason}")
        if code not in (200, 206):
            raise _Unusable(f"{code} {response.reason}")
        start, total = _announced(response)
        if total not in (None, size):
            raise _Unusable(f"the server announces a file of {total:,} bytes instead of {size:,}")
        if start not in (0, have):
            raise _Unusable(f"the server answers from byte {start:,} on instead of {have:,}")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                total=size, initial=start, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1000, mininterval=1
            ) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                if file.tell() + len(chunk) > size:
                    raise _Unusable(f"the server sends more than {size:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
    if _size(part) < size:
        raise requests.ConnectionError(f"the connection ended after {_size(part):,} of {size:,} bytes")


def _announced(response: requests.Response) -> tuple[int, int | None]:
    """First byte of the answer, and the size of the whole file if the server gives it."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length")
        return 0, int(length) if length else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not match:
        raise _Unusable("the server sends a part of the file without saying which")
    return int(match[1]), None if match[2] == "*" else int(match[2])


# --- unpacking -------------------------------------------------------------------------------------------------------


def _unpack(path: Path, root: Path, archive: Archive) -> None:
    """Unpack beside the target and rename, so that an interrupt leaves no half folder under the final name."""
    unfinished = root / f".{archive.folder}.part"
    target = root / archive.folder
    if unfinished.exists():  # the lock is held: a killed process left it
        shutil.rmtree(unfinished)
    try:
        with zipfile.ZipFile(path) as zipped:
            members = _checked_members(zipped, archive, shutil.disk_usage(root).free)
            for member in tqdm(members, desc=f"unpacking {archive.folder}", unit="file", mininterval=1):
                zipped.extract(member, unfinished)
        if target.exists():
            target.rmdir()  # empty, or it would have been skipped
        (unfinished / archive.folder).replace(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{path} is not a zip file that can be read: {error}. Delete it and call again.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _checked_members(zipped: zipfile.ZipFile, archive: Archive, free: int) -> list[zipfile.ZipInfo]:
    """What to unpack, after every name and size in the archive has been found harmless."""
    members = [member for member in zipped.infolist() if not member.orig_filename.startswith("__MACOSX/")]
    declared = 0
    for member in members:
        declared += member.file_size
        # Names differ where zipfile cuts at a null character or prefers the name in an extra field.
        names = (member.orig_filename, member.filename)
        reason = next(filter(None, (_why_refused(member, name, archive) for name in names)), None)
        if not reason and declared > free:
            reason = f"with it the archive unpacks to {declared:,} bytes, but {free:,} are free"
        if reason:
            raise DownloadError(
                f"{archive.name} is refused and nothing of it was unpacked: member {member.orig_filename!r}: {reason}. "
                "Get the archive from its official address."
            )
    if all(member.is_dir() for member in members):
        raise DownloadError(f"{archive.name} is refused: it holds no files. Get the archive from its official address.")
    return members


def _why_refused(member: zipfile.ZipInfo, name: str, archive: Archive) -> str | None:
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.startswith("/"):
        return "it has an absolute path"
    if "\\" in name or "\0" in name:
        return "its name has a backslash or a null character"
    if ":" in parts[0]:
        return "its name has a drive letter"
    if not {"", ".", ".."}.isdisjoint(parts):
        return 'its path has a part "..", "." or ""'
    if parts[0] != archive.folder or (len(parts) == 1 and not member.is_dir()):
        return f"it lies outside of the folder {archive.folder}"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is a link or a special file"
    if member.flag_bits & 0x1:
        return "it is encrypted"
    if member.file_size > _LARGEST_RATIO * member.compress_size + _RATIO_ALLOWANCE:
        return f"its {member.compress_size:,} bytes unpack to {member.file_size:,}"
    return None


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
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130
    print(f"ISIC 2018 Task 1 is complete in {options.root}")
    return 0
