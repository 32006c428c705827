"""Equations 1 to 3 and the image scores against closed forms and NumPy, and Monte Carlo dropout against full passes."""

import json
import math
import random

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from alutils.augment import normalize
from alutils.experiment import Experiment
from alutils.model import build_unet
from alutils.system.checks import ConfigError
from alutils.system.seeding import seeded
from alutils.training import predict_probabilities
from alutils.uncertainty import (
    REDUCTIONS,
    binary_entropy,
    image_score,
    least_confidence,
    mc_dropout_batches,
    mc_dropout_maps,
    mc_dropout_std,
    one_sided_entropy,
)

PIXEL_MAPS = [least_confidence, one_sided_entropy, binary_entropy]
FLOAT32 = Experiment(precision="float32", batch_size=2)
# a map, and whether it is small where the model is unsure
ORIENTED_MAPS = [(least_confidence, True), (one_sided_entropy, False), (binary_entropy, False)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine take longer than these small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("function", PIXEL_MAPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_map_of_other_floating_types(function, dtype):
    p = torch.linspace(0, 1, 101, dtype=torch.float64).to(dtype)
    found = function(p)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = {torch.float16: 1e-6, torch.float64: 1e-15}[dtype]
    np.testing.assert_allclose(found.numpy(), numpy_map(function, p.double().numpy()), rtol=exact, atol=exact)


def test_entropies_of_small_probabilities_keep_their_digits():
    p = torch.logspace(-1, -37, 37)
    exact = p.double().numpy()
    lesion, background = exact * np.log2(exact), (1 - exact) * np.log1p(-exact) / math.log(2)
    np.testing.assert_allclose(one_sided_entropy(p).numpy(), -lesion, rtol=1e-6)
    np.testing.assert_allclose(binary_entropy(p).numpy(), -lesion - background, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_limits_at_0_and_1_are_exact(dtype):
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


@given(k=st.integers(0, 2**20))
def test_lesion_and_background_are_alike_to_least_confidence_and_binary_entropy(k):
    p = torch.tensor(k / 2**20)  # 1 - p is exact
    assert least_confidence(p) == least_confidence(1 - p)
    assert binary_entropy(p).item() == pytest.approx(binary_entropy(1 - p).item(), rel=1e-5, abs=2e-7)


def test_lesion_and_background_differ_to_eq_2():
    assert one_sided_entropy(torch.tensor([0.1, 0.9])).tolist() == pytest.approx([0.332, 0.137], abs=5e-4)


@pytest.mark.parametrize("function", PIXEL_MAPS)
@pytest.mark.parametrize("value", [math.nan, -0.01, 1.01, math.inf])
def test_what_is_no_probability_is_refused(function, value):
    with pytest.raises(ValueError, match="from 0 to 1"):
        function(torch.tensor([0.5, value, 0.5]))


@pytest.mark.parametrize("function", PIXEL_MAPS)
def test_a_mask_is_refused_and_no_pixels_are_fine(function):
    with pytest.raises(ValueError, match=r"floating point, got torch\.uint8"):
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


def test_top_k_of_least_confidence_takes_the_unsure_pixels():
    maps = torch.tensor([[0.5, 0.1, 0.3, 0.0]])
    assert image_score(maps, "top_k", k=2, small_is_unsure=True).item() == pytest.approx(0.05)
    assert image_score(maps, "top_k", k=2).item() == pytest.approx(0.4)


def test_top_k_takes_one_pixel_in_a_hundred_unless_told_and_never_none():
    maps = torch.zeros(1, 1, 20, 20)
    maps[..., 0, :4] = 1
    maps[..., 0, 4:8] = 0.5
    assert image_score(maps, "top_k").item() == 1
    assert image_score(maps, "top_k", k=8).item() == 0.75
    assert image_score(torch.tensor([[0.2, 0.7]]), "top_k").item() == pytest.approx(0.7)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_added_up_in_float32(dtype):
    maps = torch.rand(2, 1, 512, 512, generator=generator()).to(dtype)
    pixels = maps.double().numpy().reshape(2, -1)
    np.testing.assert_allclose(image_score(maps), pixels.sum(1), rtol=1e-6)  # in bfloat16 off by up to 4e-3
    np.testing.assert_allclose(image_score(maps, "mean"), pixels.mean(1), rtol=1e-6)
    np.testing.assert_allclose(image_score(maps, "top_k"), np.sort(pixels, 1)[:, -2621:].mean(1), rtol=1e-6)
    found = image_score(maps, "band_mean", probabilities=maps)
    np.testing.assert_allclose(found, [row[abs(0.5 - row) <= 0.25].mean() for row in pixels], rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("small_is_unsure", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_is_refused(reduction, small_is_unsure, value):
    maps = torch.full((2, 1, 4, 4), 0.25)
    maps[1, 0, 2, 2] = value
    probabilities = torch.full((2, 1, 4, 4), 0.25)
    with pytest.raises(ValueError, match="NaN or infinity"):
        image_score(maps, reduction, small_is_unsure=small_is_unsure, probabilities=probabilities, k=1)


@pytest.mark.parametrize("reduction", ["sum", "mean", "median", "top_k", "band_mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_where_looking_would_wait_for_the_device_the_score_tells(monkeypatch, reduction, value):
    monkeypatch.setattr("alutils.uncertainty._looking_is_free", lambda values: False)
    maps = torch.full((2, 1, 4, 4), 0.25)
    maps[1, 0, 2, 2] = value
    scores = image_score(maps, reduction, probabilities=torch.full((2, 1, 4, 4), 0.25), k=3)
    assert scores.isfinite().tolist() == [True, False]


def test_wrong_arguments_of_a_score_are_named():
    maps = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ConfigError, match=r"'sums'; did you mean 'sum'\?"):
        image_score(maps, "sums")
    for k in (0, 17):
        with pytest.raises(ConfigError, match=f"16 pixels of an image, got {k}"):
            image_score(maps, "top_k", k=k)
    for tau_u in (-0.1, 0.6):
        with pytest.raises(ConfigError, match=f"tau_u: must be from 0 to 0.5, got {tau_u}"):
            image_score(maps, "band_mean", probabilities=maps, tau_u=tau_u)
    with pytest.raises(ValueError, match="band_mean needs probabilities .* got none"):
        image_score(maps, "band_mean")
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 4\), got shape \(2, 4, 4\)"):
        image_score(maps, "band_mean", probabilities=maps[:, 0])


# --- Monte Carlo dropout ------------------------------------------------------------------------------------------


def poisoned(model):
    """The model with batch norm statistics that no batch has, so that using a batch's own would show."""
    g = generator(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=g))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=g))
    return model


def unet(dropout=0.5):
    return poisoned(build_unet(encoder_weights=None, decoder_channels=(32, 16, 16, 16, 16), dropout=dropout))


def plain_unet(layer):
    """A model of a user's own, without encode and decode, with a dropout layer in the middle of its decoder."""
    with seeded(generator(9)):
        model = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    model.segmentation_head = nn.Sequential(layer, model.segmentation_head)
    return poisoned(model)


def pictures(n=3, size=64):
    return torch.randint(0, 256, (n, 3, size, size), generator=generator(3), dtype=torch.uint8)


def full_passes(model, images, n_samples, seed, *, bfloat16=False, device="cpu"):
    """N predictions of the whole model, float64 NumPy (N, n, 1, H, W): evaluation mode but for the dropout layers."""
    model.eval()
    for module in model.modules():
        if type(module).__name__.endswith("Dropout") or type(module).__name__.startswith("Dropout"):
            module.train()
    x = normalize(images.to(device), FLOAT32)
    if bfloat16:
        x, model = x.contiguous(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    with seeded(generator(seed), device), torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        samples = [model(x).float().sigmoid() for _ in range(n_samples)]
    return torch.stack(samples).cpu().double().numpy()


def assert_moments(maps, samples, atol):
    entropy = numpy_map(binary_entropy, samples.mean(0))
    mutual_information = entropy - numpy_map(binary_entropy, samples).mean(0)
    for found, expected in zip(maps, (samples.mean(0), samples.std(0), entropy, mutual_information), strict=True):
        assert found.dtype == torch.float32 and found.shape == samples.shape[1:]
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=atol)
    assert (maps.mutual_information >= 0).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_maps_are_the_moments_of_full_passes_with_the_same_dropout(precision, device):
    model, images = unet().to(device), pictures()
    experiment = Experiment(precision=precision)
    maps = mc_dropout_maps(model, images, experiment, generator(5), n_samples=6)
    samples = full_passes(model, images, 6, seed=5, bfloat16=precision == "bfloat16", device=device)
    assert samples.std(0).max() > 0.02
    # bfloat16 rounds otherwise where sums go in another order, see the next test
    atol = {("cpu", "float32"): 1e-5, ("cpu", "bfloat16"): 2e-2}.get((device, precision), 1e-2)
    assert_moments(maps, samples, atol)


def test_sampling_in_bfloat16_is_as_near_to_float32_as_full_passes_in_bfloat16_are():
    images, maps = pictures(), mc_dropout_maps(unet(), pictures(), Experiment(precision="bfloat16"), generator(5), 20)
    exact = full_passes(unet(), images, 20, seed=5)
    passes = full_passes(unet(), images, 20, seed=5, bfloat16=True)
    for ours, theirs, truth in ((maps.mean, passes.mean(0), exact.mean(0)), (maps.std, passes.std(0), exact.std(0))):
        error, usual = np.abs(ours.numpy() - truth), np.abs(theirs - truth)
        assert 0 < error.mean() < 1.1 * usual.mean() and error.max() < 1.5 * usual.max()


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.Dropout2d(0.3), nn.AlphaDropout(0.3)])
def test_a_model_without_encode_and_decode_is_sampled_by_full_passes(layer):
    model, images = plain_unet(layer), pictures()
    maps = mc_dropout_maps(model, images, FLOAT32, generator(5), n_samples=4)
    samples = full_passes(model, images, 4, seed=5)
    assert samples.std(0).max() > 0.01
    assert_moments(maps, samples, atol=1e-5)


