"""When to stop asking: a rule that needs no true mask."""

from __future__ import annotations

from collections.abc import Sequence


def stopping_round(predicted_dice: Sequence[float], *, patience: int = 3, gain: float = 0.005) -> int | None:
    """The first round that ends ``patience`` rounds without progress, or None.

    A round makes progress if its Dice, as the model predicts it (:func:`alutils.metrics.predicted_dice`), is more than
    ``gain`` above the best of all rounds before. The rule and its values are ours.

    Args:
        predicted_dice: one per round, 0 to 1, from round 0.
        patience: rounds, at least 1.
        gain: 0 to 1.

    >>> stopping_round([0.5, 0.7, 0.8, 0.803, 0.801, 0.802, 0.9])
    5
    """
    best, last = float("-inf"), 0
    for number, value in enumerate(predicted_dice):
        if value > best + gain:
            last = number
        best = max(best, value)
        if number - last >= patience:
            return number
    return None
