"""What a run leaves on disk: small JSON and CSV files that pandas reads in one line, and a state to go on from.

Each file is there whole or not at all, its numbers read back exactly equal, and a bit that the disk flips is noticed.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import socket
import subprocess
import warnings
import weakref
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
import torchvision
from filelock import FileLock, Timeout
from torch import nn

from alutils.cost import average_cost
from alutils.data.packed import PackedMasks
from alutils.data.splits import Split, Splits
from alutils.experiment import Experiment, same_run
from alutils.system.checks import ConfigError, did_you_mean, expanded, listed
from alutils.system.device import working_dtype
from alutils.system.files import CannotWrite, remove_leftovers, replacing, sha256
from alutils.system.settings import parse_settings
from alutils.training import TrainingDiverged

_ROUND_TABLES = ("queries", "annotations", "audit")
TABLES = ("rounds", *_ROUND_TABLES, "test_dice", "timing")
"""The tables of a run, each a CSV file of that name."""

CHECKSUMS = "SHA256SUMS"
"""The file beside collected tables that says what each should be, in the format of ``sha256sum``."""


class RecordsError(RuntimeError):
    """A run's files cannot be read, or another process is at work on them; the message names them and the remedy."""


@dataclass(frozen=True, eq=False)
class Round:
    """One acquisition round: what was trained on, how good it became, and what was queried after it.

    Args:
        number: 0 for the training on the cold start.
        labelled: int64 (n,), positions in the training split of the images trained on, in the order of annotation.
        labelled_ids: their ids.
        losses: float32, the loss of each optimizer step.
        val_dice_per_image: float32, eq. 4 of each validation image.
        test_dice_per_image: the same of each test image after the last round, else None.
        queries: what was queried after this training, a row an image: ``round``, ``image_id``, ``score`` (the highest
            first), ``lesion_area_percent`` (of the true mask), ``rank`` (from 1). No rows after the last round.
        tied: images of the pool with the lowest score that was queried, where a lot decided which of them were; 0 where
            the scores alone decided (:func:`alutils.queries.select.tied_at_the_cut`); None in records older than
            this number.
        annotations: what the human annotated for this training and not for an earlier one, a row an image: ``round``,
            ``image_id`` and the currencies of :func:`alutils.annotation_cost`. Those of round 0 are the cold start.
        audit: what this training learned from where a model wrote the labels, a row for the images of each query:
            ``round``, ``cohort`` (the round that was first trained on them, as in ``annotations``), ``images``, and of
            :func:`alutils.annotation.audit_annotations` the pixels' sums and the mean Dice. No rows where the human
            labels all pixels, or the loss ignores the others.
        seconds: by phase: "training", "evaluation", "audit" (where there is one), "query" (or "test", after the last
            round) and "annotation" (merging and costing).
        model: what was trained: the live model, which the next round goes on training (``copy.deepcopy`` keeps it as it
            is). None for rounds read from the disk, but for the latest of them.
        labels: the labelled set with its masks, the queried images of this round included. None as for ``model``.
    """

    number: int
    labelled: torch.Tensor
    labelled_ids: tuple[str, ...]
    losses: torch.Tensor
    val_dice_per_image: torch.Tensor
    test_dice_per_image: torch.Tensor | None
    queries: pd.DataFrame
    tied: int | None
    annotations: pd.DataFrame
    audit: pd.DataFrame
    seconds: dict[str, float]
    model: nn.Module | None = field(repr=False)
    labels: LabelledSet | None = field(repr=False)

    @property
    def n_labelled(self) -> int:
        """Images trained on."""
        return len(self.labelled)

    @property
    def val_dice(self) -> float:
        """Mean Dice of the validation images, 0 to 1."""
        return self.val_dice_per_image.double().mean().item()

    @property
    def test_dice(self) -> float | None:
        """Mean Dice of the test images, 0 to 1; None before the last round."""
        return None if self.test_dice_per_image is None else self.test_dice_per_image.double().mean().item()

    # All rounds are written anew after each. What of them goes to disk is made once: it saves time, and pandas would
    # note within the tables each column and part that is taken of them, so that memory grew with every round.

    @cached_property
    def _content(self) -> dict[str, Any]:
        return _plain(self)

    @cached_property
    def _rows(self) -> dict[str, str]:
        return {name: _csv(getattr(self, name), header=False) for name in _ROUND_TABLES}


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """The annotated images, with the masks that the model learns from.

    Args:
        indices: int64 (n,), on the CPU, positions in the training split, in the order of annotation.
        masks: of shape (n, 1, H, W), what is trained on.
        human: of the same shape, 1 where the label came from the human.

    >>> ones = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    >>> labelled = LabelledSet.of(torch.tensor([2]), 0 * ones, ones)
    >>> labelled.plus(LabelledSet.of(torch.tensor([0]), ones, ones)).pool(4)
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

    def pool(self, n: int) -> torch.Tensor:
        """int64, ascending: the positions of the others of ``n`` training images."""
        others = torch.ones(n, dtype=torch.bool)
        others[self.indices] = False
        return others.nonzero().flatten()


@dataclass(frozen=True, eq=False)
class WaitingRound:
    """A round that has trained and asks: all of it except the answers.

    Args:
        round: without the model and the labels.
        labelled: what it trained on, with the model's labels as the next round takes them.
        asked: the queried images, which of their pixels the human labels, and how the model labels the others (0 where
            the human does).
    """

    round: Round
    labelled: LabelledSet
    asked: LabelledSet


@dataclass(eq=False)
class RunState:
    """All that changes from round to round, and so all that a stopped run needs to go on."""

    model: nn.Module
    labelled: LabelledSet
    rounds: list[Round]

    @property
    def finished(self) -> bool:
        """Whether the last round, the one with the test images, is over."""
        return bool(self.rounds) and self.rounds[-1].test_dice_per_image is not None


class RunFolder:
    """The files of one run.

    ``state.pt`` is all that a stopped run goes on from: one file, so that a stop anywhere leaves a consistent one. The
    state of the round before is kept in ``state.previous.pt``, for when the disk damages the last one; when the run is
    finished it goes, for then the tables have all that came of it. The tables and
    ``run.json`` follow the state, and are brought up to it when the run goes on. A round that waits for a person leaves
    its model in ``trained.pt``, with what it asks for and how the model labels the rest: trained or predicted again, on
    another machine or with other threads, it would ask for other pixels.

    A run that is not finished belongs to one process: the first that asks, as long as it lives and holds this object.

    Args:
        path: the folder; it need not exist.
        identity: what makes the run this one, plain values for JSON: its "experiment", its "data", its "network" and
            the "strategy_code".

    Raises:
        ConfigError: if the folder holds another run (each differing field is listed with both values), or the files of
            a run that cannot be told.
        RecordsError: if its ``run.json`` cannot be read or was changed, or another process is at work in the folder.
        TrainingDiverged: if the run has ended so.
        CannotWrite: if the folder cannot be written.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.record = _open_record(self.path, identity)
        if self.record["status"] != "finished":
            self._take()
            self.record = _open_record(self.path, identity)  # another process may just have finished it
        if self.record["status"] == "diverged":
            raise TrainingDiverged(f"{self.record['diverged']['message']} (recorded in {self.path / 'run.json'})")

    def begin(self, state: RunState, splits: Splits) -> None:
        """Note that the run is under way, and bring the tables up to the state. A finished run stays as it is."""
        if self.record["status"] == "finished":
            if state.finished:
                self._drop_previous()  # a kill came before it
                return
            self._take()  # its last state was damaged, and is made again
        self.record["status"] = "running"
        device = next(state.model.parameters()).device
        dtype = working_dtype(device, self.record["experiment"]["precision"])
        self.record["provenance"].append({**provenance(device), "precision": str(dtype).removeprefix("torch.")})
        self._write_record()
        if state.rounds:
            self._write_tables(state, splits)

    def save(self, state: RunState, splits: Splits) -> None:
        """Write the state, then what follows from it."""
        content = {
            "model": _weights(state.model),
            **_packed(state.labelled),
            "rounds": [one._content for one in state.rounds],
        }
        _write_tensors(self.path / "state.pt", content, keep=self.path / "state.previous.pt")
        self._write_tables(state, splits)
        (self.path / "trained.pt").unlink(missing_ok=True)
        if state.finished:
            self._drop_previous()

    def keep_training(self, waiting: WaitingRound, model: nn.Module) -> None:
        """Write what a round trained and asks for to ``trained.pt``: it has to wait for a person before it is over."""
        content = {
            "round": waiting.round.number,
            "model": _weights(model),
            "done": waiting.round._content,
            **{name: _packed(getattr(waiting, name)) for name in ("labelled", "asked")},
        }
        _write_tensors(self.path / "trained.pt", content)

    def kept_training(self, number: int, model: nn.Module, train: Split) -> WaitingRound | None:
        """What round ``number`` asks for, its weights loaded into ``model``; None if it is yet to train.

        Raises:
            RecordsError: if the file cannot be read.
        """
        path = self.path / "trained.pt"
        if not path.exists():
            return None
        try:
            content = _read_tensors(path)
            if content["round"] != number:
                return None
            labelled, asked = (_unpacked(content[name], train) for name in ("labelled", "asked"))
            done = _from_plain(number, content["done"], torch.cat([labelled.indices, asked.indices]), train)
            model.load_state_dict(content["model"])
            return WaitingRound(done, labelled, asked)
        except Exception as error:  # torch raises many kinds for files that are damaged
            raise RecordsError(f"{path} cannot be read ({error}); delete it to train this round again") from error

    def load(self, model: nn.Module, splits: Splits) -> RunState | None:
        """The state on disk, its weights loaded into ``model``; None where there is none yet.

        Where the last state is damaged, a warning says so, and the run goes on from the one before.

        Raises:
            RecordsError: if no state can be read.
        """
        damaged = []
        for path in (self.path / "state.pt", self.path / "state.previous.pt"):
            if not path.exists():
                continue
            try:
                state = _state_from(_read_tensors(path), model, splits.train)
            except Exception as error:  # torch raises many kinds for files that are damaged
                damaged.append(f"{path} cannot be read ({error})")
                continue
            if damaged:
                warnings.warn(f"{damaged[0]}: going on from round {len(state.rounds) - 1}, in {path}", stacklevel=3)
            return state
        if damaged:
            finished = self.record["status"] == "finished"
            tables = ". The run is finished: its tables can still be read (load_runs, load_table)" if finished else ""
            raise RecordsError(f"{'; '.join(damaged)}{tables}; delete {self.path} to run it anew")
        return None

    def note_divergence(self, number: int, error: TrainingDiverged) -> None:
        """Write that the training of round ``number`` diverged: the run has ended, without a result."""
        self.record |= {"status": "diverged", "diverged": {"round": number, "message": str(error)}}
        self._write_record()

    def _drop_previous(self) -> None:
        with suppress(OSError):  # of a disk that has become read-only: it is in nobody's way
            (self.path / "state.previous.pt").unlink(missing_ok=True)

    def _take(self) -> None:
        """Make this process the one at work here, and clear away what killed ones left half-written."""
        # The same process may ask again: a cell that is run anew finds the lock of its stopped generator
        lock = FileLock(self.path / ".lock", timeout=0, is_singleton=True, thread_local=False)
        holder = self.path / ".holder"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise RecordsError(
                f"{self.path} is in use by {who}: wait until it ends, stop it, or give another folder"
            ) from None
        except OSError as error:
            raise CannotWrite(self.path, error) from None
        weakref.finalize(self, lock.release)
        remove_leftovers(self.path)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}, since {now}")

    def _write_tables(self, state: RunState, splits: Splits) -> None:
        rounds = state.rounds
        timing = [(one.number, phase, seconds) for one in rounds for phase, seconds in one.seconds.items()]
        write_csv(self.path / "rounds.csv", _round_table(rounds, self.record["experiment"]["batch_size"]))
        for name in _ROUND_TABLES:
            header = _csv(getattr(rounds[-1], name)[:0])
            write_text(self.path / f"{name}.csv", header + "".join(one._rows[name] for one in rounds))
        write_csv(self.path / "timing.csv", pd.DataFrame(timing, columns=["round", "phase", "seconds"]))
        if state.finished:
            dice = rounds[-1].test_dice_per_image.double().numpy()
            write_csv(self.path / "test_dice.csv", pd.DataFrame({"image_id": splits.test.ids, "dice": dice}))
            self.record["sha256"] = {name: sha256((self.path / f"{name}.csv").read_bytes()) for name in TABLES}
            self.record["status"] = "finished"
        self.record["seconds"] = sum(seconds for _, _, seconds in timing)
        self._write_record()

    def _write_record(self) -> None:
        write_json(self.path / "run.json", {**self.record, "checksum": _record_checksum(self.record)})


