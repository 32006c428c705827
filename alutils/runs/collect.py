"""Many finished runs together: their tables, whether they may be pooled, and a few small files to keep them in.

A run's folder holds a record (``run.json``) and one line per round (``rounds.jsonl``). Collected results hold the same
of many runs, in ``runs.jsonl`` (one record per line) and ``rounds.jsonl.gz``. All tables are derived on reading.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from alutils.cost import average_cost
from alutils.experiment import Experiment, same_run
from alutils.rounds import run_tables
from alutils.runs.folder import RecordsError, flat, read_record, read_rounds
from alutils.system.checks import ConfigError, did_you_mean, expanded, listed
from alutils.system.files import replacing, sha256
from alutils.system.settings import parse_settings

TABLES = ("rounds", "queries", "annotations", "audit", "test_dice", "timing")
"""The tables of a run."""

RUNS, ROUNDS, CHECKSUMS = "runs.jsonl", "rounds.jsonl.gz", "SHA256SUMS"
"""The files of collected results; the last says what the others should be, in the format of ``sha256sum``."""

Record = dict[str, Any]
Runs = dict[str, tuple[Record, list[Record]]]
"""Finished runs by name: each one's record and the lines of its rounds."""


def load_results(folder: str | Path, *, only: str | Mapping[str, Any] = "") -> dict[str, pd.DataFrame]:
    """Everything about the finished runs of a folder: ``runs`` and each of :data:`TABLES`, by name.

    The results are pooled by arm (strategy, annotation and cell of Table II). There must therefore be one run per arm
    and seed, all on the same pictures and with the same network. All other settings must be equal among the runs that
    are annotated in full (Table I), and among the others (Table II, which has fewer queries in the paper).

    Args:
        folder: either collected results, as :func:`write_results` leaves them, or folders of runs.
        only: settings by name, as a mapping or as YAML text: runs with other values are left out.

    Returns:
        Tables as :func:`load_runs` and :func:`load_table` make them.

    Raises:
        RecordsError: if there is no finished run, a file cannot be read or was changed, or the runs do not belong
            together; then it lists what differs and where, and the runs that stand for the same.
        ConfigError: if ``only`` names a setting that no run has.
    """
    return _tables(_pooled(expanded("folder", folder), only))


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The finished runs of a folder, one row per run, whatever their settings (:func:`load_results` compares them).

    Args:
        folder: collected results, or a folder that is searched with its subfolders for ``run.json`` files. Runs with a
            person as the oracle are left out, except one whose own folder it is.

    Returns:
        Columns: ``run`` (its folder below ``folder``), every setting of the experiment (``strategy`` is the one that
        was used), ``network`` (the function that built it), ``n_train`` (images in the training set), ``n_labelled``
        and ``steps`` (images at the end, optimizer steps in all), ``val_dice`` (mean, of the last round), ``test_dice``
        (mean), ``verify_percent`` and ``positive_percent`` (Table II: means over the queried images, without the cold
        start; not a number where nothing was queried), ``seconds`` (of all phases), and the ``device``, ``cpu``,
        ``torch`` and ``git_commit`` of its last start.

    Raises:
        RecordsError: if there is no finished run, or a file of one cannot be read.
    """
    return _tables(_finished(expanded("folder", folder)))["runs"]


def load_table(folder: str | Path, name: str) -> pd.DataFrame:
    """One of :data:`TABLES`, over all the runs that :func:`load_runs` finds.

    Returns:
        ``run``, ``strategy`` and ``seed``, then the table's own columns.

    Raises:
        ValueError: if there is no table of that name.
        RecordsError: as :func:`load_runs`.
    """
    if name not in TABLES:
        raise ValueError(f"name must be one of {', '.join(TABLES)}, got {name!r}")
    return _tables(_finished(expanded("folder", folder)))[name]


def load_diverged(folder: str | Path, *, only: str | Mapping[str, Any] = "") -> pd.DataFrame:
    """The runs below ``folder`` whose training diverged, and which therefore have no result: one row per run.

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
    records, names = _records(expanded("folder", folder)), ("strategy", "annotation", "seed")
    rows = [
        {"run": run, **{name: records[run]["experiment"][name] for name in names}, **records[run]["diverged"]}
        for run in _chosen(_settings(records), only).index
        if records[run]["status"] == "diverged"
    ]
    return pd.DataFrame(rows, columns=["run", *names, "round", "message"])


