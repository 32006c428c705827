"""Asking a strategy about the pool, and the query that follows (steps 1 and 2 of Fig. 1)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from alutils.data.splits import images_at
from alutils.experiment import Experiment
from alutils.queries.registry import STRATEGIES
from alutils.queries.view import View
from alutils.samples import draws_dropout
from alutils.system.checks import ConfigError, did_you_mean, function_name, listed, shown, unwrapped
from alutils.system.device import memory_for
from alutils.system.tensors import is_number

Strategy = Callable[..., torch.Tensor]
"""``strategy(view)`` -> scores (N,), the highest queried first, or a selection: positions of the pool, int64 (n,).

``view`` is a :class:`alutils.queries.view.View`. The form ``strategy(model, images, experiment, generator)``, with a
copy of the pool's images, is valid too. A strategy with the attribute ``needs_dropout = True`` is refused for a model
without dropout, whose scores would all be equal.
"""


class Answer(NamedTuple):
    """What a strategy answered: scores, float32 (N,), and None, or NaN for each image and its selection, int64 (n,)."""

    scores: torch.Tensor
    selection: torch.Tensor | None


def select_queries(  # seven parameters: all that a query depends on, without a run
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
        indices: int64 (N,), positions of the pool if ``images`` holds more; a strategy of four arguments gets a copy.

    Returns:
        Positions in the pool, int64 (min(n, N),), the highest score first, and all scores, float32 (N,), on the CPU
        (NaN where the strategy selects images without scores, or nothing is queried).

    Raises:
        ConfigError: if there is no such strategy, it needs dropout and the model has none, or needs the pool's masks.
        OutOfMemory: if the device cannot hold a batch, or the pool's copy for a strategy of your own.
        ValueError: if ``n`` or ``images`` is not as above, or what the strategy returns is neither N finite scores nor
            ``n`` different positions.

    >>> def brightest(view):
    ...     return view.images[:].float().mean((1, 2, 3))
    >>> pool = torch.tensor([10, 200, 90], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 64, 64)
    >>> select_queries(nn.Identity(), pool, 2, Experiment(), torch.Generator(), brightest)[0].tolist()
    [1, 2]
    """
    if not is_number(n, whole=True) or n < 0:
        raise ValueError(f"n must be a whole number of images, at least 0, got {n!r}")
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images must be a uint8 tensor of shape (N, 3, H, W), got {got}; Split.images is one")
    check_strategy(strategy)
    view = View.of(model, images_at(images, indices), experiment, generator, n)
    answer = ask(view, strategy)
    return chosen_of(answer, view), answer.scores


def ask(view: View, strategy: Strategy | None = None) -> Answer:
    """What the strategy, by default the experiment's, says of the pool: step 1 of Fig. 1; errors as select_queries."""
    name = strategy_name(view.experiment, strategy)
    strategy = strategy_function(view.experiment, strategy)
    if strategy is None:
        raise ConfigError(f"strategy: there is no '{name}'; {did_you_mean(name, list(STRATEGIES))}")
    if sees_masks(strategy) and view.masks is None:
        raise ConfigError(
            f"strategy: '{name}' is a positive control, which needs the pool's masks; only a run has them"
        )
    if len(view) == 0 or view.query_size == 0:
        return Answer(torch.full((len(view),), math.nan), torch.zeros(0, dtype=torch.int64))
    check_dropout(strategy, name, view.model, view.images[:1], view.experiment)
    answer = _checked(_call(strategy, view, name), view, name)
    _check_pseudo_labelled(view, name)
    return answer


def scores_of(view: View, strategy: Strategy) -> torch.Tensor:
    """The scores of a strategy within a wrapper, float32 (N,); ValueError if it selects images instead."""
    name = function_name(strategy)
    answer = _checked(_call(strategy, view, name), view, name)
    if answer.selection is not None:
        raise ValueError(f"strategy '{name}' selects images and gives no scores, so no wrapper can be put around it")
    return answer.scores


def chosen_of(answer: Answer, view: View) -> torch.Tensor:
    """The queried images' positions in the pool, int64 (n,): step 2 of Fig. 1."""
    if answer.selection is not None:
        return answer.selection
    return highest_scores(answer.scores, view.query_size, view.generator)


