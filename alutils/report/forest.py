"""Differences with their intervals, one line each: the claims of the paper, and one difference under many readings."""

from __future__ import annotations

import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import blended_transform_factory

from alutils.lab.figures import BLACK, BLUE, GREEN, ORANGE, VERMILION
from alutils.report.claims import NOT_SUPPORTED, PLAN, SUPPORTED, TOO_FEW, UNDECIDED, Region, with_interval

_STYLES = {SUPPORTED: (GREEN, "o"), NOT_SUPPORTED: (VERMILION, "X"), UNDECIDED: (BLUE, "s"), TOO_FEW: ("#767676", "|")}
_UNITS = {"positive": "% of the pixels", "share": "% of the lesions' pixels", "clicks": "clicks per image"}


def draw_forest(table: pd.DataFrame) -> Figure:
    """The claims' differences: the interval as a line, the claimed region shaded, the paper's number as a diamond.

    Args:
        table: from :func:`alutils.report.claims.judge`. Dice points share one axis, the other units have their own.
    """
    unit = table["by"].map(_UNITS).fillna("Dice points")
    parts = [part for _, part in table.groupby(unit, sort=False)]
    heights = [len(part) + part.index.nunique() for part in parts]
    order = {claim: k for k, claim in enumerate(table.index.unique())}
    figure, axes = plt.subplots(
        len(parts), figsize=(10, 1 + 0.24 * sum(heights) + 0.5 * len(parts)), squeeze=False, layout="constrained",
        height_ratios=heights,
    )  # fmt: skip
    for place, part in zip(axes.flat, parts, strict=True):
        rows = part.reset_index().sort_values("claim", key=lambda claims: claims.map(order), kind="stable")
        kinds = [next(kind for kind in _STYLES if verdict.startswith(kind)) for verdict in rows["verdict"]]
        regions = [Region.of(text) for text in rows["claimed"]]
        labels = rows["difference"].map(_spelled) + rows["by"].map({"area": ", area"}).fillna("")
        draw_intervals(place, rows.assign(label=labels), [_STYLES[kind] for kind in kinds], regions)
        two_ends = any(region.two_sided for region in regions)
        levels = "95 %, or 90 % where the shade has two ends" if two_ends else "95 %"
        place.set_xlabel(f"{unit[table['by'] == rows['by'].iloc[0]].iloc[0]} (intervals: {levels})", fontsize=9)
    keys = [
        *(Line2D([], [], color=colour, marker=marker, label=kind) for kind, (colour, marker) in _STYLES.items()),
        Line2D([], [], color=BLACK, marker="D", markerfacecolor="none", linestyle="none", label="the paper's number"),
        Patch(color=ORANGE, alpha=0.25, label="where the claim says that it lies"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def draw_readings(readings: pd.DataFrame) -> tuple[Figure, str]:
    """The table of :func:`alutils.report.readings.compare_readings`, one line per reading, and alternative text.

    Readings with fewer seeds than a verdict takes are grey.
    """
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.3 * len(readings)), layout="constrained")
    axes.axvspan(-1, 1, color="gray", alpha=0.12, linewidth=0)
    few = readings["seeds"] < PLAN["fewest_seeds"]
    draw_intervals(axes, readings, [_STYLES[TOO_FEW] if is_few else (BLUE, "o") for is_few in few])
    axes.set_xlabel("difference, Dice points (95 % interval; shaded: within one point)", fontsize=9)
    shown = readings.assign(seeds=few.map({True: " (too few seeds)", False: ""}))
    rows = "; ".join(f"{r.label}{r.seeds}: {with_interval(r.effect, r.low, r.high)}" for r in shown.itertuples())
    return figure, f"One line per reading, the difference with its interval. {rows}"


def draw_intervals(
    axes: Axes, rows: pd.DataFrame, styles: list[tuple[str, str]], regions: list[Region] | None = None
) -> None:
    """One line per row, from the top: an interval with its mean. The line ends in an arrow where it leaves the axis.

    Args:
        axes: to draw on.
        rows: ``label``, ``effect``, ``low``, ``high`` (NaN: no interval), ``seeds``, and maybe ``paper`` (a number to
            mark) and ``claim`` (a heading above the rows that have it).
        styles: colour and marker of each row.
        regions: the region to shade in each row.
    """
    columns = rows.reindex(columns=["label", "effect", "low", "high", "seeds", "paper", "claim"])
    limits = _limits(columns, regions)
    headings = columns["claim"].notna() & (columns["claim"] != columns["claim"].shift())
    places = np.arange(len(rows)) + headings.cumsum().to_numpy()
    across = blended_transform_factory(axes.figure.transFigure, axes.transData)  # the figure's width, the row's height
    for k, row in enumerate(columns.itertuples()):
        y, (colour, marker) = places[k], styles[k]
        if headings.iloc[k]:
            heading = axes.text(0.01, y - 1, row.claim, transform=across, fontsize=9, weight="bold", va="center")
            heading.set_in_layout(False)  # it may lie above the intervals: its row has none
            heading.set_bbox({"color": "white", "pad": 1})
        if regions is not None:
            low, high = np.clip(regions[k], *limits)
            axes.barh(y, high - low, left=low, height=0.9, color=ORANGE, alpha=0.25, linewidth=0)
        low, high = np.clip([row.low, row.high], *limits)
        axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        for end, whole, arrow in ((low, row.low, "<"), (high, row.high, ">")):
            axes.plot(end, y, marker="|" if end == whole else arrow, color=colour, markersize=7, clip_on=False)
        axes.plot(np.clip(row.effect, *limits), y, marker=marker, color=colour, markersize=7, markeredgewidth=2)
        axes.plot(row.paper, y, marker="D", color=BLACK, markerfacecolor="none", markersize=8)
        shown = with_interval(row.effect, row.low, row.high, *([] if regions is None else [regions[k]]))
        axes.text(
            1.035, y, f"{shown}, {row.seeds} seeds", transform=axes.get_yaxis_transform(), fontsize=9, va="center"
        )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set(xlim=limits, ylim=(places.max() + 0.6, -0.6))
    axes.set_yticks(places, columns["label"], fontsize=9)
    axes.tick_params(axis="y", length=0, pad=8)  # an arrow at the left end needs room
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _spelled(difference: str) -> str:
    """partial-0.25-0.5 with the names of its thresholds, as a person would write it."""
    arms = (arm.replace("_", " ") for arm in difference.split(" - "))
    return " - ".join(re.sub(r"-([\d.]+)-([\d.]+)$", r" (\1, \2)", arm) for arm in arms)


def _limits(rows: pd.DataFrame, regions: list[Region] | None) -> tuple[float, float]:
    """Wide enough for the means, the marked numbers and the regions' ends, and for intervals within reason."""
    bounds = [bound for region in regions or [] for bound in region if math.isfinite(bound)]
    points = pd.concat([rows["effect"], rows["paper"], pd.Series([0.0, *bounds])]).dropna()
    reach = max(1.0, np.ptp(points))
    low, high = rows["low"].fillna(rows["effect"]), rows["high"].fillna(rows["effect"])
    return (
        float(max(min(low.min(), points.min()), points.min() - 4 * reach) - 0.05 * reach),
        float(min(max(high.max(), points.max()), points.max() + 4 * reach) + 0.05 * reach),
    )
