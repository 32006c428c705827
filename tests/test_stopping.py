"""Dice without a mask, and the rule that stops on it."""

import numpy as np
import pytest
import torch

from alutils.metrics import dice_score, predicted_dice
from alutils.report.stopping import stopping_round


def test_predicted_dice_is_dice_where_the_model_is_sure_and_the_expected_ratio_where_it_is_not():
    masks = (torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    assert torch.equal(predicted_dice(masks), dice_score(masks, masks.to(torch.uint8)))
    p = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)
    drawn = [dice_score(p, torch.from_numpy(rng.random(p.shape) < p.numpy()).to(torch.uint8)) for _ in range(200)]
    torch.testing.assert_close(predicted_dice(p), torch.stack(drawn).mean(0), rtol=0.01, atol=0)
    assert predicted_dice(torch.zeros(1, 1, 8, 8)).item() == 1


@pytest.mark.parametrize(
    ("values", "patience", "at"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, None),
        ([0.1, 0.2, 0.2, 0.4], 1, 2),
        ([0.5, 0.4, 0.6, 0.6, 0.6, 0.6], 3, 5),
        ([0.5, 0.504, 0.508, 0.512], 3, 3),  # each step is below the gain
        ([], 3, None),
    ],
)
def test_the_rule_stops_after_patience_rounds_without_progress(values, patience, at):
    assert stopping_round(values, patience=patience) == at


def test_how_much_counts_as_progress_can_be_set():
    assert stopping_round([0.5, 0.504, 0.508, 0.512], gain=0.003) is None
