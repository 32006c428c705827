"""Pairs of an image and a mask: checked and decoded in parallel, once."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from alutils.data.cache import cache_folder, cached
from alutils.data.description import Description, read_description
from alutils.data.folders import Pair, Problem, list_pairs, refusal, short
from alutils.data.splits import Split, Splits, identical_pictures, picture_sums
from alutils.data.splitting import divide
from alutils.system.checks import DataError, expanded, listed
from alutils.system.cores import usable_cores
from alutils.system.progress import progress_bar
from alutils.system.settings import DegenerateMasks
from alutils.system.tensors import is_number

_FORMAT_VERSION = 5  # of the cache; raise it when the decoding or the order of the planes changes
# Pillow is not to try its other decoders on a mislabelled file
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PCX", "QOI", "PPM")
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_TURNED = "image turned by EXIF"

# What is noted of sound files: the kind of problem, how a warning calls it, and the remedy.
_KEPT = 'degenerate_masks="error" refuses them, "keep" loads them without a warning'
_NOTES = {
    "mask without lesion": ("masks without lesion", _KEPT),
    "mask all lesion": ("masks that are all lesion", _KEPT),
    _TURNED: (
        "images that EXIF data turn, but not their masks",
        "the pixels are taken as they are stored. If a mask was drawn on the turned image, store that image "
        "(PIL.ImageOps.exif_transpose)",
    ),
}


class _Decoded(NamedTuple):
    planes: np.ndarray  # uint8, (3, S, S) of an image, (1, S, S) with 0 and 1 of a mask
    native: tuple[int, int]  # width and height of the file
    turned: bool  # by EXIF data
    problem: Problem | None = None  # of a mask alone


def load_pairs(
    description: str | Path | Description,
    root: str | Path,
    image_size: int = 512,
    *,
    cache_dir: str | Path | None = None,
    degenerate_masks: DegenerateMasks | None = None,
    n_workers: int | None = None,
) -> Splits:
    """The images and masks of any data set, squashed to squares as in section IV-D.

    The first call decodes every file and writes a cache, which later calls verify and map into memory. Of the data, its
    key holds the names, the sizes and the first and last 4 KiB of all files, so that a copy uses the same cache. Delete
    the cache (:func:`~alutils.data.cache.sweep_caches`) after a change that leaves all of these as they were.

    Pixels are taken as they are stored, without transparency; of several frames, the first. Each opening warns of
    images that EXIF data turn while their masks are not turned, and of images in two splits whose pixels are all equal.
    JPEG files hold no checksum: damage that still decodes is not noticed.

    Args:
        description: of the folders, see :class:`~alutils.data.description.Description`: a shipped name such as "ph2",
            or the path of a YAML file.
        root: the folder that the description's paths start from. Images and masks are JPEG, PNG, BMP, TIFF, GIF,
            WebP, PCX, QOI or PNM files of any size.
        image_size: side of the squares in pixels, a multiple of 32 from 32 to 2048. Images are antialiased; a pixel of
            the mask is 1 where at least half of its area is lesion.
        cache_dir: folder of the cache; by default the environment variable ``ALUTILS_CACHE`` or, without it, the
            user's cache folder. It takes ``4 * image_size**2`` bytes per image: 3.9 GB for ISIC 2018 at 512.
        degenerate_masks: what to do with masks that show, at their native size, no lesion or nothing else: "warn" loads
            them and names them in a warning, "error" refuses them, "keep" loads them. By default what the description
            says, which is "warn" where it says nothing.
        n_workers: threads that decode; by default one for each CPU core that this process may use.

    Returns:
        The three splits, each sorted by id. Writing to the tensors changes neither the cache nor the files.

    Raises:
        ConfigError: if the description cannot be used.
        ValueError: if a parameter is out of range.
        DataError: if a folder is missing, or any file is missing, broken or not what it should be (one message counts
            each kind of problem, with its first ten files and the remedy), or the cache cannot be written.

    >>> load_pairs("ph2", "no/such/folder")
    Traceback (most recent call last):
    alutils.system.checks.DataError: PH2 cannot be read from ...no/such/folder: ...
    """
    return open_pairs(description, root, image_size, cache_dir, degenerate_masks, n_workers)


def open_pairs(  # longer than 60 lines: the order of its checks decides which error comes first
    description: str | Path | Description,
    root: str | Path,
    image_size: int,
    cache_dir: str | Path | None,
    degenerate_masks: str | None,
    n_workers: int | None,
) -> Splits:
    """The work of :func:`load_pairs`; its warnings point to the line that called the function around it."""
    if not (is_number(image_size, whole=True) and 32 <= image_size <= 2048 and image_size % 32 == 0):
        why = "because the U-Net halves the image five times"
        raise ValueError(f"image_size must be a multiple of 32 from 32 to 2048, {why}; got {image_size!r}")
    if degenerate_masks not in ("warn", "error", "keep", None):
        raise ValueError(f'degenerate_masks must be "warn", "error" or "keep", got {degenerate_masks!r}')
    if n_workers is not None and not (is_number(n_workers, whole=True) and n_workers >= 1):
        raise ValueError(f"n_workers must be None or an integer of at least 1, got {n_workers!r}")
    description = description if isinstance(description, Description) else read_description(description)
    degenerate_masks = degenerate_masks or description.degenerate_masks
    root = expanded("root", root).absolute()
    listing = list_pairs(root, description)
    divided, problems = divide(root, description, listing.pairs)
    problems = listing.problems + problems
    if not problems and (empty := [name for name, split in divided.items() if not split]):
        fit = sum(map(len, divided.values()))
        raise DataError(
            f"{description.name} in {root}: of the {fit} images that fit the description none is for "
            f"{', '.join(empty)}, and {listing.n_ignored} pictures do not fit; change its id, its paths or its split"
        )
    pairs = [pair for split in divided.values() for pair in split.values()]
    n = len(pairs)

    def refuse(problems: list[Problem]) -> None:
        accepted = [_TURNED] if degenerate_masks == "error" else _NOTES
        if wrong := [problem for problem in problems if problem.kind not in accepted]:
            raise refusal(description, root, wrong)

    def decode(file: BinaryIO | None = None, start: int = 0) -> tuple[list[Problem], torch.Tensor]:
        label = f"decoding {description.name} at {image_size} x {image_size}"
        lesion = _lesion_levels(description)
        found, sums = _decode_all(pairs, image_size, lesion, n_workers or usable_cores(), label, file, start)
        if any(problem.kind not in _NOTES for problem in problems + found):
            refuse(problems + found)
        return found, sums

    if problems:
        decode()
    what = [_FORMAT_VERSION, image_size, listing.fingerprint, _lesion_levels(description), *map(list, divided.values())]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    name = "".join(c for c in description.name.lower() if c.isalnum())[:60]
    path = cache_folder(cache_dir) / f"{name}-{image_size}-{key}.npy"
    planes, sums, notes = cached(path, (4 * n, image_size, image_size), decode)
    found = [Problem(*note) for note in notes]
    refuse(found)

    sizes = [len(ids) for ids in divided.values()]
    images, masks = (planes[a:b].unflatten(0, (n, -1)).split(sizes) for a, b in ((0, 3 * n), (3 * n, 4 * n)))
    names = map(tuple, divided.values())
    parts = (Split.trusted(*part, pd.DataFrame()) for part in zip(images, masks, names, strict=True))
    splits = Splits(*parts, source=description.name, n_ignored=listing.n_ignored)
    same = identical_pictures(splits, image_sums=sums[: 3 * n].view(n, 3).sum(1).split(sizes))
    spoken = [note for note in found if note.kind == _TURNED or degenerate_masks == "warn"]
    for said in _sayings(spoken, same):
        warnings.warn(f"{description.name} in {root} has {said}", stacklevel=3)
    return splits


def _lesion_levels(description: Description) -> list[int] | None:
    """The grey levels that are lesion; None: masks hold 0 and 255, or 0 and 1."""
    if description.threshold is not None:
        return list(range(description.threshold, 256))
    return None if description.lesion_values is None else list(description.lesion_values)


def _sayings(notes: list[Problem], same: pd.DataFrame) -> Iterator[str]:
    """What a user should know of files that can be used."""
    for kind, (name, remedy) in _NOTES.items():
        if found := [note.text for note in notes if note.kind == kind]:
            yield f"{name} ({len(found)}): {listed(found)}; {remedy}"
    if len(same):
        shown = listed(f"{p.first_id} ({p.first_split}) = {p.second_id} ({p.second_split})" for p in same.itertuples())
        yield (
            f"identical images in two splits: {shown}; remedy: take one of each out: the model would be evaluated on "
            "what it was trained on"
        )


def _decode_all(  # seven parameters: what to decode, how, and whom to tell
    pairs: list[Pair],
    image_size: int,
    lesion: list[int] | None,
    n_workers: int,
    label: str,
    file: BinaryIO | None,
    start: int,
) -> tuple[list[Problem], torch.Tensor]:
    """All problems and notes, and the sum of each plane.

    The planes go to ``file``, from the byte ``start`` on: red, green and blue of each image, then all masks.
    """
    sums = torch.zeros(4 * len(pairs), dtype=torch.int64)
    writing = threading.Lock()

    def work(i: int) -> list[Problem]:
        found, pictures = _decode_pair(pairs[i], image_size, lesion)
        if file and len(pictures) == 2:
            for at, picture in zip((3 * i, 3 * len(pairs) + i), pictures, strict=True):
                planes = torch.from_numpy(np.ascontiguousarray(picture))
                sums[at : at + len(planes)] = picture_sums(planes[:, None])
                with writing:  # here and not by the caller, so that decoded pictures never pile up in memory
                    file.seek(start + image_size**2 * at)
                    file.write(planes.numpy())
        return found

    problems: list[Problem] = []
    pool = ThreadPoolExecutor(n_workers)  # Pillow releases the interpreter's lock while it works
    try:
        with warnings.catch_warnings(), progress_bar(label, len(pairs), "image") as bar:
            warnings.filterwarnings("ignore", module=r"PIL\.")  # large photographs and odd metadata change no pixel
            for found in pool.map(work, range(len(pairs))):
                problems += found
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt or a full disk ends the work at once
    return problems, sums


def _decode_pair(pair: Pair, image_size: int, lesion: list[int] | None) -> tuple[list[Problem], list[np.ndarray]]:
    """What is wrong with the files of one id or noted of them, and the planes of those that were decoded."""
    found: list[Problem] = []
    decoded: list[_Decoded] = []
    works = [(pair.image, lambda path: _decode_image(path, image_size))] if pair.image else []
    works += [(pair.masks[0], lambda _: _decode_masks(pair.masks, image_size, lesion))] if pair.masks else []
    for path, decode in works:
        try:
            decoded.append(decode(path))
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises a dozen types on broken files
            found.append(_undecodable(getattr(error, "path", path), error))
    found += [picture.problem for picture in decoded if picture.problem]
    if len(decoded) == 2:
        image, mask = decoded
        if image.native != mask.native:
            of_image, of_mask = (" x ".join(map(str, picture.native)) for picture in decoded)
            text = f"{short(pair.masks[0])}: {of_mask} pixels, but its image has {of_image}"
            found.append(Problem("mask's size", text))
        elif image.turned and not mask.turned:
            found.append(Problem(_TURNED, short(pair.image)))
    return found, [picture.planes for picture in decoded]


def _undecodable(path: Path, error: Exception) -> Problem:
    if isinstance(error, OSError) and error.errno is not None:  # the system's own errors carry a number
        return Problem("unreadable file", f"{short(path)}: {error.strerror}")
    words = str(error)
    if isinstance(error, UnidentifiedImageError):  # whose words say no more than the path
        with path.open("rb") as file:
            words = f"cannot identify the {path.stat().st_size} bytes, which begin with {file.read(24)!r}"
    return Problem("cannot be decoded", f"{short(path)}: {words}")


def _decode_image(path: Path, image_size: int) -> _Decoded:
    with _opened(path) as image:
        native, turned = image.size, _turned(image)
        # libjpeg shrinks large photographs by 2, 4 or 8 while it decodes them. What both steps leave is at least
        # twice the target, so that the filter still antialiases: a test bounds the difference.
        image.draft(None, (2 * image_size, 2 * image_size))
        square = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return _Decoded(np.asarray(square).transpose(2, 0, 1), native, turned)


def _decode_masks(paths: Sequence[Path], image_size: int, lesion: list[int] | None) -> _Decoded:
    """One mask: of several, what is lesion in any of them."""
    united, turned, problem = None, False, None
    for path in paths:
        try:
            with _opened(path) as image:
                grey, turned = image.convert("L"), _turned(image)
        except Exception as error:
            error.path = path
            raise
        levels = [level for _, level in grey.getcolors()]
        if lesion is None and not (set(levels) <= {0, 255} or set(levels) <= {0, 1}):
            problem = problem or Problem("mask's values", f"{short(path)}: {listed(levels)}")
        one = grey.point([255 * (level > 0 if lesion is None else level in lesion) for level in range(256)])
        if united is not None and united.size != one.size:
            text = f"{short(path)}: {one.size} pixels, but {short(paths[0])} has {united.size}"
            problem = problem or Problem("mask's size", text)
        else:
            united = one if united is None else ImageChops.lighter(united, one)
    share = united.resize((image_size, image_size), Image.Resampling.BOX)
    mask = (np.asarray(share) >= 128).astype(np.uint8)[None]
    if problem is None and len(colours := united.getcolors()) == 1:
        kind = "mask all lesion" if colours[0][1] else "mask without lesion"
        problem = Problem(kind, short(paths[0]))
    return _Decoded(mask, united.size, turned, problem)


def _turned(image: Image.Image) -> bool:
    with suppress(Exception):  # Pillow raises on damaged metadata, which change no pixel
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return False


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer, for ever
        raise OSError(errno.EINVAL, "is a folder, a pipe or a device, not a file")
    with Image.open(path, formats=_FORMATS) as image:
        stored = image.tile[0][3] if image.tile else image.mode
        kind, *more = stored if isinstance(stored, tuple) else (stored,)
        deep = "16" in str(kind) or (image.format == "PPM" and max(more, default=0) > 255)
        if image.mode not in _EIGHT_BIT_MODES or deep:  # Pillow cuts 16-bit colours down to 8 in silence
            raise ValueError(f"has pixels of type {kind}, not of 8 bits per channel")
        if image.format != "PNG":
            yield image
            return
        image.verify()  # decoding does not compare the checksums of the pixels' chunks
    with Image.open(path, formats=_FORMATS) as image:
        image.load()  # first, as metadata may stand behind the pixels
        yield image
