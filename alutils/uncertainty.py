"""How unsure the model is: of a pixel (eq. 1 to 3 of the paper, section III-A) and of an image.

Eq. 1 is *small* where the model is unsure; every other map is large there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import nn

from alutils.augment import normalize
from alutils.data.splits import ImageView, images_at
from alutils.experiment import Experiment
from alutils.sampler import decoder_sampler
from alutils.system.checks import ConfigError, did_you_mean
from alutils.system.device import deterministic_algorithms, memory_for, set_up_model, to_device, within_memory
from alutils.system.seeding import make_generator, seeded
from alutils.system.tensors import check_probabilities, is_number

REDUCTIONS: tuple[str, ...] = get_args(Experiment.model_fields["reduction"].annotation)

_DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class DropoutMaps(NamedTuple):
    """What Monte Carlo dropout says of each pixel: float32 maps (N, 1, H, W), the last three large where it is unsure.

    Args:
        mean: mean of the sampled probabilities, 0 to 1.
        std: their standard deviation, eq. 3 (divided by N, not N - 1), 0 to 0.5.
        entropy: predictive entropy, the :func:`binary_entropy` of ``mean``, 0 to 1 bit.
        mutual_information: BALD, ``entropy`` minus the mean of the samples' binary entropies, 0 to 1 bit: large where
            each sample is sure but they disagree.
    """

    mean: torch.Tensor
    std: torch.Tensor
    entropy: torch.Tensor
    mutual_information: torch.Tensor


def least_confidence(probabilities: torch.Tensor) -> torch.Tensor:
    """Eq. 1: ``|0.5 - p|``, from 0 (unsure, p = 0.5) to 0.5 (sure, p = 0 or 1): *small* where the model is unsure.

    Args:
        probabilities: of the lesion, 0 to 1, any floating type and shape.

    Returns:
        The same shape, float32 (float64 for float64): half-precision probabilities are widened before they are used.

    Raises:
        ValueError: if they are not floating point or, on a CPU, if one is not a number from 0 to 1. On an accelerator
            looking at the values would make the CPU wait for it; there :func:`alutils.select_queries` refuses scores
            that are not finite.

    >>> least_confidence(torch.tensor([0.0, 0.25, 0.5, 1.0])).tolist()
    [0.5, 0.25, 0.0, 0.5]
    """
    return (0.5 - _widened(probabilities)).abs()


def one_sided_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Eq. 2: ``-p log2 p``, from 0 (p = 0 or 1) to 0.5307 bits at p = 1/e = 0.368: large where the model is unsure.

    It is not symmetric: 0.332 at p = 0.1 but 0.137 at p = 0.9, so a hazy background counts for more than a hazy lesion.

    Args, returns and errors: as :func:`least_confidence`.

    >>> one_sided_entropy(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0.0, 0.5, 0.0]
    """
    p = _widened(probabilities)
    return 0.0 - torch.special.xlogy(p, p) / math.log(2)  # not a mere minus sign, which would make -0 of 0


def binary_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """``-p log2 p - (1 - p) log2(1 - p)``, from 0 (p = 0 or 1) to 1 bit at p = 0.5: large where the model is unsure.

    The usual entropy of lesion or background; eq. 2 is its first half. It orders pixels as eq. 1 does, but not images.

    Args, returns and errors: as :func:`least_confidence`.

    >>> binary_entropy(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    p = _widened(probabilities)
    # log1p keeps the digits of log(1 - p) where p is small
    return 0.0 - (torch.special.xlogy(p, p) + torch.special.xlog1py(1 - p, -p)) / math.log(2)


def mc_dropout_maps(
    model: nn.Module,
    images: torch.Tensor,
    experiment: Experiment,
    generator: torch.Generator,
    n_samples: int | None = None,
) -> DropoutMaps:
    """Monte Carlo dropout on one batch: the mean, eq. 3 and two entropies over N predictions with random dropout.

    ``std = sqrt(1/N sum_j (p_j - mean)^2)`` (eq. 3). The dropout layers draw, everything else (batch norm above all)
    stays in evaluation mode, and the model's weights, statistics and training flags are afterwards what they were.
    Memory does not grow with N: the moments are updated sample by sample.

    A model with ``encode`` and ``decode`` encodes the batch once and decodes it N times
    (:func:`alutils.sampler.decoder_sampler`), provided that ``encode`` draws no random numbers; ``decode`` must leave
    the features as they are. Any other model, with dropout layers (``nn.Dropout``, ``nn.Dropout2d``, ...) anywhere,
    runs N times as a whole. Without dropout layers, or with their probabilities at 0, the predictions agree: ``std``
    and ``mutual_information`` are 0 everywhere.

    Args:
        model: from normalized images to logits (N, 1, H, W), on the device where it is to run.
        images: uint8, (N, 3, H, W), one batch.
        experiment: normalization and precision, and N where none is given.
        generator: of the CPU; it gives the seed of the dropout. The same state gives the same maps for the same batch.
        n_samples: N of eq. 3, at least 2; None: ``experiment.mc_samples``.

    Returns:
        :class:`DropoutMaps` on the model's device.

    Raises:
        ConfigError: if ``n_samples`` is below 2, or if the experiment is to be ``deterministic`` and cannot be so on
            the model's device.

    >>> from alutils.model import build_unet
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    >>> maps = mc_dropout_maps(model, images, Experiment(), torch.Generator().manual_seed(0), n_samples=3)
    >>> maps.std.shape, bool(maps.std.max() > 0)
    (torch.Size([2, 1, 64, 64]), True)
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
    return DropoutMaps(mean, (squares / n_samples).sqrt(), entropy, (entropy - mean_entropy).clamp(min=0))


