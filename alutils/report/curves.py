"""Curves of recorded runs: Fig. 4 (Dice over labelled images) and Fig. 5 (Dice and annotated pixels)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from alutils.lab.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from alutils.queries.registry import BASELINES
from alutils.report.endpoints import Results, arm_names
from alutils.report.statistics import spread
from alutils.report.tables import COSTS, costs, in_full

ARM_STYLES = {
    "random": (BLACK, "s", "dashed"),
    "least_confidence": (BLUE, "o", "solid"),
    "entropy": (VERMILION, "^", "solid"),
    "binary_entropy": (ORANGE, "v", "dashdot"),
    "mc_dropout": (GREEN, "D", "dotted"),
    "bald": (PURPLE, "P", "dotted"),
}
"""Colour, marker and line style of the paper's strategies and of two near them, the same in all figures."""

_OTHER_STYLES = [
    (colour, marker, "dashdot") for colour, marker in zip((ORANGE, PURPLE, SKY, "gray"), "X<>*", strict=True)
]

_COST_STYLES = [
    *((colour, marker, "solid") for colour, marker in zip((BLACK, BLUE, VERMILION, GREEN), "so^D", strict=True)),
    *((colour, marker, "dashed") for colour, marker in zip((ORANGE, PURPLE, "gray", SKY), "vPXd", strict=True)),
]
_BANDED = {"random", "least_confidence"}
_IN_FULL, _IN_PART = "least_confidence", "partial-0.25-0.5"
_WHOSE = {"val_dice": "validation", "test_dice": "test"}


def draw_with_differences(results: Results, title: str = "") -> tuple[Figure, str]:
    """Fig. 4 for recorded runs, limited to where the curves lie close together, with :func:`draw_differences` below.

    Args:
        results: from :func:`alutils.runs.collect.load_results`. The curves are of the test images, or of the validation
            images where runs were tested in the last round alone.
        title: of the figure.

    Returns:
        The figure and its alternative text. Without a run that queries, the figure is empty.
    """
    runs = in_full(results["runs"])
    rounds = results["rounds"][results["rounds"]["run"].isin(runs.loc[~runs["strategy"].isin(BASELINES), "run"])]
    value = "test_dice" if rounds["test_dice"].notna().all() else "val_dice"
    figure, (upper, lower) = plt.subplots(2, figsize=(7, 6), sharex=True, height_ratios=(3, 2), layout="constrained")
    full = runs.loc[runs["strategy"] == "full", value]
    draw_learning_curves(upper, rounds, full, value)
    upper.set(title=title, xlabel="")
    if rounds.empty:
        return figure, "No run queries images and has them annotated in full, so there is no curve."
    zoom_on_the_end(upper, rounds, value)
    if len(full):
        upper.set_ylim(top=max(upper.get_ylim()[1], 100 * full.max() + 0.3))
    if rounds["strategy"].eq("random").any():
        draw_differences(lower, rounds, "random", value)
    ends = 100 * rounds[rounds["round"] == rounds["round"].max()].groupby("strategy")[value].mean()
    alt = (
        f"{_WHOSE[value].capitalize()} Dice over the labelled images, one line per strategy; below, the difference "
        "of each from random selection, with its interval over seeds. At the end: "
    )
    return figure, alt + ", ".join(f"{_spelled(arm)} {dice:.1f} %" for arm, dice in ends.items())


def draw_dice_over_costs(results: Results, arms: Sequence[str], title: str = "") -> tuple[Figure, str]:
    """Test Dice over images, verified pixels and clicks (:func:`alutils.report.tables.costs`), and alternative text."""
    spent = costs(results, arms)
    figure, axes = plt.subplots(1, len(COSTS), figsize=(11, 4), sharey=True, layout="constrained")
    for place, currency in zip(axes, COSTS, strict=True):
        _draw_costs(place, spent, currency)
        zoom_on_the_end(place, spent, "test_dice", share=0.8)
    axes[1].set_xscale("log")  # the bands lie close together at the left
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
    axes[1].xaxis.set_minor_locator(NullLocator())
    axes[1].xaxis.set_major_formatter(ScalarFormatter())
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), frameon=False, fontsize=8
    )
    figure.suptitle(title, fontsize=9)
    ends = spent[spent["round"] == spent["round"].max()].groupby("arm", observed=True)[["clicks", "test_dice"]].mean()
    alt = "Test Dice over the labelled images, the pixels verified and the clicks, one line per way to annotate. "
    return figure, f"{alt}At the end: " + "; ".join(
        f"{_spelled(arm)} {row.clicks:.0f} clicks, {100 * row.test_dice:.1f} %" for arm, row in ends.iterrows()
    )


