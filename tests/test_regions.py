"""One click per superpixel, corrections of the model's mask, and an oracle that errs."""

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.measure import label
from test_active_learning import contents, make_experiment, make_splits, run

from alutils.annotation import Oracle
from alutils.erring import ErringOracle, erring_mask
from alutils.lab.human_oracle import HumanOracle
from alutils.regions import correct, dominant_labels, n_clicks, regions_of, uncertain_regions
from alutils.rounds import ANNOTATION, COLD_START, CONTROL, QUERY, TRAINING
from alutils.system.checks import ConfigError
from alutils.system.seeding import make_generator

torch.set_num_threads(1)


def squares(size=32, side=8):
    """Superpixels that are squares, numbered row by row."""
    row = torch.arange(size) // side
    return (row[:, None] * (size // side) + row)[None, None]


def test_the_regions_asked_for_are_those_with_the_highest_mean_entropy():
    p = torch.full((1, 1, 32, 32), 0.01)
    p[..., :8, :8], p[..., 8:16, 8:16], p[..., 24, 24] = 0.5, 0.3, 0.5
    asked = uncertain_regions(p, squares(), 2)
    assert squares()[asked].unique().tolist() == [0, 5] and asked.sum() == 128
    assert uncertain_regions(p, squares(), 99).all()


def test_one_click_gives_a_region_its_dominant_label():
    labels = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    labels[..., :8, :5], labels[..., 8:16, :3], labels[..., 16:24, :4] = 1, 1, 1
    answer = dominant_labels(labels, squares())
    assert squares()[answer == 1].unique().tolist() == [0, 8]  # five eighths, and half; three eighths are skin


def test_the_person_corrects_the_largest_error_first_and_stops_when_it_is_good_enough():
    truth = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    truth[..., :16, :16] = 1  # four squares
    proposal = truth.clone()
    proposal[..., :8, :16] = 0  # two are missed
    proposal[..., 24:, 24:30] = 1  # and skin was taken for lesion
    for n, wrong in ((0, [0, 1, 15]), (1, 2), (3, [])):
        mask, clicked = correct(truth, proposal, squares(), n)
        still = squares()[mask != truth].unique().tolist()
        assert still == wrong if isinstance(wrong, list) else len(still) == wrong
        assert n_clicks(clicked, squares()).tolist() == [n]
    assert (
        0 in squares()[correct(truth, proposal, squares(), 1)[1]]
        or 1 in squares()[correct(truth, proposal, squares(), 1)[1]]
    )
    almost = truth.clone()
    almost[..., 0, :16] = 0  # IoU 15/16
    mask, clicked = correct(truth, almost, squares())
    assert torch.equal(mask, almost) and not clicked.any()


def test_an_error_that_fills_the_picture_is_clicked_in_its_middle():
    truth = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
    _, clicked = correct(truth, 0 * truth, squares(), 1)
    assert clicked[0, 0, 16, 16]


def test_no_region_is_clicked_twice_and_no_picture_is_forgotten():
    truth = (torch.arange(32) % 2).to(torch.uint8).expand(2, 1, 32, 32).clone()  # stripes that no square can follow
    _, clicked = correct(truth, 0 * truth, squares().expand(2, -1, -1, -1))
    assert n_clicks(clicked, squares().expand(2, -1, -1, -1)).tolist() == [10, 10]
    empty, clicked = correct(0 * truth, 0 * truth, squares().expand(2, -1, -1, -1))
    assert not empty.any() and not clicked.any()


def test_regions_have_the_pictures_size():
    pictures = torch.randint(0, 256, (2, 3, 256, 256), generator=make_generator(0), dtype=torch.uint8)
    regions = regions_of(pictures)
    assert regions.shape == (2, 1, 256, 256) and torch.equal(regions[..., ::2, :], regions[..., 1::2, :])


@pytest.mark.parametrize("mode", ["superpixels", "correction"])
def test_a_run_counts_a_click_per_superpixel_and_learns_from_what_was_clicked(tmp_path, mode):
    experiment, splits = make_experiment(annotation=mode), make_splits()
    rounds = run(tmp_path / "run", experiment, splits)
    costs = pd.concat([round_.annotations for round_ in rounds[1:]])
    assert (costs["clicks"] == costs["regions"]).all() and (costs["vertices"] == 0).all()
    assert costs["clicks"].between(0 if mode == "correction" else 1, 10).all() and costs["clicks"].sum() > 0
    labels = rounds[-1].labels
    n = rounds[0].n_labelled
    truth = splits.train.masks[labels.indices[n:]]
    masks, human = labels.masks[slice(n, None)], labels.human[slice(n, None)].bool()
    assert human.flatten(1).any(1).float().mean() > 0.5
    regions = regions_of(splits.train.images[labels.indices[n:]])
    for mask, true, clicked, numbers in zip(masks, truth, human, regions, strict=True):
        for number in numbers[clicked].unique():
            region = numbers == number
            assert clicked[region].all()
            if mode == "superpixels":
                assert (mask[region] == (true[region].float().mean() >= 0.5)).all()
            else:
                assert len(mask[region].unique()) == 1
    run(tmp_path / "again", experiment, splits)
    assert contents(tmp_path / "again") == contents(tmp_path / "run")


def lesion(*parts, size=64):
    rows, columns = np.mgrid[:size, :size]
    return np.any([(rows - r) ** 2 + (columns - c) ** 2 < radius**2 for r, c, radius in parts], axis=0).astype(np.uint8)


@pytest.mark.parametrize("noise", [0.05, 0.15, 0.4])
def test_the_erring_oracle_changes_its_share_of_the_lesion_near_its_border(noise):
    mask = lesion((30, 34, 16))
    drawn = [erring_mask(mask, noise, make_generator(seed)) for seed in range(4)]
    for other in drawn:
        assert abs((other != mask).sum() / mask.sum() - noise) < 0.02
        assert label(other).max() <= 3  # shifted, not sprinkled
    assert not np.array_equal(drawn[0], drawn[1])
    for same in (0 * mask, 0 * mask + 1):
        assert np.array_equal(erring_mask(same, noise, make_generator(0)), same)


def test_the_erring_oracle_misses_small_parts_and_never_the_largest():
    mask = lesion((24, 24, 14), (52, 52, 4))
    seen = [erring_mask(mask, 0.5, make_generator(seed)) for seed in range(40)]
    missed = [not part[48:56, 48:56].any() for part in seen]
    assert 8 < sum(missed) < 34 and all(part[24, 24] for part in seen if part.any())


def test_the_errors_are_an_images_own_whenever_it_is_asked_and_the_truth_stays():
    masks = torch.from_numpy(np.stack([lesion((20 + i, 30, 12))[None] for i in range(5)]))
    for noise in (0, 15, -0.1):
        with pytest.raises(ValueError, match=f"noise must be a share .* got {noise}"):
            ErringOracle(masks, noise, seed=3)
    oracle = ErringOracle(masks, 0.15, seed=3)
    together = oracle.annotate(torch.tensor([1, 4]))
    assert torch.equal(oracle.annotate(torch.tensor([4]))[0], together[1])
    assert not torch.equal(together, masks[[1, 4]]) and torch.equal(oracle.truth(torch.tensor([1, 4])), masks[[1, 4]])
    assert not torch.equal(ErringOracle(masks, 0.15, seed=4).annotate(torch.tensor([4]))[0], together[1])


def test_the_errors_of_an_image_have_random_numbers_that_nothing_else_in_a_run_draws():
    mask = lesion((24, 30, 12))
    drawn = ErringOracle(torch.from_numpy(mask[None, None]).repeat(3, 1, 1, 1), 0.15, seed=3).annotate(
        torch.tensor([2])
    )
    for purpose in (COLD_START, TRAINING, QUERY, ANNOTATION, CONTROL):
        other = erring_mask(mask, 0.15, make_generator(3, purpose, 2))
        assert not np.array_equal(drawn[0, 0].numpy(), other), purpose


def test_a_run_with_an_erring_oracle_learns_its_labels_and_measures_with_the_truth(tmp_path):
    experiment, splits = make_experiment(oracle_noise=0.2), make_splits()
    labels = run(tmp_path, experiment, splits)[-1].labels
    truth, learnt = splits.train.masks[labels.indices], labels.masks[slice(None)]
    wrong = (truth != learnt).float().sum() / truth.sum()
    assert 0.1 < wrong < 0.3
    with pytest.raises(ConfigError, match="oracle_noise: it is about the simulated oracle"):
        run(tmp_path / "mine", experiment, splits, oracle=Oracle(splits.train.masks))


@pytest.mark.parametrize("mode", ["superpixels", "correction"])
def test_a_person_clicks_no_superpixels(tmp_path, mode):
    splits = make_splits()
    with pytest.raises(ConfigError, match="oracle: a person draws pixels and clicks no superpixels"):
        run(
            tmp_path / "run", make_experiment(annotation=mode), splits, oracle=HumanOracle(splits.train, tmp_path / "d")
        )
