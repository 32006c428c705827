"""A person draws the lesion with the mouse, in JupyterLab; elsewhere the tool is a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from ipympl.backend_nbagg import Canvas, FigureManager
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.backend_bases import LocationEvent, MouseButton, MouseEvent
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
        clock: seconds, from any beginning.

    Raises:
        ValueError: if there is no request.
        DataError: if a drawing is there and cannot be read.
    """

    def __init__(
        self, requests: Sequence[Request], folder: str | Path, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not requests:
            raise ValueError("requests: there is no image to draw")
        self.folder = expanded("folder", folder)
        found = [find_drawing(folder, request) for request in requests]
        records = [saved and saved[0] for saved in found]
        self.drawings = [Drawing(request, clock=clock, record=r) for request, r in zip(requests, records, strict=True)]
        self.position = records.index(None) if None in records else 0
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
        saved = " (saved)" if drawing.saved else ""
        n_saved = sum(drawing.saved for drawing in self.drawings)
        return (
            f"image {self.position + 1} of {n}{saved} | {drawing.request.id} | "
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
        axes, drawing = self._axes, self.drawing
        axes.clear()
        self._picture = axes.imshow(drawing.request.image.transpose(1, 2, 0))
        if drawing.request.mode == "band":
            draw_outline(axes, torch.from_numpy(drawing.request.where), BLUE, width=1)
        axes.set_title(drawing.request.id, fontsize=9, parse_math=False)
        axes.set_axis_off()
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
        super().__init__()
        self._annotator, self._asked = annotator, False
        self.canvas = Canvas(annotator.figure)  # of this figure alone: those of pyplot stay pictures
        FigureManager(self.canvas, 0)
        self.canvas.header_visible = self.canvas.footer_visible = self.canvas.toolbar_visible = False
        self.canvas.resizable = False
        self.canvas.mpl_connect("motion_notify_event", lambda _: annotator.drawing.touch())
        self._mouse = _Lasso(annotator.figure.axes[0], annotator.lasso)
        self.pen = ipywidgets.ToggleButtons(options=["add", "erase"], style={"button_width": "5em"})
        self.pen.observe(lambda change: setattr(annotator, "erase", change["new"] == "erase"), "value")
        self.undo, self.clear, self.back = map(self._button, (annotator.undo, annotator.clear, annotator.back))
        self.save = self._button(self._save_or_ask, "save and next")
        self.line = ipywidgets.Label()
        tools = ipywidgets.HBox([self.pen, self.undo, self.clear, self.back, self.save])
        self.children = [ipywidgets.HTML(_HELP), tools, self.line, self.canvas]
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
                self._mouse.finish()
                act()
            except OSError as error:  # JupyterLab puts what a callback raises into a log that few readers open
                self.line.value = f"Not saved: {error}"
                raise

        button = ipywidgets.Button(description=name or act.__name__, layout={"width": "auto"})
        button.on_click(press)
        return button


class _Lasso:
    """The line that is drawn while the left button is held; outside of the image it runs along the edge.

    A browser does not say that the button was released outside of the canvas. The line therefore ends as soon as the
    mouse is back without the button, or something else is pressed; matplotlib's LassoSelector would go on with it.
    """

    def __init__(self, axes: Axes, done: Callable[[list[tuple[float, float]]], None]) -> None:
        self._axes, self._canvas, self._done = axes, axes.figure.canvas, done
        self._corners: list[tuple[float, float]] = []
        self._canvas.mpl_connect("button_press_event", self._pressed)
        self._canvas.mpl_connect("motion_notify_event", self._moved)
        self._canvas.mpl_connect("figure_leave_event", self._extend)
        self._canvas.mpl_connect("button_release_event", self._released)

    def finish(self) -> None:
        """End the line where it is, if there is one."""
        corners, self._corners = self._corners, []
        if corners and self._line in self._axes.lines:  # otherwise it went with the image that it was drawn on
            self._line.remove()
            self._done(corners)

    def _pressed(self, event: MouseEvent) -> None:
        self.finish()
        if event.button == MouseButton.LEFT:
            self._corners = [self._place(event)]
            self._line = self._axes.add_line(Line2D([], [], color=VERMILION, linewidth=1.5))

    def _moved(self, event: MouseEvent) -> None:
        held = getattr(event, "buttons", None)  # not every backend says what is held
        if held is None or MouseButton.LEFT in held:
            self._extend(event)
        else:
            self.finish()

    def _released(self, event: MouseEvent) -> None:
        if event.button == MouseButton.LEFT:
            self._extend(event)
            self.finish()

    def _extend(self, event: LocationEvent) -> None:
        if self._corners:
            self._corners.append(self._place(event))
            self._line.set_data(*zip(*self._corners, strict=True))
            self._canvas.draw_idle()

    def _place(self, event: LocationEvent) -> tuple[float, float]:
        x, y = self._axes.transData.inverted().transform((event.x, event.y))
        left, right, bottom, top = self._axes.images[0].get_extent()
        return float(np.clip(x, left, right)), float(np.clip(y, top, bottom))


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
