"""Training on a labelled set, and prediction (section IV-D; steps 4 and 5 of Fig. 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import BINARY_MODE, DiceLoss
from torch import nn

from alutils.augment import augment, normalize
from alutils.data.packed import PackedMasks
from alutils.data.splits import ImageView, images_at
from alutils.experiment import Experiment
from alutils.system.device import deterministic_algorithms, memory_for, prepare, to_device, within_memory
from alutils.system.progress import progress_bar
from alutils.system.seeding import seeded
from alutils.system.tensors import check_mask

_LEAST_SCALE = 1.0
"""Of float16's losses: below it, gradients of their true size are too large for float16."""


class TrainingDiverged(RuntimeError):
    """The loss or the weights are not numbers any more; the message says at which step and what to try."""


def fit(
    model: nn.Module,
    images: torch.Tensor,
    masks: torch.Tensor | PackedMasks,
    experiment: Experiment,
    generator: torch.Generator,
    *,
    indices: torch.Tensor | None = None,
    annotated: torch.Tensor | PackedMasks | None = None,
    n_steps: int | None = None,
    progress: bool = True,
) -> torch.Tensor:
    """Train ``model`` in place with a new SGD optimizer (section IV-D): batches of shuffled, augmented images.

    Args:
        model: from :func:`alutils.build_unet`; trained on the device it is on.
        images: uint8, (N, 3, H, W); where they are on another device, each batch is copied.
        masks: uint8, (N, 1, H, W), 0 and 1, or packed; with ``indices`` (n, 1, H, W), in their order.
        experiment: batch size, epochs, optimizer, loss, augmentation and precision.
        generator: of the CPU; it draws the batches, the augmentation and the seed of the dropout.
        indices: int64 (n,), positions of the labelled set in ``images``; each batch gathers its own. None: all images
            are trained on.
        annotated: uint8, of the masks' shape, 1 where the mask is known, or packed: the loss ignores other pixels, and
            what a rotation brings in from outside the picture. None: all is known, and outside is background.
        n_steps: optimizer steps; None: ``experiment.epochs`` passes over the images.
        progress: show a progress bar.

    Returns:
        The loss of each step, float32 (n_steps,), on the CPU. In float16 a gradient may be too large for it: then the
        batch is taken again with a smaller scale of the loss, and does not count twice.

    Raises:
        ValueError: if there are no images, if images, ``indices``, masks and ``annotated`` do not belong together, or
            if the latter two hold anything but 0 and 1.
        TrainingDiverged: if the loss stops being a finite number (looked at after each epoch), or a weight at the end,
            or if no scale of the loss makes the gradients fit into float16.
        ConfigError: if the experiment is to be ``deterministic``, and cannot be so on the model's device.
        OutOfMemory: if the device cannot hold a batch; the message names a batch size that fits. ``model`` is then
            half trained.

    >>> from alutils.model import build_unet
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> images, masks = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    >>> experiment = Experiment(batch_size=2, epochs=3)
    >>> fit(model, images, masks, experiment, torch.Generator().manual_seed(0), progress=False).shape
    torch.Size([6])
    """
    images = images_at(images, torch.arange(len(images)) if indices is None else indices)
    _check_training_set(images, masks, annotated, experiment)
    compute = prepare(model.train(), experiment)
    device = compute.device
    batches_an_epoch = math.ceil(len(images) / experiment.batch_size)
    n_steps = experiment.epochs * batches_an_epoch if n_steps is None else n_steps
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=experiment.learning_rate,
        momentum=experiment.momentum,
        weight_decay=experiment.weight_decay,
    )
    scheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, n_steps))
        if experiment.schedule == "cosine"
        else None
    )
    losses = torch.zeros(n_steps, device=device)
    scaler = torch.amp.GradScaler(device.type, enabled=compute.dtype == torch.float16)

    def step(index: torch.Tensor, n: int) -> torch.Tensor:
        index = index[:n]
        x, y = images[index], masks[index.to(masks.device)]
        if annotated is not None:
            y = torch.cat([y, annotated[index.to(annotated.device)].to(y.device)], 1)
        x, y = augment(to_device(x, device), to_device(y, device), experiment, generator)
        y, known = y[:, :1], None if annotated is None else y[:, 1:]
        with compute.autocast():
            logits = model(x.contiguous(memory_format=compute.layout))
        loss = segmentation_loss(logits.float(), y.float(), experiment.loss, known)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    batches = _shuffled_batches(len(images), experiment.batch_size, n_steps, generator)
    with (
        seeded(generator, device),
        deterministic_algorithms(experiment),
        progress_bar("training", n_steps, "step", shown=progress) as bar,
    ):
        for number, index in enumerate(batches, 1):
            scale = math.inf
            while scaler.get_scale() < scale:  # at first; then where the scaler left the step out
                scale = scaler.get_scale()
                if scale < _LEAST_SCALE:
                    what = f"the gradients were too large for float16 at step {number} of {n_steps}"
                    raise _diverged(what, experiment)
                losses[number - 1] = within_memory(partial(step, index), len(index), "batch_size", device)
            if scheduler:
                scheduler.step()
            bar.update()
            # Looking at the loss waits for the device: once per epoch (in float16 the scaler waits at each step)
            if number % batches_an_epoch == 0 or number == n_steps:
                epoch = losses[:number][-batches_an_epoch:].mean().item()
                bar.set_postfix(loss=f"{epoch:.3f}")
                if not math.isfinite(epoch):
                    raise _diverged(
                        f"the loss was {epoch} in the epoch that ended at step {number} of {n_steps}", experiment
                    )
    if not torch.stack([tensor.isfinite().all() for tensor in model.state_dict().values()]).all():
        raise _diverged(f"the weights were not finite after step {n_steps}", experiment)
    return losses.cpu()


