"""A person draws the lesion with the mouse, in JupyterLab; elsewhere the tool is a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from ipympl.backend_nbagg import Canvas, FigureManager
from IPython.display import display
from matplotlib.backend_bases import MouseButton, MouseEvent
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.widgets import LassoSelector
from skimage.segmentation import find_boundaries

from alutils.lab.drawing import Drawing, Request, find_drawing
from alutils.lab.figures import BLUE, LABELLED_BY, VERMILION, draw_outline, show_figure
from alutils.lab.interactive import is_interactive
from alutils.system.checks import expanded

_HELP = (
    "Hold the mouse button and draw around lesion (add) or around what is not lesion (erase). Only the coloured pixels "
    "are yours; what you marked is orange. The grey rest is the model's, with its lesion lighter."
)


class Annotator:
    """Draw the images asked for, one after the other; as the last value of a cell it is shown.

    It skips images saved before; "back" opens them again, with their strokes. Where nobody can draw (papermill,
    nbconvert), a picture with alternative text and a line that says so take its place, and no widget is made.

    Args:
        requests: from :func:`alutils.lab.drawing.make_requests` or :meth:`alutils.HumanOracle.requests`, at least one.
        folder: where the drawings are saved.

    Raises:
        ValueError: if there is no request.
        DataError: if a drawing is there and cannot be read.
    """

    def __init__(self, requests: Sequence[Request], folder: str | Path) -> None:
        if not requests:
            raise ValueError("requests: there is no image to draw")
        self.folder = expanded("folder", folder)
        found = [find_drawing(folder, request) for request in requests]
        self.drawings = [Drawing(r, record=saved and saved[0]) for r, saved in zip(requests, found, strict=True)]
        self.position = found.index(None) if None in found else 0
        self.erase = False
        self.figure = Figure((5, 5.2))
        self._axes = self.figure.add_axes((0.01, 0.01, 0.98, 0.94))
        self._show_image()

    @property
    def drawing(self) -> Drawing:
        """The drawing that is shown."""
        return self.drawings[self.position]

    def lasso(self, corners: Sequence[tuple[float, float]]) -> None:
        """Mark or erase what the mouse encircled."""
        self.drawing.lasso(corners, erase=self.erase)
        self._show_mask()

    def undo(self) -> None:
        """Take the last lasso back."""
        self.drawing.undo()
        self._show_mask()

    def clear(self) -> None:
        """Take all lassos of this image back."""
        self.drawing.clear()
        self._show_mask()

    def back(self) -> None:
        """Open the image before this one again, saved or not."""
        self.drawing.pause()
        self._go_to((self.position - 1) % len(self.drawings))

    def save(self) -> None:
        """Save the drawing, and open the next one that is not saved."""
        self.drawing.save(self.folder)
        n = len(self.drawings)
        ahead = [(self.position + step) % n for step in range(1, n)]
        self._go_to(next((position for position in ahead if not self.drawings[position].saved), self.position))

    def status(self) -> str:
        """What has been done in this image, and in all, in one line."""
        drawing, n = self.drawing, len(self.drawings)
        n_saved = sum(drawing.saved for drawing in self.drawings)
        return (
            f"image {self.position + 1} of {n}{' (saved)' * drawing.saved} | {drawing.request.id} | "
            f"{drawing.n_marked} of your {drawing.request.n_decided} pixels marked | {drawing.seconds:.0f} s, "
            f"{_count(drawing.n_strokes, 'stroke')}, {_count(drawing.pixels_changed, 'pixel change')} | "
            + (f"all {n} saved: go on with the next cell" if n_saved == n else f"{n_saved} saved")
        )

    @cached_property
    def panel(self) -> Panel:
        """The widget, made when it is first asked for."""
        return Panel(self)

    def _go_to(self, position: int) -> None:
        self.position, self.erase = position, False
        self.drawing.touch()  # whoever pressed the button looks at it now
        self._show_image()

    def _show_image(self) -> None:
        axes, request = self._axes, self.drawing.request
        axes.clear()
        self._picture = axes.imshow(request.image.transpose(1, 2, 0))
        if request.mode == "band":
            draw_outline(axes, torch.from_numpy(request.where), BLUE, width=1)
        axes.set_title(request.id, fontsize=9, parse_math=False)
        axes.set_axis_off()
        line = {"color": VERMILION, "linewidth": 1.5}
        self.mouse = _Lasso(axes, self.lasso, useblit=False, props=line, button=MouseButton.LEFT)
        self._show_mask()

    def _show_mask(self) -> None:
        self._picture.set_data(_painted(self.drawing))
        if "panel" in vars(self):
            self.panel.update()

    def _ipython_display_(self) -> None:
        if is_interactive():
            display(self.panel)
            return
        request = self.drawing.request
        alt = (
            f"The drawing tool with image {request.id}. In colour, the pixels that the person decides, "
            f"{request.n_decided} of {request.where.size}, with what is marked as lesion in orange; "
            "the rest is grey, the lesion of the starting mask lighter."
        )
        show_figure(self.figure, alt)
        display({"text/plain": "The drawing tool, as a picture. Run this cell in JupyterLab to draw."}, raw=True)


class Panel(ipywidgets.VBox):
    """The buttons and the figure of an :class:`Annotator`."""

    def __init__(self, annotator: Annotator) -> None:
        self._annotator, self._asked = annotator, False
        self.canvas = Canvas(annotator.figure)  # of this figure alone: those of pyplot stay pictures
        FigureManager(self.canvas, 0)
        self.canvas.header_visible = self.canvas.footer_visible = self.canvas.toolbar_visible = False
        self.canvas.resizable = False
        self.canvas.mpl_connect("motion_notify_event", lambda _: annotator.drawing.touch())
        self.pen = ipywidgets.ToggleButtons(options=["add", "erase"], style={"button_width": "5em"})
        self.pen.observe(lambda change: setattr(annotator, "erase", change["new"] == "erase"), "value")
        self.undo, self.clear, self.back = map(self._button, (annotator.undo, annotator.clear, annotator.back))
        self.save = self._button(self._save_or_ask, "save and next")
        self.line = ipywidgets.Label()
        tools = ipywidgets.HBox([self.pen, self.undo, self.clear, self.back, self.save])
        super().__init__([ipywidgets.HTML(_HELP), tools, self.line, self.canvas])
        self.update()

    def update(self) -> None:
        """Show what has changed."""
        self._asked = False
        self.pen.value = "erase" if self._annotator.erase else "add"
        self.line.value = self._annotator.status()
        self.canvas.draw_idle()

    def _save_or_ask(self) -> None:
        """Save. Where nothing is marked, ask for a second press, because the first one may be a slip."""
        if self._annotator.drawing.n_marked or self._asked:
            self._annotator.save()
            return
        self._asked = True
        self.line.value = f"Nothing is marked in {self._annotator.drawing.request.id}: press again to save it as it is"

    def _button(self, act: Callable[[], None], name: str = "") -> ipywidgets.Button:
        def press(_: ipywidgets.Button) -> None:
            try:
                self._annotator.mouse.finish()
                act()
            except OSError as error:  # JupyterLab puts what a callback raises into a log that few readers open
                self.line.value = f"Not saved: {error}"
                raise

        button = ipywidgets.Button(description=name or act.__name__, layout={"width": "auto"})
        button.on_click(press)
        return button


class _Lasso(LassoSelector):
    """Ends the line too where the mouse button was released outside of the canvas, of which the browser says nothing.

    That is known when the mouse is back without the button, or something else is pressed.
    """

    def finish(self) -> None:
        """End the line where it is, if there is one."""
        if self.verts:
            corners, self.verts = self.verts, None
            self.artists[0].set_data([], [])
            self.onselect(corners)

    def press(self, event: MouseEvent) -> bool:
        self.finish()
        return super().press(event)

    def onmove(self, event: MouseEvent) -> bool:
        if not getattr(event, "buttons", True):  # before matplotlib 3.10 it is not said what is held
            self.finish()
        return super().onmove(event)


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
