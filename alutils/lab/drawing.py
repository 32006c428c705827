"""What a person draws: lassos that mark or erase lesion, in the pixels that the person decides and nowhere else.

No screen is needed here; ``alutils.lab.annotator`` puts a :class:`Drawing` on one.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

import numpy as np
import pandas as pd
import PIL.Image
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from skimage.draw import polygon2mask

from alutils.data.splits import Split
from alutils.metrics import dice_score
from alutils.system.checks import DataError, expanded
from alutils.system.files import replacing, write_text

LONGEST_PAUSE = 30.0
"""Seconds: of a longer time without a stroke, a button or a movement of the mouse only so much counts as work."""

_LONGEST_STEM = 200
"""Bytes: most file systems take names of 255, and ours have endings."""

_Corner = tuple[float, float]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Stroke(_Record):
    """A lasso: its corners (x, y) in pixels, (0, 0) the centre of the upper left pixel, and whether it erases."""

    corners: tuple[_Corner, ...]
    erase: bool


class DrawingRecord(_Record):
    """What the JSON of a drawing says: how it was made, and the checksums of what it belongs to."""

    id: str
    mode: Literal["band", "full"]
    height: _Count
    width: _Count
    seconds: float = Field(ge=0, description="of work, see Drawing")
    n_strokes: _Count = Field(description="lassos that changed something, those taken back included")
    pixels_changed: _Count = Field(description="by all these lassos together, so a pixel may count more than once")
    pixels_decided: _Count = Field(description="that the person was asked for")
    strokes: tuple[Stroke, ...] = Field(description="those not taken back: replay() makes the mask of them")
    where: str = Field(description="checksum of the pixels asked for")
    start: str = Field(description="checksum of the mask before the first stroke")
    mask: str = Field(description="checksum of the mask after the last one")
    tau_u: float | None
    date: str


@dataclass(frozen=True, eq=False)
class Request:
    """One image that a person is asked to annotate.

    Args:
        id: of the image; it names the files, see :func:`file_stem`.
        image: uint8 (3, H, W), RGB.
        where: bool or 0 and 1, (1, H, W): the pixels that the person decides. All of them: the whole image is drawn.
        start: 0 and 1, (1, H, W): the mask before the first stroke.
        tau_u: the threshold that made the band, where there is one; it is only recorded.

    Raises:
        ValueError: if a shape or a value does not fit, or the id cannot name a file.

    >>> band = torch.tensor([[[0, 1, 1, 0]]])
    >>> request = Request("ISIC_1", torch.zeros(3, 1, 4, dtype=torch.uint8), band, torch.zeros(1, 1, 4))
    >>> request.mode, request.n_decided
    ('band', 2)
    """

    id: str
    image: np.ndarray | torch.Tensor
    where: np.ndarray | torch.Tensor
    start: np.ndarray | torch.Tensor
    tau_u: float | None = None

    def __post_init__(self) -> None:
        file_stem(self.id)
        for name in ("image", "where", "start"):
            value = getattr(self, name)
            value = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            object.__setattr__(self, name, value)
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or len(self.image) != 3:
            raise ValueError(f"image must be uint8 of shape (3, H, W), got {self.image.dtype} {self.image.shape}")
        for name in ("where", "start"):
            mask = getattr(self, name)
            if mask.shape != (1, *self.image.shape[1:]) or not np.isin(mask, (0, 1)).all():
                raise ValueError(f"{name} must be 0 and 1 of shape {(1, *self.image.shape[1:])}, got {mask.shape}")
            object.__setattr__(self, name, mask.astype(bool))

    @property
    def mode(self) -> Literal["band", "full"]:
        """Whether the person decides some of the pixels or all."""
        return "full" if self.where.all() else "band"

    @property
    def n_decided(self) -> int:
        """Pixels that the person decides."""
        return int(self.where.sum())


def make_requests(
    split: Split,
    indices: torch.Tensor,
    where: torch.Tensor | None = None,
    suggestion: torch.Tensor | None = None,
    *,
    tau_u: float | None = None,
) -> list[Request]:
    """Ask for the pixels ``where`` of some images. Every pixel asked for starts as background.

    So it is in both ways of annotating, band and whole image, which makes them comparable: nobody is shown an answer to
    agree with. What if the model's guess were shown in the band too is another experiment (section VI names it); for
    that one, make each :class:`Request` with a ``start`` of your own.

    Args:
        split: the images.
        indices: int64 (n,), positions in it.
        where: bool (n, 1, H, W); None: all pixels.
        suggestion: uint8 (n, 1, H, W), the model's labels, taken outside of ``where``; None: background.
        tau_u: recorded with the drawings.

    >>> images, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    >>> [request.id for request in make_requests(Split(images, masks, ("a", "b")), torch.tensor([1]))]
    ['b']
    """
    shape = (len(indices), 1, *split.images.shape[2:])
    where = torch.ones(shape, dtype=torch.bool) if where is None else where.cpu().bool()
    start = torch.zeros(shape, dtype=torch.uint8) if suggestion is None else suggestion.cpu() * ~where
    return [
        Request(split.ids[i], split.images[i], where[place], start[place], tau_u)
        for place, i in enumerate(indices.tolist())
    ]


class Drawing:
    """One image being annotated.

    Args:
        request: the image, the pixels to decide and the mask to start from.
        clock: seconds, from any beginning.
        record: of the same drawing, saved before: its strokes and counts are gone on from.

    Attributes:
        mask: bool (1, H, W), as it stands. Outside of ``request.where`` it is ``request.start``, whatever is drawn.
        saved: whether a file holds it as it stands.
        strokes: the lassos not taken back.
        n_strokes: lassos that changed something, those taken back included.
        pixels_changed: by all these lassos together.
        seconds: of work: between one :meth:`touch` and the next, a long one counting :data:`LONGEST_PAUSE`; not from
            :meth:`pause` or :meth:`save` to the next.

    >>> blank = torch.zeros(3, 8, 8, dtype=torch.uint8)
    >>> left_half = torch.arange(8).expand(1, 8, 8) < 4
    >>> drawing = Drawing(Request("a", blank, left_half, torch.zeros(1, 8, 8)))
    >>> drawing.lasso([(1.5, 1.5), (6.5, 1.5), (6.5, 3.5), (1.5, 3.5)])  # five by two pixels, half in the band
    4
    """

    def __init__(
        self, request: Request, *, clock: Callable[[], float] = time.monotonic, record: DrawingRecord | None = None
    ) -> None:
        self.request, self._clock, self._seen = request, clock, None
        self.strokes = list(record.strokes) if record else []
        self.n_strokes, self.pixels_changed, self.seconds = (
            (record.n_strokes, record.pixels_changed, record.seconds) if record else (0, 0, 0.0)
        )
        self.mask, self.saved = replay(request, self.strokes), record is not None

    @property
    def n_marked(self) -> int:
        """Pixels, of those that the person decides, that stand as lesion."""
        return int((self.mask & self.request.where).sum())

    def touch(self) -> None:
        """The person is at work, now."""
        now = self._clock()
        if self._seen is not None:
            self.seconds += min(now - self._seen, LONGEST_PAUSE)
        self._seen = now

    def pause(self) -> None:
        """The person turns to something else: what follows does not count until the next :meth:`touch`."""
        self.touch()
        self._seen = None

    def lasso(self, corners: Sequence[_Corner] | np.ndarray, *, erase: bool = False) -> int:
        """Mark what lies in a polygon as lesion, or as background; returns the pixels that changed.

        Args:
            corners: (x, y) in pixels, (0, 0) the centre of the upper left one; the last one is joined to the first. A
                lasso of fewer than three corners, or one that changes nothing, is a slip of the mouse and does not
                count.
            erase: background instead of lesion.

        Raises:
            ValueError: if a corner is not two finite numbers.
        """
        self.touch()
        points = np.asarray(corners, dtype=np.float64)
        if len(points) < 3:
            return 0
        if points.shape != (len(points), 2) or not np.isfinite(points).all():
            raise ValueError("corners must be pairs (x, y) of finite numbers")
        stroke = Stroke(corners=tuple((x, y) for x, y in points.round(2).tolist()), erase=erase)
        before, self.mask = self.mask, _apply(stroke, self.mask, self.request.where)
        changed = int((self.mask != before).sum())
        if changed:
            self.strokes.append(stroke)
            self.n_strokes += 1
            self.pixels_changed += changed
            self.saved = False
        return changed

    def undo(self) -> None:
        """Take the last lasso back."""
        self.touch()
        self.saved = self.saved and not self.strokes
        self.strokes = self.strokes[:-1]
        self.mask = replay(self.request, self.strokes)

    def clear(self) -> None:
        """Take all lassos back."""
        self.touch()
        self.saved = self.saved and not self.strokes
        self.strokes = []
        self.mask = self.request.start

    def save(self, folder: str | Path) -> DrawingRecord:
        """Write a PNG (0 and 255), then a JSON, named by :func:`file_stem`, each whole or not at all."""
        self.pause()
        request = self.request
        record = DrawingRecord(
            id=request.id,
            mode=request.mode,
            height=self.mask.shape[1],
            width=self.mask.shape[2],
            seconds=self.seconds,
            n_strokes=self.n_strokes,
            pixels_changed=self.pixels_changed,
            pixels_decided=request.n_decided,
            strokes=tuple(self.strokes),
            where=checksum(request.where),
            start=checksum(request.start),
            mask=checksum(self.mask),
            tau_u=request.tau_u,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        path = expanded("folder", folder) / f"{file_stem(request.id)}.json"
        write_mask(path.with_name(f"{path.stem}.png"), self.mask)
        write_text(path, record.model_dump_json() + "\n")
        self.saved = True
        return record


def replay(request: Request, strokes: Sequence[Stroke]) -> np.ndarray:
    """The mask that ``strokes`` make of ``request``, one after the other: bool (1, H, W)."""
    mask = request.start
    for stroke in strokes:
        mask = _apply(stroke, mask, request.where)
    return mask


def find_drawing(folder: str | Path, request: Request) -> tuple[DrawingRecord, np.ndarray] | None:
    """The drawing saved for a request; None where there is none, or it was drawn for other pixels.

    Raises:
        DataError: if the files of a drawing are there and cannot be used.
    """
    if not (expanded("folder", folder) / f"{file_stem(request.id)}.json").exists():
        return None
    found = read_drawing(folder, request.id)
    return found if found[0].where == checksum(request.where) else None


def read_drawing(folder: str | Path, id: str) -> tuple[DrawingRecord, np.ndarray]:
    """A saved drawing: its record and its mask, bool (1, H, W).

    Raises:
        DataError: if a file is missing or damaged, or the two do not belong together; the message names it.
        ValueError: if the id cannot name a file.
    """
    path = expanded("folder", folder) / f"{file_stem(id)}.json"
    try:
        record = DrawingRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path} is not the record of a drawing ({place}: {first['msg']}); {_REMEDY}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    if record.id != id:
        raise DataError(f"{path} is the record of another image, {record.id!r}; {_REMEDY}")
    picture = path.with_name(f"{path.stem}.png")
    mask = read_mask(picture, record.height, record.width)
    if checksum(mask) != record.mask:
        raise DataError(f"{picture} is not the mask that {path.name} was saved with; {_REMEDY}")
    return record, mask


def drawing_table(folder: str | Path, split: Split | None = None) -> pd.DataFrame:
    """What the drawings of a folder took, and how good they are; ``.groupby("mode").mean()`` compares the two ways.

    Args:
        folder: where drawings were saved.
        split: with the true masks of these images, if they are known.

    Returns:
        A row an image: ``image_id``, ``mode`` ("band" or "full"), ``seconds``, ``strokes``, ``pixels_changed``,
        ``pixels_decided``, and ``dice``, eq. 4 of the whole mask (not a number where the truth is not known).

    Raises:
        DataError: if a drawing cannot be read.

    >>> list(drawing_table("nowhere"))[:4]
    ['image_id', 'mode', 'seconds', 'strokes']
    """
    truths = {} if split is None else dict(zip(split.ids, split.masks, strict=True))
    rows = []
    for path in sorted(expanded("folder", folder).glob("*.json")):
        record, mask = read_drawing(folder, unquote(path.stem))
        truth = truths.get(record.id)
        dice = float("nan") if truth is None else dice_score(torch.from_numpy(mask)[None], truth[None].cpu()).item()
        counts = (record.seconds, record.n_strokes, record.pixels_changed, record.pixels_decided)
        rows.append((record.id, record.mode, *counts, dice))
    columns = ["image_id", "mode", "seconds", "strokes", "pixels_changed", "pixels_decided", "dice"]
    return pd.DataFrame(rows, columns=columns)


def file_stem(id: str) -> str:
    """The name for the files of the image ``id``: one for each id, from which ``urllib.parse.unquote`` makes it again.

    Other characters than letters, digits, ``_``, ``-`` and dots, and a dot at the beginning, are written as in a URL.

    Raises:
        ValueError: if the id is empty, no Unicode text, or too long for a file's name.

    >>> file_stem("ISIC_0000001"), file_stem("../left eye")
    ('ISIC_0000001', '%2E.%2Fleft%20eye')
    """
    try:
        stem = re.sub(r"[^\w.-]|^\.", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), id)
    except UnicodeEncodeError:
        raise ValueError(f"id {id!r} cannot name a file: it is no Unicode text") from None
    if not 0 < len(stem.encode()) <= _LONGEST_STEM:
        raise ValueError(f"id {id!r} cannot name a file: it is empty, or longer than {_LONGEST_STEM} bytes")
    return stem


def checksum(mask: np.ndarray) -> str:
    """A name for what a mask shows, of 16 letters and digits."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.packbits(mask).tobytes()).hexdigest()[:16]


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (1, H, W) as a grey PNG of 0 and 255, whole or not at all."""
    with replacing(path) as temporary:
        PIL.Image.fromarray(255 * mask[0].astype(np.uint8)).save(temporary, "PNG")


def read_mask(path: Path, height: int, width: int) -> np.ndarray:
    """The mask in a PNG of 0 and 255: bool (1, H, W).

    Raises:
        DataError: if it cannot be read, has another size or other values.
    """
    try:
        with PIL.Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError) as error:  # what Pillow raises for a damaged PNG
        raise DataError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    if pixels.shape != (height, width):
        raise DataError(f"{path} is a picture of shape {pixels.shape}, not ({height}, {width}) and grey; {_REMEDY}")
    if not np.isin(pixels, (0, 255)).all():
        raise DataError(f"{path} is not a mask: it has other values than 0 and 255; {_REMEDY}")
    return pixels[None] == 255


_REMEDY = "restore it, or move it and its .json or .png away and draw the image again"


def _apply(stroke: Stroke, mask: np.ndarray, where: np.ndarray) -> np.ndarray:
    inside = polygon2mask(mask.shape[1:], np.array(stroke.corners)[:, ::-1])[None] & where
    return mask & ~inside if stroke.erase else mask | inside
