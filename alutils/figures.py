"""Figures: shown with alternative text, saved as files, in colours that survive print and colour blindness."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import torch
from IPython import get_ipython
from IPython.display import DisplayHandle, Image, display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alutils.files import replacing
from alutils.uncertainty import binary_entropy, least_confidence, one_sided_entropy

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
    quick: bool = False,
) -> None:
    """Show a figure in the notebook with alternative text, save it, and close it.

    Args:
        figure: from matplotlib.
        alt: what a reader who cannot see the figure has to know: what is drawn, and what it shows.
        save_as: a path without suffix; ``.png`` and ``.svg`` files are written there. None: it is only shown.
        dpi: resolution of the picture in the notebook; the files have twice as much.
        update: what ``display(display_id=True)`` returned: the figure takes that one's place.
        quick: for a figure that follows a slider: its margins are not cut off, which needs a second drawing, and it is
            a JPEG without a search for the smallest file.

    Raises:
        ValueError: if there is no alternative text.

    >>> figure = plt.figure(figsize=(1, 1))
    >>> show_figure(figure, "An empty figure.")
    <IPython.core.display.Image object>
    """
    if not alt.strip():
        raise ValueError("alt: describe the figure for readers who cannot see it")
    shown = _quick_picture(figure, dpi) if quick else _smallest_picture(figure, dpi)
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


def someone_is_there() -> bool:
    """Whether an editor runs this cell: JupyterLab, Notebook and VS Code say which, papermill and nbconvert do not.

    >>> someone_is_there()
    False
    """
    shell = get_ipython()
    return hasattr(shell, "get_parent") and "cellId" in shell.get_parent().get("metadata", {})


def _smallest_picture(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG of 256 colours, which suits charts, or a JPEG, which suits photographs: the smaller one."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    picture = PIL.Image.open(drawn).convert("RGB")
    chart, photograph = io.BytesIO(), io.BytesIO()
    picture.quantize(256, dither=PIL.Image.Dither.NONE).save(chart, "PNG", optimize=True)
    picture.save(photograph, "JPEG", quality=85, optimize=True)
    return min(chart.getvalue(), photograph.getvalue(), key=len)


def _quick_picture(figure: Figure, dpi: int) -> bytes:
    """The figure as a JPEG of the size that it was laid out for."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="jpeg", dpi=dpi, pil_kwargs={"quality": 85})
    return drawn.getvalue()


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
    axes.imshow(label_colours(image, mask, human))
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def label_colours(image: torch.Tensor, mask: torch.Tensor, human: torch.Tensor) -> np.ndarray:
    """The picture that :func:`draw_labels` draws, from the same arguments: float32 (H, W, 3), 0 to 1.

    >>> image, mask = torch.zeros(3, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1)
    >>> label_colours(image, mask, human=1 - mask).round(2).tolist()  # 0.65 of the model's white
    [[[0.62..., 0.62..., 0.62...]]]
    """
    grey = image.detach().cpu().float().mean(0, keepdim=True).permute(1, 2, 0).numpy() / 255
    whose = (2 * human.detach().cpu().int() + mask.detach().cpu().int()).squeeze(0).numpy()
    colours = np.array([to_rgb(colour) for colour in LABELLED_BY.values()], dtype=np.float32)[whose]
    return 0.35 * grey + 0.65 * colours


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
        shapes: from :func:`alutils.network.feature_shapes`.

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


def draw_measures(axes: Axes, marks: Sequence[float] = (0.5, math.exp(-1), 0.5)) -> None:
    """Section III-A: eq. 1 (turned over), eq. 2 and the binary entropy over the probability of lesion.

    Args:
        axes: to draw on.
        marks: where a dot stands on each of the three curves, 0 to 1; at first at their maxima.
    """
    p = torch.linspace(0, 1, 501)
    measures = {
        "0.5 - least confidence (eq. 1)": (lambda x: 0.5 - least_confidence(x), BLUE, "solid"),
        "one-sided entropy (eq. 2)": (one_sided_entropy, VERMILION, "dashed"),
        "binary entropy": (binary_entropy, BLACK, "dotted"),
    }
    for (name, (measure, colour, style)), mark in zip(measures.items(), marks, strict=True):
        axes.plot(p, measure(p), color=colour, linestyle=style, label=name)
        axes.plot(mark, measure(torch.tensor([mark])), "o", color=colour)
    axes.set(xlabel=r"probability of lesion, $\hat y$", ylabel="uncertainty")
    axes.legend(frameon=False, fontsize=8)


