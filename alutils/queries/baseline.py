"""The strategy to compare with: random selection."""

from __future__ import annotations

import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.queries.registry import strategy


@strategy("random")
def score_at_random(
    model: nn.Module, images: torch.Tensor, experiment: Experiment, generator: torch.Generator
) -> torch.Tensor:
    """Uniform random numbers from 0 to 1: the paper's baseline."""
    return torch.rand(len(images), generator=generator)
