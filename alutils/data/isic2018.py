"""ISIC 2018 Task 1 from its folders: every file checked, decoded once in parallel, memory-mapped from then on."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
import threading
import time
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, get_args

import numpy as np
import pandas as pd
import platformdirs
import torch
from filelock import FileLock, Timeout
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from alutils.data.splits import Split, Splits, identical_pictures, picture_sums
from alutils.experiment import DegenerateMasks
from alutils.system.checks import DataError, expanded, listed, printable
from alutils.system.cores import usable_cores
from alutils.system.files import CannotWrite, remove_leftovers, replacing
from alutils.system.progress import progress_bar
from alutils.system.tensors import is_number

OFFICIAL_COUNTS = {"train": 2594, "val": 100, "test": 1000}
"""Images in the official training, validation and test set (section IV-A)."""

FOLDERS = {
    "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
}
"""The folders of the images and of the masks of each split, as in the official archives."""

_FORMAT_VERSION = 3  # of the cache; raise it when the decoding or the layout of the file changes
_EXTENSIONS = (".jpg", ".jpeg", ".png")
_FORMATS = ("JPEG", "PNG")  # Pillow is not to try its other decoders on a mislabelled file
_MASK_SUFFIX = "_segmentation"
_SUPERPIXELS = "ISIC_*_superpixels.png"  # for Task 2 of other years; they lie beside the images
_NEXT_LINE = "\n  "
_CHECKSUM_BYTES = 32  # SHA-256, at the end of the cache
_FINGERPRINT_BYTES = 4096  # at either end of each file
_READERS = 16  # threads: on a network disk most of the time is waiting
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}

# The kinds of problem, in the order in which they are reported, each with its remedy.
_REMEDIES = {
    "missing mask": "put the masks there, or take the images out",
    "missing image": "put the images there, or take the masks out",
    "mask's name": f"masks are called <image>{_MASK_SUFFIX}.png: rename them, or take them out",
    "several files of one name": "keep one of them",
    "id in two splits": "keep it in one: the model would be evaluated on what it was trained on",
    "file's name": "rename them: a name must be text in UTF-8, or a run could not record it",
    "unreadable file": "check the permissions, the links and the disk",
    "another format": "convert them to JPEG or PNG of 8 bits per channel; another name does not convert a file",
    "more than 8 bits": "convert them to 8 bits per channel: scale images to 0 to 255, masks to 0 and 255",
    "not an image": "copy or download the images again; git lfs pull puts them in place of Git LFS pointers",
    "broken file": "copy the files from their source again, or download them again",
    "mask's size": "each mask needs the native size of its image, before EXIF data turn either",
    "mask in the alpha channel": 'store that channel as the mask: PIL.Image.open(mask).getchannel("A")',
    "mask's values": "masks hold 0 and 255, or 0 and 1, in 8 bits: store them as such, without lossy compression",
    "mask without lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
    "mask all lesion": 'correct them, or load with degenerate_masks="warn" or "keep"',
}

_DEGENERATE = ("mask without lesion", "mask all lesion")
_TURNED = "image turned by EXIF"

# What a file that is neither JPEG nor PNG is, by the bytes at a place in it.
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (8, b"WEBP", "WebP"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIC"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"P5", "PGM"),
    (0, b"P6", "PPM"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (128, b"DICM", "DICOM"),
)
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


class _Problem(NamedTuple):
    kind: str
    text: str


class _TooManyBits(ValueError):
    """The file holds more than 8 bits per channel."""


@dataclass
class _Pair:
    """The files of one id; what is right is one image and one mask."""

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)


class _Levels(NamedTuple):
    """The values found in a mask's file."""

    grey: set[int]
    alpha: set[int]  # empty: there is no transparency


_Listing = dict[str, dict[str, _Pair]]  # split -> id -> files, sorted by id


