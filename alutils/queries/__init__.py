"""Which images to ask the oracle about next: steps 1 and 2 of Fig. 1.

Each file ``baseline``, ``pixel``, ``sampled`` holds a family of strategies, ``registry`` finds them by name, and
``select`` queries by their scores.
"""

from alutils.queries.registry import BASELINES, STRATEGIES, strategy

__all__ = ["BASELINES", "STRATEGIES", "strategy"]