def draw_rounds_in_part(many: Mapping[str, Results]) -> tuple[Figure, str]:
    """Fig. 5 for several results, given by name, and its alternative text.

    Above, the validation Dice with partial annotation (tau_u = 0.25) and with full annotation, both of the images that
    least confidence asks for. Below, the pixels that the expert verifies and labels as lesion, query by query, the
    paper's 5 and 21 %, and how much of the cold start is lesion. Lines are means, bands go from the lowest to the
    highest seed.
    """
    size = (5.5 * len(many), 5.5)
    figure, axes = plt.subplots(2, len(many), figsize=size, sharex="col", squeeze=False, layout="constrained")
    for (upper, lower), (name, results) in zip(axes.T, many.items(), strict=True):
        arms = arm_names(results["runs"]).set_axis(results["runs"]["run"])
        labelled = results["rounds"].set_index(["run", "round"])["n_labelled"]
        queries = results["annotations"].query("round > 0").join(labelled, on=["run", "round"])
        first = results["annotations"].query("round == 0")
        by_lot = first.loc[first["run"].map(arms).isin([_IN_FULL, _IN_PART]), "positive_percent"].mean()
        for arm, kind, colour, marker, line in (
            (_IN_FULL, "full annotation", BLACK, "s", "dashed"),
            (_IN_PART, "partial annotation", BLUE, "o", "solid"),
        ):
            rounds, asked = (
                table[table["run"].map(arms) == arm].set_index("n_labelled") for table in (results["rounds"], queries)
            )
            if rounds.empty:
                continue
            style = {"colour": colour, "marker": marker, "linestyle": line}
            _draw_means(upper, 100 * rounds["val_dice"], label=kind, **style)
            _draw_means(lower, asked["positive_percent"], label=f"labelled as lesion, {kind}", **style)
            if arm == _IN_PART:
                style = {"colour": VERMILION, "marker": "^", "linestyle": "dashdot"}
                _draw_means(lower, asked["verify_percent"], label=f"verified, {kind}", **style)
        lower.axhline(
            by_lot, color=GREEN, linewidth=0.8, linestyle="--", label=f"lesion in the cold start: {by_lot:.0f} %"
        )
        for percent in (5, 21):
            lower.axhline(percent, color="gray", linewidth=0.8, linestyle=":")
            lower.text(1.01, percent, f"{percent} %", transform=lower.get_yaxis_transform(), fontsize=8, va="center")
        upper.set_title(name, fontsize=9)
        upper.set(ylabel="validation Dice (%)")
        upper.legend(frameon=False, fontsize=8)
        lower.set(xlabel="labelled images", ylabel="% of the pixels", ylim=(0, 103))
        lower.legend(frameon=False, fontsize=8)
    return figure, (
        "Above, validation Dice over the labelled images, with full annotation and with partial annotation at tau_u = "
        "0.25. Below, query by query, the pixels that the expert labels as lesion either way and those that partial "
        "annotation asks to verify, in per cent. Lines mark the paper's 5 and 21 % and the cold start's lesion area."
    )


