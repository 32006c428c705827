"""The network in numbers: the shapes between its stages, its parameters and its operations."""

from __future__ import annotations

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from alutils.model import Network, UNet


def feature_shapes(model: UNet, image_size: int) -> pd.DataFrame:
    """``channels`` and ``size`` (height and width, pixels) of what each stage makes of one square image.

    >>> from alutils.model import build_unet
    >>> model = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> feature_shapes(model, 64).loc[["encoder 5", "decoder 1"]].values.tolist()
    [[512, 2], [16, 4]]
    """
    stages = {f"encoder {i}": lateral for i, lateral in enumerate(model.laterals, 1)}
    stages |= {f"decoder {i}": block for i, block in enumerate(model.decoder.blocks, 1)}
    names, rows = {stage: name for name, stage in stages.items()}, {}

    def record(stage: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        rows[names[stage]] = output.shape[1:3]

    hooks = [stage.register_forward_hook(record) for stage in names]
    try:
        _forward_once(model, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    return pd.DataFrame.from_dict(rows, orient="index", columns=["channels", "size"]).rename_axis("stage")


def model_costs(model: Network, image_size: int) -> pd.DataFrame:
    """``parameters`` of the network's parts, and their ``GFLOP`` for one image, ``image_size`` pixels high and wide.

    A multiplication and an addition are two operations.

    >>> from alutils.model import build_unet
    >>> costs = model_costs(build_unet(encoder_weights=None), 512)
    >>> costs["GFLOP"].round(1).to_dict()
    {'encoder': 18.9, '1x1 convolutions': 1.1, 'decoder': 24.2, 'segmentation head': 0.1, 'all': 44.3}
    """
    with FlopCounterMode(display=False) as counter:
        _forward_once(model, image_size)
    flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    root = type(model).__name__
    rows = {}
    for part in ("encoder", *(["laterals"] if isinstance(model, UNet) else []), "decoder", "segmentation_head"):
        # A list of modules is not counted, since it is never called itself
        called = [part] if part != "laterals" else [f"laterals.{i}" for i in range(len(model.laterals))]
        n_parameters = sum(p.numel() for p in getattr(model, part).parameters())
        rows[part] = n_parameters, sum(flops.get(f"{root}.{name}", 0) for name in called) / 1e9
    rows["all"] = sum(p.numel() for p in model.parameters()), flops[root] / 1e9
    names = {"laterals": "1x1 convolutions", "segmentation_head": "segmentation head"}
    costs = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "GFLOP"])
    return costs.rename(index=names).rename_axis("part")


def _forward_once(model: Network, image_size: int) -> None:
    """Send one black image through the model in evaluation mode, and leave the model as it was."""
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    model.train(was_training)
