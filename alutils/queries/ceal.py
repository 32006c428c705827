"""CEAL [24]: certain, random and uncertain images, by how far predictions with dropout vary, off the border."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from alutils.queries.registry import strategy
from alutils.queries.view import View

_FIRST_PSEUDO, _BINS = 4, 80  # the first such round, counted from 0, and the bins of the scores' histogram
_LARGEST = 128  # pixels; maps of twice this side or more are averaged down before distances are measured


@strategy("ceal", selects=True, needs_dropout=True)
def select_ceal(view: View) -> torch.Tensor:
    """CEAL's quotas: two sevenths of the query with the lowest scores, two with the highest, three sevenths at random.

    The score is the sum of ``var(p) d`` over the pixels, var the variance of the predictions with dropout (the square
    of eq. 3). d is the distance of a predicted lesion pixel from the lesion's border, scaled to 0..1 in each image, so
    that the border counts little; [24] takes it from the last sampled prediction, we from their mean. Images without a
    predicted lesion have the score 0 and are the first among the lowest, as in [24] ("no detections").

    From the fifth query on, images whose scores lie in the fullest of 80 bins join the next training with the model's
    own labels, binarized where [24] takes the probabilities: at most 20 for a query of 35, and 20 more each time.
    """
    scores = torch.cat([_scores(maps.std, maps.mean) for _, maps in view.samples()])
    order = torch.randperm(len(view), generator=view.generator)
    order = order[scores[order].argsort(stable=True)]
    low, high = quotas(view.query_size)
    lowest, middle, highest = order.tensor_split([low, len(order) - high])
    drawn = middle[torch.randperm(len(middle), generator=view.generator)][: view.query_size - low - high]
    chosen = torch.cat([highest.flip(0), drawn, lowest])
    if view.round >= _FIRST_PSEUDO:
        view.pseudo_labelled = _of_modal_bin(scores, chosen, n_pseudo(view.query_size, view.round), view.generator)
    return chosen


def quotas(n: int) -> tuple[int, int]:
    """How many of ``n`` images have the lowest and how many the highest scores: CEAL's 10 and 10 of 35.

    >>> quotas(35), quotas(32), quotas(1)
    ((10, 10), (9, 9), (0, 0))
    """
    return round(2 * n / 7), round(2 * n / 7)


def n_pseudo(query_size: int, number: int) -> int:
    """How many images the model labels itself, at most, after round ``number``.

    >>> [n_pseudo(35, number) for number in (4, 5, 6)]
    [20, 40, 60]
    """
    return round(20 / 35 * query_size) * (number - _FIRST_PSEUDO + 1)


def _of_modal_bin(scores: torch.Tensor, chosen: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    width = (scores.max() - scores.min()).clamp(min=1e-12) / _BINS
    bins = ((scores - scores.min()) / width).long().clamp(max=_BINS - 1)
    members = bins == bins.bincount().argmax()
    members[chosen] = False
    found = members.nonzero().flatten()
    return found[torch.randperm(len(found), generator=generator)[:n]]


def _scores(std: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """float32 (n,), on the CPU, of maps (n, 1, H, W) that are made smaller if they are large."""
    shrink = max(1, std.shape[-1] // _LARGEST)
    variance, mean = (F.avg_pool2d(maps, shrink)[:, 0].cpu() for maps in (std**2, mean))
    depth = torch.stack([_depth(mask) for mask in mean >= 0.5])
    return (variance * depth).sum((1, 2)) * shrink**2


def _depth(lesion: torch.Tensor) -> torch.Tensor:
    """How far each pixel of a mask (H, W) lies from the lesion's border, 0 to 1; a lesion without one is all deep."""
    if lesion.all():
        return lesion.float()
    depth = torch.from_numpy(distance_transform_edt(lesion.numpy())).float()
    return depth / depth.max().clamp(min=1)
