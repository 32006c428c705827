"""Images and masks as uint8 tensors: the one form in which pictures travel through the project.

Files or the synthetic generator become a :class:`Splits` once; from there on nothing is decoded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import pandas as pd
import torch


class DataError(ValueError):
    """The data on disk cannot be used; the message names every file and the remedy."""


def lesion_area(masks: torch.Tensor) -> torch.Tensor:
    """Share of lesion pixels of each mask, float32 (N,), 0 to 1.

    Args:
        masks: uint8, (N, 1, H, W), 0 and 1.

    >>> lesion_area(torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8))
    tensor([0.2500])
    """
    return masks.flatten(1).mean(1, dtype=torch.float32)


def picture_sums(pictures: torch.Tensor) -> torch.Tensor:
    """The sum of each picture's bytes, eight at a time, wherever it overflows: int64 (N,), on the pictures' device.

    Equal pictures have equal sums, and a flipped bit changes its picture's. One pass, as fast as memory is read.

    Args:
        pictures: uint8, (N, C, H, W), with C * H * W a multiple of eight.

    >>> picture_sums(torch.ones(1, 1, 4, 4, dtype=torch.uint8)).item() == 2 * 0x0101010101010101
    True
    """
    return pictures.contiguous().flatten(1).view(torch.int64).sum(1)


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their masks, all of one size.

    Args:
        images: uint8, shape (N, 3, H, W), RGB, 0 to 255.
        masks: uint8, shape (N, 1, H, W), 1 on the lesion and 0 on the background.
        ids: N different names, in the order of the images.
        factors: what is known about how each image was made, a row an image (empty for photographs).

    Raises:
        ValueError: if shapes, types or lengths do not fit together, or an id stands twice.

    >>> images, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    >>> split = Split(images, masks, ("a", "b"))
    >>> len(split), split.select([1]).ids
    (2, ('b',))
    """

    images: torch.Tensor
    masks: torch.Tensor
    ids: tuple[str, ...]
    factors: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        n = len(self.ids)
        for name, tensor, channels in (("images", self.images, 3), ("masks", self.masks, 1)):
            if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[1] != channels:
                raise ValueError(
                    f"{name} must be uint8 of shape (N, {channels}, H, W), got {tensor.dtype} {tuple(tensor.shape)}"
                )
            if len(tensor) != n:
                raise ValueError(f"{name} has {len(tensor)} pictures but there are {n} ids")
        if self.images.shape[2:] != self.masks.shape[2:]:
            raise ValueError(
                f"images are {tuple(self.images.shape[2:])} pixels and masks {tuple(self.masks.shape[2:])}"
            )
        if len(self.factors) not in (0, n):
            raise ValueError(f"factors has {len(self.factors)} rows but there are {n} ids")
        if len(set(self.ids)) != n:
            twice = sorted({name for name in self.ids if self.ids.count(name) > 1})
            raise ValueError(f"each id must be unique; these stand more than once: {', '.join(twice)}")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int] | torch.Tensor) -> Split:
        """The pictures at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.long)
        rows = index.tolist()
        on_device = index.to(self.images.device)
        return Split(
            self.images[on_device],
            self.masks[on_device],
            tuple(self.ids[i] for i in rows),
            self.factors.iloc[rows].reset_index(drop=True) if len(self.factors) else self.factors,
        )

    def to(self, device: str | torch.device) -> Split:
        """The same split with its tensors on ``device``."""
        return replace(self, images=self.images.to(device), masks=self.masks.to(device))

    @property
    def lesion_area(self) -> torch.Tensor:
        """Share of lesion pixels of each image, float32 (N,), 0 to 1."""
        return lesion_area(self.masks)

    @property
    def checksum(self) -> str:
        """16 hexadecimal digits that change with any id and any bit of the images and masks."""
        sums = torch.stack([picture_sums(self.images), picture_sums(self.masks)]).cpu().numpy()
        return hashlib.sha256("\n".join(self.ids).encode() + sums.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Splits:
    """The training set (the pool of active learning), the validation set and the test set.

    Raises:
        ValueError: if an id stands in two of them (a leak from training into evaluation).
    """

    train: Split
    val: Split
    test: Split

    def __post_init__(self) -> None:
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = sorted(set(getattr(self, first).ids) & set(getattr(self, second).ids))
            if shared:
                raise ValueError(f"{first} and {second} share {len(shared)} ids: {', '.join(shared)}")

    def to(self, device: str | torch.device) -> Splits:
        """All three splits on ``device``."""
        return Splits(self.train.to(device), self.val.to(device), self.test.to(device))

    def placed(self, device: torch.device, *, free_bytes: int | None = None) -> Splits:
        """All three splits on ``device`` where they fit, else the images in the CPU's memory and the masks on it.

        Training and prediction copy images that lie elsewhere batch by batch.

        Args:
            device: where the network computes.
            free_bytes: what the pictures may take; None: of a GPU the half of what is free, of other devices all.
        """
        if free_bytes is None and device.type == "cuda":
            free_bytes = torch.cuda.mem_get_info(device)[0] // 2
        splits = (self.train, self.val, self.test)
        if free_bytes is None or sum(split.images.nbytes + split.masks.nbytes for split in splits) <= free_bytes:
            return self.to(device)
        return Splits(*(replace(split, masks=split.masks.to(device)) for split in splits))

    def summary(self) -> pd.DataFrame:
        """A row a split: images, height, width, and the mean, least and largest lesion area (% of the pixels)."""
        rows = []
        for name in ("train", "val", "test"):
            split: Split = getattr(self, name)
            area = 100 * split.lesion_area
            rows.append(
                {
                    "split": name,
                    "images": len(split),
                    "height": split.images.shape[2],
                    "width": split.images.shape[3],
                    "mean area (%)": area.mean().item(),
                    "least area (%)": area.min().item(),
                    "largest area (%)": area.max().item(),
                }
            )
        return pd.DataFrame(rows).set_index("split")


def identical_pictures(splits: Splits) -> pd.DataFrame:
    """The images that lie in two splits, pixel by pixel the same under different ids: leaks into the evaluation.

    Args:
        splits: see :class:`Splits`; the masks are not looked at.

    Returns:
        A row a pair: ``first_split``, ``first_id``, ``second_split``, ``second_id``.

    >>> images, masks = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    >>> splits = Splits(*(Split(images + value, masks, (name,)) for name, value in (("a", 0), ("b", 1), ("c", 0))))
    >>> identical_pictures(splits).values.tolist()
    [['train', 'a', 'test', 'c']]
    """
    named = [(name, getattr(splits, name)) for name in ("train", "val", "test")]
    sums = {name: picture_sums(split.images).tolist() for name, split in named}
    rows = []
    for (first_name, first), (second_name, second) in combinations(named, 2):
        places: dict[int, list[int]] = {}
        for i, total in enumerate(sums[first_name]):
            places.setdefault(total, []).append(i)
        rows += [
            (first_name, first.ids[i], second_name, second.ids[j])
            for j, total in enumerate(sums[second_name])
            for i in places.get(total, [])
            if torch.equal(first.images[i], second.images[j])
        ]
    return pd.DataFrame(rows, columns=["first_split", "first_id", "second_split", "second_id"])