def load_isic2018(
    root: str | Path,
    image_size: int = 512,
    *,
    cache_dir: str | Path | None = None,
    degenerate_masks: DegenerateMasks = "warn",
    n_workers: int | None = None,
) -> Splits:
    """The images and masks of ISIC 2018 Task 1, squashed to squares as in section IV-D.

    The first call decodes every file and writes a cache; later calls map the cache into memory. The cache can be
    deleted at any time, see :func:`sweep_caches`. Its key is the names, the sizes and the first and last 4 KiB of all
    files. So a copy of the data uses the same cache, and a change of any of these makes a new one. A change inside a
    file that leaves them as they were is not noticed: then delete the cache. A subset of the official files works too;
    :func:`isic2018_report` says how much is there.

    Pixels are taken as they are stored. Each opening warns of images that EXIF data turn while their masks are not
    turned, because such a mask may have been drawn on the turned image. If a file has several frames, the first is
    taken. Transparency is dropped. The checksums in PNG files are verified. JPEG has none, so damage that still decodes
    is not noticed there.

    The cache has a checksum, which each opening verifies. Each opening also warns of images in two splits whose pixels
    are all equal, because the model would be evaluated on what it was trained on.

    Args:
        root: the folder with the six official folders (:data:`FOLDERS`), as :func:`alutils.download_isic2018` leaves
            it. Images and masks are JPEG or PNG of any size; other files, and
            ``ISIC_*_superpixels.png``, are ignored.
        image_size: side of the squares in pixels, a multiple of 32 from 32 to 2048. Images are antialiased; a pixel of
            the mask is 1 where at least half of its area is lesion.
        cache_dir: folder of the cache; by default the environment variable ``ALUTILS_CACHE`` or, without it, the
            user's cache folder. It takes ``4 * image_size**2`` bytes per image: 3.9 GB for the full set at 512.
        degenerate_masks: what to do with masks that show, at their native size, no lesion or nothing else: "warn" loads
            them and names them in a warning, "error" refuses them, "keep" loads them.
        n_workers: threads that decode; by default one for each CPU core that this process may use.

    Returns:
        The three splits, each sorted by id (the file's name in Unicode's composed form). The tensors can be written to:
        that changes neither the cache nor the files.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if a folder is missing, or any file is missing, broken or not what it should be. One message says how
            many there are of each kind, with the first ten and the remedy.

    >>> load_isic2018("no/such/folder")
    Traceback (most recent call last):
    alutils.system.checks.DataError: ISIC 2018 cannot be read from ...no/such/folder: ...
    """
    if not (isinstance(image_size, int) and 32 <= image_size <= 2048 and image_size % 32 == 0):
        raise ValueError(
            "image_size must be a multiple of 32 from 32 to 2048, because the U-Net halves the image five times; "
            f"got {image_size!r}"
        )
    if degenerate_masks not in get_args(DegenerateMasks):
        raise ValueError(f'degenerate_masks must be "warn", "error" or "keep", got {degenerate_masks!r}')
    if n_workers is not None and not (type(n_workers) is int and n_workers >= 1):
        raise ValueError(f"n_workers must be None or an integer of at least 1, got {n_workers!r}")

    root = expanded("root", root).absolute()
    if cache_dir:
        cache_dir = expanded("cache_dir", cache_dir)
    listing, problems, fingerprint, n_superpixels = _list_files(root)
    refused = _DEGENERATE if degenerate_masks == "error" else ()
    decode = partial(_decode_all, listing, image_size, n_workers or usable_cores())
    if problems:
        found, notes, _ = decode()
        raise _data_error(root, [*problems, *found, *(note for note in notes if note.kind in refused)])

    key = hashlib.sha256(f"{_FORMAT_VERSION} {image_size} {fingerprint}".encode()).hexdigest()[:24]
    path = _cache_folder(cache_dir) / f"isic2018-{image_size}-{key}.npy"
    n_bytes = sum(len(pairs) for pairs in listing.values()) * 4 * image_size**2

    cache = _open_cache(path, n_bytes, image_size)
    if cache is None:
        with _one_process_at_a_time(path):
            cache = _open_cache(path, n_bytes, image_size, warn=True)  # by now another process may have written it
            if cache is None:
                _write_cache(path, n_bytes, decode, root, refused)
                _report_unused(path)
                cache = _open_cache(path, n_bytes, image_size)
    if cache is None:
        raise DataError(
            f"the decode cache {path} does not hold what was just written to it: check the disk, or pass another "
            "cache_dir"
        )
    planes, sums, notes = cache
    if degenerate := [note for note in notes if note.kind in refused]:
        raise _data_error(root, degenerate)
    with suppress(OSError):  # a share that may only be read
        os.utime(path)  # by which sweep_caches sees what is in use
    splits, image_sums = _as_splits(planes, sums, listing)

    sayings = [
        *(_said_of_masks(notes) if degenerate_masks == "warn" else ()),
        *_said_of_turned_images(notes),
        *_said_of_superpixels(n_superpixels),
        *_said_of_identical_pictures(identical_pictures(splits, image_sums=image_sums)),
    ]
    for said in sayings:
        warnings.warn(f"ISIC 2018 in {root} has {said}", stacklevel=2)
    return splits


