"""What runs over several seeds allow to say: intervals, paired tests, areas under learning curves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from alutils.metrics import mean_height


class Difference(NamedTuple):
    """A mean difference with its 95 % interval (t distribution over seeds) and p value.

    Interval and p are NaN for a single seed, and where all seeds have the same difference, which says nothing about
    chance; differences that are all 0 come from the same runs and have p = 1.
    """

    mean: float
    low: float
    high: float
    p: float
    n_seeds: int


def paired_difference(one: pd.Series, other: pd.Series) -> Difference:
    """``one - other`` over the seeds that both have: runs of one seed share cold start and initial weights.

    Both have one number per seed, indexed by seed; ValueError if a seed stands twice.

    >>> difference = paired_difference(pd.Series([3.0, 4.0, 5.0]), pd.Series([2.0, 2.0, 2.0]))
    >>> print(" ".join(f"{value:.2f}" for value in difference))
    2.00 -0.48 4.48 0.07 3.00
    """
    for series in (one, other):
        if not series.index.is_unique:
            twice = series.index[series.index.duplicated()].unique().tolist()
            raise ValueError(f"each seed must stand once to be paired, but there are several numbers of {twice}")
    differences = (one - other).dropna()
    n, mean = len(differences), differences.mean()
    rounding = 1e-12 * max(one.abs().max(), other.abs().max())
    if n >= 2 and differences.abs().max() <= rounding:
        return Difference(0.0, 0.0, 0.0, 1.0, n)
    if n < 2 or np.ptp(differences) <= rounding:
        return Difference(mean, np.nan, np.nan, np.nan, n)
    test = stats.ttest_1samp(differences, 0)
    return Difference(mean, *test.confidence_interval(), test.pvalue, n)


def compare_arms(runs: pd.DataFrame, baseline: str, value: str = "test_dice") -> pd.DataFrame:
    """Every other arm against ``baseline``, paired by seed, with Holm's correction for the number of comparisons.

    Args:
        runs: one row per run, with ``arm``, ``seed`` and the column ``value``, which is compared.
        baseline: an arm.
        value: a column's name.

    Returns:
        One row per arm: the fields of :class:`Difference` and ``p_holm``.

    Raises:
        ValueError: if there is no run of the baseline, or several runs of an arm have the same seed.
    """
    by_arm = {arm: group.set_index("seed")[value] for arm, group in runs.groupby("arm")}
    if baseline not in by_arm:
        raise ValueError(f"there is no run of '{baseline}' to compare with, only of {', '.join(map(str, by_arm))}")
    rows = {arm: paired_difference(by_arm[arm], by_arm[baseline]) for arm in by_arm if arm != baseline}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=Difference._fields).rename_axis("arm")
    tested = table["p"].dropna()
    table["p_holm"] = pd.Series(multipletests(tested, method="holm")[1] if len(tested) else [], tested.index, float)
    return table


def bootstrap_interval(values: pd.Series, *, seed: int = 0, n_resamples: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean if the values (test images) were drawn anew; NaN if all are the same."""
    if len(values) < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    found = stats.bootstrap((values.to_numpy(),), np.mean, method="percentile", n_resamples=n_resamples, rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def area_under_curve(rounds: pd.DataFrame) -> float:
    """The mean height of a run's learning curve (``val_dice`` over ``n_labelled``); NaN for a single round."""
    return float(mean_height(rounds["n_labelled"].to_numpy(), rounds["val_dice"].to_numpy()))


def images_to_reach(rounds: pd.DataFrame, level: float) -> float:
    """The labelled images at which the validation Dice is first at least ``level``; NaN if it never is."""
    enough = rounds.loc[rounds["val_dice"] >= level, "n_labelled"]
    return float(enough.iloc[0]) if len(enough) else np.nan
