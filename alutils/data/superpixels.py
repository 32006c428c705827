"""Superpixels: regions of a picture that are alike in colour, which a person labels with one click each."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import slic

N_SUPERPIXELS = 200
_LARGEST = 128  # side of the pictures that are cut up, pixels


def superpixels(images: torch.Tensor, n: int = N_SUPERPIXELS) -> torch.Tensor:
    """About ``n`` SLIC superpixels per image, int64 (N, h, w), on the CPU, numbered from 0; h and w are at most 128.

    Larger pictures are cut up at a smaller size; :func:`torch.nn.functional.interpolate` brings the regions back.

    Args:
        images: uint8 (N, 3, H, W).

    >>> halves = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    >>> halves[..., 16:] = 255
    >>> regions = superpixels(halves, 4)
    >>> regions.shape, regions[0, 0, 0].item() == regions[0, 0, 31].item()
    (torch.Size([1, 32, 32]), False)
    """
    found = []
    for image in images:
        if max(image.shape[1:]) > _LARGEST:
            image = F.interpolate(image[None].float(), size=_LARGEST, mode="area")[0].round().to(torch.uint8)
        regions = slic(image.permute(1, 2, 0).cpu().numpy(), n_segments=n, start_label=0)
        found.append(regions.astype(np.int64))
    return torch.from_numpy(np.stack(found))


def region_share(values: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """The mean of ``values`` over the region of each pixel, float32 (N, h, w).

    Args:
        values: bool or numbers, (N, h, w).
        regions: int64 (N, h, w), from 0.

    >>> regions = torch.tensor([[[0, 0, 1, 1]]])
    >>> region_share(torch.tensor([[[True, False, True, True]]]), regions).tolist()
    [[[0.5, 0.5, 1.0, 1.0]]]
    """
    flat, n_regions = regions.flatten(1), int(regions.max()) + 1
    counts, sums = (torch.zeros(len(values), n_regions) for _ in range(2))
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    sums.scatter_add_(1, flat, values.flatten(1).float())
    return (sums / counts.clamp(min=1)).gather(1, flat).view(regions.shape)
