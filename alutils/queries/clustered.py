"""One image per cluster of features, for strategies and for cold starts, which have no trained model."""

from __future__ import annotations

import torch

from alutils.experiment import Experiment
from alutils.queries.geometry import clusters
from alutils.queries.view import untrained_features

_MOST_CLUSTERS, _SMALLEST, _NEIGHBOURS = 500, 5, 20  # TypiClust's values


def chosen_cold_start(
    images: torch.Tensor, experiment: Experiment, generator: torch.Generator, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The cold start that ``experiment.cold_start_by`` chooses: positions of ``cold_start`` images, int64 (n,).

    ``images`` are all training images, uint8 (N, 3, H, W). Thumbnails stand for features where ``encoder_weights`` is
    null; else the encoder runs on ``device``.
    """
    features = untrained_features(images, experiment, device=device)
    if experiment.cold_start_by == "kmeans":
        return nearest_to_centres(features, experiment.cold_start, generator)
    return typical_of_clusters(features, features[:0], experiment.cold_start, generator)


def nearest_to_centres(features: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of ``n`` different images, each nearest to a centre of k-means with k = n; (N, d) -> int64 (n,)."""
    _, centres = clusters(features, n, generator)
    distances = torch.cdist(centres, features)
    chosen: list[int] = []
    for row in distances:
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen, dtype=torch.int64)


def typical_of_clusters(pool: torch.Tensor, labelled: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """TypiClust's choice among ``pool``, features (N, d), beside the ``labelled`` ones, (m, d): positions, int64 (n,).

    There are ``min(m + n, 500)`` clusters of k-means. Those of 5 images or fewer are left out if enough others remain.
    The clusters with the fewest labelled images come first, of these the largest. Each gives the image with the
    smallest mean distance from its 20 nearest neighbours in the cluster (in one of fewer than 40, from half of it).
    """
    features = torch.cat([pool, labelled]) if len(labelled) else pool
    k = min(len(labelled) + n, _MOST_CLUSTERS, len(features))
    found, _ = clusters(features, k, generator)
    sizes = found.bincount(minlength=k)
    n_labelled = found[len(pool) :].bincount(minlength=k)
    n_free = found[: len(pool)].bincount(minlength=k)
    usable = (sizes > _SMALLEST) & (n_free > 0)
    if n_free[usable].sum() < n:
        usable = n_free > 0
    order = sorted(usable.nonzero().flatten().tolist(), key=lambda c: (int(n_labelled[c]), -int(sizes[c])))
    chosen: list[int] = []
    while len(chosen) < n:  # a second time round where there are fewer clusters than images to query
        for cluster in order:
            free = [i for i in (found[: len(pool)] == cluster).nonzero().flatten().tolist() if i not in chosen]
            if free and len(chosen) < n:
                members = features[found == cluster]
                chosen.append(free[int(_typicality(features[free], members).argmax())])
    return torch.tensor(chosen, dtype=torch.int64)


def _typicality(points: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """One over the mean distance from the nearest of the cluster's ``members``, of which each point is one."""
    n = max(1, min(_NEIGHBOURS, len(members) // 2))
    distances = torch.cdist(points, members).topk(min(n + 1, len(members)), largest=False).values
    return 1 / distances[:, 1:].mean(1).nan_to_num(1.0).clamp(min=1e-12)
