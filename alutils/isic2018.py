"""ISIC 2018 Task 1 from its folders: every file checked, decoded once in parallel, memory-mapped from then on."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import pandas as pd
import platformdirs
import torch
from filelock import FileLock, Timeout
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from alutils.config import expanded
from alutils.cores import usable_cores
from alutils.data import DataError, Split, Splits, identical_pictures, picture_sums
from alutils.files import CannotWrite, remove_leftovers, replacing
from alutils.progress import progress_bar

OFFICIAL_COUNTS = {"train": 2594, "val": 100, "test": 1000}
"""Images in the official training, validation and test set (section IV-A)."""

FOLDERS = {
    "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
}
"""The folders of the images and of the masks of each split, as in the official archives."""

_FORMAT_VERSION = 2  # of the cache; raise it when the decoding or the layout of the file changes
_EXTENSIONS = {".jpg", ".jpeg", ".png"}
_FORMATS = ("JPEG", "PNG")  # Pillow is not to try its other decoders on a mislabelled file
_MASK_SUFFIX = "_segmentation"
_MOST_NAMED = 10  # pairs of identical images in the warning
_CHECKSUM_BYTES = 32  # SHA-256, at the end of the cache
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}

# The kinds of problem, in the order in which they are reported, each with its remedy.
_REMEDIES = {
    "missing mask": "put the masks there, or take the images out",
    "missing image": "put the images there, or take the masks out",
    "mask's name": f"masks are called <image>{_MASK_SUFFIX}.png: rename them, or take them out",
    "several files of one name": "keep one of them",
    "id in two splits": "keep it in one: the model would be evaluated on what it was trained on",
    "unreadable file": "check the permissions, the links and the disk",
    "broken file": "delete the folders that hold them and run download_isic2018, or restore the files from a backup",
    "mask's size": "each mask needs the native size of its image; restore the files from the official archives",
    "mask's values": "masks hold 0 and 255, or 0 and 1, in 8 bits: store them as such, without lossy compression",
    "mask without lesion": 'correct them, or load with degenerate_masks="keep"',
    "mask all lesion": 'correct them, or load with degenerate_masks="keep"',
}


class _Problem(NamedTuple):
    kind: str
    text: str


@dataclass
class _Pair:
    """The files of one id; what is right is one image and one mask."""

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)


_Listing = dict[str, dict[str, _Pair]]  # split -> id -> files, sorted by id


def load_isic2018(
    root: str | Path,
    image_size: int = 512,
    *,
    cache_dir: str | Path | None = None,
    degenerate_masks: Literal["error", "keep"] = "error",
    n_workers: int | None = None,
) -> Splits:
    """The images and masks of ISIC 2018 Task 1, squashed to squares as in section IV-D.

    The first call decodes every file and writes a cache; later calls map the cache into memory. It is made anew when a
    file changes, and can be deleted at any time. A subset of the official files works too: :func:`isic2018_report`
    says how much is there.

    Pixels are taken as they are stored: an orientation in the EXIF data is ignored, in images and in masks alike, so
    that the two stay on one another. Of files with several frames the first is taken, and transparency is dropped. The
    checksums in PNG files are verified; JPEG has none, so that damage which still decodes cannot be seen there.

    The cache carries a checksum that each opening verifies. Images of two splits that are equal in all pixels are
    warned of at each opening: the model would be evaluated on what it was trained on.

    Args:
        root: the folder with the six official folders (:data:`FOLDERS`), as :func:`alutils.download.download_isic2018`
            leaves it. Images and masks are JPEG or PNG of any size; other files are ignored.
        image_size: side of the squares in pixels, a multiple of 32 from 32 to 2048. Images are antialiased; a pixel of
            the mask is 1 where at least half of its area is lesion.
        cache_dir: folder of the cache; by default the environment variable ``ALUTILS_CACHE`` or, without it, the
            user's cache folder. It takes ``4 * image_size**2`` bytes an image: 3.9 GB for the full set at 512.
        degenerate_masks: "error" refuses masks that show, at their native size, no lesion or nothing else; "keep"
            loads them.
        n_workers: threads that decode; by default one for each CPU core that this process may use.

    Returns:
        The three splits, each sorted by id. The tensors can be written to: that changes neither the cache nor the
        files.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if a folder is missing, or any file is missing, broken or not what it should be. One message lists
            them all with the remedies, and no cache is written.

    >>> load_isic2018("no/such/folder")
    Traceback (most recent call last):
    alutils.data.DataError: ISIC 2018 cannot be read from no/such/folder: ...
    """
    if not (isinstance(image_size, int) and 32 <= image_size <= 2048 and image_size % 32 == 0):
        raise ValueError(
            "image_size must be a multiple of 32 from 32 to 2048, because the U-Net halves the image five times; "
            f"got {image_size!r}"
        )
    if degenerate_masks not in ("error", "keep"):
        raise ValueError(f'degenerate_masks must be "error" or "keep", got {degenerate_masks!r}')
    if n_workers is not None and not (type(n_workers) is int and n_workers >= 1):
        raise ValueError(f"n_workers must be None or an integer of at least 1, got {n_workers!r}")

    root = expanded("root", root)
    if cache_dir:
        cache_dir = expanded("cache_dir", cache_dir)
    listing, problems, fingerprint = _list_files(root)
    decode = partial(_decode_all, listing, image_size, degenerate_masks == "error", n_workers or usable_cores())
    if problems:
        raise _data_error(root, problems + decode()[0])

    # The policy is part of the key, so that masks which "keep" let through never reach a call with "error".
    settings = f"{_FORMAT_VERSION} {image_size} {degenerate_masks}"
    key = hashlib.sha256(f"{settings} {fingerprint}".encode()).hexdigest()[:24]
    path = _cache_folder(cache_dir) / f"isic2018-{image_size}-{key}.npy"
    n_bytes = sum(len(pairs) for pairs in listing.values()) * 4 * image_size**2

    cache = _open_cache(path, n_bytes, image_size)
    if cache is None:
        with _one_process_at_a_time(path):
            cache = _open_cache(path, n_bytes, image_size, warn=True)  # by now another process may have written it
            if cache is None:
                _write_cache(path, n_bytes, decode, root)
                cache = _open_cache(path, n_bytes, image_size)
    if cache is None:
        raise DataError(
            f"the decode cache {path} does not hold what was just written to it: check the disk, or pass another "
            "cache_dir"
        )
    splits, image_sums = _as_splits(*cache, listing)
    _warn_of_identical_pictures(root, identical_pictures(splits, image_sums=image_sums))
    return splits


def _warn_of_identical_pictures(root: Path, pairs: pd.DataFrame) -> None:
    if pairs.empty:
        return
    shown = [
        f"{p.first_id} ({p.first_split}) = {p.second_id} ({p.second_split})" for p in pairs[:_MOST_NAMED].itertuples()
    ]
    more = f", ... ({len(pairs)} pairs)" if len(pairs) > _MOST_NAMED else ""
    warnings.warn(
        f"ISIC 2018 in {root} has identical images in two splits: {_printable(', '.join(shown))}{more}; remedy: "
        "take one of each out: the model would be evaluated on what it was trained on",
        stacklevel=3,
    )


def isic2018_report(splits: Splits) -> pd.DataFrame:
    """How much of the official data set was found: a row a split, with the images found and the official count.

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


