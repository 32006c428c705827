"""Curves of recorded runs: Fig. 4 (Dice over labelled images) and Fig. 5 (Dice and annotated pixels)."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from alutils.lab.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION

ARM_STYLES = {
    "random": (BLACK, "s", "dashed"),
    "least_confidence": (BLUE, "o", "solid"),
    "entropy": (VERMILION, "^", "solid"),
    "binary_entropy": (ORANGE, "v", "dashdot"),
    "mc_dropout": (GREEN, "D", "dotted"),
    "bald": (PURPLE, "P", "dotted"),
}
"""Colour, marker and line style of each strategy, the same in all figures."""


def draw_learning_curves(axes: Axes, rounds: pd.DataFrame, full: pd.Series) -> None:
    """Fig. 4: validation Dice over labelled images. Each strategy has a line (mean) and a band (worst to best seed).

    Args:
        axes: to draw on.
        rounds: ``strategy``, ``n_labelled`` and ``val_dice`` (0 to 1), of all seeds.
        full: validation Dice of the full-data runs, 0 to 1, one per seed; empty: no level is drawn.
    """
    for strategy, group in rounds.groupby("strategy"):
        colour, marker, line = ARM_STYLES.get(strategy, ("gray", "x", "solid"))
        _draw_dice(axes, group, colour, marker=marker, linestyle=line, label=strategy)
    if len(full):
        axes.axhline(100 * full.mean(), color="gray", linewidth=1, label="full data (mean)")
        axes.axhspan(100 * full.min(), 100 * full.max(), color="gray", alpha=0.12, linewidth=0)
    axes.set(xlabel="labelled images", ylabel="validation Dice (%)")
    axes.legend(frameon=False, fontsize=8)


def draw_annotation_curves(upper: Axes, lower: Axes, rounds: pd.DataFrame, annotations: pd.DataFrame) -> None:
    """Fig. 5: validation Dice over labelled images, and below it the share of pixels annotated in each query.

    Args:
        upper, lower: for the Dice and for the pixels.
        rounds: ``round``, ``n_labelled`` and ``val_dice`` (0 to 1) of the runs of one annotation mode, all seeds.
        annotations: ``round``, ``verify_percent`` and ``positive_percent`` of each image of the same runs.
    """
    _draw_dice(upper, rounds, BLUE, band=0.15, marker="o")
    upper.set(ylabel="validation Dice (%)")
    labelled = rounds.groupby("round")["n_labelled"].mean()
    queries = annotations[annotations["round"] > 0].groupby("round")[["verify_percent", "positive_percent"]].mean()
    queries = queries.set_index(queries.index.map(labelled))
    lower.plot(queries["verify_percent"], "s-", color=BLACK, markersize=4, label="to verify")
    lower.plot(queries["positive_percent"], "^--", color=ORANGE, markersize=4, label="positive (annotated)")
    lower.axhline(5, color="gray", linewidth=0.8, linestyle=":", label="5 %")
    lower.set(xlabel="labelled images", ylabel="% of the pixels", ylim=(0, 103))
    lower.legend(frameon=False, fontsize=8)


def _draw_dice(axes: Axes, rounds: pd.DataFrame, colour: str, *, band: float = 0.12, **line: str) -> None:
    dice = 100 * rounds.groupby("n_labelled")["val_dice"].agg(["mean", "min", "max"])
    axes.plot(dice.index, dice["mean"], color=colour, markersize=4, **line)
    axes.fill_between(dice.index, dice["min"], dice["max"], color=colour, alpha=band, linewidth=0)
