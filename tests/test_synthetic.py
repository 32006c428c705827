"""The synthetic pictures: exact masks, independent seeding, and knobs that turn what they say."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from alutils.data.duplicates import difference_hash
from alutils.data.rendering import SUBTYPES, LesionFactors, render_lesion
from alutils.data.synthetic import make_synthetic

PLAIN = LesionFactors(irregularity=0.0, elongation=0.0, variegation=0.0, network=0.0, shading=0.0)
RANGES = {item.name: item.metadata["range"] for item in fields(LesionFactors) if "range" in item.metadata}


@pytest.fixture(scope="module")
def many():
    return make_synthetic(500, 20, 20, image_size=32)


@pytest.fixture(scope="module")
def redundant():
    return make_synthetic(100, 20, 20, image_size=64, redundancy=0.8)


def offsets_from_centre(size, x, y):
    line = (np.arange(size) + 0.5) / size
    return line[None, :] - x, line[:, None] - y


# --- The form of the data ---------------------------------------------------------------------------------------------


def test_pictures_are_uint8_and_masks_binary():
    size = 100
    splits = make_synthetic(3, 2, 1, image_size=size)
    for name, n in (("train", 3), ("val", 2), ("test", 1)):
        split = getattr(splits, name)
        assert split.images.shape == (n, 3, size, size) and split.images.dtype == torch.uint8
        assert split.masks.shape == (n, 1, size, size) and split.masks.dtype == torch.uint8
        assert split.masks.unique().tolist() == [0, 1] and len(split.factors) == n
        assert split.ids == tuple(f"synthetic_{name}_{i:04d}" for i in range(n))


def test_no_picture_stands_twice_in_or_across_splits(many):
    pictures = torch.cat([many.train.images, many.val.images, many.test.images])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 540


def test_factors_hold_every_draw_and_the_subtype_as_text(many):
    assert list(many.train.factors.columns) == [item.name for item in fields(LesionFactors)]
    assert set(many.train.factors["subtype"]) == set(SUBTYPES)
    for name, (low, high) in RANGES.items():
        assert many.train.factors[name].between(low, high).all(), name


# --- Seeding ----------------------------------------------------------------------------------------------------------


def test_a_picture_does_not_depend_on_how_many_are_made(many):
    few = make_synthetic(4, 2, 1, image_size=32)
    assert torch.equal(few.train.images, many.train.images[:4]) and torch.equal(few.train.masks, many.train.masks[:4])
    assert torch.equal(few.val.images, many.val.images[:2]) and torch.equal(few.test.images, many.test.images[:1])


def test_pictures_without_redundancy_are_those_that_runs_were_recorded_on():
    splits = make_synthetic(8, 1, 1)  # levels from before the knob; other processors may round otherwise, by one
    in_train, in_test = splits.train.images[7, 1, 0, :16].tolist(), splits.test.images[0, 1, 0, :16].tolist()
    assert in_train == pytest.approx([33, 31, 28, 31, 34, 32, 42, 37, 40, 47, 52, 52, 53, 66, 78, 81], abs=1)
    assert in_test == pytest.approx([35, 38, 37, 37, 37, 32, 38, 41, 45, 47, 53, 50, 54, 58, 59, 55], abs=1)


def test_another_seed_gives_other_pictures(many):
    other = make_synthetic(4, 1, 1, image_size=32, seed=1)
    assert not any(torch.equal(other.train.images[i], many.train.images[i]) for i in range(4))


def test_the_global_random_state_is_neither_read_nor_moved():
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = make_synthetic(1, 1, 1, image_size=32)
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    assert torch.equal(make_synthetic(1, 1, 1, image_size=32).train.images, first.train.images)


# --- Masks against closed forms ---------------------------------------------------------------------------------------


def test_the_mask_has_exactly_the_drawn_area(many):
    wanted = [round(area * 32 * 32) for area in many.train.factors["area"]]
    assert many.train.masks.flatten(1).sum(1).tolist() == wanted


@pytest.mark.parametrize(("area", "x", "y"), [(0.01, 0.5, 0.5), (0.21, 0.41, 0.57), (0.3, 0.0, 1.0)])
def test_a_round_lesion_is_the_disc_of_the_nearest_pixels_even_where_the_picture_cuts_it(area, x, y):
    _, mask = render_lesion(replace(PLAIN, area=area, centre_x=x, centre_y=y), 64)
    dx, dy = offsets_from_centre(64, x, y)
    distance = np.hypot(dx, dy)
    slack = 1e-9  # pixels at the same distance from the centre may fall on either side
    assert mask.sum() == round(area * 64 * 64)
    assert distance[mask == 1].max() <= distance[mask == 0].min() + slack


def test_elongation_gives_the_axes_of_its_polar_curve():
    elongation = 0.3
    _, mask = render_lesion(replace(PLAIN, elongation=elongation, area=0.15), 256)
    dx, dy = offsets_from_centre(256, 0.5, 0.5)
    rows, columns = np.nonzero(mask)
    points = np.stack([dx[0, columns], dy[rows, 0]])
    short, long = np.linalg.eigvalsh(points @ points.T)
    theta = np.linspace(0, 2 * np.pi, 4001)[:-1]
    fourth = np.exp(4 * elongation * np.cos(2 * theta))  # integral of r^2 r dr up to R(theta), but for a constant
    ratio = (fourth * np.cos(theta) ** 2).sum() / (fourth * np.sin(theta) ** 2).sum()
    assert long / short == pytest.approx(ratio, rel=0.02)


def test_parts_stand_apart_and_one_part_stays_whole():
    pieces = {}
    for n_parts in (1, 4):
        masks = [render_lesion(replace(PLAIN, seed=seed, n_parts=n_parts, area=0.08), 64)[1] for seed in range(20)]
        pieces[n_parts] = [ndimage.label(mask)[1] for mask in masks]
    assert set(pieces[1]) == {1}
    assert max(pieces[4]) >= 3 and np.mean(pieces[4]) > 1.5


def test_irregularity_lengthens_the_border():
    def perimeter(irregularity):
        masks = [render_lesion(replace(PLAIN, seed=s, irregularity=irregularity), 128)[1] for s in range(5)]
        return np.mean([(mask ^ ndimage.binary_erosion(mask)).sum() for mask in masks])

    assert perimeter(0.0) < 1.02 * perimeter(0.15) < perimeter(0.5)


def test_the_drawn_lesion_ends_where_the_mask_ends():
    for seed in range(5):
        factors = replace(PLAIN, seed=seed, irregularity=0.2, n_parts=2, softness=0.02, contrast=1.5)
        image, mask = render_lesion(factors, 64)
        blank, _ = render_lesion(replace(factors, contrast=0.0), 64)
        visible = image.astype(int).sum(2) < 0.8 * blank.astype(int).sum(2)
        dice = 2 * (visible & (mask == 1)).sum() / (visible.sum() + mask.sum())
        assert dice > 0.97


# --- Area distribution ------------------------------------------------------------------------------------------------


def test_areas_are_spread_as_on_isic(many):
    area = many.train.lesion_area
    assert 0.17 < area.mean() < 0.25
    assert area.min() < 0.03 and area.max() > 0.6
    assert area.median() < area.mean()


@pytest.mark.parametrize("mean_area", [0.05, 0.5])
def test_mean_area_sets_the_mean(mean_area):
    area = make_synthetic(600, 1, 1, image_size=16, mean_area=mean_area).train.lesion_area
    assert area.mean() == pytest.approx(mean_area, abs=4 * area.std().item() / 600**0.5)


# --- One factor at a time ---------------------------------------------------------------------------------------------


def test_a_row_of_factors_makes_its_picture_again(many):
    for i in (0, 7, 123):
        image, mask = render_lesion(LesionFactors(**many.train.factors.iloc[i]), 32)
        assert np.array_equal(image, many.train.images[i].permute(1, 2, 0).numpy())
        assert np.array_equal(mask, many.train.masks[i, 0].numpy())


def test_another_size_shows_the_same_composition(many):
    for i in range(20):
        factors = LesionFactors(**many.train.factors.iloc[i])
        small, small_mask = render_lesion(factors, 64)
        large, large_mask = render_lesion(factors, 256)
        reduced = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
        reduced_mask = large_mask.reshape(64, 4, 64, 4).mean((1, 3)) > 0.5
        assert np.corrcoef(reduced.ravel(), small.ravel())[0, 1] > 0.9
        assert 2 * (reduced_mask & (small_mask == 1)).sum() / (reduced_mask.sum() + small_mask.sum()) > 0.85


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("contrast", 0.2), ("softness", 0.3), ("variegation", 0.9), ("network", 0.9), ("skin_tone", 0.9)],
        *[("patches", 0.9), ("exposure", 0.6), ("warmth", 0.8), ("shading", 0.9), ("vignette", 0.9), ("ruler", 1)],
        *[("n_freckles", 20), ("n_ink", 4), ("n_bubbles", 10), ("n_hairs", 20), ("subtype", "reddish")],
    ],
)
def test_a_factor_of_the_appearance_changes_the_picture_and_not_the_mask(name, value):
    image, mask = render_lesion(LesionFactors(), 64)
    changed, changed_mask = render_lesion(replace(LesionFactors(), **{name: value}), 64)
    assert np.array_equal(mask, changed_mask)
    assert not np.array_equal(image, changed)


@pytest.mark.parametrize(
    ("name", "value"),
    [("elongation", 0.5), ("irregularity", 0.6), ("centre_x", 0.7), ("centre_y", 0.3), ("n_parts", 3)],
)
def test_a_factor_of_the_shape_moves_the_mask_at_the_same_area(name, value):
    _, mask = render_lesion(LesionFactors(), 64)
    _, changed = render_lesion(replace(LesionFactors(), **{name: value}), 64)
    assert mask.sum() == changed.sum() and not np.array_equal(mask, changed)


def test_difficulty_is_only_a_record():
    easy, hard = (render_lesion(replace(LesionFactors(), difficulty=d), 32)[0] for d in (0.0, 1.0))
    assert np.array_equal(easy, hard)


def test_contrast_is_an_optical_density():
    factors = replace(PLAIN, exposure=1.0)
    inside = render_lesion(replace(factors, area=0.1), 64)[1] == 1
    level = [render_lesion(replace(factors, contrast=c), 64)[0][inside, 1].mean() for c in (0.0, 0.3, 0.6)]
    density = [np.log(level[0] / level[1]), np.log(level[0] / level[2])]
    assert density[1] == pytest.approx(2 * density[0], rel=0.05)


def test_subtypes_have_their_colours():
    def change(subtype):  # ratio of the lesion's colour to the skin's, RGB
        image, mask = render_lesion(replace(PLAIN, subtype=subtype, contrast=0.5, exposure=0.7), 64)
        return image[mask == 1].mean(0) / image[mask == 0].mean(0)

    assert (change("common") < 0.95).all() and (change("hypopigmented") > 1.05).all()
    assert change("reddish")[0] > change("common")[0] + 0.1


def test_dark_skin_is_darker_and_hairs_darken_more_when_there_are_more():
    def mean_level(**factors):
        return render_lesion(replace(PLAIN, **factors), 64)[0].mean()

    assert mean_level(skin_tone=1.0) < mean_level(skin_tone=0.5) < mean_level(skin_tone=0.0) - 20
    assert mean_level(n_hairs=80) < mean_level(n_hairs=20) < mean_level(n_hairs=0)


# --- Knobs of the data set --------------------------------------------------------------------------------------------


def test_most_pictures_are_easy_and_contrast_falls_with_difficulty(many):
    factors = many.train.factors
    assert (factors["difficulty"] < 0.4).mean() > 0.5 and (factors["difficulty"] > 0.7).mean() > 0.02
    for name, sign in (("contrast", -1), ("softness", 1), ("irregularity", 1), ("n_hairs", 1), ("n_freckles", 1)):
        common = factors[factors["subtype"] == "common"]
        assert sign * stats.spearmanr(common["difficulty"], common[name]).statistic > 0.15, name
    assert stats.spearmanr(factors["difficulty"], factors["contrast"]).statistic < -0.7


def test_rare_kinds_are_harder_and_as_frequent_as_asked(many):
    factors = many.train.factors
    is_rare = factors["subtype"] != "common"
    assert is_rare.mean() == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / 500) ** 0.5)
    assert factors.loc[is_rare, "difficulty"].mean() > factors.loc[~is_rare, "difficulty"].mean() + 0.15
    assert set(make_synthetic(30, 1, 1, image_size=16, rare=0).train.factors["subtype"]) == {"common"}
    assert "common" not in set(make_synthetic(30, 1, 1, image_size=16, rare=1).train.factors["subtype"])


def test_the_difficulty_knob_scales_the_difficulty(many):
    none = make_synthetic(60, 1, 1, image_size=16, difficulty=0).train.factors
    double = make_synthetic(60, 1, 1, image_size=16, difficulty=2).train.factors
    usual = many.train.factors["difficulty"][:60]
    assert (none["difficulty"] == 0).all()
    assert np.allclose(double["difficulty"], np.minimum(1, 2 * usual))
    assert none["contrast"].mean() > many.train.factors["contrast"][:60].mean() > double["contrast"].mean()


def test_artefacts_can_be_left_out_or_multiplied(many):
    names = ["n_hairs", "n_bubbles", "n_ink", "ruler", "vignette"]
    none = make_synthetic(100, 1, 1, image_size=16, artefacts=0).train.factors
    more = make_synthetic(100, 1, 1, image_size=16, artefacts=3).train.factors
    assert (none[names] == 0).all().all() and not set(none["subtype"]) & {"hairy", "ink"}
    assert (more[names].mean() > 1.5 * many.train.factors[names].mean()).all()


def test_redundancy_repeats_common_lesions_of_the_training_set_alone(redundant):
    plain = make_synthetic(100, 20, 20, image_size=64)
    repeats = (redundant.train.factors["shot"] > 0).to_numpy()
    assert repeats.mean() == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / 100) ** 0.5)
    assert torch.equal(redundant.train.images[~repeats], plain.train.images[~repeats])
    assert set(redundant.train.factors["subtype"][repeats]) == {"common"}
    assert (plain.train.factors["shot"] == 0).all()
    for name in ("val", "test"):
        assert getattr(redundant, name).checksum == getattr(plain, name).checksum
    assert make_synthetic(3, 1, 1, image_size=16, rare=1, redundancy=1).train.factors["shot"].eq(0).all()


def test_repeats_are_near_duplicates_with_exact_masks_and_different_lesions_are_not(redundant):
    train, hashes = redundant.train, difference_hash(redundant.train.images)
    bits = (hashes[:, None] != hashes).sum(2).numpy()
    lesions = train.factors["seed"].to_numpy()
    same = (lesions[:, None] == lesions) & ~np.eye(100, dtype=bool)
    assert same.sum() > 500
    assert bits[same].max() <= 12 and np.median(bits[same]) <= 4 < np.quantile(bits[lesions[:, None] != lesions], 0.01)
    assert len({picture.numpy().tobytes() for picture in train.images}) == 100
    wanted = [round(area * 64 * 64) for area in train.factors["area"]]
    assert train.masks.flatten(1).sum(1).tolist() == wanted


def test_skin_tones_keep_to_their_range():
    dark = make_synthetic(40, 1, 1, image_size=16, skin_tones=(0.8, 1.0)).train
    light = make_synthetic(40, 1, 1, image_size=16, skin_tones=(0.0, 0.1)).train
    assert dark.factors["skin_tone"].between(0.8, 1.0).all() and light.factors["skin_tone"].between(0, 0.1).all()
    assert dark.images.float().mean() < light.images.float().mean() - 30


# --- Guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_train", 0), ("n_test", 2.5), ("image_size", 15), ("seed", 2**32), ("rare", "often"),
        ("difficulty", float("nan")), ("mean_area", 0.01), ("skin_tones", (0.5, 0.4)), ("skin_tones", 0.5),
        ("redundancy", -0.1), ("redundancy", 1.1), ("redundancy", "high"),
    ],
)  # fmt: skip
def test_a_knob_out_of_range_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=argument):
        make_synthetic(**{argument: value})


def test_a_factor_out_of_range_is_refused_by_name_and_its_limits_are_allowed():
    for name, (low, high) in RANGES.items():
        for value in (low, high):
            replace(LesionFactors(), **{name: value})
        for value in (low - 1, high + 1):
            with pytest.raises(ValueError, match=f"^{name} must be"):
                replace(LesionFactors(), **{name: value})
    for name, value in (("n_hairs", 2.5), ("subtype", "benign")):
        with pytest.raises(ValueError, match=name):
            LesionFactors(**{name: value})


def test_every_factor_at_either_end_still_renders():
    size = 16
    for end in (0, 1):
        factors = LesionFactors(**{name: limits[end] for name, limits in RANGES.items()})
        image, mask = render_lesion(factors, size)
        assert image.shape == (size, size, 3) and mask.sum() == max(1, round(factors.area * size**2))