# --- what is there ---------------------------------------------------------------------------------------------------


def _list_files(root: Path) -> tuple[_Listing, list[_Problem], str]:
    """All pairs, the problems that the names alone show, and a hash of all names, sizes and times of change."""
    try:
        _check_folders(root)
        return _list_folders(root)
    except OSError as error:
        raise DataError(
            f"ISIC 2018 cannot be read from {root}: {error.filename}: {error.strerror}; remedy: check the permissions "
            "and the disk"
        ) from None


def _list_folders(root: Path) -> tuple[_Listing, list[_Problem], str]:
    listing: _Listing = {}
    problems: list[_Problem] = []
    digest = hashlib.sha256()
    for split, folders in FOLDERS.items():
        pairs: dict[str, _Pair] = {}
        for folder, is_mask in zip(folders, (False, True), strict=True):
            for name, size, changed in _image_files(root / folder):
                path = root / folder / name
                digest.update(os.fsencode(f"{folder}/{name} {size} {changed}\n"))
                if not is_mask:
                    pairs.setdefault(path.stem, _Pair()).images.append(path)
                elif path.stem.endswith(_MASK_SUFFIX):
                    pairs.setdefault(path.stem.removesuffix(_MASK_SUFFIX), _Pair()).masks.append(path)
                else:
                    problems.append(_Problem("mask's name", _short(path)))
        listing[split] = dict(sorted(pairs.items()))
    return listing, problems + _check_names(listing), digest.hexdigest()


def _image_files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files in ``folder`` that look like images, sorted by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in _EXTENSIONS:
                continue
            try:
                status = entry.stat()
                found.append((entry.name, status.st_size, status.st_mtime_ns))
            except OSError:  # a broken link: decoding it will say so, together with the other problems
                found.append((entry.name, -1, -1))
    return sorted(found)


