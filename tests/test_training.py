"""fit and predict_probabilities: they learn, repeat themselves, and leave alone what they should."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from alutils.augment import normalize
from alutils.data.packed import PackedMasks
from alutils.experiment import Experiment
from alutils.metrics import dice_score
from alutils.model import build_unet
from alutils.system.checks import ConfigError
from alutils.system.device import OutOfMemory
from alutils.system.seeding import make_generator
from alutils.training import (
    TrainingDiverged,
    _shuffled_batches,
    fit,
    predict_probabilities,
    probability_batches,
    segmentation_loss,
)

QUIET = {"progress": False}
SMALL = Experiment(image_size=64, batch_size=4, epochs=2, precision="float32")


def squares(n, size=64):
    """Bright squares on dark ground, at n places."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    for i in range(n):
        y, x = torch.randint(4, size - 36, (2,), generator=generator).tolist()
        masks[i, :, y : y + 32, x : x + 32] = 1
    return (60 + 120 * masks).expand(-1, 3, -1, -1).contiguous(), masks


def unet(seed=0):
    return build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16), seed=seed)


def pixelwise():
    """A network that takes no time."""
    return nn.Conv2d(3, 1, 1)


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_it_learns_to_find_a_square():
    images, masks = squares(8)
    model = unet()
    losses = fit(model, images, masks, SMALL, make_generator(0), n_steps=30, **QUIET)
    assert losses[-8:].mean() < 0.5 * losses[:8].mean()
    assert dice_score(predict_probabilities(model, images, SMALL), masks).mean() > 0.9


def test_same_seed_same_weights_and_losses():
    images, masks = squares(6)
    runs = []
    for seed in (1, 1, 2):
        model = unet()
        losses = fit(model, images, masks, SMALL, make_generator(seed), **QUIET)
        runs.append((losses, state_of(model)))
    assert torch.equal(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_the_global_random_state_is_neither_used_nor_changed():
    images, masks = squares(4)
    results = []
    for seed in (11, 22):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(fit(unet(), images, masks, SMALL, make_generator(0), **QUIET))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


def test_the_number_of_steps_is_the_experiments_or_the_one_asked_for():
    images, masks = squares(6)
    assert len(fit(pixelwise(), images, masks, SMALL, make_generator(0), **QUIET)) == 2 * math.ceil(6 / 4)
    assert len(fit(pixelwise(), images, masks, SMALL, make_generator(0), n_steps=5, **QUIET)) == 5


def test_each_pass_shows_every_image_once():
    batches = list(_shuffled_batches(10, 4, 7, make_generator(0)))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(10))
    assert sorted(torch.cat(batches[3:6]).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:6]))


def test_a_last_image_alone_is_joined_by_the_one_before_it_where_batch_norm_needs_that():
    alone, joined = (list(_shuffled_batches(9, 4, 4, make_generator(0), together)) for together in (False, True))
    assert [len(batch) for batch in alone] == [4, 4, 1, 4] and [len(batch) for batch in joined] == [4, 4, 2, 4]
    assert joined[2].tolist() == [alone[1][-1], alone[2][0]]
    images, masks = (torch.zeros(5, n, 32, 32, dtype=torch.uint8) for n in (3, 1))
    assert fit(unet(), images, masks, SMALL, make_generator(0), n_steps=4, **QUIET).isfinite().all()
    with pytest.raises(ConfigError, match="a UNet cannot train on one image of 32 x 32 alone"):
        fit(unet(), images[:1], masks[:1], SMALL, make_generator(0), **QUIET)


def test_the_optimizer_step_is_sgd_with_momentum_and_weight_decay_as_in_the_paper(monkeypatch):
    """Two steps on a model of one number, against the update written out by hand."""
    calls = []
    monkeypatch.setattr("alutils.training.augment", lambda x, y, e, g: (x.float() / 255, y))

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            calls.append(self.w.item())
            return self.w * x[:, :1]

    images = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    masks = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    model = Scale()
    experiment = Experiment(batch_size=1, learning_rate=0.1, momentum=0.9, weight_decay=0.01, precision="float32")
    fit(model, images, masks, experiment, make_generator(0), n_steps=3, **QUIET)
    w, velocity = 0.3, 0.0
    for step in range(3):
        assert calls[step] == pytest.approx(w, abs=1e-6)
        gradient = 1 / (1 + math.exp(-w)) - 1 + 0.01 * w
        velocity = 0.9 * velocity + gradient
        w -= 0.1 * velocity


