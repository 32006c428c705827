"""An oracle that errs: experts draw the same lesion differently (section VI asks for tests with real ones)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage

from alutils.annotation import Oracle
from alutils.experiment import Experiment
from alutils.rounds import ERRORS
from alutils.system.seeding import make_generator


def simulated_oracle(masks: torch.Tensor, experiment: Experiment) -> Oracle:
    """The oracle of an experiment: one that errs if its ``oracle_noise`` is above 0."""
    return ErringOracle(masks, experiment.oracle_noise, experiment.seed) if experiment.oracle_noise else Oracle(masks)


class ErringOracle(Oracle):
    """The simulated oracle, but with the borders that another expert might have drawn.

    Its labels come from :func:`erring_mask`; the truth, which the audit and Dice compare with, stays what it was. Its
    labels of an image do not depend on when it is asked.

    Args:
        masks: uint8 (N, 1, H, W), 0 and 1, the truth.
        noise: area labelled differently, as a share of the lesion's area, above 0 (about, see :func:`erring_mask`).
            Dermatologists who drew 77 lesions disagreed on 15 % of the lesion's area on average (Fortina et al., Skin
            Research and Technology 18, 2012).
        seed: of the errors: another seed is another expert.

    Raises:
        ValueError: if the masks are not as for :class:`alutils.Oracle`, or ``noise`` is not above 0 and at most 1.
    """

    def __init__(self, masks: torch.Tensor, noise: float, seed: int) -> None:
        super().__init__(masks)
        if not 0 < noise <= 1:
            raise ValueError(f"noise must be a share of the lesion's area, above 0 and at most 1, got {noise!r}")
        self._noise, self._seed = noise, seed

    @property
    def settings(self) -> dict[str, Any]:
        return {"noise": self._noise, "seed": self._seed}

    def _labels(self, indices: torch.Tensor) -> torch.Tensor:
        drawn = [
            erring_mask(mask[0].cpu().numpy(), self._noise, make_generator(self._seed, ERRORS, i))
            for i, mask in zip(indices.tolist(), self.truth(indices), strict=True)
        ]
        masks = np.stack(drawn)[:, None] if drawn else np.zeros((0, *self.shape[1:]), np.uint8)
        return torch.from_numpy(masks).to(self._masks.device)


def erring_mask(mask: np.ndarray, noise: float, generator: torch.Generator) -> np.ndarray:
    """The mask, uint8 (H, W), as another expert may draw it: about ``noise`` times the lesion's area is different.

    Each part of the lesion except the largest is missed with probability ``noise``. Then a smooth random field shifts
    the border until the difference, missed parts included, is large enough. It is more where a missed part is larger
    than that, and less where the border cannot move so far. The field varies over lengths of half the radius of a disc
    of the lesion's area. A mask without lesion, or all lesion, stays as it is.

    Args:
        mask: uint8 (H, W), 0 and 1.
        noise: 0 to 1.
        generator: of the CPU.

    >>> disc = np.add.outer((np.arange(64) - 32) ** 2, (np.arange(64) - 32) ** 2) < 400
    >>> drawn = erring_mask(disc.astype(np.uint8), 0.15, make_generator(0))
    >>> round(float((drawn != disc).sum() / disc.sum()), 2)
    0.15
    """
    field = torch.randn(mask.shape, generator=generator, dtype=torch.float64).numpy()
    lot = torch.rand(mask.size, generator=generator, dtype=torch.float64).numpy()
    area = int(mask.sum())
    if area in (0, mask.size):
        return mask
    kept = _without_missed_parts(mask, noise, lot)
    field = ndimage.gaussian_filter(field, max(1.0, 0.5 * np.sqrt(area / np.pi)), mode="wrap")
    inside = ndimage.distance_transform_edt(kept) - ndimage.distance_transform_edt(kept == 0)
    depth = inside - np.sign(inside) / 2  # 0 on the border between two pixels
    low, high = 0.0, float(np.hypot(*mask.shape)) / max(np.abs(field).max(), 1e-12)
    for _ in range(30):  # the larger the shift, the more pixels change
        middle = (low + high) / 2
        changed = ((depth + middle * field > 0) != mask).sum()
        low, high = (middle, high) if changed < noise * area else (low, middle)
    return (depth + high * field > 0).astype(np.uint8)


def _without_missed_parts(mask: np.ndarray, noise: float, lot: np.ndarray) -> np.ndarray:
    parts, n = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=n + 1)
    missed = lot[: n + 1] < noise
    missed[0] = True  # the skin
    missed[1 + sizes[1:].argmax()] = False
    return (~missed[parts]).astype(np.uint8)
