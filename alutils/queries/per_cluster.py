"""Strategies that query one image per cluster of features."""

from __future__ import annotations

import torch

from alutils.queries.clustered import nearest_to_centres, typical_of_clusters
from alutils.queries.registry import strategy
from alutils.queries.view import View


@strategy("kmeans", selects=True)
def select_kmeans(view: View) -> torch.Tensor:
    """The pool image nearest to each of B centres of k-means, B the query's size.

    The features are the encoder's as it was before training (see :meth:`View.features`).
    """
    return nearest_to_centres(view.features(source="imagenet"), view.query_size, view.generator)


@strategy("typiclust", selects=True)
def select_typiclust(view: View) -> torch.Tensor:
    """TypiClust (Hacohen et al., 2022): a typical image from each of the clusters with the fewest labelled images.

    The features are those of the encoder before training, where the authors learn theirs from the pool. See
    :func:`typical_of_clusters`.
    """
    pool, labelled = view.features(source="imagenet"), view.features("labelled", source="imagenet")
    return typical_of_clusters(pool, labelled, view.query_size, view.generator)
