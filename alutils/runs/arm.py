"""The plan of a run, checked before any work: its trainings, its network, and what tells it from other runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alutils.annotation import WRITING_MODES, Oracle
from alutils.augment import normalize
from alutils.data.splits import Split, Splits, picture_sums
from alutils.experiment import Experiment
from alutils.queries.registry import BASELINES, STRATEGIES
from alutils.queries.select import Strategy, check_dropout, check_strategy, strategy_function, strategy_name
from alutils.regions import CLICKED_MODES
from alutils.rounds import COLD_START
from alutils.runs.own_code import code_checksum
from alutils.system.checks import ConfigError, expanded, function_name, shown
from alutils.system.device import deterministic_algorithms
from alutils.system.files import sha256
from alutils.system.seeding import make_generator, seeded
from alutils.system.weights import weight_names
from alutils.training import needs_company


@dataclass(frozen=True, eq=False)
class Plan:
    """The trainings of a run: the first images, how many images each has, and its steps (None: as the epochs take)."""

    experiment: Experiment
    first: torch.Tensor
    sizes: tuple[int, ...]
    n_steps: int | None


def make_plan(experiment: Experiment, strategy: Strategy | None, splits: Splits) -> Plan:
    """The plan of a run; ConfigError if the strategy or the splits are such that a training could not work."""
    _check_strategy(experiment, strategy)
    if experiment.control == "belief" and experiment.annotation not in WRITING_MODES:
        raise ConfigError(
            f"control: 'belief' is about labels that a model writes, not about annotation '{experiment.annotation}'; "
            f"take one of {', '.join(WRITING_MODES)}, or another control"
        )
    for name, split in splits.named.items():
        _check_split(name, split, experiment.image_size)
    if experiment.cold_start > len(splits.train):
        raise ConfigError(
            f"cold_start: {experiment.cold_start} images, but the training set has only {len(splits.train)}"
        )
    # All arms of a seed take their first images from the start of one random order
    order = torch.randperm(len(splits.train), generator=make_generator(experiment.seed, COLD_START))
    sizes, n_steps = experiment.labelled_among(len(order)), None
    if _is_baseline(experiment, strategy):
        n_steps = sum(map(experiment.steps_for, sizes))
        sizes = (sizes[-1] if experiment.strategy == "random_at_once" else len(order),)
        if experiment.strategy == "full_cosine":
            experiment = experiment.model_copy(update={"schedule": "cosine"})
    return Plan(experiment, order[: sizes[0]], sizes, n_steps)


def _is_baseline(experiment: Experiment, strategy: Strategy | None) -> bool:
    return strategy is None and experiment.strategy in BASELINES


def check_oracle(oracle: Oracle, experiment: Experiment, strategy: Strategy | None, masks: torch.Tensor) -> None:
    """ConfigError for what is no oracle, for one over other images, and for a person with nothing to draw."""
    if not isinstance(oracle, Oracle):
        raise ConfigError(f"oracle: must be an alutils.Oracle or None, got {shown(oracle)}")
    if oracle.shape != masks.shape:
        raise ConfigError(
            f"oracle: it knows masks of shape {tuple(oracle.shape)}, the training split has {tuple(masks.shape)}; make "
            "it from that split"
        )
    if experiment.oracle_noise:
        raise ConfigError("oracle_noise: it is about the simulated oracle; leave it at 0, or leave the oracle out")
    if oracle.name != Oracle.name and experiment.annotation in CLICKED_MODES:
        raise ConfigError(
            "oracle: a person draws pixels and clicks no superpixels, which is what annotation "
            f"'{experiment.annotation}' asks for; take another annotation, or leave the oracle out"
        )
    if oracle.name != Oracle.name and _is_baseline(experiment, strategy):
        raise ConfigError(
            f"oracle: strategy '{experiment.strategy}' queries no images, so a person has nothing to draw; take "
            "another strategy, or leave the oracle out"
        )


def build_network(
    network: Callable[[Experiment], nn.Module], experiment: Experiment, strategy: Strategy | None
) -> nn.Module:
    """The network with the seed's weights, on the CPU; ConfigError if the loop or the strategy cannot use it."""
    if not callable(network):
        raise ConfigError(f"network: must be a function of the experiment, got {network!r}")
    image = torch.zeros(1, 3, experiment.image_size, experiment.image_size, dtype=torch.uint8)
    with seeded(make_generator(experiment.seed)):
        model = network(experiment)
    _check_logits(function_name(network), model, image, experiment)
    needs_company(model, experiment.cold_start, experiment.batch_size, experiment.image_size)
    check_dropout(
        strategy_function(experiment, strategy), strategy_name(experiment, strategy), model, image, experiment
    )
    return model


