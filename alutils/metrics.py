"""How good a segmentation is: eq. 4 of the paper."""

from __future__ import annotations

import numpy as np
import torch

from alutils.system.tensors import check_planes, check_probabilities, is_number

ISIC_2018 = 0.65
"""The Jaccard below which ISIC 2018 Task 1 counted an image as 0 in its ranking."""


def dice_score(predicted: torch.Tensor, truth: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Dice similarity of each image, eq. 4: ``2 |G ∩ A| / (|G| + |A|)``, G the true lesion and A the predicted one.

    Args:
        predicted: lesion probabilities (float, 0 to 1) or masks (0 and 1), shape (N, 1, H, W).
        truth: masks, 0 on the background and above 0 on the lesion, the same shape.
        threshold: a pixel is predicted to be lesion where ``predicted >= threshold``, 0 to 1.

    Returns:
        float32 (N,), 0 (disjoint) to 1 (equal). Where neither mask has a lesion pixel, eq. 4 is 0/0: they agree, so 1.

    Raises:
        ValueError: if the shapes differ or are not (N, 1, H, W), or a probability or the threshold is not from 0 to 1.

    >>> import torch
    >>> truth = torch.tensor([1, 1, 0, 0]).view(1, 1, 2, 2)
    >>> dice_score(torch.tensor([0.9, 0.2, 0.6, 0.1]).view(1, 1, 2, 2), truth).item()
    0.5
    """
    check_planes(predicted=predicted, truth=truth)
    if not is_number(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be from 0 to 1, got {threshold!r}")
    if predicted.is_floating_point():
        check_probabilities(predicted)
    a = (predicted >= threshold).flatten(1)
    g = (truth > 0).flatten(1)
    overlap = (a & g).sum(1)
    total = a.sum(1) + g.sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1.0).float()


def jaccard_score(dice: torch.Tensor, *, threshold: float = 0.0) -> torch.Tensor:
    """Jaccard of each image, ``|G ∩ A| / |G ∪ A|``, from its Dice D: ``D / (2 - D)``.

    An image below ``threshold`` counts as 0, as in the ranking of ISIC 2018 Task 1 (:data:`ISIC_2018`).

    >>> import torch
    >>> dice = torch.tensor([1.0, 0.75, 0.0])
    >>> jaccard_score(dice).tolist(), jaccard_score(dice, threshold=ISIC_2018).tolist()
    ([1.0, 0.6000000238418579, 0.0], [1.0, 0.0, 0.0])
    """
    jaccard = dice / (2 - dice)
    return torch.where(jaccard >= threshold, jaccard, 0.0)


def mean_height(n_labelled: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """The mean height of learning curves: the area under ``dice`` over ``n_labelled``, divided by the curves' width.

    ``dice`` is (rounds, ...) and ``n_labelled`` (rounds,); the result is (...), NaN for a single round.

    >>> mean_height(np.array([0, 1, 3]), np.array([0.0, 0.5, 1.0])).item()
    0.5833333333333334
    """
    if len(n_labelled) == 1:
        return np.full(dice.shape[1:], np.nan)
    return np.trapezoid(dice, n_labelled, axis=0) / (n_labelled[-1] - n_labelled[0])


def predicted_dice(probabilities: torch.Tensor) -> torch.Tensor:
    """Dice of each image as the model expects it, without a mask: ``2 sum(p a) / sum(p + a)``, a = 1 where p >= 0.5.

    It is eq. 4 with the truth replaced by its expectation p, so it is as good as the probabilities are calibrated.

    Args:
        probabilities: of the lesion, float (N, 1, H, W), 0 to 1.

    Returns:
        float32 (N,), 0 to 1; 1 where all probabilities are 0.

    >>> import torch
    >>> predicted_dice(torch.tensor([[[[1.0, 0.0]]], [[[0.5, 0.5]]]])).tolist()
    [1.0, 0.6666666865348816]
    """
    p = probabilities.flatten(1).float()
    a = (p >= 0.5).float()
    total = (p + a).sum(1)
    return torch.where(total > 0, 2 * (p * a).sum(1) / total.clamp(min=1e-12), 1.0)
