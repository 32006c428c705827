"""A run's folder: what the run is (``run.json``), one line per round (``rounds.jsonl``), and a state to go on from.

Each file is there whole or not at all, its numbers read back exactly equal, and a flipped bit is noticed.
"""

from __future__ import annotations

import hashlib
import io
import json
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
from dataclasses import replace
from datetime import UTC, datetime
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
from alutils.data.splits import Split
from alutils.experiment import Experiment, same_run
from alutils.rounds import Draft, LabelledSet, Round, RunState
from alutils.system.checks import ConfigError, did_you_mean, expanded, listed
from alutils.system.device import working_dtype
from alutils.system.files import CannotWrite, remove_leftovers, replacing, sha256, write_json, write_text
from alutils.system.settings import parse_settings
from alutils.training import TrainingDiverged

_ROUND_TABLES = ("queries", "annotations", "audit")
TABLES = ("rounds", *_ROUND_TABLES, "test_dice", "timing")
"""The tables of a run, each a CSV file of that name."""

CHECKSUMS = "SHA256SUMS"
"""The file beside collected tables that says what each should be, in the format of ``sha256sum``."""


class RecordsError(RuntimeError):
    """A run's files cannot be read, or another process is at work on them; the message names them and the remedy."""


class RunFolder:
    """The files of one run, from its call to its end.

    When a round is over, its line is appended to ``rounds.jsonl`` and synced. Then ``state.pt`` is replaced: the model,
    the labelled set, and the length and SHA-256 of ``rounds.jsonl`` up to there. What lies beyond is cut off when the
    run goes on, so that a stop anywhere leaves a consistent state. ``state.previous.pt``, the one before, is for a disk
    that damages the last one. A round that waits for a person leaves its model and what it asks for in ``waiting.pt``:
    trained or predicted again, on another machine or with other threads, it would ask for other pixels.

    An unfinished run belongs to one process: the first that asks, as long as it lives and holds this object.

    Args:
        path: the folder; it need not exist.
        identity: from :func:`alutils.runs.arm.run_identity`.

    Raises:
        ConfigError: if the folder holds another run (each differing field is listed with both values), or the files of
            a run that cannot be told.
        RecordsError: if its ``run.json`` cannot be read or was changed, or another process is at work in the folder.
        TrainingDiverged: if the run has ended so.
        CannotWrite: if the folder cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self._lines = path, _Lines(path / "rounds.jsonl")
        self._states, self._waiting = (path / "state.pt", path / "state.previous.pt"), path / "waiting.pt"
        self.record = _open_record(path, identity)
        if self.record["status"] != "finished":
            self._take()
            self.record = _open_record(path, identity)  # another process may just have finished it
        if self.record["status"] == "diverged":
            raise TrainingDiverged(f"{self.record['diverged']['message']} (recorded in {path / 'run.json'})")

    def load(self, model: nn.Module, train: Split) -> RunState | None:
        """The state on disk, its weights loaded into ``model``; None where there is none yet.

        Where the last state is damaged, a warning says so, and the run goes on from the one before.

        Raises:
            RecordsError: if no state can be read.
        """
        hint, damaged = "", []
        if self.record["status"] == "finished":
            read_rounds(self.path, self.record)
            hint = ". The run is finished: its rounds can still be read (load_runs, load_table)"
        for path in filter(Path.exists, self._states):
            try:
                state = self._read_state(path, model, train)
            except Exception as error:  # torch raises many kinds for files that are damaged
                damaged.append(f"{path} cannot be read ({error})")
                continue
            if damaged:
                warnings.warn(f"{damaged[0]}: going on from round {len(state.rounds) - 1}, in {path}", stacklevel=3)
            return state
        if damaged:
            raise RecordsError(f"{'; '.join(damaged)}{hint}; delete {self.path} to run it anew")
        return None

    def begin(self, state: RunState) -> None:
        """Note that the run is under way, and cut off what a stop left behind. A finished run stays as it is."""
        if self.record["status"] == "finished":
            if state.finished:
                self._drop_previous()  # a kill came before it
                return
            self._take()  # its last state was damaged, and is made again
            del self.record["rounds"]
        self.record["status"] = "running"
        device = next(state.model.parameters()).device
        dtype = working_dtype(device, self.record["experiment"]["precision"])
        self.record["provenance"].append({**provenance(device), "precision": str(dtype).removeprefix("torch.")})
        self._write_record()
        self._lines.cut()
        if state.finished:
            self._finish(state)

    def save(self, state: RunState) -> None:
        """Put the last of the state's rounds on disk; what it takes does not depend on how many there are."""
        self._lines.append(state.rounds[-1].line)
        content = {"model": _weights(state.model), "labelled": _packed(state.labelled), "rounds": self._lines.checksum}
        _write_tensors(self._states[0], content, keep=self._states[1])
        self._waiting.unlink(missing_ok=True)
        if state.finished:
            self._finish(state)

    def keep_waiting(self, draft: Draft, model: nn.Module) -> None:
        """Keep a round that has to wait for a person before it is over."""
        parts = {"labelled": _packed(draft.labelled), "asked": _packed(draft.asked)}
        _write_tensors(self._waiting, {"model": _weights(model), "line": draft.line, **parts})

    def waiting(self, number: int, model: nn.Module, train: Split) -> Draft | None:
        """Round ``number`` as it waits, its weights loaded into ``model``; None if it is yet to train.

        Raises:
            RecordsError: if the file cannot be read.
        """
        if not self._waiting.exists():
            return None
        try:
            content = _read_tensors(self._waiting)
            if content["line"]["round"] != number:  # a kill came before this file was deleted
                return None
            model.load_state_dict(content["model"])
            return Draft(content["line"], *(_unpacked(content[name], train) for name in ("labelled", "asked")))
        except Exception as error:  # torch raises many kinds for files that are damaged
            raise RecordsError(
                f"{self._waiting} cannot be read ({error}); delete it to train this round again"
            ) from error

    def note_divergence(self, number: int, error: TrainingDiverged) -> None:
        """Write that the training of round ``number`` diverged: the run has ended, without a result."""
        self.record |= {"status": "diverged", "diverged": {"round": number, "message": str(error)}}
        self._write_record()

    def _read_state(self, path: Path, model: nn.Module, train: Split) -> RunState:
        content = _read_tensors(path)
        lines = self._lines.read(**content["rounds"])
        model.load_state_dict(content["model"])
        labelled = _unpacked(content["labelled"], train)
        rounds = [Round.of(line, labelled.indices, train.ids) for line in lines]
        rounds[-1] = replace(rounds[-1], model=model, labels=labelled)
        return RunState(model, labelled, rounds)

    def _finish(self, state: RunState) -> None:
        seconds = sum(seconds for round_ in state.rounds for seconds in round_.seconds.values())
        self.record |= {"status": "finished", "seconds": seconds, "rounds": self._lines.checksum}
        self._write_record()
        self._drop_previous()

    def _drop_previous(self) -> None:
        with suppress(OSError):  # of a disk that has become read-only: it is in nobody's way
            self._states[1].unlink(missing_ok=True)

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

    def _write_record(self) -> None:
        write_json(self.path / "run.json", {**self.record, "checksum": _record_checksum(self.record)})


