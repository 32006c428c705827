"""Figures: shown with alternative text, saved as files, in colours that survive print and colour blindness."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch
from IPython.display import DisplayHandle, Image, display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from alutils.system.files import replacing

# Okabe and Ito's palette: people with any kind of colour vision can tell the colours apart. Pair it with line styles or
# markers for print.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000",
)  # fmt: skip
TRUTH, PREDICTION = SKY, ORANGE
TRUTH_AMONG_LABELS = YELLOW  # in figures with the colours of LABELLED_BY, one of which is blue
DPI = 80  # of pictures in a notebook; saved ones have twice as much
LABELLED_BY = {
    "model: background": "#303030",
    "model: lesion": "#F5F5F5",
    "human: background": BLUE,
    "human: lesion": ORANGE,
}


def show_figure(
    figure: Figure, alt: str, *, save_as: str | Path | None = None, update: DisplayHandle | None = None
) -> None:
    """Show a figure in the notebook with alternative text, save it, and close it.

    Args:
        figure: from matplotlib.
        alt: what a reader who cannot see the figure needs to know: what is drawn, and what it shows.
        save_as: a path without suffix; a ``.png`` and a ``.svg`` file are written there.
        update: what ``display(display_id=True)`` returned. The figure replaces that output and is drawn in the fastest
            way, because it follows a slider: with its margins, and as a JPEG.

    Raises:
        ValueError: if there is no alternative text.
    """
    if not alt.strip():
        raise ValueError("alt: describe the figure for readers who cannot see it")
    picture = _picture(figure, fast=update is not None)
    if save_as is not None:
        with plt.rc_context({"svg.hashsalt": "alutils"}):  # equal figures give equal files, whenever they are drawn
            for suffix, no_date in ((".png", None), (".svg", {"Date": None})):
                with replacing(f"{save_as}{suffix}") as file:
                    figure.savefig(file, format=suffix[1:], dpi=2 * DPI, bbox_inches="tight", metadata=no_date)
    plt.close(figure)
    show = display if update is None else update.update
    show(Image(picture, alt=re.sub(r"\s+", " ", alt.strip())))


def _picture(figure: Figure, fast: bool) -> bytes:
    """The smaller one of a PNG of few colours, which suits charts, and a JPEG, which suits photographs."""
    drawn = io.BytesIO()
    if fast:  # with margins, because matplotlib draws twice to cut them off
        figure.savefig(drawn, format="jpeg", dpi=DPI, pil_kwargs={"quality": 85})
        return drawn.getvalue()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
    picture = PIL.Image.open(drawn).convert("RGB")
    chart, photograph = io.BytesIO(), io.BytesIO()
    colours = 256 if any(axes.images for axes in figure.axes) else 64
    how = {"method": PIL.Image.Quantize.MAXCOVERAGE, "dither": PIL.Image.Dither.NONE}  # it keeps small marks' colours
    picture.quantize(colours, **how).save(chart, "PNG", optimize=True)
    picture.save(photograph, "JPEG", quality=70, optimize=True)
    return min(chart.getvalue(), photograph.getvalue(), key=len)


def draw_image(axes: Axes, image: torch.Tensor, title: str = "") -> None:
    """Draw a picture without ticks: (3, H, W) in colour, uint8 or float, or (1, H, W) or (H, W) in grey, 0 to 1."""
    pixels = image.detach().cpu().squeeze(0).numpy()
    pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation=_interpolation(pixels))
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _interpolation(pixels: np.ndarray) -> str:
    """Small pictures are enlarged pixel by pixel, without blur; large ones are shrunk without stray patterns."""
    return "nearest" if len(pixels) <= 128 else "auto"


def draw_outline(axes: Axes, mask: torch.Tensor, colour: str, style: str = "solid", width: float = 1.5) -> None:
    """Draw where a mask or a probability map, (1, H, W), reaches 0.5; a dark edge shows the line on any skin.

    ``colour`` and ``style`` are matplotlib's, ``width`` is in points.
    """
    level = np.pad(mask.detach().cpu().squeeze(0).float().numpy(), 1)  # so that it closes at the picture's edge
    grid = np.arange(-1, level.shape[1] - 1), np.arange(-1, level.shape[0] - 1)
    if level.min() < 0.5 <= level.max():
        axes.contour(*grid, level, [0.5], colors=BLACK, linewidths=width + 1.2, alpha=0.6)
        axes.contour(*grid, level, [0.5], colors=colour, linewidths=width, linestyles=style)


def draw_labels(  # seven parameters: where to draw, what, and how
    axes: Axes,
    image: torch.Tensor,
    mask: torch.Tensor,
    human: torch.Tensor,
    title: str = "",
    *,
    truth: torch.Tensor | None = None,
    width: float = 1.5,
) -> None:
    """Draw the colours of :func:`label_colours`, and over them a true mask's outline.

    Args:
        axes: to draw on.
        image, mask, human: those of :func:`label_colours`.
        title: above the picture.
        truth: the true mask, (1, H, W), 0 and 1; None: no outline.
        width: of the outline, in points.
    """
    draw_image(axes, torch.from_numpy(label_colours(image, mask, human)).permute(2, 0, 1), title)
    if truth is not None:
        draw_outline(axes, truth, TRUTH_AMONG_LABELS, width=width)


def label_colours(image: torch.Tensor, mask: torch.Tensor, human: torch.Tensor) -> np.ndarray:
    """The picture in grey, the human's labels over it in colour, the model's in black and white.

    ``image`` is uint8 (3, H, W). ``mask`` and ``human`` are (1, H, W), 0 and 1; where ``human`` is 1, the label is the
    human's. The colours are float32 (H, W, 3), 0 to 1.
    """
    grey = image.detach().cpu().float().mean(0, keepdim=True).permute(1, 2, 0).numpy() / 255
    whose = (2 * human.detach().cpu().int() + mask.detach().cpu().int()).squeeze(0).numpy()
    colours = np.array([to_rgb(colour) for colour in LABELLED_BY.values()], dtype=np.float32)[whose]
    return 0.35 * grey + 0.65 * colours


def label_legend(figure: Figure, *, outline: bool = False) -> None:
    """Explain the colours of :func:`label_colours` below the figure, and the true outline if there is one."""
    handles = [Patch(facecolor=colour, edgecolor="gray", label=name) for name, colour in LABELLED_BY.items()]
    if outline:
        edge = [withStroke(linewidth=3, foreground=BLACK)]
        handles.append(Line2D([], [], color=TRUTH_AMONG_LABELS, label="true outline", path_effects=edge))
    n_columns = len(handles) if figure.get_figwidth() > 6 else 2  # in one row they are wider than a small figure
    figure.legend(handles=handles, loc="outside lower center", ncols=n_columns, fontsize=8, frameon=False)


def contact_sheet(
    images: torch.Tensor,
    *,
    truths: torch.Tensor | None = None,
    predictions: torch.Tensor | None = None,
    titles: Sequence[str] = (),
    n_columns: int = 6,
) -> Figure:
    """Many pictures side by side, with the outlines of true masks (blue, solid) and predicted ones (orange, dashed).

    Args:
        images: uint8 (N, 3, H, W).
        truths: masks (N, 1, H, W), 0 and 1.
        predictions: probabilities, 0 to 1, or masks (N, 1, H, W).
        titles: one above each picture, or none.
        n_columns: pictures side by side.
    """
    n_rows = -(-len(images) // n_columns)
    side = 9.5 / n_columns
    size = (9.5, (side + 0.2) * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for i, place in enumerate(axes.flat):
        place.set_axis_off()
        if i < len(images):
            draw_image(place, images[i], titles[i] if titles else "")
            if truths is not None:
                draw_outline(place, truths[i], TRUTH)
            if predictions is not None:
                draw_outline(place, predictions[i], PREDICTION, "dashed")
    return figure


def draw_pictures(axes: Axes, pictures: Mapping[str, np.ndarray], n_columns: int) -> None:
    """Draw titled, framed pictures of one size, (H, W, 3), on one axes: much faster than one axes per picture."""
    height, width = next(iter(pictures.values())).shape[:2]
    gap, head = 0.04 * width, 0.13 * height
    axes.set_axis_off()
    for i, (title, picture) in enumerate(pictures.items()):
        left, top = (i % n_columns) * (width + gap), (i // n_columns) * (height + head)
        extent = (left, left + width, top + height, top)
        axes.imshow(picture, extent=extent, interpolation=_interpolation(picture))
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="gray", linewidth=0.5))
        axes.text(left + width / 2, top - 0.03 * height, title, fontsize=9, ha="center", va="bottom")
    n_rows = -(-len(pictures) // n_columns)
    axes.set(xlim=(0, n_columns * (width + gap) - gap), ylim=(n_rows * (height + head) - head, -head))


def as_rgb(image: torch.Tensor) -> np.ndarray:
    """float32 (H, W, 3) from 0 to 1, of a picture in colour, uint8 (3, H, W), or in grey, (1, H, W) from 0 to 1."""
    pixels = image.detach().cpu().float() / (255 if image.shape[0] == 3 else 1)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
