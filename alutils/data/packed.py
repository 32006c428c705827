"""Masks that take one bit per pixel, an eighth of the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alutils.system.tensors import check_mask


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of 0 and 1 with eight pixels per byte. Indexing gives the masks back, as from a tensor of masks.

    Args:
        bits: uint8 (N, C, H, W / 8), on any device; of eight pixels the leftmost is in the highest bit.

    >>> masks = (torch.arange(128).view(2, 1, 8, 8) % 3 == 0).byte()
    >>> packed = PackedMasks.pack(masks)
    >>> packed.bits.shape, packed.shape, torch.equal(packed[torch.tensor([1])], masks[1:])
    (torch.Size([2, 1, 8, 1]), torch.Size([2, 1, 8, 8]), True)
    """

    bits: torch.Tensor

    dtype = torch.uint8

    @classmethod
    def pack(cls, masks: torch.Tensor) -> PackedMasks:
        """Pack masks of 0 and 1, uint8 or bool (N, C, H, W), whose width is a multiple of 8.

        Raises:
            ValueError: if a value is neither 0 nor 1.
        """
        check_mask("masks", masks)
        eights = masks.to(torch.uint8).unflatten(-1, (-1, 8))
        return cls((eights << _shifts(masks.device)).sum(-1, dtype=torch.uint8))

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        return ((self.bits[index].unsqueeze(-1) >> _shifts(self.device)) & 1).flatten(-2)

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.bits.shape[:-1], 8 * self.bits.shape[-1]])

    @property
    def device(self) -> torch.device:
        return self.bits.device

    def plus(self, others: PackedMasks) -> PackedMasks:
        """These masks, followed by ``others``."""
        return PackedMasks(torch.cat([self.bits, others.bits]))


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
