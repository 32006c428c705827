"""Annotation with one click per superpixel: the most uncertain ones ([19]), or the model's errors ([27])."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from alutils.data.superpixels import region_share, superpixels
from alutils.uncertainty import binary_entropy

CLICKED_MODES = ("superpixels", "correction")
"""The annotation modes in which each click labels one superpixel."""

_CLICKS = 10  # per image
_GOOD_ENOUGH = 0.9  # intersection over union at which a proposal is accepted


def regions_of(images: torch.Tensor) -> torch.Tensor:
    """The superpixels of images, uint8 (N, 3, H, W), at the images' size: int64 (N, 1, H, W), on the CPU."""
    regions = superpixels(images)[:, None]
    return F.interpolate(regions.double(), size=images.shape[2:], mode="nearest").long()


def uncertain_regions(probabilities: torch.Tensor, regions: torch.Tensor, n: int = _CLICKS) -> torch.Tensor:
    """The pixels of the ``n`` superpixels with the highest mean binary entropy: bool (N, 1, H, W).

    Args:
        probabilities: float (N, 1, H, W), 0 to 1.
        regions: int64, the same shape.
        n: superpixels per image; the default, ten, is our choice.

    >>> regions = torch.tensor([[[[0, 0, 1, 2]]]])
    >>> uncertain_regions(torch.tensor([[[[0.4, 0.6, 0.9, 0.5]]]]), regions, 1).tolist()
    [[[[False, False, False, True]]]]
    """
    entropy = region_share(binary_entropy(probabilities).cpu()[:, 0], regions[:, 0])[:, None]
    chosen = torch.zeros(regions.shape, dtype=torch.bool)
    for pixels, of_region, numbers in zip(chosen, entropy, regions, strict=True):
        present = numbers.unique()
        means = ndimage.maximum(of_region.numpy(), numbers.numpy(), present.numpy())  # equal within a superpixel
        best = present[torch.from_numpy(np.asarray(means)).argsort(descending=True, stable=True)[:n]]
        pixels |= torch.isin(numbers, best)
    return chosen.to(probabilities.device)


def dominant_labels(labels: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Each superpixel's majority label, lesion where both are equally frequent: uint8 (N, 1, H, W).

    Args:
        labels: uint8 (N, 1, H, W), 0 and 1, on any device.
        regions: int64, the same shape.
    """
    share = region_share(labels[:, 0].cpu(), regions[:, 0])[:, None]
    return (share >= 0.5).to(labels.device, torch.uint8)


def correct(
    truth: torch.Tensor, proposals: torch.Tensor, regions: torch.Tensor, n: int = _CLICKS
) -> tuple[torch.Tensor, torch.Tensor]:
    """A person who corrects what the model proposes, simulated after [27]: at most ``n`` clicks per image.

    Each click goes to the deepest point of the largest connected error and gives its superpixel the true label of that
    point. The person stops at an intersection over union of 0.9, and clicks no superpixel twice. [27] refines with
    a network; superpixels in its place are our choice.

    Args:
        truth: uint8 (N, 1, H, W), 0 and 1; the other tensors have its shape.
        proposals: the model's masks, uint8.
        regions: int64.
        n: most clicks per image.

    Returns:
        The corrected masks, uint8, and the pixels of the superpixels that were clicked, bool.

    >>> truth = torch.tensor([[[[1, 1, 0, 0]]]], dtype=torch.uint8)
    >>> mask, clicked = correct(truth, 0 * truth, torch.tensor([[[[0, 0, 1, 1]]]]))
    >>> mask.tolist(), clicked.tolist()
    ([[[[1, 1, 0, 0]]]], [[[[True, True, False, False]]]])
    """
    masks, clicked = proposals.cpu().clone(), torch.zeros(regions.shape, dtype=torch.bool)
    for mask, true, numbers, done in zip(masks[:, 0], truth.cpu()[:, 0], regions[:, 0], clicked[:, 0], strict=True):
        for _ in range(n):
            union = (mask | true).sum()
            if union == 0 or (mask & true).sum() / union >= _GOOD_ENOUGH:
                break
            point = _deepest_error((mask != true) & ~done)
            if point is None:
                break
            region = numbers == numbers[point]
            mask[region] = true[point]
            done |= region
    return masks.to(truth.device), clicked.to(truth.device)


def n_clicks(clicked: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """How many superpixels of each image hold ``clicked`` pixels, (N, 1, H, W) like ``regions``: int64 (N,)."""
    pairs = zip(clicked.cpu().bool(), regions, strict=True)
    return torch.tensor([len(numbers[pixels].unique()) for pixels, numbers in pairs], dtype=torch.int64)


def _deepest_error(errors: torch.Tensor) -> tuple[int, int] | None:
    """The point furthest from the edge of the largest connected error, if there is any."""
    labels, n = ndimage.label(errors.numpy())
    if n == 0:
        return None
    sizes = ndimage.sum_labels(labels > 0, labels, range(1, n + 1))
    largest = labels == 1 + sizes.argmax()
    if largest.all():  # it has no edge but the picture's
        return errors.shape[0] // 2, errors.shape[1] // 2
    depth = ndimage.distance_transform_edt(largest)
    row, column = divmod(int(depth.argmax()), depth.shape[1])
    return row, column
