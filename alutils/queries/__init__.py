"""Which images to ask the oracle about next: steps 1 and 2 of Fig. 1.

``registry`` finds the strategies by name, ``view`` is what they see, ``select`` queries by their scores, and
``geometry`` spreads points, ``clustered`` takes one image per cluster. Every other file holds a family of strategies.
"""

from alutils.queries.registry import BASELINES, STRATEGIES, strategy

__all__ = ["BASELINES", "STRATEGIES", "strategy"]
