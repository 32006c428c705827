"""The loop of Fig. 1: score the pool, query, ask the oracle, train, evaluate, and again."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from alutils.cost import annotation_cost, clicked_cost
from alutils.data.packed import PackedMasks
from alutils.data.splits import ImageView, Split, Splits, lesion_area
from alutils.erring import simulated_oracle
from alutils.experiment import Experiment
from alutils.metrics import ISIC_2018, dice_score, jaccard_score, mean_height, predicted_dice
from alutils.model import unet_for
from alutils.queries.clustered import chosen_cold_start
from alutils.queries.select import Answer, Strategy, ask, chosen_of, sees_masks, strategy_function, tied_at_the_cut
from alutils.queries.view import Labelled, View
from alutils.regions import CLICKED_MODES, dominant_labels, n_clicks, regions_of
from alutils.rounds import (
    ANNOTATION,
    COLD_START,
    CONTROL,
    QUERY,
    TRAINING,
    Draft,
    LabelledSet,
    Round,
    RunState,
    columns,
)
from alutils.runs.arm import Plan, build_network, check_oracle, make_plan, run_identity
from alutils.runs.folder import RunFolder
from alutils.system.checks import expanded
from alutils.system.device import (
    check_compiler,
    deterministic_algorithms,
    memory_for,
    resolve_device,
)
from alutils.system.progress import progress_bar
from alutils.system.seeding import make_generator
from alutils.training import TrainingDiverged, fit, predict_probabilities, probability_batches

Network = Callable[[Experiment], nn.Module]
"""``network(experiment)`` -> a model from normalized images (N, 3, H, W) to logits (N, 1, H, W), as ``unet_for`` is."""


# Longer than 60 lines: it describes the arguments and errors of the whole loop
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
    """Active learning as in Fig. 1, simulated as in section IV-E, one round at a time.

    All arms of one seed share the cold start, which is annotated in full, and the initial weights. Of the pool's masks
    only those of queried images are read (a positive control such as "lowest_dice" reads all), and the model learns no
    more of them than ``experiment.annotation`` says.

    Everything is checked, and the cold start chosen and annotated, when the function is called; the rest of the work is
    done as the rounds are asked for. Each round is on disk before it is yielded. A stopped run goes on when it is
    called again with the same arguments: the rounds on disk come first, and a finished run trains nothing. The same
    arguments give the same numbers to the bit on a CPU, for one machine and number of threads; on a GPU only with
    ``experiment.deterministic``.

    Args:
        experiment: every setting; ``strategy`` names one of ``alutils.queries.STRATEGIES`` or ``BASELINES``.
        splits: images of the experiment's ``image_size``; the training split is the pool.
        output_dir: the run's own folder; it takes ``run.json``, ``rounds.jsonl`` (one line per round, see
            :data:`alutils.rounds.KEYS`), ``state.pt`` (what a stopped run goes on from) and, while a round waits for a
            person, ``waiting.pt``.
        strategy: a function of your own (see :func:`alutils.queries.select.select_queries`) in place of the one that
            the experiment names; it is recorded by its name and its code (:mod:`alutils.runs.own_code`).
        network: a function of your own in place of :func:`alutils.unet_for`; it draws its initial weights from the
            global random state, which is the seed's, and is recorded by its name and code too.
        oracle: who annotates ``splits.train``: by default the simulated oracle; a person (:class:`alutils.HumanOracle`)
            draws the queried images, and with ``draws_cold_start`` the cold start. One of your own is recorded by its
            code and masks.
        device: where to compute: "auto", "cpu", "cuda", "cuda:1", ...; the pictures are moved there if they fit.
        progress: show a progress bar.

    Yields:
        ``experiment.n_queries + 1`` rounds, fewer where the pool ends, one for a baseline.

    Raises:
        ConfigError: if settings, pictures, functions and device do not fit together, or ``output_dir`` holds another
            run (the error lists the settings that differ).
        RecordsError: if the files of a stopped run cannot be read, or another process is at work in ``output_dir``.
        CannotWrite: if a file cannot be written; the rounds before are safe.
        TrainingDiverged: if a loss, a weight or a prediction for a validation or test image is not finite, or gradients
            are too large for float16: the run has ended, and its record says so.
        OutOfMemory: if the device cannot hold a batch (the message names a batch size that fits), the masks, or the
            copy of the pool that a ``strategy`` of your own gets.
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
    network = network or unet_for
    plan = make_plan(experiment, strategy, splits)
    if oracle is not None:
        check_oracle(oracle, experiment, strategy, splits.train.masks)
    torch_device = resolve_device(device, deterministic=experiment.deterministic)
    initial = build_network(network, experiment, strategy)
    identity = run_identity(experiment, splits, strategy, network, initial, oracle)
    folder = RunFolder(expanded("output_dir", output_dir), identity)
    once = len(plan.sizes) == 1
    with memory_for("image_size: the masks and what the run had labelled", "take another device", torch_device):
        initial, splits = initial.to(torch_device), splits.placed(torch_device)
        oracle = simulated_oracle(splits.train.masks, experiment) if oracle is None else oracle.to(torch_device)
        state = folder.load(copy.deepcopy(initial), splits.train)
    if experiment.compile and not (state is not None and state.finished):
        check_compiler(torch_device)
    run = _Run(plan, splits, oracle, strategy, initial, folder, progress and once)
    rounds = _loop(run, state or _cold_start(run))
    return _with_bar(rounds, len(plan.sizes)) if progress and not once else rounds


