"""Drawings that explain the method: the loop of Fig. 1, the network, and the measures of section III-A."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

from alutils.lab.figures import BLACK, BLUE, GREEN, PURPLE, VERMILION
from alutils.uncertainty import binary_entropy, least_confidence, one_sided_entropy


def draw_loop() -> Figure:
    """Draw Fig. 1: the five steps of active learning between pool, oracle, labelled set and model, and the way back."""
    figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width, height = 1.4, 0.36
    places = {
        "pool of\nunlabelled images": (0, 1),
        "queried images": (2.4, 1),
        "oracle (expert)": (4.8, 1),
        "evaluation": (0, 0),
        "model": (2.4, 0),
        "labelled set": (4.8, 0),
    }
    for text, (x, y) in places.items():
        corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.08"
        ax.add_patch(FancyBboxPatch(corner, width, height, style, facecolor="white", edgecolor=BLUE, linewidth=1.5))
        ax.text(x, y, text, ha="center", va="center", fontsize=10)
    right, up = width / 2, height / 2
    arrows = {
        "(2) select": ((right, 1), (2.4 - right, 1)),
        "(3) ask": ((2.4 + right, 1), (4.8 - right, 1)),
        "add the\nannotated images": ((4.8, 1 - up), (4.8, up)),
        "(4) train": ((4.8 - right, 0), (2.4 + right, 0)),
        "(5) evaluate": ((2.4 - right, 0), (right, 0)),
        "(1) score": ((2.4 - right / 2, up), (right * 0.9, 1 - up)),
        "repeat until the\nbudget is spent": ((0, up), (0, 1 - up)),
    }
    for text, (start, end) in arrows.items():
        arrow = {"arrowstyle": "-|>", "color": BLACK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
        repeated = text.startswith("repeat")
        ax.annotate("", end, start, arrowprops=arrow | ({"linestyle": (0, (4, 3)), "lw": 1.3} if repeated else {}))
        (x0, y0), (x1, y1) = start, end
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if y0 == y1:
            ax.text(x, y + 0.04, text, ha="center", va="bottom", fontsize=9)
        else:
            side = -1 if repeated or x0 > 4 else 1
            ax.text(x + 0.1 * side, y, text, ha="right" if side < 0 else "left", va="center", fontsize=9)
    ax.set(xlim=(-1.2, 5.6), ylim=(-0.25, 1.25))
    ax.set_axis_off()
    return figure


def draw_unet(shapes: pd.DataFrame, *, skip_convolutions: bool = True) -> Figure:
    """Draw the network as boxes joined by arrows, with a key: the encoder goes down, the decoder up, skips lead across.

    Args:
        shapes: ``channels`` and ``size`` of each stage, called "encoder 1", "decoder 1" and so on.
        skip_convolutions: as in the experiment, whether a 1x1 convolution lies on each way across.
    """
    size = shapes["size"].max()
    ends = pd.DataFrame({"channels": [3, 1], "size": [size, size]}, index=["image", "logits"])
    stages = pd.concat([ends[:1], shapes, ends[1:]])
    places = {name: (x, -y) for x, (name, y) in enumerate(np.log2(size / stages["size"]).round().items())}
    figure, ax = plt.subplots(figsize=(9.5, 4.4), layout="constrained")
    kinds = {"encoder": (BLUE, "encoder: ResNet-18"), "decoder": (GREEN, "decoder"), "": ("dimgray", "input, output")}
    for name, (x, y) in places.items():
        colour, _ = kinds.get(name.split()[0], kinds[""])
        ax.add_patch(Rectangle((x - _WIDE, y - _HIGH), 2 * _WIDE, 2 * _HIGH, color=colour))
        label = f"{name}\n{stages.loc[name, 'channels']} x {stages.loc[name, 'size']}²"
        ax.text(x, y, label, ha="center", va="center", color="white", fontsize=8)
    convolved = "1x1 convolution, batch norm" if skip_convolutions else "unchanged"
    arrows = {"next stage": (BLACK, "solid"), f"skip: {convolved}": (VERMILION, "dashed")}
    arrows[f"{convolved}, dropout"] = (PURPLE, "dotted")
    for (start, here), (end, there) in itertools.combinations(places.items(), 2):
        across, follows = start.startswith("encoder") and end.startswith("decoder"), there[0] == here[0] + 1
        if follows or (across and here[1] == there[1]):
            _join(ax, here, there, *arrows[list(arrows)[across + (across and follows)]])
    key = [Patch(color=colour, label=label) for colour, label in kinds.values()]
    key += [Line2D([], [], color=colour, linestyle=style, label=kind) for kind, (colour, style) in arrows.items()]
    title = {"title": "In each box: channels x pixels²", "title_fontsize": 8}
    figure.legend(handles=key, loc="outside lower center", ncols=3, fontsize=8, frameon=False, **title)
    ax.set(xlim=(-0.6, len(stages) - 0.4), ylim=(min(y for _, y in places.values()) - 0.5, 0.5))
    ax.set_axis_off()
    return figure


_WIDE, _HIGH = 0.42, 0.3  # half a box


def _join(ax: Axes, here: tuple[float, float], there: tuple[float, float], colour: str, style: str) -> None:
    """An arrow between two boxes: down and then right, right and then up, or straight across."""
    (x, y), (end_x, end_y) = here, there
    start, end, bend = (x + _WIDE, y), (end_x - _WIDE, end_y), {}
    if end_y < y:
        start, bend = (x, y - _HIGH), {"connectionstyle": "angle,angleA=90,angleB=0,rad=0"}
    elif end_y > y:
        end, bend = (end_x, end_y - _HIGH), {"connectionstyle": "angle,angleA=0,angleB=90,rad=0"}
    look = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=look | bend)


def draw_measures(axes: Axes, marks: Sequence[float] = (0.5, math.exp(-1), 0.5)) -> None:
    """Draw eq. 1 (turned over), eq. 2 and the binary entropy over the probability of lesion (section III-A).

    ``marks``: where a dot stands on each of the three curves, 0 to 1; by default at their maxima.
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
