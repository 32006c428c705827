"""What may be said after runs over several seeds: intervals over seeds and test images, and how many seeds it takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from alutils.metrics import mean_height

MOST_SEEDS = 10_000
""":meth:`Spread.seeds_for` looks no further."""


class Difference(NamedTuple):
    """A mean difference with its interval and two-sided p value (t distribution).

    ``detectable`` is the smallest true difference that as many seeds with the same spread would tell from 0 in four of
    five repetitions (power 80 %). Interval, p and ``detectable`` are NaN for a single seed, and where all seeds have
    the same difference: that says nothing about chance. If all differences are 0, the runs are the same, and p = 1.
    """

    mean: float
    low: float
    high: float
    p: float
    n_seeds: int
    detectable: float


@dataclass(frozen=True)
class Spread:
    """A mean difference between two arms, and what its variance is made of.

    With K seeds its variance is ``seed_variance / K + image_variance``: more seeds do not replace more test images.

    >>> spread = Spread(mean=1.0, seed_variance=1.0, image_variance=0.0, n_seeds=4)
    >>> [round(value, 2) for value in spread.difference()]
    [1.0, -0.59, 2.59, 0.14, 4, 2.08]
    >>> spread.seeds_for(half_width=1.0)
    7
    """

    mean: float
    seed_variance: float  # of one seed's difference, with all that changes from run to run
    image_variance: float  # of the mean difference, if other test images were drawn
    n_seeds: int

    def difference(self, level: float = 0.95) -> Difference:
        """The mean with its interval of this level, the p value against 0 and the detectable difference."""
        if self._no_difference:
            return Difference(0.0, 0.0, 0.0, 1.0, self.n_seeds, 0.0)
        if self._unknown:
            return Difference(self.mean, *[np.nan] * 3, self.n_seeds, np.nan)
        error, df = self._error(self.n_seeds)
        half, detectable = self._half_width(self.n_seeds, level), (_t(0.975, df) + _t(0.8, df)) * error
        return Difference(self.mean, self.mean - half, self.mean + half, self.p(), self.n_seeds, detectable)

    def p(self, null: float = 0.0) -> float:
        """Two-sided p value against a true difference of ``null``; NaN where there is no interval."""
        if self._unknown:
            return np.nan
        error, df = self._error(self.n_seeds)
        return float(2 * stats.t.sf(abs(self.mean - null) / error, df))

    def seeds_for(self, half_width: float, level: float = 0.95) -> int | None:
        """The fewest seeds with which the interval reaches at most ``half_width`` to either side, if the spread stays.

        None if no number of seeds does, because there are too few test images, or nothing is known about the spread.
        2, the fewest, where the runs of both arms are the same.

        >>> Spread(mean=0.0, seed_variance=0.0, image_variance=0.0, n_seeds=4).seeds_for(half_width=1.0)
        2
        """
        if self._no_difference:
            return 2
        if self._unknown:
            return None
        numbers = range(2, MOST_SEEDS)  # the more, the narrower
        found = bisect_left(numbers, True, key=lambda n: self._half_width(n, level) <= half_width)
        return numbers[found] if found < len(numbers) else None

    @property
    def _no_difference(self) -> bool:
        """Whether the runs of both arms are the same, with several seeds."""
        return self.n_seeds >= 2 and self.mean == self.seed_variance == self.image_variance == 0

    @property
    def _unknown(self) -> bool:
        """Whether nothing tells how much a seed changes: there is one alone, or all give the same difference."""
        return self.n_seeds < 2 or self.seed_variance == 0

    def _error(self, n_seeds: int) -> tuple[float, float]:
        """Standard error with so many seeds, and its degrees of freedom (Satterthwaite's)."""
        of_seeds = self.seed_variance / n_seeds
        total = of_seeds + self.image_variance
        return float(np.sqrt(total)), (n_seeds - 1) * (total / of_seeds) ** 2

    def _half_width(self, n_seeds: int, level: float) -> float:
        error, df = self._error(n_seeds)
        return _t(0.5 + level / 2, df) * error


def spread_over_seeds(differences: pd.Series) -> Spread:
    """The spread of one difference per seed over the seeds alone, as for clicks."""
    d, n, mean = differences.to_numpy(float), len(differences), float(differences.mean())
    if n < 2 or _alike(d):
        return Spread(0.0 if abs(mean) <= _rounding(d) else mean, 0.0, 0.0, n)
    return Spread(mean, float(differences.var()), 0.0, n)


def spread_over_seeds_and_images(differences: pd.DataFrame) -> Spread:
    """The spread of a mean over seeds and test images, if both are samples.

    The seeds play the part of readers and the images that of cases (Dorfman, Berbaum and Metz 1992; Hillis 2007): the
    difference is ``D[s, i] = mean + S[s] + I[i] + E[s, i]``, with the mean squares of a two-way table. Hillis' MS_S
    gives intervals that are too short for few seeds (with two they cover about 90 % in place of 95 %), so
    ``max(MS_S, MS_E)`` takes its place. Where all seeds have the same differences, ``seed_variance`` is 0: copies of
    one run say nothing about chance.

    Args:
        differences: (seeds, images) without a gap; Dice points, say.

    >>> spread_over_seeds_and_images(pd.DataFrame([[1.0, 3.0], [2.0, 6.0]]))
    Spread(mean=3.0, seed_variance=2.0, image_variance=2.0, n_seeds=2)
    >>> spread_over_seeds_and_images(pd.DataFrame([[1.0, 3.0], [1.0, 3.0]])).difference().p
    nan
    """
    d = differences.to_numpy(float)
    n_seeds, n_images = d.shape
    if n_seeds < 2 or n_images < 2 or _alike(d.ravel()):
        return spread_over_seeds(differences.mean(axis=1))
    mean, of_seeds, of_images = d.mean(), d.mean(axis=1), d.mean(axis=0)
    rest = d - of_seeds[:, None] - of_images + mean
    ms_seeds, ms_images = n_images * of_seeds.var(ddof=1), n_seeds * of_images.var(ddof=1)
    ms_rest = (rest**2).sum() / ((n_seeds - 1) * (n_images - 1))
    image_variance = max(0.0, ms_images - ms_rest) / (n_seeds * n_images)
    seed_variance = 0.0 if _alike(d) else max(ms_seeds, ms_rest) / n_images
    return Spread(float(mean), float(seed_variance), float(image_variance), n_seeds)


def spread(differences: pd.Series | pd.DataFrame) -> Spread:
    """The spread of one number per seed over the seeds, or of a table (seeds, images) over both."""
    over = spread_over_seeds_and_images if isinstance(differences, pd.DataFrame) else spread_over_seeds
    return over(differences)


def paired(one: pd.Series | pd.DataFrame, other: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """``one - other`` for the seeds (the index) that both have: runs of one seed share cold start and initial weights.

    ValueError if a seed stands twice, or if tables are not of the same test images.
    """
    for values in (one, other):
        if not values.index.is_unique:
            twice = values.index[values.index.duplicated()].unique().tolist()
            raise ValueError(f"each seed must stand once to be paired, but there are several numbers of {twice}")
    if isinstance(one, pd.DataFrame) and not one.columns.equals(other.columns):
        raise ValueError("the runs to be paired were not tested on the same images")
    return (one - other).dropna()


def paired_difference(one: pd.Series, other: pd.Series) -> Difference:
    """The mean of :func:`paired` with its 95 % interval over seeds alone, which says nothing about other test images.

    >>> difference = paired_difference(pd.Series([3.0, 4.0, 5.0]), pd.Series([2.0, 2.0, 2.0]))
    >>> print(" ".join(f"{value:.2f}" for value in difference[:5]))
    2.00 -0.48 4.48 0.07 3.00
    """
    return spread(paired(one, other)).difference()


def holm(p: pd.Series) -> pd.Series:
    """The p values corrected for their number by Holm's method; NaN stays NaN and does not count.

    >>> holm(pd.Series([0.01, 0.04, np.nan])).tolist()
    [0.02, 0.04, nan]
    """
    tested = p.dropna()
    if len(tested) < 2:
        return p.astype(float)
    return pd.Series(multipletests(tested, method="holm")[1], tested.index).reindex(p.index)


def compare_arms(values: Mapping[str, pd.Series | pd.DataFrame], baseline: str) -> pd.DataFrame:
    """Every other arm against ``baseline``, paired by seed, with Holm's correction for the number of comparisons.

    Args:
        values: by arm, as :func:`alutils.report.endpoints.by_arm` gives them: one number per seed, or a table (seeds,
            images); then the intervals are over seeds and images.
        baseline: an arm.

    Returns:
        One row per arm: the fields of :class:`Difference`, ``p_holm``, and ``ahead``: the share of the numbers (of
        seeds, or of images and seeds) in which the arm is ahead of the baseline; ties count half.

    Raises:
        ValueError: if there is no run of the baseline, or several runs of an arm have the same seed.

    >>> values = {"a": pd.Series([1.0, 2.0, 4.0]), "random": pd.Series([0.0, 2.0, 1.0])}
    >>> compare_arms(values, "random")[["mean", "ahead"]].round(2).to_dict("index")
    {'a': {'mean': 1.33, 'ahead': 0.83}}
    """
    if baseline not in values:
        raise ValueError(f"there is no run of '{baseline}' to compare with, only of {', '.join(map(str, values))}")
    rows = {}
    for arm in values:
        if arm != baseline:
            differences = paired(values[arm], values[baseline])
            signs = np.sign(differences.to_numpy(float))
            ahead = (1 + signs.mean()) / 2 if signs.size else np.nan
            rows[arm] = (*spread(differences).difference(), ahead)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*Difference._fields, "ahead"]).rename_axis("arm")
    return table.assign(p_holm=holm(table["p"]))