def write_results(folder: str | Path, runs: str | Path) -> None:
    """Collect finished runs into a few small files, which :func:`load_results` reads as it reads the runs themselves.

    The same runs give the same bytes. The losses of single steps and the validation Dice of single images, of which no
    table is made, are left out.

    Args:
        folder: where :data:`RUNS`, :data:`ROUNDS` and :data:`CHECKSUMS` go.
        runs: as ``folder`` of :func:`load_results`.

    Raises:
        RecordsError: as :func:`load_results`.
        CannotWrite: if a file cannot be written.
    """
    folder, found = expanded("folder", folder), _pooled(expanded("runs", runs))
    records = _json_lines((run, record) for run, (record, _) in found.items())
    rounds = _json_lines((run, line) for run, (_, lines) in found.items() for line in lines)
    # Without the time in its header, the same rounds give the same bytes
    files = {RUNS: records, ROUNDS: gzip.compress(rounds, mtime=0)}
    files[CHECKSUMS] = "".join(f"{sha256(content)}  {name}\n" for name, content in files.items()).encode()
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def _json_lines(values: Iterable[tuple[str, Record]]) -> bytes:
    left_out = ("losses", "val_dice_per_image", "rounds")  # the last is about the file in the run's own folder
    kept = ({"run": run, **{k: v for k, v in value.items() if k not in left_out}} for run, value in values)
    return "".join(json.dumps(value, allow_nan=False) + "\n" for value in kept).encode()


def _finished(folder: Path) -> Runs:
    if (folder / RUNS).exists():
        runs: Runs = {record.pop("run"): (record, []) for record in _collected(folder, RUNS)}
        for line in _collected(folder, ROUNDS):
            runs[line.pop("run")][1].append(line)
        return runs
    if (folder / "runs.csv").exists():
        raise RecordsError(
            f"{folder} holds results that an earlier version collected as CSV files; read them with that version, or "
            "collect the runs again"
        )
    records = _records(folder)
    finished = {run: record for run, record in records.items() if record["status"] == "finished"}
    if not finished:
        raise RecordsError(f"there is no finished run below {folder.absolute()}; {len(records)} are unfinished")
    return {run: (record, read_rounds(folder / run, record)) for run, record in finished.items()}


def _records(folder: Path) -> dict[str, Record]:
    """Those of the simulated oracle; what a person annotated counts where its own folder is given."""
    found = {path.parent: read_record(path.parent) for path in sorted(folder.rglob("run.json"))}
    return {
        path.relative_to(folder).as_posix(): record
        for path, record in found.items()
        if path == folder or "oracle" not in record["data"]
    }


def _collected(folder: Path, name: str) -> list[Record]:
    """The lines of a file of collected results, if it is as it was written."""
    path = folder / name
    try:
        sums = dict(line.split()[::-1] for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines())
        content = path.read_bytes()
        if sums.get(name) != sha256(content):
            raise ValueError(f"it was changed since it was written, or {CHECKSUMS} was")
    except (OSError, ValueError) as error:
        raise RecordsError(f"{path} cannot be read ({error}); restore it as it was (git checkout)") from None
    content = gzip.decompress(content) if name == ROUNDS else content
    return [json.loads(line) for line in content.splitlines()]


def _tables(runs: Runs) -> dict[str, pd.DataFrame]:
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in ("runs", *TABLES)}
    for run, (record, lines) in runs.items():
        its = run_tables(lines)
        found["runs"].append(pd.DataFrame([{"run": run, **_summary(record, its)}]))
        for name, table in its.items():
            arm = {"run": run, **{key: record["experiment"][key] for key in ("strategy", "seed")}}
            found[name].append(pd.DataFrame({**arm, **table}, table.index))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def _summary(record: Record, tables: Mapping[str, pd.DataFrame]) -> Record:
    """A run's row in the table of all runs."""
    cost = average_cost(tables["annotations"]).loc["queries (without cold start)"]
    # Lists do not group: as tuples they do
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in record["experiment"].items()}
    return {
        **settings,
        "network": record.get("network", {}).get("name", "unet_for"),
        "n_train": record["data"]["train"]["images"],
        "n_labelled": tables["rounds"]["n_labelled"].iloc[-1],
        "steps": tables["rounds"]["steps"].sum(),
        "val_dice": tables["rounds"]["val_dice"].iloc[-1],
        "test_dice": tables["test_dice"]["dice"].mean(),
        **cost[["verify_percent", "positive_percent"]],
        "seconds": record["seconds"],
        **{key: record["provenance"][-1][key] for key in ("device", "cpu", "torch", "git_commit")},
    }


