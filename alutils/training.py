"""Training on a labelled set, and prediction (section IV-D; steps 4 and 5 of Fig. 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import BINARY_MODE, DiceLoss
from torch import nn

from alutils.augment import augment, normalize
from alutils.data.packed import PackedMasks
from alutils.data.splits import ImageView, images_at
from alutils.experiment import Computing, Training
from alutils.system.checks import ConfigError
from alutils.system.device import (
    batches_within_memory,
    deterministic_algorithms,
    memory_for,
    set_up_model,
    to_device,
    within_memory,
)
from alutils.system.progress import progress_bar
from alutils.system.seeding import make_generator, seeded
from alutils.system.tensors import check_mask

_Masks = torch.Tensor | PackedMasks
_LEAST_SCALE = 1.0  # of the loss in float16: below it, even unscaled gradients are too large for float16


class TrainingDiverged(RuntimeError):
    """The loss, the weights or predictions are not numbers any more; the message says where and what to try."""


def fit(  # 9 parameters: the labelled set, how to train on it, and what is not the experiment's
    model: nn.Module,
    images: torch.Tensor,
    masks: _Masks,
    experiment: Training,
    generator: torch.Generator,
    *,
    indices: torch.Tensor | None = None,
    annotated: _Masks | None = None,
    n_steps: int | None = None,
    progress: bool = True,
) -> torch.Tensor:
    """Train ``model`` in place with a new SGD optimizer (section IV-D): batches of shuffled, augmented images.

    Some networks cannot train on a last batch of one image (:func:`needs_company`); the image before then joins it.

    Args:
        model: from :func:`alutils.build_unet`, on the device where it is to be trained.
        images: uint8, (N, 3, H, W); where they are on another device, each batch is copied.
        masks: uint8, (N, 1, H, W), 0 and 1, or packed; with ``indices`` (n, 1, H, W), in their order.
        experiment: batch size, epochs, optimizer, loss, augmentation and precision.
        generator: of the CPU; it draws the batches, the augmentation and the seed of the dropout.
        indices: int64 (n,), positions of the labelled set in ``images``; by default all.
        annotated: like ``masks``, 1 where the mask is known. The loss ignores other pixels, and those that a rotation
            brings in from outside the picture. By default all is known, and outside is background.
        n_steps: optimizer steps; by default ``experiment.epochs`` passes over the images.
        progress: show a progress bar.

    Returns:
        The loss of each step, float32 (n_steps,), on the CPU.

    Raises:
        ValueError: if there are no images, or they, ``indices``, masks and ``annotated`` do not fit together.
        TrainingDiverged: if the loss (looked at after each epoch) or, at the end, a weight is not finite, or gradients
            are too large for float16.
        ConfigError: if torch cannot do what is computed with ``deterministic`` algorithms, or there is one image alone,
            or a ``batch_size`` of 1, and the network cannot train on that.
        OutOfMemory: naming a batch size that fits on the device; ``model`` is then partly trained.

    >>> images, masks = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    >>> fit(nn.Conv2d(3, 1, 1), images, masks, Training(), torch.Generator(), n_steps=6, progress=False).shape
    torch.Size([6])
    """
    images = images_at(images, torch.arange(len(images)) if indices is None else indices)
    _check_training_set(images, masks, annotated)
    steps_per_epoch = math.ceil(len(images) / experiment.batch_size)
    n_steps = experiment.epochs * steps_per_epoch if n_steps is None else n_steps
    trainer = _Trainer(model.train(), images, masks, annotated, experiment, generator, n_steps)
    return trainer.run(steps_per_epoch, progress)


@dataclass(eq=False)
class _Trainer:
    """One training: its labelled set, the optimizer with its schedule, and the scaler of the loss for float16."""

    model: nn.Module
    images: ImageView
    masks: _Masks
    annotated: _Masks | None
    training: Training
    generator: torch.Generator
    n_steps: int

    def __post_init__(self) -> None:
        training = self.training
        self.compute = set_up_model(self.model, training.precision, compile=training.compile)
        rates = {"lr": training.learning_rate, "momentum": training.momentum, "weight_decay": training.weight_decay}
        self.optimizer = torch.optim.SGD(self.model.parameters(), **rates)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        self.scheduler = cosine(self.optimizer, max(1, self.n_steps)) if training.schedule == "cosine" else None
        half = self.compute.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.compute.device.type, enabled=half)

    def run(self, steps_per_epoch: int, progress: bool) -> torch.Tensor:
        n_steps, device = self.n_steps, self.compute.device
        losses = torch.zeros(n_steps, device=device)
        n, size = len(self.images), self.training.batch_size
        together = needs_company(self.model, n, size, max(self.images.shape[2:]))
        batches = _shuffled_batches(n, size, n_steps, self.generator, together)
        with (
            seeded(self.generator, device),
            deterministic_algorithms(self.training.deterministic),
            progress_bar("training", n_steps, "step", shown=progress) as bar,
        ):
            for number, index in enumerate(batches, 1):
                losses[number - 1] = self._step(index, f"step {number} of {n_steps}")
                bar.update()
                if number % steps_per_epoch == 0 or number == n_steps:  # looking at a loss waits for the device
                    epoch = losses[:number][-steps_per_epoch:].mean().item()
                    bar.set_postfix(loss=f"{epoch:.3f}")
                    self._check(math.isfinite(epoch), f"the loss was {epoch} in the epoch that ended at step {number}")
        finite = torch.stack([tensor.isfinite().all() for tensor in self.model.state_dict().values()]).all()
        self._check(bool(finite), f"the weights were not finite after step {n_steps}")
        return losses.cpu()

    def _step(self, index: torch.Tensor, where: str) -> torch.Tensor:
        """Take a step on the images at ``index``; again where the scaler skipped it, for a gradient beyond float16."""
        scale = math.inf
        while self.scaler.get_scale() < scale:
            scale = self.scaler.get_scale()
            self._check(scale >= _LEAST_SCALE, f"the gradients were too large for float16 at {where}")
            loss = within_memory(partial(self._attempt, index), len(index), "batch_size", self.compute.device)
        if self.scheduler:
            self.scheduler.step()
        return loss

    def _attempt(self, index: torch.Tensor, n: int) -> torch.Tensor:
        index, device = index[:n], self.compute.device
        x, y = self.images[index], self.masks[index.to(self.masks.device)]
        if self.annotated is not None:
            y = torch.cat([y, self.annotated[index.to(self.annotated.device)].to(y.device)], 1)
        x, y = augment(to_device(x, device), to_device(y, device), self.training, self.generator)
        y, known = y[:, :1], None if self.annotated is None else y[:, 1:]
        with self.compute.autocast():
            logits = self.model(x.contiguous(memory_format=self.compute.layout))
            mirrored = self.model(x.flip(-1)).flip(-1) if self.training.consistency else logits
        loss = segmentation_loss(logits.float(), y.float(), self.training.loss, known)
        if self.training.consistency:  # [15]
            difference = logits.float().sigmoid() - mirrored.float().sigmoid()
            loss = loss + self.training.consistency * (difference**2).mean()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _check(self, healthy: bool, what: str) -> None:
        if not healthy:
            raise diverged(what, self.training)


def diverged(what: str, training: Training) -> TrainingDiverged:
    """The error that says ``what`` went wrong in a training with these settings, and what to try."""
    return TrainingDiverged(f"{what}; a learning_rate below {training.learning_rate} or precision=float32 may help")


def segmentation_loss(
    logits: torch.Tensor, masks: torch.Tensor, kind: str = "bce", known: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean loss of a batch: binary cross-entropy of the pixels, soft Dice of the batch, or half of each.

    Args:
        logits, masks: float (N, 1, H, W), the masks 0 and 1.
        kind: "bce", "dice" or "bce+dice".
        known: uint8 or bool (N, 1, H, W), the pixels that count; by default all. Where none counts, the loss is 0.

    >>> segmentation_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item()
    0.693...
    """
    if kind == "bce":
        return _cross_entropy(logits, masks, known)
    if kind not in ("dice", "bce+dice"):
        raise ConfigError(f"loss: there is no '{kind}'; the valid ones are bce, dice and bce+dice")
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
    experiment: Computing,
    *,
    indices: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Lesion probabilities, batch by batch, so that only one batch of maps is held; the model is in evaluation mode.

    Args:
        model: on the device where the prediction is to run.
        images: uint8, (N, 3, H, W); where they are on another device, each batch is copied.
        experiment: normalization, precision and batch size.
        indices: int64 (n,), positions of the images to predict; by default all.
        batch_size: images at a time; by default twice the training's.

    Yields:
        Which images (of those at ``indices``), and their probabilities: float32 (n, 1, H, W), on the model's device.

    Raises:
        OutOfMemory: naming a batch size that fits on the device.
        ValueError, ConfigError: if ``indices`` or ``deterministic`` cannot be used, as in :func:`fit`.
    """
    for chosen, logits in batch_results(model, model, images_at(images, indices), experiment, batch_size=batch_size):
        yield chosen, logits.float().sigmoid()


def batch_results(
    function: Callable[[torch.Tensor], Any],
    model: nn.Module,
    images: torch.Tensor | ImageView,
    computing: Computing,
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[slice, Any]]:
    """What ``function`` makes of the normalized images, batch by batch, with ``model`` in evaluation mode.

    Other arguments and errors are those of :func:`probability_batches`.

    Args:
        function: of normalized images (n, 3, H, W) on the model's device; it calls the model or parts of it.
    """
    compute = set_up_model(model.eval(), computing.precision, compile=computing.compile)
    batch_size = 2 * computing.batch_size if batch_size is None else batch_size

    def work(start: int, n: int) -> Any:
        with torch.inference_mode(), compute.autocast(), deterministic_algorithms(computing.deterministic):
            x = normalize(to_device(images[start : start + n], compute.device), computing)
            return function(x.contiguous(memory_format=compute.layout))

    setting = "batch_size (a prediction takes twice as many)"
    yield from batches_within_memory(work, len(images), batch_size, setting, compute.device)


def predict_probabilities(
    model: nn.Module,
    images: torch.Tensor | ImageView,
    experiment: Computing,
    *,
    indices: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Lesion probabilities of all images at once, float32 (N, 1, H, W), 0 to 1, on the model's device.

    Arguments and errors are those of :func:`probability_batches`.

    >>> model = nn.Conv2d(3, 1, 1)  # any network from images to logits
    >>> predict_probabilities(model, torch.zeros(3, 3, 64, 64, dtype=torch.uint8), Computing()).shape
    torch.Size([3, 1, 64, 64])
    """
    images = images_at(images, indices)
    maps = (p for _, p in probability_batches(model, images, experiment, batch_size=batch_size))
    return all_at_once(maps, model, images, "probability_batches")


