"""A round of active learning (Fig. 1), and the one form of its record on the way from the loop to a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from alutils.annotation import NO_AUDIT
from alutils.data.packed import PackedMasks

COLD_START, TRAINING, QUERY, ANNOTATION, CONTROL, ERRORS = 1, 2, 3, 4, 5, 6
"""What a generator's numbers are for; with round or image, the ``purpose`` of :func:`alutils.make_generator`."""

KEYS = (
    "round", "n_labelled", "steps", "loss", "losses", "val_dice", "val_dice_per_image", "predicted_dice",
    "prediction_change", "test_dice", "test_jaccard", "test_thresholded_jaccard", "test_dice_per_image",
    "control_val_dice", "control_test_dice", "tied", "pseudo_labelled", "seconds", "annotations", "queries", "audit",
)  # fmt: skip
"""The keys of a round's line. The last three hold a table each, as one list per column, and so does
``test_dice_per_image``. In the last round, that table also has the images' ids and ``area``, the mean height of each
image's curve of Dice over the number of labelled images. ``loss`` is the mean of the last epoch's steps. Two values
need no masks: ``predicted_dice``, see :func:`alutils.metrics.predicted_dice`, and ``prediction_change``, one minus the
Dice between the masks predicted before and after the round's training; both are means over the validation images.
``control_val_dice`` and ``control_test_dice`` are those of the second network, see the setting ``control``.
``pseudo_labelled`` are the ids of pool images that join the next training with the model's own labels."""

_OF_A_ROUND = (
    "round", "n_labelled", "steps", "loss", "val_dice", "predicted_dice", "prediction_change", "test_dice",
    "test_jaccard", "test_thresholded_jaccard", "control_val_dice", "control_test_dice", "tied",
)  # fmt: skip
_FLOATS = {"score", "dice", "area", "lesion_area_percent", "predicted_area_percent", "verify_percent"}
_FLOATS |= {"positive_percent", "boundary_px", "mask_dice", "model_dice"}
_FLOATS |= {*_OF_A_ROUND} - {"round", "n_labelled", "steps", "tied"}


@dataclass(frozen=True, eq=False)
class Round:
    """One acquisition round: what was trained on, how good the model became, and what was queried after it.

    Args:
        line: the record, with the :data:`KEYS`; plain values, as ``rounds.jsonl`` holds them.
        labelled: int64 (n,), positions in the training split of the images trained on, in the order of annotation.
        labelled_ids: their ids.
        model: what was trained: the live model, which the next round goes on training (``copy.deepcopy`` keeps it as it
            is). Of the rounds that are read from the disk, only the latest has it.
        labels: the labelled set with its masks, the queried images of this round included; None if ``model`` is None.

    Attributes:
        number: 0 for the training on the cold start.
        n_labelled: images trained on.
        losses: float32, the loss of each optimizer step.
        val_dice, val_dice_per_image: eq. 4, 0 to 1: the mean over the validation images, and each image's, float32.
        test_dice, test_dice_per_image: the same of the test images.
        tied: images of the pool that share the lowest score queried, if a lot had to choose among them; else 0.
        seconds: by phase: "training", "evaluation", "test", "audit", "control", "query" and "annotation".
        queries: one row per image queried after this training: ``round``, ``image_id``, ``score`` (the highest first;
            NaN where the strategy selects without scores), ``lesion_area_percent`` (of the true mask),
            ``predicted_area_percent`` (of the model's, p >= 0.5) and ``rank`` (from 1). No rows in the last round.
        annotations: one row per image annotated for this training and for no earlier one: ``round``, ``image_id`` and
            the columns of :func:`alutils.annotation_cost`. Those of round 0 are the cold start.
        audit: one row per query whose labels a model wrote in part: ``round``, ``cohort`` (the round that first trained
            on them), ``images``, the sums and means of :func:`alutils.annotation.audit_annotations`, and with the
            control "belief" ``control_repeated_pixels``: those that the second network would write wrong too (<NA>: it
            diverged).
    """

    line: Mapping[str, Any] = field(repr=False)
    labelled: torch.Tensor
    labelled_ids: tuple[str, ...]
    model: nn.Module | None = field(default=None, repr=False)
    labels: LabelledSet | None = field(default=None, repr=False)

    number = property(lambda self: self.line["round"])
    n_labelled = property(lambda self: self.line["n_labelled"])
    losses = cached_property(lambda self: _float32(self.line["losses"]))
    val_dice = property(lambda self: self.line["val_dice"])
    val_dice_per_image = cached_property(lambda self: _float32(self.line["val_dice_per_image"]))
    test_dice = property(lambda self: self.line["test_dice"])
    test_dice_per_image = cached_property(lambda self: _float32(self.line["test_dice_per_image"]["dice"]))
    tied = property(lambda self: self.line["tied"])
    seconds = property(lambda self: self.line["seconds"])
    queries = cached_property(lambda self: round_rows([self.line], "queries"))
    annotations = cached_property(lambda self: round_rows([self.line], "annotations"))
    audit = cached_property(lambda self: round_rows([self.line], "audit"))

    @classmethod
    def of(cls, line: Mapping[str, Any], annotated: torch.Tensor, ids: Sequence[str]) -> Round:
        """The round of this line, trained on the first ``n_labelled`` positions; ``ids`` are those of the split."""
        labelled = annotated[: line["n_labelled"]]
        return cls(line, labelled, tuple(ids[i] for i in labelled.tolist()))


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """The annotated images, with the masks that the model learns from.

    Args:
        indices: int64 (n,), on the CPU, positions in the training split, in the order of annotation.
        masks: of shape (n, 1, H, W), what is trained on.
        human: of the same shape, 1 where the label came from the human.

    >>> ones = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    >>> labelled = LabelledSet.of(torch.tensor([2]), 0 * ones, ones)
    >>> labelled.plus(LabelledSet.of(torch.tensor([0]), ones, ones)).unlabelled(4)
    tensor([1, 3])
    """

    indices: torch.Tensor
    masks: PackedMasks
    human: PackedMasks

    @classmethod
    def of(cls, indices: torch.Tensor, masks: torch.Tensor, human: torch.Tensor) -> LabelledSet:
        """From masks that are not packed yet: uint8 or bool (n, 1, H, W)."""
        return cls(indices, PackedMasks.pack(masks), PackedMasks.pack(human))

    def plus(self, others: LabelledSet) -> LabelledSet:
        """These images and newly annotated ones."""
        return LabelledSet(
            torch.cat([self.indices, others.indices]), self.masks.plus(others.masks), self.human.plus(others.human)
        )

    def unlabelled(self, n: int) -> torch.Tensor:
        """The pool: positions of all other images among ``n`` training images, int64, ascending."""
        others = torch.ones(n, dtype=torch.bool)
        others[self.indices] = False
        return others.nonzero().flatten()