def _said_of_masks(notes: list[_Problem]) -> Iterator[str]:
    for kind, plural in zip(_DEGENERATE, ("masks without lesion", "masks that are all lesion"), strict=True):
        if found := [note.text for note in notes if note.kind == kind]:
            remedy = 'degenerate_masks="error" refuses them, "keep" loads them without a warning'
            yield f"{plural} ({len(found)}): {listed(found)}; {remedy}"


def _said_of_turned_images(notes: list[_Problem]) -> Iterator[str]:
    if found := [note.text for note in notes if note.kind == _TURNED]:
        yield (
            f"images that EXIF data turn, but not their masks ({len(found)}): {listed(found)}; the pixels are taken as "
            "they are stored. If a mask was drawn on the turned image, store that image (PIL.ImageOps.exif_transpose)"
        )


def _said_of_superpixels(n: int) -> Iterator[str]:
    if n:
        yield f"superpixels ({n}) beside its images, which are ignored: {_SUPERPIXELS}"


def _said_of_identical_pictures(pairs: pd.DataFrame) -> Iterator[str]:
    if len(pairs):
        shown = listed(f"{p.first_id} ({p.first_split}) = {p.second_id} ({p.second_split})" for p in pairs.itertuples())
        yield (
            f"identical images in two splits: {shown}; remedy: take one of each out: the model would be evaluated on "
            "what it was trained on"
        )


def isic2018_report(splits: Splits) -> pd.DataFrame:
    """How much of the official data set was found: one row per split, with the images found and the official count.

    >>> picture, mask = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    >>> splits = Splits(*(Split(picture, mask, (name,)) for name in "abc"))
    >>> isic2018_report(splits).loc["val"].to_dict()
    {'images': 1, 'official': 100, 'complete': False}
    """
    rows = [
        {"split": name, "images": len(getattr(splits, name)), "official": official}
        for name, official in OFFICIAL_COUNTS.items()
    ]
    report = pd.DataFrame(rows).set_index("split")
    return report.assign(complete=report["images"] == report["official"])


def count_images(folder: str | Path) -> int:
    """How many files of a folder :func:`load_isic2018` would take for images or masks.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("ISIC_1.jpg", "ISIC_1_superpixels.png", "LICENSE.txt", "._ISIC_1.jpg"):
    ...     (folder / name).touch()
    >>> count_images(folder)
    1
    """
    return sum(not fnmatch(entry.name, _SUPERPIXELS) for entry in _image_entries(Path(folder)))


# --- what is there ---------------------------------------------------------------------------------------------------


def _list_files(root: Path) -> tuple[_Listing, list[_Problem], str, int]:
    """All pairs, the problems that names alone show, a hash of names, sizes and contents, and how many superpixels."""
    try:
        _check_folders(root)
        return _list_folders(root)
    except OSError as error:
        raise DataError(
            f"ISIC 2018 cannot be read from {root}: {error.filename}: {error.strerror}; remedy: check the permissions "
            "and the disk"
        ) from None


def _list_folders(root: Path) -> tuple[_Listing, list[_Problem], str, int]:
    listing: _Listing = {}
    problems: list[_Problem] = []
    known: list[tuple[Path, str, int]] = []  # each file, its name for the hash, its size
    n_superpixels = 0
    for split, folders in FOLDERS.items():
        pairs: dict[str, _Pair] = {}
        for folder, is_mask in zip(folders, (False, True), strict=True):
            below = root / folder
            for name, size in _image_files(below):
                if fnmatch(name, _SUPERPIXELS):
                    n_superpixels += 1
                    continue
                path, stem = below / name, unicodedata.normalize("NFC", name.rpartition(".")[0])
                known.append((path, f"{folder}/{unicodedata.normalize('NFC', name)} {size}", size))
                if not _is_utf8(name):
                    problems.append(_Problem("file's name", _short(path)))
                elif not is_mask:
                    pairs.setdefault(stem, _Pair()).images.append(path)
                elif stem.endswith(_MASK_SUFFIX):
                    pairs.setdefault(stem.removesuffix(_MASK_SUFFIX), _Pair()).masks.append(path)
                else:
                    problems.append(_Problem("mask's name", _short(path)))
        listing[split] = dict(sorted(pairs.items()))
    problems += _check_names(listing)
    return listing, problems, "" if problems else _fingerprint(known), n_superpixels


