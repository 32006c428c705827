"""The network of section IV-C: a U-Net with a ResNet-18 encoder, 1x1 convolutions, batch norm and dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alutils.config import Experiment
from alutils.seeding import make_generator, seeded


class WeightsError(RuntimeError):
    """The encoder's weights cannot be had; the message says what to do, offline too."""


class UNet(smp.Unet):
    """``smp.Unet`` with a 1x1 convolution, batch norm and ReLU on every skip and on the bottleneck, and dropout there.

    ``forward`` is ``decode(encode(images))``. Only ``decode`` draws random numbers (the dropout is its first layer), so
    that Monte Carlo dropout encodes a batch once and decodes it N times (eq. 3).
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
        encoder_weights: a name for which the library has weights ("imagenet": fetched from its hub, then cached), the
            path of a file with the encoder's own (for ResNets: torchvision's) key names, or None for random weights.
        decoder_channels: filters of the five decoder stages, from the bottleneck up.
        skip_convolutions: False leaves the 1x1 convolutions out: a plain ``smp.Unet`` with dropout.
        dropout: share of the bottleneck's activations that are dropped, 0 <= dropout < 1.
        seed: of the initial weights; the global random state is left alone.

    Returns:
        A model from normalized images (N, 3, H, W), H and W multiples of 32, to logits (N, 1, H, W).

    Raises:
        WeightsError: if the weights cannot be fetched or read, or do not belong to the encoder.
        ValueError: if there is no such encoder.

    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> model(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1, 64, 64])
    """
    names = _weight_names(encoder)
    named = encoder_weights is None or encoder_weights in names
    with seeded(make_generator(seed)):
        try:
            model = UNet(
                encoder_name=encoder,
                encoder_weights=encoder_weights if named else None,
                decoder_channels=decoder_channels,
                skip_convolutions=skip_convolutions,
                dropout=dropout,
            )
        except OSError as error:  # what requests and huggingface_hub raise derives from it
            raise WeightsError(
                f"the weights '{encoder_weights}' of {encoder} could not be fetched ({type(error).__name__}). Without "
                "a network: encoder_weights=null trains from random weights, or give the path of a file with the "
                "encoder's weights (torchvision's resnet18-f37072fd.pth, copied from a machine that has a network)"
            ) from error
    if not named:
        remedy = (
            f"encoder_weights must be {', '.join(sorted(names))}, null, or the path of a file with {encoder}'s weights"
        )
        _load_encoder(model.encoder, Path(encoder_weights), remedy)
    return model


def unet_for(experiment: Experiment) -> UNet:
    """The network that an experiment describes, with the initial weights of its seed; errors as :func:`build_unet`.

    >>> unet_for(Experiment(encoder_weights=None, dropout=0.2)).dropout.p
    0.2
    """
    return build_unet(
        experiment.encoder,
        experiment.encoder_weights,
        decoder_channels=experiment.decoder_channels,
        skip_convolutions=experiment.skip_convolutions,
        dropout=experiment.dropout,
        seed=experiment.seed,
    )


def feature_shapes(model: UNet, image_size: int) -> pd.DataFrame:
    """What the stages of the network put out for one square image: a row a stage, with its channels and its size.

    Args:
        model: from :func:`build_unet`.
        image_size: height and width of the image, pixels.

    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> feature_shapes(model, 64).loc[["encoder 5", "decoder 1"]].values.tolist()
    [[512, 2], [16, 4]]
    """
    shapes: dict[str, torch.Size] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: shapes.__setitem__(name, output.shape)

    stages = {f"encoder {i}": lateral for i, lateral in enumerate(model.laterals, 1)}
    stages |= {f"decoder {i}": block for i, block in enumerate(model.decoder.blocks, 1)}
    hooks = [stage.register_forward_hook(record(name)) for name, stage in stages.items()]
    try:
        _forward_once(model, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    rows = [{"stage": name, "channels": shape[1], "size": shape[2]} for name, shape in shapes.items()]
    return pd.DataFrame(rows).set_index("stage")


def model_costs(model: UNet, image_size: int) -> pd.DataFrame:
    """Parameters of the network's parts, and the operations that each needs for one square image.

    Args:
        model: from :func:`build_unet`.
        image_size: height and width of the image, pixels.

    Returns:
        A row a part and one for all, with ``parameters`` and ``GFLOP`` (a multiplication and an addition are two).

    >>> costs = model_costs(build_unet(encoder_weights=None), 512)
    >>> costs["GFLOP"].round(1).to_dict()
    {'encoder': 18.9, '1x1 convolutions': 1.1, 'decoder': 24.2, 'segmentation head': 0.1, 'all': 44.3}
    """
    parts = {
        "encoder": model.encoder,
        "1x1 convolutions": model.laterals,
        "decoder": model.decoder,
        "segmentation head": model.segmentation_head,
        "all": model,
    }
    with FlopCounterMode(display=False) as counter:
        _forward_once(model, image_size)
    names = {module: name for name, module in model.named_modules()}
    flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    rows = []
    for part, module in parts.items():
        path = f"{type(model).__name__}.{names[module]}".rstrip(".")
        # a list of modules is not called itself; its members are
        below = [flops[path]] if path in flops else [n for name, n in flops.items() if name.rpartition(".")[0] == path]
        rows.append(
            {"part": part, "parameters": sum(p.numel() for p in module.parameters()), "GFLOP": sum(below) / 1e9}
        )
    return pd.DataFrame(rows).set_index("part")


def _forward_once(model: UNet, image_size: int) -> None:
    """One black image through the model in evaluation mode; the model stays as it was."""
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    model.train(was_training)


def _convolution_1x1(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _weight_names(encoder: str) -> set[str]:
    """The names under which the library knows weights for ``encoder``."""
    if encoder.startswith("tu-"):  # timm's encoders have one published set each, called imagenet by the library
        return {"imagenet"}
    if encoder not in smp.encoders.encoders:
        raise ValueError(
            f"there is no encoder '{encoder}' in segmentation-models-pytorch; it has, for instance, "
            f"{', '.join(sorted(smp.encoders.encoders)[:5])}, and timm's as tu-NAME"
        )
    return set(smp.encoders.encoders[encoder]["pretrained_settings"])


def _load_encoder(encoder: nn.Module, path: Path, remedy: str) -> None:
    """Load a file of weights into ``encoder``, refusing what does not fit."""
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; {remedy}")
    try:
        encoder.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise WeightsError(f"{path} does not fit: {str(error)[:300]}; {remedy}") from error
