"""The five steps of Fig. 1, each a function of the run and of what it has come to."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from alutils.experiment import Experiment
from alutils.metrics import ISIC_2018, dice_score, jaccard_score, mean_height, predicted_dice
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
from alutils.runs.arm import Plan
from alutils.runs.folder import RunFolder
from alutils.system.device import (
    deterministic_algorithms,
    memory_for,
)
from alutils.system.seeding import make_generator
from alutils.training import TrainingDiverged, diverged, fit, predict_probabilities, probability_batches


@dataclass(frozen=True, eq=False)
class Run:
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


def annotate_cold_start(run: Run) -> RunState:
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


def view_of(run: Run, state: RunState, draft: Draft) -> View:
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


def score_pool(run: Run, draft: Draft, view: View) -> Answer:
    """Step 1: the informativeness of each image of the pool."""
    with run.phase("query", draft):
        return ask(view, run.strategy)


def query(run: Run, draft: Draft, view: View, answer: Answer) -> None:
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


def annotate(run: Run, state: RunState, draft: Draft) -> None:
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


def train(run: Run, state: RunState) -> Draft:
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


def _with_pseudo_labels(run: Run, state: RunState) -> LabelledSet:
    """The labelled set, and the images that join this training alone, labelled by the last model (CEAL [24])."""
    train = run.splits.train
    names = state.rounds[-1].line.get("pseudo_labelled") if state.rounds else None
    if not names:
        return state.labelled
    positions = torch.tensor([train.ids.index(name) for name in names], dtype=torch.int64)
    p = predict_probabilities(state.model, train.images, run.experiment, indices=positions)
    masks = (p >= 0.5).to(train.masks.device, torch.uint8)
    return state.labelled.plus(LabelledSet.of(positions, masks, torch.ones_like(masks)))


def evaluate_round(run: Run, state: RunState, draft: Draft) -> Draft:
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


def _control(run: Run, state: RunState, draft: Draft) -> dict[str, Any]:
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


def _train_control(run: Run, state: RunState, draft: Draft) -> nn.Module:
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


def save_round(run: Run, state: RunState, draft: Draft) -> Round:
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


def _pixels_to_ask(run: Run, queried: torch.Tensor, p: torch.Tensor, generator: torch.Generator) -> LabelledSet:
    """The queried images: which pixels the human labels, and the model's labels (p >= 0.5 there, else >= tau_b)."""
    regions = _regions(run, queried) if run.experiment.annotation == "superpixels" else None
    human = human_pixels(p, run.experiment, generator, regions)
    return LabelledSet.of(queried, combine((p >= 0.5).to(torch.uint8), p, human, run.experiment.tau_b), human)


def _regions(run: Run, positions: torch.Tensor) -> torch.Tensor:
    """The superpixels of these training images; the last ones asked for are kept."""
    images, kept = run.splits.train.images, run.kept.get("regions of the query")
    if kept is None or not torch.equal(kept[0], positions):
        kept = run.kept["regions of the query"] = positions, regions_of(images[positions.to(images.device)])
    return kept[1]


def _review(run: Run, state: RunState, model: nn.Module) -> tuple[dict[str, list], LabelledSet]:
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
        TrainingDiverged: if a prediction is not a number; it names the image.
    """
    dice, predicted, bits = [], [], []
    for chosen, p in probability_batches(model, split.images, experiment):
        if not p.isfinite().all():
            first = chosen.start + int((~p.isfinite()).flatten(1).any(1).nonzero()[0])
            raise diverged(f"the prediction for image {split.ids[first]} is not a number", experiment)
        dice.append(dice_score(p, split.masks[chosen].to(p.device)))
        predicted.append(predicted_dice(p))
        bits.append(PackedMasks.pack(p >= 0.5).bits)
    return torch.cat(dice).cpu(), torch.cat(predicted).cpu(), PackedMasks(torch.cat(bits).cpu())
