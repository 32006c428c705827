"""Dice (eq. 4) against sets of pixels and against segmentation-models-pytorch's own count."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alutils.metrics import dice_score

masks = hnp.arrays(np.uint8, (3, 1, 5, 7), elements=st.integers(0, 1))


@given(masks, masks)
def test_it_is_eq_4_on_sets_of_pixels(a, g):
    scores = dice_score(torch.from_numpy(a), torch.from_numpy(g))
    for i in range(3):
        predicted, true = set(zip(*np.nonzero(a[i, 0]), strict=True)), set(zip(*np.nonzero(g[i, 0]), strict=True))
        expected = 2 * len(predicted & true) / (len(predicted) + len(true)) if predicted or true else 1.0
        assert scores[i].item() == pytest.approx(expected, abs=1e-6)


@given(masks, masks)
def test_it_is_the_librarys_f1_score_of_each_image(a, g):
    counts = smp.metrics.get_stats(torch.from_numpy(a), torch.from_numpy(g), mode="binary")
    expected = smp.metrics.f1_score(*counts, zero_division=1.0)[:, 0]
    assert torch.allclose(dice_score(torch.from_numpy(a), torch.from_numpy(g)), expected)


def test_empty_masks():
    empty, full = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert dice_score(empty, empty).item() == 1  # the convention: the two agree
    assert dice_score(empty, full).item() == 0
    assert dice_score(full, empty).item() == 0
    assert dice_score(full, full).item() == 1


def test_probabilities_are_cut_at_the_threshold():
    p = torch.tensor([0.2, 0.5, 0.7, 0.9]).view(1, 1, 2, 2)
    truth = torch.tensor([0, 0, 1, 1]).view(1, 1, 2, 2)
    assert dice_score(p, truth).item() == pytest.approx(0.8)  # 0.5 counts as lesion
    assert dice_score(p, truth, threshold=0.6).item() == 1


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\).*\(2, 1, 4, 4\)"):
        dice_score(torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="NaN"):
        dice_score(torch.full((1, 1, 2, 2), float("nan")), torch.zeros(1, 1, 2, 2))
