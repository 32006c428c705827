"""One claim under many readings of the paper: does the answer depend on what the paper leaves open?"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from alutils.report.endpoints import Results, arm_names, by_arm
from alutils.report.statistics import paired, spread


def compare_readings(readings: Mapping[str, Results]) -> pd.DataFrame:
    """Least confidence minus random selection, in Dice points, under each reading.

    Args:
        readings: the results of each reading by its name, the default first. Where a reading has no run of random
            selection, because it does not change that arm, the default's runs stand for it. Readings without least
            confidence are left out.

    Returns:
        One row per reading: ``label`` (its name), ``effect``, ``low`` and ``high`` (95 %, over seeds and test images),
        ``seeds``, and the validation Dice of random selection in %, by which readings may be chosen: ``val_dice`` in
        the last round, ``val_dice_cold`` in the first.
    """
    default = next(iter(readings.values()))
    rows = []
    for name, results in readings.items():
        arms = by_arm(results, "dice")
        if "least_confidence" not in arms:
            continue
        by_chance = results if "random" in arms else default
        found = spread(paired(arms["least_confidence"], by_arm(by_chance, "dice")["random"])).difference()
        rows.append(
            {
                **{"label": name, "effect": found.mean, "low": found.low, "high": found.high, "seeds": found.n_seeds},
                **_val_dice_of_random(by_chance),
            }
        )
    return pd.DataFrame(rows)


def _val_dice_of_random(results: Results) -> dict[str, float]:
    runs, rounds = results["runs"], results["rounds"]
    of_random = rounds[rounds["run"].isin(runs.loc[arm_names(runs) == "random", "run"])]
    by_seed = of_random.sort_values("round").groupby("seed")["val_dice"]
    return {"val_dice": 100 * by_seed.last().mean(), "val_dice_cold": 100 * by_seed.first().mean()}