def draw_learning_curves(axes: Axes, rounds: pd.DataFrame, full: pd.Series, value: str = "val_dice") -> None:
    """Fig. 4: Dice over labelled images. Each strategy has a line (mean) and a band (worst to best seed).

    Many bands would cover each other, so of three or more strategies only those of :data:`_BANDED` have one.

    Args:
        axes: to draw on.
        rounds: ``strategy``, ``n_labelled`` and ``value`` (0 to 1), of all seeds.
        full: Dice of the full-data runs, 0 to 1, one per seed; empty: no level is drawn.
        value: "val_dice" or "test_dice".
    """
    styles = _styles(rounds["strategy"])
    banded = set(rounds["strategy"]) if rounds["strategy"].nunique() < 3 else _BANDED
    for strategy, group in rounds.groupby("strategy"):
        colour, marker, line = styles[strategy]
        dice = 100 * group.set_index("n_labelled")[value]
        band = 0.15 if strategy in banded else 0.0
        _draw_means(axes, dice, colour=colour, marker=marker, linestyle=line, label=_spelled(strategy), band=band)
    if len(full):
        axes.axhline(100 * full.mean(), color="gray", linewidth=1, label="full data: mean, worst and best seed")
        for end in (full.min(), full.max()):
            axes.axhline(100 * end, color="gray", linewidth=0.8, linestyle="dotted")
    axes.set(xlabel="labelled images", ylabel=f"{_WHOSE[value]} Dice (%)")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _styles(strategies: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """:data:`ARM_STYLES`, and beside them styles for strategies that have none there, in the order of their names."""
    others = sorted(set(strategies) - ARM_STYLES.keys())
    return ARM_STYLES | dict(zip(others, cycle(_OTHER_STYLES), strict=False))


def zoom_on_the_end(axes: Axes, rounds: pd.DataFrame, value: str = "val_dice", share: float = 0.6) -> None:
    """Limit the height to the last ``share`` of the rounds, where curves lie close together."""
    late = rounds[rounds["round"] >= (1 - share) * rounds["round"].max()]
    lowest, highest = 100 * late[value].min(), 100 * rounds[value].max()
    margin = max(0.5, 0.1 * (highest - lowest))
    axes.set_ylim(lowest - margin, highest + margin)


def draw_differences(axes: Axes, rounds: pd.DataFrame, baseline: str = "random", value: str = "val_dice") -> None:
    """Below Fig. 4: each strategy minus the baseline, paired by seed, with a 95 % interval over seeds at each round.

    ``rounds`` are those of :func:`draw_learning_curves`. The intervals hold round by round, not for a whole curve.
    """
    tables = {
        strategy: group.pivot_table(index="seed", columns="n_labelled", values=value)
        for strategy, group in rounds.groupby("strategy")
    }
    others = [strategy for strategy in tables if strategy != baseline]
    styles, largest = _styles(tables), 0.8
    for k, strategy in enumerate(others):
        both = 100 * (tables[strategy] - tables[baseline]).dropna()
        found = pd.DataFrame([spread(both[n]).difference()[:3] for n in both], both.columns, ["mean", "low", "high"])
        colour, marker, line = styles[strategy]
        step = np.diff(both.columns).min(initial=10) if len(both.columns) > 1 else 10
        largest = max(largest, found["mean"].abs().max())
        x = found.index + 0.12 * step * (k - (len(others) - 1) / 2)  # side by side
        axes.errorbar(
            x, found["mean"], [found["mean"] - found["low"], found["high"] - found["mean"]], color=colour,
            marker=marker, linestyle=line, markersize=4, linewidth=1, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    axes.axhline(0, color=ARM_STYLES["random"][0], linestyle="dashed", linewidth=1)
    axes.set_ylim(-2.5 * largest, 2.5 * largest)  # intervals of a few seeds would hide the means
    axes.set(xlabel="labelled images", ylabel=f"minus {_spelled(baseline)}\n(Dice points)")


def _draw_costs(axes: Axes, spent: pd.DataFrame, currency: str) -> None:
    for k, (arm, group) in enumerate(spent.groupby("arm", sort=False)):
        means = group.groupby("round")[[currency, "test_dice"]].mean()
        colour, marker, line = _COST_STYLES[k % len(_COST_STYLES)]
        axes.plot(means[currency], 100 * means["test_dice"], color=colour, marker=marker, linestyle=line,
                  markersize=4, label=_spelled(arm))  # fmt: skip
    axes.set(xlabel=currency, ylabel="test Dice (%)")


def _draw_means(axes: Axes, values: pd.Series, *, colour: str, band: float = 0.12, **line: str) -> None:
    """The mean of the ``values`` at each place of their index; a band of this opacity goes from lowest to highest."""
    found = values.groupby(level=0).agg(["mean", "min", "max"])
    axes.plot(found.index, found["mean"], color=colour, markersize=4, **line)
    if band:
        axes.fill_between(found.index, found["min"], found["max"], color=colour, alpha=band, linewidth=0)


def _spelled(arm: str) -> str:
    return arm.replace("_", " ")
