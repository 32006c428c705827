"""The network of section IV-C: a U-Net with a ResNet-18 encoder, 1x1 convolutions, batch norm and dropout."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder, UnetDecoderBlock
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from alutils.config import Experiment
from alutils.seeding import make_generator, seeded

_PLAIN_BLOCK = [type(module) for module in UnetDecoderBlock(1, 1, 1).modules()]


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

    def sampler(self, features: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
        """A function that decodes the same features again and again, as :meth:`decode` does up to rounding.

        Only the bottleneck differs from call to call. So the skips' share of each first convolution is computed once,
        which a convolution's linearity allows; batch norm is folded into the weights; and upsampling and convolution
        become one transposed convolution, with 4 instead of 9 multiplications a weight. On a CPU a sample takes about
        half of :meth:`decode`'s time; on other devices, and where the decoder is not the library's plain one, it is
        :meth:`decode`. The dropout's random numbers are the same. For a model in evaluation mode, without gradients.

        Args:
            features: what :meth:`encode` returned.

        >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16)).eval()
        >>> with torch.no_grad():
        ...     features = model.encode(torch.zeros(2, 3, 64, 64))
        ...     sample = model.sampler(features)
        ...     torch.allclose(sample(), model.decode(features), atol=1e-5)
        True
        """
        if features[-1].device.type != "cpu" or not self._has_plain_decoder(features):
            return lambda: self.decode(features)
        *skips, bottleneck = features[1:]
        stages = [
            _prepared(block, skip, bottleneck.dtype)
            for block, skip in zip(self.decoder.blocks, [*reversed(skips), None], strict=True)
        ]

        def sample() -> torch.Tensor:
            x = self.dropout(bottleneck)
            for (up, from_skip), (weight, bias) in stages:
                x = F.conv_transpose2d(x, up, stride=2, padding=1).add_(from_skip).relu_()
                x = F.conv2d(x, weight, bias, padding=1).relu_()
            return self.segmentation_head(x)

        return sample

    def _has_plain_decoder(self, features: list[torch.Tensor]) -> bool:
        """Whether :meth:`sampler` knows all that :meth:`decode` does: no attention, other layers, hooks or subclass."""
        blocks, modules = self.decoder.blocks, list(self.decoder.modules())
        sizes = [tuple(feature.shape[2:]) for feature in features]
        return (
            type(self).decode is UNet.decode
            and type(self.decoder) is UnetDecoder
            and isinstance(self.decoder.center, nn.Identity)
            and len(blocks) == len(features) - 1
            and all([type(m) for m in block.modules()] == _PLAIN_BLOCK for block in blocks)
            and all(block.interpolation_mode == "nearest" for block in blocks)
            and all(large == (2 * small[0], 2 * small[1]) for large, small in itertools.pairwise(sizes))
            and not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        )

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
        WeightsError: if the weights cannot be fetched or read, do not belong to the encoder, are not finite, or what
            the library fetched (of timm's encoders: unchecked) is not what the hub's checksum says.
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
        except Exception as error:  # besides OSError, the HTTP client and safetensors have types of their own
            is_argument = isinstance(error, (TypeError, ValueError)) and not isinstance(error, OSError)
            if encoder_weights is None or not named or is_argument:
                raise
            raise WeightsError(
                f"the weights '{encoder_weights}' of {encoder} could not be fetched or read "
                f"({type(error).__name__}). Without a network: encoder_weights=null trains from random weights, or "
                "give the path of a file with the encoder's weights (torchvision's resnet18-f37072fd.pth, copied from "
                "a machine that has a network)"
            ) from None
    if named and encoder_weights is not None and not encoder.startswith("tu-"):
        _verify_download(encoder, str(encoder_weights))
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


def _prepared(block: nn.Module, skip: torch.Tensor | None, dtype: torch.dtype) -> tuple[tuple, tuple]:
    """Of a decoder block: the first convolution's weights for what comes from below and its values from the skip, and
    the second one's weights and bias."""
    weight, bias = _without_norm(block.conv1)
    n_below = weight.shape[1] - (0 if skip is None else skip.shape[1])
    from_skip = bias.to(dtype).view(-1, 1, 1)
    if skip is not None and skip.shape[1]:
        from_skip = F.conv2d(skip, weight[:, n_below:].to(dtype), bias.to(dtype), padding=1)
    up = _upsampling(weight[:, :n_below])
    second = [value.to(dtype) for value in _without_norm(block.conv2)]
    return (up.to(dtype, memory_format=torch.channels_last), from_skip), tuple(second)


def _without_norm(layers: nn.Sequential) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights and bias of a convolution with the batch norm behind it folded in."""
    conv, norm = layers[0], layers[1]
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    return weight.detach(), bias.detach()


def _upsampling(weight: torch.Tensor) -> torch.Tensor:
    """The 4x4 weights of the transposed convolution (stride 2, padding 1) that doubles a map and convolves it.

    After doubling, neighbours are equal: of the three rows that a 3x3 window sees, two come from one row below, so
    their weights add up; which two depends on whether the row is even or odd. The same goes for columns.
    """
    rows = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return torch.einsum("ka,lb,oiab->iokl", rows, rows, weight)


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
        reason = str(error)[:300] or type(error).__name__
        raise WeightsError(f"{path} does not fit: {reason}; {remedy}") from None
    wrong = [name for name, tensor in encoder.state_dict().items() if not tensor.isfinite().all()]
    if wrong:
        raise WeightsError(f"{path} has NaN or infinite values in {', '.join(wrong[:5])}; {remedy}")


def _verify_download(encoder: str, weights: str) -> None:
    """Compare the fetched file with its SHA-256, which the hub gives and its cache uses as the file's name.

    Without symbolic links (Windows) the cache does not keep that name, and nothing is compared.
    """
    source = smp.encoders.encoders[encoder]["pretrained_settings"][weights]
    path = try_to_load_from_cache(source["repo_id"], "model.safetensors", revision=source["revision"])
    if not isinstance(path, str):
        return
    blob = Path(path).resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        raise WeightsError(
            f"the fetched weights '{weights}' of {encoder} are damaged: {blob} has the SHA-256 {found}. Delete the "
            "file and try again"
        )