@dataclass(eq=False)
class Draft:
    """A round under way.

    Args:
        line: its record, which each step completes.
        labelled: what it trains on; after its evaluation, the labels that the next round takes.
        asked: the queried images, which of their pixels the human labels, and how the model labels all of them; None
            until they are queried.
    """

    line: dict[str, Any]
    labelled: LabelledSet
    asked: LabelledSet | None = None

    @classmethod
    def of(cls, number: int, labelled: LabelledSet) -> Draft:
        """Round ``number`` before its training."""
        line = dict.fromkeys(KEYS) | {"round": number, "n_labelled": len(labelled.indices), "tied": 0, "seconds": {}}
        line["pseudo_labelled"] = []
        line["queries"] = {"image_id": [], "score": [], "lesion_area_percent": [], "predicted_area_percent": []}
        line["audit"] = {"cohort": [], "images": [], **columns(NO_AUDIT)}
        return cls(line, labelled)


@dataclass(eq=False)
class RunState:
    """All that changes from round to round, and so all that a stopped run needs to go on."""

    model: nn.Module
    labelled: LabelledSet
    rounds: list[Round]
    predicted: PackedMasks | None = None  # masks of the validation images by the last evaluation; not kept on disk

    @property
    def finished(self) -> bool:
        """Whether the last round is over: its line alone names the test images."""
        return bool(self.rounds) and "image_id" in (self.rounds[-1].line["test_dice_per_image"] or {})


def columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as plain values, null for a missing number.

    >>> columns(pd.DataFrame({"image_id": ["a", "b"], "mask_dice": [0.5, float("nan")]}))
    {'image_id': ['a', 'b'], 'mask_dice': [0.5, None]}
    """
    return {name: [None if value != value else value for value in column.tolist()] for name, column in table.items()}


def round_rows(lines: Sequence[Mapping[str, Any]], name: str) -> pd.DataFrame:
    """One of the tables "queries", "annotations" and "audit" over all rounds of ``lines``.

    >>> queries = {"image_id": ["b", "a"], "score": [2.0, 1.0]}
    >>> round_rows([{"round": 3, "queries": queries}], "queries")
       round image_id  score  rank
    0      3        b    2.0     1
    1      3        a    1.0     2
    """
    parts = [line[name] for line in lines]
    counts = [len(next(iter(part.values()))) for part in parts]
    table: dict[str, Any] = {"round": np.repeat(np.array([line["round"] for line in lines], np.int64), counts)}
    for column in parts[0]:
        table[column] = _series(column, [value for part in parts for value in part[column]])
    if name == "queries":
        table["rank"] = np.array([rank for n in counts for rank in range(1, n + 1)], np.int64)
    return pd.DataFrame(table)


def run_tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """All tables of a finished run: "rounds", "queries", "annotations", "audit", "test_dice" and "timing".

    Args:
        lines: of all its rounds; columns that the first line lacks (older records have no "tied") are left out.
    """
    timing = [(line["round"], phase, seconds) for line in lines for phase, seconds in line["seconds"].items()]
    test = lines[-1]["test_dice_per_image"]
    return {
        "rounds": pd.DataFrame(
            {key: _series(key, [line[key] for line in lines]) for key in _OF_A_ROUND if key in lines[0]}
        ),
        **{name: round_rows(lines, name) for name in ("queries", "annotations", "audit")},
        "test_dice": pd.DataFrame({column: _series(column, values) for column, values in test.items()}),
        "timing": pd.DataFrame(timing, columns=["round", "phase", "seconds"]),
    }


def _float32(numbers: Sequence[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def _series(column: str, values: list[Any]) -> pd.Series:
    """The values in the column's type, also where there are none."""
    whole = "Int64" if None in values else np.int64
    return pd.Series(values, dtype=str if column == "image_id" else np.float64 if column in _FLOATS else whole)
