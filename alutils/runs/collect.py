"""Many finished runs together: their tables, whether they may be pooled, and a few small files to keep them in.

These files hold what the runs' ``run.json`` and ``rounds.jsonl`` do. All tables are derived on reading.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from alutils.cost import average_cost
from alutils.experiment import Experiment, same_run
from alutils.metrics import jaccard_score
from alutils.rounds import run_tables
from alutils.runs.folder import RecordsError, flat, read_record, read_rounds, with_architecture
from alutils.system.checks import ConfigError, did_you_mean, expanded, listed
from alutils.system.files import replacing, sha256
from alutils.system.settings import parse_settings

TABLES = ("rounds", "queries", "annotations", "audit", "test_dice", "timing")
"""The tables of a run, which :func:`alutils.rounds.run_tables` makes."""

_TEST_IMAGES = "test_dice_per_image"
RUNS, ROUNDS, CHECKSUMS = "runs.jsonl", "rounds.jsonl.gz", "SHA256SUMS"

Record = dict[str, Any]
Runs = dict[str, tuple[Record, list[Record]]]
"""Finished runs by name: each one's record and the lines of its rounds."""


def load_results(folder: str | Path, *, only: str | Mapping[str, Any] = "") -> dict[str, pd.DataFrame]:
    """Everything about the finished runs of a folder: ``runs`` and each of :data:`TABLES`, by name.

    The results are pooled by arm (strategy, annotation and cell of Table II). There must therefore be one run per arm
    and seed, all on the same pictures and with the same network. All other settings must be equal among the runs that
    are annotated in full (Table I), and among the others (Table II, which has fewer queries in the paper).

    Args:
        folder: collected results, as :func:`write_results` leaves them, or folders of runs.
        only: settings by name, as a mapping or as YAML text: runs with other values are left out.

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
        ``run`` (its folder below ``folder``), every setting, ``network`` (the function's name), ``n_train``,
        ``n_labelled``, ``steps`` and ``seconds`` (of all rounds), ``val_dice``, ``test_dice``, ``test_jaccard`` and
        ``test_thresholded_jaccard`` (:func:`alutils.metrics.jaccard_score` from 0.65; means, 0 to 1, of the
        last round), ``verify_percent`` and ``positive_percent`` (Table II: means over the queried images; NaN where
        nothing was queried), ``device``, ``cpu``, ``torch`` and ``git_commit`` (of its last start).

    Raises:
        RecordsError: if there is no finished run, or a file of one cannot be read.
    """
    return _tables(_finished(expanded("folder", folder)))["runs"]


def load_table(folder: str | Path, name: str) -> pd.DataFrame:
    """One of :data:`TABLES` over all the runs of :func:`load_runs`, whose names, strategies and seeds it has too."""
    if name not in TABLES:
        raise ValueError(f"name must be one of {', '.join(TABLES)}, got {name!r}")
    return _tables(_finished(expanded("folder", folder)))[name]


def load_diverged(folder: str | Path, *, only: str | Mapping[str, Any] = "") -> pd.DataFrame:
    """The runs below ``folder`` whose training diverged, and which therefore have no result: one row per run.

    Arguments and errors are those of :func:`load_results`. ``round`` is the one whose training it was.

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


def finished_records(folder: str | Path) -> dict[str, Record]:
    """What is known of the finished runs of a folder, collected or not, without their rounds: records by run.

    >>> finished_records("nowhere")
    {}
    """
    folder = expanded("folder", folder)
    if (folder / RUNS).exists():
        return {record.pop("run"): with_architecture(record) for record in _collected(folder, RUNS)}
    return {run: record for run, record in _records(folder).items() if record["status"] == "finished"}


def write_results(folder: str | Path, *sources: str | Path, only: Collection[str] | None = None) -> None:
    """Collect finished runs into a few small files, which :func:`load_results` reads too.

    The same runs give the same bytes. The losses of single steps, and the Dice of single images but the test images' in
    the last round, are left out: no table is made of them.

    Args:
        folder: to write to; it may be one of the sources, which are read before.
        sources: folders of runs and of collected results; a run that several have is taken from the last of them.
        only: names of runs; all by default.

    Raises:
        RecordsError: as :func:`load_results`.
        CannotWrite: if a file cannot be written.
    """
    folder, found = expanded("folder", folder), {}
    for source in sources:
        found |= _finished(expanded("sources", source), empty=True)
    found = {run: found[run] for run in sorted(found) if only is None or run in only}
    _refuse_mixture(folder, _settings({run: record for run, (record, _) in found.items()}))
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
    kept = ({k: v for k, v in value.items() if k != _TEST_IMAGES or "image_id" in (v or ())} for value in kept)
    return "".join(json.dumps(value, allow_nan=False) + "\n" for value in kept).encode()


def _finished(folder: Path, *, empty: bool = False) -> Runs:
    if (folder / RUNS).exists():
        runs: Runs = {record.pop("run"): (with_architecture(record), []) for record in _collected(folder, RUNS)}
        for line in _collected(folder, ROUNDS):
            runs[line.pop("run")][1].append(line)
        return runs
    records = _records(folder)
    finished = {run: record for run, record in records.items() if record["status"] == "finished"}
    if not finished and not empty:
        raise RecordsError(f"there is no finished run below {folder.absolute()}; {len(records)} are unfinished")
    return {run: (record, read_rounds(folder / run, record)) for run, record in finished.items()}


def _records(folder: Path) -> dict[str, Record]:
    """The records below ``folder``, except of runs that a person annotated, unless ``folder`` is such a run's own."""
    found = {path.parent: read_record(path.parent) for path in sorted(folder.rglob("run.json"))}
    return {
        path.relative_to(folder).as_posix(): record
        for path, record in found.items()
        if path == folder or "oracle" not in record["data"]
    }


