"""Images and masks as uint8 tensors: the one form in which pictures travel through the project."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import pandas as pd
import torch
import torch.nn.functional as F

from alutils.system.checks import listed, printable
from alutils.system.tensors import check_mask, check_tensor


def lesion_area(masks: torch.Tensor) -> torch.Tensor:
    """Share of lesion pixels of each mask, float32 (N,), 0 to 1; masks are uint8 (N, 1, H, W), 0 and 1."""
    return masks.flatten(1).mean(1, dtype=torch.float32)


def _checked_id(name: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"each id must be text, got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:  # part of a file's name that is no UTF-8: no record could be written
        raise ValueError(f"each id must be text that UTF-8 can hold, got '{printable(name)}': rename it") from None
    return unicodedata.normalize("NFC", name)


def picture_sums(pictures: torch.Tensor) -> torch.Tensor:
    """A number for each picture, uint8 (N, C, H, W), that changes with any one of its bits: int64 (N,).

    It is the sum, modulo 2^64, of the picture's bytes taken eight at a time: one pass over the memory. Different
    pictures can have equal sums, for instance where groups of eight bytes change places.
    """
    pixels = pictures.flatten(1).contiguous()
    if pixels.shape[1] % 8:
        pixels = F.pad(pixels, (0, -pixels.shape[1] % 8))
    if pixels.storage_offset() % 8:  # a view from the middle of another tensor
        pixels = pixels.clone()
    return pixels.view(torch.int64).sum(1)


@dataclass(frozen=True, eq=False)
class ImageView:
    """The ``images`` (N, C, H, W) at ``indices`` (int64), without a copy: what is indexed is gathered then."""

    images: torch.Tensor
    indices: torch.Tensor

    def __getitem__(self, chosen: slice | torch.Tensor) -> torch.Tensor:
        return self.images[self.indices[chosen].to(self.images.device)]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), *self.images.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        return self.images.device


def images_at(images: torch.Tensor | ImageView, indices: torch.Tensor | None) -> torch.Tensor | ImageView:
    """A view of the images at ``indices`` (of a view: of its images); None: the images as they are.

    Raises:
        ValueError: if ``indices`` is not int64 (n,) from 0 to N - 1.
    """
    if indices is None:
        return images
    indices = _positions(indices, len(images))
    if isinstance(images, ImageView):
        return ImageView(images.images, images.indices[indices])
    return ImageView(images, indices)


def _positions(indices: Sequence[int] | torch.Tensor, n: int) -> torch.Tensor:
    """Positions in a sequence of length ``n``, on the CPU; ValueError unless they are int64 (n,) from 0 to n - 1."""
    found = torch.as_tensor(indices, dtype=None if len(indices) else torch.int64).cpu()
    if found.dtype == torch.bool:
        raise ValueError("indices must be positions, not a mask; mask.nonzero().flatten() gives them")
    fits = found.dtype == torch.int64 and found.ndim == 1
    if not fits or (len(found) and not 0 <= found.min() <= found.max() < n):
        values = f" with {found.min()} to {found.max()}" if found.numel() else ""
        raise ValueError(
            f"indices must be int64 of shape (n,), each from 0 to {n - 1}, got {found.dtype} "
            f"{tuple(found.shape)}{values}"
        )
    return found


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their masks, all of one size.

    Args:
        images: uint8, shape (N, 3, H, W), RGB, 0 to 255.
        masks: uint8, shape (N, 1, H, W), 1 on the lesion and 0 on the background.
        ids: N different names, in the order of the images; kept in Unicode's composed form (NFC), so that a name is one
            name however a disk writes its accents.
        factors: what is known about how each image was made, one row per image (empty for photographs).

    Raises:
        ValueError: if shapes, types or lengths do not fit together, a mask holds anything but 0 and 1, or an id occurs
            twice or is no text.

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
        object.__setattr__(self, "ids", tuple(map(_checked_id, self.ids)))
        n = len(self.ids)
        for name, tensor, channels in (("images", self.images, 3), ("masks", self.masks, 1)):
            check_tensor(name, tensor)
            if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[:2] != (n, channels):
                raise ValueError(
                    f"{name} must be uint8 of shape ({n}, {channels}, H, W), as there are {n} ids; got {tensor.dtype} "
                    f"{tuple(tensor.shape)}"
                )
        if self.images.shape[2:] != self.masks.shape[2:]:
            raise ValueError(
                f"images are {tuple(self.images.shape[2:])} pixels and masks {tuple(self.masks.shape[2:])}"
            )
        if len(self.factors) not in (0, n):
            raise ValueError(f"factors has {len(self.factors)} rows but there are {n} ids")
        if twice := sorted(name for name, count in Counter(self.ids).items() if count > 1):
            raise ValueError(f"each id must be unique; these occur more than once: {listed(twice)}")
        check_mask("masks", self.masks)

    @classmethod
    def trusted(cls, images: torch.Tensor, masks: torch.Tensor, ids: tuple[str, ...], factors: pd.DataFrame) -> Split:
        """A split of parts that were checked already: looking at every mask again takes as long as loading them."""
        split = object.__new__(cls)
        vars(split).update(images=images, masks=masks, ids=ids, factors=factors)
        return split

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int] | torch.Tensor) -> Split:
        """The pictures at ``indices``, in that order; ValueError unless these are different positions, 0 to N - 1."""
        index = _positions(indices, len(self))
        if len(index.unique()) < len(index):
            raise ValueError(f"indices must be different positions, got {listed(index.tolist())}")
        rows, on_device = index.tolist(), index.to(self.images.device)
        factors = self.factors.iloc[rows].reset_index(drop=True) if len(self.factors) else self.factors
        ids = tuple(self.ids[i] for i in rows)
        return Split.trusted(self.images[on_device], self.masks[on_device], ids, factors)

    def to(self, device: str | torch.device) -> Split:
        """The same split with its tensors on ``device``."""
        return Split.trusted(self.images.to(device), self.masks.to(device), self.ids, self.factors)

    @property
    def lesion_area(self) -> torch.Tensor:
        """Share of lesion pixels of each image, float32 (N,), 0 to 1."""
        return lesion_area(self.masks)

    @property
    def checksum(self) -> str:
        """16 hexadecimal digits that change with any id, the size, or any one bit of an image or a mask.

        Computed anew at each access, by one pass over the pixels on the device where they lie.
        """
        digest = hashlib.sha256(json.dumps([self.ids, list(self.images.shape)]).encode())
        for pictures in (self.images, self.masks):
            digest.update(picture_sums(pictures).cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Splits:
    """The training set (the pool of active learning), the validation set and the test set.

    Args:
        train, val, test: the splits.
        source: the name of the data set.
        n_ignored: pictures in its folders that are neither an image nor a mask.

    Raises:
        ValueError: if an id is in two of them (a leak from training into evaluation).

    >>> from alutils.data.synthetic import make_synthetic
    >>> {name: len(split) for name, split in make_synthetic(4, 2, 2, image_size=32).named.items()}
    {'train': 4, 'val': 2, 'test': 2}
    """

    train: Split
    val: Split
    test: Split
    source: str = ""
    n_ignored: int = 0

    def __post_init__(self) -> None:
        for (first, a), (second, b) in combinations(self.named.items(), 2):
            if shared := sorted(set(a.ids) & set(b.ids)):
                raise ValueError(f"{first} and {second} share {len(shared)} ids: {listed(shared)}")

    @property
    def named(self) -> dict[str, Split]:
        """The splits by their names."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def to(self, device: str | torch.device) -> Splits:
        """All three splits on ``device``."""
        return replace(self, **{name: split.to(device) for name, split in self.named.items()})

    def placed(self, device: torch.device, *, free_bytes: int | None = None) -> Splits:
        """All three splits on ``device`` if they fit, else only their masks; the images then stay where they are.

        Training and prediction copy images that lie elsewhere batch by batch. ``free_bytes`` is what the pictures may
        take; None: half of a GPU's free memory, and no limit on other devices.
        """
        if free_bytes is None and device.type == "cuda":
            free_bytes = torch.cuda.mem_get_info(device)[0] // 2
        n_bytes = sum(split.images.nbytes + split.masks.nbytes for split in self.named.values())
        if free_bytes is None or n_bytes <= free_bytes:
            return self.to(device)
        parts = {k: Split.trusted(s.images, s.masks.to(device), s.ids, s.factors) for k, s in self.named.items()}
        return replace(self, **parts)

    def summary(self) -> pd.DataFrame:
        """One row per split: images, height, width, and the mean, least and largest lesion area (% of the pixels)."""
        rows = []
        for name, split in self.named.items():
            area = 100 * split.lesion_area if len(split) else torch.tensor([torch.nan])
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