def test_the_cosine_schedule_ends_near_zero_and_the_constant_one_does_not(monkeypatch):
    images, masks = squares(4)
    rates, step = [], torch.optim.SGD.step

    def record(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    for schedule in ("constant", "cosine"):
        experiment = SMALL.model_copy(update={"schedule": schedule})
        fit(pixelwise(), images, masks, experiment, make_generator(0), n_steps=6, **QUIET)
    assert rates[:6] == [0.01] * 6
    assert rates[6:] == pytest.approx([0.005 * (1 + math.cos(math.pi * k / 6)) for k in range(6)])


@pytest.mark.parametrize(("kind", "expected"), [("bce", math.log(2)), ("dice", 1 - 2 / 3), ("bce+dice", None)])
def test_losses_have_their_closed_forms(kind, expected):
    logits, masks = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    expected = (math.log(2) + 1 / 3) / 2 if expected is None else expected
    assert segmentation_loss(logits, masks, kind).item() == pytest.approx(expected, abs=1e-4)


def trained(masks, annotated=None, experiment=SMALL):
    """Losses and weights after a short training on the squares."""
    images, _ = squares(6)
    model = unet()
    losses = fit(model, images, masks, experiment, make_generator(0), annotated=annotated, n_steps=2, **QUIET)
    return losses, state_of(model)


def test_packed_masks_train_as_the_masks_do():
    _, masks = squares(6)
    known = (torch.rand(masks.shape, generator=make_generator(1)) < 0.7).to(torch.uint8)
    losses, weights = trained(masks, known)
    packed_losses, packed_weights = trained(PackedMasks.pack(masks), PackedMasks.pack(known))
    assert torch.equal(packed_losses, losses) and same(packed_weights, weights)


def test_where_all_is_annotated_only_a_rotation_leaves_something_unknown():
    _, masks = squares(6)
    upright = SMALL.model_copy(update={"rotation": 0.0})
    ones = torch.ones_like(masks)
    assert torch.allclose(trained(masks, ones, upright)[0], trained(masks, None, upright)[0], rtol=1e-4)
    assert not torch.allclose(trained(masks, ones)[0], trained(masks)[0], rtol=1e-4)


def test_a_labelled_set_by_index_trains_as_its_copy_does():
    images, masks = squares(6)
    indices, results = torch.tensor([4, 0, 5]), []
    known = (torch.rand(3, 1, 64, 64, generator=make_generator(1)) < 0.7).to(torch.uint8)
    for pictures, by_index in ((images[indices], {}), (images, {"indices": indices})):
        model = unet()
        losses = fit(model, pictures, masks[indices], SMALL, make_generator(0), annotated=known, **by_index, **QUIET)
        results.append((losses, state_of(model)))
    assert torch.equal(results[0][0], results[1][0]) and same(results[0][1], results[1][1])


@pytest.mark.parametrize("loss", ["bce", "dice"])
def test_pixels_that_are_not_annotated_do_not_influence_training(loss):
    _, masks = squares(6)
    known = (torch.rand(masks.shape, generator=make_generator(1)) < 0.5).to(torch.uint8)
    experiment = SMALL.model_copy(update={"loss": loss})
    losses, weights = trained(masks, known, experiment)
    other_losses, other_weights = trained(torch.where(known == 1, masks, 1 - masks), known, experiment)
    assert torch.equal(other_losses, losses) and same(other_weights, weights)
    without, _ = trained(torch.where(known == 1, masks, 1 - masks), None, experiment)
    assert not torch.allclose(without, losses, rtol=1e-2)  # where they count, they do


@pytest.mark.parametrize("known_type", [torch.uint8, torch.bool])
def test_the_loss_of_known_pixels_is_numpys(known_type):
    generator = make_generator(0)
    logits = 3 * torch.randn(3, 1, 8, 8, generator=generator)
    masks = (torch.rand(logits.shape, generator=generator) < 0.4).float()
    known = torch.rand(logits.shape, generator=generator) < 0.6
    known[2] = False  # an image without any
    z, y = logits.double().numpy()[known.numpy()], masks.double().numpy()[known.numpy()]
    p = 1 / (1 + np.exp(-z))
    bce, dice = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(), 1 - 2 * (p * y).sum() / (p.sum() + y.sum())
    for kind, expected in {"bce": bce, "dice": dice, "bce+dice": (bce + dice) / 2}.items():
        assert segmentation_loss(logits, masks, kind, known.to(known_type)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["bce", "dice", "bce+dice"])
def test_where_nothing_is_known_the_loss_is_0_and_its_gradient_too(kind):
    logits = torch.tensor([-200.0, 0.0, 3.0, 200.0]).view(1, 1, 2, 2).requires_grad_()
    masks = torch.ones(1, 1, 2, 2)
    loss = segmentation_loss(logits, masks, kind, torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(
    "annotated",
    [
        torch.ones(2, 1, 64, 64, dtype=torch.bool),
        torch.ones(3, 1, 64, 64, dtype=torch.uint8),
        PackedMasks.pack(torch.ones(2, 1, 64, 32, dtype=torch.uint8)),
    ],
)
def test_an_annotated_that_does_not_fit_is_refused(annotated):
    images, masks = squares(2)
    with pytest.raises(ValueError, match=r"annotated must be uint8 of shape \(2, 1, 64, 64\), got"):
        fit(pixelwise(), images, masks, SMALL, make_generator(0), annotated=annotated, **QUIET)
    with pytest.raises(ValueError, match=r"masks must be uint8 of shape \(2, 1, 64, 64\), got"):
        fit(pixelwise(), images, annotated, SMALL, make_generator(0), **QUIET)


def test_prediction_is_the_sigmoid_of_the_model_in_evaluation_mode():
    images, _ = squares(5)
    model = unet()
    before = state_of(model)
    model.train()
    predicted = predict_probabilities(model, images, SMALL)
    with torch.no_grad():
        expected = model.eval()(normalize(images, SMALL)).sigmoid()
    assert predicted.dtype == torch.float32 and predicted.shape == (5, 1, 64, 64)
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert same(before, state_of(model))


def test_prediction_does_not_depend_on_the_batch_size():
    images, _ = squares(5)
    model = unet()
    at_once = predict_probabilities(model, images, SMALL, batch_size=5)
    slices, maps = zip(*probability_batches(model, images, SMALL, batch_size=2), strict=True)
    assert [(s.start, s.stop) for s in slices] == [(0, 2), (2, 4), (4, 5)]
    assert torch.allclose(torch.cat(maps), at_once, atol=1e-5)


def test_divergence_is_named():
    images, masks = squares(4)
    wild = Experiment(image_size=64, batch_size=4, learning_rate=1e30, precision="float32")
    with pytest.raises(TrainingDiverged, match="learning_rate below 1e\\+30"):
        fit(pixelwise(), images, masks, wild, make_generator(0), n_steps=4, **QUIET)


def test_weights_that_are_not_numbers_after_the_last_step_are_divergence_too():
    images, masks = squares(4)
    model = pixelwise()
    model.bias.register_hook(lambda gradient: gradient * math.nan)  # the loss before it is sound
    with pytest.raises(TrainingDiverged, match=r"weights were not finite after step 1; a learning_rate below 0\.01"):
        fit(model, images, masks, SMALL, make_generator(0), n_steps=1, **QUIET)


# float16, whose range is small: a scaler makes the loss larger, and leaves out a step whose gradients then are infinite

FLOAT16 = SMALL.model_copy(update={"precision": "float16", "schedule": "cosine", "epochs": 3})


class Overflowing(nn.Module):
    """A network of one convolution, whose gradient is infinite at the given passes, counted from 1."""

    def __init__(self, infinite):
        super().__init__()
        self.convolution, self.passes = pixelwise(), 0
        self.convolution.bias.register_hook(lambda gradient: gradient * (math.inf if self.passes in infinite else 1))

    def forward(self, images):
        self.passes += 1
        return self.convolution(images)


def test_a_step_that_the_scaler_leaves_out_is_not_counted(monkeypatch):
    """It counts neither among the losses nor in the schedule, and its batch is taken again."""
    steps, batches, optimizer_step = [], [], torch.optim.SGD.step

    def step(self, *args, **kwargs):
        steps.append((self.param_groups[0]["lr"], model.passes))
        return optimizer_step(self, *args, **kwargs)

    def augmented(x, y, experiment, generator):
        batches.append(sorted(x[:, 0].amax((1, 2)).tolist()))
        return x.float() / 255, y

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    monkeypatch.setattr("alutils.training.augment", augmented)
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 64, 64).contiguous()
    masks = torch.zeros(8, 1, 64, 64, dtype=torch.uint8)
    model = Overflowing({1, 2, 5})
    losses = fit(model, images, masks, FLOAT16, make_generator(0), **QUIET)
    assert len(losses) == 6 and losses.isfinite().all()
    assert [passes for _, passes in steps] == [3, 4, 6, 7, 8, 9]
    assert [rate for rate, _ in steps] == pytest.approx([0.005 * (1 + math.cos(math.pi * k / 6)) for k in range(6)])
    assert batches[0] == batches[1] == batches[2] and batches[4] == batches[5]
    assert all(sorted(batches[a] + batches[b]) == list(range(8)) for a, b in ((2, 3), (5, 6), (7, 8)))


def test_gradients_that_never_fit_into_float16_are_divergence():
    images, masks = squares(4)
    model = Overflowing(range(1000))
    with pytest.raises(TrainingDiverged, match=r"too large for float16 at step 1 of 3; .* precision=float32"):
        fit(model, images, masks, FLOAT16, make_generator(0), **QUIET)
    assert model.passes == 17  # from 65536 down to 1


def test_elsewhere_an_infinite_gradient_is_divergence():
    images, masks = squares(4)
    experiment, model = FLOAT16.model_copy(update={"precision": "bfloat16"}), Overflowing({3})
    with pytest.raises(TrainingDiverged, match="not finite after step 3"):
        fit(model, images, masks, experiment, make_generator(0), **QUIET)
    assert model.passes == 3


def test_in_float16_the_u_net_learns_as_in_float32():
    images, masks = squares(2)
    results = {}
    for precision in ("float16", "float32"):
        experiment, model = SMALL.model_copy(update={"precision": precision}), unet()
        model.dropout.p = 0.0  # it draws in the order of the memory
        losses = fit(model, images, masks, experiment, make_generator(0), n_steps=1, **QUIET)
        results[precision] = losses, predict_probabilities(model, images, experiment)
    assert not torch.equal(results["float16"][0], results["float32"][0])
    assert (results["float16"][1] - results["float32"][1]).abs().max() < 0.1


class Cramped(nn.Module):
    """A network on a device whose memory holds ``holds`` images."""

    def __init__(self, holds, error):
        super().__init__()
        self.network, self.holds, self.error = pixelwise(), holds, error

    def forward(self, images):
        if len(images) > self.holds:
            raise self.error
        return self.network(images)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GiB, max allowed: 9.07 GiB)."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize(
    ("error", "holds", "remedy"),
    [*((error, 3, "2 fit") for error in NO_MEMORY), (NO_MEMORY[0], 4, "4 fit"), (NO_MEMORY[0], 0, "not even one fits")],
)
def test_a_batch_that_the_memory_does_not_hold_is_named_with_one_that_fits(error, holds, remedy):
    images, masks = squares(8)
    experiment = SMALL.model_copy(update={"batch_size": 8})
    with pytest.raises(
        OutOfMemory, match=f"^batch_size: the memory of cpu is too small for 8 images at a time; {remedy}"
    ):
        fit(Cramped(holds, error), images, masks, experiment, make_generator(0), **QUIET)
    with pytest.raises(OutOfMemory, match=f"batch_size .* is too small for 8 images at a time; {remedy}"):
        predict_probabilities(Cramped(holds, error), images, SMALL)


