"""Strategies that sum up how several predictions of one image differ (eq. 3, section III-A)."""

from __future__ import annotations

import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.queries.registry import strategy
from alutils.samples import mc_dropout_batches
from alutils.uncertainty import image_score


@strategy("mc_dropout", needs_dropout=True)
def score_mc_dropout(
    model: nn.Module, images: torch.Tensor, experiment: Experiment, generator: torch.Generator
) -> torch.Tensor:
    """The image's eq. 3, the standard deviation of predictions with dropout: the largest sum first."""
    return _map_scores(model, images, experiment, generator, "std")


@strategy("bald", needs_dropout=True)
def score_bald(
    model: nn.Module, images: torch.Tensor, experiment: Experiment, generator: torch.Generator
) -> torch.Tensor:
    """The image's mutual information between prediction and weights, by dropout: the largest sum first."""
    return _map_scores(model, images, experiment, generator, "mutual_information")


def _map_scores(
    model: nn.Module, images: torch.Tensor, experiment: Experiment, generator: torch.Generator, name: str
) -> torch.Tensor:
    """Each image's score by the map of :class:`alutils.samples.DropoutMaps` that is called ``name``."""
    reduction, tau_u = experiment.reduction, experiment.tau_u
    batches = mc_dropout_batches(model, images, experiment, generator)
    scores = [image_score(getattr(m, name), reduction, probabilities=m.mean, tau_u=tau_u) for _, m in batches]
    return torch.cat(scores).cpu()
