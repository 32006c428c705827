"""Strategies made of another strategy: noise, groups, strata and diversity around any score."""

from __future__ import annotations

import torch

from alutils.queries.geometry import distances_from, furthest_first
from alutils.queries.registry import wrapper
from alutils.queries.select import Strategy, highest_scores, scores_of
from alutils.queries.view import View
from alutils.system.checks import function_name, unwrapped

_STRATA = 3
_SHORTLIST = 2  # times the query's size


@wrapper("power")
def power(view: View, strategy: Strategy) -> torch.Tensor:
    """Power noise, ``log s + Gumbel(0, 1 / beta)``: images are drawn with probabilities in proportion to s^beta.

    s is the image's score and beta the experiment's ``power_beta``; a large one queries the highest scores (Kirsch et
    al., 2021).
    """
    return with_power_noise(view, positive(view, strategy), view.experiment.power_beta)


@wrapper("stochastic", selects=True)
def stochastic(view: View, strategy: Strategy) -> torch.Tensor:
    """Stochastic batches [16]: the pool, in random order, is cut into groups of the query's size.

    The group with the highest mean score is queried. Images that fill no group are left out.
    """
    scores, n = scores_of(view, strategy), view.query_size
    groups = torch.randperm(len(view), generator=view.generator)[: len(view) // n * n].view(-1, n)
    best = groups[scores[groups].mean(1).argmax()]
    return best[scores[best].argsort(descending=True)]


@wrapper("stratified", selects=True)
def stratified(view: View, strategy: Strategy) -> torch.Tensor:
    """Equal shares of the query from the thirds of the pool with small, medium and large predicted lesions.

    Within each third the highest scores are queried. Which thirds give one more, and which of equal areas goes where,
    is drawn by lot.
    """
    scores, generator = scores_of(view, strategy), view.generator
    strata = highest_scores(view.predicted_area(), len(view), generator).tensor_split(_STRATA)
    third, extra = divmod(view.query_size, _STRATA)
    sizes = [third + (i < extra) for i in torch.randperm(_STRATA, generator=generator).tolist()]
    parts = zip(strata, sizes, strict=True)
    chosen = torch.cat([part[highest_scores(scores[part], n, generator)] for part, n in parts])
    if len(chosen) < view.query_size:  # a third of a small pool was smaller than its share
        rest = scores.clone()
        rest[chosen] = -torch.inf
        chosen = torch.cat([chosen, highest_scores(rest, view.query_size - len(chosen), generator)])
    return chosen


@wrapper("diverse", selects=True)
def diverse(view: View, strategy: Strategy) -> torch.Tensor:
    """Of the images with the highest scores (twice the query), those whose features lie far apart: our own wrapper.

    The image with the highest score is the first; then comes, again and again, the one furthest from those chosen.
    """
    scores = scores_of(view, strategy)
    short = highest_scores(scores, _SHORTLIST * view.query_size, view.generator)
    row = distances_from(view.features()[short])
    first = torch.zeros(1, dtype=torch.int64)
    others = furthest_first(row, row(0).index_fill(0, first, -1), view.query_size - 1)
    return short[torch.cat([first, others])]


def positive(view: View, strategy: Strategy) -> torch.Tensor:
    """The strategy's scores, with its lowest possible score as zero, float32 (N,); ValueError if one is below that."""
    scores, least = scores_of(view, strategy), getattr(unwrapped(strategy), "least", None)
    scores = scores if least is None else scores - least(view)
    if (scores < 0).any():
        raise ValueError(
            f"strategy '{function_name(strategy)}': power noise needs scores of at least 0, the lowest is "
            f"{scores.min():.4g}; add a constant to them"
        )
    return scores


def with_power_noise(view: View, scores: torch.Tensor, beta: float) -> torch.Tensor:
    """``log s + Gumbel(0, 1 / beta)`` of scores of at least 0, float32 (N,)."""
    lots = torch.rand(len(view), generator=view.generator, dtype=torch.float64).clamp(min=1e-300)
    return (scores.double().clamp(min=1e-300).log() - (-lots.log()).log() / beta).float()
