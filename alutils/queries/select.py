"""The query: the images with the highest scores by a strategy (step 2 of Fig. 1)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from alutils.data.splits import ImageView, images_at
from alutils.experiment import Experiment
from alutils.queries.registry import STRATEGIES
from alutils.samples import draws_dropout
from alutils.system.checks import ConfigError, did_you_mean, function_name
from alutils.system.device import memory_for
from alutils.system.tensors import is_number

Strategy = Callable[[nn.Module, torch.Tensor, Experiment, torch.Generator], torch.Tensor]
"""``strategy(model, images, experiment, generator)`` -> scores (n,); the highest is queried first.

One with the attribute ``needs_dropout = True`` is refused for a model without dropout, whose scores would all be equal.
"""


def select_queries(
    model: nn.Module,
    images: torch.Tensor,
    n: int,
    experiment: Experiment,
    generator: torch.Generator,
    strategy: Strategy | None = None,
    *,
    indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``n`` images of the pool with the highest scores; equal scores are ordered by lot.

    Without the lot, a saturated model, whose scores are all equal, would query in the order of file names.

    Args:
        model: trained so far, on the device where it is to run.
        images: the pool, uint8, (N, 3, H, W).
        n: images to query; all of a smaller pool.
        experiment: the strategy's name and settings, batch size and precision.
        generator: of the CPU; random scores, the dropout and, last, the lot draw from it.
        strategy: a function of your own in place of the strategy that the experiment names.
        indices: int64 (N,), positions of the pool if ``images`` holds more; your own strategy gets a copy of these.

    Returns:
        Positions in the pool, int64 (min(n, N),), the highest score first, and all scores, float32 (N,), on the CPU.

    Raises:
        ConfigError: if there is no such strategy, or it needs dropout and the model has none.
        OutOfMemory: if the device cannot hold a batch, or the pool's copy for a strategy of your own.
        ValueError: if ``n`` or ``images`` is not as above, or the scores are not N finite numbers.

    >>> def brightest(model, images, experiment, generator):
    ...     return images.float().mean((1, 2, 3))
    >>> pool = torch.tensor([10, 200, 90], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 64, 64)
    >>> select_queries(nn.Identity(), pool, 2, Experiment(), torch.Generator(), brightest)[0].tolist()
    [1, 2]
    """
    if not is_number(n, whole=True) or n < 0:
        raise ValueError(f"n must be at least 0, got {n!r}; it is a number of images")
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images must be a uint8 tensor of shape (N, 3, H, W), got {got}; Split.images is one")
    check_strategy(strategy)
    scores = score_pool(model, images, experiment, generator, strategy, indices=indices)
    return highest_scores(scores, n, generator), scores


def score_pool(
    model: nn.Module,
    images: torch.Tensor,
    experiment: Experiment,
    generator: torch.Generator,
    strategy: Strategy | None = None,
    *,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """The scores of the pool, float32 (N,), on the CPU: step 1 of Fig. 1. Arguments as for :func:`select_queries`."""
    score = _named(experiment.strategy) if strategy is None else strategy
    name, pool = strategy_name(experiment, strategy), images_at(images, indices)
    if len(pool) == 0:
        return torch.zeros(0)
    check_dropout(score, name, model, images[:1], experiment)
    if isinstance(pool, ImageView) and not getattr(score, "takes_views", False):
        what = f"strategy '{name}': the {len(pool)} images of the pool, copied for it,"
        with memory_for(what, "take a smaller image_size or device='cpu'", pool.device):
            pool = pool[:]
    return _checked(score(model, pool, experiment, generator), len(pool), name)


def highest_scores(scores: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of the ``n`` highest of ``scores``, the highest first, lots among equal ones: step 2 of Fig. 1."""
    lot = torch.randperm(len(scores), generator=generator)  # drawn last, so that the scores do not depend on it
    return lot[scores[lot].argsort(descending=True, stable=True)][:n]


def tied_at_the_cut(scores: torch.Tensor, chosen: torch.Tensor) -> int:
    """How many images share the lowest queried score, or 0 if all of them were queried, so that no lot decided.

    Args:
        scores: of the whole pool, (N,), from :func:`select_queries`.
        chosen: positions of the queried images, the highest score first.

    >>> scores = torch.tensor([0.2, 0.9, 0.5, 0.5])
    >>> tied_at_the_cut(scores, torch.tensor([1, 3])), tied_at_the_cut(scores, torch.tensor([1, 3, 2]))
    (2, 0)
    """
    if len(chosen) == 0:
        return 0
    tied = scores == scores[chosen[-1]]
    n_tied = int(tied.sum())
    return n_tied if n_tied > int(tied[chosen].sum()) else 0


def check_strategy(strategy: Strategy | None) -> None:
    """Raise ConfigError if ``strategy`` is neither a function nor None."""
    if strategy is not None and not callable(strategy):
        raise ConfigError(f"strategy: must be a function or None, got {strategy!r}; a name goes into the experiment")


def check_dropout(
    strategy: Strategy | None, name: str, model: nn.Module, image: torch.Tensor, experiment: Experiment
) -> None:
    """Raise ConfigError if the strategy called ``name`` needs dropout and the model draws none for ``image``."""
    function = strategy.func if isinstance(strategy, functools.partial) else strategy
    if getattr(function, "needs_dropout", False) and not draws_dropout(model, image, experiment):
        raise ConfigError(
            f"dropout: strategy '{name}' scores by what dropout changes, but the {type(model).__name__} drops nothing "
            f"(the experiment has dropout {experiment.dropout}), so all images would have the same score; take a "
            "dropout above 0 and a network with a dropout layer, or another strategy"
        )


def strategy_name(experiment: Experiment, strategy: Strategy | None = None) -> str:
    """The name of ``strategy``, or the experiment's strategy if it is None."""
    return experiment.strategy if strategy is None else function_name(strategy)


def _named(name: str) -> Strategy:
    if name not in STRATEGIES:
        raise ConfigError(f"strategy: there is no '{name}'; {did_you_mean(name, list(STRATEGIES))}")
    return STRATEGIES[name]


def _checked(scores: object, n: int, name: str) -> torch.Tensor:
    """What the strategy called ``name`` returned, as float32 (n,) on the CPU."""
    try:
        scores = torch.as_tensor(scores).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"strategy '{name}' must return {n} numbers, got {type(scores).__name__} ({error})") from None
    if scores.shape != (n,):
        raise ValueError(f"strategy '{name}' must return one score per image, shape ({n},), got {tuple(scores.shape)}")
    if not scores.isfinite().all():
        first = int((~scores.isfinite()).nonzero()[0])
        raise ValueError(f"strategy '{name}' must return finite scores; image {first} of {n} has {scores[first]}")
    return scores
