"""Who labels which pixel: section III-B against a loop over pixels, what the oracle shows, and what it counts."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alutils.annotation import NO_AUDIT, Oracle, audit_annotations, human_pixels, merge_annotations
from alutils.experiment import Experiment

TAU_U, TAU_B = (0.125, 0.25, 0.375), (0.25, 0.5, 0.75)  # the paper's
untimed = settings(deadline=None)

shapes = st.tuples(st.integers(0, 3), st.just(1), st.integers(1, 6), st.integers(1, 6))
tau_us = st.floats(0, 0.5) | st.sampled_from([0.0, *TAU_U, 0.5])
tau_bs = st.floats(0, 1, exclude_min=True, exclude_max=True) | st.sampled_from(TAU_B)


@st.composite
def truths_and_probabilities(draw):
    """A mask, sometimes empty or all lesion, and probabilities, often on an edge, of one shape."""
    shape, width = draw(shapes), draw(st.sampled_from([32, 64]))
    truth = draw(masks_of(shape) | st.sampled_from([np.zeros(shape, np.uint8), np.ones(shape, np.uint8)]))
    return torch.from_numpy(truth), draw(probabilities_of(shape, width))


def masks_of(shape, dtype=np.uint8):
    return hnp.arrays(dtype, shape, elements=st.integers(0, 1))


def probabilities_of(shape, width=32):
    values = st.floats(0, 1, width=width) | st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])
    return hnp.arrays(f"float{width}", shape, elements=values).map(torch.from_numpy)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def row(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(1, 1, 1, -1)


NOTHING, HALVES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.full((2, 1, 4, 4), 0.5)


# Merging


def merged_by_hand(truth, p, tau_u, tau_b):
    """A pixel at a time, in the precision of ``p``."""
    mask, human = np.zeros(p.shape, np.uint8), np.zeros(p.shape, bool)
    number = p.dtype.type
    for place in np.ndindex(*p.shape):
        if abs(number(0.5) - p[place]) <= number(tau_u):
            human[place], mask[place] = True, truth[place]
        elif p[place] >= number(tau_b):
            mask[place] = 1
    return mask, human


@untimed
@given(truths_and_probabilities(), tau_us, tau_bs)
def test_merging_is_section_iii_b_pixel_by_pixel(images, tau_u, tau_b):
    truth, p = images
    mask, human = merge_annotations(truth, p, tau_u, tau_b)
    expected_mask, expected_human = merged_by_hand(truth.numpy(), p.numpy(), tau_u, tau_b)
    assert mask.dtype == torch.uint8 and human.dtype == torch.bool and mask.shape == human.shape == p.shape
    np.testing.assert_array_equal(mask.numpy(), expected_mask)
    np.testing.assert_array_equal(human.numpy(), expected_human)


@untimed
@given(truths_and_probabilities(), tau_us, tau_bs, st.data())
def test_the_truth_of_other_pixels_has_no_influence(images, tau_u, tau_b, data):
    truth, p = images
    mask, human = merge_annotations(truth, p, tau_u, tau_b)
    other = torch.from_numpy(data.draw(masks_of(tuple(p.shape))))
    mask_then, human_then = merge_annotations(torch.where(human, truth, other), p, tau_u, tau_b)
    assert torch.equal(mask_then, mask) and torch.equal(human_then, human)


@untimed
@given(truths_and_probabilities(), st.sampled_from([(u, b) for u, b in product(TAU_U, TAU_B) if abs(b - 0.5) <= u]))
def test_a_tau_b_among_the_humans_probabilities_makes_no_difference(images, taus):
    """Seven of the nine cells of Table II are but three: there is nothing for tau_b to decide."""
    truth, p = images
    tau_u, tau_b = taus
    for found, expected in zip(
        merge_annotations(truth, p, tau_u, tau_b), merge_annotations(truth, p, tau_u, 0.5), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_tau_b_beyond_the_humans_probabilities_makes_a_difference():
    truth, p = row(0, 0, dtype=torch.uint8), row(0.3, 0.7)
    masks = {tau_b: merge_annotations(truth, p, 0.125, tau_b)[0].flatten().tolist() for tau_b in TAU_B}
    assert masks == {0.25: [1, 1], 0.5: [0, 1], 0.75: [0, 0]}


@pytest.mark.parametrize(("tau_u", "tau_b", "named"), [(0.51, 0.5, "tau_u .* 0.51"), (0.25, 0, "tau_b .* 0")])
def test_thresholds_out_of_range_are_refused(tau_u, tau_b, named):
    with pytest.raises(ValueError, match=named):
        merge_annotations(row(0, 1, dtype=torch.uint8), row(0.5, 0.5), tau_u, tau_b)


@pytest.mark.parametrize(
    ("truth", "p", "message"),
    [
        (torch.zeros(2, 4, 4, dtype=torch.uint8), HALVES, r"\(2, 4, 4\) .* \(2, 1, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.bool), HALVES, "truth must be uint8, got torch.bool"),
        (torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), HALVES, "truth must hold 0 and 1 only, got 255"),
        (NOTHING, HALVES * math.nan, "probabilities must be from 0 to 1"),
        (NOTHING, NOTHING, "probabilities must be .* floating-point"),
    ],
)
def test_what_is_no_truth_and_no_probability_is_refused(truth, p, message):
    with pytest.raises(ValueError, match=message):
        merge_annotations(truth, p, 0.25, 0.5)


# The oracle


@untimed
@given(st.data())
def test_the_oracle_shows_what_it_is_asked_for_and_counts_it(data):
    n, _, height, width = data.draw(shapes)
    truth = data.draw(masks_of((n + 1, 1, height, width)))
    oracle, images, pixels, positive = Oracle(torch.from_numpy(truth.copy())), 0, 0, 0
    for _ in range(2):
        indices = data.draw(st.permutations(range(n + 1)).map(lambda order: order[:n]))
        where = data.draw(masks_of((n, 1, height, width), bool))
        shown = oracle.annotate(torch.tensor(indices, dtype=torch.long), torch.from_numpy(where))
        np.testing.assert_array_equal(shown.numpy(), np.where(where, truth[indices], 0))
        assert shown.dtype == torch.uint8
        images, pixels = images + n, pixels + where.sum()
        positive += truth[indices][where].sum()
        assert (oracle.n_images, oracle.n_pixels, oracle.n_positive) == (images, pixels, positive)


def some_truth(n=5):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 2, (n, 1, 4, 6), np.uint8))


def test_without_where_the_oracle_shows_all_pixels_in_the_order_asked_for():
    truth = some_truth()
    oracle = Oracle(truth)
    assert torch.equal(oracle.annotate(torch.tensor([3, 0])), torch.stack([truth[3], truth[0]]))
    assert (oracle.n_images, oracle.n_pixels) == (2, 48)
    assert oracle.n_positive == truth.numpy()[[3, 0]].sum()
    assert oracle.annotate(torch.zeros(0, dtype=torch.long)).shape == (0, 1, 4, 6)
    assert (oracle.n_images, oracle.n_pixels) == (2, 48)


def test_what_the_oracle_gives_away_is_a_copy_and_looking_to_measure_is_not_counted():
    truth = some_truth()
    before, oracle = truth.clone(), Oracle(truth)
    oracle.truth(torch.tensor([1])).fill_(7)
    assert (oracle.n_images, oracle.n_pixels, oracle.n_positive) == (0, 0, 0)
    oracle.annotate(torch.tensor([1])).fill_(7)
    oracle.annotate(torch.tensor([1]), torch.ones(1, 1, 4, 6, dtype=torch.bool)).fill_(7)
    assert torch.equal(oracle.truth(torch.tensor([2, 1])), before[[2, 1]]) and torch.equal(truth, before)


@pytest.mark.parametrize(
    "where", [torch.ones(2, 1, 4, 6), torch.ones(1, 1, 4, 6, dtype=torch.bool), torch.ones(2, 1, 6, 4) > 0]
)
def test_a_wrong_where_is_refused_and_not_counted(where):
    oracle = Oracle(some_truth())
    with pytest.raises(ValueError, match=r"where must be bool of shape \(2, 1, 4, 6\), got"):
        oracle.annotate(torch.tensor([0, 1]), where)
    assert (oracle.n_images, oracle.n_pixels, oracle.n_positive) == (0, 0, 0)


# Which pixels the human labels


@untimed
@given(truths_and_probabilities(), tau_us)
def test_each_mode_gives_the_human_its_pixels(images, tau_u):
    _, p = images
    uncertain = np.abs(p.numpy().dtype.type(0.5) - p.numpy()) <= p.numpy().dtype.type(tau_u)
    expected = {
        "full": np.ones(p.shape, bool),
        "model-only": np.zeros(p.shape, bool),
        **dict.fromkeys(("partial", "partial-refreshed", "human-only"), uncertain),
    }
    for mode, pixels in expected.items():
        human = human_pixels(p, Experiment(annotation=mode, tau_u=tau_u), generator())
        assert human.dtype == torch.bool
        np.testing.assert_array_equal(human.numpy(), pixels)


@untimed
@given(truths_and_probabilities(), tau_us)
def test_the_band_has_as_many_pixels_and_the_nearest_to_the_contour(images, tau_u):
    _, p = images
    experiment = Experiment(annotation="contour-band", tau_u=tau_u)
    band = human_pixels(p, experiment, generator()).numpy()
    uncertain = np.abs(p.numpy().dtype.type(0.5) - p.numpy()) <= p.numpy().dtype.type(tau_u)
    assert band.dtype == bool and band.shape == tuple(p.shape)
    assert band.sum((1, 2, 3)).tolist() == uncertain.sum((1, 2, 3)).tolist()
    for predicted, chosen in zip(p.numpy()[:, 0] >= 0.5, band[:, 0], strict=True):
        if predicted.all() or not predicted.any():
            continue
        places = list(np.ndindex(*predicted.shape))
        distance = {  # squared, to the nearest pixel on the other side
            (y, x): min((y - v) ** 2 + (x - u) ** 2 for v, u in places if predicted[v, u] != predicted[y, x])
            for y, x in places
        }
        farthest = max((distance[place] for place in places if chosen[place]), default=0)
        assert all(distance[place] >= farthest for place in places if not chosen[place])


def test_equally_near_pixels_are_drawn_by_lot():
    """Two columns of eight at the contour, and five pixels to take."""
    p = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).expand(1, 1, 8, 8).clone()
    p[0, 0, :5, 0] = 0.4
    experiment = Experiment(annotation="contour-band", tau_u=0.25)
    bands = [human_pixels(p, experiment, generator(seed))[0, 0] for seed in range(40)]
    assert torch.equal(human_pixels(p, experiment, generator(0))[0, 0], bands[0])
    assert not torch.equal(bands[0], bands[1])
    assert all(band.sum() == 5 for band in bands)
    nearest = torch.zeros(8, 8, dtype=torch.bool)
    nearest[:, 3:5] = True
    assert torch.equal(torch.stack(bands).any(0), nearest)


@pytest.mark.parametrize("sure", [0.0, 1.0])
def test_without_a_contour_the_band_is_random_pixels_others_in_each_image(sure):
    p = torch.full((2, 1, 4, 4), sure)
    p[:, 0, 0, :3] = 0.4 + 0.2 * sure
    experiment = Experiment(annotation="contour-band", tau_u=0.25)
    bands = torch.stack([human_pixels(p, experiment, generator(seed)) for seed in range(40)])
    assert torch.equal(human_pixels(p, experiment, generator(0)), bands[0])
    assert (bands.flatten(2).sum(2) == 3).all() and bands.any(0).all()
    assert not torch.equal(bands[:, 0], bands[:, 1])


# The audit


def dice_of_sets(a, g):
    a, g = ({tuple(place) for place in np.argwhere(plane)} for plane in (a, g))
    return 2 * len(a & g) / (len(a) + len(g)) if a or g else 1.0


@untimed
@given(st.data(), tau_bs)
def test_the_audit_is_a_count_of_pixels(data, tau_b):
    shape = data.draw(shapes)
    truth, masks, human = (data.draw(masks_of(shape)) for _ in range(3))
    p = data.draw(probabilities_of(shape))
    tensors = [torch.from_numpy(plane) for plane in (truth, masks, human)]
    table = audit_annotations(*tensors, p, tau_b)
    expected = []
    for i in range(shape[0]):
        model = wrong = missed = repeated = 0
        for place in np.ndindex(*shape[1:]):
            if human[i][place]:
                continue
            model += 1
            if masks[i][place] != truth[i][place]:
                wrong += 1
                missed += int(truth[i][place])
                repeated += int(p.numpy()[i][place] >= np.float32(tau_b)) == masks[i][place]
        dice = [dice_of_sets(plane, truth[i]) for plane in (masks[i], p.numpy()[i] >= 0.5)]
        expected.append([model, wrong, missed, repeated, *dice])
    assert table.columns.tolist() == NO_AUDIT.columns.tolist() and len(table) == shape[0]
    np.testing.assert_allclose(table.to_numpy().reshape(-1, 6), np.array(expected).reshape(-1, 6), atol=1e-6)
    as_bool = audit_annotations(tensors[0], tensors[1], tensors[2].bool(), p, tau_b)
    assert as_bool.equals(table)
