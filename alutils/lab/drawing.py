"""What a person draws: strokes that mark or erase lesion in the pixels that the person decides, and nowhere else."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import numpy as np
import pandas as pd
import PIL.Image
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat
from skimage.draw import polygon2mask

from alutils.data.splits import Split
from alutils.metrics import dice_score
from alutils.system.checks import DataError, expanded
from alutils.system.files import replacing

Corners = Sequence[tuple[float, float]] | np.ndarray

LONGEST_PAUSE = 30.0
"""Seconds: a longer time without a stroke, a button or a movement of the mouse counts as this much work."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Stroke(_Record):
    """A lasso or, with a radius, a brush: its corners (x, y) in pixels, and whether it erases.

    (0, 0) is the centre of the upper left pixel. The radius of a brush is two numbers, half its width and half its
    height, because a disc on a photograph is an ellipse after squashing.
    """

    corners: tuple[tuple[float, float], ...]
    erase: bool
    radius: tuple[PositiveFloat, PositiveFloat] | None = None


class DrawingRecord(_Record):
    """The JSON file of a drawing. ``where``, ``start`` (the mask before the first stroke) and ``mask`` are checksums.

    ``imported`` names the file of a mask from another tool, whose strokes and time are not known. If somebody drew on
    it afterwards, or went on with a drawing from another start, ``start`` is the mask that was last opened, and
    ``strokes`` are those drawn since then.
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


Saved = tuple[DrawingRecord, np.ndarray]


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

    ``clock`` returns seconds since any moment. ``saved`` is what :func:`find_drawing` found, to go on from. If it was
    imported, or drawn from another start, its mask is then the one before the first stroke.

    Attributes:
        mask: bool (1, H, W), as it stands. Outside of ``request.where`` it is ``request.start``, whatever is drawn.
        n_strokes, pixels_changed: strokes that were taken back count too, each once.
        seconds: of work, from one :meth:`touch` to the next, each at most :data:`LONGEST_PAUSE`.

    >>> blank = torch.zeros(3, 8, 8, dtype=torch.uint8)
    >>> left_half = torch.arange(8).expand(1, 8, 8) < 4
    >>> drawing = Drawing(Request("a", blank, left_half, torch.zeros(1, 8, 8)))
    >>> drawing.lasso([(1.5, 1.5), (6.5, 1.5), (6.5, 3.5), (1.5, 3.5)])  # five by two pixels, half in the band
    4
    """

    def __init__(
        self, request: Request, *, clock: Callable[[], float] = time.monotonic, saved: Saved | None = None
    ) -> None:
        record, mask = saved or (None, request.start)
        self.imported = record.imported if record else None
        strokes = record.strokes if record else ()
        if record and (record.imported or record.start != checksum(request.start)):
            # Its strokes would lead elsewhere from this start
            request, strokes = replace(request, start=np.where(request.where, mask, request.start)), ()
        self.request, self._clock, self._seen = request, clock, None
        self.n_strokes, self.pixels_changed, self.seconds = (
            (record.n_strokes, record.pixels_changed, record.seconds) if record else (0, 0, 0.0)
        )
        self._drawn = list(strokes)
        self._n = len(self._drawn)  # these stand, later ones were taken back
        self._in_file = self.strokes if record else None
        masks = replay(request, self._drawn)
        self.mask, self._masks = masks[-1], [np.packbits(mask) for mask in masks]  # before each stroke and after it

    @property
    def strokes(self) -> list[Stroke]:
        """The strokes that were not taken back."""
        return self._drawn[: self._n]

    @property
    def saved(self) -> bool:
        """Whether a file holds it as it stands."""
        return self._in_file == self.strokes

    @property
    def has_changes(self) -> bool:
        """Whether something would be lost if it were not saved."""
        return self.strokes != (self._in_file or [])

    @property
    def can_redo(self) -> bool:
        """Whether strokes were taken back and none was drawn since."""
        return self._n < len(self._drawn)

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

    def lasso(self, corners: Corners, *, erase: bool = False) -> int:
        """Mark what lies in a polygon as lesion, or erase it; returns the number of pixels that changed.

        ``corners``: (x, y), as in :class:`Stroke`. A lasso of fewer than three corners, or one that changes nothing, is
        a slip of the mouse and does not count.

        Raises:
            ValueError: if a corner is not two finite numbers.
        """
        return self._draw(corners, erase, None)

    def brush(self, corners: Corners, radius: float | tuple[float, float], *, erase: bool = False) -> int:
        """Mark the pixels whose centres a brush touches on its path along ``corners``; returns how many changed.

        ``radius``: in pixels, or half the width and half the height. A click is a path of one corner.

        Raises:
            ValueError: if a corner is not two finite numbers, or the radius is not finite and greater than 0.
        """
        radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), 2).round(3)
        if not (np.isfinite(radii) & (radii > 0)).all():
            raise ValueError(f"radius must be finite and greater than 0, got {radius!r}")
        return self._draw(corners, erase, tuple(radii.tolist()))

    def _draw(self, corners: Corners, erase: bool, radius: tuple[float, float] | None) -> int:
        points = np.asarray(corners, dtype=np.float64)
        if len(points) and (points.shape != (len(points), 2) or not np.isfinite(points).all()):
            raise ValueError("corners must be pairs (x, y) of finite numbers")
        self.touch()
        if len(points) < (1 if radius else 3):
            return 0
        stroke = Stroke(corners=tuple(map(tuple, points.round(2).tolist())), erase=erase, radius=radius)
        before, self.mask = self.mask, _apply(self.mask, stroke, self.request.where)
        changed = int((self.mask != before).sum())
        if changed:
            self._drawn = [*self.strokes, stroke]
            self._masks = [*self._masks[: self._n + 1], np.packbits(self.mask)]
            self._n += 1
            self.n_strokes += 1
            self.pixels_changed += changed
        return changed

    def undo(self) -> None:
        """Take the last stroke back."""
        self._go_to(self._n - 1)

    def redo(self) -> None:
        """Draw again what was taken back last; it does not count again."""
        self._go_to(self._n + 1)

    def clear(self) -> None:
        """Take all strokes back; :meth:`redo` brings them again, one by one."""
        self._go_to(0)

    def _go_to(self, n: int) -> None:
        """Let the first ``n`` strokes stand."""
        self.touch()
        self._n = min(max(n, 0), len(self._drawn))
        self.mask = np.unpackbits(self._masks[self._n], count=self.mask.size).reshape(self.mask.shape).astype(bool)

    def save(self, folder: str | Path) -> DrawingRecord:
        """Write a PNG (0 and 255) and a JSON, named by :func:`file_stem`: both or, on an error, none."""
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
        text = record.model_dump_json(exclude_defaults=True) + "\n"
        with replacing(path) as for_record, replacing(path.with_suffix(".png")) as for_mask:
            PIL.Image.fromarray(255 * self.mask[0].astype(np.uint8)).save(for_mask, "PNG")
            for_record.write_text(text, encoding="utf-8", newline="\n")
        self._in_file = self.strokes
        return record


