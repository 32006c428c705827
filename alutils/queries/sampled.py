"""Strategies that sum up how several predictions of one image differ (eq. 3, section III-A)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from alutils.queries.registry import strategy
from alutils.queries.view import View
from alutils.samples import SampleMaps
from alutils.uncertainty import image_score


@strategy("mc_dropout", needs_dropout=True)
def score_mc_dropout(view: View) -> torch.Tensor:
    """The image's eq. 3, the standard deviation of predictions with dropout: the largest sum first."""
    return _map_scores(view, view.samples(), "std")


@strategy("bald", needs_dropout=True)
def score_bald(view: View) -> torch.Tensor:
    """The image's mutual information between prediction and weights, by dropout: the largest sum first."""
    return _map_scores(view, view.samples(), "mutual_information")


@strategy("equal")
def score_equal(view: View) -> torch.Tensor:
    """EquAL [15], for whole images: the binary entropies of the image and of its mirror image, the largest sum first.

    The second map is mirrored back and added to the first; then the pixels are summed up.
    """
    maps = ((2 * (m.entropy - m.mutual_information), m.mean) for _, m in view.samples(how="flip"))
    return torch.cat([_reduced(view, entropies, mean) for entropies, mean in maps]).cpu()


def _map_scores(view: View, batches: Iterator[tuple[slice, SampleMaps]], name: str) -> torch.Tensor:
    """Each image's score by the map of :class:`alutils.samples.SampleMaps` that is called ``name``."""
    return torch.cat([_reduced(view, getattr(m, name), m.mean) for _, m in batches]).cpu()


def _reduced(view: View, maps: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return image_score(maps, view.experiment.reduction, probabilities=mean, tau_u=view.experiment.tau_u)
