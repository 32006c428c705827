"""ALS: images that represent all others by their structural similarity, without a model."""

from __future__ import annotations

import torch

from alutils.data.thumbnails import thumbnails
from alutils.queries.geometry import furthest_first
from alutils.queries.registry import strategy
from alutils.queries.view import View

_SIDE, _WINDOW = 16, 7  # pixels of the thumbnails, and of the windows that are compared
_UNBIASED = _WINDOW**2 / (_WINDOW**2 - 1)  # for the variance of a window's pixels
_C1, _C2 = 0.01**2, 0.03**2


@strategy("als", selects=True)
def select_als(view: View) -> torch.Tensor:
    """ALS [23], by greedy k-centre with the distance ``1 - SSIM`` between grey thumbnails of 16 x 16 pixels.

    The choice needs no model. Greedy k-centre is ours: the abstract of [23] does not say how images are chosen. The
    windows of the SSIM are 7 x 7 pixels and uniform, as scikit-image's by default.
    """
    everything = view.once("thumbnails", lambda images: thumbnails(images, _SIDE), of="all")
    similarity = view.once("similarity", lambda _: Similarity(everything), of="all")
    pool = view.images.indices

    def distances(position: int) -> torch.Tensor:
        """From a training image to the pool, kept for the later rounds."""
        return view.once(("ssim", position), lambda _: 1 - similarity(everything[position]))

    nearest = 1 - similarity(everything[pool].mean(0))[pool]  # used if nothing is labelled
    if len(view.labelled):
        nearest = torch.stack([distances(i) for i in view.labelled.images.indices.tolist()]).amin(0)
    return furthest_first(lambda i: distances(int(pool[i])), nearest, view.query_size)


class Similarity:
    """The mean structural similarity (SSIM) of one grey picture with each of many.

    ``pictures`` are float32 (N, H, W), 0 to 1.

    >>> bright = torch.ones(1, 16, 16)
    >>> Similarity(torch.cat([bright, 0 * bright]))(bright[0]).round(decimals=2)
    tensor([1., 0.])
    """

    def __init__(self, pictures: torch.Tensor) -> None:
        side = pictures.shape[-1]
        starts = torch.cartesian_prod(*2 * (torch.arange(side - _WINDOW + 1),))
        steps = torch.arange(_WINDOW)
        windows = torch.zeros(len(starts), side, side, dtype=torch.float64)
        for window, (top, left) in zip(windows, starts.tolist(), strict=True):
            window[(top + steps)[:, None], left + steps] = 1 / _WINDOW**2
        self._windows = windows.flatten(1).T  # what averages a picture over each window
        self._pictures = pictures.flatten(1).double()
        self._means, self._variances = self._moments(self._pictures)

    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        """The similarity of ``picture``, (H, W), with each of the many: float32 (N,), -1 to 1."""
        picture = picture.flatten().double()
        mean, variance = self._moments(picture)
        covariance = _UNBIASED * ((self._pictures * picture) @ self._windows - self._means * mean)
        ssim = (2 * self._means * mean + _C1) * (2 * covariance + _C2)
        ssim /= (self._means**2 + mean**2 + _C1) * (self._variances + variance + _C2)
        return ssim.mean(1).float()

    def _moments(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = pictures @ self._windows
        return means, _UNBIASED * (pictures**2 @ self._windows - means**2)
