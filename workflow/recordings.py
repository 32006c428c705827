"""The plan of what results/ holds (records.yaml): which runs each of its folders needs, and in which order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grid import Cell, check_arms, distinct

from alutils.experiment import Experiment
from alutils.system.checks import ConfigError, did_you_mean, shown
from alutils.system.settings import parse_settings

PLAN = Path(__file__).with_name("records.yaml")


@dataclass(frozen=True)
class Recording:
    """A folder of recorded runs.

    Args:
        name: of the folder.
        profile: of all its runs.
        seeds: of each arm and cell, in the order of the runs.
        experiments: by the run's name, such as "random-seed0".
        data: folder of photographs; empty: synthetic images.
        overrides: changes of the profile.
    """

    name: str
    profile: str
    seeds: tuple[int, ...]
    experiments: dict[str, Experiment]
    data: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)

    def runs_of(self, seeds: Sequence[int]) -> list[str]:
        return [run for seed in seeds for run, experiment in self.experiments.items() if experiment.seed == seed]


@dataclass(frozen=True)
class RecordsPlan:
    """The recordings by name, and lists of codes whose runs may be pooled (:func:`code_hash.code_of_commit`)."""

    recordings: dict[str, Recording]
    same_code: tuple[tuple[str, ...], ...] = ()

    def named(self, names: Sequence[str]) -> list[Recording]:
        """The recordings of these names; ConfigError for one that the plan lacks."""
        for name in names:
            if name not in self.recordings:
                raise ConfigError(f"there is no recording '{name}'; {did_you_mean(name, list(self.recordings))}")
        return [self.recordings[name] for name in dict.fromkeys(names)]


def read_plan(path: Path = PLAN) -> RecordsPlan:
    """The plan in a file such as records.yaml; ConfigError, which names the entry, where it cannot be used."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the plan {path} cannot be read: {error}") from None
    plan = _fields(parse_settings(text, source=str(path)), str(path), ("same_code", "folders"))
    same_code = plan.get("same_code", [])
    if not isinstance(same_code, list) or not all(isinstance(codes, list) for codes in same_code):
        raise ConfigError(f"{path}: same_code must be a list of lists of codes, got {shown(same_code)}")
    folders = parse_settings(plan.get("folders", {}), source=f"{path}: folders")
    recordings = {name: _recording(name, entry, f"{path}: {name}") for name, entry in folders.items()}
    return RecordsPlan(recordings, tuple(tuple(map(str, codes)) for codes in same_code))


def in_order(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, str]]:
    """All runs, two seeds at a time over all recordings, so that a stop leaves arms with equally many seeds."""
    for first in range(0, max((len(recording.seeds) for recording in recordings), default=0), 2):
        for recording in recordings:
            for run in recording.runs_of(recording.seeds[first : first + 2]):
                yield recording, run


def _recording(name: str, entry: Any, source: str) -> Recording:
    entry = _fields(entry, source, ("profile", "data", "overrides", "seeds", "arms", "cells"))
    profile, data = entry.get("profile", "quick"), entry.get("data", "")
    overrides = parse_settings(entry.get("overrides", {}), source=f"{source}: overrides")
    seeds = _seeds(entry.get("seeds"), source)
    try:
        arms = {arm: {"strategy": arm} for arm in check_arms(entry.get("arms", []))}
        cells = distinct([_cell(text) for text in entry.get("cells", [])])
        kinds = arms | {cell: vars(found) for cell, found in cells.items()}
        experiments = {
            f"{kind}-seed{seed}": Experiment.from_profile(profile, **{**overrides, **changes, "seed": seed})
            for seed in seeds
            for kind, changes in kinds.items()
        }
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return Recording(name, profile, seeds, experiments, data, overrides)


def _fields(entry: Any, source: str, known: Sequence[str]) -> dict[str, Any]:
    entry = parse_settings(entry, source=source)
    for name in entry:
        if name not in known:
            raise ConfigError(f"{source}: there is no entry '{name}'; {did_you_mean(name, list(known))}")
    return entry


def _seeds(text: Any, source: str) -> tuple[int, ...]:
    found = re.fullmatch(r"(\d+)-(\d+)", str(text))
    if not found or int(found[1]) > int(found[2]):
        raise ConfigError(f"{source}: seeds must be the first and the last, such as 0-9, got {shown(text)}")
    return tuple(range(int(found[1]), int(found[2]) + 1))


def _cell(text: Any) -> Cell:
    try:
        annotation, tau_u, tau_b = str(text).rsplit("-", 2)
        return Cell(annotation, float(tau_u), float(tau_b))
    except ValueError:
        raise ConfigError(f"cells: each must look like partial-0.25-0.5, got {shown(text)}") from None
