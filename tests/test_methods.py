"""Arms side by side."""

import pandas as pd

from alutils.report.methods import compare_methods


def test_arms_are_compared_by_means_over_seeds_and_partial_annotation_is_left_out():
    runs = [("a", "x", "full", 0.8), ("b", "x", "full", 0.6), ("c", "y", "full", 0.9), ("d", "y", "partial", 0.1)]
    tables = {
        "runs": pd.DataFrame(runs, columns=["run", "strategy", "annotation", "test_dice"]),
        "rounds": pd.DataFrame({"run": list("aabbcc"), "val_dice": [0.2, 0.4, 0.6, 0.8, 1.0, 0.0]}),
        "annotations": pd.DataFrame({"run": list("aabcd"), "round": [0, 1, 1, 2, 1], "clicks": [90, 10, 20, 30, 1]}),
    }
    table = compare_methods(tables)
    assert table.index.tolist() == ["y", "x"]
    assert table.loc["x", ["test Dice", "seeds", "area under curve", "clicks"]].round(6).tolist() == [70, 2, 50, 15]
    assert round(table.loc["x", "sd"], 3) == 14.142 and table.loc["y", "clicks"] == 30