def _check_logits(name: str, model: nn.Module, image: torch.Tensor, experiment: Experiment) -> None:
    try:
        next(model.cpu().parameters())
        exact = deterministic_algorithms(experiment.deterministic)
        with torch.inference_mode(), seeded(make_generator(experiment.seed)), exact:
            shape = tuple(model.eval()(normalize(image, experiment)).shape)
        if shape != (1, 1, *image.shape[2:]):
            raise ValueError(f"got {shape}")
    except Exception as error:
        raise ConfigError(
            f"network: '{name}' must return a torch.nn.Module with parameters that makes logits (N, 1, H, W) of images "
            f"(N, 3, H, W), but its {type(model).__name__} cannot use images {tuple(image.shape)}: {error!r}; take "
            "another one (architecture, encoder) or another image_size"
        ) from error


def run_identity(
    experiment: Experiment,
    splits: Splits,
    strategy: Strategy | None,
    network: Callable[[Experiment], nn.Module],
    model: nn.Module,
    oracle: Oracle | None,
) -> dict[str, Any]:
    """Plain values that tell this run from others; ConfigError if the source of a function cannot be found."""
    score, wrappers = strategy_function(experiment, strategy), []
    while hasattr(score, "inner"):  # the wrappers' names are in the strategy's name
        wrappers.append(score.outer)
        score = score.inner
    settings = {**experiment.model_dump(mode="json"), "strategy": strategy_name(experiment, strategy)}
    del settings["degenerate_masks"]  # what is said about masks while they are loaded changes nothing
    data: dict[str, Any] = {}
    for name, split in splits.named.items():
        height, width = split.images.shape[2:]
        data[name] = {"images": len(split), "height": height, "width": width, "checksum": split.checksum}
    if splits.source:
        data["name"] = splits.source
    if oracle is not None and oracle.name != Oracle.name:  # records of simulated runs have no such entry
        data["oracle"] = oracle.name
    if experiment.cold_start_by != "random":
        data["cold_start_features"] = "encoder" if experiment.encoder_weights else "thumbnails"
    return {
        "experiment": settings,
        "data": data,
        "strategy_code": None if score is None else code_checksum("strategy", score, *wrappers),
        "oracle": None if oracle is None else _annotator(oracle, splits.train.masks),
        "weights": _weights_checksum(experiment),
        "network": {
            "name": function_name(network),
            "code": code_checksum("network", network, *{type(layer): None for layer in model.modules()}),
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "structure": sha256(repr([(k, tuple(v.shape)) for k, v in model.state_dict().items()]).encode())[:16],
        },
    }


def _weights_checksum(experiment: Experiment) -> str | None:
    """Of the file of the encoder's weights; None where there is no file."""
    weights = experiment.encoder_weights
    if weights is None or weights in weight_names(experiment.encoder):
        return None
    path = expanded("encoder_weights", weights)  # a network of one's own may not read it
    return sha256(path.read_bytes())[:16] if path.is_file() else None


def _annotator(oracle: Oracle, masks: torch.Tensor) -> dict[str, Any] | None:
    """Who annotates; None for the simulated oracle on the training split's own masks."""
    shown = picture_sums(oracle.truth(torch.arange(len(masks)))).cpu()
    same = torch.equal(shown, picture_sums(masks).cpu())
    found = {
        "code": code_checksum("oracle", type(oracle)),
        "masks": None if same else sha256(str(shown.tolist()).encode())[:16],
        **oracle.settings,
    }
    return found if oracle.name != Oracle.name or any(value is not None for value in found.values()) else None


def _check_strategy(experiment: Experiment, strategy: Strategy | None) -> None:
    check_strategy(strategy)
    name = experiment.strategy
    if strategy is None:
        STRATEGIES.check_arm(name, "strategy")
    if _is_baseline(experiment, strategy) and experiment.annotation != "full":
        raise ConfigError(
            f"annotation: '{experiment.annotation}' is about queried images, and strategy '{name}' queries none; take "
            "annotation 'full' or another strategy"
        )


def _check_split(name: str, split: Split, image_size: int) -> None:
    height, width = split.images.shape[2:]
    if len(split) == 0:
        raise ConfigError(f"splits: the {name} split has no images")
    if not height == width == image_size:
        raise ConfigError(
            f"image_size: {image_size} in the experiment, but the {name} images are {height} x {width}; load them at "
            "the experiment's size"
        )
