"""What Tables I and II compare: the arms and the cells, for the batch and for the recorded runs alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from alutils.experiment import TAU_B, TAU_U, same_run
from alutils.queries.registry import STRATEGIES


def check_arms(names: list[str]) -> list[str]:
    """The names, each once; ConfigError unless each is a strategy's, maybe behind wrappers, or a baseline's."""
    for name in names:
        STRATEGIES.check_arm(name, "strategies")
    return list(dict.fromkeys(names))


PAPER_ARMS = ("random", "least_confidence", "entropy", "mc_dropout", "full")
"""The arms of the paper's Table I."""

QUICK_ARMS = ("random", "least_confidence", "full")
"""What minutes on two cores allow, with enough seeds for a verdict."""

CONTROL_ARMS = ("full_cosine", "random_at_once")
"""Baselines that tell what the choice of images does from what the training schedule does."""


@dataclass(frozen=True)
class Cell:
    """A cell of Table II: who annotates which pixels of the queried images.

    >>> str(Cell("partial", 0.125, 0.75))
    'partial-0.125-0.75'
    """

    annotation: str
    tau_u: float
    tau_b: float

    def __str__(self) -> str:
        return f"{self.annotation}-{self.tau_u}-{self.tau_b}"

    @property
    def distinct(self) -> Cell:
        """The cell that stands for all cells with the same run, see :func:`alutils.experiment.same_run`.

        >>> str(Cell("partial", 0.25, 0.75).distinct)
        'partial-0.25-0.5'
        """
        return Cell("partial", *same_run(self.tau_u, self.tau_b)) if self.annotation == "partial" else self


GRID = [Cell("partial", tau_u, tau_b) for tau_u, tau_b in product(TAU_U, TAU_B)]
"""The paper's Table II."""

QUICK_CELLS = [Cell("partial", 0.25, 0.25)]
"""What runs beside :data:`QUICK_ARMS`."""

MODE_CELLS = [Cell(mode, 0.25, 0.5) for mode in ("human-only", "model-only", "partial-refreshed", "contour-band")]
"""The controls of mode partial, at one pair of thresholds. Mode full is the arm least_confidence of Table I.

In ``model-only`` and ``contour-band`` the model labels pixels of any probability. At tau_b = 0.25 the model of a short
cold start, in which hardly any pixel reaches 0.5, calls nearly all skin lesion.
"""


def distinct(cells: list[Cell]) -> dict[str, Cell]:
    """The runs that the cells need, by name; cells with the same run need it once.

    >>> list(distinct(GRID))[-2:]
    ['partial-0.25-0.5', 'partial-0.375-0.5']
    """
    return {str(cell.distinct): cell.distinct for cell in cells}
