"""How good a segmentation is: eq. 4 of the paper."""

from __future__ import annotations

import torch


def check_probabilities(probabilities: torch.Tensor) -> None:
    """Refuse what is not a probability; on an accelerator this waits for the device.

    Args:
        probabilities: any shape, at least one.

    Raises:
        ValueError: if one is not a number from 0 to 1.

    >>> check_probabilities(torch.tensor([0.0, 1.5]))
    Traceback (most recent call last):
    ValueError: probabilities must be from 0 to 1, got 0.0 to 1.5: ...
    """
    low, high = (value.item() for value in probabilities.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"probabilities must be from 0 to 1, got {low} to {high}: logits need a sigmoid first, "
            "and NaN comes from a model that has diverged"
        )


def dice_score(predicted: torch.Tensor, truth: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Dice similarity of each image, eq. 4: ``2 |G ∩ A| / (|G| + |A|)``, G the true lesion and A the predicted one.

    Args:
        predicted: lesion probabilities (float, 0 to 1) or masks (0 and 1), shape (N, 1, H, W).
        truth: masks of 0 and 1, the same shape.
        threshold: a pixel is predicted to be lesion where ``predicted >= threshold``.

    Returns:
        float32 (N,), 0 (disjoint) to 1 (equal). Where neither mask has a lesion pixel, eq. 4 is 0/0: they agree, so 1.

    Raises:
        ValueError: if the shapes differ or a probability is not a number.

    >>> import torch
    >>> truth = torch.tensor([1, 1, 0, 0]).view(1, 1, 2, 2)
    >>> dice_score(torch.tensor([0.9, 0.2, 0.6, 0.1]).view(1, 1, 2, 2), truth).item()
    0.5
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"predicted has shape {tuple(predicted.shape)} and truth {tuple(truth.shape)}; they must agree"
        )
    if predicted.is_floating_point() and predicted.isnan().any():
        raise ValueError("predicted holds NaN: the model has diverged, and its masks mean nothing")
    a = (predicted >= threshold).flatten(1)
    g = (truth > 0).flatten(1)
    overlap = (a & g).sum(1)
    total = a.sum(1) + g.sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1.0).float()
