"""The pictures of notebook 00, from the arrays that workflow/tour.py stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from alutils.annotation import merge_annotations
from alutils.lab import figures
from alutils.metrics import dice_score
from alutils.uncertainty import least_confidence


@dataclass(frozen=True, eq=False)
class Tour:
    """A few images with their true masks, and what a model said about them after each of its rounds.

    Args:
        images, masks: uint8 (N, 3, H, W) and (N, 1, H, W).
        probabilities: float32 (rounds, N, 1, H, W), 0 to 1.
        n_labelled: images that the model had learned from, by round.
    """

    images: torch.Tensor
    masks: torch.Tensor
    probabilities: torch.Tensor
    n_labelled: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> Tour:
        """Read the file that workflow/tour.py wrote."""
        with np.load(path) as stored:
            images, masks = torch.from_numpy(stored["images"]), torch.from_numpy(stored["masks"])
            probabilities = torch.from_numpy(stored["probabilities"]).float() / 255
            return cls(images, masks, probabilities, tuple(stored["n_labelled"].tolist()))

    def draw_round(self, n_labelled: int) -> tuple[Figure, str, str]:
        """The first image after a round: both outlines, and each pixel's uncertainty; for ``show_frames``."""
        p, truth = self.probabilities[self.n_labelled.index(n_labelled), :1], self.masks[:1]
        figure, (left, right) = plt.subplots(1, 2, figsize=(5.8, 3), layout="constrained")
        figures.draw_image(left, self.images[0], "expert (blue), model (orange)")
        figures.draw_outline(left, truth[0], figures.TRUTH)
        figures.draw_outline(left, p[0], figures.PREDICTION, "dashed")
        drawn = right.imshow(0.5 - least_confidence(p)[0, 0], cmap="magma", vmin=0, vmax=0.5)
        right.set_title("uncertainty: 0.5 - |0.5 - p|", fontsize=9)
        right.set_axis_off()
        figure.colorbar(drawn, ax=right, shrink=0.8)
        unsure = 100 * (least_confidence(p) <= 0.25).float().mean()
        dice = dice_score(p, truth).item()
        text = f"{n_labelled} images: Dice {dice:.2f}; {unsure:.0f} % of the pixels are uncertain"
        return figure, text, "Left both outlines on the image; right the uncertainty, bright where p is near 0.5."

    def draw_labels(self, tau_u: float) -> tuple[Figure, str, str]:
        """Who labels which pixels of the first image, and which labels are wrong; for ``show_frames``."""
        truth = self.masks[:1]
        mask, human = merge_annotations(truth, self.probabilities[-1, :1], tau_u=tau_u, tau_b=0.5)
        figure, (left, right) = plt.subplots(1, 2, figsize=(5.8, 3.4), layout="constrained")
        figures.draw_labels(left, self.images[0], mask[0], human[0], "who labelled each pixel", truth=truth[0])
        figures.draw_image(right, 1 - (mask != truth)[0].float(), "wrong labels (black)")
        figures.draw_outline(right, truth[0], figures.TRUTH_AMONG_LABELS)
        figures.label_legend(figure, outline=True)
        n_wrong = int((mask != truth).sum())
        text = f"the expert checks {100 * human.float().mean():.0f} % of the pixels; {n_wrong} labels are wrong"
        return figure, text, "Left, orange and blue where the expert labels, black and white where the model does."

    def draw_side_by_side(self, titles: Mapping[int, str], *, uncertainty: bool = False) -> Figure:
        """The images with these numbers, or their uncertainty after the last round, with the true outlines."""
        figure, axes = plt.subplots(1, len(titles), figsize=(2.25 * len(titles), 2.6), layout="constrained")
        for (k, title), place in zip(titles.items(), axes, strict=True):
            p = self.probabilities[-1, k]
            figures.draw_image(place, 1 - 2 * least_confidence(p) if uncertainty else self.images[k], title)
            if uncertainty:
                figures.draw_outline(place, self.masks[k], figures.TRUTH)
        return figure