def _diverged(what: str, experiment: Experiment) -> TrainingDiverged:
    remedy = f"a learning_rate below {experiment.learning_rate} or precision=float32 may help"
    return TrainingDiverged(f"{what}; {remedy}")


def segmentation_loss(
    logits: torch.Tensor, masks: torch.Tensor, kind: str = "bce", known: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean loss of a batch: binary cross-entropy of the pixels, soft Dice of the batch, or half of each.

    Args:
        logits: float (N, 1, H, W).
        masks: float (N, 1, H, W), 0 and 1.
        kind: "bce", "dice" or "bce+dice".
        known: uint8 or bool (N, 1, H, W), the pixels that count; None: all. Where none counts the loss is 0.

    >>> segmentation_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item()
    0.693...
    """
    if kind == "bce":
        return _cross_entropy(logits, masks, known)
    ignored = -1  # a label that no pixel has
    labels = masks if known is None else masks.masked_fill(known == 0, ignored)
    dice = DiceLoss(BINARY_MODE, from_logits=True, ignore_index=ignored)(logits, labels)
    return dice if kind == "dice" else (_cross_entropy(logits, masks, known) + dice) / 2


def _cross_entropy(logits: torch.Tensor, masks: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    if known is None:
        return F.binary_cross_entropy_with_logits(logits, masks)
    total = F.binary_cross_entropy_with_logits(logits, masks, weight=known.float(), reduction="sum")
    return total / known.sum().clamp(min=1)


def probability_batches(
    model: nn.Module,
    images: torch.Tensor | ImageView,
    experiment: Experiment,
    *,
    indices: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Lesion probabilities of all images, batch by batch, so that no more than one batch of maps is held.

    The model is in evaluation mode and there is no augmentation.

    Args:
        model: on the device where the prediction is to run.
        images: uint8, (N, 3, H, W); where they are on another device, each batch is copied.
        experiment: normalization and precision, and the batch size where none is given.
        indices: int64 (n,), positions of the images to predict; each batch gathers its own. None: all.
        batch_size: images at a time; None: twice the training's.

    Yields:
        Which images (of those at ``indices``), and their probabilities: float32 (n, 1, H, W), 0 to 1, on the model's
        device.

    Raises:
        OutOfMemory: if the device cannot hold a batch; the message names a batch size that fits.
        ValueError: if ``indices`` are not positions in ``images``.
        ConfigError: if the experiment is to be ``deterministic``, and cannot be so on the model's device.
    """
    images = images_at(images, indices)
    compute = prepare(model.eval(), experiment)
    batch_size = batch_size or 2 * experiment.batch_size

    def predict(start: int, n: int) -> torch.Tensor:
        with torch.inference_mode(), compute.autocast(), deterministic_algorithms(experiment):
            x = normalize(to_device(images[start : start + n], compute.device), experiment)
            logits = model(x.contiguous(memory_format=compute.layout))
        return logits.float().sigmoid()

    for start in range(0, len(images), batch_size):
        chosen = slice(start, min(start + batch_size, len(images)))
        setting = "batch_size (a prediction takes twice as many)"
        yield chosen, within_memory(partial(predict, start), chosen.stop - start, setting, compute.device)


def predict_probabilities(
    model: nn.Module,
    images: torch.Tensor | ImageView,
    experiment: Experiment,
    *,
    indices: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Lesion probabilities of all images at once; arguments and errors as :func:`probability_batches`.

    Returns:
        float32 (N, 1, H, W), 0 to 1, on the model's device.

    >>> from alutils.model import build_unet
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> predict_probabilities(model, torch.zeros(3, 3, 64, 64, dtype=torch.uint8), Experiment()).shape
    torch.Size([3, 1, 64, 64])
    """
    images = images_at(images, indices)
    what, remedy = f"images: the maps of {len(images)} images", "take them batch by batch, from probability_batches"
    with memory_for(what, remedy, next(model.parameters()).device):
        maps = [p for _, p in probability_batches(model, images, experiment, batch_size=batch_size)]
        return torch.cat(maps) if maps else torch.zeros(0, 1, *images.shape[2:])


def leaves_one_pixel(n: int, image_size: int, batch_size: int) -> bool:
    """Whether ``n`` images leave a batch of one, a single pixel at the bottleneck, which batch norm cannot train on.

    >>> leaves_one_pixel(9, 32, batch_size=4), leaves_one_pixel(9, 64, batch_size=4)
    (True, False)
    """
    return image_size == 32 and 1 in (n % batch_size, batch_size)


def _check_training_set(
    images: ImageView,
    masks: torch.Tensor | PackedMasks,
    annotated: torch.Tensor | PackedMasks | None,
    experiment: Experiment,
) -> None:
    if len(images) == 0:
        raise ValueError("there are no images to train on")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    expected = (len(images), 1, *images.shape[2:])
    for name, planes in {"masks": masks, "annotated": annotated}.items():
        if planes is not None and (planes.dtype != torch.uint8 or planes.shape != expected):
            raise ValueError(f"{name} must be uint8 of shape {expected}, got {planes.dtype} {tuple(planes.shape)}")
        if isinstance(planes, torch.Tensor):
            check_mask(name, planes)
    if images.shape[2] % 32 or images.shape[3] % 32:
        raise ValueError(f"height and width must be multiples of 32 for the U-Net, got {tuple(images.shape[2:])}")
    if leaves_one_pixel(len(images), max(images.shape[2:]), experiment.batch_size):
        raise ValueError(
            f"{len(images)} images of 32 x 32 in batches of {experiment.batch_size} leave a batch of one image, whose "
            "bottleneck is a single pixel that batch norm cannot use; choose another batch_size or image_size"
        )


def _shuffled_batches(n: int, batch_size: int, n_steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """``n_steps`` batches of indices: one shuffled pass over 0..n-1 after the other."""
    done = 0
    while done < n_steps:
        batches = torch.randperm(n, generator=generator).split(batch_size)[: n_steps - done]
        yield from batches
        done += len(batches)
