"""A positive control, impossible in practice: it queries by the masks of the pool."""

from __future__ import annotations

import torch

from alutils.metrics import dice_score
from alutils.queries.registry import strategy
from alutils.queries.view import View


@strategy("lowest_dice", sees_masks=True)
def score_lowest_dice(view: View) -> torch.Tensor:
    """One minus the true Dice (eq. 4) of the model's prediction: it cheats, and asks for the worst predicted images.

    If this does not beat random selection, the set-up cannot show that a better selection helps.
    """
    return torch.cat([1 - dice_score(p, view.masks[chosen].to(p.device)).cpu() for chosen, p in view.probabilities()])