def _check_folders(root: Path) -> None:
    """Raise one error that names every official folder that is missing or holds no images."""
    names = [name for pair in FOLDERS.values() for name in pair]
    missing = [name for name in names if not (root / name).is_dir()]
    empty = [name for name in names if name not in missing and not _image_files(root / name)]
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
        shown = _printable(", ".join(inside[:12])) + (f", ... ({len(inside)} in all)" if len(inside) > 12 else "")
        lines.append(f"found in {root}: {shown or 'nothing'}")
        deeper = [child for child in sorted(root.iterdir()) if any((child / name).is_dir() for name in names)]
        for child in deeper:
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
                problems.append(_Problem("id in two splits", f"{_printable(name)}: {split_of[name]} and {split}"))
            split_of[name] = split
    return problems


def _data_error(root: Path, problems: list[_Problem]) -> DataError:
    """All problems, grouped by kind, each kind with its remedy."""
    lines = [f"ISIC 2018 in {root} cannot be used; problems: {len(problems)}"]
    for kind, remedy in _REMEDIES.items():
        found = [problem.text for problem in problems if problem.kind == kind]
        if found:
            lines += [f"{kind} ({len(found)}); remedy: {remedy}", *(f"  {text}" for text in found)]
    return DataError("\n".join(lines))


def _short(path: Path) -> str:
    return _printable(f"{path.parent.name}/{path.name}")


def _printable(text: str) -> str:
    """Line breaks and bytes that are no text, as Python escapes them: a message names each file on one line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# --- decoding --------------------------------------------------------------------------------------------------------


def _decode_all(
    listing: _Listing, image_size: int, refuse_degenerate: bool, n_workers: int, file: BinaryIO | None = None
) -> tuple[list[_Problem], torch.Tensor]:
    """Decode every file in threads and write the pictures to ``file`` from its position on.

    The pictures are planes of ``image_size**2`` bytes. For each split all images (three planes each: red, green, blue)
    follow each other, then all masks.

    Returns:
        All problems, and the sum of each plane (:func:`alutils.data.picture_sums`) in the order of the file.
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

    def work(job: tuple[_Pair, int, int]) -> list[_Problem]:
        pair, image_at, mask_at = job
        problems, images, masks = _decode_pair(pair, image_size, refuse_degenerate)
        if file and not problems:
            with writing:  # here and not by the caller, so that decoded pictures never pile up in memory
                for at, array in ((image_at, images[0]), (mask_at, masks[0])):
                    planes = torch.from_numpy(np.ascontiguousarray(array))
                    sums[at : at + len(planes)] = picture_sums(planes[:, None])
                    file.seek(start + area * at)
                    file.write(planes.numpy())
        return problems

    pool = ThreadPoolExecutor(n_workers)  # Pillow lets go of the interpreter's lock while it works
    label = f"decoding ISIC 2018 at {image_size} x {image_size}"
    problems: list[_Problem] = []
    try:
        # Filters hold for all threads. Pillow warns of large photographs, of palettes and of odd metadata: what it
        # can decode is right, and what it cannot decode raises an error.
        with warnings.catch_warnings(), progress_bar(label, len(jobs), "image") as bar:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            for found in pool.map(work, jobs):
                problems += found
                bar.update()
        return problems, sums
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt or a full disk ends the work at once


def _decode_pair(
    pair: _Pair, image_size: int, refuse_degenerate: bool
) -> tuple[list[_Problem], list[np.ndarray], list[np.ndarray]]:
    """What is wrong with the files of one id, and those that could be decoded."""
    problems: list[_Problem] = []
    images, masks, sizes = [], [], []
    for path in pair.images:
        try:
            image, size = _decode_image(path, image_size)
        except Exception as error:  # Pillow raises a dozen types on broken files
            problems.append(_broken(path, error))
        else:
            images.append(image)
            sizes.append(size)
    for path in pair.masks:
        try:
            mask, size, values = _decode_mask(path, image_size)
        except Exception as error:
            problems.append(_broken(path, error))
        else:
            masks.append(mask)
            sizes.append(size)
            problems += _check_values(path, values, refuse_degenerate)
    if len(images) == len(masks) == 1 and sizes[0] != sizes[1]:
        (width, height), (mask_width, mask_height) = sizes
        text = f"{_short(pair.masks[0])}: {mask_width} x {mask_height} pixels, but its image has {width} x {height}"
        problems.append(_Problem("mask's size", text))
    return problems, images, masks