def _fingerprint(files: list[tuple[Path, str, int]]) -> str:
    """A hash of the names, sizes and both ends of all files: what their copies share, unlike times of change."""

    def ends(some: list[tuple[Path, str, int]]) -> list[str]:
        return [f"{name} {_hash_of_ends(path, size)}\n" for path, name, size in some]

    with ThreadPoolExecutor(_READERS) as pool:  # few long jobs, as a job for each file would cost more than reading it
        lines = [line for some in pool.map(ends, (files[i::_READERS] for i in range(_READERS))) for line in some]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _hash_of_ends(path: Path, size: int) -> str:
    if size < 0:  # not a file: decoding will say so
        return ""
    try:
        with path.open("rb", buffering=0) as file:
            content = file.read(_FINGERPRINT_BYTES)
            if size > _FINGERPRINT_BYTES:
                file.seek(max(_FINGERPRINT_BYTES, size - _FINGERPRINT_BYTES))
                content += file.read(_FINGERPRINT_BYTES)
    except OSError as error:
        return str(error.errno)
    return hashlib.sha256(content).hexdigest()


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name)  # that stand for bytes that are none


def _image_files(folder: Path) -> list[tuple[str, int]]:
    """Name and size (-1: not a file) of what looks like images in ``folder``, sorted by name."""
    found = []
    for entry in _image_entries(folder):
        try:
            status = entry.stat()
            found.append((entry.name, status.st_size if stat.S_ISREG(status.st_mode) else -1))
        except OSError:  # a broken link: decoding it will say so, together with the other problems
            found.append((entry.name, -1))
    return sorted(found)


def _image_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower().endswith(_EXTENSIONS):
                yield entry


def _check_folders(root: Path) -> None:
    """Raise one error that names every official folder that is missing or holds no images."""
    names = [name for pair in FOLDERS.values() for name in pair]
    missing = [name for name in names if not (root / name).is_dir()]
    empty = [name for name in names if name not in missing and not any(_image_entries(root / name))]
    if not missing and not empty:
        return

    lines = [f"ISIC 2018 cannot be read from {root}:"]
    lines += [
        f"  {name} is a file, not a folder" if (root / name).is_file() else f"  the folder {name} is missing"
        for name in missing
    ]
    lines += [f"  the folder {name} holds no JPEG or PNG files" for name in empty]
    if root.is_dir():
        inside = sorted(child.name for child in root.iterdir() if not child.name.startswith("."))
        lines.append(f"found in {root}: {listed(inside) or 'nothing'}")
        deeper = [child for child in sorted(root.iterdir()) if any((child / name).is_dir() for name in names)]
        for child in deeper[:10]:
            if child.name in names:
                lines.append(f"hint: {child.name} lies in a folder of the same name: move what is in it one level up")
            else:
                lines.append(f"hint: the folders lie one level deeper: pass {child}")
        if root.name in names:
            lines.append(f"hint: pass the folder above: {root.parent}")
    else:
        lines.append(f"{root} " + ("is a file, not a folder" if root.exists() else "does not exist"))
    lines.append(
        f'remedy: alutils-download "{root}" fetches what is missing (13.8 GB in all) and unpacks official '
        "archives that lie there; or pass the folder that holds the six official folders"
    )
    raise DataError("\n".join(lines))


def _check_names(listing: _Listing) -> list[_Problem]:
    problems = []
    split_of: dict[str, str] = {}
    for split, pairs in listing.items():
        image_folder, mask_folder = FOLDERS[split]
        for name, pair in pairs.items():
            for paths in (pair.images, pair.masks):
                if len(paths) > 1:
                    problems.append(_Problem("several files of one name", ", ".join(_short(p) for p in paths)))
            if not pair.masks:
                mask = _short(Path(mask_folder, f"{name}{_MASK_SUFFIX}.png"))
                problems.append(_Problem("missing mask", f"{mask} of {_short(pair.images[0])}"))
            if not pair.images:
                image = _short(Path(image_folder, f"{name}.jpg"))
                problems.append(_Problem("missing image", f"{image} of {_short(pair.masks[0])}"))
            if name in split_of:
                problems.append(_Problem("id in two splits", f"{printable(name)}: {split_of[name]} and {split}"))
            split_of[name] = split
    return problems