@dataclass(frozen=True, eq=False)
class _Run:
    """What all steps share, such as the network with its ``initial`` weights and what strategies have ``kept``."""

    plan: Plan
    splits: Splits
    oracle: Oracle
    strategy: Strategy | None
    initial: nn.Module
    folder: RunFolder
    progress: bool
    kept: dict[Any, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        return self.plan.experiment

    def is_last(self, draft: Draft) -> bool:
        return draft.line["round"] == len(self.plan.sizes) - 1

    def generator(self, purpose: int, draft: Draft) -> torch.Generator:
        return make_generator(self.experiment.seed, purpose, draft.line["round"])

    @contextmanager
    def phase(self, name: str, draft: Draft) -> Iterator[None]:
        """A context for a part of a round: it adds up the seconds, and explains what does not fit into the memory."""
        device, remedy = next(self.initial.parameters()).device, "take a smaller query_size, batch_size or image_size"
        seconds, start = draft.line["seconds"], time.perf_counter()
        with (
            torch.enable_grad(),  # restores what a Ctrl-C within torch's optimizer leaves switched off
            deterministic_algorithms(self.experiment.deterministic),
            memory_for("query_size: the images of a query and their labels", remedy, device),
        ):
            yield
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _cold_start(run: _Run) -> RunState:
    """The first images, annotated in full."""
    first, device = run.plan.first, next(run.initial.parameters()).device
    if run.experiment.cold_start_by != "random":
        generator = make_generator(run.experiment.seed, COLD_START)
        chosen = chosen_cold_start(run.splits.train.images, run.experiment, generator, device)
        first = torch.cat([chosen, first[~torch.isin(first, chosen)]])[: len(first)]  # a baseline takes more images
    with memory_for(f"image_size: the masks of {len(first)} images", "take a smaller one", device):
        masks = run.oracle.annotate_cold_start(first)
        labelled = LabelledSet.of(first, masks, torch.ones_like(masks))
    return RunState(copy.deepcopy(run.initial), labelled, rounds=[])


def _loop(run: _Run, state: RunState) -> Iterator[Round]:
    """Fig. 1, entered at step 4 with the cold start, or with what a stopped run had annotated."""
    run.folder.begin(state)
    yield from state.rounds
    if state.finished:
        return
    try:
        draft = _waiting(run, state) or _evaluate(run, state, _train(run, state))
        while not run.is_last(draft):
            if draft.asked is None:  # otherwise it has queried already, and waited for a person
                view = _view(run, state, draft)
                answer = _score_pool(run, draft, view)  # step 1
                _query(run, draft, view, answer)  # step 2
            _annotate(run, state, draft)  # step 3
            yield _save(run, state, draft)
            draft = _train(run, state)  # step 4
            _evaluate(run, state, draft)  # step 5
        yield _save(run, state, draft)
    except TrainingDiverged as error:
        run.folder.note_divergence(len(state.rounds), error)
        raise
    except KeyboardInterrupt:
        tqdm.write(f"stopped; called again it goes on from its last round in {run.folder.path}", file=sys.stderr)
        raise


def _waiting(run: _Run, state: RunState) -> Draft | None:
    """The round that had to wait for a person, as it was, if there is one."""
    model = copy.deepcopy(run.initial)
    draft = run.folder.waiting(len(state.rounds), model, run.splits.train)
    if draft is not None:
        state.model = model
    return draft


def _view(run: _Run, state: RunState, draft: Draft) -> View:
    """What a query strategy sees of this round."""
    train, labelled, experiment = run.splits.train, draft.labelled, run.experiment
    pool = labelled.unlabelled(len(train))

    def ids(positions: torch.Tensor) -> tuple[str, ...]:
        return tuple(train.ids[i] for i in positions.tolist())

    return View(
        state.model,
        ImageView(train.images, pool),
        experiment,
        run.generator(QUERY, draft),
        min(experiment.query_size, len(pool)),
        ids(pool),
        Labelled(ImageView(train.images, labelled.indices), ids(labelled.indices), labelled.masks, labelled.human),
        draft.line["round"],
        len(run.plan.sizes) - 1,
        run.kept,
        masks=ImageView(train.masks, pool) if sees_masks(strategy_function(experiment, run.strategy)) else None,
    )


def _score_pool(run: _Run, draft: Draft, view: View) -> Answer:
    """Step 1: the informativeness of each image of the pool."""
    with run.phase("query", draft):
        return ask(view, run.strategy)


def _query(run: _Run, draft: Draft, view: View, answer: Answer) -> None:
    """Step 2: the images to query, and which of their pixels the human is to label."""
    with run.phase("query", draft):
        chosen = chosen_of(answer, view)
        queried = view.images.indices[chosen]
        p = predict_probabilities(view.model, run.splits.train.images, run.experiment, indices=queried)
        draft.line["tied"] = tied_at_the_cut(answer.scores, chosen)
        joining = view.pseudo_labelled[~torch.isin(view.pseudo_labelled, chosen)]
        draft.line["pseudo_labelled"] = [view.ids[i] for i in joining.tolist()]
        draft.line["queries"] = {
            "image_id": [view.ids[i] for i in chosen.tolist()],
            "score": [None if answer.selection is not None else score for score in answer.scores[chosen].tolist()],
            "lesion_area_percent": (100 * lesion_area(run.oracle.truth(queried))).tolist(),
            "predicted_area_percent": (100 * lesion_area((p >= 0.5).to(torch.uint8))).tolist(),
        }
    with run.phase("annotation", draft):
        draft.asked = _pixels_to_ask(run, queried, p, run.generator(ANNOTATION, draft))


def _annotate(run: _Run, state: RunState, draft: Draft) -> None:
    """Step 3: the labels of the human and, where the mode has it so, of the model."""
    asked, human, mode = draft.asked, None, run.experiment.annotation
    suggestion = asked.masks[:]
    with run.phase("annotation", draft):
        if mode == "correction":
            masks, human = run.oracle.correct(asked.indices, suggestion, _regions(run, asked.indices))
            draft.labelled = draft.labelled.plus(LabelledSet.of(asked.indices, masks, human))
            return
        if mode != "full":
            human = asked.human[:].bool()
        try:
            answers = run.oracle.annotate(asked.indices, human, suggestion=suggestion)
        except AnnotationsNeeded:
            run.folder.keep_waiting(draft, state.model)
            raise
        if mode == "superpixels":
            answers = dominant_labels(answers, _regions(run, asked.indices))
        masks = answers if human is None else torch.where(human, answers, suggestion)
        draft.labelled = draft.labelled.plus(replace(asked, masks=PackedMasks.pack(masks)))


def _train(run: _Run, state: RunState) -> Draft:
    """Step 4: the training of a new round, from the last one's weights or from scratch."""
    experiment, labelled = run.experiment, state.labelled
    draft = Draft.of(len(state.rounds), labelled)
    if state.rounds and state.predicted is None:  # after a stop: they are not kept on disk
        with run.phase("evaluation", draft):
            *_, state.predicted = evaluate(state.model, run.splits.val, experiment)
    with run.phase("training", draft):
        trained_on = _with_pseudo_labels(run, state)
    if not experiment.fine_tune:
        state.model = copy.deepcopy(run.initial)
    with run.phase("training", draft):
        losses = fit(
            state.model,
            run.splits.train.images,
            trained_on.masks,
            experiment,
            run.generator(TRAINING, draft),
            indices=trained_on.indices,
            annotated=trained_on.human if experiment.annotation == "human-only" else None,
            n_steps=run.plan.n_steps,
            progress=run.progress,
        )
    last_epoch = losses[-math.ceil(len(trained_on.indices) / experiment.batch_size) :]
    draft.line.update(steps=len(losses), loss=last_epoch.double().mean().item(), losses=losses.tolist())
    return draft


def _with_pseudo_labels(run: _Run, state: RunState) -> LabelledSet:
    """The labelled set, and the images that join this training alone, labelled by the last model (CEAL [24])."""
    train = run.splits.train
    names = state.rounds[-1].line.get("pseudo_labelled") if state.rounds else None
    if not names:
        return state.labelled
    positions = torch.tensor([train.ids.index(name) for name in names], dtype=torch.int64)
    p = predict_probabilities(state.model, train.images, run.experiment, indices=positions)
    masks = (p >= 0.5).to(train.masks.device, torch.uint8)
    return state.labelled.plus(LabelledSet.of(positions, masks, torch.ones_like(masks)))


def _evaluate(run: _Run, state: RunState, draft: Draft) -> Draft:
    """Step 5: Dice of the validation and test images, the audit of a model's labels, and the control network's Dice.

    Nothing that follows depends on the test images or on the control.
    """
    splits, line = run.splits, draft.line
    with run.phase("evaluation", draft):
        dice, predicted, masks = evaluate(state.model, splits.val, run.experiment)
        if state.predicted is not None:
            line["prediction_change"] = 1 - _mean(dice_score(masks[:], state.predicted[:]))
        state.predicted = masks
    line.update(val_dice=_mean(dice), val_dice_per_image=dice.tolist(), predicted_dice=_mean(predicted))
    with run.phase("test", draft):
        dice, *_ = evaluate(state.model, splits.test, run.experiment)
    line.update(test_dice=_mean(dice), test_jaccard=_mean(jaccard_score(dice)))
    line["test_thresholded_jaccard"] = _mean(jaccard_score(dice, threshold=ISIC_2018))
    line["test_dice_per_image"] = {"dice": dice.tolist()}
    if run.is_last(draft):
        sizes = [*(done.n_labelled for done in state.rounds), line["n_labelled"]]
        curves = torch.stack([*(done.test_dice_per_image for done in state.rounds), dice]).double().numpy()
        table = pd.DataFrame({"image_id": splits.test.ids, "area": mean_height(np.array(sizes), curves)})
        line["test_dice_per_image"] |= columns(table)
    if run.experiment.annotation in WRITING_MODES:
        with run.phase("audit", draft):
            line["audit"], draft.labelled = _review(run, state, state.model)
    if run.experiment.control != "none":
        with run.phase("control", draft):
            line |= _control(run, state, draft)
    return draft


def _control(run: _Run, state: RunState, draft: Draft) -> dict[str, Any]:
    """What the record says of the control network; None for each number if its training diverges."""
    audit, belief = draft.line.get("audit"), run.experiment.control == "belief"
    try:
        model = _train_control(run, state, draft)
        dice = [_mean(evaluate(model, split, run.experiment)[0]) for split in (run.splits.val, run.splits.test)]
        repeated = _review(run, state, model)[0]["repeated_pixels"] if belief else None
    except TrainingDiverged as error:  # the run itself goes on
        tqdm.write(f"control: {error}; the record of round {draft.line['round']} has no numbers of it", file=sys.stderr)
        dice, repeated = [None, None], [None] * len(audit["cohort"]) if belief else None
    found = {"control_val_dice": dice[0], "control_test_dice": dice[1]}
    return found | {"audit": {**audit, "control_repeated_pixels": repeated}} if belief else found


def _train_control(run: _Run, state: RunState, draft: Draft) -> nn.Module:
    """A second network, from the initial weights, trained on this round's labels ("belief": on the human's alone)."""
    experiment, trained, model = run.experiment, state.labelled, copy.deepcopy(run.initial)
    fit(
        model,
        run.splits.train.images,
        trained.masks,
        experiment,
        run.generator(CONTROL, draft),
        indices=trained.indices,
        annotated=trained.human if experiment.control == "belief" or experiment.annotation == "human-only" else None,
        n_steps=experiment.control_steps,
        progress=run.progress,
    )
    return model


def _mean(values: torch.Tensor) -> float:
    return values.double().mean().item()


def _save(run: _Run, state: RunState, draft: Draft) -> Round:
    """The round, once it is on disk."""
    trained = state.labelled
    n_before = state.rounds[-1].n_labelled if state.rounds else 0
    with run.phase("annotation", draft):
        human = trained.human[n_before:]
        costs = annotation_cost(trained.masks[n_before:], human, smallest_part=run.experiment.smallest_part)
        if state.rounds and run.experiment.annotation in CLICKED_MODES:
            costs = clicked_cost(costs, n_clicks(human, _regions(run, trained.indices[n_before:])))
    done = Round.of(draft.line, trained.indices, run.splits.train.ids)
    draft.line["annotations"] = {"image_id": list(done.labelled_ids[n_before:]), **columns(costs)}
    state.labelled = draft.labelled
    state.rounds.append(done)
    run.folder.save(state)
    return replace(done, model=state.model, labels=state.labelled)


def _pixels_to_ask(run: _Run, queried: torch.Tensor, p: torch.Tensor, generator: torch.Generator) -> LabelledSet:
    """The queried images: which pixels the human labels, and the model's labels (p >= 0.5 there, else >= tau_b)."""
    regions = _regions(run, queried) if run.experiment.annotation == "superpixels" else None
    human = human_pixels(p, run.experiment, generator, regions)
    return LabelledSet.of(queried, combine((p >= 0.5).to(torch.uint8), p, human, run.experiment.tau_b), human)


def _regions(run: _Run, positions: torch.Tensor) -> torch.Tensor:
    """The superpixels of these training images; the last ones asked for are kept."""
    images, kept = run.splits.train.images, run.kept.get("regions of the query")
    if kept is None or not torch.equal(kept[0], positions):
        kept = run.kept["regions of the query"] = positions, regions_of(images[positions.to(images.device)])
    return kept[1]


def _review(run: _Run, state: RunState, model: nn.Module) -> tuple[dict[str, list], LabelledSet]:
    """The queried images, seen by ``model``: the audit of their labels, and the labels for the next round."""
    experiment, labelled = run.experiment, state.labelled
    ends = [*(round_.n_labelled for round_ in state.rounds), len(labelled.indices)]
    n_first = ends[0]
    cohorts = torch.arange(1, len(ends)).repeat_interleave(torch.tensor(ends).diff())
    refreshed = experiment.annotation == "partial-refreshed"
    audits, masks = [NO_AUDIT], PackedMasks(labelled.masks.bits[:n_first])
    queried = labelled.indices[n_first:]
    for chosen, p in probability_batches(model, run.splits.train.images, experiment, indices=queried):
        place = slice(n_first + chosen.start, n_first + chosen.stop)
        written, human = labelled.masks[place], labelled.human[place]
        audits.append(audit_annotations(run.oracle.truth(queried[chosen]), written, human, p, experiment.tau_b))
        if refreshed:
            masks = masks.plus(PackedMasks.pack(combine(written, p, human.bool(), experiment.tau_b)))
    audit = _by_cohort(pd.concat(audits, ignore_index=True), cohorts.numpy())
    return columns(audit), replace(labelled, masks=masks) if refreshed else labelled


def _by_cohort(audits: pd.DataFrame, cohorts: np.ndarray) -> pd.DataFrame:
    """One row per query: the round that first trained on its images, how many, the sums of pixels, the mean Dice."""
    groups = audits.groupby(cohorts)
    sums = {name: groups[name].sum() for name in audits if name.endswith("_pixels")}
    means = {name: groups[name].mean() for name in audits if name.endswith("_dice")}
    return pd.DataFrame({"images": groups.size(), **sums, **means}).rename_axis("cohort").reset_index()


def evaluate(model: nn.Module, split: Split, experiment: Experiment) -> tuple[torch.Tensor, torch.Tensor, PackedMasks]:
    """Dice of each image of ``split`` (eq. 4), Dice as the model predicts it, and the predicted masks, on the CPU.

    A mask is 1 where p >= 0.5. Both Dice are float32 (n,), 0 to 1.

    Raises:
        TrainingDiverged: if a prediction is not a number.
    """
    dice, predicted, bits = [], [], []
    for chosen, p in probability_batches(model, split.images, experiment):
        if not p.isfinite().all():
            raise TrainingDiverged(f"the predictions for images {chosen.start} to {chosen.stop - 1} are not numbers")
        dice.append(dice_score(p, split.masks[chosen].to(p.device)))
        predicted.append(predicted_dice(p))
        bits.append(PackedMasks.pack(p >= 0.5).bits)
    return torch.cat(dice).cpu(), torch.cat(predicted).cpu(), PackedMasks(torch.cat(bits).cpu())


def _with_bar(rounds: Iterator[Round], total: int) -> Iterator[Round]:
    with progress_bar("active learning", total, "round") as bar:
        for round_ in rounds:
            bar.set_postfix(labelled=round_.n_labelled, val_dice=f"{round_.val_dice:.3f}")
            bar.update()
            yield round_
