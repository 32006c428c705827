"""The query: the images with the highest scores by a strategy (step 2 of Fig. 1)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from alutils.data.splits import ImageView, images_at
from alutils.experiment import Experiment
from alutils.queries.registry import STRATEGIES
from alutils.system.checks import ConfigError, did_you_mean, function_name
from alutils.system.device import memory_for
from alutils.system.tensors import is_number
from alutils.uncertainty import draws_dropout

Strategy = Callable[[nn.Module, torch.Tensor, Experiment, torch.Generator], torch.Tensor]
"""``strategy(model, images, experiment, generator)`` -> scores (n,); the highest is queried first.

A strategy that scores by dropout has the attribute ``needs_dropout = True``. It is then refused for a model without
dropout, whose scores would all be equal.
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
    """The ``n`` most informative images of the pool: those with the highest scores; lots decide among equal scores.

    Lots are drawn after the scores are known, and change nothing if no two scores are equal. If instead the first of
    equal images were taken, a saturated model, whose scores are all equal, would query by file name. See
    :func:`tied_at_the_cut`.

    Your own strategy is a function of the model, the pool's images, the experiment and a generator for whatever it
    draws. The one in the example queries the images with the largest predicted lesions.

    Args:
        model: trained so far, on the device where it is to run.
        images: the pool, uint8, (N, 3, H, W).
        n: images to query; where the pool has fewer, all of it.
        experiment: the strategy's name, the reduction from pixels to an image, N of eq. 3, batch size and precision.
        generator: of the CPU; the random strategy, the dropout and the lot among equal scores draw from it.
        strategy: a function of your own, or None for the one of :data:`alutils.queries.registry.STRATEGIES` that the
            experiment names.
        indices: int64 (N,), positions of the pool in ``images``, which then may hold more; None: all are the pool. Our
            own strategies gather a batch at a time; yours gets a copy of the pool.

    Returns:
        Positions in the pool, int64 (min(n, N),), the highest score first; and the scores of all, float32 (N,). Both
        are on the CPU.

    Raises:
        OutOfMemory: if the device cannot hold a batch, or the pool's copy for a strategy of your own.
        ConfigError: if there is no strategy of that name, ``strategy`` is not a function, or it needs dropout and the
            model has none.
        ValueError: if ``n`` is not a whole number of at least 0, the images are not uint8 of that shape, or the scores
            are not N finite numbers.

    >>> from alutils.model import build_unet
    >>> from alutils.training import predict_probabilities
    >>> def largest_lesion(model, images, experiment, generator):
    ...     return predict_probabilities(model, images, experiment).mean((1, 2, 3))
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> pool = torch.arange(0, 250, 50, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 64, 64)
    >>> generator = torch.Generator().manual_seed(0)
    >>> chosen, scores = select_queries(model, pool, 2, Experiment(), generator, largest_lesion)
    >>> torch.equal(scores[chosen], scores.sort(descending=True).values[:2])
    True
    """
    if not is_number(n, whole=True) or n < 0:
        raise ValueError(f"n must be at least 0, got {n!r}; it is a number of images")
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images must be a uint8 tensor of shape (N, 3, H, W), got {got}; Split.images is one")
    check_strategy(strategy)
    score = find_strategy(experiment.strategy) if strategy is None else strategy
    name, pool = strategy_name(experiment, strategy), images_at(images, indices)
    if not len(pool):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    check_dropout(score, name, model, images[:1], experiment)
    if isinstance(pool, ImageView) and not getattr(score, "takes_views", False):
        what = f"strategy '{name}': the {len(pool)} images of the pool, copied for it,"
        with memory_for(what, "take a smaller image_size or device='cpu'", pool.device):
            pool = pool[:]
    scores = _checked(score(model, pool, experiment, generator), len(pool), name)
    lot = torch.randperm(len(scores), generator=generator)  # drawn last, so that the scores do not depend on it
    return lot[scores[lot].argsort(descending=True, stable=True)][:n], scores


def tied_at_the_cut(scores: torch.Tensor, chosen: torch.Tensor) -> int:
    """How many images of the pool share the lowest score queried, if a lot had to choose among them; else 0.

    Args:
        scores: of the whole pool, (N,).
        chosen: positions of the queried images, the highest score first; both from :func:`select_queries`.

    Returns:
        0 where all images with that score were queried.

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
    """Refuse what can be neither called nor left to the experiment.

    Raises:
        ConfigError: if ``strategy`` is neither a function nor None.

    >>> check_strategy("entropy")
    Traceback (most recent call last):
    alutils.system.checks.ConfigError: strategy: must be a function or None, got 'entropy'; ...
    """
    if strategy is not None and not callable(strategy):
        raise ConfigError(f"strategy: must be a function or None, got {strategy!r}; a name goes into the experiment")


def check_dropout(
    strategy: Strategy | None, name: str, model: nn.Module, image: torch.Tensor, experiment: Experiment
) -> None:
    """Refuse a strategy that scores by dropout where the model's dropout draws nothing.

    Args:
        strategy: the function; None, as of a baseline, needs nothing.
        name: what to call it.
        model, image, experiment: as for :func:`alutils.uncertainty.draws_dropout`.

    Raises:
        ConfigError: if it is so.
    """
    function = strategy.func if isinstance(strategy, functools.partial) else strategy
    if getattr(function, "needs_dropout", False) and not draws_dropout(model, image, experiment):
        raise ConfigError(
            f"dropout: strategy '{name}' scores by what dropout changes, but the {type(model).__name__} drops nothing "
            f"(the experiment has dropout {experiment.dropout}), so all images would have the same score; take a "
            "dropout above 0 and a network with a dropout layer, or another strategy"
        )


def find_strategy(name: str) -> Strategy:
    """The strategy called ``name``.

    Raises:
        ConfigError: if there is none; the nearest name is suggested.

    >>> find_strategy("least_confidance")
    Traceback (most recent call last):
    alutils.system.checks.ConfigError: strategy: there is no 'least_confidance'; did you mean 'least_confidence'?
    """
    if name not in STRATEGIES:
        raise ConfigError(f"strategy: there is no '{name}'; {did_you_mean(name, list(STRATEGIES))}")
    return STRATEGIES[name]


def strategy_name(experiment: Experiment, strategy: Strategy | None = None) -> str:
    """The name of the strategy that is used: the function's own where one is given, else the experiment's.

    >>> strategy_name(Experiment()), strategy_name(Experiment(), max)
    ('least_confidence', 'max')
    """
    return experiment.strategy if strategy is None else function_name(strategy)


def _checked(scores: object, n: int, name: str) -> torch.Tensor:
    """What a strategy returned as float32 (n,) on the CPU, or an error that says what is wrong with it."""
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
