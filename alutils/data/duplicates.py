"""Photographs that look alike: a difference hash of each, and the pairs whose hashes differ in few bits."""

from __future__ import annotations

import pandas as pd
import torch
import torch.nn.functional as F

from alutils.data.splits import Splits

_ROWS = 512  # compared with all others at a time


def difference_hash(images: torch.Tensor) -> torch.Tensor:
    """64 bits per image, bool (N, 64): is each pixel of a grey thumbnail of 8 x 9 brighter than its left neighbour?

    ``images`` are uint8 (N, 3, H, W).

    >>> ramp = torch.arange(36, dtype=torch.uint8).expand(1, 3, 8, 36)
    >>> difference_hash(torch.cat([ramp, ramp.flip(3)])).sum(1).tolist()
    [64, 0]
    """
    # Sums of whole numbers are exact: rounding makes no side of a uniform picture brighter
    grey = (part.sum(1, keepdim=True, dtype=torch.float32) for part in images.split(256))
    small = torch.cat([F.adaptive_avg_pool2d(part, (8, 9)) for part in grey])
    return (small[..., 1:] > small[..., :-1]).flatten(1)


def near_duplicates(splits: Splits, *, most_bits: int = 4) -> pd.DataFrame:
    """Pairs of images, within a split and between two, whose difference hashes differ in at most ``most_bits`` of 64.

    Returns:
        One row per pair, the most alike first: ``first_split``, ``first_id``, ``second_split``, ``second_id`` and
        ``bits``. Blank images have equal hashes too.

    >>> from alutils.data.synthetic import make_synthetic
    >>> near_duplicates(make_synthetic(4, 2, 2, image_size=32), most_bits=0).columns.tolist()
    ['first_split', 'first_id', 'second_split', 'second_id', 'bits']
    """
    named = [(name, image_id) for name, split in splits.named.items() for image_id in split.ids]
    hashes = torch.cat([difference_hash(split.images).cpu() for split in splits.named.values()]).float()
    rows = []
    for start in range(0, len(hashes), _ROWS):
        part = hashes[start : start + _ROWS]
        bits = part @ (1 - hashes).T + (1 - part) @ hashes.T
        near = (bits <= most_bits).triu(start + 1)
        rows += [(*named[start + i], *named[j], int(bits[i, j])) for i, j in near.nonzero().tolist()]
    columns = ["first_split", "first_id", "second_split", "second_id", "bits"]
    return pd.DataFrame(rows, columns=columns).sort_values("bits", kind="stable", ignore_index=True)
