"""Masks kept a bit a pixel, on the device: an eighth of the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of 0 and 1, eight pixels a byte; read by index, as a tensor of masks is.

    Args:
        bits: uint8 (N, C, H, W / 8), the leftmost pixel in the highest bit.

    >>> masks = (torch.arange(128).view(2, 1, 8, 8) % 3 == 0).byte()
    >>> packed = PackedMasks.pack(masks)
    >>> packed.bits.shape, packed.shape, torch.equal(packed[torch.tensor([1])], masks[1:])
    (torch.Size([2, 1, 8, 1]), torch.Size([2, 1, 8, 8]), True)
    """

    bits: torch.Tensor

    dtype = torch.uint8

    @classmethod
    def pack(cls, masks: torch.Tensor) -> PackedMasks:
        """Pack masks, uint8 or bool (N, C, H, W), 0 and 1.

        Raises:
            ValueError: if the width is not a multiple of 8.
        """
        if masks.shape[-1] % 8:
            raise ValueError(f"the width must be a multiple of 8, got masks of shape {tuple(masks.shape)}")
        eights = masks.to(torch.uint8).unflatten(-1, (-1, 8))
        return cls((eights << _shifts(masks.device)).sum(-1, dtype=torch.uint8))

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        """The masks at ``index``, uint8 (n, C, H, W)."""
        return ((self.bits[index].unsqueeze(-1) >> _shifts(self.device)) & 1).flatten(-2)

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def shape(self) -> torch.Size:
        """Of the masks: (N, C, H, W)."""
        return torch.Size([*self.bits.shape[:-1], 8 * self.bits.shape[-1]])

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    def plus(self, others: PackedMasks) -> PackedMasks:
        """These masks and ``others`` after them."""
        return PackedMasks(torch.cat([self.bits, others.bits]))


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
