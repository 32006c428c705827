"""Strategies that spread a query over the pool's features: core-set, suggestive annotation, BADGE."""

from __future__ import annotations

import torch
from torch import nn

from alutils.queries.geometry import distances_from, furthest_first, nearest_of, spread_out
from alutils.queries.registry import strategy
from alutils.queries.sampled import score_mc_dropout
from alutils.queries.select import highest_scores
from alutils.queries.view import View
from alutils.system.checks import ConfigError
from alutils.training import batch_results


@strategy("kcentre", selects=True)
def select_kcentre(view: View) -> torch.Tensor:
    """Core-set by greedy k-centre: again and again the image furthest from all labelled and chosen ones.

    Distances are Euclidean, between the means of the bottleneck's features. The model's predictions play no part.
    """
    features = view.features()
    return furthest_first(distances_from(features), nearest_of(features, view.features("labelled")), view.query_size)


@strategy("suggestive", selects=True, needs_dropout=True)
def select_suggestive(view: View) -> torch.Tensor:
    """Suggestive annotation [5]: of the most uncertain images (twice the query), those that represent the pool best.

    Uncertainty is the score of Monte Carlo dropout (eq. 3), where [5] has four bootstrapped networks. The images s are
    added one by one to maximize the sum over the pool of ``max_s cos(z, z_s)``, where z are the features.
    """
    short = highest_scores(score_mc_dropout(view), 2 * view.query_size, view.generator)
    z = nn.functional.normalize(view.features(), dim=1)
    likeness = z[short] @ z.T
    covered, chosen = torch.full((len(view),), -1.0), []
    for _ in range(view.query_size):
        gains = torch.maximum(likeness, covered).sum(1)
        gains[chosen] = -torch.inf
        chosen.append(int(gains.argmax()))
        covered = torch.maximum(covered, likeness[chosen[-1]])
    return short[chosen]


@strategy("badge", selects=True)
def select_badge(view: View) -> torch.Tensor:
    """BADGE: the choice of k-means++ among the gradients that each image would give the last layer.

    The gradient of a pixel, were its predicted label true, is ``(p - y) h``, with y = 1 where p >= 0.5 and h the
    decoder's features (16 by default). Our reduction to an image is the mean of ``|p - y| h`` over the pixels: with the
    sign, an unsure border's two sides would cancel.
    """
    if not all(hasattr(view.model, part) for part in ("encode", "decode", "segmentation_head")):
        raise ConfigError(f"strategy: 'badge' needs a segmentation_head, which a {type(view.model).__name__} lacks")
    head, seen = view.model.segmentation_head, []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))

    def gradients(x: torch.Tensor) -> torch.Tensor:
        p = view.model.decode(view.model.encode(x)).float().sigmoid()
        doubt = nn.functional.adaptive_avg_pool2d(torch.minimum(p, 1 - p), seen[0].shape[2:])  # h may be coarser
        return (doubt * seen.pop()).mean((2, 3))

    try:
        found = [g for _, g in batch_results(gradients, view.model, view.images, view.experiment)]
    finally:
        hook.remove()
    return spread_out(torch.cat(found).cpu(), view.query_size, view.generator)
