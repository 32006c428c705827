"""Several predictions of one image, by random dropout or by mirroring, and how they differ (eq. 3, section III-A)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from alutils.augment import normalize
from alutils.data.splits import ImageView
from alutils.experiment import Computing, Experiment
from alutils.sampler import decoder_sampler
from alutils.system.checks import ConfigError
from alutils.system.device import batches_within_memory, deterministic_algorithms, set_up_model, to_device
from alutils.system.seeding import make_generator, seeded
from alutils.training import all_at_once, batch_results
from alutils.uncertainty import binary_entropy

_DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class SampleMaps(NamedTuple):
    """What several predictions say of each pixel: float32 (N, 1, H, W), the last three large where the model is unsure.

    Args:
        mean: mean of the sampled probabilities, 0 to 1.
        std: their standard deviation, eq. 3 (divided by N, not N - 1), 0 to 0.5.
        entropy: predictive entropy, :func:`alutils.binary_entropy` of ``mean``, 0 to 1 bit.
        mutual_information: BALD, ``entropy`` minus the mean of the samples' binary entropies, 0 to 1 bit: large where
            each sample is sure but they disagree.
    """

    mean: torch.Tensor
    std: torch.Tensor
    entropy: torch.Tensor
    mutual_information: torch.Tensor


def mc_dropout_maps(
    model: nn.Module,
    images: torch.Tensor,
    experiment: Experiment,
    generator: torch.Generator,
    n_samples: int | None = None,
) -> SampleMaps:
    """Monte Carlo dropout on one batch: the :class:`SampleMaps` of N predictions with random dropout.

    ``std = sqrt(1/N sum_j (p_j - mean)^2)`` (eq. 3). Only dropout layers are in training mode, and afterwards
    every layer is in its former mode. Memory does not grow with N. A model with ``encode`` and ``decode`` encodes the
    batch once and decodes it N times, if ``encode`` draws no random numbers; ``decode`` must leave the features as they
    are. Any other model runs N times as a whole.

    Args:
        model: from normalized images to logits (N, 1, H, W), on the device where it is to run.
        images: uint8, (N, 3, H, W), one batch.
        experiment: normalization and precision, and N unless ``n_samples`` is given.
        generator: of the CPU; it seeds the dropout: the same state gives the same maps for the same batch.
        n_samples: N of eq. 3, at least 2; None: ``experiment.mc_samples``.

    Raises:
        ConfigError: if ``n_samples`` is below 2, or torch has no ``deterministic`` algorithm for the model.

    >>> from alutils.model import build_unet
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    >>> bool(mc_dropout_maps(model, images, Experiment(), torch.Generator().manual_seed(0)).std.max() > 0)
    True
    """
    n_samples = experiment.mc_samples if n_samples is None else n_samples
    if n_samples < 2:
        raise ConfigError(f"n_samples: eq. 3 needs at least 2 predictions, got {n_samples}")
    compute = set_up_model(model, experiment.precision, compile=experiment.compile)
    shape = (len(images), 1, *images.shape[2:])
    mean, squares, mean_entropy = (torch.zeros(shape, device=compute.device) for _ in range(3))
    with (
        deterministic_algorithms(experiment.deterministic),
        _dropout_only(model),
        seeded(generator, compute.device),
        torch.inference_mode(),
        compute.autocast(),
    ):
        x = normalize(to_device(images, compute.device), experiment).contiguous(memory_format=compute.layout)
        predict = _random_part(model, x)
        for n in range(1, n_samples + 1):
            p = predict().float().sigmoid()
            deviation = p - mean  # Welford's update: the sum of squares minus the square would lose small deviations
            mean += deviation / n
            squares += deviation * (p - mean)
            mean_entropy += (binary_entropy(p) - mean_entropy) / n
    entropy = binary_entropy(mean)
    return SampleMaps(mean, (squares / n_samples).sqrt(), entropy, (entropy - mean_entropy).clamp(min=0))


def mc_dropout_batches(
    model: nn.Module,
    images: torch.Tensor | ImageView,
    experiment: Experiment,
    generator: torch.Generator,
    n_samples: int | None = None,
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[slice, SampleMaps]]:
    """:func:`mc_dropout_maps` of any number of images, batch by batch: which images, and their maps.

    Other arguments and errors are those of :func:`mc_dropout_maps`.

    Args:
        images: uint8, (N, 3, H, W); where they are on another device, each batch is copied.
        batch_size: images per batch; None: twice the training's. Another size draws other samples.

    Raises:
        OutOfMemory: if the device cannot hold a batch; the message names a batch size that fits.
    """
    batch_size = 2 * experiment.batch_size if batch_size is None else batch_size
    device = next(model.parameters()).device

    def sample(start: int, n: int) -> SampleMaps:
        return mc_dropout_maps(model, images[start : start + n], experiment, generator, n_samples)

    setting = "batch_size (Monte Carlo dropout takes twice as many)"
    yield from batches_within_memory(sample, len(images), batch_size, setting, device)


def mc_dropout_std(
    model: nn.Module,
    images: torch.Tensor,
    experiment: Experiment,
    generator: torch.Generator,
    n_samples: int | None = None,
    *,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Eq. 3: ``sqrt(1/N sum_j (p_j - mean)^2)`` over N predictions with dropout, 0 (sure) to 0.5 (unsure).

    Arguments and errors are those of :func:`mc_dropout_batches`. The result is float32 (N, 1, H, W), on the model's
    device.

    >>> from alutils.model import build_unet
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16), dropout=0.0)
    >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    >>> mc_dropout_std(model, images, Experiment(), torch.Generator().manual_seed(0), n_samples=3).max().item()
    0.0
    """
    batches = mc_dropout_batches(model, images, experiment, generator, n_samples, batch_size=batch_size)
    return all_at_once((maps.std for _, maps in batches), model, images, "mc_dropout_batches")


