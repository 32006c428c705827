"""Whether the probabilities mean what they say: of all pixels given p = 0.8, is lesion what 80 % show?"""

from __future__ import annotations

import pandas as pd
import torch

from alutils.metrics import check_mask, check_probabilities, is_number

_PIXELS_AT_A_TIME = 2**22  # bounds the float64 copies: 100 MB, whatever the size of the set


def reliability(probabilities: torch.Tensor, masks: torch.Tensor, n_bins: int = 10) -> pd.DataFrame:
    """What a reliability diagram shows: the observed share of lesion among the pixels of each range of probability.

    The ranges are of equal width and hold their lower edge (the last one also 1): 0 <= p < 0.1, ..., 0.9 <= p <= 1.

    Args:
        probabilities: of the lesion, floating point, 0 to 1, any shape; on whatever device, counted on the CPU.
        masks: 0 and 1, the same shape.
        n_bins: number of ranges, 1 to 10 000.

    Returns:
        A row a range: ``low`` and ``high`` (its edges), ``confidence`` (mean probability of its pixels),
        ``lesion_share`` (the share of them that are lesion) and ``pixels`` (how many). Where a range is empty,
        ``confidence`` and ``lesion_share`` are NaN; in a calibrated model they agree.

    Raises:
        ValueError: if the shapes differ, there are no pixels, a probability is not a number from 0 to 1, a mask holds
            anything but 0 and 1, or ``n_bins`` is out of range.

    >>> table = reliability(torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([0, 1, 1, 1]), n_bins=2)
    >>> table.lesion_share.tolist(), table.pixels.tolist()
    ([0.5, 1.0], [2, 2])
    """
    if not is_number(n_bins, whole=True) or not 1 <= n_bins <= 10_000:
        raise ValueError(f"n_bins: must be a whole number from 1 to 10000, got {n_bins!r}")
    for name, values in (("probabilities", probabilities), ("masks", masks)):
        if not isinstance(values, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(values).__name__}; torch.as_tensor makes one")
    if not probabilities.is_floating_point():
        raise ValueError(f"probabilities must be floating point, got {probabilities.dtype}")
    if probabilities.shape != masks.shape:
        raise ValueError(
            f"probabilities have shape {tuple(probabilities.shape)} and masks {tuple(masks.shape)}; they must agree"
        )
    if not probabilities.numel():
        raise ValueError("there are no pixels to count")
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)
    pixels = torch.zeros(n_bins, dtype=torch.int64)
    probability_sums, lesion_pixels = torch.zeros(2, n_bins, dtype=torch.float64)  # float32 stops counting at 2^24
    parts = (values.flatten().split(_PIXELS_AT_A_TIME) for values in (probabilities, masks))
    for p, truth in zip(*parts, strict=True):
        p, truth = p.cpu().double(), truth.cpu().double()
        check_probabilities(p)
        check_mask("masks", truth)
        index = torch.bucketize(p, edges[1:-1], right=True)
        pixels += index.bincount(minlength=n_bins)
        probability_sums += index.bincount(p, minlength=n_bins)
        lesion_pixels += index.bincount(truth, minlength=n_bins)
    return pd.DataFrame(
        {
            "low": edges[:-1].numpy(),
            "high": edges[1:].numpy(),
            "confidence": (probability_sums / pixels).numpy(),
            "lesion_share": (lesion_pixels / pixels).numpy(),
            "pixels": pixels.numpy(),
        }
    )


def expected_calibration_error(probabilities: torch.Tensor, masks: torch.Tensor, n_bins: int = 10) -> float:
    """The mean distance between confidence and observed share of lesion: ``sum_b n_b / n |confidence_b - share_b|``.

    It is that of the lesion's probability, pixel by pixel, over the ranges b of :func:`reliability`. Most pixels are
    background, which is easy: compare models on the same images, and read the table too.

    Args and errors: as :func:`reliability`.

    Returns:
        0 (calibrated) to 1 (always sure and always wrong).

    >>> round(expected_calibration_error(torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([0, 1, 1, 1]), n_bins=2), 3)
    0.25
    """
    table = reliability(probabilities, masks, n_bins)
    distance = (table["confidence"] - table["lesion_share"]).abs()
    return float((table["pixels"] / table["pixels"].sum() * distance).sum())  # sum() passes over the NaN of no pixels