def highest_scores(scores: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of the ``n`` highest of ``scores``, the highest first, lots among equal ones: step 2 of Fig. 1."""
    lot = torch.randperm(len(scores), generator=generator)  # drawn last, so that the scores do not depend on it
    return lot[scores[lot].argsort(descending=True, stable=True)][:n]


def tied_at_the_cut(scores: torch.Tensor, chosen: torch.Tensor) -> int:
    """How many images share the lowest queried score, or 0 if all of them were queried, so that no lot decided.

    ``scores``, (N,), are of the whole pool, ``chosen`` the queried positions, the highest score first.

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
    if getattr(unwrapped(strategy), "needs_dropout", False) and not draws_dropout(model, image, experiment):
        raise ConfigError(
            f"dropout: strategy '{name}' scores by what dropout changes, but the {type(model).__name__} drops nothing "
            f"(the experiment has dropout {experiment.dropout}), so all images would have the same score; take a "
            "dropout above 0 and a network with a dropout layer, or another strategy"
        )


def sees_masks(strategy: Strategy | None) -> bool:
    """Whether the strategy is a positive control, which gets the pool's masks."""
    return getattr(unwrapped(strategy), "sees_masks", False)


def strategy_function(experiment: Experiment, strategy: Strategy | None = None) -> Strategy | None:
    """``strategy``, or the experiment's strategy if it is None; None where that is no strategy, but a baseline."""
    return STRATEGIES.get(experiment.strategy) if strategy is None else strategy


def strategy_name(experiment: Experiment, strategy: Strategy | None = None) -> str:
    """The name of ``strategy``, or the experiment's strategy if it is None."""
    return experiment.strategy if strategy is None else function_name(strategy)


def _call(strategy: Strategy, view: View, name: str) -> object:
    """What ``strategy`` returns, in whichever of the two forms it is written."""
    if _takes_a_view(strategy):
        return strategy(view)
    what = f"strategy '{name}': the {len(view)} images of the pool, copied for it,"
    with memory_for(what, "take a smaller image_size or device='cpu'", view.images.device):
        pool = view.images[:]
    return strategy(view.model, pool, view.experiment, view.generator)


def _check_pseudo_labelled(view: View, name: str) -> None:
    found, n = view.pseudo_labelled, len(view)
    positions = isinstance(found, torch.Tensor) and found.dtype == torch.int64 and found.ndim == 1
    if not positions or len(found.unique()) < len(found) or (len(found) and not 0 <= found.min() <= found.max() < n):
        raise ValueError(
            f"strategy '{name}' must put different positions from 0 to {n - 1} into view.pseudo_labelled, int64, got "
            f"{listed(found.tolist()) if isinstance(found, torch.Tensor) else shown(found)}"
        )


def _takes_a_view(strategy: Strategy) -> bool:
    try:
        parameters = inspect.signature(strategy).parameters.values()
    except ValueError:  # some functions that are written in C
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) == 1 and not any(p.kind == p.VAR_POSITIONAL for p in parameters)


def _checked(answer: object, view: View, name: str) -> Answer:
    """What the strategy called ``name`` returned, after a check."""
    n = len(view)
    try:
        found = torch.as_tensor(answer).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"strategy '{name}' must return {n} numbers, got {type(answer).__name__} ({error})") from None
    positions = found.dtype == torch.int64 and found.shape == (view.query_size,)
    if positions and (found.shape != (n,) or torch.equal(found.sort().values, torch.arange(n))):
        if found.unique().numel() < len(found) or found.min() < 0 or found.max() >= n:
            raise ValueError(
                f"strategy '{name}' must select different positions from 0 to {n - 1}, got {listed(found.tolist())}"
            )
        return Answer(torch.full((n,), math.nan), found)
    if found.shape != (n,):
        raise ValueError(
            f"strategy '{name}' must return one score per image, shape ({n},), or the positions of {view.query_size} "
            f"images, int64, got {tuple(found.shape)}, {str(found.dtype).removeprefix('torch.')}"
        )
    scores = found.float()
    if not scores.isfinite().all():
        first = int((~scores.isfinite()).nonzero()[0])
        raise ValueError(f"strategy '{name}' must return finite scores; image {first} of {n} has {scores[first]}")
    return Answer(scores, None)
