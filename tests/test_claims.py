"""Verdicts on the paper's claims against hand-made runs whose answers are known."""

import importlib
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from alutils.report.claims import NOT_SUPPORTED, PLAN, SUPPORTED, UNDECIDED, Region, in_words, judge
from alutils.report.endpoints import arm_names, by_arm
from alutils.report.forest import draw_forest, draw_readings
from alutils.report.readings import compare_readings
from alutils.report.tables import costs

ROOT = Path(__file__).resolve().parents[1]
PAPERS = {"random": 0.85, "least_confidence": 0.87, "entropy": 0.86, "mc_dropout": 0.838, "full": 0.83}
CELLS = {(0.25, 0.25): 0.835, (0.375, 0.5): 0.83, (0.125, 0.25): 0.805, (0.125, 0.5): 0.805, (0.125, 0.75): 0.805}


def make_run(arm, seed, dice, cell=None, clicks=20.0, positive=4.0):
    """A finished run: three rounds (one of full data), ten test images whose Dice is ``dice`` on average."""
    name, once = f"{arm}-{cell}-{seed}", arm == "full"
    head = {"run": name, "strategy": arm, "seed": seed}
    labelled = [100] if once else [10, 20, 30]
    rows = list(enumerate(labelled))
    tau_u, tau_b = cell or (0.25, 0.25)
    settings = {"annotation": "partial" if cell else "full", "tau_u": tau_u, "tau_b": tau_b, "n_train": 100}
    spread = np.linspace(-0.05, 0.05, 10) + 0.001 * np.random.default_rng(seed).normal(size=10)
    spread -= spread.mean()
    images = [
        head | {"image_id": f"t{i}", "dice": dice + d, "area": math.nan if once else dice - 0.1 + d}
        for i, d in enumerate(spread)
    ]
    return {
        "runs": [head | settings | {"n_labelled": labelled[-1], "test_dice": dice}],
        "rounds": [
            head | {"round": k, "n_labelled": n, "test_dice": dice, "lesion_area_percent": 20.0 if k < 2 else math.nan}
            for k, n in rows
        ],
        "annotations": [
            head | {"round": k, "images": 10, "verify_percent": 50.0, "positive_percent": positive, "clicks": clicks}
            for k, _ in rows
        ],
        "test_dice": images,
    }


def make_results(n_seeds, changes=None, noise=0.002):
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(n_seeds):
        for arm, dice in (PAPERS | (changes or {})).items():
            runs.append(make_run(arm, seed, dice + noise * rng.normal()))
        for cell, dice in CELLS.items():
            its = {"clicks": 12 + rng.normal(), "positive": 4 + 0.1 * rng.normal()}
            runs.append(make_run("least_confidence", seed, dice + noise * rng.normal(), cell, **its))
    return {name: pd.DataFrame([row for run in runs for row in run[name]]) for name in runs[0]}


@pytest.fixture(scope="module")
def like_the_papers():
    return judge(make_results(8))


def test_every_claim_is_supported_by_enough_runs_like_the_papers(like_the_papers):
    assert list(dict.fromkeys(like_the_papers.index)) == [claim["claim"] for claim in PLAN["claims"]]
    assert set(like_the_papers["verdict"]) == {SUPPORTED}
    first = like_the_papers[like_the_papers["by"] == "dice"].iloc[0]
    assert first["difference"] == "least_confidence - random" and first["paper"] == 2
    assert first["effect"] == pytest.approx(2, abs=0.3) and first["low"] < first["effect"] < first["high"]
    assert (first["seeds"], first["claimed"]) == (8, "above 0") and 0 < first["detectable"] < 2


def test_best_needs_all_rivals_to_be_beaten_and_falls_with_one_that_beats_it():
    def of_the_best(changes, noise=0.002):
        table = judge(make_results(8, changes, noise))
        return set(table.loc["Least confidence is the best strategy."].query("by == 'dice'")["verdict"])

    assert of_the_best({"random": 0.87}) == {UNDECIDED}
    assert of_the_best({"random": 0.9}) == {NOT_SUPPORTED}
    assert of_the_best({}, noise=0.05) == {UNDECIDED}


def test_no_influence_needs_two_one_sided_tests_not_a_missing_difference():
    claim = "tau_b has no significant influence."
    wide = judge(make_results(6, noise=0.03)).loc[claim]
    assert set(wide["verdict"]) == {UNDECIDED}  # nothing was found, for want of precision
    narrow = judge(make_results(6, noise=0.001)).loc[claim]
    assert set(narrow["verdict"]) == {SUPPORTED}