def identical_pictures(splits: Splits, *, image_sums: Sequence[torch.Tensor] | None = None) -> pd.DataFrame:
    """Images that lie in two splits under different ids: the model would be evaluated on what it was trained on.

    Args:
        splits: the pictures; compared at the size at which they are there.
        image_sums: :func:`picture_sums` of the images of train, val and test, where they are known already.

    Returns:
        One row for each pair of images of two splits that are equal in all pixels, with ``first_split``, ``first_id``,
        ``second_split`` and ``second_id``; train comes before val, and val before test.

    >>> images, masks = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    >>> images[1], images[2] = 1, 2
    >>> splits = Splits(*(Split(images[i], masks[i], ids) for i, ids in (([0, 1], "ab"), ([2], "c"), ([0], "d"))))
    >>> identical_pictures(splits).values.tolist()
    [['train', 'a', 'test', 'd']]
    """
    named = splits.named
    image_sums = image_sums or [picture_sums(split.images) for split in named.values()]
    places: dict[int, list[tuple[str, int]]] = {}
    for name, sums in zip(named, image_sums, strict=True):
        for row, total in enumerate(sums.tolist()):
            places.setdefault(total, []).append((name, row))
    pairs = [
        (first, named[first].ids[i], second, named[second].ids[j])
        for same in places.values()
        for (first, i), (second, j) in combinations(same, 2)
        if first != second and torch.equal(named[first].images[i], named[second].images[j])
    ]
    return pd.DataFrame(pairs, columns=["first_split", "first_id", "second_split", "second_id"])
