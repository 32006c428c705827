"""Strategies that sum up a map of the model's probabilities (eq. 1 and 2, section III-A)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.queries.registry import strategy
from alutils.training import probability_batches
from alutils.uncertainty import binary_entropy, image_score, least_confidence, one_sided_entropy


@strategy("least_confidence")
def score_least_confidence(
    model: nn.Module, images: torch.Tensor, experiment: Experiment, generator: torch.Generator
) -> torch.Tensor:
    """Minus the image's eq. 1, ``|0.5 - p|``: the smallest sum is the least confident image, so it is queried first."""
    return -_map_scores(model, images, experiment, least_confidence, small_is_unsure=True)


@strategy("entropy")
def score_entropy(
    model: nn.Module, images: torch.Tensor, experiment: Experiment, generator: torch.Generator
) -> torch.Tensor:
    """The image's eq. 2, the one-sided ``-p log2 p``: the largest sum first."""
    return _map_scores(model, images, experiment, one_sided_entropy)


@strategy("binary_entropy")
def score_binary_entropy(
    model: nn.Module, images: torch.Tensor, experiment: Experiment, generator: torch.Generator
) -> torch.Tensor:
    """The image's usual entropy, of lesion or background: the largest sum first."""
    return _map_scores(model, images, experiment, binary_entropy)


def _map_scores(
    model: nn.Module,
    images: torch.Tensor,
    experiment: Experiment,
    pixel_map: Callable[[torch.Tensor], torch.Tensor],
    **options: bool,
) -> torch.Tensor:
    """Each image's score by ``pixel_map``; one batch of maps is held, and the scores are fetched once, at the end."""
    options |= {"reduction": experiment.reduction, "tau_u": experiment.tau_u}
    batches = probability_batches(model, images, experiment)
    return torch.cat([image_score(pixel_map(p), probabilities=p, **options) for _, p in batches]).cpu()
