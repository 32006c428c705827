"""The paper's claims, one by one, held against runs; what decides them is fixed in claims.yaml."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from alutils.report.endpoints import OVER_IMAGES, ByArm, Results, by_arm
from alutils.report.statistics import MOST_SEEDS, Spread, holm, paired, spread

SUPPORTED, NOT_SUPPORTED, UNDECIDED, TOO_FEW = "supported", "not supported", "undecided", "too few seeds"
PLAN: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
COLUMNS = (
    "claim", "where", "by", "difference", "paper", "effect", "low", "high", "p_holm", "seeds", "detectable",
    "seeds_wanted", "claimed", "verdict",
)  # fmt: skip
"""The columns of :func:`judge`."""


class Region(NamedTuple):
    """Where a claim says that a difference lies.

    >>> Region.of("above -1"), Region.of("-1 to 1").two_sided
    (Region(low=-1.0, high=inf), True)
    """

    low: float
    high: float

    @classmethod
    def of(cls, text: str) -> Region:
        """Read "above -1", "below 0" or "-1 to 1"."""
        words = text.split()
        if words[0] in ("above", "below"):
            bound = float(words[1])
            return cls(bound, math.inf) if words[0] == "above" else cls(-math.inf, bound)
        return cls(float(words[0]), float(words[2]))

    @property
    def two_sided(self) -> bool:
        """Whether it ends on both sides, so that two one-sided tests decide."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def p_outside(self, found: Spread) -> float:
        """p value against the nearest value that the region allows; 1 where the mean lies inside."""
        if self.low <= found.mean <= self.high:
            return 1.0
        return found.p(self.low if found.mean < self.low else self.high)


def judge(results: Results) -> pd.DataFrame:
    """Each claim of the paper with its differences, their intervals and a verdict: one row per difference.

    Args:
        results: from :func:`alutils.runs.collect.load_results`.

    Returns:
        Indexed by ``claim``, in Dice points or the endpoint's unit; claims without runs are left out. The columns:
        ``where`` in the paper, ``by`` (an endpoint), ``difference`` (the arms), ``paper`` (its own number), ``effect``,
        ``low`` and ``high`` (95 %, or 90 % where ``claimed`` has two ends), ``p_holm`` (against the region, over the
        claim's differences), ``seeds``, ``detectable`` (see :class:`~alutils.report.statistics.Difference`),
        ``seeds_wanted`` (for the half-width that claims.yaml aims at; <NA> if no number of seeds reaches it,
        or nothing is known of the spread), ``claimed`` and the claim's ``verdict``.

    >>> from alutils.runs.collect import load_results
    >>> claims = judge(load_results("results/study"))  # from the project's root
    >>> claims.loc["Partial annotation keeps the quality of full data.", "difference"]
    'partial-0.25-0.5 - full'
    """
    endpoints = {name: by_arm(results, name) for name in PLAN["aim"]}
    found = [
        table
        for claim in PLAN["claims"]
        for by in claim["by"]
        if not (table := _judged(claim, by, endpoints[by])).empty
    ]
    return pd.concat(found or [pd.DataFrame(columns=COLUMNS)], ignore_index=True).set_index("claim")


def in_words(table: pd.DataFrame) -> str:
    """The verdicts of :func:`judge` as a Markdown list, each with the difference that speaks most against the claim.

    That is the one with the smallest p value. Of equals (all are 1 where all means lie where the claim says) it is the
    one whose interval reaches furthest out of that region, or ends nearest to its edge. Where nothing is decided, it
    says how many seeds would give the half-width that claims.yaml aims at.
    """
    lines = []
    for (claim, by), rows in table.groupby(["claim", "by"], sort=False):
        rows = rows.assign(reach=rows.apply(_reach, axis=1))
        row = rows.sort_values(["p_holm", "reach"], ascending=[True, False], kind="stable").iloc[0]
        signed = "+" if " - " in row["difference"] and row["paper"] != 0 else ""
        paper = f"; the paper: {row['paper']:{signed}g}" if math.isfinite(row["paper"]) else ""
        measure = "" if by == "dice" else f" (by {by})"
        lines.append(
            f"- **{row['verdict']}**{measure}: {claim} {row['difference'].replace('_', ' ')}: "
            f"{with_interval(*row[['effect', 'low', 'high']], Region.of(row['claimed']))}{paper}.{_outlook(rows)}"
        )
    return "\n".join(lines)


