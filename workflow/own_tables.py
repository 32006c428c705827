"""The tables of an experiment with a script of its own: each run leaves a few CSV files, which are gathered here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from alutils.runs.compact import compressed
from alutils.runs.folder import read_record
from alutils.system.files import replacing, write_json


def gather(results: Path, runs: Path, names: Sequence[str], command: str) -> None:
    """Write the named tables of all finished runs, and where these were made.

    Args:
        results: folder for ``NAME.csv.gz`` and ``made_with.json``.
        runs: a folder with one folder per run: ``run.json``, and ``NAME.csv`` of each name once it is finished.
        names: of the tables.
        command: what made them.
    """
    folders = sorted(path.parent for path in runs.glob(f"*/{names[-1]}.csv"))
    for name in names:
        table = pd.concat([pd.read_csv(folder / f"{name}.csv") for folder in folders], ignore_index=True)
        with replacing(results / f"{name}.csv.gz") as temporary:
            temporary.write_bytes(compressed(table))
    records = [start for folder in folders for start in read_record(folder)["provenance"]]
    keys = ("git_commit", "git_dirty", "cpu", "threads", "python", "torch", "numpy")
    made = {key: ", ".join(sorted({str(record[key]) for record in records})) for key in keys}
    write_json(results / "made_with.json", {"command": command} | made)
