"""ClaSP: shares of the query by class, with noise that fades over the rounds."""

from __future__ import annotations

import torch

from alutils.queries.registry import strategy
from alutils.queries.select import highest_scores
from alutils.queries.view import View
from alutils.queries.wrappers import with_power_noise
from alutils.uncertainty import binary_entropy

_LAST_BETA = 100.0


@strategy("clasp", selects=True)
def select_clasp(view: View) -> torch.Tensor:
    """Class-stratified power sampling of the entropy, for two classes.

    A third of the query is chosen by the entropy of the lesion, ``mean(H p)``, a third by that of the background,
    ``mean(H (1 - p))``, and the rest by ``mean(H)``, where H is the binary entropy of each pixel. All scores have power
    noise; its beta grows exponentially from 1 in the first query to 100 in the last.
    """
    batches = [
        torch.stack([(h * weight).flatten(1).mean(1) for weight in (p, 1 - p, torch.ones_like(p))])
        for h, p in ((binary_entropy(p), p) for _, p in view.probabilities())
    ]
    by_class = torch.cat(batches, 1).cpu()
    beta = _LAST_BETA ** (view.round / max(1, view.n_rounds - 1))
    third = view.query_size // 3
    chosen = torch.zeros(0, dtype=torch.int64)
    for scores, n in zip(by_class, (third, third, view.query_size - 2 * third), strict=True):
        noisy = with_power_noise(view, scores, beta)
        noisy[chosen] = -torch.inf
        chosen = torch.cat([chosen, highest_scores(noisy, n, view.generator)])
    return chosen