def query_table(number: int, ids: Sequence[str], scores: torch.Tensor, lesion_areas: torch.Tensor) -> pd.DataFrame:
    """The queries after round ``number``, as :class:`Round` has them.

    Args:
        number: of the round.
        ids: of the queried images, the highest score first.
        scores: (n,).
        lesion_areas: (n,), per cent of the pixels.

    >>> query_table(0, ["b", "a"], torch.tensor([2.0, 1.0]), torch.tensor([12.5, 25.0]))
       round image_id  score  lesion_area_percent  rank
    0      0        b    2.0                 12.5     1
    1      0        a    1.0                 25.0     2
    """
    return pd.DataFrame(
        {
            "round": number,
            "image_id": pd.Series(ids, dtype=str),
            "score": scores.cpu().double().numpy(),
            "lesion_area_percent": lesion_areas.cpu().double().numpy(),
            "rank": range(1, len(ids) + 1),
        }
    )


def annotation_table(number: int, ids: Sequence[str], costs: pd.DataFrame) -> pd.DataFrame:
    """What was annotated for round ``number``, as :class:`Round` has it.

    Args:
        number: of the round.
        ids: of the images.
        costs: from :func:`alutils.annotation_cost`, a row an image.

    >>> annotation_table(1, ["b"], pd.DataFrame({"clicks": [30]}))
       round image_id  clicks
    0      1        b      30
    """
    named = pd.DataFrame({"round": number, "image_id": pd.Series(ids, dtype=str)})
    return named.join(costs)


