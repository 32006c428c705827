"""How good a segmentation is: eq. 4 of the paper."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch

from alutils.config import listed


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether ``value`` is one number; True and False are not.

    >>> is_number(0.5), is_number(0.5, whole=True), is_number("0.5"), is_number(True)
    (True, False, False, False)
    """
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def check_planes(**planes: torch.Tensor) -> None:
    """Refuse what are not tensors of one shape with one value a pixel.

    Args:
        **planes: by name, each (N, 1, H, W).

    Raises:
        ValueError: if one is no tensor, or the shapes differ or are others.

    >>> check_planes(predicted=torch.zeros(2, 1, 4, 4), truth=torch.zeros(2, 4, 4))
    Traceback (most recent call last):
    ValueError: predicted has shape (2, 1, 4, 4) and truth (2, 4, 4); they must agree
    """
    for name, plane in planes.items():
        if not isinstance(plane, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(plane).__name__}; torch.as_tensor makes one")
    (name, first), *others = ((name, tuple(plane.shape)) for name, plane in planes.items())
    for other, shape in others:
        if shape != first:
            raise ValueError(f"{name} has shape {first} and {other} {shape}; they must agree")
    if len(first) != 4 or first[1] != 1:
        raise ValueError(f"{name} must be of shape (N, 1, H, W), got {first}")


def check_mask(name: str, mask: torch.Tensor) -> None:
    """Refuse a mask with other values than 0 and 1; on an accelerator this waits for the device.

    Args:
        name: what to call it.
        mask: any type and shape.

    Raises:
        ValueError: naming the values found, and how to make 0 and 1 of 0 and 255.

    >>> check_mask("truth", torch.tensor([0, 255]))
    Traceback (most recent call last):
    ValueError: truth must be of 0 and 1, got 255: (truth > 127).to(torch.uint8) makes a mask of 0 and 255 one
    """
    if not mask.numel() or mask.dtype == torch.bool:
        return
    if mask.max() <= 1 if mask.dtype == torch.uint8 else ((mask == 0) | (mask == 1)).all():  # the first needs no copy
        return
    other = sorted({value for part in mask.flatten().split(1 << 20) for value in part.unique().tolist()} - {0, 1})
    raise ValueError(
        f"{name} must be of 0 and 1, got {listed(f'{value:g}' for value in other)}: "
        f"({name} > 127).to(torch.uint8) makes a mask of 0 and 255 one"
    )


def check_probabilities(probabilities: torch.Tensor) -> None:
    """Refuse what is not a probability; on an accelerator this waits for the device.

    Args:
        probabilities: any shape.

    Raises:
        ValueError: if one is not a number from 0 to 1.

    >>> check_probabilities(torch.tensor([0.0, 1.5]))
    Traceback (most recent call last):
    ValueError: probabilities must be from 0 to 1, got 0.0 to 1.5: ...
    """
    if not probabilities.numel():
        return
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
        truth: masks, 0 on the background and above 0 on the lesion, the same shape.
        threshold: a pixel is predicted to be lesion where ``predicted >= threshold``, 0 to 1.

    Returns:
        float32 (N,), 0 (disjoint) to 1 (equal). Where neither mask has a lesion pixel, eq. 4 is 0/0: they agree, so 1.

    Raises:
        ValueError: if the shapes differ or are others, a probability is not a number from 0 to 1, or the threshold.

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