def test_few_seeds_give_no_verdict_but_the_number_that_would():
    few = judge(make_results(3))
    assert (few["verdict"] == f"too few seeds: 3 of {PLAN['fewest_seeds']}").all()
    words = in_words(judge(make_results(3, noise=0.02)))
    assert re.search(r"best strategy.*For ±1 on all 3 differences: \d+ seeds\.$", words, re.MULTILINE)


def test_one_seed_has_no_interval_wherever_its_mean_lies():
    table = judge(make_results(1, {"least_confidence": 0.7}))
    assert table["low"].isna().all() and table["high"].isna().all()
    assert "[" not in in_words(table)
    best = table.loc["Least confidence is the best strategy."].query("by == 'dice'")
    furthest = best.sort_values("effect").iloc[0]
    assert f" {furthest['difference'].replace('_', ' ')}: {furthest['effect']:.1f}" in in_words(table)
    assert sum(len(axes.get_yticklabels()) for axes in draw_forest(table).axes) == len(table)


def test_an_end_of_an_interval_near_the_edge_of_the_claim_is_written_with_two_decimals():
    table = judge(make_results(8)).iloc[[0]]
    for high, written in ((0.04, "[-1.42, 0.04]"), (-0.04, "[-1.42, -0.04]"), (0.06, "[-1.4, 0.1]")):
        assert written in in_words(table.assign(low=-1.42, high=high))


def test_claims_without_runs_are_left_out_and_nothing_leaves_what_is_possible():
    results = make_results(6)
    alone = {name: table[table["strategy"].isin(["random", "mc_dropout"])] for name, table in results.items()}
    assert judge(alone).index.str.startswith("Monte Carlo dropout").all() and len(judge(alone)) == 4
    assert judge({name: table[table["strategy"] == "entropy"] for name, table in results.items()}).empty
    results["annotations"]["positive_percent"] = 2.0 + 40.0 * (results["annotations"]["seed"] == 5)
    low = judge(results).loc["After a few rounds under 5 % of the pixels are annotated as lesion.", "low"]
    assert low == 0


def test_the_queries_of_a_round_are_annotated_in_the_next():
    results = make_results(1)
    results["annotations"]["positive_percent"] = results["annotations"]["round"].astype(float)
    results["rounds"]["lesion_area_percent"] = 10.0 + results["rounds"]["round"]
    assert by_arm(results, "positive")["random"].tolist() == [2]  # of rounds 0 to 2, the second half is round 2
    assert by_arm(results, "share")["random"].tolist() == [pytest.approx(100 * 2 / 11)]  # queried after round 1


def test_thirty_percent_is_read_off_the_curve_where_it_goes_on():
    results = make_results(1)
    rounds = results["rounds"]
    rounds.loc[rounds["n_labelled"] == 20, "n_labelled"] = 29
    rounds.loc[rounds["n_labelled"] == 29, "test_dice"] = 0.5
    rounds.loc[rounds["n_labelled"] == 30, "n_labelled"] = 49
    few = by_arm(results, "dice at 30 %")
    assert few["entropy"].tolist() == [50] and few["full"].iloc[0] > 80
    rounds.loc[rounds["n_labelled"] == 49, "n_labelled"] = 20
    rounds.loc[rounds["n_labelled"] == 29, "n_labelled"] = 20
    few = by_arm(results, "dice at 30 %")
    assert "entropy" not in few and few["full"].iloc[0] > 80  # a run that ends at 20 % says nothing about 30 %


def test_the_round_nearest_to_thirty_percent_may_lie_on_either_side_of_it():
    results = make_results(1)
    rounds = results["rounds"]
    rounds["n_labelled"] = rounds["n_labelled"].replace({20: 27, 30: 40})
    rounds.loc[rounds["n_labelled"] == 27, "test_dice"] = 0.5
    assert by_arm(results, "dice at 30 %")["entropy"].tolist() == [50]
    rounds.loc[rounds["n_labelled"] == 27, "test_dice"] = math.nan
    assert "entropy" not in by_arm(results, "dice at 30 %")  # 40 % is not 30 %


