"""Whether numbers and tensors are what a function needs."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch

from alutils.system.checks import listed


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether ``value`` is a number; True and False are not."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def check_tensor(name: str, value: object) -> None:
    """Refuse by a ValueError what is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}; torch.as_tensor makes one")


def check_planes(**planes: torch.Tensor) -> None:
    """Refuse by a ValueError anything but tensors of one shape, (N, 1, H, W), given by name."""
    for name, plane in planes.items():
        check_tensor(name, plane)
    (name, first), *others = ((name, tuple(plane.shape)) for name, plane in planes.items())
    for other, shape in others:
        if shape != first:
            raise ValueError(f"{name} has shape {first} and {other} {shape}; they must agree")
    if len(first) != 4 or first[1] != 1:
        raise ValueError(f"{name} must be of shape (N, 1, H, W), got {first}")


def check_mask(name: str, mask: torch.Tensor) -> None:
    """Refuse by a ValueError a mask with other values than 0 and 1; on a GPU this waits for the device.

    >>> check_mask("truth", torch.tensor([0, 255]))
    Traceback (most recent call last):
    ValueError: truth must hold 0 and 1 only, got 255: (truth > 127).to(torch.uint8) turns 0 and 255 into 0 and 1
    """
    if not mask.numel() or mask.dtype == torch.bool:
        return
    if mask.max() <= 1 if mask.dtype == torch.uint8 else ((mask == 0) | (mask == 1)).all():  # the first needs no copy
        return
    other = sorted({value for part in mask.flatten().split(1 << 20) for value in part.unique().tolist()} - {0, 1})
    raise ValueError(
        f"{name} must hold 0 and 1 only, got {listed(f'{value:g}' for value in other)}: "
        f"({name} > 127).to(torch.uint8) turns 0 and 255 into 0 and 1"
    )


def check_probabilities(probabilities: torch.Tensor) -> None:
    """Refuse by a ValueError values that are not numbers from 0 to 1; on a GPU this waits for the device."""
    if not probabilities.numel():
        return
    low, high = (value.item() for value in probabilities.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"probabilities must be from 0 to 1, got {low} to {high}: logits need a sigmoid first, "
            "and NaN comes from a model that has diverged"
        )