def _collected(folder: Path, name: str) -> list[Record]:
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
        tables = run_tables(lines)
        found["runs"].append(pd.DataFrame([{"run": run, **_summary(record, tables)}]))
        head = {"run": run, **{key: record["experiment"][key] for key in ("strategy", "seed")}}
        for name, table in tables.items():
            found[name].append(pd.DataFrame({**head, **table}, table.index))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _summary(record: Record, tables: Mapping[str, pd.DataFrame]) -> Record:
    cost = average_cost(tables["annotations"]).loc["queries (without cold start)"]
    dice = torch.tensor(tables["test_dice"]["dice"].to_numpy(copy=True))
    # Lists do not group: as tuples they do
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in record["experiment"].items()}
    return {
        **settings,
        "network": record.get("network", {}).get("name", "unet_for"),
        "n_train": record["data"]["train"]["images"],
        "n_labelled": tables["rounds"]["n_labelled"].iloc[-1],
        "steps": tables["rounds"]["steps"].sum(),
        "val_dice": tables["rounds"]["val_dice"].iloc[-1],
        "test_dice": dice.mean().item(),
        "test_jaccard": jaccard_score(dice).mean().item(),
        "test_thresholded_jaccard": jaccard_score(dice, threshold=0.65).mean().item(),
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
    """A setting as text, the same whether it comes from YAML, JSON or Python."""
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
    in_full, arms = settings["annotation"] == "full", settings.apply(_arm, axis="columns")
    # Without the band's mean, runs that are annotated in full have no use for tau_u
    with_band = settings[in_full & (settings.get("reduction") == "band_mean")]
    lines, alone = [], {}
    for name in settings.columns.difference(["strategy", "annotation", "tau_b", "seed"], sort=False):
        pools = in_full if name in Experiment.model_fields else arms  # such as the code of a strategy of one's own
        if name.partition(".")[0] in ("data", "network", "oracle"):
            pools = pd.Series("all", settings.index)
        for _, pool in (with_band if name == "tau_u" else settings)[name].groupby(pools):
            by_value = {value: listed(pool.index[pool == value]) for value in pool.value_counts().index}
            if len(by_value) > 1:
                lines.append(f"{name}: " + "; ".join(f"{value} in {runs}" for value, runs in by_value.items()))
                alone.setdefault(name, next(iter(by_value)))
    twice = settings.groupby([arms, settings["seed"]]).groups.items()
    lines += [f"{arm}, seed {seed}: {listed(runs)}" for (arm, seed), runs in twice if len(runs) > 1]
    if lines:
        choice = ", ".join(f"{name}: {value}" for name, value in alone.items())
        remedy = f', or read only runs with certain settings: only="{{{choice}}}" (a parameter of notebook 06 too)'
        raise RecordsError(
            f"the runs below {folder} cannot be pooled: there must be one run per arm and seed, and all other settings "
            "and the pictures must be equal. These differ, or are there more than once:\n  "
            + listed(lines, separator="\n  ")
            + f"\nMove or delete the folders that do not belong here{remedy if alone else ''}"
        )


def _arm(settings: Mapping[str, str]) -> str:
    """What is compared in Tables I and II: the strategy, who annotates, and the thresholds where these matter."""
    mode, thresholds = settings["annotation"], (settings["tau_u"], settings["tau_b"])
    if mode == "full":
        thresholds = ()
    elif mode == "partial":
        thresholds = same_run(*map(float, thresholds))
    return ", ".join([settings["strategy"], mode, *map(str, thresholds)])
