"""The query strategies by name, found without importing them, so that a process that needs names loads no torch.

To add one, put a function with the mark :func:`strategy` or :func:`wrapper` into a file of this folder.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alutils.system.checks import ConfigError, did_you_mean, function_name, unwrapped

if TYPE_CHECKING:
    import torch

    from alutils.queries.select import Strategy
    from alutils.queries.view import View

BASELINES = ("full", "full_cosine", "random_at_once")
"""What ``experiment.strategy`` may name besides the strategies: arms with one training and no queries.

Each takes as many steps as all trainings of a querying arm (without pseudo-labels) together. "full" trains on the whole
training set. "full_cosine" does the same with a cosine schedule. "random_at_once" trains on the cold start and random
images, as many in all as the other arms have annotated at their end.
"""


def strategy(
    name: str,
    /,
    *,
    selects: bool = False,
    needs_dropout: bool = False,
    sees_masks: bool = False,
    least: Callable[[View], float] | None = None,
) -> Callable[[Strategy], Strategy]:
    """Mark a function as the strategy called ``name``: ``@strategy("bald", needs_dropout=True)``.

    The name is written out, because it is read from the file's text; it has no hyphen.

    Args:
        name: what ``experiment.strategy`` calls it.
        selects: whether it returns positions and no scores, so that no wrapper can stand before its name.
        needs_dropout: whether to refuse it where the network's dropout draws nothing.
        sees_masks: whether it cheats: ``view.masks`` then holds the pool's masks.
        least: ``least(view)`` is the lowest score that an image can have, where this is below 0, for wrappers that need
            scores of at least 0.
    """

    def mark(function: Strategy) -> Strategy:
        function.__name__, function.needs_dropout, function.least = name, needs_dropout, least
        function.sees_masks = sees_masks
        return function

    return mark


def wrapper(
    name: str, /, *, selects: bool = False
) -> Callable[[Callable[[View, Strategy], torch.Tensor]], Callable[[Strategy], Strategy]]:
    """Mark ``function(view, strategy)`` as the wrapper called ``name``: a strategy made of another one.

    The marked function takes a strategy, one of your own too, and returns the wrapped one. By name, a wrapper and a
    hyphen stand before the strategy that it wraps: "power-entropy", "stratified-power-entropy". ``selects`` is that of
    :func:`strategy`.
    """

    def mark(function: Callable[[View, Strategy], torch.Tensor]) -> Callable[[Strategy], Strategy]:
        @functools.wraps(function)
        def wrap(inner: Strategy) -> Strategy:
            def wrapped(view: View) -> torch.Tensor:
                return function(view, inner)

            wrapped.__name__ = f"{name}-{function_name(inner)}"
            wrapped.__doc__ = function.__doc__
            marks = unwrapped(inner)
            wrapped.needs_dropout = getattr(marks, "needs_dropout", False)
            wrapped.sees_masks = getattr(marks, "sees_masks", False)
            wrapped.inner, wrapped.outer = inner, function
            return wrapped

        return wrap

    return mark


class Marked(NamedTuple):
    """Where a marked function is, and whether it selects images without a score for each."""

    path: Path
    function: str
    selects: bool


def find_marked(folder: Path, mark: str) -> dict[str, Marked]:
    """The functions in a folder that are marked with ``@mark("name", ...)``, by name.

    Raises:
        ValueError: if two have one name.
    """
    places: dict[str, Marked] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and getattr(call.func, "id", None) == mark:
                    name = ast.literal_eval(call.args[0])
                    if name in places:
                        raise ValueError(f"two functions are the {mark} '{name}', in {places[name].path} and {path}")
                    options = {option.arg: option.value for option in call.keywords}
                    selects = "selects" in options and ast.literal_eval(options["selects"])
                    places[name] = Marked(path, node.name, selects)
    return places


class _Strategies(Mapping[str, "Strategy"]):
    """Finds all strategies at once, and imports the file of one when it is asked for."""

    def __init__(self) -> None:
        folder = Path(__file__).parent
        self._places, self._wrappers = find_marked(folder, "strategy"), find_marked(folder, "wrapper")

    def __getitem__(self, name: str) -> Strategy:
        *outer, inner = name.split("-")
        found = _loaded(self._places[inner])
        for each in reversed(outer):
            found = _loaded(self._wrappers[each])(found)
        return found

    def __contains__(self, name: object) -> bool:
        *outer, inner = str(name).split("-")
        return inner in self._places and all(each in self._wrappers for each in outer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<strategies {', '.join(self)}; around those with scores {', '.join(self._wrappers)}>"

    def check_arm(self, name: str, setting: str) -> None:
        """Raise ConfigError if ``name`` is no strategy and no baseline, wraps what gives no scores, or wraps twice."""
        if name in BASELINES:
            return
        if name not in self:
            raise ConfigError(f"{setting}: there is no '{name}'; {did_you_mean(str(name), [*self, *BASELINES])}")
        *outer, inner = name.split("-")
        if twice := [wrapper for wrapper in outer if outer.count(wrapper) > 1]:
            raise ConfigError(f"{setting}: '{name}' has the wrapper '{twice[0]}' twice; leave one out")
        marked = [(each, self._wrappers[each]) for each in outer] + [(inner, self._places[inner])]
        for (wrapper, _), (wrapped, found) in pairwise(marked):
            if found.selects:
                raise ConfigError(
                    f"{setting}: in '{name}' the wrapper '{wrapper}' needs a score for each image, but '{wrapped}' "
                    f"selects images without; put '{wrapper}' before a strategy with scores, such as entropy"
                )


def _loaded(marked: Marked) -> Callable:
    return getattr(import_module(f"alutils.queries.{marked.path.stem}"), marked.function)


STRATEGIES = _Strategies()
"""What ``experiment.strategy`` may name; the highest score is queried first. Wrappers go before a name.

>>> "entropy" in STRATEGIES, "power-entropy" in STRATEGIES, "entropy-power" in STRATEGIES
(True, True, False)
"""