ARM_STYLES = {
    "random": (BLACK, "s", "dashed"),
    "least_confidence": (BLUE, "o", "solid"),
    "entropy": (VERMILION, "^", "solid"),
    "binary_entropy": (ORANGE, "v", "dashdot"),
    "mc_dropout": (GREEN, "D", "dotted"),
    "bald": (PURPLE, "P", "dotted"),
}
"""Colour, marker and line of each strategy, the same in all figures."""


def draw_learning_curves(axes: Axes, rounds: pd.DataFrame, full: pd.Series) -> None:
    """Fig. 4: validation Dice over labelled images, a line for each strategy's mean, a band from worst to best seed.

    Args:
        axes: to draw on.
        rounds: ``strategy``, ``n_labelled`` and ``val_dice`` (0 to 1), of all seeds.
        full: validation Dice of the full-data runs, 0 to 1, one a seed; empty: no level is drawn.
    """
    for strategy, its in rounds.groupby("strategy"):
        dice = 100 * its.groupby("n_labelled")["val_dice"].agg(["mean", "min", "max"])
        colour, marker, line = ARM_STYLES.get(strategy, ("gray", "x", "solid"))
        axes.plot(dice.index, dice["mean"], color=colour, marker=marker, markersize=4, linestyle=line, label=strategy)
        axes.fill_between(dice.index, dice["min"], dice["max"], color=colour, alpha=0.12, linewidth=0)
    if len(full):
        axes.axhline(100 * full.mean(), color="gray", linewidth=1, label="full data (mean)")
        axes.axhspan(100 * full.min(), 100 * full.max(), color="gray", alpha=0.12, linewidth=0)
    axes.set(xlabel="labelled images", ylabel="validation Dice (%)")
    axes.legend(frameon=False, fontsize=8)


def draw_annotation_curves(upper: Axes, lower: Axes, rounds: pd.DataFrame, annotations: pd.DataFrame) -> None:
    """Fig. 5: validation Dice, and below it the share of pixels annotated at each query, over the labelled images.

    Args:
        upper: for the Dice.
        lower: for the pixels.
        rounds: of runs with one annotation mode, ``round``, ``n_labelled`` and ``val_dice``, of all seeds.
        annotations: of the same runs, ``round``, ``verify_percent`` and ``positive_percent`` of each image.
    """
    dice = 100 * rounds.groupby("n_labelled")["val_dice"].agg(["mean", "min", "max"])
    upper.plot(dice.index, dice["mean"], "o-", color=BLUE, markersize=4)
    upper.fill_between(dice.index, dice["min"], dice["max"], color=BLUE, alpha=0.15, linewidth=0)
    upper.set(ylabel="validation Dice (%)")
    labelled = rounds.groupby("round")["n_labelled"].mean()
    queries = annotations[annotations["round"] > 0].groupby("round")[["verify_percent", "positive_percent"]].mean()
    queries = queries.set_index(queries.index.map(labelled))
    lower.plot(queries["verify_percent"], "s-", color=BLACK, markersize=4, label="to verify")
    lower.plot(queries["positive_percent"], "^--", color=ORANGE, markersize=4, label="positive (annotated)")
    lower.axhline(5, color="gray", linewidth=0.8, linestyle=":", label="5 %")
    lower.set(xlabel="labelled images", ylabel="% of the pixels", ylim=(0, 103))
    lower.legend(frameon=False, fontsize=8)


def draw_loop() -> Figure:
    """Fig. 1: the five steps of active learning, in a circle between pool, oracle, labelled set and model.

    >>> len(draw_loop().axes[0].texts) > 8
    True
    """
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    places = {
        "pool\nof unlabelled images": (0, 1),
        "queried images": (2, 1),
        "oracle\n(expert)": (4, 1),
        "labelled set": (4, 0),
        "model": (2, 0),
        "evaluation": (0, 0),
    }
    for text, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": BLUE}
        ax.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box)
    arrows = {
        "(2) select": ((0.75, 1), (1.4, 1)),
        "(3) ask": ((2.6, 1), (3.5, 1)),
        "annotate": ((4, 0.75), (4, 0.2)),
        "(4) train": ((3.4, 0), (2.4, 0)),
        "(5) evaluate": ((1.6, 0), (0.6, 0)),
        "(1) score": ((1.8, 0.2), (0.4, 0.72)),
    }
    for text, (start, end) in arrows.items():
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": BLACK})
        away = (0.35, 0) if start[0] == end[0] else (0, 0.08)
        middle = (start[0] + end[0]) / 2 + away[0], (start[1] + end[1]) / 2 + away[1]
        ax.text(*middle, text, ha="center", fontsize=8)
    ax.set(xlim=(-0.9, 4.8), ylim=(-0.4, 1.4))
    ax.set_axis_off()
    return figure
