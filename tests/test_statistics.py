"""Intervals over seeds and images: against closed forms, another library and simulated truth."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from alutils.report.statistics import (
    Spread,
    area_under_curve,
    bootstrap_interval,
    compare_arms,
    images_to_reach,
    paired_difference,
    spread_over_seeds,
    spread_over_seeds_and_images,
)


def draw(rng, n_seeds, n_images, of_seeds, of_images, rest, mean=0.0):
    seeds, images = rng.normal(0, of_seeds, (n_seeds, 1)), rng.normal(0, of_images, (1, n_images))
    return pd.DataFrame(mean + seeds + images + rng.normal(0, rest, (n_seeds, n_images)))


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
    other = pd.Series([0.1, 0.2]) if mine[0] < 1 else pd.Series([1.0, 2.0])
    found = paired_difference(pd.Series(mine), other)
    assert found.n_seeds == 2 and found.mean > 0.1 and np.isnan([found.low, found.high, found.p]).all()
    assert compare_arms({"a": other, "b": pd.Series(mine)}, "a")[["p", "p_holm"]].isna().all(axis=None)
    assert spread_over_seeds(pd.Series(mine) - other).seeds_for(1) is None


def test_the_same_runs_do_not_differ_and_images_that_are_all_alike_have_no_interval():
    one = pd.Series([3.0, 5.0, 4.0, 9.0])
    assert paired_difference(one, one) == (0, 0, 0, 1, 4, 0)
    table = pd.DataFrame([[1.0, 2.0], [3.0, 5.0]])
    assert spread_over_seeds_and_images(table - table).difference() == (0, 0, 0, 1, 2, 0)
    assert np.isnan(bootstrap_interval(pd.Series([0.3, 0.1 + 0.2, 0.3]))).all()
    assert np.isnan(bootstrap_interval(pd.Series([0.5]))).all()


@pytest.mark.parametrize("rounding", [0.0, 0.1])
def test_copies_of_one_run_are_no_evidence_however_they_are_rounded(rounding):
    one = np.random.default_rng(0).normal(size=500)
    found = spread_over_seeds_and_images(pd.DataFrame([one + rounding - rounding, *[one] * 5]))
    difference = found.difference()
    assert difference.mean == pytest.approx(one.mean()) and difference.n_seeds == 6
    assert np.isnan([difference.low, difference.high, difference.p, found.p(1.0)]).all() and found.seeds_for(1) is None


def test_copies_of_one_run_whose_images_cancel_out_are_not_the_same_as_no_difference():
    found = spread_over_seeds_and_images(pd.DataFrame([[1.0, -1.0]] * 6))
    assert found.mean == 0 and np.isnan(found.difference().p) and found.seeds_for(1) is None


def test_a_seed_that_stands_twice_and_other_test_images_are_refused_not_averaged():
    with pytest.raises(ValueError, match=r"several numbers of \[0\]"):
        compare_arms({"a": pd.Series([0.1]), "b": pd.Series([0.2, 0.4], [0, 0])}, "a")
    table = pd.DataFrame([[1.0, 2.0]], columns=["x", "y"])
    with pytest.raises(ValueError, match="not tested on the same images"):
        compare_arms({"a": table, "b": table.set_axis(["x", "z"], axis="columns")}, "a")


def test_arms_are_compared_with_holms_correction_and_how_often_they_are_ahead():
    rng = np.random.default_rng(0)
    arms = {a: pd.Series(rng.normal(m, size=4)) for a, m in (("a", 0), ("b", 2), ("c", 9))}
    table = compare_arms(arms, "a")
    ordered = table.sort_values("p")
    smallest = min(1, 2 * ordered["p"].iloc[0])
    assert ordered["p_holm"].tolist() == pytest.approx([smallest, max(smallest, ordered["p"].iloc[1])])
    assert table["ahead"].tolist() == [np.mean(arms["b"] > arms["a"]), 1]
    with pytest.raises(ValueError, match="there is no run of 'random' to compare with, only of a, b, c"):
        compare_arms(arms, "random")


def test_the_crossed_spread_is_the_mixed_models():
    d = draw(np.random.default_rng(3), 6, 60, 2.0, 5.0, 8.0, mean=1.0)
    long = d.rename_axis("seed").reset_index().melt("seed", var_name="image", value_name="d").assign(one=1)
    effects = {"seed": "0 + C(seed)", "image": "0 + C(image)"}
    model = smf.mixedlm("d ~ 1", long, groups="one", vc_formula=effects).fit()
    found = spread_over_seeds_and_images(d)
    of_seeds, of_images = (dict(zip(model.model.exog_vc.names, model.vcomp, strict=True))[n] for n in ("seed", "image"))
    assert found.mean == pytest.approx(model.params["Intercept"])
    error = np.sqrt(found.seed_variance / 6 + found.image_variance)
    assert error == pytest.approx(model.bse["Intercept"], rel=0.02)
    assert found.image_variance * 60 == pytest.approx(of_images, rel=0.02)
    assert found.seed_variance == pytest.approx(of_seeds + model.scale / 60, rel=0.02)


@pytest.mark.parametrize("n_seeds", [3, 5, 8])
@pytest.mark.parametrize("of_seeds", [0.3, 1.0])
def test_the_crossed_interval_covers_the_truth_as_often_as_it_says(n_seeds, of_seeds):
    rng = np.random.default_rng(n_seeds)
    found = [
        spread_over_seeds_and_images(draw(rng, n_seeds, 120, of_seeds, 2.5, 5.0)).difference() for _ in range(1500)
    ]
    assert 0.93 <= np.mean([f.low < 0 < f.high for f in found]) < 0.995
    images_alone = [f for f in found if abs(f.mean) > 1.96 * np.sqrt((2.5**2 + 5.0**2 / n_seeds) / 120)]
    assert of_seeds < 1 or len(images_alone) > 0.2 * len(found)  # what intervals over images alone miss


@pytest.mark.parametrize("of_seeds", [0.3, 1.0])
def test_with_two_seeds_the_mean_square_of_the_seeds_alone_covers_too_rarely(of_seeds):
    rng, n, m, covered = np.random.default_rng(2), 2, 120, []
    for _ in range(1500):
        d = draw(rng, n, m, of_seeds, 2.5, 5.0).to_numpy()
        ours = spread_over_seeds_and_images(pd.DataFrame(d))
        alone = Spread(ours.mean, float(d.mean(1).var(ddof=1)), ours.image_variance, n)
        covered.append([found.low < 0 < found.high for found in (alone.difference(), ours.difference())])
    alone, ours = np.mean(covered, axis=0)
    assert 0.86 <= alone <= 0.92 and ours >= 0.95


def test_the_detectable_difference_is_detected_in_four_of_five_repetitions():
    rng = np.random.default_rng(0)
    true = Spread(0.0, 1.0, 0.0, 8).difference().detectable
    found = [spread_over_seeds(pd.Series(rng.normal(true, 1.0, 8))).difference() for _ in range(1000)]
    assert np.mean([f.low > 0 for f in found]) == pytest.approx(0.8, abs=0.06)


def test_as_many_seeds_as_the_plan_says_give_the_half_width_and_too_few_images_never_do():
    for spread in (Spread(0.0, 2.0, 0.0, 5), Spread(3.0, 4.0, 0.1, 3)):
        n = spread.seeds_for(1.0)
        enough, fewer = (Spread(0.0, spread.seed_variance, spread.image_variance, k).difference() for k in (n, n - 1))
        assert enough.high <= 1.0 < fewer.high
    assert Spread(0.0, 1.0, image_variance=0.3, n_seeds=5).seeds_for(1.0) is None  # 1.96 * sqrt(0.3) > 1


def test_two_seeds_are_enough_where_the_arms_are_the_same():
    assert Spread(0.0, 0.0, 0.0, n_seeds=6).seeds_for(1.0) == 2
    assert Spread(0.0, 0.0, 0.0, n_seeds=1).seeds_for(1.0) is None


def test_areas_and_images_to_reach():
    rounds = pd.DataFrame({"n_labelled": [0, 10, 30], "val_dice": [0.0, 0.5, 0.5]})
    assert area_under_curve(rounds) == pytest.approx((2.5 + 10) / 30)
    assert np.isnan(area_under_curve(rounds[:1]))
    assert images_to_reach(rounds, 0.5) == 10 and np.isnan(images_to_reach(rounds, 0.6))


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(pd.Series(rng.normal(0, 1, 60))) for _ in range(120)]
    assert 0.86 < np.mean([low < 0 < high for low, high in intervals]) < 0.995
