"""The folders of a data set: which files belong together, and what is wrong with their names."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from alutils.data.description import ENDINGS, Description, Files, fixed_folder
from alutils.system.checks import DataError, listed, printable

_ENDS_BYTES = 4096  # read at either end of each file for the fingerprint
_READERS = 16  # threads: on a network disk most of the time is waiting

# The kinds of problem, in the order in which they are reported, each with its remedy.
_REMEDIES = {
    "missing mask": "put the masks there, or take the images out",
    "missing image": "put the images there, or take the masks out",
    "mask's name": "rename them, or take them out",
    "several files of one name": "keep one of them",
    "group in two splits": "put all its images into one: the model would be evaluated on what it was trained on",
    "not in the table": "add them to the table, or take them out",
    "no group": "change the pattern of groups in the data's description, or rename them",
    "id in two splits": "keep it in one: the model would be evaluated on what it was trained on",
    "file's name": "rename them: a name must be text in UTF-8, or a run could not record it",
    "unreadable file": "check the permissions, the links and the disk",
    "cannot be decoded": "copy or download them again (git lfs pull replaces Git LFS pointers), or convert them to "
    "JPEG, PNG, BMP, TIFF or GIF of 8 bits per channel; another name does not convert a file",
    "mask's size": "each mask needs the native size of its image, before EXIF data turn either",
    "mask's values": "masks hold 0 and 255, or 0 and 1, in 8 bits: store them as such, without lossy compression, or "
    "give a threshold or lesion_values in the data's description",
    "mask without lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
    "mask all lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
}


class Problem(NamedTuple):
    """A kind of problem, and a line that names the file."""

    kind: str
    text: str


@dataclass
class Pair:
    """The files of one id: its image, None if that is missing, and its masks, usually one."""

    image: Path | None = None
    masks: tuple[Path, ...] = ()


class Listing(NamedTuple):
    """What the folders of a data set hold."""

    pairs: dict[str, dict[str, Pair]]  # split or "all" -> id -> files, sorted by id
    problems: list[Problem]  # those that the names alone show
    n_ignored: int  # pictures whose names are neither an image's nor a mask's
    fingerprint: str  # a hash of the names, the sizes and both ends of all files; empty where there are problems


def list_pairs(root: Path, description: Description) -> Listing:
    """The files below ``root``, in pairs of an image and its masks.

    Raises:
        DataError: if a folder is missing, is empty or cannot be listed.
    """
    patterns = [pattern for part in description.parts.values() for pattern in (part.images, part.masks)]
    folders = list(dict.fromkeys(map(fixed_folder, patterns)))
    try:
        names = {folder: _picture_names(root, folder, _depth(folder, patterns)) for folder in folders}
        if all(names.values()):
            return _paired(root, description, names)
        inside = sorted(path.name for path in root.iterdir()) if root.is_dir() else None
    except OSError as error:
        raise DataError(
            f"{description.name} cannot be read from {root}: {error.filename}: {error.strerror}; remedy: check the "
            "permissions and the disk"
        ) from None
    lines = [f"{description.name} cannot be read from {root}:"]
    lines += [f"  there is no folder {name}" for name, found in names.items() if found is None]
    lines += [f"  the folder {name or root} holds no pictures" for name, found in names.items() if found == []]
    there = (
        f"{root} does not exist or is no folder" if inside is None else f"found there: {listed(inside) or 'nothing'}"
    )
    raise DataError("\n".join([*lines, there, "remedy: " + description.remedy.replace("{root}", str(root))]))


def short(path: Path) -> str:
    """The name of a file with that of its folder, for messages."""
    return printable(f"{path.parent.name}/{path.name}")


def refusal(description: Description, root: Path, problems: list[Problem]) -> DataError:
    """One error that counts the problems by kind, each kind with its remedy and its first ten files."""
    lines = [f"{description.name} in {root} cannot be used; problems: {len(problems)}"]
    for kind, remedy in _REMEDIES.items():
        if found := [problem.text for problem in problems if problem.kind == kind]:
            lines += [f"{kind} ({len(found)}); remedy: {remedy}", "  " + listed(found, separator="\n  ")]
    return DataError("\n".join(lines))


def _depth(folder: str, patterns: list[str]) -> int:
    """How many folders deep the patterns of this folder look, itself included."""
    return max(1 + p[len(folder) :].lstrip("/").count("/") for p in patterns if fixed_folder(p) == folder)


def _picture_names(root: Path, folder: str, depth: int) -> list[str] | None:
    """The paths below ``root`` of what looks like pictures in ``folder``; None if there is no such folder."""
    top = root / folder
    if not top.is_dir():
        return None
    paths = [*top.iterdir()]  # glob would be silent about a folder that cannot be listed, rglob follows no links
    paths += (path for level in range(2, depth + 1) for path in top.glob("/".join("*" * level)))
    found = (f"{folder}/{path.relative_to(top).as_posix()}".lstrip("/") for path in paths)
    return sorted(name for name in found if name.lower().endswith(ENDINGS) and "/." not in f"/{name[len(folder) :]}")


def _candidates(
    description: Description, part: Files, names: dict[str, list[str]]
) -> Iterator[tuple[str, str, re.Match[str] | None]]:
    """What may be an image or a mask of a split: which of the two, its path below the root, and its id, if any."""
    image_matcher, mask_matcher = description.matcher(part.images), description.matcher(part.masks)
    for kind, pattern, matcher in (("image", part.images, image_matcher), ("mask", part.masks, mask_matcher)):
        for name in names[fixed_folder(pattern)]:
            text = unicodedata.normalize("NFC", name)
            ignored = description.ignored and fnmatch(name.rpartition("/")[2], description.ignored)
            if not ignored and not (kind == "image" and mask_matcher.fullmatch(text)):
                yield kind, name, matcher.fullmatch(text)


def _paired(root: Path, description: Description, names: dict[str, list[str]]) -> Listing:
    listing: dict[str, dict[str, Pair]] = {}
    problems: list[Problem] = []
    known: list[Path] = []
    used: set[str] = set()
    for split, part in description.parts.items():
        files: dict[str, dict[str, list[Path]]] = defaultdict(lambda: {"image": [], "mask": []})
        ids: dict[str, str] = {}  # upper and lower case tell no images apart
        named = part.masks.rpartition("/")[2]
        all_masks = "id" not in description.model_fields_set and fixed_folder(part.images) != fixed_folder(part.masks)
        for kind, name, found in _candidates(description, part, names):
            path = root / name
            if any("\ud800" <= c <= "\udfff" for c in name):  # they stand for bytes that are no text
                problems.append(Problem("file's name", short(path)))
            elif found:
                known.append(path)
                files[ids.setdefault(found["id"].casefold(), found["id"])][kind].append(path)
            elif kind == "mask" and all_masks:
                text = f"{short(path)} is not called {named.replace('{id}', '<image>')}.png"
                problems.append(Problem("mask's name", text))
            else:
                continue
            used.add(name)
        single = [one["image"] for one in files.values()] + [one["mask"] for one in files.values() if "*" not in named]
        for first, *others in filter(None, single):
            problems += [Problem("several files of one name", f"{short(first)}, {short(path)}") for path in others]
        listing[split] = {id: Pair(next(iter(f["image"]), None), tuple(f["mask"])) for id, f in sorted(files.items())}
    n_ignored = len({name for found in names.values() for name in found} - used)
    problems += _unpaired(listing, description)
    return Listing(listing, problems, n_ignored, "" if problems else _fingerprint(root, known))


def _unpaired(listing: dict[str, dict[str, Pair]], description: Description) -> Iterator[Problem]:
    """Images without a mask, masks without an image, and ids in two splits."""
    for split, pairs in listing.items():
        part = description.parts[split]
        for name, pair in pairs.items():
            image, mask = (pattern.replace("{id}", printable(name)) for pattern in (part.images, part.masks))
            if not pair.masks:
                yield Problem("missing mask", f"{mask}.png of {short(pair.image)}")
            if not pair.image:
                yield Problem("missing image", f"{image}.jpg of {short(pair.masks[0])}")
    for first, second in combinations(listing, 2):
        others = {name.casefold() for name in listing[second]}
        for name in (name for name in listing[first] if name.casefold() in others):
            yield Problem("id in two splits", f"{printable(name)}: {first} and {second}")


def _fingerprint(root: Path, files: list[Path]) -> str:
    """A hash of what all copies of a data set share; the files' times are left out."""
    with ThreadPoolExecutor(_READERS) as pool:
        contents = pool.map(_size_and_ends, files)
    names = (unicodedata.normalize("NFC", path.relative_to(root).as_posix()) for path in files)
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
