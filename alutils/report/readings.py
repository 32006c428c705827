"""One claim under many readings of the paper: does the answer depend on what the paper leaves open?"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from alutils.report.endpoints import Results, by_arm
from alutils.report.statistics import paired, spread


def compare_readings(
    readings: Mapping[str, Results], one: str = "least_confidence", other: str = "random", by: str = "dice"
) -> pd.DataFrame:
    """The difference ``one - other`` under each reading, with its 95 % interval over seeds and test images.

    Args:
        readings: the results of each reading by its name, the default first. Where a reading has no run of ``other``,
            because it does not change that arm, the default's runs stand for it. Readings without ``one`` are left out.
        one, other: arms, see :func:`alutils.report.endpoints.arm_names`.
        by: "dice" or "area".

    Returns:
        One row per reading: ``label`` (its name), ``effect``, ``low``, ``high``, ``seeds``, and the validation Dice of
        ``other`` in %, by which readings may be chosen: ``val_dice`` in the last round, ``val_dice_cold`` in the first.
    """
    default = next(iter(readings.values()))
    rows = []
    for name, results in readings.items():
        arms = by_arm(results, by)
        if one not in arms:
            continue
        missing = other not in arms
        baseline = by_arm(default, by)[other] if missing else arms[other]
        found = spread(paired(arms[one], baseline)).difference()
        rounds = (default if missing else results)["rounds"].query("strategy == @other")
        ends = {n: rounds.sort_values("round").groupby("seed")["val_dice"].agg(n) for n in ("first", "last")}
        rows.append(
            {
                **{"label": name, "effect": found.mean, "low": found.low, "high": found.high, "seeds": found.n_seeds},
                "val_dice": 100 * ends["last"].mean(),
                "val_dice_cold": 100 * ends["first"].mean(),
            }
        )
    return pd.DataFrame(rows)
