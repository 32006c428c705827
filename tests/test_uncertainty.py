"""Equations 1 and 2 and the image scores, against closed forms and NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alutils.system.checks import ConfigError
from alutils.uncertainty import REDUCTIONS, binary_entropy, image_score, least_confidence, one_sided_entropy

PIXEL_MAPS = [least_confidence, one_sided_entropy, binary_entropy]
# a map, and whether it is small where the model is unsure
ORIENTED_MAPS = [(least_confidence, True), (one_sided_entropy, False), (binary_entropy, False)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- pixel maps ---------------------------------------------------------------------------------------------------


def plogp(p):
    """p log2 p in float64, with its limit 0 at 0."""
    return np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0)


def numpy_map(function, p):
    p = np.asarray(p, np.float64)
    if function is least_confidence:
        return np.abs(0.5 - p)
    if function is one_sided_entropy:
        return -plogp(p)
    return -plogp(p) - plogp(1 - p)


@pytest.mark.parametrize("function", PIXEL_MAPS)
@given(p=hnp.arrays(np.float32, hnp.array_shapes(max_dims=4), elements=st.floats(0, 1, width=32)))
def test_map_is_numpys_in_float64_for_any_shape(function, p):
    found = function(torch.from_numpy(p))
    assert found.dtype == torch.float32 and found.shape == p.shape
    np.testing.assert_allclose(found.numpy(), numpy_map(function, p), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("function", PIXEL_MAPS)
def test_map_of_every_bfloat16_from_0_to_1_is_numpys(function):
    p = torch.arange(0x3F80 + 1, dtype=torch.int16).view(torch.bfloat16)  # the bits of 0, the subnormals, ..., 1
    assert p[0] == 0 and 0 < p[1] < 1e-38 and p[-1] == 1
    found = function(p)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), numpy_map(function, p.double().numpy()), rtol=2e-6, atol=2e-7)


def test_entropies_of_small_probabilities_keep_their_digits():
    p = torch.logspace(-1, -37, 37)
    exact = p.double().numpy()
    lesion, background = exact * np.log2(exact), (1 - exact) * np.log1p(-exact) / math.log(2)
    np.testing.assert_allclose(one_sided_entropy(p).numpy(), -lesion, rtol=1e-6)
    np.testing.assert_allclose(binary_entropy(p).numpy(), -lesion - background, rtol=1e-6)
    np.testing.assert_allclose(binary_entropy(p.double()).numpy(), -lesion - background, rtol=1e-14)


def test_the_limits_at_0_and_1_are_exact():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        ends = torch.tensor([0.0, 1.0], dtype=dtype)
        assert least_confidence(ends).tolist() == [0.5, 0.5]
        for entropy in (one_sided_entropy, binary_entropy):
            assert entropy(ends).tolist() == [0.0, 0.0]
            assert not entropy(ends).signbit().any()  # "-0" would puzzle a reader


def test_the_maximum_of_each_map_has_its_place_and_value():
    p = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    uncertainties = [
        (-least_confidence(p), 0.5, 0.0),
        (one_sided_entropy(p), 1 / math.e, math.log2(math.e) / math.e),
        (binary_entropy(p), 0.5, 1.0),
    ]
    for uncertainty, place, value in uncertainties:
        assert p[uncertainty.argmax()].item() == pytest.approx(place, abs=1e-5)
        assert uncertainty.max().item() == pytest.approx(value, abs=1e-9)
    assert one_sided_entropy(p).max().item() == pytest.approx(0.5307, abs=5e-5)


def test_least_confidence_is_small_where_the_model_is_unsure_and_the_entropies_are_large():
    sure_to_unsure = torch.tensor([1.0, 0.95, 0.8, 0.6, 0.5])
    assert (least_confidence(sure_to_unsure).diff() < 0).all()
    assert (one_sided_entropy(sure_to_unsure).diff() > 0).all()
    assert (binary_entropy(sure_to_unsure).diff() > 0).all()


def test_lesion_and_background_differ_to_eq_2_alone():
    assert one_sided_entropy(torch.tensor([0.1, 0.9])).tolist() == pytest.approx([0.332, 0.137], abs=5e-4)
    for alike in (least_confidence, binary_entropy):
        assert torch.allclose(*alike(torch.tensor([0.125, 0.875])))


@pytest.mark.parametrize("function", PIXEL_MAPS)
def test_what_is_no_probability_is_refused_and_no_pixels_are_fine(function):
    for value in (math.nan, -0.01, 1.01):
        with pytest.raises(ValueError, match="from 0 to 1"):
            function(torch.tensor([0.5, value, 0.5]))
    with pytest.raises(ValueError, match=r"floating-point tensor, got torch\.uint8"):
        function(torch.ones(2, 1, 4, 4, dtype=torch.uint8))
    assert function(torch.zeros(0, 1, 4, 4)).shape == (0, 1, 4, 4)


# --- image scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 1, 6, 7), (4, 1, 5, 5), (3, 40), (0, 1, 4, 4)])
def test_scores_are_numpys(shape):
    p = torch.rand(shape, generator=generator())
    p[:1] = 0.99  # an image without a band
    maps = binary_entropy(p)
    pixels, chances = (x.double().numpy().reshape(shape[0], math.prod(shape[1:])) for x in (maps, p))
    rows = list(zip(pixels, chances, strict=True))
    expected = {
        "sum": pixels.sum(1),
        "mean": pixels.mean(1),
        "median": np.median(pixels, 1),
        "top_k": np.sort(pixels, 1)[:, -7:].mean(1),
        "band_mean": [row[abs(0.5 - p) <= 0.2].mean() if (abs(0.5 - p) <= 0.2).any() else 0 for row, p in rows],
    }
    assert set(expected) == set(REDUCTIONS)
    for reduction in REDUCTIONS:
        found = image_score(maps, reduction, probabilities=p, tau_u=0.2, k=7)
        assert found.dtype == torch.float32 and found.shape == (shape[0],)
        np.testing.assert_allclose(found.numpy(), expected[reduction], rtol=1e-6, err_msg=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("function", "small_is_unsure"), ORIENTED_MAPS)
def test_the_score_of_an_unsure_image_is_at_the_maps_unsure_end(function, small_is_unsure, reduction):
    """Most pixels of the unsure image are unsure; the doubtful one has an unsure spot; the sure one has none."""
    p = torch.full((3, 1, 20, 20), 0.97)
    p[0, :, :15] = 0.5
    p[1, :, :15] = 0.7
    score = image_score(function(p), reduction, small_is_unsure=small_is_unsure, probabilities=p)
    unsure, doubtful, sure = score.tolist()
    assert (unsure < doubtful < sure) if small_is_unsure else (unsure > doubtful > sure)


def test_the_papers_least_confidence_score_is_the_sum_and_smallest_first():
    sure = torch.tensor([0.0, 1.0]).repeat(512 * 256).view(1, 1, 512, 512)
    assert image_score(least_confidence(sure)).item() == 131072
    assert image_score(least_confidence(torch.full((1, 1, 512, 512), 0.5))).item() == 0
    p = torch.rand(50, 1, 64, 64, generator=generator()) ** torch.linspace(0.5, 3, 50).view(50, 1, 1, 1)
    order = image_score(least_confidence(p)).argsort()
    assert order.tolist() == np.abs(0.5 - p.double().numpy()).sum((1, 2, 3)).argsort().tolist()


def test_top_k_takes_one_pixel_in_a_hundred_unless_told_and_never_none():
    maps = torch.zeros(1, 1, 20, 20)
    maps[..., 0, :4] = 1
    maps[..., 0, 4:8] = 0.5
    assert image_score(maps, "top_k").item() == 1
    assert image_score(maps, "top_k", k=8).item() == 0.75
    few = torch.tensor([[0.2, 0.7]])
    assert image_score(few, "top_k").item() == few.max()
    assert image_score(few, "top_k", small_is_unsure=True).item() == few.min()


def test_the_band_has_its_edges_and_an_empty_one_scores_as_a_sure_pixel():
    p = torch.tensor([[0.25, 0.75, 0.74, 0.1], [0.0, 1.0, 0.1, 0.9]])
    maps = torch.tensor([[0.3, 0.6, 0.9, 100.0], [100.0, 100.0, 100.0, 100.0]])
    assert image_score(maps, "band_mean", probabilities=p).tolist() == pytest.approx([0.6, 0.0])
    found = image_score(least_confidence(p), "band_mean", probabilities=p, small_is_unsure=True)
    assert found.tolist() == pytest.approx([(0.25 + 0.25 + 0.24) / 3, 0.5])


def test_sums_grow_with_the_perimeter_and_the_bands_mean_is_blind_to_size():
    """Soft disks, p = sigmoid((radius - distance) / s): across the edge 0.5 - |0.5 - p| integrates to 2 s ln 2, and
    |0.5 - p| averages (ln 2 - ln 3 / 2) / ln 3 in the band of 0.25 to 0.75."""
    softness, radii = 3.0, torch.tensor([40.0, 80.0, 160.0])
    axis = torch.arange(512) - 255.5
    distance = torch.hypot(axis[:, None], axis[None, :])
    p = torch.sigmoid((radii.view(3, 1, 1, 1) - distance) / softness)
    uncertainty = 512 * 512 / 2 - image_score(least_confidence(p))
    perimeter = 2 * math.pi * radii
    assert torch.allclose(uncertainty, perimeter * softness * 2 * math.log(2), rtol=0.01)
    entropies = image_score(binary_entropy(p))
    assert torch.allclose(entropies / entropies[0], torch.tensor([1.0, 2.0, 4.0]), rtol=0.01)
    band = image_score(least_confidence(p), "band_mean", probabilities=p, small_is_unsure=True)
    assert torch.allclose(0.5 - band, torch.tensor(0.5 - (math.log(2) - math.log(3) / 2) / math.log(3)), rtol=0.01)
    band = image_score(binary_entropy(p), "band_mean", probabilities=p)
    assert torch.allclose(band, band.mean(), rtol=0.01)


def test_half_precision_maps_are_added_up_in_float32():
    maps = torch.rand(2, 1, 512, 512, generator=generator()).to(torch.bfloat16)
    pixels = maps.double().numpy().reshape(2, -1)
    np.testing.assert_allclose(image_score(maps), pixels.sum(1), rtol=1e-6)  # bfloat16 would be off by up to 4e-3
    np.testing.assert_allclose(image_score(maps, "mean"), pixels.mean(1), rtol=1e-6)
    np.testing.assert_allclose(image_score(maps, "top_k"), np.sort(pixels, 1)[:, -2621:].mean(1), rtol=1e-6)
    found = image_score(maps, "band_mean", probabilities=maps)
    np.testing.assert_allclose(found, [row[abs(0.5 - row) <= 0.25].mean() for row in pixels], rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_is_refused_or_where_looking_would_wait_the_score_tells(monkeypatch, reduction, value):
    maps = torch.full((2, 1, 4, 4), 0.25)
    maps[1, 0, 2, 2] = value
    options = {"probabilities": torch.full((2, 1, 4, 4), 0.25), "k": 3}
    with pytest.raises(ValueError, match="NaN or infinity"):
        image_score(maps, reduction, **options)
    monkeypatch.setattr("alutils.uncertainty._looking_is_free", lambda values: False)
    assert image_score(maps, reduction, **options).isfinite().tolist() == [True, False]


def test_wrong_arguments_of_a_score_are_named():
    maps = torch.zeros(2, 1, 4, 4)
    for wrong, named in (({"reduction": "sums"}, "'sum'"), ({"reduction": "top_k", "k": 17}, "16 pixels.* 17")):
        with pytest.raises(ConfigError, match=named):
            image_score(maps, **wrong)
    with pytest.raises(ConfigError, match="tau_u: .* 0.6"):
        image_score(maps, "band_mean", probabilities=maps, tau_u=0.6)
    for probabilities, got in ((None, "none"), (maps[:, 0], r"\(2, 4, 4\)")):
        with pytest.raises(ValueError, match=f"band_mean needs probabilities .* {got}"):
            image_score(maps, "band_mean", probabilities=probabilities)
