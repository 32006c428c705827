"""Figures: shown with alternative text, saved as files, in colours that survive print and colour blindness."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import torch
from IPython.display import DisplayHandle, Image, display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alutils.files import replacing

# Okabe and Ito's palette, told apart by all kinds of colour vision; pair it with line styles or markers for print.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000",
)  # fmt: skip
TRUTH, PREDICTION = SKY, ORANGE
LABELLED_BY = {
    "model: background": "#303030",
    "model: lesion": "#F5F5F5",
    "human: background": BLUE,
    "human: lesion": ORANGE,
}


def show_figure(
    figure: Figure,
    alt: str,
    *,
    save_as: str | Path | None = None,
    dpi: int = 80,
    update: DisplayHandle | None = None,
) -> None:
    """Show a figure in the notebook with alternative text, save it, and close it.

    Args:
        figure: from matplotlib.
        alt: what a reader who cannot see the figure has to know: what is drawn, and what it shows.
        save_as: a path without suffix; ``.png`` and ``.svg`` files are written there. None: it is only shown.
        dpi: resolution of the picture in the notebook; the files have twice as much.
        update: what ``display(display_id=True)`` returned: the figure takes that one's place.

    Raises:
        ValueError: if there is no alternative text.

    >>> figure = plt.figure(figsize=(1, 1))
    >>> show_figure(figure, "An empty figure.")
    <IPython.core.display.Image object>
    """
    if not alt.strip():
        raise ValueError("alt: describe the figure for readers who cannot see it")
    shown = _smallest_picture(figure, dpi)
    if save_as is not None:
        with plt.rc_context({"svg.hashsalt": "alutils"}):  # the same figure is the same file, whenever it was drawn
            for suffix, no_date in ((".png", None), (".svg", {"Date": None})):
                with replacing(f"{save_as}{suffix}") as file:
                    figure.savefig(file, format=suffix[1:], dpi=2 * dpi, bbox_inches="tight", metadata=no_date)
    plt.close(figure)
    image = Image(shown, alt=re.sub(r"\s+", " ", alt.strip()))
    if update is None:
        display(image)
    else:
        update.update(image)


def _smallest_picture(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG of 256 colours, which suits charts, or a JPEG, which suits photographs: the smaller one."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    picture = PIL.Image.open(drawn).convert("RGB")
    chart, photograph = io.BytesIO(), io.BytesIO()
    picture.quantize(256, dither=PIL.Image.Dither.NONE).save(chart, "PNG", optimize=True)
    picture.save(photograph, "JPEG", quality=85, optimize=True)
    return min(chart.getvalue(), photograph.getvalue(), key=len)


def draw_image(axes: Axes, image: torch.Tensor, title: str = "") -> None:
    """A picture without ticks: uint8 (3, H, W) in colour, or any (1, H, W) or (H, W) from 0 to 1 in grey."""
    pixels = image.detach().cpu().squeeze(0).numpy()
    axes.imshow(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_outline(axes: Axes, mask: torch.Tensor, colour: str, style: str = "solid", width: float = 1.5) -> None:
    """The outline of a mask or the 0.5 level of a probability map, (1, H, W); its dark edge shows on any skin."""
    level = np.pad(mask.detach().cpu().squeeze(0).float().numpy(), 1)  # the outline closes at the picture's edge
    grid = np.arange(-1, level.shape[1] - 1), np.arange(-1, level.shape[0] - 1)
    if level.min() < 0.5 <= level.max():
        axes.contour(*grid, level, [0.5], colors=BLACK, linewidths=width + 1.2, alpha=0.6)
        axes.contour(*grid, level, [0.5], colors=colour, linewidths=width, linestyles=style)


def draw_labels(axes: Axes, image: torch.Tensor, mask: torch.Tensor, human: torch.Tensor, title: str = "") -> None:
    """Who labelled which pixel, over the picture in grey: the human in colour, the model in black and white.

    Args:
        axes: to draw on.
        image: uint8 (3, H, W).
        mask: the labels, (1, H, W), 0 and 1.
        human: which of them came from the human, (1, H, W), bool or 0 and 1.
        title: above the picture.
    """
    grey = image.detach().cpu().float().mean(0, keepdim=True).permute(1, 2, 0).numpy() / 255
    whose = (2 * human.detach().cpu().int() + mask.detach().cpu().int()).squeeze(0).numpy()
    colours = np.array([to_rgb(colour) for colour in LABELLED_BY.values()])[whose]
    axes.imshow(0.35 * grey + 0.65 * colours)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def label_legend(figure: Figure) -> None:
    """What the colours of :func:`draw_labels` mean, below the figure."""
    patches = [Patch(facecolor=colour, edgecolor="gray", label=name) for name, colour in LABELLED_BY.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)


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
        truths: masks (N, 1, H, W).
        predictions: probabilities or masks (N, 1, H, W).
        titles: one a picture.
        n_columns: pictures a row.

    >>> contact_sheet(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), n_columns=2).axes[3].axison
    False
    """
    n_rows = -(-len(images) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(1.5 * n_columns, 1.7 * n_rows), squeeze=False, layout="tight"
    )
    for i, place in enumerate(axes.flat):
        place.set_axis_off()
        if i < len(images):
            draw_image(place, images[i], titles[i] if titles else "")
            if truths is not None:
                draw_outline(place, truths[i], TRUTH)
            if predictions is not None:
                draw_outline(place, predictions[i], PREDICTION, "dashed")
    return figure