def mc_dropout_batches(
    model: nn.Module,
    images: torch.Tensor | ImageView,
    experiment: Experiment,
    generator: torch.Generator,
    n_samples: int | None = None,
    *,
    indices: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[slice, DropoutMaps]]:
    """:func:`mc_dropout_maps` of all images, batch by batch, so that no more than one batch of maps is held.

    Args:
        model, experiment, generator, n_samples: as for :func:`mc_dropout_maps`.
        images: uint8, (N, 3, H, W), any number; where they are on another device, each batch is copied.
        indices: int64 (n,), positions of the images to predict; each batch gathers its own. None: all.
        batch_size: images at a time; None: twice the training's. Each batch draws its own dropout, so that another
            batch size gives other samples.

    Yields:
        Which images (of those at ``indices``), and their maps.

    Raises:
        OutOfMemory: if the device cannot hold a batch; the message names a batch size that fits.
        ConfigError, ValueError: as :func:`mc_dropout_maps` and :func:`alutils.training.probability_batches`.
    """
    images = images_at(images, indices)
    batch_size, device = batch_size or 2 * experiment.batch_size, next(model.parameters()).device

    def sample(start: int, n: int) -> DropoutMaps:
        return mc_dropout_maps(model, images[start : start + n], experiment, generator, n_samples)

    for start in range(0, len(images), batch_size):
        chosen = slice(start, min(start + batch_size, len(images)))
        setting = "batch_size (Monte Carlo dropout takes twice as many)"
        yield chosen, within_memory(partial(sample, start), chosen.stop - start, setting, device)