# What may be pooled


def _pooled(folder: Path, only: str | Mapping[str, Any] = "") -> Runs:
    """The finished runs with the settings of ``only``, if they belong together."""
    runs = _finished(folder)
    chosen = _chosen(_settings({run: record for run, (record, _) in runs.items()}), only)
    if chosen.empty:
        raise RecordsError(f"none of the {len(runs)} finished runs below {folder} has these settings: {only}")
    _refuse_mixture(folder, chosen)
    return {run: runs[run] for run in chosen.index}


def _settings(records: Mapping[str, Record]) -> pd.DataFrame:
    """What makes each run the one it is, as text: one row per run, one column per setting, "data.test.checksum" too."""
    bookkeeping = {"status", "seconds", "provenance", "rounds", "diverged", "experiment"}
    rows = {}
    for run, record in records.items():
        others = flat({key: value for key, value in record.items() if key not in bookkeeping})
        rows[run] = {name: _shown(value) for name, value in {**record["experiment"], **others}.items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("absent")


def _shown(value: Any) -> str:
    """A setting as text, the same for what is the same in YAML, in JSON and in Python."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(list(value) if isinstance(value, tuple) else value)


def _chosen(settings: pd.DataFrame, only: str | Mapping[str, Any]) -> pd.DataFrame:
    known = sorted(settings)
    for name, value in parse_settings(only, source="only").items():
        if known and name not in known:
            raise ConfigError(f"only: no run has a setting '{name}'; {did_you_mean(name, known)}")
        settings = settings[settings[name] == _shown(value)] if known else settings
    return settings


def _refuse_mixture(folder: Path, settings: pd.DataFrame) -> None:
    """Refuse runs that differ where they are pooled, or that stand for the same arm and seed."""
    arms = pd.Series(map(_arm, settings.to_dict("records")), settings.index, dtype=object)
    pools = {"all": [settings], "table": _groups(settings, settings["annotation"] == "full")}
    pools["arm"] = _groups(settings, arms)
    differing = [found for where, parts in pools.items() for part in parts for found in _differing(part, where)]
    twice = [
        f"{', '.join(arms[part.index[0]])}, seed {part['seed'].iloc[0]}: {listed(part.index)}"
        for part in _groups(settings, [arms, settings["seed"]])
        if len(part) > 1
    ]
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


def _groups(settings: pd.DataFrame, by: Any) -> list[pd.DataFrame]:
    return [group for _, group in settings.groupby(by, sort=False)]


def _differing(settings: pd.DataFrame, where: str) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """The settings in which runs differ, each with its values, the most frequent first, and the runs that have it.

    Args:
        settings: of the runs.
        where: what is compared: the settings that must be equal in "all" runs, in those of a "table" or of an "arm".
    """
    of_an_arm = {"strategy", "annotation", "tau_u", "tau_b", "seed"}
    if "reduction" in settings and set(settings["annotation"] + settings["reduction"]) == {"fullband_mean"}:
        of_an_arm.remove("tau_u")  # it takes part in the choice of the queries
    for name in settings:
        if _compared_in(name) == where and name not in of_an_arm:
            by_value = [(part[name].iloc[0], list(part.index)) for part in _groups(settings, name)]
            if len(by_value) > 1:
                yield name, sorted(by_value, key=lambda item: -len(item[1]))


def _compared_in(name: str) -> str:
    if name.partition(".")[0] in ("data", "network", "oracle"):
        return "all"
    return "table" if name in Experiment.model_fields else "arm"  # such as the code of a strategy of one's own


def _arm(settings: Mapping[str, str]) -> tuple[str, ...]:
    """What is compared in Tables I and II: the strategy, who annotates, and the thresholds where these matter."""
    mode, thresholds = settings["annotation"], (settings["tau_u"], settings["tau_b"])
    if mode == "full":
        return settings["strategy"], mode
    if mode == "partial":
        thresholds = tuple(str(value) for value in same_run(*map(float, thresholds)))
    return settings["strategy"], mode, *thresholds
