"""Finished runs in a few small tables, in memory and as CSV files that pandas reads in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from alutils.cost import average_cost
from alutils.metrics import ISIC_2018, jaccard_score
from alutils.rounds import run_tables
from alutils.runs.folder import RecordsError, flat, with_architecture
from alutils.system.files import replacing, sha256

CHECKSUMS, RUNS = "SHA256SUMS", "runs.csv.gz"
DECIMALS = {"rounds": 6, "queries": 0, "audit": 4, "test_dice": 4}
"""The tables beside that of the runs, one file each, and the decimals that they are written with."""

FINAL = (
    "n_labelled", "steps", "val_dice", "test_dice", "test_jaccard", "test_thresholded_jaccard", "verify_percent",
    "positive_percent",
)  # fmt: skip
"""The numbers of a run as a whole."""

_OTHERS = ("strategy_code", "oracle", "weights", "seconds")
"""What a record says besides settings, without a dot in the column's name."""

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Finished runs.

    Args:
        records: by the run's name, what its ``run.json`` holds, and as ``final`` the numbers of the run as a whole.
        tables: by the names of :data:`DECIMALS`; each row begins with the name of its run. "rounds" has one row per
            round: the columns of :func:`alutils.rounds.run_tables`, the mean areas of the lesions queried after it,
            ``annotations.images`` annotated for it with the means of their cost, and ``seconds.`` by phase.

    >>> Recorded.joined([Recorded(), Recorded()]).records
    {}
    """

    records: dict[str, Record] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=lambda: {name: pd.DataFrame() for name in DECIMALS})

    @classmethod
    def of_run(cls, run: str, record: Record, lines: list[Mapping[str, Any]]) -> Recorded:
        """One run: its record and the lines of its rounds."""
        found = run_tables(lines)
        tables = {
            "rounds": _rounds(found),
            "queries": found["queries"][["round", "image_id", "rank"]],
            "audit": found["audit"],
            "test_dice": found["test_dice"],
        }
        named = {name: pd.DataFrame({"run": run, **table}, table.index) for name, table in tables.items()}
        return cls({run: {**record, "final": _final(found)}}, named)

    @classmethod
    def joined(cls, parts: Iterable[Recorded]) -> Recorded:
        """All runs of ``parts``; a run that several have is the last one's."""
        parts = list(parts)
        owner = {run: number for number, part in enumerate(parts) for run in part.records}
        parts = [part.only([run for run in part.records if owner[run] == n]) for n, part in enumerate(parts)]
        records = {run: record for part in parts for run, record in part.records.items()}
        filled = {name: [part.tables[name] for part in parts if len(part.tables[name])] for name in DECIMALS}
        empty = {name: next((part.tables[name] for part in parts), pd.DataFrame()) for name in DECIMALS}
        joined = {name: pd.concat(t, ignore_index=True) if t else empty[name] for name, t in filled.items()}
        return cls(records, joined)

    def only(self, runs: Collection[str]) -> Recorded:
        """These runs, in the order given."""
        if list(runs) == list(self.records):
            return self
        order = pd.Series(range(len(runs)), list(runs))
        tables = {}
        for name, table in self.tables.items():
            kept = table[table["run"].isin(order.index)] if len(table) else table
            tables[name] = kept.sort_values("run", key=lambda run: run.map(order), kind="stable", ignore_index=True)
        return Recorded({run: self.records[run] for run in runs}, tables)


