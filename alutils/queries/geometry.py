"""Choosing points that lie far apart, or one per cluster; distances are Euclidean unless a function gives them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy.cluster.vq import kmeans2


def furthest_first(row: Callable[[int], torch.Tensor], nearest: torch.Tensor, n: int) -> torch.Tensor:
    """Greedy k-centre: ``n`` times the point furthest from all chosen ones; positions in this order, int64 (n,).

    ``row(i)`` gives the distances of all points from point i, (N,). ``nearest`` is each point's distance from the
    nearest one that is chosen already, (N,).

    >>> line = torch.tensor([0.0, 1.0, 2.0, 10.0])
    >>> furthest_first(lambda i: (line - line[i]).abs(), line - 0.0, 2)  # 0 is chosen already
    tensor([3, 2])
    """
    nearest, chosen = nearest.clone(), []
    for _ in range(n):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, row(chosen[-1]))
        nearest[chosen] = -1  # a twin of a chosen point is taken before the point itself
    return torch.tensor(chosen, dtype=torch.int64)


def distances_from(points: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """The function from a position to the distances of all ``points``, (N, d), from that one."""
    return lambda i: torch.cdist(points, points[i : i + 1]).flatten()


def nearest_of(points: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Each point's distance from the nearest of ``others``, or from the mean of the points if there are none, (N,).

    The mean makes the first choice the outermost point, whatever the points' order.
    """
    others = others if len(others) else points.mean(0, keepdim=True)
    return torch.cat([torch.cdist(part, others).min(1).values for part in points.split(512)])


def spread_out(points: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """The choice of k-means++: the point with the largest norm, then by lot, in proportion to squared distances.

    Distances are from the nearest chosen point. Returned are the positions of ``n <= N`` different ``points``, float
    (N, d): int64 (n,).
    """
    chosen = [int(points.norm(dim=1).argmax())]
    row = distances_from(points)
    squares = row(chosen[0]).double() ** 2
    while len(chosen) < n:
        squares[chosen] = 0
        if not squares.any():  # only twins of chosen points are left
            squares = torch.ones(len(points), dtype=torch.float64)
            squares[chosen] = 0
        chosen.append(int(torch.multinomial(squares, 1, generator=generator)))
        squares = torch.minimum(squares, row(chosen[-1]).double() ** 2)
    return torch.tensor(chosen, dtype=torch.int64)


def clusters(points: torch.Tensor, k: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """K-means (SciPy's) of ``points``, (N, d), begun with :func:`spread_out`; their order plays no part.

    Returned are the cluster of each point, int64 (N,), and the centres, (k, d); a cluster can be empty.
    """
    order = torch.from_numpy(np.lexsort(points.numpy().T))
    ordered = points[order].numpy()
    start = ordered[spread_out(points[order], k, generator).numpy()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")  # twins leave fewer different points than k
        centres, labels = kmeans2(ordered, start, iter=10, minit="matrix")
    found = torch.empty(len(points), dtype=torch.int64)
    found[order] = torch.from_numpy(labels).long()
    return found, torch.from_numpy(centres)