def _data_error(root: Path, problems: list[_Problem]) -> DataError:
    """All problems, grouped by kind, each kind with its remedy and the first ten."""
    lines = [f"ISIC 2018 in {root} cannot be used; problems: {len(problems)}"]
    for kind, remedy in _REMEDIES.items():
        found = [problem.text for problem in problems if problem.kind == kind]
        if found:
            lines += [f"{kind} ({len(found)}); remedy: {remedy}", f"  {listed(found, separator=_NEXT_LINE)}"]
    return DataError("\n".join(lines))


def _short(path: Path) -> str:
    return printable(f"{path.parent.name}/{path.name}")


# --- decoding --------------------------------------------------------------------------------------------------------


def _decode_all(
    listing: _Listing, image_size: int, n_workers: int, file: BinaryIO | None = None
) -> tuple[list[_Problem], list[_Problem], torch.Tensor]:
    """Decode every file in threads and write the pictures to ``file`` from its position on.

    The pictures are planes of ``image_size**2`` bytes. For each split all images (three planes each: red, green, blue)
    follow each other, then all masks.

    Returns:
        All problems, what is to be noted of sound files (degenerate masks, turned images), and the sum of each plane
        (:func:`alutils.data.splits.picture_sums`) in the order of the file.
    """
    area = image_size**2
    start = file.tell() if file else 0
    jobs: list[tuple[_Pair, int, int]] = []  # with the number of the image's first plane and of the mask's
    n_planes = 0
    for pairs in listing.values():
        masks_at = n_planes + 3 * len(pairs)
        jobs += [(pair, n_planes + 3 * i, masks_at + i) for i, pair in enumerate(pairs.values())]
        n_planes = masks_at + len(pairs)
    sums = torch.zeros(n_planes, dtype=torch.int64)
    writing = threading.Lock()

    def work(job: tuple[_Pair, int, int]) -> tuple[list[_Problem], list[_Problem]]:
        pair, image_at, mask_at = job
        problems, notes, images, masks = _decode_pair(pair, image_size)
        if file and not problems:
            with writing:  # here and not by the caller, so that decoded pictures never pile up in memory
                for at, array in ((image_at, images[0]), (mask_at, masks[0])):
                    planes = torch.from_numpy(np.ascontiguousarray(array))
                    sums[at : at + len(planes)] = picture_sums(planes[:, None])
                    file.seek(start + area * at)
                    file.write(planes.numpy())
        return problems, notes

    pool = ThreadPoolExecutor(n_workers)  # Pillow lets go of the interpreter's lock while it works
    label = f"decoding ISIC 2018 at {image_size} x {image_size}"
    problems: list[_Problem] = []
    notes: list[_Problem] = []
    try:
        # Filters hold for all threads. Pillow warns of large photographs, of palettes and of odd metadata: what it
        # can decode is right, and what it cannot decode raises an error.
        with warnings.catch_warnings(), progress_bar(label, len(jobs), "image") as bar:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            for found, noted in pool.map(work, jobs):
                problems += found
                notes += noted
                bar.update()
        return problems, notes, sums
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt or a full disk ends the work at once


def _decode_pair(
    pair: _Pair, image_size: int
) -> tuple[list[_Problem], list[_Problem], list[np.ndarray], list[np.ndarray]]:
    """What is wrong with the files of one id, what is to be noted of them, and those that could be decoded."""
    problems: list[_Problem] = []
    notes: list[_Problem] = []
    images, masks, sizes, orientations = [], [], [], []
    for path in pair.images:
        try:
            image, size, orientation = _decode_image(path, image_size)
        except Exception as error:  # Pillow raises a dozen types on broken files
            problems.append(_broken(path, error))
        else:
            images.append(image)
            sizes.append(size)
            orientations.append(orientation)
    for path in pair.masks:
        try:
            mask, size, orientation, levels = _decode_mask(path, image_size)
        except Exception as error:
            problems.append(_broken(path, error))
        else:
            masks.append(mask)
            sizes.append(size)
            orientations.append(orientation)
            if found := _check_levels(path, levels):
                (notes if found.kind in _DEGENERATE else problems).append(found)
    if len(images) == len(masks) == 1:
        if sizes[0] != sizes[1]:
            problems.append(_Problem("mask's size", _other_size(pair, *sizes, orientations[0])))
        elif orientations[0] != orientations[1]:
            notes.append(_Problem(_TURNED, _short(pair.images[0])))
    return problems, notes, images, masks


