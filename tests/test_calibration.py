"""The reliability table and the calibration error against closed forms and NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alutils.report.calibration import expected_calibration_error, reliability


def numpy_table(p, truth, n_bins):
    """(confidence, share, pixels) of each bin, by masks in float64 instead of by counting indices."""
    p, rows = p.astype(np.float64), []
    for b in range(n_bins):
        low, high = np.linspace(0, 1, n_bins + 1)[b : b + 2]
        inside = (p >= low) & ((p <= high) if b == n_bins - 1 else (p < high))
        n = inside.sum()
        rows.append((p[inside].mean(), truth[inside].mean(), n) if n else (math.nan, math.nan, 0))
    return np.array(rows).T


@given(data=st.data(), n_bins=st.integers(1, 20))
def test_table_and_error_are_numpys(data, n_bins):
    shape = data.draw(hnp.array_shapes(max_dims=4))
    probability = st.floats(0, 1, width=32) | st.sampled_from([np.float32(k / n_bins) for k in range(n_bins + 1)])
    p = data.draw(hnp.arrays(np.float32, shape, elements=probability))
    truth = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)))
    table = reliability(torch.from_numpy(p), torch.from_numpy(truth), n_bins)
    confidence, share, pixels = numpy_table(p, truth, n_bins)
    assert table["pixels"].tolist() == pixels.tolist()
    np.testing.assert_allclose(table["confidence"], confidence, rtol=1e-12)
    np.testing.assert_allclose(table["lesion_share"], share, rtol=1e-12)
    error = np.nansum(pixels * np.abs(confidence - share)) / p.size
    found = expected_calibration_error(torch.from_numpy(p), torch.from_numpy(truth), n_bins)
    assert found == pytest.approx(error, abs=1e-12)


def test_edges_belong_to_the_upper_range_and_1_to_the_last():
    table = reliability(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), torch.ones(5), n_bins=4)
    assert table["pixels"].tolist() == [1, 1, 1, 2]
    assert table["low"].tolist() == [0, 0.25, 0.5, 0.75] and table["high"].tolist() == [0.25, 0.5, 0.75, 1]


def test_lesions_drawn_with_the_given_probability_are_calibrated_and_those_of_another_are_not():
    g = torch.Generator().manual_seed(0)
    p = torch.rand(8, 1, 128, 128, generator=g)
    masks = torch.bernoulli(p, generator=g).to(torch.uint8)
    assert expected_calibration_error(p, masks) < 0.01  # 1/sqrt(13,000) a bin
    overconfident = torch.sigmoid(4 * torch.logit(p))
    table = reliability(overconfident, masks)
    assert table["confidence"].iloc[0] < table["lesion_share"].iloc[0] - 0.05
    assert table["confidence"].iloc[-1] > table["lesion_share"].iloc[-1] + 0.05


def test_distances_of_opposite_sign_do_not_cancel():
    assert expected_calibration_error(torch.tensor([0.25, 0.75]), torch.tensor([1, 0])) == 0.75


def test_half_precision_is_counted_as_it_is():
    g = torch.Generator().manual_seed(0)
    p, masks = torch.rand(1000, generator=g).bfloat16(), torch.rand(1000, generator=g) < 0.3
    expected = numpy_table(p.double().numpy(), masks.numpy(), 10)
    found = reliability(p, masks)[["confidence", "lesion_share", "pixels"]].to_numpy().T
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_large_set_is_counted_to_its_last_pixel():
    """More pixels than float32 can count, and than are counted at a time, with the lesion among the last."""
    many = 2**24 + 1
    masks = torch.zeros(many, dtype=torch.uint8)
    masks[-1000:] = 1
    (row,) = reliability(torch.tensor(0.75).expand(many), masks, n_bins=1).itertuples()
    assert (row.pixels, row.confidence, row.lesion_share) == (many, 0.75, 1000 / many)


def test_bad_input_is_named():
    p, masks = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"masks.*\(2, 1, 4, 4\) and \(2, 4, 4\)"):
        reliability(p, masks[:, 0])
    with pytest.raises(ValueError, match="at least one pixel"):
        expected_calibration_error(p[:0], masks[:0])
    with pytest.raises(ValueError, match="masks must hold 0 and 1 only, got 255"):
        reliability(p, 255 * (masks + 1))