def replay(request: Request, strokes: Sequence[Stroke]) -> list[np.ndarray]:
    """The mask that ``request`` starts with, and those after each of ``strokes``: bool (1, H, W)."""
    return list(accumulate(strokes, partial(_apply, where=request.where), initial=request.start))


def find_drawing(folder: str | Path, request: Request) -> Saved | None:
    """:func:`read_drawing` for a request; None where nothing is saved, or it was drawn for other pixels."""
    if not _record_path(folder, request.id).exists():
        return None
    found = read_drawing(folder, request.id)
    return found if found[0].where == checksum(request.where) else None


def read_drawing(folder: str | Path, id: str) -> Saved:
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
    """What the drawings of a folder took, and how good they are.

    One row per image: ``image_id``, ``mode`` ("band" or "full"), ``seconds`` and ``strokes`` (not a number for imported
    masks), ``pixels_changed``, ``pixels_decided``, and ``dice``, eq. 4 of the whole mask (not a number where ``split``
    has no truth). ``.groupby("mode").mean(numeric_only=True)`` compares the two ways.

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
    """The name of the files of the image ``id``, without ending; ``urllib.parse.unquote`` turns it back into the id.

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
    """16 hexadecimal digits that stand for the shape and the pixels of a mask."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.packbits(mask).tobytes()).hexdigest()[:16]


def _record_path(folder: str | Path, id: str) -> Path:
    return expanded("folder", folder) / f"{file_stem(id)}.json"


def _apply(mask: np.ndarray, stroke: Stroke, where: np.ndarray) -> np.ndarray:
    points, shape = np.array(stroke.corners), mask.shape[1:]
    covered = polygon2mask(shape, points[:, ::-1]) if stroke.radius is None else _brushed(points, stroke.radius, shape)
    inside = covered[None] & where
    return mask & ~inside if stroke.erase else mask | inside


def _brushed(points: np.ndarray, radius: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Pixels within one radius of the path, piece by piece, looking only around each piece."""
    covered, sides = np.zeros(shape, bool), np.array(shape)[::-1]
    for a, b in zip(points, [*points[1:], points[-1]], strict=True):
        first = np.clip(np.floor(np.minimum(a, b) - radius), 0, sides).astype(int)
        last = np.clip(np.ceil(np.maximum(a, b) + radius) + 1, 0, sides).astype(int)
        window = np.s_[first[1] : last[1], first[0] : last[0]]
        y, x = np.ogrid[window]
        (way_x, way_y), from_x, from_y = (b - a) / radius, (x - a[0]) / radius[0], (y - a[1]) / radius[1]
        along = np.clip((from_x * way_x + from_y * way_y) / max(way_x**2 + way_y**2, 1e-12), 0, 1)
        covered[window] |= (from_x - along * way_x) ** 2 + (from_y - along * way_y) ** 2 <= 1
    return covered
