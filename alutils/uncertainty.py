"""How unsure the model is of a pixel (eq. 1 and 2, section III-A) and of an image.

Eq. 1 is *small* where the model is unsure. Every other map is large there, that of eq. 3 in :mod:`alutils.samples` too.
"""

from __future__ import annotations

import math
from typing import get_args

import torch

from alutils.experiment import Acquisition
from alutils.system.checks import ConfigError, did_you_mean
from alutils.system.tensors import check_probabilities, is_number

REDUCTIONS: tuple[str, ...] = get_args(Acquisition.model_fields["reduction"].annotation)


def least_confidence(probabilities: torch.Tensor) -> torch.Tensor:
    """Eq. 1: ``|0.5 - p|``, from 0 (unsure, p = 0.5) to 0.5 (sure, p = 0 or 1): *small* where the model is unsure.

    Args:
        probabilities: of the lesion, 0 to 1, any floating type and shape.

    Returns:
        The same shape, float32 (float64 for float64): half-precision probabilities are widened before they are used.

    Raises:
        ValueError: if they are not floating point or, on a CPU, if one is not a number from 0 to 1. On an accelerator
            this check would make the CPU wait; there :func:`alutils.select_queries` refuses scores that are not finite.

    >>> least_confidence(torch.tensor([0.0, 0.25, 0.5, 1.0])).tolist()
    [0.5, 0.25, 0.0, 0.5]
    """
    return (0.5 - _widened(probabilities)).abs()


