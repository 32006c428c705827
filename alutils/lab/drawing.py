"""What a person draws: lassos that mark or erase lesion in the pixels that the person decides, and nowhere else."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import numpy as np
import pandas as pd
import PIL.Image
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt
from skimage.draw import polygon2mask

from alutils.data.splits import Split
from alutils.metrics import dice_score
from alutils.system.checks import DataError, expanded
from alutils.system.files import replacing, write_text

LONGEST_PAUSE = 30.0
"""Seconds: of a longer time without a stroke, a button or a movement of the mouse, only these count as work."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Stroke(_Record):
    """A lasso: its corners (x, y) in pixels, (0, 0) the centre of the upper left pixel, and whether it erases."""

    corners: tuple[tuple[float, float], ...]
    erase: bool


class DrawingRecord(_Record):
    """The JSON file of a drawing. ``where``, ``start`` and ``mask`` are checksums, ``start`` that of the first mask.

    ``imported`` names the file of a mask from another tool, whose strokes and time are not known.
    """

    id: str
    mode: Literal["band", "full"]
    seconds: NonNegativeFloat
    n_strokes: NonNegativeInt
    pixels_changed: NonNegativeInt
    pixels_decided: NonNegativeInt
    strokes: tuple[Stroke, ...]
    where: str
    start: str
    mask: str
    tau_u: float | None
    date: str
    imported: str | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """One image that a person is asked to annotate.

    Raises:
        ValueError: if a shape or a value does not fit, or the id cannot name a file.
    """

    id: str
    image: np.ndarray | torch.Tensor  # uint8 (3, H, W)
    where: np.ndarray | torch.Tensor  # 0 and 1, (1, H, W): the pixels that the person decides
    start: np.ndarray | torch.Tensor  # 0 and 1, (1, H, W): the mask before the first stroke
    tau_u: float | None = None  # the threshold that made the band, for the record

    def __post_init__(self) -> None:
        file_stem(self.id)
        planes = (self.image, self.where, self.start)
        image, where, start = (np.asarray(p.cpu() if isinstance(p, torch.Tensor) else p) for p in planes)
        if image.dtype != np.uint8 or image.ndim != 3 or len(image) != 3:
            raise ValueError(f"image must be uint8 of shape (3, H, W), got {image.dtype} {image.shape}")
        shape = (1, *image.shape[1:])
        for name, mask in (("where", where), ("start", start)):
            if mask.shape != shape or not np.isin(mask, (0, 1)).all():
                raise ValueError(f"{name} must be 0 and 1 of shape {shape}, got {mask.shape}")
        vars(self).update(image=image, where=where.astype(bool), start=start.astype(bool))

    @property
    def mode(self) -> Literal["band", "full"]:
        """Whether the person decides some of the pixels ("band") or all."""
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

    This makes both ways of annotating, band and whole image, comparable: nobody is shown an answer to agree with. To
    show the model's guess in the band too (section VI names this), give each :class:`Request` a ``start`` of your own.

    Args:
        split: the images.
        indices: int64 (n,), positions in it.
        where: bool (n, 1, H, W); by default all pixels.
        suggestion: uint8 (n, 1, H, W), the model's labels outside of ``where``; by default background.
        tau_u: recorded with the drawings.
    """
    shape = (len(indices), 1, *split.images.shape[2:])
    where = torch.ones(shape, dtype=torch.bool) if where is None else where.cpu().bool()
    start = torch.zeros(shape, dtype=torch.uint8) if suggestion is None else suggestion.cpu() * ~where
    return [
        Request(split.ids[i], split.images[i], where[place], start[place], tau_u)
        for place, i in enumerate(indices.tolist())
    ]


class Drawing:
    """One image that is being annotated.

    ``clock`` tells seconds, from any beginning. ``record``: of this drawing, saved before, to go on with; an imported
    mask is drawn anew.

    Attributes:
        mask: bool (1, H, W), as it stands. Outside of ``request.where`` it is ``request.start``, whatever is drawn.
        saved: whether a file holds it as it stands.
        strokes: the lassos not taken back; ``n_strokes`` and ``pixels_changed`` count the others too.
        seconds: of work, from one :meth:`touch` to the next, each at most :data:`LONGEST_PAUSE`.

    >>> blank = torch.zeros(3, 8, 8, dtype=torch.uint8)
    >>> left_half = torch.arange(8).expand(1, 8, 8) < 4
    >>> drawing = Drawing(Request("a", blank, left_half, torch.zeros(1, 8, 8)))
    >>> drawing.lasso([(1.5, 1.5), (6.5, 1.5), (6.5, 3.5), (1.5, 3.5)])  # five by two pixels, half in the band
    4
    """

    def __init__(
        self, request: Request, *, clock: Callable[[], float] = time.monotonic, record: DrawingRecord | None = None
    ) -> None:
        self.request, self._clock, self._seen, self.imported = request, clock, None, None
        if record is not None and record.imported:
            record = None  # it has no strokes to go on with
        self.saved = record is not None
        self.strokes = list(record.strokes) if record else []
        self.n_strokes, self.pixels_changed = (record.n_strokes, record.pixels_changed) if record else (0, 0)
        self.seconds = record.seconds if record else 0.0
        self.mask = replay(request, self.strokes)

    @property
    def n_marked(self) -> int:
        """Pixels marked as lesion, of those that the person decides."""
        return int((self.mask & self.request.where).sum())

    def touch(self) -> None:
        """Count the time since the last call as work."""
        now = self._clock()
        if self._seen is not None:
            self.seconds += min(now - self._seen, LONGEST_PAUSE)
        self._seen = now

    def pause(self) -> None:
        """Stop counting until the next :meth:`touch`."""
        self.touch()
        self._seen = None

    def lasso(self, corners: Sequence[tuple[float, float]] | np.ndarray, *, erase: bool = False) -> int:
        """Mark what lies in a polygon as lesion, or erase it; returns the number of pixels that changed.

        ``corners``: (x, y), as in :class:`Stroke`. A lasso of fewer than three corners, or one that changes nothing, is
        a slip of the mouse and does not count.

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
        self._keep(self.strokes[:-1])

    def clear(self) -> None:
        """Take all lassos back."""
        self._keep([])

    def _keep(self, strokes: list[Stroke]) -> None:
        self.touch()
        self.saved = self.saved and strokes == self.strokes
        self.strokes, self.mask = strokes, replay(self.request, strokes)

    def save(self, folder: str | Path) -> DrawingRecord:
        """Write a PNG (0 and 255), then a JSON, named by :func:`file_stem`, each whole or not at all."""
        self.pause()
        request = self.request
        record = DrawingRecord(
            id=request.id,
            mode=request.mode,
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
            imported=self.imported,
        )
        path = _record_path(folder, request.id)
        with replacing(path.with_suffix(".png")) as temporary:
            PIL.Image.fromarray(255 * self.mask[0].astype(np.uint8)).save(temporary, "PNG")
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
    """:func:`read_drawing` for a request; None where nothing is saved, or it was drawn for other pixels."""
    if not _record_path(folder, request.id).exists():
        return None
    found = read_drawing(folder, request.id)
    return found if found[0].where == checksum(request.where) else None