def _reach(row: pd.Series) -> float:
    """How far the interval, or a single seed's number, reaches out of the claim's region; negative: it lies inside."""
    region = Region.of(row["claimed"])
    low, high = (row["effect"] if math.isnan(row[end]) else row[end] for end in ("low", "high"))
    return max(region.low - low, high - region.high)


def with_interval(effect: float, low: float, high: float, edges: Sequence[float] = (0.0,)) -> str:
    """An effect with one decimal, and its interval in brackets unless there is none (NaN).

    The interval has more decimals where one would put an end onto one of these edges of a region.

    >>> with_interval(-0.62, -1.21, -0.04), with_interval(-0.02, -0.5, 0.4), with_interval(-0.6, -1.2, -0.004)
    ('-0.6 [-1.21, -0.04]', '0.0 [-0.5, 0.4]', '-0.6 [-1.200, -0.004]')
    """
    mean = f"{effect:.1f}".replace("-0.0", "0.0")
    if math.isnan(low):
        return mean
    edges = {edge for edge in edges if math.isfinite(edge)}
    told_apart = (k for k in range(1, 4) if not {round(end, k) for end in (low, high)} & edges)
    decimals = next(told_apart, 2)  # an end that is the edge, as of a share that cannot be less than 0
    return f"{mean} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _outlook(rows: pd.DataFrame) -> str:
    """How many seeds the planned width takes, where no verdict fell; empty if a spread is unknown, as with one seed."""
    if rows["verdict"].iloc[0] in (SUPPORTED, NOT_SUPPORTED) or rows["low"].isna().any():
        return ""
    wanted, half_width = rows["seeds_wanted"], f"±{PLAN['aim'][rows['by'].iloc[0]]:g}"
    intervals = f"an interval of {half_width}" if len(rows) == 1 else f"{half_width} on all {len(rows)} differences"
    if wanted.isna().any():
        if rows["by"].iloc[0] in OVER_IMAGES:
            return f" No number of seeds is enough for {intervals}: the test images are too few."
        return f" {MOST_SEEDS:,} seeds are not enough for {intervals}."
    if wanted.max() <= rows["seeds"].min():
        return f" The planned {half_width} is reached."
    return f" For {intervals}: {wanted.max()} seeds."


def _judged(claim: dict[str, Any], by: str, arms: ByArm) -> pd.DataFrame:
    region, aim = Region.of(claim["lies"]), PLAN["aim"][by]
    level = 0.9 if region.two_sided else 0.95
    rows, spreads = [], []
    for pair in claim["differences"]:
        if not {pair["one"], pair.get("other", pair["one"])} <= arms.keys():
            return pd.DataFrame()
        values = paired(arms[pair["one"]], arms[pair["other"]]) if "other" in pair else arms[pair["one"]]
        its = spread(values)
        effect = its.difference(level)
        low, high = np.clip([effect.low, effect.high], *_possible(by, "other" in pair))  # NaN, no interval, stays
        spreads.append(its)
        rows.append(
            {
                **{"claim": claim["claim"], "where": claim["where"], "by": by},
                "difference": " - ".join([pair["one"], *([pair["other"]] if "other" in pair else [])]),
                "paper": pair.get("paper", math.nan) if by != "area" else math.nan,  # the paper has no test curve
                **{"effect": effect.mean, "low": low, "high": high},
                "p_holm": region.p_outside(its),
                **{"seeds": effect.n_seeds, "detectable": effect.detectable},
                **{"seeds_wanted": its.seeds_for(aim, level), "claimed": claim["lies"]},
            }
        )
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"seeds_wanted": "Int64", "paper": float})
    table["p_holm"] = holm(table["p_holm"])
    return table.assign(verdict=_verdict(table, region))


def _verdict(table: pd.DataFrame, region: Region) -> str:
    fewest = PLAN["fewest_seeds"]
    if table["seeds"].min() < fewest:
        return f"{TOO_FEW}: {table['seeds'].min()} of {fewest}"
    if (table["p_holm"] < 0.05).any():
        return NOT_SUPPORTED
    inside = (table["low"] > region.low) & (table["high"] < region.high)
    return SUPPORTED if inside.all() else UNDECIDED


def _possible(by: str, is_difference: bool) -> tuple[float, float]:
    """Between which values an interval can lie."""
    most = math.inf if by == "clicks" else 100.0
    return (-most if is_difference else 0.0), most
