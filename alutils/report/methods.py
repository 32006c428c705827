"""Arms side by side: what each reached, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd


def compare_methods(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per strategy whose queries are annotated in full, the best first.

    Args:
        tables: of collected runs, from :func:`alutils.runs.collect.load_results`.

    Returns:
        ``test Dice``, its standard deviation over the seeds (``sd``), ``seeds``, ``area under curve`` (the mean
        validation Dice of all rounds), all Dice in %, and ``clicks`` per queried image.
    """
    runs = tables["runs"].query("annotation == 'full'").set_index("run")
    area = tables["rounds"].groupby("run")["val_dice"].mean()
    clicks = tables["annotations"].query("round > 0").groupby("run")["clicks"].mean()
    groups = runs.assign(area=area, clicks=clicks).groupby("strategy")
    columns = {
        "test Dice": 100 * groups["test_dice"].mean(),
        "sd": 100 * groups["test_dice"].std(),
        "seeds": groups.size(),
        "area under curve": 100 * groups["area"].mean(),
        "clicks": groups["clicks"].mean(),
    }
    return pd.DataFrame(columns).sort_values("test Dice", ascending=False)
