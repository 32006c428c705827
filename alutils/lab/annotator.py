"""A person draws the lesion with the mouse, in JupyterLab; elsewhere the tool is a picture."""

from __future__ import annotations

import io
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import PIL.Image
import torch
import traitlets
from IPython.display import display
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from alutils.data.description import ENDINGS
from alutils.lab.drawing import Corners, Drawing, Request, find_drawing
from alutils.lab.figures import BLUE, LABELLED_BY, draw_outline, show_figure
from alutils.lab.interactive import is_interactive
from alutils.system.checks import DataError, expanded


class Annotator:
    """Draw the images asked for, one after the other; the tool is shown as the last value of a cell.

    It skips images saved before; "back" opens them again, with their strokes, or with the mask alone if it was imported
    or drawn from another start. Where nobody can draw (papermill, nbconvert), a picture with alternative text and a
    line that says so take its place, and no widget is made.

    Args:
        requests: from :func:`alutils.lab.drawing.make_requests` or :meth:`alutils.HumanOracle.requests`, at least one.
        folder: where the drawings are saved.
        originals: the folder with the photographs, at any depth, each named by its image's id. They are shown in full
            size and shape. Without it, or without a file of that name, the square is shown that the network sees.

    Raises:
        ValueError: if there is no request.
        DataError: if a drawing is there and cannot be read, or ``originals`` is no folder.
    """

    def __init__(self, requests: Sequence[Request], folder: str | Path, originals: str | Path = "") -> None:
        if not requests:
            raise ValueError("requests: there is no image to draw")
        self.folder = expanded("folder", folder)
        self._originals = expanded("originals", originals) if originals else None
        if self._originals and not self._originals.is_dir():
            raise DataError(f"originals: {self._originals} is no folder; give the one with the photographs, or none")
        found = [find_drawing(folder, request) for request in requests]
        self.drawings = [Drawing(request, saved=saved) for request, saved in zip(requests, found, strict=True)]
        self.position = found.index(None) if None in found else 0

    @property
    def drawing(self) -> Drawing:
        """The drawing that is shown."""
        return self.drawings[self.position]

    def lasso(self, corners: Corners, *, erase: bool = False) -> None:
        """:meth:`Drawing.lasso` in the image that is shown."""
        self.drawing.lasso(corners, erase=erase)
        self._show()

    def brush(self, corners: Corners, radius: float | tuple[float, float], *, erase: bool = False) -> None:
        """:meth:`Drawing.brush` in the image that is shown."""
        self.drawing.brush(corners, radius, erase=erase)
        self._show()

    def undo(self) -> None:
        """Take the last stroke back."""
        self.drawing.undo()
        self._show()

    def redo(self) -> None:
        """Draw again what was taken back last."""
        self.drawing.redo()
        self._show()

    def clear(self) -> None:
        """Take all strokes of this image back."""
        self.drawing.clear()
        self._show()

    def back(self) -> None:
        """Open the image before this one again, saved or not."""
        self._go_to(self.position - 1)

    def skip(self) -> None:
        """Open the image after this one, saved or not; the strokes of this one are kept, not saved."""
        self._go_to(self.position + 1)

    def save(self) -> None:
        """Save the drawing, and open the next one that is not saved."""
        self.drawing.save(self.folder)
        n = len(self.drawings)
        ahead = [(self.position + step) % n for step in range(1, n)]
        self._go_to(next((position for position in ahead if not self.drawings[position].saved), self.position))

    def accept(self) -> None:
        """Save the mask that the request starts with, without a stroke, and open the next image."""
        self.drawing.clear()
        self.save()

    def status(self) -> str:
        """What has been done in this image, and in all, in one line."""
        drawing, n = self.drawing, len(self.drawings)
        n_saved = sum(one.saved for one in self.drawings)
        return (
            f"image {self.position + 1} of {n}{' (saved)' * drawing.saved} | {drawing.request.id} | "
            f"{drawing.n_marked} of your {drawing.request.n_decided} pixels marked | {drawing.seconds:.0f} s, "
            f"{_count(drawing.n_strokes, 'stroke')}, {_count(drawing.pixels_changed, 'pixel change')} | "
            + (f"all {n} saved" if n_saved == n else f"{n_saved} saved")
        )

    def news(self) -> str:
        """What to do next: run the next cell, or save what has changed; empty where there is nothing to say."""
        if all(drawing.saved for drawing in self.drawings):
            return "done: run the next cell"
        return "● unsaved changes" if self.drawing.has_changes else ""

    @cached_property
    def panel(self) -> Panel:
        """The widget, made when it is first asked for."""
        return Panel(self)

    def photograph(self) -> PIL.Image.Image:
        """The image that is shown, in its original size and shape where there is a file of it."""
        request = self.drawing.request
        small = PIL.Image.fromarray(request.image.transpose(1, 2, 0))
        files = [PIL.Image.open(path).convert("RGB") for path in self._files[request.id]]
        # a mask may have its image's name: of several files, the image is the one that looks like the square
        return min(files, key=lambda file: _difference(file, small)) if files else small

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The pictures below ``originals`` by their names; looked for when somebody draws, as there may be many."""
        files = defaultdict(list)
        for path in sorted(self._originals.rglob("*") if self._originals else ()):
            if path.suffix.lower() in ENDINGS:
                files[unicodedata.normalize("NFC", path.stem)].append(path)
        return files

    @property
    def figure(self) -> Figure:
        """What is shown where nobody can draw."""
        figure, request = Figure((5, 5.2)), self.drawing.request
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.94))
        axes.imshow(_painted(self.drawing))
        if request.mode == "band":
            draw_outline(axes, torch.from_numpy(request.where), BLUE, width=1)
        axes.set_title(request.id, fontsize=9, parse_math=False)
        axes.set_axis_off()
        return figure

    def _go_to(self, position: int) -> None:
        self.drawing.pause()
        self.position = position % len(self.drawings)
        self.drawing.touch()  # whoever pressed the button looks at it now
        self._show()

    def _show(self) -> None:
        if "panel" in vars(self):
            self.panel.update()

    def _ipython_display_(self) -> None:
        if is_interactive():
            display(self.panel)
            return
        request = self.drawing.request
        rest = "none is grey" if request.mode == "full" else "the rest is grey, the lesion of the starting mask lighter"
        marked = "What is marked as lesion is orange" if self.drawing.n_marked else "Nothing is marked as lesion"
        alt = (
            f"The drawing tool with image {request.id}. In colour, the pixels that the person decides, "
            f"{request.n_decided} of {request.where.size}; {rest}. {marked}."
        )
        show_figure(self.figure, alt)
        display({"text/plain": "The drawing tool, as a picture. Run this cell in JupyterLab to draw."}, raw=True)


class Panel(anywidget.AnyWidget):
    """The widget of an :class:`Annotator`: ``canvas.js`` draws and sends what the person did; this class answers."""

    _esm, _css = Path(__file__).with_name("canvas.js"), Path(__file__).with_name("canvas.css")
    picture = traitlets.Bytes().tag(sync=True)
    where = traitlets.Bytes().tag(sync=True)  # one bit per pixel, as in ``lesion``
    lesion = traitlets.Bytes().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)  # what the browser needs to know beside the pixels

    def __init__(self, annotator: Annotator) -> None:
        self._annotator, self._shown, self._asked, self._received = annotator, None, "", 0.0
        super().__init__()
        self.on_msg(self._receive)
        self.update()

    def update(self, said: str = "") -> None:
        """Show what has changed; ``said`` takes the place of the status."""
        annotator, drawing = self._annotator, self._annotator.drawing
        with self.hold_sync():
            if self._shown is not drawing:
                photograph, file = annotator.photograph(), io.BytesIO()
                self._shown, self._native = drawing, photograph.size
                photograph.save(file, "JPEG" if photograph.width > 512 else "PNG", quality=92, subsampling=0)
                self.picture, self.where = file.getvalue(), np.packbits(drawing.request.where).tobytes()
            self.lesion = np.packbits(drawing.mask).tobytes()
            place = f"{annotator.position + 1} of {len(annotator.drawings)}: {drawing.request.id}"
            missing = annotator._originals and not annotator._files[drawing.request.id]
            self.view = {
                "place": place + f" (no picture of this name in {annotator._originals})" * bool(missing),
                "size": drawing.mask.shape[:0:-1],
                "native": self._native,
                "received": self._received,
                "line": said or annotator.status(),
                "news": annotator.news(),
                "undo": bool(drawing.strokes),
                "redo": drawing.can_redo,
            }

    def _receive(self, _: Any, message: dict[str, Any], __: Any) -> None:
        annotator, act = self._annotator, message.pop("do")
        if act == "touch":
            annotator.drawing.touch()
            return
        asked, self._asked = self._asked, self._doubt(act)
        if self._asked and asked != self._asked:
            self.update(self._asked)
            return
        self._asked = ""
        try:
            if act == "stroke":
                self._received = message.pop("id")
                (annotator.brush if "radius" in message else annotator.lasso)(**message)
            elif act in ("undo", "redo", "clear", "back", "skip", "accept", "save"):
                getattr(annotator, act)()
        except OSError as error:  # JupyterLab puts what a callback raises into a log that few readers open
            self.update(f"{act} failed: {error}")
            raise

    def _doubt(self, act: str) -> str:
        """What to ask for a second press, because the first one may be a slip."""
        drawing = self._annotator.drawing
        if act == "save" and not drawing.n_marked:
            return f"Nothing is marked in {drawing.request.id}: press again to save it as it is"
        if act == "accept" and drawing.strokes:
            return f"This takes your strokes in {drawing.request.id} back: press again to accept it as proposed"
        return ""


def _difference(file: PIL.Image.Image, small: PIL.Image.Image) -> float:
    return float(np.abs(np.asarray(file.resize(small.size), dtype=float) - np.asarray(small)).mean())


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _painted(drawing: Drawing) -> np.ndarray:
    """The image as the person sees it, (H, W, 3), 0 to 1."""
    image, where, lesion = drawing.request.image.transpose(1, 2, 0) / 255, drawing.request.where[0], drawing.mask[0]
    grey = np.broadcast_to(image.mean(2, keepdims=True), image.shape)
    colours = {name: np.array(to_rgb(colour)) for name, colour in LABELLED_BY.items()}
    painted = 0.5 * grey + 0.5 * np.where(lesion[..., None], colours["model: lesion"], colours["model: background"])
    painted[where] = image[where]
    marked = lesion & where
    for pixels, share in ((marked, 0.35), (find_boundaries(marked, mode="inner"), 0.6)):
        painted[pixels] = (1 - share) * painted[pixels] + share * colours["human: lesion"]
    return painted
