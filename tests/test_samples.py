"""Monte Carlo dropout (eq. 3) against full passes with the same dropout, and what sampling leaves as it was."""

import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from alutils.augment import normalize
from alutils.experiment import Experiment
from alutils.model import build_unet
from alutils.samples import mc_dropout_batches, mc_dropout_maps, mc_dropout_std
from alutils.system.checks import ConfigError
from alutils.system.seeding import seeded
from alutils.training import predict_probabilities

FLOAT32 = Experiment(precision="float32", batch_size=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine take longer than these small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
    """N predictions of the whole model, only its dropout layers in training mode: float64 NumPy (N, n, 1, H, W)."""
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


def numpy_entropy(p):
    return -sum(q * np.log2(np.where(q > 0, q, 1)) for q in (p, 1 - p))


def assert_moments(maps, samples, atol):
    entropy = numpy_entropy(samples.mean(0))
    mutual_information = entropy - numpy_entropy(samples).mean(0)
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


@pytest.mark.parametrize("layer", [nn.Dropout2d(0.3), nn.AlphaDropout(0.3)])
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


@pytest.mark.parametrize("layer", [None, nn.Identity()])
def test_without_active_dropout_std_is_0_and_the_mean_is_the_prediction(layer):
    model, images = plain_unet(layer) if layer else unet(dropout=0.0), pictures()
    model.train()
    maps = mc_dropout_maps(model, images, FLOAT32, generator(), n_samples=5)
    assert maps.std.max() == 0 and maps.mutual_information.max() == 0
    assert torch.allclose(maps.mean, predict_probabilities(model, images, FLOAT32), rtol=0, atol=1e-5)


def flags(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("fails", [False, True])
def test_sampling_leaves_the_model_as_it_was(fails):
    model = unet().train()
    model.encoder.eval()
    model.dropout.eval()
    flags_before = flags(model)
    state_before = {name: value.clone() for name, value in model.state_dict().items()}
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


def test_the_encoder_runs_once_and_the_decoder_n_times():
    model, calls = unet(), []
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.segmentation_head.register_forward_hook(lambda *_: calls.append("decoder"))
    mc_dropout_maps(model, pictures(), FLOAT32, generator(), n_samples=7)
    assert calls == ["encoder"] + ["decoder"] * 7


def test_same_generator_state_same_maps_and_the_global_state_is_left_alone():
    model, images = unet(), pictures()
    before = torch.get_rng_state()
    g = generator(3)
    first, later = (mc_dropout_std(model, images, FLOAT32, g, 3) for _ in range(2))
    assert torch.equal(first, mc_dropout_std(model, images, FLOAT32, generator(3), 3))
    assert not torch.equal(first, later)
    assert torch.equal(torch.get_rng_state(), before)


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


def test_a_single_sample_is_refused():
    with pytest.raises(ConfigError, match="n_samples: .* got 1"):
        mc_dropout_std(unet(), pictures(), FLOAT32, generator(), 1)


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


def test_disagreement_is_in_std_and_mutual_information_and_doubt_in_the_entropy_alone():
    for outcomes, expected in (([0, 1, 1, 0], [0.5, 0.5, 1.0, 1.0]), ([0.5] * 3, [0.5, 0.0, 1.0, 0.0])):
        maps = mc_dropout_maps(Scripted(outcomes), pictures(1, 8), FLOAT32, generator(), len(outcomes))
        assert [values.unique().item() for values in maps] == expected


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
