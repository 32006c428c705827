"""The strategy to compare with: random selection."""

from __future__ import annotations

import torch

from alutils.queries.registry import strategy
from alutils.queries.view import View


@strategy("random")
def score_at_random(view: View) -> torch.Tensor:
    """Uniform random numbers from 0 to 1: the paper's baseline."""
    return torch.rand(len(view), generator=view.generator)
