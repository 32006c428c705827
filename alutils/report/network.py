"""The network in numbers: the shapes between its stages, its parameters and its operations."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from alutils.model import UNet


def feature_shapes(model: UNet, image_size: int) -> pd.DataFrame:
    """What the stages of the network put out for one square image.

    Args:
        model: from :func:`alutils.build_unet`.
        image_size: height and width of the image, pixels.

    Returns:
        One row per stage, with its ``channels`` and its ``size`` (height and width, pixels).

    >>> from alutils.model import build_unet
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
    """The parameters of the network's parts, and the operations that each part needs for one square image.

    Args:
        model: from :func:`alutils.build_unet`.
        image_size: height and width of the image, pixels.

    Returns:
        One row per part and one for all, with ``parameters`` and ``GFLOP`` (a multiplication and an addition are two).

    >>> from alutils.model import build_unet
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
    flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    # Counted module by module without children, since a list of modules is never called itself.
    leaves = {
        m: flops.get(f"{type(model).__name__}.{name}", 0) for name, m in model.named_modules() if not [*m.children()]
    }
    costs = {
        name: (sum(p.numel() for p in part.parameters()), sum(leaves.get(m, 0) for m in part.modules()) / 1e9)
        for name, part in parts.items()
    }
    return pd.DataFrame.from_dict(costs, orient="index", columns=["parameters", "GFLOP"]).rename_axis("part")


def _forward_once(model: UNet, image_size: int) -> None:
    """Send one black image through the model in evaluation mode, and leave the model as it was."""
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    model.train(was_training)