def draw_unet(shapes: pd.DataFrame) -> Figure:
    """The network as boxes, as high as their pictures are large: the encoder goes down, the decoder up.

    Args:
        shapes: from :func:`alutils.model.feature_shapes`.

    >>> shapes = pd.DataFrame({"channels": [64, 32], "size": [32, 64]}, index=["encoder 1", "decoder 1"])
    >>> len(draw_unet(shapes).axes[0].patches)
    4
    """
    image = pd.DataFrame({"channels": [3], "size": [shapes["size"].max()]}, index=["image"])
    output = pd.DataFrame({"channels": [1], "size": [shapes["size"].max()]}, index=["lesion logits"])
    stages = pd.concat([image, shapes, output])
    figure, ax = plt.subplots(figsize=(9.5, 3.4), layout="constrained")
    levels = -np.log2(stages["size"] / stages["size"].max()).round()
    colours = {"encoder": BLUE, "decoder": GREEN}
    places = {}
    for x, (name, channels, size) in enumerate(stages.itertuples()):
        height = 0.9 - 0.06 * levels[name]
        places[name] = (x, -levels[name])
        box = plt.Rectangle(
            (x - 0.3, -levels[name] - height / 2), 0.6, height, color=colours.get(name.split()[0], "gray")
        )
        ax.add_patch(box)
        ax.text(x, -levels[name], f"{channels}\n{size}²", ha="center", va="center", color="white", fontsize=8)
        ax.text(x, -levels[name] - height / 2 - 0.08, name, ha="center", va="top", fontsize=7)
    for name, (x, y) in places.items():
        for other, (other_x, other_y) in places.items():
            if name.startswith("encoder") and other.startswith("decoder") and y == other_y:
                ax.annotate("", (other_x - 0.35, y), (x + 0.35, y), arrowprops={"arrowstyle": "->", "linestyle": "--"})
                ax.text((x + other_x) / 2, y + 0.06, "1x1 convolution", ha="center", fontsize=7)
    bottom = max(stages.index[stages["size"] == stages["size"].min()], key=lambda name: places[name][0])
    ax.text(places[bottom][0] + 0.4, places[bottom][1], "1x1 convolution,\ndropout", fontsize=7, va="center")
    ax.set(xlim=(-0.6, len(stages) - 0.4), ylim=(-levels.max() - 0.9, 0.6))
    ax.set_axis_off()
    return figure