def audit_table(number: int, cohorts: Sequence[int], audits: pd.DataFrame) -> pd.DataFrame:
    """The audit of round ``number``, as :class:`Round` has it.

    Args:
        number: of the round.
        cohorts: of each image.
        audits: from :func:`alutils.annotation.audit_annotations`, a row an image.

    >>> audit_table(3, [1, 1], pd.DataFrame({"wrong_pixels": [5, 7], "mask_dice": [0.5, 1.0]}))
       round  cohort  images  wrong_pixels  mask_dice
    0      3       1       2            12       0.75
    """
    groups = audits.groupby(np.asarray(cohorts, dtype=np.int64))
    sums = {name: groups[name].sum() for name in audits if name.endswith("_pixels")}
    means = {name: groups[name].mean() for name in audits if name.endswith("_dice")}
    table = pd.DataFrame({"images": groups.size(), **sums, **means}).rename_axis("cohort").reset_index()
    table.insert(0, "round", number)
    return table


def ids_at(split: Split, indices: torch.Tensor) -> tuple[str, ...]:
    """The ids of the pictures at ``indices``.

    >>> images, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    >>> ids_at(Split(images, masks, ("a", "b")), torch.tensor([1, 0]))
    ('b', 'a')
    """
    return tuple(split.ids[i] for i in indices.tolist())


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The finished runs below ``folder``, a row a run, whatever their settings (:func:`load_results` compares them).

    Args:
        folder: searched with its subfolders for ``run.json`` files. Runs with a person as the oracle are left out,
            except one whose own folder it is: they are other experiments than Tables I and II.

    Returns:
        Columns: ``run`` (its folder below ``folder``), every setting of the experiment (``strategy`` is the one that
        was used), ``network`` (the function that built it), ``n_train`` (images in the training set), ``n_labelled``
        and ``steps`` (images at the end, optimizer steps in all), ``val_dice`` (mean, of the last round), ``test_dice``
        (mean), ``verify_percent`` and
        ``positive_percent`` (Table II: means over the queried images, without the cold start; not a number where
        nothing was queried), ``seconds`` (of all phases), and the ``device``, ``cpu``, ``torch`` and ``git_commit`` of
        its last start.

    Raises:
        RecordsError: if there is no finished run, or a file of one cannot be read.
    """
    folder, rows = expanded("folder", folder), []
    for path, record in _finished_runs(folder):
        rounds, test_dice, annotations = (
            _read_table(path, name, record["sha256"][name]) for name in ("rounds", "test_dice", "annotations")
        )
        cost = average_cost(annotations).loc["queries (without cold start)"]
        # Lists do not group: as tuples they do
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in record["experiment"].items()}
        rows.append(
            {
                "run": path.relative_to(folder).as_posix(),
                **settings,
                "network": record.get("network", {}).get("name", "unet_for"),
                "n_train": record["data"]["train"]["images"],
                "n_labelled": rounds["n_labelled"].iloc[-1],
                "steps": rounds["steps"].sum(),
                "val_dice": rounds["val_dice"].iloc[-1],
                "test_dice": test_dice["dice"].mean(),
                **cost[["verify_percent", "positive_percent"]],
                "seconds": record["seconds"],
                **{key: record["provenance"][-1][key] for key in ("device", "cpu", "torch", "git_commit")},
            }
        )
    return pd.DataFrame(rows)


def load_table(folder: str | Path, name: str) -> pd.DataFrame:
    """One table of all finished runs below ``folder``, a run's rows below the other's.

    Args:
        folder: searched with its subfolders for ``run.json`` files.
        name: one of :data:`TABLES`.

    Returns:
        The table's columns after ``run``, ``strategy`` and ``seed``.

    Raises:
        ValueError: if there is no table of that name.
        RecordsError: if there is no finished run, or a file of one cannot be read.
    """
    if name not in TABLES:
        raise ValueError(f"name must be one of {', '.join(TABLES)}, got {name!r}")
    tables = []
    for path, record in _finished_runs(expanded("folder", folder)):
        table = _read_table(path, name, record["sha256"][name])
        table.insert(0, "run", path.relative_to(folder).as_posix())
        table.insert(1, "strategy", record["experiment"]["strategy"])
        table.insert(2, "seed", record["experiment"]["seed"])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def load_results(folder: str | Path, *, only: str | Mapping[str, Any] = "") -> dict[str, pd.DataFrame]:
    """Everything about the finished runs of a folder: ``runs`` and each of :data:`TABLES`, by name.

    The results are pooled by arm (strategy, annotation and cell of Table II). There must therefore be one run per arm
    and seed, all on the same pictures and with the same network. All other settings must be equal among the runs that
    are annotated in full (Table I), and among the others (Table II, which has fewer queries in the paper).

    Args:
        folder: either CSV files of those names, as :func:`write_results` leaves them, or folders of runs.
        only: settings by name, as a mapping or as YAML text: runs with other values are left out.

    Raises:
        RecordsError: if there is no finished run, a file cannot be read or was changed, or the runs do not belong
            together; then it lists what differs and where, and the runs that stand for the same.
        ConfigError: if ``only`` names a setting that no run has.
    """
    folder = expanded("folder", folder)
    if (folder / "runs.csv").exists():
        sums = folder / CHECKSUMS
        lines = sums.read_text(encoding="utf-8").splitlines() if sums.exists() else []
        checksums = {name: checksum for checksum, name in map(str.split, lines)}
        results = {
            name: _read_table(folder, name, checksums.get(f"{name}.csv"), remedy=_RESTORE) for name in ("runs", *TABLES)
        }
        settings = results["runs"].drop(columns=_OUTCOMES, errors="ignore").astype(object)
        rows = settings.where(settings.notna(), None).to_dict("records")
        identities = {row.pop("run"): row for row in rows}
    else:
        results = {"runs": load_runs(folder), **{name: load_table(folder, name) for name in TABLES}}
        identities = {path.relative_to(folder).as_posix(): _settings(record) for path, record in _finished_runs(folder)}
    chosen = _chosen(identities, only)
    if not chosen:
        raise RecordsError(f"none of the {len(identities)} finished runs below {folder} has these settings: {only}")
    _refuse_mixture(folder, {run: identities[run] for run in chosen})
    return {name: table[table["run"].isin(chosen)].reset_index(drop=True) for name, table in results.items()}


def write_results(folder: Path, results: Mapping[str, pd.DataFrame]) -> None:
    """Write what :func:`load_results` returned as a CSV file each, and their checksums for ``sha256sum --check``.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_results(folder, {"runs": pd.DataFrame({"run": ["a"]})})
    >>> (folder / CHECKSUMS).read_text().split()[1]
    'runs.csv'
    """
    for name, table in results.items():
        write_csv(folder / f"{name}.csv", table)
    sums = [f"{sha256((folder / f'{name}.csv').read_bytes())}  {name}.csv\n" for name in results]
    write_text(folder / CHECKSUMS, "".join(sums))


def load_diverged(folder: str | Path, *, only: str | Mapping[str, Any] = "") -> pd.DataFrame:
    """The runs below ``folder`` whose training diverged, and which so have no result: a row a run.

    Args:
        folder: searched with its subfolders for ``run.json`` files.
        only: as for :func:`load_results`.

    Returns:
        Columns ``run``, ``strategy``, ``annotation``, ``seed``, ``round`` (whose training it was) and ``message``.

    Raises:
        RecordsError: if a ``run.json`` cannot be read.
        ConfigError: if ``only`` names a setting that no run has.

    >>> load_diverged("nowhere").empty
    True
    """
    folder = expanded("folder", folder)
    found = _runs(folder)
    chosen = _chosen({str(path): _settings(record) for path, record in found}, only)
    rows = [
        {
            "run": path.relative_to(folder).as_posix(),
            **{key: record["experiment"][key] for key in ("strategy", "annotation", "seed")},
            **record["diverged"],
        }
        for path, record in found
        if record["status"] == "diverged" and str(path) in chosen
    ]
    return pd.DataFrame(rows, columns=["run", "strategy", "annotation", "seed", "round", "message"])


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where and with what a run is made: versions, hardware, the state of the code, the time (UTC).

    Args:
        device: what the run computes on.

    Returns:
        Plain values for JSON. ``git_commit`` and ``git_dirty`` (uncommitted changes, but for results) are None where
        the package does not lie in a git checkout of its own.

    >>> sorted(provenance())[:4]
    ['alutils', 'cpu', 'device', 'git_commit']
    """
    device = torch.device(device)
    commit, dirty = _git_state(Path(__file__).resolve().parents[2])
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package.__name__: str(package.__version__) for package in (torch, torchvision, smp, np)},
        "alutils": version("alutils"),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "git_commit": commit,
        "git_dirty": dirty,
    }


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path``, whole or not at all; numbers read back exactly equal.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers.json"
    >>> write_json(path, {"third": 1 / 3})
    >>> json.loads(path.read_text())["third"] == 1 / 3
    True
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "summary.md"
    >>> write_text(path, "# Results")
    >>> path.read_text()
    '# Results'
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write ``table`` without its index to ``path``, whole or not at all; numbers read back exactly equal.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers.csv"
    >>> write_csv(path, pd.DataFrame({"third": [1 / 3]}))
    >>> bool(pd.read_csv(path)["third"][0] == 1 / 3)
    True
    """
    write_text(path, _csv(table))


def write_table(stem: str | Path, table: pd.DataFrame) -> None:
    """Write ``table`` with its index as ``stem.csv`` (all digits) and ``stem.md`` (one decimal).

    >>> import tempfile
    >>> stem = Path(tempfile.mkdtemp()) / "dice"
    >>> write_table(stem, pd.DataFrame({"test": [86.25]}, pd.Index(["full"], name="arm")))
    >>> print(Path(f"{stem}.md").read_text())
    | arm   | test   |
    |:------|:-------|
    | full  | 86.2   |
    """
    write_csv(f"{stem}.csv", table.reset_index())
    shown = table.map(lambda value: "" if pd.isna(value) else f"{value:.1f}" if isinstance(value, float) else value)
    markdown = shown.rename(index=str).reset_index().to_markdown(index=False, disable_numparse=True)
    write_text(f"{stem}.md", markdown + "\n")


_BY_CHANGE = (
    "\nA function that changes the values that it captured, such as a list that it appends to, counts as another one "
    "afterwards: let it keep them to itself, or define it anew"
)


def _open_record(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says if it is of the run with this identity; a new record where there is none."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; give a folder")
    states = [folder / "state.pt", folder / "state.previous.pt"]
    if not (folder / "run.json").exists():
        if any(state.exists() for state in states):
            raise ConfigError(
                f"output_dir: {folder} has a state.pt but no run.json that tells of which run; delete it or give "
                "another folder"
            )
        return {"status": "new", **identity, "seconds": 0.0, "provenance": []}
    record = _read_record(folder)
    keys = identity.keys() & record.keys()  # what an older record does not tell cannot differ
    there, here = (_flat({key: fields[key] for key in fields if key in keys}) for fields in (record, identity))
    lines = [
        f"  {key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in there | here
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    if lines:
        raise ConfigError(
            f"output_dir: {folder} holds another run; delete it or give another folder. They differ in\n"
            + "\n".join(lines)
            + _BY_CHANGE * any("strategy_code" in line for line in lines)
        )
    if record["status"] == "finished" and not any(state.exists() for state in states):
        raise ConfigError(
            f"output_dir: the run in {folder} is finished but its state.pt is gone: its tables can still be read "
            "(load_runs, load_table); delete it to run it anew"
        )
    return record


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def _write_tensors(path: Path, content: Mapping[str, Any], *, keep: Path | None = None) -> None:
    with replacing(path, keep=keep) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if error.__context__ is not None:  # a full disk or Ctrl-C, which torch's own error would hide
                raise error.__context__ from None
            raise


def _read_tensors(path: Path) -> dict[str, Any]:
    """What :func:`_write_tensors` wrote; nothing in the file is executed.

    Raises:
        ValueError: if a part of the file differs from its checksum. Other errors, of torch and of zip files, if it
            cannot be read at all.
    """
    with zipfile.ZipFile(path) as parts:  # torch writes checksums of all parts, but does not look at them
        damaged = parts.testzip()
    if damaged:
        raise ValueError(f"its part {damaged} differs from its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def _packed(labelled: LabelledSet) -> dict[str, torch.Tensor]:
    return {
        "labelled": labelled.indices,
        "masks": labelled.masks.bits.cpu(),
        "human": labelled.human.bits.cpu(),
    }


def _unpacked(content: Mapping[str, Any], train: Split) -> LabelledSet:
    masks, human = (PackedMasks(content[name].to(train.masks.device)) for name in ("masks", "human"))
    return LabelledSet(content["labelled"], masks, human)


def _state_from(content: Mapping[str, Any], model: nn.Module, train: Split) -> RunState:
    model.load_state_dict(content["model"])
    labelled = _unpacked(content, train)
    rounds = [_from_plain(k, plain, labelled.indices, train) for k, plain in enumerate(content["rounds"])]
    rounds[-1] = replace(rounds[-1], model=model, labels=labelled)
    return RunState(model, labelled, rounds)


def _plain(one: Round) -> dict[str, Any]:
    """A round as tensors and plain values, which a file may hold that is read with ``weights_only=True``."""
    return {
        "n_labelled": one.n_labelled,
        "losses": one.losses,
        "val_dice": one.val_dice_per_image,
        "test_dice": one.test_dice_per_image,
        "scores": torch.tensor(one.queries["score"].to_numpy()),
        "lesion_areas": torch.tensor(one.queries["lesion_area_percent"].to_numpy()),
        "tied": one.tied,
        "annotations": _columns(one.annotations.drop(columns=["round", "image_id"])),
        "audit": _columns(one.audit),
        "seconds": one.seconds,
    }


def _from_plain(number: int, plain: Mapping[str, Any], annotated: torch.Tensor, train: Split) -> Round:
    """The round again: the first of all ``annotated`` images are what it trained on, the next ones what it queried."""
    n, n_queried, costs = plain["n_labelled"], len(plain["scores"]), _table(plain["annotations"])
    queried_ids = ids_at(train, annotated[n : n + n_queried])
    return Round(
        number=number,
        labelled=annotated[:n],
        labelled_ids=ids_at(train, annotated[:n]),
        losses=plain["losses"],
        val_dice_per_image=plain["val_dice"],
        test_dice_per_image=plain["test_dice"],
        queries=query_table(number, queried_ids, plain["scores"], plain["lesion_areas"]),
        tied=plain.get("tied"),
        annotations=annotation_table(number, ids_at(train, annotated[n - len(costs) : n]), costs),
        audit=_table(plain["audit"]),
        seconds=plain["seconds"],
        model=None,
        labels=None,
    )


def _csv(table: pd.DataFrame, *, header: bool = True) -> str:
    return table.to_csv(index=False, header=header, lineterminator="\n")


def _columns(table: pd.DataFrame) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(column.to_numpy()) for name, column in table.items()}


def _table(columns: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def _round_table(rounds: Sequence[Round], batch_size: int) -> pd.DataFrame:
    """A row a round; the loss is the mean of the last epoch's steps."""
    return pd.DataFrame(
        {
            "round": one.number,
            "n_labelled": one.n_labelled,
            "steps": len(one.losses),
            "loss": one.losses[-math.ceil(one.n_labelled / batch_size) :].double().mean().item(),
            "val_dice": one.val_dice,
            "tied": one.tied,
        }
        for one in rounds
    )


