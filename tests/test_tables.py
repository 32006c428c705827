"""Tables against hand-made runs whose answers are known."""

import math

import numpy as np
import pandas as pd
import pytest

from alutils.cost import CURRENCIES
from alutils.experiment import Experiment, same_run
from alutils.report.tables import (
    PAPER_TABLE_1,
    PAPER_TABLE_2,
    by_query,
    ledger,
    table_1,
    table_2,
    table_modes,
    write_table,
)

SETTINGS = {name: str(value) for name, value in Experiment().model_dump().items()}


def make_run(strategy="least_confidence", seed=0, test=0.8, *, annotation="full", tau_u=0.25, tau_b=0.25, positive=4.0):
    """A finished run of three rounds, its numbers by hand."""
    name = f"{strategy}-{annotation}-{tau_u}-{tau_b}-{seed}"
    head = {"run": name, "strategy": strategy, "seed": seed}
    once = strategy == "full"
    labelled = [100] if once else [10, 20, 30]
    curve = [test] if once else [test - 0.3, test - 0.1, test]
    settings = SETTINGS | {"annotation": annotation, "tau_u": tau_u, "tau_b": tau_b}
    numbers = {"n_train": 100, "n_labelled": labelled[-1], "val_dice": test, "test_dice": test}
    share = {"verify_percent": math.nan if once else 20.0, "positive_percent": math.nan if once else positive}
    rounds = [
        head | {"round": k, "n_labelled": n, "val_dice": d, "lesion_area_percent": 4 * positive}
        for k, (n, d) in enumerate(zip(labelled, curve, strict=True))
    ]
    images = [
        head | {"round": k, "images": 1, **dict.fromkeys(CURRENCIES, 7.0), "positive_percent": positive}
        for k in range(len(labelled))
    ]
    dice = [head | {"image_id": f"t{i}", "dice": test + d} for i, d in enumerate((-0.1, 0, 0.1))]
    return {"runs": [settings | head | numbers | share], "rounds": rounds, "annotations": images, "test_dice": dice}


def make_results(*runs):
    return {name: pd.DataFrame([row for run in runs for row in run[name]]) for name in runs[0]}


def test_the_papers_numbers_are_those_of_the_paper():
    assert PAPER_TABLE_1.loc[["random", "full", "least_confidence", "entropy", "mc_dropout"]].to_numpy().tolist() == [
        [87, 85], [84, 83], [88, 87], [87, 86], [86, 85],
    ]  # fmt: skip
    assert PAPER_TABLE_2.loc[(0.25, 0.25)].tolist() == [84, 5, 19]
    assert PAPER_TABLE_2.loc[(0.125, 0.75)].tolist() == [81, 3, 11]
    assert PAPER_TABLE_2.loc[(0.375, 0.75)].tolist() == [82, 10, 32]


def test_table_1_is_the_mean_and_spread_over_seeds_beside_the_paper():
    results = make_results(make_run(seed=0, test=0.8), make_run(seed=1, test=0.9), make_run("full", test=0.85))
    table = table_1(results)
    row = table.loc["least_confidence"]
    assert row[["paper_val", "paper_test", "seeds", "images"]].tolist() == [88, 87, 2, 30]
    assert row["test"] == pytest.approx(85) and row["sd"] == pytest.approx(100 * np.std([0.8, 0.9], ddof=1))
    assert 75 <= row["low"] < 85 < row["high"] <= 95
    assert row["val_area"] == pytest.approx(100 * np.mean([d + (-0.3 - 2 * 0.1) / 4 for d in (0.8, 0.9)]))
    assert row["to_95"] == row["to_100"] == 30  # the mean curve is 0.55, 0.75, 0.85; full data 0.85
    assert np.isnan(table.loc["entropy", "test"]) and table.loc["full", "test"] == pytest.approx(85)
    assert np.isnan(table.loc["full", "val_area"])
    assert table.index.is_unique


def test_table_1_leaves_partial_annotation_to_table_2():
    results = make_results(make_run(test=0.8), make_run(test=0.1, annotation="partial"))
    assert table_1(results).loc["least_confidence", ["test", "seeds"]].tolist() == pytest.approx([80, 1])
    assert table_2(results).loc[(0.25, 0.25), ["dice", "seeds"]].tolist() == pytest.approx([10, 1])


def test_table_1_without_an_arm_has_the_papers_numbers_alone():
    table = table_1(make_results(make_run(annotation="partial")))
    assert table.columns.equals(table_1(make_results(make_run())).columns)
    assert table["paper_test"].notna().all() and table["test"].isna().all() and table["seeds"].isna().all()


def test_cells_that_are_the_same_run_share_its_numbers_and_count_it_once():
    partial = make_run(annotation="partial", tau_u=0.25, tau_b=0.75, test=0.7)
    low = make_run(annotation="partial", tau_u=0.125, tau_b=0.25, test=0.6)
    at_random = make_run("random", annotation="partial", tau_u=0.125, tau_b=0.25, test=0.1)
    table = table_2(make_results(partial, low, at_random))
    assert table.loc[0.25, "dice"].tolist() == pytest.approx([70, 70, 70])
    assert table.loc[0.25, "seeds"].tolist() == [1, 1, 1]
    assert table["same_as"].nunique() == 5
    assert table.loc[(0.125, 0.25), "dice"] == pytest.approx(60) and np.isnan(table.loc[(0.125, 0.5), "dice"])
    assert np.isnan(table.loc[0.375, "dice"]).all()