def _other_size(pair: _Pair, image: tuple[int, int], mask: tuple[int, int], orientation: int) -> str:
    text = f"{_short(pair.masks[0])}: {mask[0]} x {mask[1]} pixels, but its image has {image[0]} x {image[1]}"
    if mask != image[::-1]:
        return text
    why = f"EXIF data turn the image (orientation {orientation})" if orientation != 1 else "as EXIF data turn images"
    return f"{text}: {why}, and the mask was probably drawn on the turned one; turn the mask back"


def _decode_image(path: Path, image_size: int) -> tuple[np.ndarray, tuple[int, int], int]:
    """RGB, uint8 (3, image_size, image_size), the native width and height, and the EXIF orientation."""
    with _open_image(path) as image:
        native, orientation = image.size, _orientation(image)
        # libjpeg shrinks large photographs by 2, 4 or 8 while it decodes them. What both steps leave is at least
        # twice the target, so that the filter still antialiases: a test bounds the difference.
        image.draft(None, (2 * image_size, 2 * image_size))
        square = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(square).transpose(2, 0, 1), native, orientation


def _decode_mask(path: Path, image_size: int) -> tuple[np.ndarray, tuple[int, int], int, _Levels]:
    """0 or 1, uint8 (1, image_size, image_size), the native width and height, the EXIF orientation, and the levels."""
    with _open_image(path) as image:
        grey, orientation = image.convert("L"), _orientation(image)
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    levels = _Levels(*(_values(plane) if plane else set() for plane in (grey, alpha)))
    share = grey.point([0] + [255] * 255).resize((image_size, image_size), Image.Resampling.BOX)
    return (np.asarray(share) >= 128).astype(np.uint8)[None], grey.size, orientation, levels


def _values(plane: Image.Image) -> set[int]:
    return {value for value, count in enumerate(plane.histogram()) if count}


