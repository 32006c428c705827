"""Which images of a data set are for training, validation and test: by folder, by table, or by seeded fractions."""

from __future__ import annotations

import re
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pandas as pd
import torch

from alutils.data.description import Description, Fractions, Table
from alutils.data.folders import Pair, Problem
from alutils.system.checks import DataError, listed
from alutils.system.seeding import make_generator

SPLITS = ("train", "val", "test")


def divide(
    root: Path, description: Description, pairs: dict[str, dict[str, Pair]]
) -> tuple[dict[str, dict[str, Pair]], list[Problem]]:
    """The pairs by split, each sorted by id, and what is wrong with groups and tables. A split may be empty.

    Images of one group come into one split. Fractions are of the images; groups are drawn one after the other, in an
    order that depends on the seed and on the groups' names alone.

    Raises:
        DataError: if a table cannot be read.
    """
    problems: list[Problem] = []
    ids = [name for part in pairs.values() for name in part]
    groups = _groups(root, description.group, ids, problems)
    if description.split is None:
        return pairs, problems + _straddling(pairs, groups)
    source = "all" if description.all else "train"
    if isinstance(description.split, Table):
        place = _column(root, description.split, list(pairs[source]), problems, allowed=SPLITS)
    else:
        place = _drawn(description, list(pairs[source]), groups)
    found = {name: dict(pairs.get(name, {})) for name in SPLITS}
    found["train"] = {}
    for name, pair in pairs[source].items():
        if name in place:
            found[place[name]][name] = pair
    return found, problems + _straddling(found, groups)


def _groups(root: Path, group: Table | str | None, ids: list[str], problems: list[Problem]) -> dict[str, str]:
    """The group of each id; where there are no groups, each id is its own."""
    if isinstance(group, Table):
        return _column(root, group, ids, problems)
    if group is None:
        return {name: name for name in ids}
    matches = {name: re.search(group, name, re.IGNORECASE) for name in ids}
    found = {name: match[1].casefold() for name, match in matches.items() if match and match[1]}
    problems += [Problem("no group", f"{name}: group {group!r} does not fit") for name in ids if name not in found]
    return found


def _column(
    root: Path, table: Table, ids: list[str], problems: list[Problem], allowed: tuple[str, ...] = ()
) -> dict[str, str]:
    """The column ``table.by`` of a CSV file, by id."""
    path = root / table.csv
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
        columns = (rows[name].str.normalize("NFC").str.casefold() for name in (table.id, table.by))
        pairs = list(zip(*columns, strict=True))
    except KeyError as error:
        raise DataError(f"{path} has no column {error}; there are {listed(rows.columns)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV file in UTF-8: {error}") from None
    values = {name: value for name, value in pairs if value}
    if twice := sorted({name for name, value in pairs if value and values[name] != value}):
        raise DataError(f"{path}: {listed(twice)}: several values of {table.by}; keep one")
    if wrong := sorted({value for value in values.values() if allowed and value not in allowed}):
        raise DataError(f"{path}, column {table.by}: must be one of {', '.join(allowed)}, got {listed(wrong)}")
    missing = [name for name in ids if name.casefold() not in values]
    problems += [Problem("not in the table", f"{name}: no {table.by} in {table.csv}") for name in missing]
    return {name: values[name.casefold()] for name in ids if name.casefold() in values}


def _drawn(description: Description, ids: list[str], groups: dict[str, str]) -> dict[str, str]:
    """The split of each id: whole groups in random order, cut where the fractions of the images are reached."""
    split: Fractions = description.split
    names = SPLITS[: len(split.fractions)]
    sizes = Counter(groups[name] for name in ids if name in groups)
    order = sorted(sizes)
    order = [order[i] for i in torch.randperm(len(order), generator=make_generator(split.seed)).tolist()]
    ends = [share * len(ids) for share in accumulate(split.fractions)]
    place, n = {}, 0
    for group in order:
        middle = n + sizes[group] / 2  # a group goes where its middle lies
        place[group] = next((name for name, end in zip(names, ends, strict=True) if middle <= end), names[-1])
        n += sizes[group]
    return {name: place[groups[name]] for name in ids if name in groups}


def _straddling(pairs: dict[str, dict[str, Pair]], groups: dict[str, str]) -> list[Problem]:
    """Groups of several ids in two splits; an id in two splits is a problem of its own."""
    rows = [(groups[name], name.casefold(), split) for split, part in pairs.items() for name in part if name in groups]
    table = pd.DataFrame(rows, columns=["group", "id", "split"]).groupby("group")
    places = table.agg({"id": "nunique", "split": "unique"})
    return [
        Problem("group in two splits", f"{group}: {' and '.join(sorted(found))}")
        for group, n, found in places.itertuples()
        if n > 1 and len(found) > 1
    ]