def test_other_errors_of_a_step_stay_what_they_are():
    images, masks = squares(4)
    with pytest.raises(RuntimeError, match="^something else$"):
        fit(Cramped(0, RuntimeError("something else")), images, masks, SMALL, make_generator(0), **QUIET)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_whose_memory_is_really_too_small_is_named_and_goes_on_working():
    images, masks = (tensor.cuda() for tensor in squares(64, size=256))
    model = unet().cuda()
    fit(model, images[:1], masks[:1], SMALL, make_generator(0), n_steps=1, **QUIET)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        with pytest.raises(
            OutOfMemory, match=r"batch_size: the memory of cuda:0 is too small for 64 images at a time; \d+ fit"
        ):
            fit(model, images, masks, SMALL.model_copy(update={"batch_size": 64}), make_generator(0), **QUIET)
        fit(model, images[:1], masks[:1], SMALL, make_generator(0), n_steps=1, **QUIET)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (torch.zeros(0, 3, 64, 64, dtype=torch.uint8), torch.zeros(0, 1, 64, 64, dtype=torch.uint8), "no images"),
        (torch.zeros(2, 3, 64, 64), torch.zeros(2, 1, 64, 64, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 1, 64, 64, dtype=torch.uint8), "masks"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 32, 32, dtype=torch.uint8), "one image of 32"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(images, masks, message):
    with pytest.raises(ValueError, match=message):
        fit(unet(), images, masks, SMALL, make_generator(0), **QUIET)


def test_a_batch_size_below_one_and_an_unknown_loss_are_refused():
    images, masks = squares(2)
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}; None takes the default"):
            predict_probabilities(nn.Conv2d(3, 1, 1), images, SMALL, batch_size=size)
    with pytest.raises(ConfigError, match="loss: there is no 'focal'; the valid ones are bce, dice and bce"):
        segmentation_loss(torch.zeros(2, 1, 64, 64), masks.float(), "focal")
