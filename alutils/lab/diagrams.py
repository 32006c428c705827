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
from matplotlib.patches import FancyBboxPatch

from alutils.lab.figures import BLACK, BLUE, GREEN, VERMILION
from alutils.uncertainty import binary_entropy, least_confidence, one_sided_entropy


def draw_loop() -> Figure:
    """Draw Fig. 1: the five steps of active learning, between pool, oracle, labelled set and model, and the repeat."""
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
        corner = x - width / 2, y - height / 2
        ax.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.08", fc="white", ec=BLUE, lw=1.5))
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


def draw_unet(shapes: pd.DataFrame) -> Figure:
    """Draw the network as boxes: the encoder goes down, the decoder up, and larger feature maps have taller boxes.

    Args:
        shapes: ``channels`` and ``size`` of each stage, called "encoder 1", "decoder 1" and so on.
    """
    size = shapes["size"].max()
    ends = pd.DataFrame({"channels": [3, 1], "size": [size, size]}, index=["image", "lesion logits"])
    stages = pd.concat([ends[:1], shapes, ends[1:]])
    depths = np.log2(size / stages["size"]).round()
    figure, ax = plt.subplots(figsize=(9.5, 3.4), layout="constrained")
    colours = {"encoder": BLUE, "decoder": GREEN}
    places = {name: (x, -depth) for x, (name, depth) in enumerate(depths.items())}
    for name, (x, y) in places.items():
        height = 0.9 + 0.06 * y
        ax.add_patch(plt.Rectangle((x - 0.3, y - height / 2), 0.6, height, color=colours.get(name.split()[0], "gray")))
        label = f"{stages.loc[name, 'channels']}\n{stages.loc[name, 'size']}²"
        ax.text(x, y, label, ha="center", va="center", color="white", fontsize=8)
        ax.text(x, y - height / 2 - 0.08, name, ha="center", va="top", fontsize=7)
    for (name, (x, y)), (other, (other_x, other_y)) in itertools.product(places.items(), repeat=2):
        if name.startswith("encoder") and other.startswith("decoder") and y == other_y:
            ax.annotate("", (other_x - 0.35, y), (x + 0.35, y), arrowprops={"arrowstyle": "->", "linestyle": "--"})
            ax.text((x + other_x) / 2, y + 0.06, "1x1 convolution", ha="center", fontsize=7)
    bottom_x, bottom_y = min(places.values(), key=lambda place: (place[1], -place[0]))
    ax.text(bottom_x + 0.4, bottom_y, "1x1 convolution,\ndropout", fontsize=7, va="center")
    ax.set(xlim=(-0.6, len(stages) - 0.4), ylim=(bottom_y - 0.9, 0.6))
    ax.set_axis_off()
    return figure


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
