"""Strategies that sum up a map of the model's probabilities (eq. 1 and 2, section III-A)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from alutils.queries.registry import strategy
from alutils.queries.view import View
from alutils.uncertainty import binary_entropy, image_score, least_confidence, one_sided_entropy


def _least(view: View) -> float:
    """Minus the sum, or the mean, of eq. 1 where the model is sure of every pixel."""
    return -0.5 * (view.images.shape[2:].numel() if view.experiment.reduction == "sum" else 1)


@strategy("least_confidence", least=_least)
def score_least_confidence(view: View) -> torch.Tensor:
    """Minus the image's eq. 1, ``|0.5 - p|``: the smallest sum is the least confident image, so it is queried first."""
    return -_map_scores(view, least_confidence, small_is_unsure=True)


@strategy("entropy")
def score_entropy(view: View) -> torch.Tensor:
    """The image's eq. 2, the one-sided ``-p log2 p``: the largest sum first."""
    return _map_scores(view, one_sided_entropy)


@strategy("binary_entropy")
def score_binary_entropy(view: View) -> torch.Tensor:
    """The image's usual entropy, of lesion or background: the largest sum first."""
    return _map_scores(view, binary_entropy)


def _map_scores(view: View, pixel_map: Callable[[torch.Tensor], torch.Tensor], **options: bool) -> torch.Tensor:
    """Each image's score by ``pixel_map``; one batch of maps is held, and the scores are fetched once, at the end."""
    options |= {"reduction": view.experiment.reduction, "tau_u": view.experiment.tau_u}
    return torch.cat([image_score(pixel_map(p), probabilities=p, **options) for _, p in view.probabilities()]).cpu()
