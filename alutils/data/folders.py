"""The folders of a data set: which files belong together, and what is wrong with their names."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain, combinations
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
    "more than 8 bits": "convert them to 8 bits per channel: scale images to 0 to 255, masks to 0 and 255",
    "cannot be decoded": "copy or download them again (git lfs pull replaces Git LFS pointers), or convert them to "
    "JPEG or PNG of 8 bits per channel; another name does not convert a file",
    "mask's size": "each mask needs the native size of its image, before EXIF data turn either",
    "mask in the alpha channel": 'store that channel as the mask: PIL.Image.open(mask).getchannel("A")',
    "mask's values": "masks hold 0 and 255, or 0 and 1, in 8 bits: store them as such, without lossy compression",
    "mask without lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
    "mask all lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
}


class Layout(NamedTuple):
    """Where the files of a data set lie below its root.

    Args:
        name: of the data set.
        folders: the folder of the images and the folder of the masks of each split.
        mask_suffix: how the name of a mask goes on after the name of its image.
        ignored: a pattern of pictures that are neither images nor masks.
        remedy: how a user gets the folders; "{root}" stands for the data set's folder.
    """

    name: str
    folders: dict[str, tuple[str, str]]
    mask_suffix: str
    ignored: str
    remedy: str


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
    """What the folders of a data set hold.

    Args:
        pairs: split -> id -> files, sorted by id.
        problems: those that the names alone show.
        fingerprint: a hash of the names, the sizes and both ends of all files; empty where there are problems.
        n_ignored: how many pictures are neither images nor masks.
    """

    pairs: dict[str, dict[str, Pair]]
    problems: list[Problem]
    fingerprint: str
    n_ignored: int


def list_pairs(root: Path, layout: Layout) -> Listing:
    """The files below ``root``, in pairs of an image and a mask.

    Raises:
        DataError: if a folder is missing, is empty or cannot be listed.
    """
    try:
        _check_folders(root, layout)
        return _list_pairs(root, layout)
    except OSError as error:
        raise DataError(
            f"{layout.name} cannot be read from {root}: {error.filename}: {error.strerror}; remedy: check the "
            "permissions and the disk"
        ) from None


def picture_names(folder: Path) -> Iterator[str]:
    """The names in ``folder`` that look like those of pictures, in no order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower().endswith((".jpg", ".jpeg", ".png")):
                yield entry.name


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


def _check_folders(root: Path, layout: Layout) -> None:
    """Raise one error that names every folder that is missing or holds no pictures."""
    names = [name for pair in layout.folders.values() for name in pair]
    wrong = [f"  there is no folder {name}" for name in names if not (root / name).is_dir()]
    wrong += [
        f"  the folder {name} holds no JPEG or PNG files"
        for name in names
        if (root / name).is_dir() and not any(picture_names(root / name))
    ]
    if not wrong:
        return
    lines = [f"{layout.name} cannot be read from {root}:", *wrong]
    if root.is_dir():
        inside = sorted(child for child in root.iterdir() if not child.name.startswith("."))
        lines.append(f"found in {root}: {listed(child.name for child in inside) or 'nothing'}")
        deeper = [child for child in inside if any((child / name).is_dir() for name in names)]
        lines += [f"hint: folders lie one level deeper, in {child}: pass that, or move them up" for child in deeper]
        if root.name in names:
            lines.append(f"hint: pass the folder above: {root.parent}")
    else:
        lines.append(f"{root} " + ("is a file, not a folder" if root.exists() else "does not exist"))
    raise DataError("\n".join([*lines, "remedy: " + layout.remedy.format(root=root)]))


def _list_pairs(root: Path, layout: Layout) -> Listing:
    listing: dict[str, dict[str, Pair]] = {}
    problems: list[Problem] = []
    known: list[Path] = []
    n_ignored = 0
    for split, folders in layout.folders.items():
        pairs: dict[str, Pair] = {}
        for kind, suffix, folder in zip(("image", "mask"), ("", layout.mask_suffix), folders, strict=True):
            for name in sorted(picture_names(root / folder)):
                if fnmatch(name, layout.ignored):
                    n_ignored += 1
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
    return Listing(listing, problems, "" if problems else _fingerprint(known), n_ignored)


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

    def identities(some: list[Path]) -> list[str]:
        return [f"{path.parent.name}/{unicodedata.normalize('NFC', path.name)} {_size_and_ends(path)}" for path in some]

    with ThreadPoolExecutor(_READERS) as pool:  # few long jobs: a job for each file would cost more than reading it
        lines = chain.from_iterable(pool.map(identities, (files[i::_READERS] for i in range(_READERS))))
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _size_and_ends(path: Path) -> str:
    try:
        if not stat.S_ISREG((status := path.stat()).st_mode):  # opening a pipe would wait for a writer, for ever
            return ""
        with path.open("rb", buffering=0) as file:
            content = file.read(_ENDS_BYTES)
            if status.st_size > _ENDS_BYTES:
                file.seek(max(_ENDS_BYTES, status.st_size - _ENDS_BYTES))
                content += file.read(_ENDS_BYTES)
    except OSError as error:  # decoding will say so
        return str(error.errno)
    return f"{status.st_size} {hashlib.sha256(content).hexdigest()}"
