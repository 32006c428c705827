"""The network of section IV-C: a U-Net with a ResNet-18 encoder, 1x1 convolutions, batch norm and dropout."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.system.checks import expanded
from alutils.system.seeding import make_generator, seeded
from alutils.system.weights import fetching, load_encoder, verify_download, weight_names


class UNet(smp.Unet):
    """``smp.Unet`` with a 1x1 convolution, batch norm and ReLU on every skip and on the bottleneck, then dropout there.

    ``forward`` is ``decode(encode(images))``. Only ``decode`` draws random numbers, so that Monte Carlo dropout encodes
    a batch once and decodes it N times (eq. 3).
    """

    def __init__(self, *, skip_convolutions: bool = True, dropout: float = 0.5, **unet: object) -> None:
        super().__init__(**unet)
        # The first of out_channels is the image itself; some transformers have a level without channels.
        self.laterals = nn.ModuleList(
            _convolution_1x1(channels) if skip_convolutions and channels else nn.Identity()
            for channels in self.encoder.out_channels[1:]
        )
        self.dropout = nn.Dropout(dropout)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The normalized images (N, 3, H, W) and their features, from half the resolution to the bottleneck (1/32)."""
        image, *features = self.encoder(images)
        return [image, *(lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True))]

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits (N, 1, H, W) from what :meth:`encode` returned."""
        *skips, bottleneck = features
        return self.segmentation_head(self.decoder([*skips, self.dropout(bottleneck)]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, H, W) of normalized images (N, 3, H, W)."""
        self.check_input_shape(images)
        return self.decode(self.encode(images))


def build_unet(
    encoder: str = "resnet18",
    encoder_weights: str | Path | None = "imagenet",
    *,
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16),
    skip_convolutions: bool = True,
    dropout: float = 0.5,
    seed: int = 0,
) -> UNet:
    """The segmentation network (section IV-C) on segmentation-models-pytorch's encoder, decoder and head.

    Args:
        encoder: any encoder name of segmentation-models-pytorch.
        encoder_weights: "imagenet" or another name that the library has (fetched from its hub, then cached), the path
            of a file with the encoder's own key names (torchvision's for ResNets), or None for random weights.
        decoder_channels: filters of the five decoder stages, from the bottleneck up.
        skip_convolutions: False leaves the 1x1 convolutions out, which gives a plain ``smp.Unet`` with dropout.
        dropout: share of the bottleneck's activations that are dropped, 0 <= dropout < 1.
        seed: of the initial weights; the global random state is left alone.

    Returns:
        A model from normalized images (N, 3, H, W), H and W multiples of 32, to logits (N, 1, H, W).

    Raises:
        WeightsError: if the weights cannot be fetched or read, do not belong to the encoder, are not finite, or differ
            from the hub's checksum (which is not compared for timm's encoders).
        ValueError: if there is no such encoder.

    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> model(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1, 64, 64])
    """
    name = encoder_weights if encoder_weights in weight_names(encoder) else None
    settings = {"skip_convolutions": skip_convolutions, "dropout": dropout, "decoder_channels": decoder_channels}
    with seeded(make_generator(seed)), fetching(encoder, name) if name else nullcontext():
        model = UNet(encoder_name=encoder, encoder_weights=name, **settings)
    if name:
        verify_download(encoder, name)
    elif encoder_weights is not None:
        load_encoder(model.encoder, encoder, expanded("encoder_weights", encoder_weights))
    return model


def unet_for(experiment: Experiment) -> UNet:
    """The network that an experiment describes, with the initial weights of its seed; errors as :func:`build_unet`.

    >>> unet_for(Experiment(encoder_weights=None, dropout=0.2)).dropout.p
    0.2
    """
    return build_unet(**dict(experiment.network), seed=experiment.seed)


def _convolution_1x1(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