def mc_dropout_std(
    model: nn.Module,
    images: torch.Tensor | ImageView,
    experiment: Experiment,
    generator: torch.Generator,
    n_samples: int | None = None,
    *,
    indices: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Eq. 3: ``sqrt(1/N sum_j (p_j - mean)^2)`` over N predictions with dropout, 0 (sure) to 0.5 (unsure).

    Args and errors: as :func:`mc_dropout_batches`.

    Returns:
        float32 (N, 1, H, W) of all images, on the model's device.

    >>> from alutils.model import build_unet
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16), dropout=0.0)
    >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    >>> mc_dropout_std(model, images, Experiment(), torch.Generator().manual_seed(0), n_samples=3).max().item()
    0.0
    """
    images = images_at(images, indices)
    what, remedy = f"images: the maps of {len(images)} images", "take them batch by batch, from mc_dropout_batches"
    with memory_for(what, remedy, next(model.parameters()).device):
        batches = mc_dropout_batches(model, images, experiment, generator, n_samples, batch_size=batch_size)
        maps = [dropout_maps.std for _, dropout_maps in batches]
        return torch.cat(maps) if maps else torch.zeros(0, 1, *images.shape[2:])


def draws_dropout(model: nn.Module, image: torch.Tensor, experiment: Experiment) -> bool:
    """Whether the model's dropout draws random numbers: without them all samples of eq. 3 agree.

    It does not where the network has no dropout layer, their probability is 0, or no picture passes through them (some
    encoders keep the dropout of the classifier that was cut off).

    Args:
        model: on the device where it is to run; it stays as it was.
        image: any picture, uint8, (1, 3, H, W): one is predicted.
        experiment: normalization.

    >>> from alutils.model import build_unet
    >>> image, narrow = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), (16, 16, 16, 16, 16)
    >>> models = [build_unet(encoder_weights=None, decoder_channels=narrow, dropout=p) for p in (0.5, 0.0)]
    >>> [draws_dropout(model, image, Experiment()) for model in models]
    [True, False]
    """
    device = next(model.parameters()).device
    with _dropout_only(model), seeded(make_generator(0), device), torch.inference_mode():
        before = _random_state(device)
        model.forward(normalize(image.to(device), experiment))  # not called: that would compile for a batch of one
        return not torch.equal(before, _random_state(device))


def image_score(
    maps: torch.Tensor,
    reduction: str = "sum",
    *,
    small_is_unsure: bool = False,
    probabilities: torch.Tensor | None = None,
    tau_u: float = 0.25,
    k: int | None = None,
) -> torch.Tensor:
    """One number per image, from its pixel map (section III-A); it points where the map points.

    An unsure image's score is small where the map is small at unsure pixels, and large where it is large there: the
    paper queries the *smallest* sums of eq. 1 and the *largest* of eq. 2 and 3. "sum", "mean" and "median" take all
    pixels alike; "top_k" and "band_mean" pick the unsure ones, so that for eq. 1 they need ``small_is_unsure=True``.
    The sum, the paper's choice, grows with the lesion's perimeter; the band's mean does not.

    Args:
        maps: (N, 1, H, W), or any shape whose first dimension is the images'.
        reduction: "sum"; "mean"; "median" (the mean of the middle two pixels where their number is even); "top_k": the
            mean of the k most unsure pixels; "band_mean": the mean over the pixels with ``|0.5 - p| <= tau_u``, and
            where there is none the value of a sure pixel (0; 0.5 for eq. 1).
        small_is_unsure: True for eq. 1; it changes what "top_k" and "band_mean" look for, never the sign.
        probabilities: of the lesion, the shape of ``maps``; for "band_mean".
        tau_u: half the band's width, 0 to 0.5.
        k: pixels of "top_k"; None: one in a hundred.

    Returns:
        float32 (N,); maps of any type are widened or narrowed to float32 before they are added up.

    Raises:
        ConfigError: if there is no such reduction, or its ``k`` or ``tau_u`` is out of range.
        ValueError: if the maps have no pixels or are not of real numbers, "band_mean" lacks fitting ``probabilities``
            or, on a CPU, a map holds NaN or infinity. On an accelerator the image's score is then NaN or infinite,
            which :func:`alutils.select_queries` refuses.

    >>> probabilities = torch.tensor([[0.5, 0.25], [0.0, 1.0]]).view(2, 1, 1, 2)
    >>> image_score(least_confidence(probabilities)).tolist()  # smallest first: the first image
    [0.25, 1.0]
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction: there is no '{reduction}'; {did_you_mean(reduction, list(REDUCTIONS))}")
    if not isinstance(maps, torch.Tensor) or maps.is_complex() or maps.ndim < 2 or not maps.shape[1:].numel():
        got = f"{maps.dtype} {tuple(maps.shape)}" if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise ValueError(f"maps must be a tensor of real numbers of shape (N, 1, H, W), got {got}")
    pixels = maps.flatten(1).float()
    total = pixels.sum(1)
    if _looking_is_free(maps) and not total.isfinite().all():
        raise ValueError("maps hold NaN or infinity: the model has diverged, or the probabilities were not from 0 to 1")
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / pixels.shape[1]
    zero = 0 * total  # but NaN where a map is not finite, which the others might pass over
    if reduction == "median":
        middle = (pixels.shape[1] + 1) // 2, pixels.shape[1] // 2 + 1  # kthvalue counts from 1
        return zero + (pixels.kthvalue(middle[0], 1).values + pixels.kthvalue(middle[1], 1).values) / 2
    if reduction == "top_k":
        k = max(1, pixels.shape[1] // 100) if k is None else k
        if not is_number(k, whole=True) or not 1 <= k <= pixels.shape[1]:
            raise ConfigError(f"k: must be from 1 to the {pixels.shape[1]} pixels of an image, got {k!r}")
        return zero + pixels.topk(k, dim=1, largest=not small_is_unsure, sorted=False).values.mean(1)
    return zero + _band_mean(pixels, maps.shape, probabilities, tau_u, if_empty=0.5 if small_is_unsure else 0.0)


def _band_mean(
    pixels: torch.Tensor, shape: torch.Size, probabilities: torch.Tensor | None, tau_u: float, *, if_empty: float
) -> torch.Tensor:
    if not is_number(tau_u) or not 0 <= tau_u <= 0.5:
        raise ConfigError(f"tau_u: must be from 0 to 0.5, got {tau_u!r}")
    if getattr(probabilities, "shape", None) != shape:
        got = f"shape {tuple(probabilities.shape)}" if hasattr(probabilities, "shape") else "none"
        raise ValueError(f"band_mean needs probabilities of the maps' shape {tuple(shape)}, got {got}")
    band = least_confidence(probabilities).flatten(1) <= tau_u
    count = band.sum(1)
    return torch.where(count > 0, (pixels * band).sum(1) / count.clamp(min=1), if_empty)


def _widened(probabilities: torch.Tensor) -> torch.Tensor:
    """As float32 or float64, looked at where that costs no waiting for a device."""
    if not isinstance(probabilities, torch.Tensor):
        raise ValueError(
            f"probabilities must be a tensor, got {type(probabilities).__name__}; torch.as_tensor makes one of numbers"
        )
    if not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities must be floating point, got {probabilities.dtype}; a mask is not a probability"
        )
    if _looking_is_free(probabilities):
        check_probabilities(probabilities)
    return probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))


def _looking_is_free(values: torch.Tensor) -> bool:
    """Whether their values can be looked at without waiting for an accelerator."""
    return values.device.type == "cpu"


@contextmanager
def _dropout_only(model: nn.Module) -> Iterator[None]:
    """Within it, dropout layers are in training mode and all else in evaluation mode; then each module as it was."""
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
    """Of the generator that dropout on ``device`` draws from; it lies on the CPU, so nothing has to wait."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)
