"""Strategies that rank images by several criteria at once: Nath's committee [20] and HAL-IA's image criteria [19]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from alutils.data.superpixels import region_share, superpixels
from alutils.data.thumbnails import thumbnails
from alutils.queries.registry import strategy
from alutils.queries.view import View
from alutils.uncertainty import binary_entropy

_SIDE, _BINS = 32, 16  # of the thumbnails whose grey levels are compared


@strategy("nath", needs_dropout=True)
def score_nath(view: View) -> torch.Tensor:
    """Nath's criteria [20]: a committee's uncertainty, and little mutual information with the labelled images.

    Their ranks are added. The committee is the predictions with dropout, where [20] trains several networks; its
    uncertainty is the mean entropy of their mean. The mutual information is that of the grey levels (16 bins) at equal
    places of two thumbnails of 32 x 32 pixels, and its mean over the labelled images counts.
    """
    entropy = torch.cat([maps.entropy.flatten(1).mean(1).cpu() for _, maps in view.samples()])
    levels = view.once("grey levels", _grey_levels, of="all")
    total = view.once("mutual information", lambda _: {"sum": torch.zeros(len(levels)), "of": 0}, of="all")
    positions = view.labelled.images.indices.tolist()
    for position in positions[total["of"] :]:  # those of earlier rounds are in the sum
        total["sum"] += _mutual_information(levels, levels[position])
    total["of"] = len(positions)
    return _ranks(entropy) + _ranks(-total["sum"][view.images.indices])


@strategy("hal_ia")
def score_hal_ia(view: View) -> torch.Tensor:
    """HAL-IA's three criteria [19]: entropy, regional inconsistency and diversity. The product of their ranks is ours.

    Entropy: the mean binary entropy. Inconsistency: the share of pixels predicted against the majority of their
    superpixel. Diversity: one minus the largest cosine of the bottleneck's features with those of a labelled image.
    """
    regions = view.once("superpixels", superpixels, of="all")[view.images.indices]
    entropy, inconsistency = [], []
    for chosen, p in view.probabilities():
        entropy.append(binary_entropy(p).flatten(1).mean(1).cpu())
        lesion = F.interpolate(p, size=regions.shape[1:], mode="area")[:, 0].cpu() >= 0.5
        share = region_share(lesion, regions[chosen])
        inconsistency.append((lesion != (share >= 0.5)).flatten(1).float().mean(1))
    pool, labelled = (F.normalize(view.features(of), dim=1) for of in ("pool", "labelled"))
    diversity = 1 - (pool @ labelled.T).amax(1) if len(labelled) else torch.zeros(len(view))
    return torch.stack([_ranks(torch.cat(entropy)), _ranks(torch.cat(inconsistency)), _ranks(diversity)]).prod(0)


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """From 1 / N for the smallest to 1; equal values share their mean rank."""
    return torch.from_numpy(rankdata(values.numpy())).float() / len(values)


def _grey_levels(images: torch.Tensor) -> torch.Tensor:
    """The bin of each thumbnail's pixel, int64 (N, pixels)."""
    return (thumbnails(images, _SIDE).flatten(1) * _BINS).long().clamp(max=_BINS - 1)


def _mutual_information(levels: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """The mutual information of each row of ``levels`` with ``one``, float32 (N,), in nats."""
    joint = torch.zeros(len(levels), _BINS**2)
    joint.scatter_add_(1, levels * _BINS + one, torch.full(levels.shape, 1 / levels.shape[1]))
    joint = joint.view(-1, _BINS, _BINS)
    apart = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.special.xlogy(joint, joint / apart.clamp(min=1e-30)).sum((1, 2))