def _decode_image(path: Path, image_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """RGB, uint8 (3, image_size, image_size), and the native width and height."""
    with _open_image(path) as image:
        native = image.size
        # libjpeg shrinks large photographs by 2, 4 or 8 while it decodes them. What both steps leave is at least
        # twice the target, so that the filter still antialiases: a test bounds the difference.
        image.draft(None, (2 * image_size, 2 * image_size))
        square = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(square).transpose(2, 0, 1), native


def _decode_mask(path: Path, image_size: int) -> tuple[np.ndarray, tuple[int, int], set[int]]:
    """0 or 1, uint8 (1, image_size, image_size), the native width and height, and the values found in the file."""
    with _open_image(path) as image:
        grey = image.convert("L")
    values = {value for value, count in enumerate(grey.histogram()) if count}
    share = grey.point([0] + [255] * 255).resize((image_size, image_size), Image.Resampling.BOX)
    return (np.asarray(share) >= 128).astype(np.uint8)[None], grey.size, values


def _open_image(path: Path) -> Image.Image:
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # opening a pipe would wait for a writer, for ever
        raise OSError(errno.EINVAL, "is a pipe, a socket or a device, not a file")
    image = Image.open(path, formats=_FORMATS)
    stored = str(image.tile[0][3]) if image.tile else image.mode
    if image.mode not in _EIGHT_BIT_MODES or "16" in stored:  # Pillow cuts 16-bit colours down to 8 in silence
        image.close()
        raise ValueError(f"has pixels of type {stored}; store 8 bits a channel")
    if image.format == "PNG":  # decoding does not compare the checksums of the pixels' chunks
        with image:
            image.verify()
        image = Image.open(path, formats=_FORMATS)
    return image


def _check_values(path: Path, values: set[int], refuse_degenerate: bool) -> list[_Problem]:
    """A list of at most one problem."""
    if not (values <= {0, 255} or values <= {0, 1}):
        shown = ", ".join(map(str, sorted(values)[:6])) + (f", ... ({len(values)} values)" if len(values) > 6 else "")
        return [_Problem("mask's values", f"{_short(path)}: {shown}")]
    if refuse_degenerate and len(values) == 1:
        return [_Problem("mask all lesion" if max(values) else "mask without lesion", _short(path))]
    return []


def _broken(path: Path, error: Exception) -> _Problem:
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno is not None:  # the system's own errors carry a number
        return _Problem("unreadable file", f"{_short(path)}: {error.strerror}")
    if path.stat().st_size == 0:
        return _Problem("broken file", f"{_short(path)}: is empty (0 bytes)")
    reason = "is not a JPEG or PNG file" if isinstance(error, UnidentifiedImageError) else error
    return _Problem("broken file", f"{_short(path)}: {reason}")


# --- the cache -------------------------------------------------------------------------------------------------------


def _cache_folder(cache_dir: str | Path | None) -> Path:
    folder = Path(cache_dir or os.environ.get("ALUTILS_CACHE") or platformdirs.user_cache_dir("alutils")).expanduser()
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


def _checksum(plane_sums: torch.Tensor) -> bytes:
    return hashlib.sha256(plane_sums.numpy().astype("<i8").tobytes()).digest()


def _open_cache(
    path: Path, n_bytes: int, image_size: int, *, warn: bool = False
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The planes of the cache and their sums, or None if there is no cache or it is damaged.

    The file is a NumPy header, the planes in the layout of :func:`_decode_all`, and the checksum of their sums. It is
    mapped into memory, and what is written to the planes goes to private pages.
    """
    if not path.exists():
        return None
    header = _header(n_bytes)
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != len(header) + n_bytes + _CHECKSUM_BYTES:
                raise ValueError(f"it has {size} bytes instead of {len(header) + n_bytes + _CHECKSUM_BYTES}")
            if file.read(len(header)) != header:
                raise ValueError("its header is not the one that was written")
            flat = np.memmap(file, np.uint8, mode="c", offset=len(header), shape=(n_bytes,))
            file.seek(-_CHECKSUM_BYTES, os.SEEK_END)
            stored = file.read()
        planes = torch.from_numpy(flat).view(-1, image_size, image_size)
        sums = picture_sums(planes[:, None])
        if _checksum(sums) != stored:
            raise ValueError("its pixels do not fit its checksum")
    except (OSError, ValueError) as error:
        if warn:
            warnings.warn(f"the decode cache {path} is damaged and is made anew: {error}", stacklevel=3)
        return None
    return planes, sums


def _write_cache(
    path: Path, n_bytes: int, decode: Callable[[BinaryIO], tuple[list[_Problem], torch.Tensor]], root: Path
) -> None:
    """Decode into a file beside ``path`` that takes its place, unless there are problems. The lock must be held."""
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
            problems, sums = decode(file)
            if problems:
                raise _data_error(root, problems)
            file.seek(0, os.SEEK_END)
            file.write(_checksum(sums))
    except OSError as error:
        raise _cannot_write(path, error) from None


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
        splits.append(Split(images.unflatten(0, (n, 3)), masks.unflatten(0, (n, 1)), tuple(pairs)))
        image_sums.append(sums[: 3 * n].view(n, 3).sum(1))
        sums = sums[4 * n :]
    return Splits(*splits), image_sums
