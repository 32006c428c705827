"""Many finished runs together: their tables, whether they may be pooled, and a few small files to keep them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from alutils.experiment import Experiment, same_run
from alutils.runs.compact import FINAL, RUNS, Record, Recorded, read_compact, read_compact_records, write_compact
from alutils.runs.folder import RecordsError, flat, read_record, read_rounds
from alutils.system.checks import ConfigError, did_you_mean, expanded, listed
from alutils.system.settings import parse_settings

_OF_AN_ARM = ["strategy", "annotation", "tau_u", "tau_b"]

TABLES = ("rounds", "queries", "annotations", "audit", "test_dice", "timing")
"""Over all runs of a folder: "rounds" has one row per round, with the mean areas of the lesions queried after it;
"annotations" the ``images`` annotated for a round and the means of what they cost; "queries" the ids of the queried
images by rank; "audit" one row per round and query; "test_dice" one row per test image, with ``area``, the mean height
of its curve; "timing" the seconds by round and phase."""


def load_results(
    folder: str | Path, *others: str | Path, only: str | Mapping[str, Any] = ""
) -> dict[str, pd.DataFrame]:
    """Everything about the finished runs of a folder, or of several: ``runs`` and each of :data:`TABLES`, by name.

    The results are pooled by arm (strategy, annotation and cell of Table II). There must therefore be one run per arm
    and seed, all on the same pictures and with the same network. All other settings must be equal among the runs that
    are annotated in full (Table I), and among the others (Table II, which has fewer queries in the paper).

    Args:
        folder: collected results, as :func:`write_results` leaves them, or folders of runs.
        others: more of them; each run must be in only one.
        only: settings by name, as a mapping or as YAML text: runs with other values are left out.

    Raises:
        RecordsError: if there is no finished run, a file cannot be read or was changed, or the runs do not belong
            together; then it lists what differs and where, and the runs that stand for the same.
        ConfigError: if ``only`` names a setting that no run has.

    >>> results = load_results("results/study", only="strategy: random")  # from the project's root
    >>> results["test_dice"].columns.tolist()
    ['run', 'strategy', 'seed', 'dice', 'image_id', 'area']
    """
    return _tables(_pooled([expanded("folder", path) for path in (folder, *others)], only))


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The finished runs of a folder, one row per run, whatever their settings (:func:`load_results` compares them).

    Args:
        folder: collected results, or a folder that is searched with its subfolders for ``run.json`` files. Runs with a
            person as the oracle are left out, unless ``folder`` is the run's own.

    Returns:
        ``run`` (its folder below ``folder``), every setting, ``network`` (the function's name), ``n_train``,
        ``n_labelled``, ``steps`` and ``seconds`` (of all rounds), ``val_dice``, ``test_dice``, ``test_jaccard`` and
        ``test_thresholded_jaccard`` (:func:`alutils.metrics.jaccard_score` from :data:`alutils.metrics.ISIC_2018`;
        means, 0 to 1, of the last round), ``verify_percent`` and ``positive_percent`` (Table II: means over the queried
        images; NaN where nothing was queried), ``device``, ``cpu``, ``torch`` and ``git_commit`` (of its last start).

    Raises:
        RecordsError: if there is no finished run, or a file of one cannot be read.
    """
    return _tables(_finished(expanded("folder", folder)))["runs"]


def load_table(folder: str | Path, name: str) -> pd.DataFrame:
    """One of :data:`TABLES` over all the runs of :func:`load_runs`, whose names, strategies and seeds it has too.

    Raises:
        ValueError: if ``name`` is none of them.
    """
    if name not in TABLES:
        raise ValueError(f"name must be one of {', '.join(TABLES)}, got {name!r}")
    return _tables(_finished(expanded("folder", folder)))[name]


def load_diverged(folder: str | Path, *, only: str | Mapping[str, Any] = "") -> pd.DataFrame:
    """The runs below ``folder`` whose training diverged, and which therefore have no result: one row per run.

    ``only`` is that of :func:`load_results`. ``round`` is the round whose training diverged.

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
        return read_compact_records(folder)
    return {run: record for run, record in _records(folder).items() if record["status"] == "finished"}


def write_results(folder: str | Path, *sources: str | Path, only: Collection[str] | None = None) -> None:
    """Collect finished runs into a few small files, which :func:`load_results` reads too.

    The same runs give the same bytes. Numbers of runs and rounds are rounded to 6 decimals, those of single images and
    the audit's to 4. Of a run that was stopped and started again, only the last start is kept.

    Args:
        folder: to write to; it may be one of the sources, which are read before.
        sources: folders of runs and of collected results; a run that several have is taken from the last of them.
        only: names of runs; all by default.

    Raises:
        RecordsError: as :func:`load_results`.
        CannotWrite: if a file cannot be written.
    """
    folder = expanded("folder", folder)
    found = Recorded.joined(_finished(expanded("sources", source), only) for source in sources)
    if not found.records:
        raise RecordsError(f"there is no finished run to collect in {', '.join(map(str, sources))}")
    _refuse_mixture(folder, _settings(found.records))
    write_compact(folder, found)


def _finished(folder: Path, only: Collection[str] | None = None) -> Recorded:
    """The finished runs of a folder; without ``only``, the names of runs, there must be one."""
    if (folder / RUNS).exists():
        found = read_compact(folder)
        return found if only is None else found.only([run for run in found.records if run in only])
    records = _records(folder)
    finished = {run: record for run, record in records.items() if record["status"] == "finished"}
    if not finished and only is None:
        raise RecordsError(f"there is no finished run below {folder.absolute()}; {len(records)} are unfinished")
    return Recorded.joined(
        Recorded.of_run(run, record, read_rounds(folder / run, record))
        for run, record in finished.items()
        if only is None or run in only
    )


def _records(folder: Path) -> dict[str, Record]:
    """The records below ``folder``, except of runs that a person annotated, unless ``folder`` is such a run's own."""
    found = {path.parent: read_record(path.parent) for path in sorted(folder.rglob("run.json"))}
    return {
        path.relative_to(folder).as_posix(): record
        for path, record in found.items()
        if path == folder or "oracle" not in record["data"]
    }


