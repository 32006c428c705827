"""Calibration: whether 80 % of the pixels that are given a probability of 0.8 really are lesion."""

from __future__ import annotations

import pandas as pd
import torch

from alutils.system.tensors import check_mask, check_probabilities, is_number

_PIXELS_AT_A_TIME = 2**22  # keeps the float64 copies below 100 MB, however large the set is


def reliability(probabilities: torch.Tensor, masks: torch.Tensor, n_bins: int = 10) -> pd.DataFrame:
    """The table behind a reliability diagram: for each range of probability, the share of its pixels that are lesion.

    The ranges have equal width and include their lower edge: 0 <= p < 0.1, and so on. The last also includes 1.

    Args:
        probabilities: floating point, 0 to 1, any shape, on any device.
        masks: 0 and 1, the same shape.
        n_bins: number of ranges, 1 to 10 000.

    Returns:
        One row per range: its edges ``low`` and ``high``, ``confidence`` (mean probability of its pixels),
        ``lesion_share`` and ``pixels`` (their number). In an empty range confidence and share are NaN.

    Raises:
        ValueError: if an argument is not as above.

    >>> table = reliability(torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([0, 1, 1, 1]), n_bins=2)
    >>> table.lesion_share.tolist(), table.pixels.tolist()
    ([0.5, 1.0], [2, 2])
    """
    if not is_number(n_bins, whole=True) or not 1 <= n_bins <= 10_000:
        raise ValueError(f"n_bins: must be a whole number from 1 to 10000, got {n_bins!r}")
    both = (probabilities, masks)
    if not all(isinstance(values, torch.Tensor) for values in both) or not probabilities.is_floating_point():
        kinds = " and ".join(str(getattr(values, "dtype", type(values).__name__)) for values in both)
        raise ValueError(f"probabilities and masks must be tensors, the first of floating point, got {kinds}")
    if probabilities.shape != masks.shape or not probabilities.numel():
        raise ValueError(
            f"probabilities and masks must have the same shape and at least one pixel, "
            f"got {tuple(probabilities.shape)} and {tuple(masks.shape)}"
        )
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)
    pixels = torch.zeros(n_bins, dtype=torch.int64)
    probability_sums, lesion_pixels = torch.zeros(2, n_bins, dtype=torch.float64)  # float32 stops counting at 2^24
    parts = (values.flatten().split(_PIXELS_AT_A_TIME) for values in both)
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
    """The mean distance between confidence and share of lesion: ``sum_b n_b / n |confidence_b - share_b|``.

    The sum runs over the ranges b of :func:`reliability`; range b holds n_b of all n pixels. Most pixels are easy
    background and keep the error small, so compare models on the same images and read the table too.

    Arguments and errors are those of :func:`reliability`. 0 means calibrated, 1 means always sure and always wrong.

    >>> round(expected_calibration_error(torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([0, 1, 1, 1]), n_bins=2), 3)
    0.25
    """
    table = reliability(probabilities, masks, n_bins)
    distance = (table["confidence"] - table["lesion_share"]).abs()
    return float((table["pixels"] / table["pixels"].sum() * distance).sum())  # sum() skips the NaN of an empty range
