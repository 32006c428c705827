"""The folders of a data set: which files belong together, and what is wrong with their names."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from alutils.system.checks import DataError, listed, printable

_ENDS_BYTES = 4096  # read at either end of each file for the fingerprint
_READERS = 16  # threads: on a network disk most of the time is waiting

# The kinds of problem, in the order in which they are reported, each with its remedy.
_REMEDIES = {
    "missing mask": "put the masks there, or take the images out",
    "missing image": "put the images there, or take the masks out",
    "mask's name": "rename them, or take them out",
    "several files of one name": "keep one of them",
    "id in two splits": "keep it in one: the model would be evaluated on what it was trained on",
    "file's name": "rename them: a name must be text in UTF-8, or a run could not record it",
    "unreadable file": "check the permissions, the links and the disk",
    "cannot be decoded": "copy or download them again (git lfs pull replaces Git LFS pointers), or convert them to "
    "JPEG or PNG of 8 bits per channel; another name does not convert a file",
    "mask's size": "each mask needs the native size of its image, before EXIF data turn either",
    "mask's values": "masks hold 0 and 255, or 0 and 1, in 8 bits: store them as such, without lossy compression",
    "mask without lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
    "mask all lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
}


class Layout(NamedTuple):
    """Where the files of a data set lie below its root."""

    name: str
    folders: dict[str, tuple[str, str]]  # split -> the folder of the images, and that of the masks
    mask_suffix: str  # how the name of a mask goes on after the name of its image
    ignored: str  # a pattern of pictures that are neither images nor masks
    remedy: str  # how a user gets the folders; "{root}" stands for the data set's folder


class Problem(NamedTuple):
    """A kind of problem, and a line that names the file."""

    kind: str
    text: str


@dataclass
class Pair:
    """The files of one id; None for a file that is missing."""

    image: Path | None = None
    mask: Path | None = None


class Listing(NamedTuple):
    """What the folders of a data set hold."""

    pairs: dict[str, dict[str, Pair]]  # split -> id -> files, sorted by id
    problems: list[Problem]  # those that the names alone show
    fingerprint: str  # a hash of the names, the sizes and both ends of all files; empty where there are problems


def list_pairs(root: Path, layout: Layout) -> Listing:
    """The files below ``root``, in pairs of an image and a mask.

    Raises:
        DataError: if a folder is missing, is empty or cannot be listed.
    """
    try:
        names = {name: _picture_names(root / name) for pair in layout.folders.values() for name in pair}
        if all(names.values()):
            return _paired(root, layout, names)
        inside = sorted(path.name for path in root.iterdir()) if root.is_dir() else None
    except OSError as error:
        raise DataError(
            f"{layout.name} cannot be read from {root}: {error.filename}: {error.strerror}; remedy: check the "
            "permissions and the disk"
        ) from None
    lines = [f"{layout.name} cannot be read from {root}:"]
    lines += [f"  there is no folder {name}" for name, found in names.items() if found is None]
    lines += [f"  the folder {name} holds no JPEG or PNG files" for name, found in names.items() if found == []]
    there = (
        f"{root} does not exist or is no folder" if inside is None else f"found there: {listed(inside) or 'nothing'}"
    )
    raise DataError("\n".join([*lines, there, "remedy: " + layout.remedy.format(root=root)]))


def short(path: Path) -> str:
    """The name of a file with that of its folder, for messages."""
    return printable(f"{path.parent.name}/{path.name}")


def refusal(layout: Layout, root: Path, problems: list[Problem]) -> DataError:
    """One error that counts the problems by kind, each kind with its remedy and its first ten files."""
    lines = [f"{layout.name} in {root} cannot be used; problems: {len(problems)}"]
    for kind, remedy in _REMEDIES.items():
        if found := [problem.text for problem in problems if problem.kind == kind]:
            lines += [f"{kind} ({len(found)}); remedy: {remedy}", "  " + listed(found, separator="\n  ")]
    return DataError("\n".join(lines))


def _picture_names(folder: Path) -> list[str] | None:
    """The names that look like those of pictures; None if there is no such folder."""
    if not folder.is_dir():
        return None
    visible = (path.name for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(name for name in visible if name.lower().endswith((".jpg", ".jpeg", ".png")))


def _paired(root: Path, layout: Layout, names: dict[str, list[str]]) -> Listing:
    listing: dict[str, dict[str, Pair]] = {}
    problems: list[Problem] = []
    known: list[Path] = []
    for split, folders in layout.folders.items():
        pairs: dict[str, Pair] = {}
        for kind, suffix, folder in zip(("image", "mask"), ("", layout.mask_suffix), folders, strict=True):
            for name in names[folder]:
                if fnmatch(name, layout.ignored):
                    continue
                path, stem = root / folder / name, unicodedata.normalize("NFC", name).rpartition(".")[0]
                known.append(path)
                if any("\ud800" <= c <= "\udfff" for c in name):  # they stand for bytes that are no text
                    problems.append(Problem("file's name", short(path)))
                elif not stem.endswith(suffix):
                    problems.append(Problem("mask's name", f"{short(path)} is not called <image>{suffix}.png"))
                else:
                    pair = pairs.setdefault(stem.removesuffix(suffix), Pair())
                    if other := getattr(pair, kind):
                        problems.append(Problem("several files of one name", f"{short(other)}, {short(path)}"))
                    setattr(pair, kind, path)
        listing[split] = dict(sorted(pairs.items()))
    problems += _unpaired(listing, layout)
    return Listing(listing, problems, "" if problems else _fingerprint(known))


def _unpaired(listing: dict[str, dict[str, Pair]], layout: Layout) -> Iterator[Problem]:
    """Images without a mask, masks without an image, and ids in two splits."""
    for split, pairs in listing.items():
        images, masks = layout.folders[split]
        for name, pair in pairs.items():
            if not pair.mask:
                mask = f"{masks}/{name}{layout.mask_suffix}.png"
                yield Problem("missing mask", f"{printable(mask)} of {short(pair.image)}")
            if not pair.image:
                yield Problem("missing image", f"{printable(f'{images}/{name}.jpg')} of {short(pair.mask)}")
    for first, second in combinations(listing, 2):
        for name in sorted(listing[first].keys() & listing[second].keys()):
            yield Problem("id in two splits", f"{printable(name)}: {first} and {second}")


def _fingerprint(files: list[Path]) -> str:
    """A hash of what the copies of a data set share, unlike times of change."""
    with ThreadPoolExecutor(_READERS) as pool:
        contents = pool.map(_size_and_ends, files)
    names = (f"{path.parent.name}/{unicodedata.normalize('NFC', path.name)}" for path in files)
    lines = sorted(" ".join(line) for line in zip(names, contents, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _size_and_ends(path: Path) -> str:
    try:
        if not path.is_file():  # opening a pipe would wait for a writer, for ever
            return ""
        with path.open("rb", buffering=0) as file:
            content = file.read(_ENDS_BYTES)
            size = file.seek(0, os.SEEK_END)
            if size > _ENDS_BYTES:
                file.seek(max(_ENDS_BYTES, size - _ENDS_BYTES))
                content += file.read(_ENDS_BYTES)
    except OSError as error:  # decoding will say so
        return str(error.errno)
    return f"{size} {hashlib.sha256(content).hexdigest()}"
