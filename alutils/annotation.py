"""Who labels which pixel: the oracle, and partial annotation (section III-B, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import ndimage

from alutils.experiment import Labelling
from alutils.metrics import dice_score
from alutils.regions import CLICKED_MODES, correct, uncertain_regions
from alutils.system.checks import listed
from alutils.system.tensors import check_mask, check_planes, check_probabilities, is_number
from alutils.uncertainty import least_confidence

WRITING_MODES = ("partial", "model-only", "partial-refreshed", "contour-band", *CLICKED_MODES)
"""The annotation modes in which the model writes the labels that the human does not."""

_AUDIT = dict.fromkeys(("model_pixels", "wrong_pixels", "missed_pixels", "repeated_pixels"), "int64")
_AUDIT |= dict.fromkeys(("mask_dice", "model_dice"), "float64")

NO_AUDIT = pd.DataFrame(columns=list(_AUDIT)).astype(_AUDIT)
"""The columns of :func:`audit_annotations`, without a row."""


class AnnotationsNeeded(RuntimeError):
    """A run waits for a person to draw the images ``ids``, for which requests lie in ``folder``."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, tuple(ids)
        super().__init__(
            f"{len(self.ids)} images are to be drawn in {folder} ({listed(self.ids)}): show "
            "Annotator(oracle.requests(), oracle.folder) in JupyterLab, draw and save each, or correct all in another "
            "tool (alutils.export_queries), then call run_active_learning again with the same arguments"
        )