@pytest.mark.parametrize("tau_u", [0, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("tau_b", [0.1, 0.2, 0.25, 0.8, 0.9])
def test_same_run_is_what_changes_no_mask(tau_u, tau_b):
    p = np.linspace(0, 1, 1001, dtype=np.float32)
    certain = np.abs(np.float32(0.5) - p) > np.float32(tau_u)
    u, b = same_run(tau_u, tau_b)
    assert u == tau_u and ((p >= np.float32(tau_b)) == (p >= b))[certain].all()


def test_both_ends_of_the_band_are_in_it():
    assert same_run(0.3, 0.2) == same_run(0.3, 0.8) == (0.3, 0.5)  # 0.8 - 0.5 > 0.3 for a computer


def test_table_modes_has_the_best_first_and_full_annotation_beside_them():
    results = make_results(
        make_run(test=0.8), make_run(annotation="partial", tau_b=0.5, test=0.9),
        make_run(annotation="model-only", tau_b=0.5, test=0.3), make_run(annotation="model-only", tau_b=0.25, test=0.7),
        make_run(annotation="contour-band", tau_b=0.25, test=0.2),
        make_run(annotation="partial", tau_u=0.375, test=0.1), make_run("random", test=0.99),
    )  # fmt: skip
    table = table_modes(results)
    assert table.index.tolist() == ["partial", "full", "model-only", "contour-band"]
    assert table["dice"].tolist() == pytest.approx([90, 80, 30, 20]) and table.loc["partial", "clicks"] == 7
    assert table["tau_b"].to_dict() == {"partial": "0.5", "full": "", "model-only": "0.5", "contour-band": "0.25"}
    assert table.loc["partial", "share"] == 25  # a quarter of the queried lesions' pixels


@pytest.mark.parametrize(("low", "high"), [(0.25, 0.75), (0.3, 0.7)])  # 0.7 - 0.5 < 0.5 - 0.3 for a computer
def test_table_modes_shows_one_tau_b_of_a_mode_the_smaller_of_two_equally_near(low, high):
    cells = [make_run(annotation="model-only", tau_b=tau_b, test=dice) for tau_b, dice in ((high, 0.8), (low, 0.2))]
    table = table_modes(make_results(*cells))
    assert table.loc["model-only", ["dice", "seeds"]].tolist() == pytest.approx([20, 1])
    assert table.loc["model-only", "tau_b"] == f"{low}"


def test_the_ledger_says_what_the_runs_were_made_with():
    ours = ledger(make_results(make_run(), make_run(annotation="partial", tau_u=0.375))["runs"]).set_index("detail")
    assert "tau_u = 0.25, 0.375" in ours.loc["uncertain pixel", "these runs"]
    assert "n_queries = 36" in ours.loc["rounds", "these runs"]
    assert not ours["these runs"].str.contains("[{}]", regex=True).any()
    another = make_run()
    another["runs"][0]["architecture"] = "fpn"
    network = ledger(make_results(another)["runs"]).set_index("detail").loc["network", "these runs"]
    assert network.startswith("unet_for, architecture fpn: resnet18")


def test_a_table_is_written_with_all_digits_and_to_read(tmp_path):
    table = pd.DataFrame({"test": [100 / 3, math.nan]}, pd.Index(["a", "b"], name="arm"))
    write_table(tmp_path / "t", table)
    assert pd.read_csv(tmp_path / "t.csv")["test"][0] == 100 / 3
    assert (tmp_path / "t.md").read_text().splitlines()[2:] == ["| a     | 33.3   |", "| b     |        |"]


def test_what_a_query_asked_for_stands_under_its_number_without_the_cold_start():
    one, other = (make_run("random", seed, positive=positive) for seed, positive in ((0, 4.0), (1, 6.0)))
    for run, costs in ((one, (100.0, 40.0, 20.0)), (other, (100.0, 60.0, 10.0))):
        for row, verified in zip(run["annotations"], costs, strict=True):
            row["verify_percent"] = verified
        run["rounds"][0]["lesion_area_percent"], run["rounds"][2]["lesion_area_percent"] = 30.0, math.nan
    full = make_run("full")
    full["rounds"][0]["lesion_area_percent"] = math.nan  # it queries nothing
    table = by_query(make_results(one, other, make_run("entropy"), full), ["random", "full", "kcentre"])
    assert table.columns.tolist() == [1, 2] and set(table.index.get_level_values("arm")) == {"random"}
    assert table.xs("random", level="arm").to_dict("index") == {
        "verify": {1: 50.0, 2: 15.0},
        "clicks": {1: 7.0, 2: 7.0},
        "area": {1: 30.0, 2: 20.0},  # asked for after rounds 0 and 1
    }