def read_drawing(folder: str | Path, id: str) -> tuple[DrawingRecord, np.ndarray]:
    """A saved drawing: its record and its mask, bool (1, H, W).

    Raises:
        DataError: if a file is missing or damaged, or the two do not belong together.
    """
    path = _record_path(folder, id)
    try:
        record = DrawingRecord.model_validate_json(path.read_bytes())
        with PIL.Image.open(path.with_suffix(".png")) as picture:
            mask = np.asarray(picture)[None] == 255
        if (record.id, record.mask) != (id, checksum(mask)):
            raise ValueError("they do not belong together")
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a damaged PNG
        remedy = "restore both, or move both away and draw the image again"
        raise DataError(f"{path} and its .png cannot be used: missing, damaged or of two drawings; {remedy}") from error
    return record, mask


def drawing_table(folder: str | Path, split: Split | None = None) -> pd.DataFrame:
    """What the drawings of a folder took, and how good they are; ``.groupby("mode").mean()`` compares the two ways.

    One row per image: ``image_id``, ``mode`` ("band" or "full"), ``seconds`` and ``strokes`` (not a number for imported
    masks), ``pixels_changed``, ``pixels_decided``, and ``dice``, eq. 4 of the whole mask (not a number where ``split``
    has no truth).

    Raises:
        DataError: if a drawing cannot be read.
    """
    truths = {} if split is None else dict(zip(split.ids, split.masks, strict=True))
    rows = []
    for path in sorted(expanded("folder", folder).glob("*.json")):
        record, mask = read_drawing(folder, unquote(path.stem))
        truth = truths.get(record.id)
        dice = float("nan") if truth is None else dice_score(torch.from_numpy(mask)[None], truth[None].cpu()).item()
        effort = (float("nan"),) * 2 if record.imported else (record.seconds, record.n_strokes)
        counts = (*effort, record.pixels_changed, record.pixels_decided)
        rows.append((record.id, record.mode, *counts, dice))
    columns = ["image_id", "mode", "seconds", "strokes", "pixels_changed", "pixels_decided", "dice"]
    return pd.DataFrame(rows, columns=columns)


def file_stem(id: str) -> str:
    """The name for the files of the image ``id``: one for each id, from which ``urllib.parse.unquote`` makes it again.

    Raises:
        ValueError: if the id is empty, not valid Unicode, or too long for a file's name.

    >>> file_stem("ISIC_0000001"), file_stem("../left eye")
    ('ISIC_0000001', '%2E.%2Fleft%20eye')
    """
    stem = re.sub(r"[^\w.-]|^\.", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), id)
    if not 0 < len(stem.encode()) <= 200:  # most file systems allow 255, and our names have endings
        raise ValueError(f"id {id!r} cannot name a file: it is empty or too long")
    return stem


def checksum(mask: np.ndarray) -> str:
    """A name for what a mask shows, of 16 letters and digits."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.packbits(mask).tobytes()).hexdigest()[:16]


def _record_path(folder: str | Path, id: str) -> Path:
    return expanded("folder", folder) / f"{file_stem(id)}.json"


def _apply(stroke: Stroke, mask: np.ndarray, where: np.ndarray) -> np.ndarray:
    inside = polygon2mask(mask.shape[1:], np.array(stroke.corners)[:, ::-1])[None] & where
    return mask & ~inside if stroke.erase else mask | inside