def flip_batches(
    model: nn.Module, images: torch.Tensor | ImageView, experiment: Computing
) -> Iterator[tuple[slice, SampleMaps]]:
    """The maps of two predictions, batch by batch: of the image, and of its mirror image, mirrored back ([15]).

    Arguments and errors are those of :func:`alutils.training.probability_batches`; nothing is drawn at random.
    """

    def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model(x), model(x.flip(-1)).flip(-1)

    for chosen, logits in batch_results(predict, model, images, experiment):
        p, q = (values.float().sigmoid() for values in logits)
        mean = (p + q) / 2
        entropy = binary_entropy(mean)
        information = entropy - (binary_entropy(p) + binary_entropy(q)) / 2
        yield chosen, SampleMaps(mean, (p - q).abs() / 2, entropy, information.clamp(min=0))


def draws_dropout(model: nn.Module, image: torch.Tensor, computing: Computing) -> bool:
    """Whether the model's dropout draws random numbers: without them all samples of eq. 3 agree.

    It does not if the network has no dropout layer, the layers' probability is 0, or no image passes through them (some
    encoders keep the dropout of the classifier that was cut off).

    Args:
        model: on the device where it is to run; it stays as it was.
        image: any picture, uint8, (1, 3, H, W).
        computing: normalization.
    """
    device = next(model.parameters()).device
    with _dropout_only(model), seeded(make_generator(0), device), torch.inference_mode():
        before = _random_state(device)
        model.forward(normalize(image.to(device), computing))  # a call of the model would compile it for a batch of 1
        return not torch.equal(before, _random_state(device))


@contextmanager
def _dropout_only(model: nn.Module) -> Iterator[None]:
    """Put dropout layers into training mode and all else into evaluation mode; at the end restore every module."""
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = isinstance(module, _DROPOUT_LAYERS)
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _random_part(model: nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that draws one prediction: only ``decode`` where ``encode`` gives the same features each time."""
    if hasattr(model, "encode") and hasattr(model, "decode"):
        before = _random_state(images.device)
        features = model.encode(images)
        if torch.equal(before, _random_state(images.device)):
            return decoder_sampler(model, features)
    return lambda: model(images)


def _random_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that dropout on ``device`` draws from; it lies on the CPU, so nothing waits."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)
