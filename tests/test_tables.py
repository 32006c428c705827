"""Tables, statistics and verdicts against hand-made runs whose answers are known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alutils.cost import CURRENCIES
from alutils.experiment import Experiment, same_run
from alutils.report.claims import CLAIMS, NOT_SUPPORTED, SUPPORTED, UNDECIDED, judge, verdict
from alutils.report.statistics import (
    Difference,
    area_under_curve,
    bootstrap_interval,
    compare_arms,
    images_to_reach,
    paired_difference,
)
from alutils.report.tables import PAPER_TABLE_1, PAPER_TABLE_2, ledger, table_1, table_2, table_modes, write_table

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
        head | {"round": k, "n_labelled": n, "val_dice": d}
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
    assert row["area"] == pytest.approx(100 * np.mean([d + (-0.3 - 2 * 0.1) / 4 for d in (0.8, 0.9)]))
    assert row["to_95"] == row["to_100"] == 30  # the mean curve is 0.55, 0.75, 0.85; full data 0.85
    assert np.isnan(table.loc["entropy", "test"]) and table.loc["full", "test"] == pytest.approx(85)
    assert np.isnan(table.loc["full", "area"])
    assert table.index.is_unique


def test_table_1_leaves_partial_annotation_to_table_2():
    results = make_results(make_run(test=0.8), make_run(test=0.1, annotation="partial"))
    assert table_1(results).loc["least_confidence", ["test", "seeds"]].tolist() == pytest.approx([80, 1])
    assert table_2(results).loc[(0.25, 0.25), ["dice", "seeds"]].tolist() == pytest.approx([10, 1])


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


@pytest.mark.parametrize("tau_u", [0, 0.25, 0.5])
@pytest.mark.parametrize("tau_b", [0.1, 0.25, 0.9])
def test_same_run_is_what_changes_no_mask(tau_u, tau_b):
    p = np.linspace(0, 1, 1001)
    certain = np.abs(0.5 - p) > tau_u
    u, b = same_run(tau_u, tau_b)
    assert u == tau_u and ((p >= tau_b) == (p >= b))[certain].all()


def test_table_modes_has_the_best_first_and_full_annotation_beside_them():
    results = make_results(
        make_run(test=0.8), make_run(annotation="partial", tau_b=0.5, test=0.9),
        make_run(annotation="model-only", test=0.3),
        make_run(annotation="partial", tau_u=0.375, test=0.1), make_run("random", test=0.99),
    )  # fmt: skip
    table = table_modes(results)
    assert table.index.tolist() == ["partial", "full", "model-only"]
    assert table["dice"].tolist() == pytest.approx([90, 80, 30]) and table.loc["partial", "clicks"] == 7


def test_the_ledger_says_what_the_runs_were_made_with():
    ours = ledger(make_results(make_run(), make_run(annotation="partial", tau_u=0.375))["runs"]).set_index("detail")
    assert "tau_u = 0.25, 0.375" in ours.loc["uncertain pixel", "these runs"]
    assert "n_queries = 36" in ours.loc["rounds", "these runs"]
    assert not ours["these runs"].str.contains("[{}]", regex=True).any()
    another = make_run()
    another["runs"][0]["architecture"] = "fpn"
    network = ledger(make_results(another)["runs"]).set_index("detail").loc["network", "these runs"]
    assert network.startswith("unet_for, architecture fpn: resnet18")


def test_paired_differences_are_scipys_paired_t_test():
    one, other = pd.Series([3.0, 5.0, 4.0, 9.0]), pd.Series([1.0, 2.0, 5.0])
    found = paired_difference(one, other)
    test = stats.ttest_rel([3, 5, 4], [1, 2, 5])
    assert found.n_seeds == 3 and found.mean == pytest.approx(4 / 3) and found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(test.confidence_interval())
    alone = paired_difference(one[:1], other[:1])
    assert alone.n_seeds == 1 and alone.mean == 2 and np.isnan([alone.low, alone.high, alone.p]).all()


@pytest.mark.parametrize("mine", [[3.0, 4.0], [0.3, 0.4]])  # the differences of the second differ by rounding
def test_differences_that_are_all_the_same_say_nothing_about_chance(mine):
    found = paired_difference(pd.Series(mine), pd.Series([0.1, 0.2]) if mine[0] < 1 else pd.Series([1.0, 2.0]))
    assert found.n_seeds == 2 and found.mean > 0.1 and np.isnan([found.low, found.high, found.p]).all()
    assert verdict(found, (0, math.inf)) == UNDECIDED
    runs = pd.DataFrame({"arm": ["a", "b"] * 2, "seed": [0, 0, 1, 1], "test_dice": [0.1, 0.4, 0.2, 0.5]})
    assert compare_arms(runs, "a")[["p", "p_holm"]].isna().all(axis=None)


def test_the_same_runs_do_not_differ_and_images_that_are_all_alike_have_no_interval():
    one = pd.Series([3.0, 5.0, 4.0, 9.0])
    assert paired_difference(one, one) == (0, 0, 0, 1, 4)
    assert np.isnan(bootstrap_interval(pd.Series([0.5, 0.5, 0.5]))).all()
    assert np.isnan(bootstrap_interval(pd.Series([0.5]))).all()


def test_a_seed_that_stands_twice_is_refused_not_averaged():
    runs = pd.DataFrame({"arm": ["a", "b", "b"], "seed": [0, 0, 0], "test_dice": [0.1, 0.2, 0.4]})
    with pytest.raises(ValueError, match=r"several numbers of \[0\]"):
        compare_arms(runs, "a")


def test_arms_are_compared_with_holms_correction():
    rng = np.random.default_rng(0)
    runs = pd.DataFrame([(a, s, rng.normal(m)) for a, m in (("a", 0), ("b", 2), ("c", 9)) for s in range(4)])
    runs.columns = ["arm", "seed", "test_dice"]
    table = compare_arms(runs, "a")
    ordered = table.sort_values("p")
    smallest = min(1, 2 * ordered["p"].iloc[0])
    assert ordered["p_holm"].tolist() == pytest.approx([smallest, max(smallest, ordered["p"].iloc[1])])
    with pytest.raises(ValueError, match="there is no run of 'random' to compare with, only of a, b, c"):
        compare_arms(runs, "random")


def test_areas_and_images_to_reach():
    rounds = pd.DataFrame({"n_labelled": [0, 10, 30], "val_dice": [0.0, 0.5, 0.5]})
    assert area_under_curve(rounds) == pytest.approx((2.5 + 10) / 30)
    assert np.isnan(area_under_curve(rounds[:1]))
    assert images_to_reach(rounds, 0.5) == 10 and np.isnan(images_to_reach(rounds, 0.6))


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(pd.Series(rng.normal(0, 1, 60)), seed=i, n_resamples=300) for i in range(120)]
    assert 0.86 < np.mean([low < 0 < high for low, high in intervals]) < 0.995


@pytest.mark.parametrize(
    ("low", "high", "region", "expected"),
    [
        (0.1, 2, (0, math.inf), SUPPORTED),
        (-0.1, 2, (0, math.inf), UNDECIDED),
        (-2, -0.1, (0, math.inf), NOT_SUPPORTED),
        (-0.5, 0.5, (-1, 1), SUPPORTED),
        (1.5, 2.5, (-1, 1), NOT_SUPPORTED),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(low, high, region, expected):
    assert verdict(Difference((low + high) / 2, low, high, 0.5, 3), region) == expected
    assert verdict(Difference((low + high) / 2, low, high, 0.5, 1), region) == UNDECIDED


def all_runs(seed, wobble):
    dice = {"random": 0.85, "least_confidence": 0.87, "entropy": 0.86, "mc_dropout": 0.84, "full": 0.83}
    arms = [make_run(arm, seed, d + wobble * (i + 1)) for i, (arm, d) in enumerate(dice.items())]
    its = {"seed": seed, "annotation": "partial", "test": 0.84 + wobble, "positive": 4 + wobble}
    thresholds = ((0.25, 0.25), (0.125, 0.25), (0.125, 0.5), (0.125, 0.75))
    cells = [make_run(tau_u=tau_u, tau_b=tau_b, **its) for tau_u, tau_b in thresholds]
    return [*arms, *cells]


def test_every_claim_of_the_paper_is_supported_by_runs_like_the_papers():
    results = make_results(*all_runs(0, 0), *all_runs(1, 0.0002), *all_runs(2, -0.0003))
    table = judge(results)
    assert table.index.tolist() == [claim for claim, *_ in CLAIMS]
    assert set(table["verdict"]) == {SUPPORTED}
    assert table["effect"].tolist() == pytest.approx([1, 4, -1, 1, 0, 4], abs=0.2)
    assert "30% of the images" in table["measured"].iloc[3]


def test_claims_without_runs_are_left_out_and_one_seed_decides_nothing():
    table = judge(make_results(make_run("random", test=0.8), make_run("mc_dropout", test=0.7)))
    assert table.index.tolist() == ["Monte Carlo dropout does not outperform random selection."]
    assert table[["verdict", "effect"]].to_numpy().tolist() == [[UNDECIDED, pytest.approx(-10)]]
    assert judge(make_results(make_run("entropy"))).empty


def test_a_table_is_written_with_all_digits_and_to_read(tmp_path):
    table = pd.DataFrame({"test": [100 / 3, math.nan]}, pd.Index(["a", "b"], name="arm"))
    write_table(tmp_path / "t", table)
    assert pd.read_csv(tmp_path / "t.csv")["test"][0] == 100 / 3
    assert (tmp_path / "t.md").read_text().splitlines()[2:] == ["| a     | 33.3   |", "| b     |        |"]