class _Lines:
    """``rounds.jsonl``: the lines that count are the first ``n_bytes``; ``checksum`` says what these must be."""

    def __init__(self, path: Path) -> None:
        self.path, self.n_bytes, self._sum = path, 0, hashlib.sha256()

    @property
    def checksum(self) -> dict[str, Any]:
        return {"bytes": self.n_bytes, "sha256": self._sum.hexdigest()}

    def read(self, bytes: int, sha256: str) -> list[dict[str, Any]]:
        """The lines of the first ``bytes``, if their checksum is as said: they are the ones that count."""
        with self.path.open("rb") as file:
            content = file.read(bytes)
        self.n_bytes, self._sum = len(content), hashlib.sha256(content)
        if self.checksum != {"bytes": bytes, "sha256": sha256}:
            raise ValueError(f"{self.path} was changed since then")
        return [json.loads(line) for line in content.splitlines()]

    def append(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            with suppress(OSError):  # the next start cuts it off
                self.cut()
            if isinstance(error, OSError):
                raise CannotWrite(self.path, error) from None
            raise
        self.n_bytes += len(content)
        self._sum.update(content)

    def cut(self) -> None:
        """Cut off what does not count."""
        if self.path.exists() and self.path.stat().st_size != self.n_bytes:
            os.truncate(self.path, self.n_bytes)


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
_EARLIER = "the run in {0} was made by an earlier version of alutils; read it with that version, or delete {0}"


def _open_record(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says if it is of the run with this identity; a new record where there is none."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; give a folder")
    has_state = any((folder / name).exists() for name in ("state.pt", "state.previous.pt"))
    if not (folder / "run.json").exists():
        if has_state:
            raise ConfigError(
                f"output_dir: {folder} has a state.pt but no run.json that tells of which run; delete it or give "
                "another folder"
            )
        return {"status": "new", **identity, "seconds": 0.0, "provenance": []}
    record = read_record(folder)
    keys = identity.keys() & record.keys()  # what an older record does not tell cannot differ
    there, here = (flat({key: fields[key] for key in fields if key in keys}) for fields in (record, identity))
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
    if record["status"] == "finished" and not has_state:
        raise ConfigError(
            f"output_dir: the run in {folder} is finished but its state.pt is gone: its rounds can still be read "
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
    """What :func:`_write_tensors` wrote, if it is unchanged; nothing in the file is executed."""
    with zipfile.ZipFile(path) as parts:  # torch writes checksums of all parts, but does not look at them
        damaged = parts.testzip()
    if damaged:
        raise ValueError(f"its part {damaged} differs from its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def _packed(labelled: LabelledSet) -> dict[str, torch.Tensor]:
    return {"indices": labelled.indices, "masks": labelled.masks.bits.cpu(), "human": labelled.human.bits.cpu()}


def _unpacked(content: Mapping[str, torch.Tensor], train: Split) -> LabelledSet:
    masks, human = (PackedMasks(content[name].to(train.masks.device)) for name in ("masks", "human"))
    return LabelledSet(content["indices"], masks, human)


def _csv(table: pd.DataFrame, *, header: bool = True) -> str:
    return table.to_csv(index=False, header=header, lineterminator="\n")


def _runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Those of the simulated oracle; what a person annotated counts where its own folder is given."""
    found = [(path.parent, read_record(path.parent)) for path in sorted(folder.rglob("run.json"))]
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
    return {**record["experiment"], **flat(others)}


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


def read_record(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says of a run: its status, settings and pictures, and where it was made.

    Raises:
        RecordsError: if the file cannot be read, was changed, or is of an earlier version.
    """
    if (folder / "rounds.csv").exists():
        raise RecordsError(_EARLIER.format(folder))
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


def read_rounds(folder: Path, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a run's ``rounds.jsonl``, one per round (see :data:`alutils.rounds.KEYS`).

    Args:
        folder: of the run.
        record: from :func:`read_record`; it tells what the file of a finished run must be. Half a line at the end, as a
            stop may leave it, is left out.

    Raises:
        RecordsError: if the file cannot be read, or is not as the finished run wrote it.
    """
    path, known = folder / "rounds.jsonl", record.get("rounds")
    try:
        content = path.read_bytes() if known or path.exists() else b""
        if known and known != {"bytes": len(content), "sha256": sha256(content)}:
            raise ValueError("it was changed since the run wrote it")
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise RecordsError(f"{path} cannot be read ({error}); restore it, or delete {folder} to run it anew") from None


def _record_checksum(record: Mapping[str, Any]) -> str:
    return sha256(json.dumps(record, sort_keys=True).encode())


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names: ``{"experiment.seed": 0}``."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


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