def _runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Those of the simulated oracle; what a person annotated counts where its own folder is given."""
    found = [(path.parent, _read_record(path.parent)) for path in sorted(folder.rglob("run.json"))]
    return [(path, record) for path, record in found if path == folder or "oracle" not in record["data"]]


def _finished_runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = _runs(folder)
    finished = [(path, record) for path, record in found if record["status"] == "finished"]
    if not finished:
        raise RecordsError(f"there is no finished run below {folder.absolute()}; {len(found)} are unfinished")
    return finished


_OUTCOMES = [
    "n_labelled", "steps", "val_dice", "test_dice", "verify_percent", "positive_percent",
    "seconds", "device", "cpu", "torch", "git_commit",
]  # fmt: skip
"""The columns of ``runs`` that say what came of a run; the others say what it was."""

_OF_AN_ARM = {"strategy", "annotation", "tau_u", "tau_b", "seed"}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run the one it is, by the name of the setting: "epochs", "data.test.checksum"."""
    bookkeeping = {"status", "seconds", "provenance", "sha256", "diverged", "experiment"}
    others = {key: value for key, value in record.items() if key not in bookkeeping}
    return {**record["experiment"], **_flat(others)}


def _chosen(identities: Mapping[str, Mapping[str, Any]], only: str | Mapping[str, Any]) -> list[str]:
    """The runs whose settings are those of ``only``."""
    wanted = parse_settings(only, source="only")
    known = sorted(set().union(*identities.values()))
    for name in wanted:
        if known and name not in known:
            raise ConfigError(f"only: no run has a setting '{name}'; {did_you_mean(name, known)}")
    return [
        run
        for run, settings in identities.items()
        if all(_shown(settings.get(name, "absent")) == _shown(value) for name, value in wanted.items())
    ]


