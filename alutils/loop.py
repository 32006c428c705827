"""The loop of Fig. 1: train, evaluate, score the pool, query, ask the oracle, and again."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from alutils.annotation import (
    NO_AUDIT,
    WRITING_MODES,
    AnnotationsNeeded,
    Oracle,
    audit_annotations,
    combine,
    human_pixels,
)
from alutils.augment import normalize
from alutils.cost import annotation_cost
from alutils.data.packed import PackedMasks
from alutils.data.splits import Split, Splits, lesion_area, picture_sums
from alutils.experiment import Experiment
from alutils.metrics import dice_score
from alutils.model import unet_for
from alutils.queries.registry import BASELINES, STRATEGIES
from alutils.queries.select import (
    Strategy,
    check_dropout,
    check_strategy,
    select_queries,
    strategy_name,
    tied_at_the_cut,
)
from alutils.runs.folder import (
    LabelledSet,
    Round,
    RunFolder,
    RunState,
    WaitingRound,
    annotation_table,
    audit_table,
    ids_at,
    query_table,
)
from alutils.runs.own_code import code_checksum
from alutils.system.checks import ConfigError, did_you_mean, expanded, function_name
from alutils.system.device import (
    check_compiler,
    check_deterministic,
    deterministic_algorithms,
    memory_for,
    resolve_device,
)
from alutils.system.files import sha256
from alutils.system.progress import progress_bar
from alutils.system.seeding import make_generator, seeded
from alutils.training import TrainingDiverged, fit, leaves_one_pixel, predict_probabilities, probability_batches

Network = Callable[[Experiment], nn.Module]
"""``network(experiment)`` -> a model from normalized images (N, 3, H, W) to logits (N, 1, H, W), as ``unet_for`` is."""

COLD_START, TRAINING, QUERY, ANNOTATION = 1, 2, 3, 4  # what a generator's numbers are for: part of its key


def run_active_learning(
    experiment: Experiment,
    splits: Splits,
    output_dir: str | Path,
    *,
    strategy: Strategy | None = None,
    network: Network | None = None,
    oracle: Oracle | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Iterator[Round]:
    """Active learning as in Fig. 1, simulated as in section IV-E, a round at a time.

    All arms of one seed share the cold start, which is annotated in full, and the initial weights. Of the pool's masks
    only those of queried images are read, and of them the model learns no more than ``experiment.annotation`` says:
    in full, or the uncertain pixels alone with the model's own labels elsewhere (section III-B), or a control.

    Everything is checked when the function is called; the work is done as the rounds are asked for. Each round is on
    disk before it is yielded: a run that was stopped, however that was, goes on when it is called again with the same
    arguments. Then the rounds on disk come first, and a finished run trains nothing.

    The same arguments give the same numbers to the bit on a CPU, for one machine and number of threads; on a GPU only
    with ``experiment.deterministic`` (not yet tried on one).

    Args:
        experiment: every setting; ``strategy`` names one of ``alutils.queries.STRATEGIES`` or ``BASELINES``.
        splits: images of the experiment's ``image_size``; the training split is the pool.
        output_dir: the run's own folder; it takes ``run.json``, ``rounds.csv``, ``queries.csv``, ``test_dice.csv``,
            ``annotations.csv``, ``audit.csv``, ``timing.csv`` and ``state.pt`` (what a stopped run goes on from; while
            it waits for a person, ``trained.pt`` too).
        strategy: a function of your own (see :func:`alutils.queries.select.select_queries`) in place of the one that
            the experiment names; it is recorded by its own name and its code (:mod:`alutils.runs.own_code`).
        network: a function of the experiment that builds a network of your own, and draws its initial weights from the
            global random state, which is the seed's; recorded by its name and code too. None: :func:`alutils.unet_for`.
        oracle: who annotates, over ``splits.train``: None, the simulated oracle, or a person
            (:class:`alutils.HumanOracle`), who draws the queried images and not the cold start. One of your own is
            recorded by the code of its class and its masks.
        device: where to compute: "auto", "cpu", "cuda", "cuda:1", ...; the pictures are moved there if they fit.
        progress: show a progress bar.

    Yields:
        The rounds: ``experiment.n_queries + 1`` of them, fewer where the pool ends, one for a baseline.

    Raises:
        ConfigError: if the settings do not fit the pictures; if there is no such strategy or device; if a function of
            your own has no source; if the network returns no logits; if the strategy needs dropout and the network has
            none; if ``compile`` or ``deterministic`` is set and torch cannot do it here; or if ``output_dir`` holds
            another run (the error lists the settings that differ).
        RecordsError: if the files of a stopped run cannot be read, or another process is at work in ``output_dir``.
        CannotWrite: if a file cannot be written; the rounds before are safe.
        TrainingDiverged: if the loss or the weights stop being numbers: the run has ended and its record says so.
        OutOfMemory: if the device cannot hold a batch (the message names a batch size that fits), the masks of the cold
            start, those of a query, or the copy of the pool that a ``strategy`` of your own gets.
        AnnotationsNeeded: if the oracle is a person who has images to draw; draw them and make the same call again.

    >>> import tempfile
    >>> from alutils.data.synthetic import make_synthetic
    >>> experiment = Experiment(image_size=64, cold_start=4, query_size=2, n_queries=1, epochs=1,
    ...                         encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> splits = make_synthetic(8, 2, 2, image_size=64)
    >>> rounds = run_active_learning(experiment, splits, tempfile.mkdtemp(), progress=False)
    >>> [(round.number, round.n_labelled, len(round.queries)) for round in rounds]
    [(0, 4, 2), (1, 6, 0)]
    """
    _check(experiment, splits, strategy, oracle)
    plan = _make_plan(experiment, strategy, len(splits.train))
    _check_batches(plan)
    torch_device = resolve_device(device, deterministic=experiment.deterministic)
    initial = _build(network or unet_for, experiment, strategy)
    folder = RunFolder(
        expanded("output_dir", output_dir),
        _identity(experiment, splits, strategy, network or unet_for, initial, oracle),
    )
    check_deterministic(initial, experiment, torch_device)
    initial = initial.to(torch_device)
    splits = splits.placed(torch_device)
    with memory_for("image_size: the masks and what the run had labelled", "take another device", torch_device):
        oracle = Oracle(splits.train.masks) if oracle is None else oracle.to(torch_device)
        state = folder.load(copy.deepcopy(initial), splits)
    if experiment.compile and not (state is not None and state.finished):
        check_compiler(torch_device)
    if state is None:
        with memory_for(f"image_size: the masks of {len(plan.first)} images", "take a smaller one", torch_device):
            masks = oracle.annotate_cold_start(plan.first)
            cold_start = LabelledSet.of(plan.first, masks, torch.ones_like(masks))
        state = RunState(copy.deepcopy(initial), cold_start, rounds=[])
    once = plan.n_queries == 0
    rounds = _loop(plan, splits, oracle, initial, state, folder, strategy, progress=progress and once)
    return _with_bar(rounds, plan.n_queries + 1) if progress and not once else rounds


def _loop(
    plan: _Plan,
    splits: Splits,
    oracle: Oracle,
    initial: nn.Module,
    state: RunState,
    folder: RunFolder,
    strategy: Strategy | None,
    progress: bool,
) -> Iterator[Round]:
    """Fig. 1, entered at step 4 with the cold start."""
    folder.begin(state, splits)
    yield from state.rounds
    device, remedy = next(initial.parameters()).device, "take a smaller query_size, batch_size or image_size"
    while not state.finished:
        try:
            with (
                deterministic_algorithms(plan.experiment),
                memory_for("query_size: the images of a query and their labels", remedy, device),
            ):
                done = _one_round(plan, splits, oracle, initial, state, folder, strategy, progress)
            state.labelled = done.labels
            state.rounds.append(replace(done, model=None, labels=None))
            folder.save(state, splits)
        except TrainingDiverged as error:
            folder.note_divergence(len(state.rounds), error)
            raise
        except KeyboardInterrupt:
            tqdm.write(f"stopped; called again it goes on from its last round in {folder.path}", file=sys.stderr)
            raise
        yield done


def _one_round(
    plan: _Plan,
    splits: Splits,
    oracle: Oracle,
    initial: nn.Module,
    state: RunState,
    folder: RunFolder,
    strategy: Strategy | None,
    progress: bool,
) -> Round:
    """Steps 4, 5, 1, 2 and 3 of Fig. 1; of ``state`` it changes the model alone."""
    if not plan.experiment.fine_tune:
        state.model = copy.deepcopy(initial)
    kept = folder.kept_training(len(state.rounds), state.model, splits.train)  # the round had to wait for a person
    waiting = kept or _train_and_query(plan, splits, oracle, state, strategy, progress)
    seconds = dict(waiting.round.seconds)
    with _timed(seconds, "annotation"):  # step 3
        try:
            answers = _ask(oracle, waiting.asked, plan.experiment)
        except AnnotationsNeeded:
            if kept is None:
                folder.keep_training(waiting, state.model)
            raise
        labels = waiting.labelled.plus(answers)
    return replace(waiting.round, seconds=seconds, model=state.model, labels=labels)


def _train_and_query(
    plan: _Plan, splits: Splits, oracle: Oracle, state: RunState, strategy: Strategy | None, progress: bool
) -> WaitingRound:
    """Steps 4, 5, 1 and 2 of Fig. 1, and which pixels of the queried images the human is to label."""
    experiment, train = plan.experiment, splits.train
    k, labelled, pool = len(state.rounds), state.labelled, state.labelled.pool(len(train))
    seconds: dict[str, float] = {}

    with _timed(seconds, "training"):  # step 4
        losses = fit(
            state.model,
            train.images,
            labelled.masks,
            experiment,
            make_generator(experiment.seed, TRAINING, k),
            indices=labelled.indices,
            annotated=labelled.human if experiment.annotation == "human-only" else None,
            n_steps=plan.n_steps,
            progress=progress,
        )
    with _timed(seconds, "evaluation"):  # step 5
        val_dice = evaluate(state.model, splits.val, experiment)

    audit = audit_table(k, [], NO_AUDIT)
    if experiment.annotation in WRITING_MODES:
        with _timed(seconds, "audit"):
            audit, labelled = _review(state, train.images, oracle, experiment)

    test_dice, queried, scores, tied = None, pool[:0], torch.zeros(0), 0
    if k == plan.n_queries:
        with _timed(seconds, "test"):
            test_dice = evaluate(state.model, splits.test, experiment)
    else:
        with _timed(seconds, "query"):  # steps 1 and 2
            images, n, generator = train.images, experiment.query_size, make_generator(experiment.seed, QUERY, k)
            chosen, scores = select_queries(state.model, images, n, experiment, generator, strategy, indices=pool)
            queried, scores, tied = pool[chosen], scores[chosen], tied_at_the_cut(scores, chosen)
    with _timed(seconds, "annotation"):
        asked = _pixels_to_ask(state.model, train, queried, experiment, k)
        n_before = state.rounds[-1].n_labelled if state.rounds else 0
        costs = annotation_cost(state.labelled.masks[n_before:], state.labelled.human[n_before:])

    done = Round(
        number=k,
        labelled=labelled.indices,
        labelled_ids=ids_at(train, labelled.indices),
        losses=losses,
        val_dice_per_image=val_dice,
        test_dice_per_image=test_dice,
        queries=query_table(k, ids_at(train, queried), scores, 100 * lesion_area(oracle.truth(queried))),
        tied=tied,
        annotations=annotation_table(k, ids_at(train, labelled.indices[n_before:]), costs),
        audit=audit,
        seconds=seconds,
        model=None,
        labels=None,
    )
    return WaitingRound(done, labelled, asked)


def _pixels_to_ask(
    model: nn.Module, train: Split, queried: torch.Tensor, experiment: Experiment, k: int
) -> LabelledSet:
    """The queried images: which pixels the human labels, and the model's labels of the others."""
    if experiment.annotation == "full" or len(queried) == 0:
        nothing = torch.zeros((len(queried), *train.masks.shape[1:]), dtype=torch.uint8, device=train.masks.device)
        return LabelledSet.of(queried, nothing, nothing + 1)
    p = predict_probabilities(model, train.images, experiment, indices=queried)
    human = human_pixels(p, experiment, make_generator(experiment.seed, ANNOTATION, k))
    nothing = torch.zeros_like(human, dtype=torch.uint8)
    return LabelledSet.of(queried, combine(nothing, p, human, experiment.tau_b), human)


def _ask(oracle: Oracle, asked: LabelledSet, experiment: Experiment) -> LabelledSet:
    """The queried images with the labels of the human and, where the mode has it so, of the model."""
    if experiment.annotation == "full" or len(asked.indices) == 0:
        return replace(asked, masks=PackedMasks.pack(oracle.annotate(asked.indices)))
    human, suggestion = asked.human[:].bool(), asked.masks[:]
    answers = oracle.annotate(asked.indices, human, suggestion=suggestion)
    return replace(asked, masks=PackedMasks.pack(torch.where(human, answers, suggestion)))


def _review(
    state: RunState, images: torch.Tensor, oracle: Oracle, experiment: Experiment
) -> tuple[pd.DataFrame, LabelledSet]:
    """The queried images, seen by the present model: the audit of their labels, and the labels for the next round."""
    labelled = state.labelled
    ends = [*(one.n_labelled for one in state.rounds), len(labelled.indices)]
    n_first = ends[0]
    cohorts = torch.arange(1, len(ends)).repeat_interleave(torch.tensor(ends).diff())
    refreshed = experiment.annotation == "partial-refreshed"
    audits, masks = [NO_AUDIT], PackedMasks(labelled.masks.bits[:n_first])
    for chosen, p in probability_batches(state.model, images, experiment, indices=labelled.indices[n_first:]):
        place = slice(n_first + chosen.start, n_first + chosen.stop)
        written, human = labelled.masks[place], labelled.human[place]
        truth = oracle.truth(labelled.indices[place])
        audits.append(audit_annotations(truth, written, human, p, experiment.tau_b))
        if refreshed:
            masks = masks.plus(PackedMasks.pack(combine(written, p, human.bool(), experiment.tau_b)))
    audit = audit_table(len(state.rounds), cohorts.tolist(), pd.concat(audits, ignore_index=True))
    return audit, replace(labelled, masks=masks) if refreshed else labelled


def evaluate(model: nn.Module, split: Split, experiment: Experiment) -> torch.Tensor:
    """Dice of each image of ``split``, eq. 4: float32 (n,), 0 to 1, on the CPU.

    Args:
        model: on the device where it is to run.
        split: images with their masks.
        experiment: normalization, precision and batch size.

    Raises:
        TrainingDiverged: if a prediction is not a number.

    >>> model = unet_for(Experiment(encoder_weights=None))
    >>> images, masks = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 1, 64, 64, dtype=torch.uint8)
    >>> evaluate(model, Split(images, masks, ("a", "b", "c")), Experiment()).shape
    torch.Size([3])
    """
    dice = []
    for chosen, p in probability_batches(model, split.images, experiment):
        if not p.isfinite().all():
            raise TrainingDiverged(f"the predictions for images {chosen.start} to {chosen.stop - 1} are not numbers")
        dice.append(dice_score(p, split.masks[chosen].to(p.device)))
    return torch.cat(dice).cpu()


@dataclass(frozen=True, eq=False)
class _Plan:
    """What makes an arm: its first images, how many each training has, the steps of a training (None: by epochs)."""

    experiment: Experiment
    first: torch.Tensor
    sizes: tuple[int, ...]
    n_steps: int | None

    @property
    def n_queries(self) -> int:
        return len(self.sizes) - 1


def _make_plan(experiment: Experiment, strategy: Strategy | None, n_train: int) -> _Plan:
    # All arms of a seed take their first images from the start of one random order
    order = torch.randperm(n_train, generator=make_generator(experiment.seed, COLD_START))
    sizes = experiment.labelled_among(n_train)
    if strategy is not None or experiment.strategy not in BASELINES:
        return _Plan(experiment, order[: sizes[0]], sizes, n_steps=None)
    n_first = sizes[-1] if experiment.strategy == "random_at_once" else n_train
    schedule = "cosine" if experiment.strategy == "full_cosine" else experiment.schedule
    training = experiment.model_copy(update={"schedule": schedule})
    return _Plan(training, order[:n_first], (n_first,), n_steps=sum(map(experiment.steps_for, sizes)))


def _build(network: Network, experiment: Experiment, strategy: Strategy | None) -> nn.Module:
    """The network with its initial weights, on the CPU, if it is one that the loop and the strategy can use."""
    if not callable(network):
        raise ConfigError(
            f"network: must be a function of the experiment that returns a network, or None, got {network!r}"
        )
    name = function_name(network)
    with seeded(make_generator(experiment.seed)):
        model = network(experiment)
    if not isinstance(model, nn.Module) or not list(model.parameters()):
        raise ConfigError(
            f"network: '{name}' must return a torch.nn.Module with parameters to train, got {type(model).__name__}"
        )
    model.cpu()
    image = torch.zeros(1, 3, experiment.image_size, experiment.image_size, dtype=torch.uint8)
    if network is not unet_for:
        try:
            with torch.inference_mode(), seeded(make_generator(experiment.seed)):
                logits = model.eval()(normalize(image, experiment))
        except Exception as error:
            raise ConfigError(
                f"network: '{name}' cannot predict images of shape {tuple(image.shape)}: {error}"
            ) from error
        if getattr(logits, "shape", None) != (1, 1, *image.shape[2:]):
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ConfigError(
                f"network: '{name}' must return logits of shape (N, 1, H, W) for images (N, 3, H, W), here "
                f"{(1, 1, *image.shape[2:])}, got {got}"
            )
    score = _scorer(experiment, strategy)
    check_dropout(score, strategy_name(experiment, strategy), model, image, experiment)
    return model


def _scorer(experiment: Experiment, strategy: Strategy | None) -> Strategy | None:
    """The function that scores, None for a baseline."""
    return STRATEGIES.get(experiment.strategy) if strategy is None else strategy


def _identity(
    experiment: Experiment,
    splits: Splits,
    strategy: Strategy | None,
    network: Network,
    model: nn.Module,
    oracle: Oracle | None,
) -> dict[str, Any]:
    """What makes a run this one: its settings, pictures and network, with code of one's own, and who annotates."""
    settings = {**experiment.model_dump(mode="json"), "strategy": strategy_name(experiment, strategy)}
    del settings["degenerate_masks"]  # what is said about masks while they are loaded changes nothing
    data = {}
    for name in ("train", "val", "test"):
        split: Split = getattr(splits, name)
        data[name] = {
            "images": len(split),
            "height": split.images.shape[2],
            "width": split.images.shape[3],
            "checksum": split.checksum,  # synthetic pictures of all seeds have the same ids
        }
    if oracle is not None and oracle.name != Oracle.name:  # the records of simulated runs do not say
        data["oracle"] = oracle.name
    score = _scorer(experiment, strategy)
    return {
        "experiment": settings,
        "data": data,
        "strategy_code": None if score is None else code_checksum("strategy", score),
        "oracle": None if oracle is None else _annotator(oracle, splits.train.masks),
        "network": {
            "name": function_name(network),
            "code": code_checksum("network", network, *{type(layer): None for layer in model.modules()}),
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "structure": sha256(repr([(k, tuple(v.shape)) for k, v in model.state_dict().items()]).encode())[:16],
        },
    }


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


def _check(experiment: Experiment, splits: Splits, strategy: Strategy | None, oracle: Oracle | None) -> None:
    """What can be seen to go wrong before any work."""
    names = [*STRATEGIES, *BASELINES]
    if strategy is None and experiment.strategy not in names:
        hint = did_you_mean(experiment.strategy, names)
        raise ConfigError(f"strategy: there is no '{experiment.strategy}'; {hint}")
    check_strategy(strategy)
    if strategy is None and experiment.strategy in BASELINES and experiment.annotation != "full":
        raise ConfigError(
            f"annotation: '{experiment.annotation}' is about queried images, and strategy '{experiment.strategy}' "
            "queries none; take annotation 'full' or another strategy"
        )
    if oracle is not None and oracle.name != Oracle.name and strategy is None and experiment.strategy in BASELINES:
        raise ConfigError(
            f"oracle: strategy '{experiment.strategy}' queries no images, so that a person has nothing to draw; take "
            "another strategy, or leave the oracle out"
        )
    for name in ("train", "val", "test"):
        split: Split = getattr(splits, name)
        height, width = split.images.shape[2:]
        if len(split) == 0:
            raise ConfigError(f"splits: the {name} split has no images")
        if not height == width == experiment.image_size:
            raise ConfigError(
                f"image_size: {experiment.image_size} in the experiment, but the {name} images are {height} x {width}; "
                "load them at the experiment's size"
            )
    if oracle is not None and oracle.shape != splits.train.masks.shape:
        raise ConfigError(
            f"oracle: it knows masks of shape {tuple(oracle.shape)}, the training split has "
            f"{tuple(splits.train.masks.shape)}; make it from that split"
        )
    if experiment.cold_start > len(splits.train):
        raise ConfigError(
            f"cold_start: {experiment.cold_start} images, but the training set has only {len(splits.train)}"
        )


def _check_batches(plan: _Plan) -> None:
    """Refuse what :func:`alutils.training.fit` would refuse, before the first training and not after some rounds."""
    experiment = plan.experiment
    for k, n in enumerate(plan.sizes):
        if leaves_one_pixel(n, experiment.image_size, experiment.batch_size):
            raise ConfigError(
                f"batch_size: {experiment.batch_size} leaves a batch of one image in round {k}, which trains on {n} of "
                "32 x 32: its bottleneck is a single pixel, which batch norm cannot use; choose another batch_size, "
                "cold_start or query_size, or a larger image_size"
            )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def _with_bar(rounds: Iterator[Round], total: int) -> Iterator[Round]:
    with progress_bar("active learning", total, "round") as bar:
        for one in rounds:
            bar.set_postfix(labelled=one.n_labelled, val_dice=f"{one.val_dice:.3f}")
            bar.update()
            yield one