def _rounds(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    queries = found["queries"].groupby("round").mean(numeric_only=True).drop(columns=["rank", "score"], errors="ignore")
    images = found["annotations"].groupby("round")
    costs = pd.concat([images.size().rename("images"), images.mean(numeric_only=True)], axis="columns")
    seconds = found["timing"].pivot_table("seconds", "round", "phase", aggfunc="sum", sort=False)
    return (
        found["rounds"]
        .join(queries, on="round")
        .join(costs.add_prefix("annotations."), on="round")
        .join(seconds.add_prefix("seconds."), on="round")
    )


def _final(found: Mapping[str, pd.DataFrame]) -> Record:
    cost = average_cost(found["annotations"]).loc["queries (without cold start)"]
    dice = torch.tensor(found["test_dice"]["dice"].to_numpy(copy=True))
    return {
        "n_labelled": int(found["rounds"]["n_labelled"].iloc[-1]),
        "steps": int(found["rounds"]["steps"].sum()),
        "val_dice": float(found["rounds"]["val_dice"].iloc[-1]),
        "test_dice": dice.mean().item(),
        "test_jaccard": jaccard_score(dice).mean().item(),
        "test_thresholded_jaccard": jaccard_score(dice, threshold=ISIC_2018).mean().item(),
        "verify_percent": float(cost["verify_percent"]),
        "positive_percent": float(cost["positive_percent"]),
    }


# Files


def write_compact(folder: Path, found: Recorded) -> None:
    """Write the files; the same runs give the same bytes, whatever their order. CannotWrite if that fails."""
    found = found.only(sorted(found.records))
    rows = [{"run": run} | {k: _text(v) for k, v in _flat(record).items()} for run, record in found.records.items()]
    files = {RUNS: compressed(pd.DataFrame(rows).fillna(""))}  # what a run does not have is empty
    for name, table in found.tables.items():
        files[f"{name}.csv.gz"] = compressed(table.round(DECIMALS[name]))
    files[CHECKSUMS] = "".join(f"{sha256(content)}  {name}\n" for name, content in files.items()).encode()
    with ExitStack() as all_or_none:  # each takes its file's place only when all are written
        for name, content in files.items():
            all_or_none.enter_context(replacing(folder / name)).write_bytes(content)


def compressed(table: pd.DataFrame) -> bytes:
    """A table without its index, as a CSV file in gzip's format; the same table gives the same bytes."""
    text = table.to_csv(index=False, lineterminator="\n")
    return gzip.compress(text.encode(), mtime=0)  # without the time in its header


def read_compact_records(folder: Path) -> dict[str, Record]:
    """The records that :func:`write_compact` wrote, by run; RecordsError if a file was changed since."""
    rows = csv.DictReader(io.StringIO(_content(folder, RUNS).decode()))
    return {row.pop("run"): with_architecture(_nested(row)) for row in rows}


def read_compact(folder: Path) -> Recorded:
    """What :func:`write_compact` wrote; RecordsError if a file was changed since."""
    tables = {}
    for name in DECIMALS:
        content = io.BytesIO(_content(folder, f"{name}.csv.gz"))
        texts = dict.fromkeys(("run", "image_id"), str)
        tables[name] = pd.read_csv(content, dtype=texts, keep_default_na=False, na_values=[""])
    return Recorded(read_compact_records(folder), tables)


def _content(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        sums = dict(line.split()[::-1] for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines())
        content = path.read_bytes()
        if sums.get(name) != sha256(content):
            raise ValueError(f"it was changed since it was written, or {CHECKSUMS} was")
        return gzip.decompress(content)
    except (OSError, ValueError) as error:
        raise RecordsError(f"{path} cannot be read ({error}); restore it as it was (git checkout)") from None


def _flat(record: Record) -> Record:
    """A record as one row: settings and numbers by their names, other fields by dotted ones."""
    others = {key: record[key] for key in ("data", "network", *_OTHERS) if key in record}
    final = {
        name: None if value is None else round(value, DECIMALS["rounds"]) for name, value in record["final"].items()
    }
    return {**record["experiment"], **final, **flat({**others, "provenance": record["provenance"][-1]})}


def _nested(row: Mapping[str, str]) -> Record:
    record: Record = {"status": "finished", "experiment": {}, "final": {}}
    values = {name: _value(text) for name, text in row.items() if text}
    for name, value in values.items():
        group, dot, key = name.partition(".")
        if not dot:
            group, key = ("final" if name in FINAL else "" if name in _OTHERS else "experiment"), name
        inner = record.setdefault(group, {}) if group else record
        *outer, key = key.split(".") if dot else [key]
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[key] = value
    return {**record, "provenance": [record["provenance"]]}


def _text(value: Any) -> str:
    """A value as JSON. A text that JSON cannot take for anything else stands as it is; a missing number is null."""
    if isinstance(value, float) and value != value:
        return "null"
    if isinstance(value, str) and value and _value(value) == value:
        return value
    return json.dumps(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