def _refuse_mixture(folder: Path, identities: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse runs that differ where they are pooled, or that stand for the same arm and seed."""
    tables, arms, seeds = (_grouped(identities, by) for by in (_in_full, _arm, _arm_and_seed))
    differing = _differing(identities, list(identities), _of_all)
    differing += [found for runs in tables.values() for found in _differing(identities, runs, _of_a_table)]
    differing += [found for runs in arms.values() for found in _differing(identities, runs, _of_one_arm)]
    twice = [f"{', '.join(map(str, key))}: {listed(runs)}" for key, runs in seeds.items() if len(runs) > 1]
    if not differing and not twice:
        return
    lines = [f"{name}: " + "; ".join(f"{value} in {listed(runs)}" for value, runs in by) for name, by in differing]
    alone = {name: by[0][0] for name, by in reversed(differing)}
    choice = ", ".join(f"{name}: {value}" for name, value in reversed(alone.items()))
    remedy = f', or read only runs with certain settings: only="{{{choice}}}" (a parameter of notebook 06 too)'
    raise RecordsError(
        f"the runs below {folder} cannot be pooled: there must be one run per arm and seed, and all other settings and "
        "the pictures must be equal. These differ, or are there more than once:\n  "
        + listed([*lines, *twice], separator="\n  ")
        + f"\nMove or delete the folders that do not belong here{remedy if differing else ''}"
    )


def _grouped(identities: Mapping[str, Mapping[str, Any]], by: Callable[[Mapping[str, Any]], Any]) -> dict[Any, Any]:
    groups: dict[Any, list[str]] = {}
    for run, settings in identities.items():
        groups.setdefault(by(settings), []).append(run)
    return groups


def _differing(
    identities: Mapping[str, Mapping[str, Any]], runs: Sequence[str], compared: Callable[[str], bool]
) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The fields in which ``runs`` differ, each with its values, the most frequent first, and the runs that have it."""
    found = []
    for name in dict.fromkeys(key for run in runs for key in identities[run]):
        if compared(name) and not (name in _OF_AN_ARM and _is_of_the_arm(name, [identities[run] for run in runs])):
            by_value = _grouped(
                {run: identities[run] for run in runs}, lambda settings, k=name: _shown(settings.get(k, "absent"))
            )
            if len(by_value) > 1:
                found.append((name, sorted(by_value.items(), key=lambda item: -len(item[1]))))
    return found


def _is_of_the_arm(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether arms differ in it by what they are: not in tau_u where it takes part in the choice of the queries."""
    return name != "tau_u" or not all(_in_full(one) and one.get("reduction") == "band_mean" for one in settings)


def _of_all(name: str) -> bool:
    return name in ("n_train", "network", "oracle") or name.startswith(("data.", "network.", "oracle."))


def _of_a_table(name: str) -> bool:
    return name in Experiment.model_fields


def _of_one_arm(name: str) -> bool:
    """Neither a setting nor a picture, such as the code of a strategy of one's own."""
    return not _of_all(name) and not _of_a_table(name)


def _in_full(settings: Mapping[str, Any]) -> bool:
    return settings["annotation"] == "full"


def _arm_and_seed(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return *_arm(settings), f"seed {settings['seed']}"


def _arm(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is compared in Tables I and II: the strategy, who annotates, and the thresholds where these matter."""
    mode, thresholds = settings["annotation"], (settings["tau_u"], settings["tau_b"])
    if mode == "full":
        return settings["strategy"], mode
    return settings["strategy"], mode, *(same_run(*thresholds) if mode == "partial" else thresholds)


def _shown(value: Any) -> str:
    """A setting as YAML takes it: records have lists where collected tables have the text of a tuple."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return re.sub(r"^\((.*?),?\)$", r"[\1]", str(tuple(value) if isinstance(value, list) else value))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = {"status", "experiment", "data", "seconds", "provenance", "checksum"} - set(record)
    except (OSError, ValueError, TypeError) as error:
        raise RecordsError(f"{path} cannot be read ({error}); delete {folder} to run it anew") from None
    if missing:
        raise RecordsError(f"{path} is not the record of a run: it lacks {', '.join(sorted(missing))}")
    if record.pop("checksum") != _record_checksum(record):
        raise RecordsError(f"{path} was changed since the run wrote it; restore it, or delete {folder} to run it anew")
    return record


def _record_checksum(record: Mapping[str, Any]) -> str:
    return sha256(json.dumps(record, sort_keys=True).encode())


_RESTORE = "restore it as it was, line ends too (in a checkout: git checkout)"


def _read_table(folder: Path, name: str, checksum: str | None, *, remedy: str = "") -> pd.DataFrame:
    """The table ``name``, if it is as it was written.

    Args:
        folder: of the run, or of collected tables.
        name: of the file, without its suffix.
        checksum: the SHA-256 it must have; None: nothing is known.
        remedy: what to do where it is not; empty: what helps with the table of a run.
    """
    path = folder / f"{name}.csv"
    try:
        content = path.read_bytes()
        if checksum not in (None, sha256(content)):
            raise ValueError("it was changed since it was written")
        return pd.read_csv(
            io.BytesIO(content), dtype={"image_id": str, "run": str}, keep_default_na=False, na_values=[""]
        )
    except (OSError, ValueError) as error:
        remedy = remedy or f"restore it, or delete {folder} to run it anew"
        raise RecordsError(f"{path} cannot be read ({error}); {remedy}") from None


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names: ``{"experiment.seed": 0}``."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _git_state(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout whose top folder is ``root``, and whether it was changed since but for results."""
    results = ("results/*.csv", "results/*.json", "results/*SHA256SUMS", "figures")
    code = ("--", ".", *(f":(exclude){path}" for path in results))

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None  # the package is installed somewhere below another project's checkout
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no", *code))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux, where platform.processor() is empty
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