def _orientation(image: Image.Image) -> int:
    """How EXIF data turn the image, 2 to 8; 1: not at all."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as Pillow raises on damaged metadata, which cost no pixel
        return 1
    return orientation if orientation in range(2, 9) else 1


def _open_image(path: Path) -> Image.Image:
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # opening a pipe would wait for a writer, for ever
        raise OSError(errno.EINVAL, "is a pipe, a socket or a device, not a file")
    try:
        return _opened(lambda: path)
    except (MemoryError, _TooManyBits):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        pixels = _without_texts(path)  # Pillow refuses long ones, which cost no pixel
        if pixels is None:
            raise
        try:
            return _opened(lambda: io.BytesIO(pixels))
        except Exception:
            raise error from None


def _opened(source: Callable[[], Path | BinaryIO]) -> Image.Image:
    image = Image.open(source(), formats=_FORMATS)
    stored = str(image.tile[0][3]) if image.tile else image.mode
    if image.mode not in _EIGHT_BIT_MODES or "16" in stored:  # Pillow cuts 16-bit colours down to 8 in silence
        image.close()
        raise _TooManyBits(f"has pixels of type {stored}")
    if image.format == "PNG":  # decoding does not compare the checksums of the pixels' chunks
        with image:
            image.verify()
        image = Image.open(source(), formats=_FORMATS)
        try:
            image.load()  # texts may stand behind the pixels
        except BaseException:
            image.close()
            raise
    return image


def _without_texts(path: Path) -> bytes | None:
    """A PNG file without its sound chunks of text and colour profiles; None: it is none, or has none."""
    with path.open("rb") as file:
        if file.read(len(_PNG)) != _PNG:
            return None
        data = _PNG + file.read()
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind, sound = data[at + 4 : at + 8], zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if not (kind in _TEXT_CHUNKS and sound):
            kept.append(data[at:end])
        at = end
    pixels = b"".join(kept)
    return pixels if len(pixels) < len(data) else None


def _check_levels(path: Path, levels: _Levels) -> _Problem | None:
    grey, alpha = levels
    if len(grey) == 1 and len(alpha) > 1:
        return _Problem("mask in the alpha channel", f"{_short(path)}: {min(grey)} everywhere, alpha {_shown(alpha)}")
    if not (grey <= {0, 255} or grey <= {0, 1}):
        return _Problem("mask's values", f"{_short(path)}: {_shown(grey)}")
    if len(grey) == 1:
        return _Problem("mask all lesion" if max(grey) else "mask without lesion", _short(path))
    return None


def _shown(values: set[int]) -> str:
    return listed(sorted(values))


def _broken(path: Path, error: Exception) -> _Problem:
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno is not None:  # the system's own errors carry a number
        return _Problem("unreadable file", f"{_short(path)}: {error.strerror}")
    if isinstance(error, _TooManyBits):
        kind, reason = "more than 8 bits", str(error)
    elif isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            kind, reason = _what_it_is(file.read(1 << 16))
    else:
        kind, reason = "broken file", str(error)
    return _Problem(kind, f"{_short(path)}: {reason}")


def _what_it_is(head: bytes) -> tuple[str, str]:
    """The kind of problem with a file that Pillow takes for neither JPEG nor PNG, and what it is, by how it begins."""
    if not head:
        return "broken file", "is empty (0 bytes)"
    if head.startswith(b"\xff\xd8") and re.search(rb"\xff[\xc0-\xc3]..[\x0c\x10]", head, re.DOTALL):
        return "more than 8 bits", "is a JPEG of 12 or 16 bits"
    if head.startswith((b"\xff\xd8", _PNG[:4])):
        return "broken file", "begins as a JPEG or PNG, but is damaged"
    for at, magic, name in _OTHER_FORMATS:
        if head[at:].startswith(magic):
            return "another format", f"is {name}, not JPEG or PNG"
    if head.startswith(b"version https://git-lfs"):
        return "not an image", "is a Git LFS pointer, which stands for the image"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "not an image", "is a web page"
    if re.fullmatch(rb"[\t-\r -~]+", head[:512]):
        return "not an image", "is text"
    return "not an image", "is not a JPEG or PNG, nor another format that is known here"


# --- the cache -------------------------------------------------------------------------------------------------------


def _cache_folder(cache_dir: str | Path | None) -> Path:
    try:
        given = cache_dir or os.environ.get("ALUTILS_CACHE") or platformdirs.user_cache_dir("alutils")
        folder = Path(given).expanduser()
    except RuntimeError as error:  # no HOME and no entry of the user, as in containers
        raise DataError(
            f"no folder for the decode cache ({error}): set ALUTILS_CACHE to one, or pass cache_dir"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return folder


def _cannot_write(path: Path, error: OSError) -> DataError:
    reason = error.reason if isinstance(error, CannotWrite) else error.strerror or error
    return DataError(
        f"the decode cache {path} cannot be written ({reason}): pass another cache_dir, or set ALUTILS_CACHE"
    )


def _header(n_bytes: int) -> bytes:
    """The header of a NumPy file of ``n_bytes`` bytes; a multiple of 64 bytes long."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (n_bytes,)})
    return header.getvalue()


def _checksum(plane_sums: torch.Tensor, notes: bytes) -> bytes:
    return hashlib.sha256(plane_sums.numpy().astype("<i8").tobytes() + notes).digest()


def _open_cache(
    path: Path, n_bytes: int, image_size: int, *, warn: bool = False
) -> tuple[torch.Tensor, torch.Tensor, list[_Problem]] | None:
    """The planes of the cache, their sums and the notes, or None if there is no cache or it is damaged.

    The file is a NumPy header, the planes in the layout of :func:`_decode_all`, the notes in JSON, and the checksum of
    the sums and the notes. It is mapped into memory, and what is written to the planes goes to private pages.
    """
    if not path.exists():
        return None
    header = _header(n_bytes)
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) < len(header) + n_bytes + _CHECKSUM_BYTES:
                raise ValueError(f"it has {size} bytes instead of {len(header) + n_bytes + _CHECKSUM_BYTES} and more")
            if file.read(len(header)) != header:
                raise ValueError("its header is not the one that was written")
            flat = np.memmap(file, np.uint8, mode="c", offset=len(header), shape=(n_bytes,))
            file.seek(len(header) + n_bytes)
            rest = file.read()
        notes, stored = rest[:-_CHECKSUM_BYTES], rest[-_CHECKSUM_BYTES:]
        planes = torch.from_numpy(flat).view(-1, image_size, image_size)
        sums = picture_sums(planes[:, None])
        if _checksum(sums, notes) != stored:
            raise ValueError("its pixels do not fit its checksum")
    except (OSError, ValueError) as error:
        if warn:
            warnings.warn(f"the decode cache {path} is damaged and is made anew: {error}", stacklevel=3)
        return None
    return planes, sums, [_Problem(*note) for note in json.loads(notes)]