def test_arms_have_names_and_a_claim_names_only_what_is_measured():
    runs = pd.DataFrame(
        [("entropy", "partial"), ("random", "full"), ("least_confidence", "human-only")],
        columns=["strategy", "annotation"],
    ).assign(tau_u=0.25, tau_b=0.25)
    assert arm_names(runs).tolist() == ["entropy-partial-0.25-0.5", "random", "human-only-0.25-0.25"]
    assert {by for claim in PLAN["claims"] for by in claim["by"]} == set(PLAN["aim"])
    results = make_results(1)
    assert all(by_arm(results, endpoint) for endpoint in PLAN["aim"])
    assert Region.of("below 5") == (-math.inf, 5) and not Region.of("below 5").two_sided


def test_the_plan_says_how_many_seeds_it_takes_from_the_first_folder_with_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    seeds = importlib.import_module("seeds")
    seeds.main([str(tmp_path), str(ROOT / "results" / "quick")])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("least_confidence - random "))
    assert int(line.split()[-1]) >= 2
    seeds.main([str(tmp_path)])
    assert f"there is no finished run below {tmp_path}" in capsys.readouterr().out


def test_the_verdicts_in_words_name_the_difference_that_speaks_most_against_the_claim():
    table = judge(make_results(8, {"mc_dropout": 0.9}))
    best = next(line for line in in_words(table).splitlines() if "is the best strategy" in line)
    assert best.startswith("- **not supported**: ") and "least confidence - mc dropout: -2.9 [" in best
    table = judge(make_results(3)).loc[["A tau_u below 0.25 reduces performance."]].assign(p_holm=1.0)  # below 0
    for ends, named in (([-2.0, 1.5, 6.6], 2), ([-3.0, -0.4, -0.5], 1), ([math.nan] * 3, 0)):
        row = table.assign(effect=[-1.0, -2.0, -3.0], low=-9.0 if named else math.nan, high=ends).iloc[named]
        words = in_words(table.assign(effect=[-1.0, -2.0, -3.0], low=row["low"], high=ends))
        assert f" {row['difference']}: {row['effect']:.1f}" in words
    assert in_words(judge({name: rows[:0] for name, rows in make_results(1).items()})) == ""


def test_the_papers_number_has_a_sign_where_it_is_a_difference():
    words = in_words(judge(make_results(6)))
    assert "; the paper: +4." in words and "; the paper: -1." in words  # least confidence - full, mc dropout - random
    assert "; the paper: +0.3." in words  # partial annotation - full
    assert "; the paper: 5." in words  # % of the pixels


def test_the_words_on_what_is_undecided_say_how_many_seeds_it_takes():
    table = judge(make_results(8, {"mc_dropout": 0.87}, noise=0.02))
    lines = {claim: in_words(rows) for claim, rows in table.groupby("claim")}
    (undecided,) = {claim for claim in table.index if "dropout is worse" in claim}
    wanted = table.loc[undecided, "seeds_wanted"].iloc[0]
    assert wanted > 8 and lines[undecided].splitlines()[0].endswith(f"For an interval of ±1: {wanted} seeds.")
    assert all("seeds." not in line for line in lines.values() if UNDECIDED not in line)
    few_images = table.loc[[undecided]].assign(seeds_wanted=pd.NA)
    assert "No number of seeds is enough for an interval of ±1: the test images are too few." in in_words(few_images)
    without_images = few_images.assign(by="clicks")
    assert "10,000 seeds are not enough for ±3 on all 2 differences." in in_words(without_images)
    reached = table.loc[[undecided]].assign(seeds_wanted=8)
    assert in_words(reached).splitlines()[0].endswith("The planned ±1 is reached.")


def test_arms_that_are_the_same_need_no_more_seeds_and_a_spread_that_is_unknown_says_nothing():
    claim = "Entropy outperforms random selection."
    same = judge(make_results(8, {"random": PAPERS["entropy"]}, noise=0)).loc[[claim]]
    assert set(same["verdict"]) == {UNDECIDED} and set(same["seeds_wanted"]) == {2}
    assert all(line.endswith("The planned ±1 is reached.") for line in in_words(same).splitlines())
    constant = judge(make_results(8, {"random": 0.85}, noise=0)).loc[[claim]]
    assert constant["seeds_wanted"].isna().all() and "seeds" not in in_words(constant)


def test_a_claim_about_several_differences_takes_as_many_seeds_as_the_widest_of_them():
    table = judge(make_results(3)).loc[["tau_b has no significant influence."]].assign(seeds_wanted=[4, 9, 7])
    assert in_words(table).endswith("For ±1 on all 3 differences: 9 seeds.")
    one_without_end = table.assign(seeds_wanted=pd.array([4, pd.NA, 7], dtype="Int64"))
    assert in_words(one_without_end).endswith(
        "No number of seeds is enough for ±1 on all 3 differences: the test images are too few."
    )