def all_at_once(
    maps: Iterator[torch.Tensor], model: nn.Module, images: torch.Tensor | ImageView, by_batch: str
) -> torch.Tensor:
    """The maps of all images, (N, 1, H, W); OutOfMemory if they do not fit, with what makes them ``by_batch``."""
    device = next(model.parameters()).device
    with memory_for(f"images: the maps of {len(images)} images", f"take them batch by batch, from {by_batch}", device):
        found = list(maps)
        return torch.cat(found) if found else torch.zeros(0, 1, *images.shape[2:], device=device)


def needs_company(model: nn.Module, n: int, batch_size: int, image_size: int) -> bool:
    """Whether ``n`` images leave a batch of one on which ``model`` cannot train; ConfigError if no image can join it.

    >>> needs_company(nn.BatchNorm2d(3), 9, 4, image_size=1), needs_company(nn.BatchNorm2d(3), 9, 4, image_size=2)
    (True, False)
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms or 1 not in (n % batch_size, batch_size):
        return False
    device, trial = next(model.parameters()).device, copy.deepcopy(model).train()
    try:
        with torch.no_grad(), seeded(make_generator(0), device):
            trial.forward(torch.zeros(1, 3, image_size, image_size, device=device))
    except ValueError as error:  # torch's for "more than 1 value per channel"
        if 1 in (n, batch_size):
            raise ConfigError(
                f"batch_size, cold_start: a {type(model).__name__} cannot train on one image of {image_size} x "
                f"{image_size} alone ({error}); take at least 2, or larger images"
            ) from None
        return True
    return False


def _check_training_set(images: ImageView, masks: _Masks, annotated: _Masks | None) -> None:
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


def _shuffled_batches(
    n: int, size: int, n_steps: int, generator: torch.Generator, together: bool = False
) -> Iterator[torch.Tensor]:
    """``n_steps`` batches of indices: shuffled passes over 0..n-1; ``together``: the last two of each share a batch."""
    done = 0
    while done < n_steps:
        order = torch.randperm(n, generator=generator)
        batches = list(order.split(size))
        if together:
            batches[-1] = order[-2:]
        yield from batches[: n_steps - done]
        done += len(batches)
