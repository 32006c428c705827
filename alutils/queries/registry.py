"""The query strategies by name, found without importing them, so that a process that needs names loads no torch.

To add a strategy, put one function with the mark :func:`strategy` into a file of this folder.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alutils.queries.select import Strategy

BASELINES = ("full", "full_cosine", "random_at_once")
"""What ``experiment.strategy`` may name besides the strategies: arms with one training and no queries.

Each takes as many steps as all trainings of a querying arm together. "full" trains on the whole training set.
"full_cosine" does the same with a cosine schedule. "random_at_once" trains on the cold start and random images, as many
in all as the other arms have annotated at their end.
"""


def strategy(name: str, /, *, needs_dropout: bool = False) -> Callable[[Strategy], Strategy]:
    """Mark a function as the strategy called ``name``: ``@strategy("bald", needs_dropout=True)``.

    The name is written out, because it is read from the file's text. The function may get its images as a
    :class:`alutils.data.splits.ImageView`. With ``needs_dropout`` it is refused if the network's dropout draws nothing.
    """

    def mark(function: Strategy) -> Strategy:
        function.__name__, function.needs_dropout, function.takes_views = name, needs_dropout, True
        return function

    return mark


def find_strategies(folder: Path) -> dict[str, tuple[Path, str]]:
    """For the name of each strategy in a folder: its file, and the function's name in it.

    Raises:
        ValueError: if two strategies have the same name.
    """
    places: dict[str, tuple[Path, str]] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", None) == "strategy":
                    name = ast.literal_eval(mark.args[0])
                    if name in places:
                        raise ValueError(f"two strategies are called '{name}', in {places[name][0]} and {path}")
                    places[name] = path, node.name
    return places


class _Strategies(Mapping[str, "Strategy"]):
    """Finds all strategies at once, and imports the file of one when it is asked for."""

    def __init__(self) -> None:
        self._places = find_strategies(Path(__file__).parent)

    def __getitem__(self, name: str) -> Strategy:
        path, function = self._places[name]
        return getattr(import_module(f"alutils.queries.{path.stem}"), function)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<strategies {', '.join(self)}>"


STRATEGIES: Mapping[str, Strategy] = _Strategies()
"""What ``experiment.strategy`` may name: all of one signature, all with the highest score queried first.

>>> list(STRATEGIES)
['random', 'least_confidence', 'entropy', 'binary_entropy', 'mc_dropout', 'bald']
"""