def test_dropout_in_the_encoder_is_sampled_too():
    model = unet(dropout=0.0)
    model.encoder.layer1 = nn.Sequential(model.encoder.layer1, nn.Dropout(0.5))
    assert mc_dropout_std(model, pictures(), FLOAT32, generator(), n_samples=4).max() > 0.01


@pytest.mark.parametrize("layer", [None, nn.Identity(), nn.Dropout(0.0)])
def test_without_active_dropout_std_is_0_and_the_mean_is_the_prediction(layer):
    model, images = plain_unet(layer) if layer else unet(dropout=0.0), pictures()
    model.train()
    maps = mc_dropout_maps(model, images, FLOAT32, generator(), n_samples=5)
    assert maps.std.max() == 0 and maps.mutual_information.max() == 0
    assert torch.allclose(maps.mean, predict_probabilities(model, images, FLOAT32), rtol=0, atol=1e-5)


def flags(model):
    return {name: module.training for name, module in model.named_modules()}


def set_mode(model, mode):
    model.train(mode != "evaluation")
    if mode == "mixed":
        model.encoder.eval()
        model.dropout.eval()
    return model


@pytest.mark.parametrize("mode", ["training", "evaluation", "mixed"])
@pytest.mark.parametrize("fails", [False, True])
def test_sampling_leaves_the_model_as_it_was(mode, fails):
    model = set_mode(unet(), mode)
    flags_before = flags(model)
    state_before = {name: value.clone() for name, value in model.state_dict().items()}
    random_before = torch.get_rng_state()
    if fails:
        calls = []

        def failing(*_):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory")

        model.dropout.register_forward_hook(failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            mc_dropout_maps(model, pictures(), FLOAT32, generator(), n_samples=4)
    else:
        mc_dropout_maps(model, pictures(), FLOAT32, generator(), n_samples=4)
    assert flags(model) == flags_before
    state = model.state_dict()
    assert state.keys() == state_before.keys()
    assert all(torch.equal(state[name], value) for name, value in state_before.items())
    assert torch.equal(torch.get_rng_state(), random_before)


def test_only_dropout_layers_are_in_training_mode_while_sampling():
    model, seen = set_mode(unet(), "training"), []
    model.dropout.register_forward_hook(lambda *_: seen.append(flags(model)))
    mc_dropout_maps(model, pictures(), FLOAT32, generator(), n_samples=2)
    assert len(seen) == 2
    for during in seen:
        assert [name for name, training in during.items() if training] == ["dropout"]


def test_the_encoder_runs_once_and_the_decoder_n_times():
    model, calls = unet(), []
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.segmentation_head.register_forward_hook(lambda *_: calls.append("decoder"))
    mc_dropout_maps(model, pictures(), FLOAT32, generator(), n_samples=7)
    assert calls == ["encoder"] + ["decoder"] * 7
    calls.clear()
    mc_dropout_maps(model, pictures(), Experiment(precision="float32", mc_samples=3), generator())
    assert calls == ["encoder"] + ["decoder"] * 3


def test_same_generator_state_same_maps_and_the_global_state_is_left_alone():
    model, images = unet(), pictures()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    g = generator(3)
    first = mc_dropout_std(model, images, FLOAT32, g, 3)
    later = mc_dropout_std(model, images, FLOAT32, g, 3)
    again = mc_dropout_std(model, images, FLOAT32, generator(3), 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002


def test_the_pool_is_sampled_batch_by_batch_and_only_as_far_as_asked():
    model, images, calls = unet(), pictures(5), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    batches = mc_dropout_batches(model, images, FLOAT32, generator(4), 3)
    first, maps = next(batches)
    assert first == slice(0, 4) and len(calls) == 1  # twice the training's batch size of 2
    second, more = next(batches)
    assert second == slice(4, 5) and next(batches, None) is None
    g = generator(4)
    expected = [mc_dropout_maps(model, images[chosen], FLOAT32, g, 3) for chosen in (first, second)]
    for found, wanted in zip((maps, more), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    std = mc_dropout_std(model, images, FLOAT32, generator(4), 3)
    assert torch.equal(std, torch.cat([wanted.std for wanted in expected]))
    small = [chosen for chosen, _ in mc_dropout_batches(model, images, FLOAT32, generator(), 2, batch_size=2)]
    assert small == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert mc_dropout_std(model, images[:0], FLOAT32, generator()).shape == (0, 1, 64, 64)


@pytest.mark.parametrize("n_samples", [1, 0, -3])
def test_fewer_than_two_samples_are_refused(n_samples):
    with pytest.raises(ConfigError, match=f"n_samples: .* at least 2 predictions, got {n_samples}"):
        mc_dropout_std(unet(), pictures(), FLOAT32, generator(), n_samples)


class Scripted(nn.Module):
    """Its k-th prediction is the k-th of the given probabilities, everywhere."""

    def __init__(self, probabilities):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.logits = iter(torch.logit(torch.as_tensor(probabilities, dtype=torch.float64)).float())

    def forward(self, images):
        return next(self.logits).expand(len(images), 1, *images.shape[2:])


def test_small_deviations_from_a_large_mean_keep_their_digits():
    """In float32, the mean of squares minus the square of the mean would be off by more than the variance itself."""
    p = np.linspace(0.9001, 0.9002, 20)
    std = mc_dropout_std(Scripted(p), pictures(1, 8), FLOAT32, generator(), 20)
    rounded = torch.logit(torch.from_numpy(p)).float().sigmoid().double().numpy()
    assert std.unique().item() == pytest.approx(rounded.std(), rel=5e-3)


def test_sure_samples_that_disagree_have_the_largest_std_and_mutual_information():
    maps = mc_dropout_maps(Scripted([0, 1, 1, 0]), pictures(1, 8), FLOAT32, generator(), 4)
    assert [values.unique().item() for values in maps] == [0.5, 0.5, 1.0, 1.0]


def test_unsure_samples_that_agree_have_entropy_but_no_mutual_information():
    maps = mc_dropout_maps(Scripted([0.5] * 3), pictures(1, 8), FLOAT32, generator(), 3)
    assert [values.unique().item() for values in maps] == [0.5, 0.0, 1.0, 0.0]


class Tiny(nn.Module):
    """So small a network that the maps outweigh its features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.weight * self.dropout(images[:, :1])


def peak_bytes(n_samples, trace):
    """The most memory that tensors took at any time while sampling, by the profiler's list of (de)allocations."""
    model, images = Tiny(), pictures(2, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        mc_dropout_maps(model, images, FLOAT32, generator(), n_samples)
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return np.cumsum(changes).max()


def test_more_samples_need_no_more_memory(tmp_path):
    one_map = 2 * 64 * 64 * 4
    few = peak_bytes(3, tmp_path / "few.json")
    assert few > 4 * one_map
    assert abs(peak_bytes(40, tmp_path / "many.json") - few) < one_map


def test_maps_can_be_changed_and_differentiated_by_the_caller():
    for values in mc_dropout_maps(unet(), pictures(), FLOAT32, generator(), 2):
        assert not values.is_inference() and not values.requires_grad
