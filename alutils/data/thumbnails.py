"""Small grey pictures, for comparing images without a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in torchvision's grey."""


def thumbnails(images: torch.Tensor, side: int) -> torch.Tensor:
    """Grey images of ``side`` x ``side`` pixels, each pixel the mean over its part of the image.

    Args:
        images: uint8 (N, 3, H, W).
        side: at most H and W.

    Returns:
        float32 (N, side, side), 0 to 1, on the CPU.
    """
    small = []
    for batch in images.split(64):
        grey = torch.einsum("nchw,c->nhw", batch.float(), torch.tensor(LUMA, device=batch.device)) / 255
        small.append(F.adaptive_avg_pool2d(grey, side).cpu())
    return torch.cat(small) if small else torch.zeros(0, side, side)