def bootstrap_interval(values: pd.Series) -> tuple[float, float]:
    """95 % interval of the mean if the values (test images) were drawn anew; NaN if all are the same."""
    sample = values.to_numpy()
    if len(sample) < 2 or _alike(sample):
        return np.nan, np.nan
    rng = np.random.default_rng(0)
    found = stats.bootstrap((sample,), np.mean, method="percentile", n_resamples=2000, rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def area_under_curve(rounds: pd.DataFrame) -> float:
    """The mean height of a run's learning curve (``val_dice`` over ``n_labelled``); NaN for a single round."""
    return float(mean_height(rounds["n_labelled"].to_numpy(), rounds["val_dice"].to_numpy()))


def images_to_reach(rounds: pd.DataFrame, level: float) -> float:
    """The labelled images at which the validation Dice is first at least ``level``; NaN if it never is."""
    enough = rounds.loc[rounds["val_dice"] >= level, "n_labelled"]
    return float(enough.iloc[0]) if len(enough) else np.nan


def _alike(values: np.ndarray) -> bool:
    """Whether all numbers of a vector, or all rows of a table, are the same but for rounding.

    >>> _alike(np.array([0.1 + 0.2, 0.3])), _alike(np.array([[1.0, 2.0], [1.0, 3.0]]))
    (True, False)
    """
    return bool(np.ptp(values, axis=0).max() <= _rounding(values))


def _rounding(values: np.ndarray) -> float:
    """How far apart numbers of this size may come out that should be the same.

    >>> _rounding(np.array([-50.0, 0.3]))
    5e-11
    """
    return 1e-12 * max(1.0, float(np.abs(values).max(initial=0)))


def _t(share: float, df: float) -> float:
    return float(stats.t.ppf(share, df))