def one_sided_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Eq. 2: ``-p log2 p``, from 0 (p = 0 or 1) to 0.5307 bits at p = 1/e = 0.368: large where the model is unsure.

    It is not symmetric: 0.332 at p = 0.1 but 0.137 at p = 0.9, so a pixel that leans to background counts for more.
    Arguments, result and errors are those of :func:`least_confidence`.

    >>> one_sided_entropy(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0.0, 0.5, 0.0]
    """
    p = _widened(probabilities)
    return 0.0 - torch.special.xlogy(p, p) / math.log(2)  # a mere minus sign would make -0 of 0


def binary_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """``-p log2 p - (1 - p) log2(1 - p)``, from 0 (p = 0 or 1) to 1 bit at p = 0.5: large where the model is unsure.

    The usual entropy of lesion or background; eq. 2 is its first term. It ranks pixels as eq. 1 does, but not images.
    Arguments, result and errors are those of :func:`least_confidence`.

    >>> binary_entropy(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    p = _widened(probabilities)
    # log1p keeps the digits of log(1 - p) where p is small
    return 0.0 - (torch.special.xlogy(p, p) + torch.special.xlog1py(1 - p, -p)) / math.log(2)


def image_score(
    maps: torch.Tensor,
    reduction: str = "sum",
    *,
    small_is_unsure: bool = False,
    probabilities: torch.Tensor | None = None,
    tau_u: float = 0.25,
    k: int | None = None,
) -> torch.Tensor:
    """One number per image, from its pixel map (section III-A): for eq. 1 small, else large where the model is unsure.

    So the paper queries the *smallest* sums of eq. 1 and the *largest* of eq. 2 and 3. The sum, the paper's choice,
    grows with the lesion's perimeter; the band's mean does not.

    Args:
        maps: (N, 1, H, W), or any shape whose first dimension counts images.
        reduction: "sum", "mean" or "median" (the mean of the middle two for an even number of pixels) of all pixels;
            "top_k": the mean of the k most unsure; "band_mean": the mean over pixels with ``|0.5 - p| <= tau_u``, or
            the value of a sure pixel (0; 0.5 for eq. 1) where there are none.
        small_is_unsure: True for eq. 1; "top_k" and "band_mean" need it to find the unsure pixels.
        probabilities: of the lesion, the shape of ``maps``; for "band_mean".
        tau_u: half the band's width, 0 to 0.5.
        k: number of pixels of "top_k"; None: 1 % of them, at least one.

    Returns:
        float32 (N,); maps of any type become float32 before they are added up.

    Raises:
        ConfigError: if there is no such reduction, or its ``k`` or ``tau_u`` is out of range.
        ValueError: if the maps have no pixels or are not of real numbers, ``probabilities`` do not fit or, on a CPU, a
            map holds NaN or infinity. On an accelerator the image's score is then not finite.

    >>> probabilities = torch.tensor([[0.5, 0.25], [0.0, 1.0]]).view(2, 1, 1, 2)
    >>> image_score(least_confidence(probabilities)).tolist()  # smallest first: the first image
    [0.25, 1.0]
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction: there is no '{reduction}'; {did_you_mean(reduction, list(REDUCTIONS))}")
    if not isinstance(maps, torch.Tensor) or maps.is_complex() or maps.ndim < 2 or not maps.shape[1:].numel():
        got = f"{maps.dtype} {tuple(maps.shape)}" if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise ValueError(f"maps must be a tensor of real numbers of shape (N, 1, H, W), got {got}")
    pixels = maps.flatten(1).float()
    total = pixels.sum(1)
    if _looking_is_free(maps) and not total.isfinite().all():
        raise ValueError("maps hold NaN or infinity: the model has diverged, or the probabilities were not from 0 to 1")
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / pixels.shape[1]
    zero = 0 * total  # but NaN where a map is not finite, which the other reductions might pass over
    if reduction == "median":
        return zero + _median(pixels)
    if reduction == "top_k":
        return zero + _top_k_mean(pixels, k, largest=not small_is_unsure)
    return zero + _band_mean(pixels, maps.shape, probabilities, tau_u, if_empty=0.5 if small_is_unsure else 0.0)


def _median(pixels: torch.Tensor) -> torch.Tensor:
    n = pixels.shape[1]
    lower, upper = (pixels.kthvalue(k, 1).values for k in ((n + 1) // 2, n // 2 + 1))  # k counts from 1
    return (lower + upper) / 2


def _top_k_mean(pixels: torch.Tensor, k: int | None, *, largest: bool) -> torch.Tensor:
    n = pixels.shape[1]
    k = max(1, n // 100) if k is None else k
    if not is_number(k, whole=True) or not 1 <= k <= n:
        raise ConfigError(f"k: must be from 1 to the {n} pixels of an image, got {k!r}")
    return pixels.topk(k, dim=1, largest=largest, sorted=False).values.mean(1)


def _band_mean(
    pixels: torch.Tensor, shape: torch.Size, probabilities: torch.Tensor | None, tau_u: float, *, if_empty: float
) -> torch.Tensor:
    if not is_number(tau_u) or not 0 <= tau_u <= 0.5:
        raise ConfigError(f"tau_u: must be from 0 to 0.5, got {tau_u!r}")
    if getattr(probabilities, "shape", None) != shape:
        got = f"shape {tuple(probabilities.shape)}" if hasattr(probabilities, "shape") else "none"
        raise ValueError(f"band_mean needs probabilities of the maps' shape {tuple(shape)}, got {got}")
    band = least_confidence(probabilities).flatten(1) <= tau_u
    count = band.sum(1)
    return torch.where(count > 0, (pixels * band).sum(1) / count.clamp(min=1), if_empty)


def _widened(probabilities: torch.Tensor) -> torch.Tensor:
    """``probabilities`` as float32 or float64; the values are checked where that does not wait for a device."""
    if not isinstance(probabilities, torch.Tensor) or not probabilities.is_floating_point():
        got = probabilities.dtype if isinstance(probabilities, torch.Tensor) else type(probabilities).__name__
        raise ValueError(f"probabilities must be a floating-point tensor, got {got}; a mask is not a probability")
    if _looking_is_free(probabilities):
        check_probabilities(probabilities)
    return probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))


def _looking_is_free(values: torch.Tensor) -> bool:
    """Whether the CPU can look at values without waiting for an accelerator."""
    return values.device.type == "cpu"