def _write_cache(
    path: Path,
    n_bytes: int,
    decode: Callable[[BinaryIO], tuple[list[_Problem], list[_Problem], torch.Tensor]],
    root: Path,
    refused: tuple[str, ...],
) -> None:
    """Decode into a file beside ``path`` that takes its place, unless there are problems. The lock must be held.

    Notes of the ``refused`` kinds alone are no reason to decode again for a call that takes them.
    """
    try:
        remove_leftovers(path.parent, path.name)
        free = shutil.disk_usage(path.parent).free
        if free < n_bytes:
            raise DataError(
                f"the decode cache needs {n_bytes / 1e9:.1f} GB in {path.parent}, where {free / 1e9:.1f} GB are free: "
                "make room, pass another cache_dir or a smaller image_size, or set ALUTILS_CACHE"
            )
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            file.write(_header(n_bytes))
            problems, notes, sums = decode(file)
            if problems:
                raise _data_error(root, problems + [note for note in notes if note.kind in refused])
            written = json.dumps(notes).encode()
            file.seek(0, os.SEEK_END)
            file.write(written + _checksum(sums, written))
    except OSError as error:
        raise _cannot_write(path, error) from None


def sweep_caches(cache_dir: str | Path | None = None, *, days: float = 30) -> list[Path]:
    """Delete the decode caches that :func:`load_isic2018` did not open for some days; the data itself is not touched.

    Args:
        cache_dir: their folder, as in :func:`load_isic2018`.
        days: at least 0; 0 deletes all of them.

    Returns:
        The deleted files.

    Raises:
        ValueError: if ``days`` is not such a number.
        DataError: if there is no such folder, or a file cannot be deleted.

    >>> import tempfile
    >>> sweep_caches(tempfile.mkdtemp())
    []
    """
    if not is_number(days) or not days >= 0:
        raise ValueError(f"days must be a number of at least 0, got {days!r}")
    try:
        unused = _unused(_cache_folder(cache_dir), days)
        for path in unused:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"the decode cache {error.filename} cannot be deleted: {error.strerror}") from None
    return unused


def _unused(folder: Path, days: float) -> list[Path]:
    latest = time.time() - 24 * 3600 * days
    return [path for path in sorted(folder.glob("isic2018-*.npy")) if path.stat().st_mtime <= latest]


def _report_unused(new: Path, days: int = 30) -> None:
    """After a cache was written: copies of the data no longer make one each, but sizes, versions and changes do."""
    unused, size = [], 0
    with suppress(OSError):  # another process sweeps them meanwhile
        unused = _unused(new.parent, days)
        size = sum(path.stat().st_size for path in unused)
    if unused:
        tqdm.write(
            f"decode caches that were not opened for {days} days: {len(unused)}, {size / 1e9:.1f} GB "
            f"({listed(path.name for path in unused)}); alutils.sweep_caches({str(new.parent)!r}) deletes them",
            file=sys.stderr,
        )


@contextmanager
def _one_process_at_a_time(path: Path) -> Iterator[None]:
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tqdm.write(f"waiting for the process that decodes into {path}", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        yield
    finally:
        lock.release()


def _as_splits(planes: torch.Tensor, sums: torch.Tensor, listing: _Listing) -> tuple[Splits, list[torch.Tensor]]:
    """Views of the planes in the layout of :func:`_decode_all`, and the sums of the images of each split."""
    splits, image_sums = [], []
    for pairs in listing.values():
        n = len(pairs)
        images, masks, planes = planes[: 3 * n], planes[3 * n : 4 * n], planes[4 * n :]
        splits.append(
            Split.trusted(images.unflatten(0, (n, 3)), masks.unflatten(0, (n, 1)), tuple(pairs), pd.DataFrame())
        )
        image_sums.append(sums[: 3 * n].view(n, 3).sum(1))
        sums = sums[4 * n :]
    return Splits(*splits), image_sums
