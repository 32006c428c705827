"""A run's folder: what the run is (``run.json``), one line per round (``rounds.jsonl``), and a state to go on from.

What a stop leaves half-written does not count, numbers read back exactly equal, and a flipped bit is noticed.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
import weakref
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from alutils.data.packed import PackedMasks
from alutils.data.splits import Split
from alutils.rounds import Draft, LabelledSet, Round, RunState
from alutils.runs.provenance import provenance
from alutils.system.checks import ConfigError
from alutils.system.device import working_dtype
from alutils.system.files import AppendedLines, CannotWrite, remove_leftovers, replacing, sha256, write_json, write_text
from alutils.training import TrainingDiverged


class RecordsError(RuntimeError):
    """A run's files cannot be read, or another process is at work on them; the message names them and the remedy."""


_AT_WORK: weakref.WeakValueDictionary[Path, RunFolder] = weakref.WeakValueDictionary()
"""By its path, the object that writes into a folder."""


class RunFolder:
    """The files of one run, from its call to its end.

    When a round is over, its line is appended to ``rounds.jsonl`` and synced. Then ``state.pt`` is replaced: the model,
    the labelled set, and the length and SHA-256 of ``rounds.jsonl`` up to there. What lies beyond is cut off when the
    run goes on, so that a stop anywhere leaves a consistent state. ``state.previous.pt``, the one before, is there
    in case the last one is damaged. A round that waits for a person leaves its model and what it asks for in
    ``waiting.pt``: trained or predicted again, on another machine or with other threads, it could ask for other pixels.

    An unfinished run belongs to one process: the first that asks, as long as it lives and holds this object. Within it
    the object that asked last is at work, and an earlier one writes nothing more. A folder with another ``identity``
    (:func:`alutils.runs.arm.run_identity`) is refused by ConfigError.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self._lines = path, AppendedLines(path / "rounds.jsonl")
        self._states, self._waiting = (path / "state.pt", path / "state.previous.pt"), path / "waiting.pt"
        self.record = _open_record(path, identity)
        if self.record["status"] != "finished":
            self._take()
            self.record = _open_record(path, identity)  # another process may just have finished it
        if self.record["status"] == "diverged":
            raise TrainingDiverged(f"{self.record['diverged']['message']} (recorded in {path / 'run.json'})")

    def load(self, model: nn.Module, train: Split) -> RunState | None:
        """The state on disk, its weights loaded into ``model``; None where there is none yet.

        Where the last state is damaged, a warning says so and the one before is taken; RecordsError if both are.
        """
        damaged = []
        if self.record["status"] == "finished":
            read_rounds(self.path, self.record)
        for path in filter(Path.exists, self._states):
            try:
                state = self._read_state(path, model, train)
            except Exception as error:  # torch raises many kinds for files that are damaged
                damaged.append(f"{path} cannot be read ({error})")
                continue
            if damaged:
                warnings.warn(f"{damaged[0]}: going on from round {len(state.rounds) - 1}, in {path}", stacklevel=3)
            return state
        if damaged or self.record["status"] == "finished":
            found = "; ".join(damaged) or f"{self._states[0]} is gone"
            raise RecordsError(
                f"{found}; delete {self.path} to run it anew (a finished run can still be read: load_runs, load_table)"
            )
        return None

    def begin(self, state: RunState) -> None:
        """Note that the run is under way, and cut off what a stop left behind."""
        if self.record["status"] == "finished":
            if state.finished:
                self._drop_previous()  # the process was killed before this
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
        """Put the last of the state's rounds on disk."""
        self._check_at_work()
        self._lines.append(state.rounds[-1].line)
        content = {"model": _weights(state.model), "labelled": _packed(state.labelled), "rounds": self._lines.checksum}
        _write_tensors(self._states[0], content, keep=self._states[1])
        self._waiting.unlink(missing_ok=True)
        if state.finished:
            self._finish(state)

    def keep_waiting(self, draft: Draft, model: nn.Module) -> None:
        self._check_at_work()
        parts = {"labelled": _packed(draft.labelled), "asked": _packed(draft.asked)}
        _write_tensors(self._waiting, {"model": _weights(model), "line": draft.line, **parts})

    def waiting(self, number: int, model: nn.Module, train: Split) -> Draft | None:
        """Round ``number`` as it waits, its weights loaded into ``model``; None if it is yet to train."""
        if not self._waiting.exists():
            return None
        try:
            content = _read_tensors(self._waiting)
            if content["line"]["round"] != number:  # the process was killed before it deleted this file
                return None
            model.load_state_dict(content["model"])
            return Draft(content["line"], *(_unpacked(content[name], train) for name in ("labelled", "asked")))
        except Exception as error:  # torch raises many kinds for files that are damaged
            message = f"{self._waiting} cannot be read ({error}); delete it to train this round again"
            raise RecordsError(message) from error

    def note_divergence(self, number: int, error: TrainingDiverged) -> None:
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
        _AT_WORK[self.path.resolve()] = self
        remove_leftovers(self.path)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}, since {now}")

    def _check_at_work(self) -> None:
        if _AT_WORK.get(self.path.resolve()) is not self:
            raise RecordsError(
                f"{self.path} is in use by a later call of run_active_learning in this process: ask that one for the "
                "next round"
            )

    def _write_record(self) -> None:
        self._check_at_work()
        write_json(self.path / "run.json", {**self.record, "checksum": _record_checksum(self.record)})


def _open_record(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says if it is of the run with this identity; a new record where there is none."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; give a folder")
    if not (folder / "run.json").exists():
        if any(folder.glob("state*.pt")):
            raise ConfigError(
                f"output_dir: {folder} has a state.pt but no run.json that says which run it is of; delete it or give "
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
        differences = "\n".join(lines)
        raise ConfigError(
            f"output_dir: {folder} holds another run; delete it or give another folder. They differ in\n{differences}"
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


def read_record(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says of a run; RecordsError if the file cannot be read or was changed."""
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.pop("checksum", "") != _record_checksum(record):
            raise ValueError("it is not as a run wrote it")
    except (OSError, ValueError) as error:
        raise RecordsError(f"{path} cannot be read ({error}); restore it, or delete {folder} to run it anew") from None
    return with_architecture(record)


def with_architecture(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a run, also of one that was written when there were only U-Nets."""
    return {**record, "experiment": {"architecture": "unet", **record["experiment"]}}


def read_rounds(folder: Path, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a run's ``rounds.jsonl``, one per round, without half a line at the end, as a stop may leave it.

    RecordsError if the file cannot be read, or is not as the ``record`` of a finished run says.
    """
    path, known = folder / "rounds.jsonl", record.get("rounds")
    try:
        content = path.read_bytes() if known or path.exists() else b""
        if known and known != {"bytes": len(content), "sha256": sha256(content)}:
            raise ValueError("it is not as the run wrote it")
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
