"""Who labels which pixel: the oracle, and partial annotation (section III-B, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import ndimage

from alutils.experiment import Experiment
from alutils.metrics import dice_score
from alutils.system.checks import listed
from alutils.system.tensors import check_mask, check_planes, check_probabilities, is_number
from alutils.uncertainty import least_confidence

WRITING_MODES = ("partial", "model-only", "partial-refreshed", "contour-band")
"""The annotation modes in which the model writes the labels that the human does not."""

NO_AUDIT = pd.DataFrame(
    {name: pd.Series(dtype="int64") for name in ("model_pixels", "wrong_pixels", "missed_pixels", "repeated_pixels")}
    | {name: pd.Series(dtype="float64") for name in ("mask_dice", "model_dice")}
)
"""The columns of :func:`audit_annotations`, without a row."""


class AnnotationsNeeded(RuntimeError):
    """A run waits for a person: these images are to be drawn before it can go on.

    Args:
        folder: where the requests lie and the drawings are to be saved.
        ids: the images that are not drawn yet.
    """

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, tuple(ids)
        super().__init__(
            f"{len(self.ids)} images are to be drawn in {folder}: show Annotator(oracle.requests(), oracle.folder) in "
            "JupyterLab, draw and save each, then call run_active_learning again with the same arguments"
        )


class Oracle:
    """The simulated expert of section IV-E: shows the true labels where it is asked for them, and counts them.

    Nothing else in the loop reads the masks of the pool. ``alutils.HumanOracle`` is a person in its place.

    Args:
        masks: uint8 (N, 1, H, W), 0 and 1, the truth.

    Raises:
        ValueError: if the masks are of another type or shape, or hold anything but 0 and 1.

    Attributes:
        name: "simulated"; a run's record names another oracle.
        n_images: images asked for so far.
        n_pixels: pixels shown so far.
        n_positive: those of them that are lesion.

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
        """What else a run's record should say of it."""
        return {}

    def annotate_cold_start(self, indices: torch.Tensor) -> torch.Tensor:
        """All labels of the images that a run starts with."""
        return self.annotate(indices)

    def annotate(
        self, indices: torch.Tensor, where: torch.Tensor | None = None, suggestion: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The true labels of some pixels of some images: step 3 of Fig. 1.

        Args:
            indices: int64 (n,), positions of the images.
            where: bool (n, 1, H, W), the pixels asked for; None: all.
            suggestion: uint8 (n, 1, H, W), the model's labels of the others: a person may see them, a simulation does
                not look.

        Returns:
            uint8 (n, 1, H, W), on the masks' device: the truth where it was asked for, 0 elsewhere.

        Raises:
            ValueError: if ``where`` has another shape or type, or an index is of no image.
        """
        self._check_asked(indices, where)
        masks = self.truth(indices)
        if where is not None:
            masks = masks * where.to(masks.device)
        self._count(masks, where)
        return masks

    def truth(self, indices: torch.Tensor) -> torch.Tensor:
        """The whole truth of some images, uint8 (n, 1, H, W), not counted: to measure with, never to train on.

        Raises:
            ValueError: if an index is of no image.
        """
        self._check_asked(indices, None)
        return self._masks[indices.to(self._masks.device)]

    def to(self, device: str | torch.device) -> Oracle:
        """This oracle, its masks moved to ``device``."""
        self._masks = self._masks.to(device)
        return self

    @property
    def shape(self) -> torch.Size:
        """Of the masks: (N, 1, H, W)."""
        return self._masks.shape

    def _check_asked(self, indices: torch.Tensor, where: torch.Tensor | None) -> None:
        n = len(self._masks)
        if not isinstance(indices, torch.Tensor) or indices.dtype != torch.int64 or indices.ndim != 1:
            raise ValueError(f"indices must be an int64 tensor of shape (n,), got {indices!r}")
        if ((indices < 0) | (indices >= n)).any():
            raise ValueError(
                f"indices must be from 0 to {n - 1}, the oracle's {n} images, got {listed(indices.tolist())}"
            )
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
    truth only the human's pixels are used. With tau_u = 0.5 the result is the truth; with tau_u = 0 the human has the
    pixels with p = 0.5 alone. Any tau_b from ``0.5 - tau_u`` to ``0.5 + tau_u`` gives the same result: pixels with
    such a p are all the human's.

    Args:
        truth: uint8 (N, 1, H, W), 0 and 1.
        probabilities: of the lesion, float, 0 to 1, the same shape.
        tau_u: certainty up to which a pixel is uncertain, 0 to 0.5.
        tau_b: probability from which a certain pixel is lesion, above 0 and below 1.

    Returns:
        The training mask, uint8 (N, 1, H, W), and which of its pixels came from the human, bool (N, 1, H, W).

    Raises:
        ValueError: if a threshold is out of range, shapes differ, ``truth`` is not a mask or a probability is not a
            number from 0 to 1.

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
    """The human's labels where ``human`` is true, elsewhere lesion where ``p >= tau_b``: uint8 (N, 1, H, W).

    Raises:
        ValueError: if the shapes differ, the labels are not uint8, ``human`` is not bool, or ``tau_b`` is out of range.

    >>> p, human = torch.tensor([0.9, 0.9]).view(1, 1, 1, 2), torch.tensor([True, False]).view(1, 1, 1, 2)
    >>> combine(torch.zeros(1, 1, 1, 2, dtype=torch.uint8), p, human, 0.5).flatten().tolist()
    [0, 1]
    """
    _check_labels(human_labels, probabilities, human, tau_b)
    return torch.where(human, human_labels, (probabilities >= tau_b).to(torch.uint8))


def human_pixels(probabilities: torch.Tensor, experiment: Experiment, generator: torch.Generator) -> torch.Tensor:
    """Which pixels of queried images the human labels: bool, the shape of ``probabilities``.

    ``experiment.annotation`` decides: all ("full"), none ("model-only"), those with ``|0.5 - p| <= tau_u`` ("partial",
    "partial-refreshed", "human-only"), or as many of each image as those, but the ones nearest to the predicted contour
    ("contour-band": the control that tells *uncertain* from *near the border*).

    Args:
        probabilities: float (N, 1, H, W), 0 to 1, predicted for the queried images.
        experiment: ``annotation`` and ``tau_u``.
        generator: of the CPU; the control draws which of equally near pixels it takes.

    Raises:
        ValueError: if the probabilities are of another shape or type or, on a CPU, not from 0 to 1.

    >>> p = torch.tensor([0.1, 0.4, 0.9]).view(1, 1, 1, 3)
    >>> human_pixels(p, Experiment(annotation="partial", tau_u=0.25), torch.Generator()).tolist()
    [[[[False, True, False]]]]
    """
    check_planes(probabilities=probabilities)
    uncertain = least_confidence(probabilities) <= experiment.tau_u
    if experiment.annotation in ("full", "model-only"):
        return torch.full_like(uncertain, experiment.annotation == "full")
    if experiment.annotation == "contour-band":
        return _nearest_to_contour(probabilities >= 0.5, uncertain.flatten(1).sum(1), generator)
    return uncertain


def audit_annotations(
    truth: torch.Tensor, masks: torch.Tensor, human: torch.Tensor, probabilities: torch.Tensor, tau_b: float
) -> pd.DataFrame:
    """What the model once wrote into training masks, against the truth and against what the model of today would write.

    It looks at the whole truth, which only a simulation has; nothing is trained on what it finds.

    Args:
        truth: uint8 (N, 1, H, W), 0 and 1.
        masks: the training masks, uint8, the same shape.
        human: which of their pixels came from the human, 0 and 1 or bool, the same shape.
        probabilities: of the model of today, float, the same shape.
        tau_b: probability from which it would write lesion.

    Returns:
        A row an image: ``model_pixels``, written by a model; ``wrong_pixels``, those of them that are not the truth;
        ``missed_pixels``, those of the wrong that are lesion; ``repeated_pixels``, those of the wrong that the model of
        today would write wrong again; ``mask_dice`` and ``model_dice``, eq. 4 of the training mask and of today's
        prediction (p >= 0.5), 0 to 1.

    Raises:
        ValueError: if the shapes differ or are others, a mask holds anything but 0 and 1, or ``tau_b`` or a probability
            is out of range.

    >>> truth = torch.tensor([1, 1, 0, 0], dtype=torch.uint8).view(1, 1, 1, 4)
    >>> written = torch.tensor([1, 0, 1, 0], dtype=torch.uint8).view(1, 1, 1, 4)
    >>> p = torch.tensor([0.9, 0.8, 0.7, 0.1]).view(1, 1, 1, 4)
    >>> audit_annotations(truth, written, torch.zeros_like(truth), p, 0.5).iloc[0, :4].to_dict()
    {'model_pixels': 4, 'wrong_pixels': 2, 'missed_pixels': 1, 'repeated_pixels': 1}
    """
    check_planes(truth=truth, masks=masks, human=human, probabilities=probabilities)
    _check_tau_b(tau_b)
    for name, mask in (("truth", truth), ("masks", masks), ("human", human)):
        check_mask(name, mask)
    by_model = human == 0
    wrong = by_model & (masks != truth)
    again = (probabilities >= tau_b) == masks.bool()
    counts = {
        "model_pixels": by_model,
        "wrong_pixels": wrong,
        "missed_pixels": wrong & (truth == 1),
        "repeated_pixels": wrong & again,
    }
    table = {name: pixels.flatten(1).sum(1).cpu().numpy() for name, pixels in counts.items()}
    table |= {
        "mask_dice": dice_score(masks, truth).cpu().double().numpy(),
        "model_dice": dice_score(probabilities, truth).cpu().double().numpy(),
    }
    return pd.DataFrame(table)


def _check_merge(truth: torch.Tensor, probabilities: torch.Tensor, tau_u: float, tau_b: float) -> None:
    if not is_number(tau_u) or not 0 <= tau_u <= 0.5:
        raise ValueError(f"tau_u must be from 0 to 0.5, got {tau_u!r}: it is a distance from p = 0.5")
    _check_tau_b(tau_b)
    check_planes(probabilities=probabilities)
    if not isinstance(truth, torch.Tensor):
        raise ValueError(f"truth must be a uint8 tensor, got {type(truth).__name__}")
    if truth.dtype != torch.uint8 or truth.shape != probabilities.shape:
        raise ValueError(
            f"truth must be uint8 of the probabilities' shape {tuple(probabilities.shape)}, "
            f"got {truth.dtype} {tuple(truth.shape)}"
        )
    check_probabilities(probabilities)
    check_mask("truth", truth)


def _check_labels(human_labels: torch.Tensor, probabilities: torch.Tensor, human: torch.Tensor, tau_b: float) -> None:
    """By shape and type alone: a run calls it for each query, and looking at values would wait for the device."""
    check_planes(human_labels=human_labels, probabilities=probabilities, human=human)
    _check_tau_b(tau_b)
    for name, plane, dtype in (("human_labels", human_labels, torch.uint8), ("human", human, torch.bool)):
        if plane.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {plane.dtype}")
    if not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities must be floating point, got {probabilities.dtype}; a mask is not a probability"
        )


def _check_tau_b(tau_b: float) -> None:
    if not is_number(tau_b) or not 0 < tau_b < 1:
        raise ValueError(f"tau_b must be above 0 and below 1, got {tau_b!r}: it is a probability")


def _nearest_to_contour(predicted: torch.Tensor, counts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The ``counts[i]`` pixels of image i that are nearest to where ``predicted`` changes, equally near ones by lot.

    Where the prediction has no contour, all pixels are equally near.
    """
    chosen = torch.zeros(predicted.shape, dtype=torch.bool)
    for mask, count, place in zip(predicted.cpu()[:, 0].numpy(), counts.tolist(), chosen.flatten(1), strict=True):
        distance = torch.zeros(mask.size, dtype=torch.float64)
        if mask.any() and not mask.all():
            to_other_side = ndimage.distance_transform_edt(mask) + ndimage.distance_transform_edt(~mask)
            distance = torch.from_numpy(to_other_side).flatten()
        # Different distances within a picture of 2048 pixels differ by more than 1e-4
        lot = 1e-4 * torch.rand(mask.size, generator=generator, dtype=torch.float64)
        place[(distance + lot).topk(count, largest=False).indices] = True
    return chosen.to(predicted.device)