def _tables(found: Recorded) -> dict[str, pd.DataFrame]:
    """The named tables; each but "runs" begins with the run, its strategy and its seed."""
    rounds = found.tables["rounds"]
    parts = {
        prefix: rounds[["run", "round", *names]].rename(columns=lambda name: name.rpartition(".")[2])
        for prefix in ("annotations", "seconds")
        for names in [[name for name in rounds if name.startswith(f"{prefix}.")]]
    }
    timing = parts["seconds"].melt(["run", "round"], var_name="phase", value_name="seconds", ignore_index=False)
    tables = {
        **found.tables,
        "rounds": rounds[[name for name in rounds if "." not in name]],
        "annotations": parts["annotations"],
        "timing": timing.dropna().sort_index(kind="stable").reset_index(drop=True),
    }
    runs = pd.DataFrame([{"run": run, **_summary(record)} for run, record in found.records.items()])
    percents = dict.fromkeys(("verify_percent", "positive_percent"), float)
    heads = runs.set_index("run")[["strategy", "seed"]]
    joined = {}
    for name in TABLES:
        table = tables[name]
        head = heads.loc[table["run"]].reset_index()
        joined[name] = pd.concat([head, table.drop(columns="run").reset_index(drop=True)], axis="columns")
    return {"runs": runs.astype(percents), **joined}


def _summary(record: Record) -> Record:
    # pandas cannot group by lists
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in record["experiment"].items()}
    final = record["final"]
    return {
        **settings,
        "network": record.get("network", {}).get("name", "unet_for"),
        "n_train": record["data"]["train"]["images"],
        **{name: final[name] for name in FINAL},
        "seconds": record["seconds"],
        **{key: record["provenance"][-1][key] for key in ("device", "cpu", "torch", "git_commit")},
    }


# What may be pooled


def _pooled(folders: Sequence[Path], only: str | Mapping[str, Any] = "") -> Recorded:
    """The finished runs with the settings of ``only``, if they belong together."""
    parts, where = [_finished(folder) for folder in folders], " and ".join(map(str, folders))
    times = Counter(run for part in parts for run in part.records)
    if twice := [run for run in times if times[run] > 1]:
        raise RecordsError(f"each run must be in one folder; several of {where} have {listed(twice)}")
    found = Recorded.joined(parts)
    chosen = _chosen(_settings(found.records), only)
    if chosen.empty:
        raise RecordsError(f"none of the {len(found.records)} finished runs below {where} has these settings: {only}")
    _refuse_mixture(where, chosen)
    return found.only(chosen.index)


def _settings(records: Mapping[str, Record]) -> pd.DataFrame:
    """What makes each run the one it is, as text: one row per run, columns such as "seed" and "data.test.checksum"."""
    bookkeeping = {"status", "seconds", "provenance", "rounds", "diverged", "experiment", "final"}
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


def _refuse_mixture(where: str | Path, settings: pd.DataFrame) -> None:
    """Refuse runs that differ where they are pooled, or that stand for the same arm and seed."""
    in_full, arms = settings["annotation"] == "full", settings.apply(lambda row: arm_name(*row[_OF_AN_ARM]), axis=1)
    # Runs that are annotated in full use tau_u only for the mean inside the band
    with_band = settings[in_full & (settings.get("reduction") == "band_mean")]
    lines, alone = [], {}
    for name in settings.columns.difference(["strategy", "annotation", "tau_b", "seed"], sort=False):
        pools = in_full if name in Experiment.model_fields else arms  # such as the code of a strategy of one's own
        if name.partition(".")[0] in ("data", "network", "oracle"):
            pools = pd.Series("all", settings.index)
        told = settings[settings[name] != "absent"] if name == "weights" else settings  # older records do not tell
        for _, pool in (with_band if name == "tau_u" else told)[name].groupby(pools):
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
            f"the runs below {where} cannot be pooled: there must be one run per arm and seed, and all other settings "
            "and the pictures must be equal. These differ, or are there more than once:\n  "
            + listed(lines, separator="\n  ")
            + f"\nMove or delete the folders that do not belong here{remedy if alone else ''}"
        )


def arm_name(strategy: str, annotation: str, tau_u: float | str, tau_b: float | str) -> str:
    """What is compared in Tables I and II: the strategy where images are annotated in full, else who annotates what.

    There it follows the strategy, unless that is least confidence. Runs of mode partial that come out the same
    (:func:`alutils.experiment.same_run`) share a name.

    >>> arm_name("random", "full", 0.25, 0.25), arm_name("least_confidence", "partial", 0.25, 0.75)
    ('random', 'partial-0.25-0.5')
    """
    if annotation == "full":
        return strategy
    thresholds = float(tau_u), float(tau_b)
    if annotation == "partial":
        thresholds = same_run(*thresholds)
    return "-".join([*([strategy] if strategy != "least_confidence" else []), annotation, *map(str, thresholds)])
