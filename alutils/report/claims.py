"""The paper's claims, one by one, held against runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pandas as pd

from alutils.report.statistics import Difference, paired_difference
from alutils.report.tables import cells, in_full, least_confidence_partial

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided at this scale"
MARGIN = 1.0  # Dice points: the paper's tables are rounded to one, so smaller differences count as similar

Results = Mapping[str, pd.DataFrame]
Measure = Callable[[Results], tuple[str, Difference]]


def judge(results: Results) -> pd.DataFrame:
    """Each claim with its effect, its interval and a verdict.

    The effect is the mean over seeds of the differences between paired runs, with its 95 % t interval. ``claimed`` is
    the region in which the claim says that it lies; :func:`verdict` compares the interval with it. ``effect``, ``low``
    and ``high`` are Dice points, or % of the pixels. Claims that there are no runs for are left out.

    Args:
        results: from :func:`alutils.runs.collect.load_results`.
    """
    rows = []
    for claim, where, region, measure in CLAIMS:
        try:
            measured, effect = measure(results)
        except KeyError:  # an arm that the claim is about was not run
            continue
        numbers = (effect.mean, effect.low, effect.high, effect.n_seeds)
        low, high = region
        below = f"below {high:g}" if low == -math.inf else f"{low:g} to {high:g}"
        claimed = f"above {low:g}" if high == math.inf else below
        rows.append((claim, where, measured, *numbers, claimed, verdict(effect, region)))
    columns = ["claim", "where", "measured", "effect", "low", "high", "seeds", "claimed", "verdict"]
    return pd.DataFrame(rows, columns=columns).set_index("claim")


def verdict(effect: Difference, region: tuple[float, float]) -> str:
    """Supported if the whole interval lies in ``region``, not supported if none of it does, else undecided.

    One seed has no interval and decides nothing.
    """
    low, high = region
    if effect.n_seeds < 2:
        return UNDECIDED
    if low < effect.low and effect.high < high:
        return SUPPORTED
    return NOT_SUPPORTED if effect.high <= low or effect.low >= high else UNDECIDED


def _dice(results: Results) -> dict[str, pd.Series]:
    """Table I in %, by seed."""
    runs = in_full(results["runs"])
    return {arm: 100 * group.set_index("seed")["test_dice"] for arm, group in runs.groupby("strategy")}


def _cells(results: Results) -> dict[tuple[float, float], pd.DataFrame]:
    """The runs of each cell of Table II, by seed."""
    runs = least_confidence_partial(results["runs"])
    return {cell: group.set_index("seed") for cell, group in runs.groupby(cells(runs))}


def _best(results: Results) -> tuple[str, Difference]:
    dice = _dice(results)
    rival = max(("random", "entropy", "mc_dropout"), key=lambda arm: dice[arm].mean())
    measured = f"least confidence - {rival}, the best of the others"
    return measured, paired_difference(dice["least_confidence"], dice[rival])


def _arms(measured: str, arm: str, baseline: str) -> Measure:
    return lambda results: (measured, paired_difference(_dice(results)[arm], _dice(results)[baseline]))


def _few_images(results: Results) -> tuple[str, Difference]:
    partial, full = _cells(results)[0.25, 0.5], in_full(results["runs"]).query("strategy == 'full'")
    share = partial["n_labelled"].max() / full["n_labelled"].max()
    effect = paired_difference(100 * partial["test_dice"], _dice(results)["full"])
    return f"partial annotation of {share:.0%} of the images - full data", effect


def _tau_b(results: Results) -> tuple[str, Difference]:
    partial = _cells(results)
    dice = {tau_b: 100 * partial[0.125, tau_b]["test_dice"] for tau_b in (0.25, 0.5, 0.75)}
    best, worst = (choose(dice, key=lambda tau_b: dice[tau_b].mean()) for choose in (max, min))
    return f"tau_u = 0.125: tau_b = {best} - tau_b = {worst}", paired_difference(dice[best], dice[worst])


def _few_pixels(results: Results) -> tuple[str, Difference]:
    runs, annotations = _cells(results)[0.25, 0.5], results["annotations"]
    late = annotations[annotations["round"] > annotations.groupby("run")["round"].transform("max") / 2]
    positive = runs["run"].map(late.groupby("run")["positive_percent"].mean())
    return "positive pixels in the second half of the queries, %", paired_difference(positive, 0 * positive)


_beats_full = _arms("least confidence - full data", "least_confidence", "full")
_dropout = _arms("Monte Carlo dropout - random", "mc_dropout", "random")

# Claim, place in the paper, region in which the effect should lie, how it is measured
CLAIMS: tuple[tuple[str, str, tuple[float, float], Measure], ...] = (
    ("Least confidence is the best strategy.", "V-A, Table I", (0, math.inf), _best),
    ("It surpasses the full data set.", "V-A, Table I", (0, math.inf), _beats_full),
    ("Monte Carlo dropout does not outperform random selection.", "VI, Table I", (-math.inf, 0), _dropout),
    ("About 30 % of the images suffice.", "abstract, Table II", (-MARGIN, math.inf), _few_images),
    ("tau_b has no significant influence.", "V-B, Table II", (-MARGIN, MARGIN), _tau_b),
    ("After a few rounds under 5 % of the pixels are annotated.", "V-B, Fig. 5", (-math.inf, 5), _few_pixels),
)