def test_the_forest_shows_each_interval_and_where_it_is_claimed_to_lie():
    table = judge(make_results(8))
    figure = draw_forest(table)
    dice = figure.axes[0]
    labels = [label.get_text() for label in dice.get_yticklabels()]
    assert len(labels) == table["by"].isin(["dice", "area", "dice at 30 %"]).sum()
    first = table.iloc[0]
    y = dice.get_yticks()[labels.index("least confidence - random")]
    ends = [line.get_xdata() for line in dice.get_lines() if len(line.get_xdata()) == 2 and line.get_ydata()[0] == y]
    assert np.allclose(ends, [[first["low"], first["high"]]])
    claimed = next(bar for bar in dice.patches if bar.get_y() < y < bar.get_y() + bar.get_height())
    assert claimed.get_x() == 0 and claimed.get_x() + claimed.get_width() == dice.get_xlim()[1]
    wide = draw_forest(judge(make_results(2, noise=0.05))).axes[0]
    assert max(abs(x) for x in wide.get_xlim()) < 80  # two seeds give intervals of a hundred points


def test_costs_add_up_over_the_rounds_and_means_count_for_their_images():
    results = make_results(1)
    table = costs(results, ["least_confidence", "partial-0.25-0.5"])
    assert table["arm"].cat.categories.tolist() == ["least_confidence", "partial-0.25-0.5"]
    its = table.query("arm == 'least_confidence'")
    assert its["clicks"].tolist() == [200, 400, 600]
    assert its["pixels verified, in whole images"].tolist() == [5, 10, 15]


def test_a_reading_without_runs_of_the_baseline_is_compared_with_the_defaults():
    def of(arms, n_seeds=3, **changes):
        results = {name: table.copy() for name, table in make_results(n_seeds, changes).items()}
        results["rounds"]["val_dice"] = results["rounds"]["test_dice"] - 0.1
        full = results["runs"].query("annotation == 'full'")["run"]
        return {name: table[table["strategy"].isin(arms) & table["run"].isin(full)] for name, table in results.items()}

    both = ["random", "least_confidence"]
    table = compare_readings(
        {"default": of(both), "band": of(["least_confidence"], least_confidence=0.9), "none yet": of(["random"])}
    )
    assert table["label"].tolist() == ["default", "band"] and table["seeds"].tolist() == [3, 3]
    assert table["effect"].tolist() == pytest.approx([2, 5], abs=0.5)
    assert table["val_dice"].tolist() == pytest.approx([75, 75], abs=0.5)


def test_the_validation_dice_of_a_reading_is_that_of_random_selection_with_whole_masks():
    results = make_results(2)
    partial = [make_run("random", seed, 0.2, cell=(0.25, 0.25)) for seed in range(2)]
    for name, table in results.items():
        results[name] = pd.concat([table, pd.DataFrame([row for run in partial for row in run[name]])])
    results["rounds"]["val_dice"] = results["rounds"]["test_dice"] - 0.1 * (results["rounds"]["round"] == 0)
    (row,) = compare_readings({"default": results}).itertuples()
    assert row.val_dice == pytest.approx(85, abs=0.5) and row.val_dice_cold == pytest.approx(75, abs=0.5)


def test_a_reading_with_too_few_seeds_is_drawn_and_told_as_such():
    rows = {"label": ["enough", "few"], "effect": [-0.04, 1], "low": [-1, 0.5], "high": [0.92, 1.5], "seeds": [6, 2]}
    figure, alt = draw_readings(pd.DataFrame(rows))
    assert "enough: 0.0 [-1.0, 0.9]" in alt and "few (too few seeds): 1.0 [0.5, 1.5]" in alt
    intervals = [line for line in figure.axes[0].lines if list(line.get_xdata()) in ([-1.0, 0.92], [0.5, 1.5])]
    enough, few = (line.get_color() for line in intervals)
    assert enough != few == "#767676"
    plt.close(figure)


def test_the_batch_makes_enough_seeds_for_a_verdict_by_default(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    batch = importlib.import_module("batch").Batch({})
    assert len(batch.seeds) >= PLAN["fewest_seeds"] and len(batch.table2_seeds) >= PLAN["fewest_seeds"]
