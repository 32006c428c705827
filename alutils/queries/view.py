"""What a query strategy sees of an acquisition round."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from alutils.data.packed import PackedMasks
from alutils.data.splits import ImageView, lesion_area
from alutils.data.thumbnails import thumbnails
from alutils.experiment import Experiment
from alutils.model import build_unet
from alutils.samples import SampleMaps, flip_batches, mc_dropout_batches
from alutils.system.checks import ConfigError
from alutils.training import batch_results, probability_batches

_SIDE = 16  # of the thumbnails that stand for features, pixels


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled images of a round, uint8 (n, 3, H, W), and their names.

    ``masks`` is what is trained on, uint8 (n, 1, H, W) when indexed; ``known`` is 1 where a human gave the label.
    """

    images: ImageView
    ids: tuple[str, ...]
    masks: PackedMasks | None
    known: PackedMasks | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(eq=False)
class View:
    """One acquisition round as a query strategy sees it; the pool's masks are in it for a positive control alone.

    A pass of the model over the pool is made when it is first needed. :meth:`probabilities` keeps the features and the
    predicted areas on its way, so ask for it first where you need both.

    Args:
        model: trained so far, on its device.
        images: the pool, uint8, a view of (N, 3, H, W): ``images[:]`` is all of it, ``images[4:8]`` four images.
        experiment: settings.
        generator: of the CPU, for everything that is drawn.
        query_size: images to query, at most N.
        ids: N names; empty where they are not known.
        labelled: the labelled set.
        round: 0 after the cold start's training.
        n_rounds: rounds of the run that query.
        kept: what is computed once in a run, by name; the rounds of a run share it.
        pseudo_labelled: a strategy may put positions of images here, int64, that are to join the next training with the
            labels that the model itself gives them (p >= 0.5); they stay in the pool.
        masks: the pool's masks, a view of uint8 (N, 1, H, W), for a strategy that is marked ``sees_masks``; else None.

    >>> images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    >>> view = View.of(nn.Conv2d(3, 1, 1), images, Experiment(), torch.Generator(), query_size=2)
    >>> len(view), view.query_size, view.predicted_area().shape
    (3, 2, torch.Size([3]))
    """

    model: nn.Module
    images: ImageView
    experiment: Experiment
    generator: torch.Generator
    query_size: int
    ids: tuple[str, ...] = ()
    labelled: Labelled | None = None
    round: int = 0
    n_rounds: int = 1
    kept: dict[Any, Any] = field(default_factory=dict)
    pseudo_labelled: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    masks: ImageView | None = None
    _area: torch.Tensor | None = field(default=None, repr=False)
    _features: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: torch.Tensor | ImageView,
        experiment: Experiment,
        generator: torch.Generator,
        query_size: int,
    ) -> View:
        """A view of a pool by itself, without labelled images."""
        pool = images if isinstance(images, ImageView) else ImageView(images, torch.arange(len(images)))
        nothing = Labelled(ImageView(pool.images, pool.indices[:0]), (), None, None)
        return cls(model, pool, experiment, generator, min(query_size, len(pool)), labelled=nothing)

    def __len__(self) -> int:
        return len(self.images)

    def probabilities(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The pool's lesion probabilities, batch by batch: which images, and float32 (n, 1, H, W)."""
        areas, features = [], []
        for chosen, (p, z) in self._passes():
            areas.append(lesion_area((p >= 0.5).to(torch.uint8)))
            features.append(z)
            yield chosen, p
        self._area = _gathered(areas)
        self._features = None if features and features[0] is None else _gathered(features)

    def predicted_area(self) -> torch.Tensor:
        """Share of each pool image that the model takes for lesion (p >= 0.5), float32 (N,), 0 to 1, on the CPU."""
        if self._area is None:
            deque(self.probabilities(), maxlen=0)
        return self._area

    def features(self, of: Literal["pool", "labelled"] = "pool", *, source: str = "model") -> torch.Tensor:
        """The mean of the network's bottleneck over each image's pixels, float32 (N, d) or (n, d), on the CPU.

        Args:
            of: whose features: the pool's or the labelled images'.
            source: "model": the network as it is trained now. "imagenet": the encoder with the experiment's
                ``encoder_weights``, not trained further; where these are null, grey thumbnails. Or the path of a file
                of the encoder's weights. What does not come from the model is computed once per run.

        Raises:
            ConfigError: if the features of a network without ``encode`` are asked for.
            WeightsError: if the weights of ``source`` cannot be fetched or read.
        """
        images = self.images if of == "pool" else self.labelled.images
        if source != "model":
            device = next(self.model.parameters()).device
            return self.once(
                ("features", source), lambda every: untrained_features(every, self.experiment, source, device), of
            )
        if of == "pool" and self._area is None:
            deque(self.probabilities(), maxlen=0)
        if of == "pool" and self._features is not None:
            return self._features
        if not hasattr(self.model, "encode"):
            raise ConfigError(
                f"strategy: it needs features, and a {type(self.model).__name__} gives none; give the network the "
                "methods encode and decode as alutils.model.Network has them, or take another strategy"
            )
        if len(images) == 0:
            return torch.zeros(0, 0)
        passes = batch_results(lambda x: _pooled(self.model.encode(x)), self.model, images, self.experiment)
        return _gathered([z for _, z in passes])

    def samples(
        self, n: int | None = None, *, how: Literal["dropout", "flip"] = "dropout"
    ) -> Iterator[tuple[slice, SampleMaps]]:
        """What ``n`` predictions of each pool image say, batch by batch, see :class:`alutils.samples.SampleMaps`.

        With "dropout" each has its own random dropout, and ``n`` is by default ``mc_samples``. With "flip" they are
        two: of the image and of its mirror image.
        """
        if how == "flip":
            return flip_batches(self.model, self.images, self.experiment)
        return mc_dropout_batches(self.model, self.images, self.experiment, self.generator, n)

    def once(
        self, name: Any, compute: Callable[[torch.Tensor], Any], of: Literal["pool", "labelled", "all"] = "pool"
    ) -> Any:
        """What ``compute`` makes of all training images, uint8 (M, 3, H, W), once per run, kept under ``name``.

        ``compute`` makes one row per image, and those of the pool or of the labelled images are returned. With
        ``of="all"`` it may make anything, and all is returned.
        """
        if name not in self.kept:
            self.kept[name] = compute(self.images.images)
        found = self.kept[name]
        return found if of == "all" else found[(self.images if of == "pool" else self.labelled.images).indices]

    def _passes(self) -> Iterator[tuple[slice, tuple[torch.Tensor, torch.Tensor | None]]]:
        """Probabilities and features by one pass, or no features where one pass cannot give both."""
        model = self.model
        if self.experiment.compile or not (hasattr(model, "encode") and hasattr(model, "decode")):
            for chosen, p in probability_batches(model, self.images, self.experiment):
                yield chosen, (p, None)
            return

        def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            stages = model.encode(x)
            return model.decode(stages), _pooled(stages)

        for chosen, (logits, z) in batch_results(both, model, self.images, self.experiment):
            yield chosen, (logits.float().sigmoid(), z)


def untrained_features(
    images: torch.Tensor, experiment: Experiment, source: str = "imagenet", device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A vector per image, uint8 (N, 3, H, W), from an encoder not trained on these: float32 (N, d), on the CPU.

    ``source`` as for :meth:`View.features`; the thumbnails are grey, 16 x 16 pixels. The encoder runs on ``device``.
    """
    weights = experiment.encoder_weights if source == "imagenet" else source
    if weights is None:
        return thumbnails(images, _SIDE).flatten(1)
    network = build_unet(experiment.encoder, weights, architecture=experiment.architecture, skip_convolutions=False)
    passes = batch_results(lambda x: _pooled(network.encode(x)), network.to(device), images, experiment)
    return _gathered([z for _, z in passes])


def _pooled(stages: list[torch.Tensor]) -> torch.Tensor:
    return stages[-1].float().mean((2, 3))


def _gathered(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts).float().cpu()