class Oracle:
    """The simulated expert of section IV-E: shows the true labels that it is asked for, and counts them.

    Nothing else in the loop reads the masks of the pool, except a positive control (``sees_masks``).
    :class:`alutils.HumanOracle` puts a person in the oracle's place.

    Args:
        masks: uint8 (N, 1, H, W), 0 and 1, the truth.

    Raises:
        ValueError: if the masks are of another type or shape, or have values other than 0 and 1.

    Attributes:
        name: "simulated"; a run's record names another oracle.
        n_images, n_pixels, n_positive: images asked for so far, pixels shown, and lesion pixels among these.

    >>> oracle = Oracle(torch.ones(3, 1, 2, 2, dtype=torch.uint8))
    >>> upper_row = torch.tensor([True, False]).view(1, 1, 2, 1).expand(1, 1, 2, 2)
    >>> oracle.annotate(torch.tensor([2]), upper_row).flatten().tolist(), oracle.n_images, oracle.n_pixels
    ([1, 1, 0, 0], 1, 2)
    """

    name = "simulated"

    def __init__(self, masks: torch.Tensor) -> None:
        check_planes(masks=masks)
        if masks.dtype != torch.uint8:
            raise ValueError(f"masks must be uint8, got {masks.dtype}")
        check_mask("masks", masks)
        self._masks = masks
        self.n_images = self.n_pixels = self.n_positive = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The oracle's settings, by name, as a run's record keeps them; the simulated one has none."""
        return {}

    def annotate_cold_start(self, indices: torch.Tensor) -> torch.Tensor:
        """All labels of the images with which a run starts, uint8 (n, 1, H, W)."""
        return self.annotate(indices)

    def annotate(
        self, indices: torch.Tensor, where: torch.Tensor | None = None, suggestion: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The true labels of some pixels of some images: step 3 of Fig. 1.

        Args:
            indices: int64 (n,), positions of the images.
            where: bool (n, 1, H, W), the pixels asked for; None: all.
            suggestion: uint8 (n, 1, H, W), the model's labels of all pixels, for a person to see.

        Returns:
            uint8 (n, 1, H, W), on the masks' device: the truth where it was asked for, 0 elsewhere.

        Raises:
            ValueError: if ``where`` or ``indices`` is not as above.
        """
        self._check_asked(indices, where)
        masks = self._labels(indices)
        if where is not None:
            masks = masks * where.to(masks.device)
        self._count(masks, where)
        return masks

    def correct(
        self, indices: torch.Tensor, proposals: torch.Tensor, regions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The corrected masks and the pixels that the oracle labelled, see :func:`alutils.regions.correct`."""
        masks, clicked = correct(self._labels(indices), proposals, regions)
        self._count(masks * clicked, clicked)
        return masks, clicked

    def _labels(self, indices: torch.Tensor) -> torch.Tensor:
        """The oracle's labels of all pixels of these images."""
        return self.truth(indices)

    def truth(self, indices: torch.Tensor) -> torch.Tensor:
        """The whole truth of some images, uint8 (n, 1, H, W), not counted: to measure with, never to train on."""
        self._check_asked(indices, None)
        return self._masks[indices.to(self._masks.device)]

    def to(self, device: str | torch.device) -> Oracle:
        """This oracle, after its masks were moved to ``device``."""
        self._masks = self._masks.to(device)
        return self

    @property
    def shape(self) -> torch.Size:
        """The shape of the masks, (N, 1, H, W)."""
        return self._masks.shape

    def _check_asked(self, indices: torch.Tensor, where: torch.Tensor | None) -> None:
        n = len(self._masks)
        if not isinstance(indices, torch.Tensor) or indices.dtype != torch.int64 or indices.ndim != 1:
            raise ValueError(f"indices must be an int64 tensor of shape (n,), got {indices!r}")
        if ((indices < 0) | (indices >= n)).any():
            raise ValueError(f"indices must be from 0 to {n - 1}, the {n} images, got {listed(indices.tolist())}")
        shape = (len(indices), *self.shape[1:])
        if where is not None and (where.dtype != torch.bool or where.shape != shape):
            raise ValueError(f"where must be bool of shape {shape}, got {where.dtype} {tuple(where.shape)}")

    def _count(self, masks: torch.Tensor, where: torch.Tensor | None) -> None:
        self.n_images += len(masks)
        self.n_pixels += masks.numel() if where is None else int(where.sum())
        self.n_positive += int(masks.sum())


def merge_annotations(
    truth: torch.Tensor, probabilities: torch.Tensor, tau_u: float, tau_b: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Section III-B, step 2: the human's label where the model is unsure, the binarized prediction elsewhere.

    A pixel is the human's where ``|0.5 - p| <= tau_u`` (eq. 1); elsewhere it is lesion where ``p >= tau_b``. Of the
    truth, only the human's pixels are used. With tau_u = 0.5 the result is the truth; with tau_u = 0 the human has only
    the pixels with p = 0.5. All values of tau_b from ``0.5 - tau_u`` to ``0.5 + tau_u`` give the same result, because
    the human labels every pixel with such a p.

    Args:
        truth: uint8 (N, 1, H, W), 0 and 1.
        probabilities: of the lesion, float, 0 to 1, the same shape.
        tau_u: largest distance of p from 0.5 at which a pixel is uncertain, 0 to 0.5.
        tau_b: probability from which the model labels a pixel lesion, above 0 and below 1.

    Returns:
        The training mask, uint8 (N, 1, H, W), and which of its pixels came from the human, bool (N, 1, H, W).

    Raises:
        ValueError: if a threshold is out of range, shapes differ, or ``truth`` or ``probabilities`` is not as above.

    >>> p = torch.tensor([0.1, 0.4, 0.6, 0.9]).view(1, 1, 1, 4)
    >>> truth = torch.tensor([1, 1, 0, 0], dtype=torch.uint8).view(1, 1, 1, 4)
    >>> mask, human = merge_annotations(truth, p, tau_u=0.25, tau_b=0.5)
    >>> mask.flatten().tolist(), human.flatten().tolist()
    ([0, 1, 0, 1], [False, True, True, False])
    """
    _check_merge(truth, probabilities, tau_u, tau_b)
    human = least_confidence(probabilities) <= tau_u
    return combine(truth, probabilities, human, tau_b), human


def combine(human_labels: torch.Tensor, probabilities: torch.Tensor, human: torch.Tensor, tau_b: float) -> torch.Tensor:
    """The training mask: the uint8 ``human_labels`` where ``human`` is true, elsewhere lesion where ``p >= tau_b``.

    All tensors are (N, 1, H, W), and so is the mask, uint8.
    """
    return torch.where(human, human_labels, (probabilities >= tau_b).to(torch.uint8))


def human_pixels(
    probabilities: torch.Tensor,
    labelling: Labelling,
    generator: torch.Generator,
    regions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which pixels of queried images the human labels: bool, the shape of ``probabilities``.

    ``labelling.annotation`` decides:

    - "full": all; "model-only": none; "correction": none yet, because the person decides later;
    - "partial", "partial-refreshed", "human-only": those with ``|0.5 - p| <= tau_u``;
    - "contour-band": as many per image, but those nearest to the predicted contour (the control that tells *uncertain*
      from *near the border*);
    - "superpixels": the most uncertain ``regions``.

    Args:
        probabilities: float (N, 1, H, W), 0 to 1, predicted for the queried images.
        labelling: ``annotation`` and ``tau_u``.
        generator: of the CPU; in mode "contour-band" it decides between equally near pixels.
        regions: int64, the shape of ``probabilities``: the superpixels, for mode "superpixels".

    >>> p = torch.tensor([0.1, 0.4, 0.9]).view(1, 1, 1, 3)
    >>> human_pixels(p, Labelling(annotation="partial", tau_u=0.25), torch.Generator()).tolist()
    [[[[False, True, False]]]]
    """
    uncertain = least_confidence(probabilities) <= labelling.tau_u
    if labelling.annotation == "superpixels":
        return uncertain_regions(probabilities, regions)
    if labelling.annotation in ("full", "model-only", "correction"):
        return torch.full_like(uncertain, labelling.annotation == "full")
    if labelling.annotation == "contour-band":
        return _nearest_to_contour(probabilities >= 0.5, uncertain.flatten(1).sum(1), generator)
    return uncertain


def audit_annotations(
    truth: torch.Tensor, masks: torch.Tensor, human: torch.Tensor, probabilities: torch.Tensor, tau_b: float
) -> pd.DataFrame:
    """How the labels that the model wrote compare with the truth and with what the present model would write.

    Only a simulation has the whole truth; nothing is trained on the result.

    Args:
        truth: uint8 (N, 1, H, W), 0 and 1; the other tensors have its shape.
        masks: the training masks, uint8.
        human: which of their pixels came from the human, 0 and 1 or bool.
        probabilities: predicted by the present model, float, 0 to 1.
        tau_b: probability from which it would write lesion.

    Returns:
        One row per image: ``model_pixels``, pixels whose label a model wrote; ``wrong_pixels``, those that differ from
        the truth; ``missed_pixels``, wrong ones that are lesion in truth; ``repeated_pixels``, wrong ones that the
        present model would write wrong again; ``mask_dice`` and ``model_dice``, eq. 4 of the training mask and of the
        present prediction (p >= 0.5), 0 to 1.
    """
    by_model = human == 0
    wrong = by_model & (masks != truth)
    again = (probabilities >= tau_b) == masks.bool()
    counts = (pixels.flatten(1).sum(1) for pixels in (by_model, wrong, wrong & (truth == 1), wrong & again))
    columns = [*counts, dice_score(masks, truth), dice_score(probabilities, truth)]
    return pd.DataFrame({name: c.cpu().numpy() for name, c in zip(_AUDIT, columns, strict=True)}).astype(_AUDIT)


def _check_merge(truth: torch.Tensor, probabilities: torch.Tensor, tau_u: float, tau_b: float) -> None:
    if not is_number(tau_u) or not 0 <= tau_u <= 0.5:
        raise ValueError(f"tau_u must be from 0 to 0.5, got {tau_u!r}: it is a distance from p = 0.5")
    if not is_number(tau_b) or not 0 < tau_b < 1:
        raise ValueError(f"tau_b must be above 0 and below 1, got {tau_b!r}: it is a probability")
    check_planes(truth=truth, probabilities=probabilities)
    if truth.dtype != torch.uint8:
        raise ValueError(f"truth must be uint8, got {truth.dtype}")
    check_mask("truth", truth)
    check_probabilities(probabilities)


def _nearest_to_contour(predicted: torch.Tensor, counts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The ``counts[i]`` pixels of image i nearest to where ``predicted`` changes; equally near ones are drawn by lot.

    If the prediction has no contour, all pixels are equally near.
    """
    chosen = torch.zeros(predicted.shape, dtype=torch.bool)
    for mask, count, place in zip(predicted.cpu()[:, 0].numpy(), counts.tolist(), chosen.flatten(1), strict=True):
        distance = torch.zeros(mask.size, dtype=torch.float64)
        if mask.any() and not mask.all():
            to_other_side = ndimage.distance_transform_edt(mask) + ndimage.distance_transform_edt(~mask)
            distance = torch.from_numpy(to_other_side).flatten()
        # Unequal distances in a picture of 2048 x 2048 pixels differ by more than 1e-4
        lot = 1e-4 * torch.rand(mask.size, generator=generator, dtype=torch.float64)
        place[(distance + lot).topk(count, largest=False).indices] = True
    return chosen.to(predicted.device)
