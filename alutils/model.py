"""The network of section IV-C: a U-Net with a ResNet-18 encoder, 1x1 convolutions, batch norm and dropout.

Any other network of segmentation-models-pytorch can take its place, with the same dropout in the same place.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.system.checks import ConfigError, did_you_mean, expanded, shown
from alutils.system.seeding import make_generator, seeded
from alutils.system.tensors import is_number
from alutils.system.weights import WeightsError, fetching, load_encoder, verify_download, weight_names


class Network(smp.base.SegmentationModel):
    """A network of segmentation-models-pytorch with one dropout: on the deepest features, before they are decoded.

    The library's own dropout and stochastic depth are set to 0. ``forward`` is ``decode(encode(images))``. Only
    ``decode`` draws random numbers, so that Monte Carlo dropout encodes a batch once and decodes it N times (eq. 3).
    """

    def __init__(self, *, dropout: float = 0.5, **library: object) -> None:
        super().__init__(**library)
        _switch_off_dropout(self)
        self.dropout = nn.Dropout(dropout)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The normalized images (N, 3, H, W) and their features, the deepest last."""
        return self.encoder(images)

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits (N, 1, H, W) from what :meth:`encode` returned."""
        *skips, bottleneck = features
        return self.segmentation_head(self.decoder([*skips, self.dropout(bottleneck)]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, H, W) of normalized images (N, 3, H, W)."""
        self.check_input_shape(images)
        return self.decode(self.encode(images))


class UNet(Network, smp.Unet):
    """``smp.Unet`` with a 1x1 convolution, batch norm and ReLU on every skip and on the bottleneck."""

    def __init__(self, *, skip_convolutions: bool = True, **network: object) -> None:
        super().__init__(**network)
        # The first of out_channels is the image itself; some transformers have a level without channels.
        self.laterals = nn.ModuleList(
            _convolution_1x1(channels) if skip_convolutions and channels else nn.Identity()
            for channels in self.encoder.out_channels[1:]
        )

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The normalized images (N, 3, H, W) and their features, from half the resolution to the bottleneck (1/32)."""
        image, *features = self.encoder(images)
        return [image, *(lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True))]


class DPT(Network, smp.DPT):
    """``smp.DPT``: its vision transformer gives tokens beside the features; they take the place of the images."""

    def encode(self, images: torch.Tensor) -> list:
        """The tokens, a list, and the features, the deepest last."""
        features, tokens = self.encoder(images)
        return [tokens, *features]

    def decode(self, features: list) -> torch.Tensor:
        """Logits (N, 1, H, W) from what :meth:`encode` returned."""
        tokens, *others, deepest = features
        return self.segmentation_head(self.decoder([*others, self.dropout(deepest)], tokens))


_CLASSES = {name: type(kind.__name__, (Network, kind), {}) for name, kind in smp.MODEL_ARCHITECTURES_MAPPING.items()}
_CLASSES |= {"unet": UNet, "dpt": DPT}
_STAGES = 5  # of the decoders with filters to choose


def build_unet(  # seven parameters, and more lines for them: each is a reading of section IV-C
    encoder: str = "resnet18",
    encoder_weights: str | Path | None = "imagenet",
    *,
    architecture: str = "unet",
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16),
    skip_convolutions: bool = True,
    dropout: float = 0.5,
    seed: int = 0,
) -> Network:
    """The segmentation network (section IV-C) on segmentation-models-pytorch's encoder, decoder and head.

    Args:
        encoder: any encoder name of segmentation-models-pytorch.
        encoder_weights: "imagenet" or another name that the library has (fetched from its hub, then cached), the path
            of a file with the encoder's own key names (torchvision's for ResNets), or None for random weights.
        architecture: "unet" or another that the library has: "unetplusplus", "fpn", "deeplabv3plus", "segformer", ...
        decoder_channels: filters of the five decoder stages, from the bottleneck up. Only unet, unetplusplus and manet
            have these; the others are built with the library's own sizes.
        skip_convolutions: of the U-Net alone: False leaves the 1x1 convolutions out, which gives a plain ``smp.Unet``
            with dropout.
        dropout: share of the deepest features' activations that are dropped, 0 <= dropout < 1.
        seed: of the initial weights; the global random state is left alone.

    Returns:
        A model from normalized images (N, 3, H, W) to logits (N, 1, H, W). H and W are multiples of 32; "pan" needs at
        least 128, and some transformers only take one size.

    Raises:
        WeightsError: if the weights cannot be fetched or read, do not belong to the encoder, are not finite, or differ
            from the hub's checksum (which is not compared for timm's encoders).
        ConfigError: if there is no such architecture or encoder, they do not go together, or ``dropout`` or
            ``decoder_channels`` is not as above.

    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> model(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1, 64, 64])
    """
    if architecture not in _CLASSES:
        hint = did_you_mean(str(architecture).lower(), list(_CLASSES))
        raise ConfigError(f"architecture: there is no '{architecture}'; {hint}")
    if not (is_number(dropout) and 0 <= dropout < 1):
        raise ConfigError(f"dropout: must be at least 0 and below 1, got {shown(dropout)}")
    if len(decoder_channels) != _STAGES:
        raise ConfigError(f"decoder_channels: must be {_STAGES} numbers of filters, got {shown(decoder_channels)}")
    name = encoder_weights if encoder_weights in weight_names(encoder) else None
    settings: dict[str, object] = {"encoder_name": encoder, "encoder_weights": name, "dropout": dropout}
    if architecture == "unet":
        settings["skip_convolutions"] = skip_convolutions
    if architecture in ("unet", "unetplusplus", "manet"):
        settings["decoder_channels"] = decoder_channels
    if architecture == "dpt":
        settings["dynamic_img_size"] = True  # any size, not only that of the published weights
    try:
        with seeded(make_generator(seed)), fetching(encoder, name) if name else nullcontext():
            model = _CLASSES[architecture](**settings)
    except WeightsError:
        raise
    except Exception as error:  # the library refuses in several types
        raise ConfigError(
            f"architecture: segmentation-models-pytorch cannot build '{architecture}' with encoder '{encoder}' "
            f"({error}); take another architecture or encoder"
        ) from error
    if name:
        verify_download(encoder, name)
    elif encoder_weights is not None:
        load_encoder(model.encoder, encoder, expanded("encoder_weights", encoder_weights))
    return model


def unet_for(experiment: Experiment) -> Network:
    """The network that an experiment describes, with the initial weights of its seed; errors as :func:`build_unet`.

    >>> unet_for(Experiment(encoder_weights=None, dropout=0.2)).dropout.p
    0.2
    """
    return build_unet(**dict(experiment.network), seed=experiment.seed)


def _switch_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in ("drop_prob", "_drop_connect_rate"):  # stochastic depth: of timm, of the library's EfficientNets
            if getattr(module, name, None):
                setattr(module, name, 0.0)


def _convolution_1x1(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
