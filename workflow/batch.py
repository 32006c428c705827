"""What the batch runs: the check of its configuration, and the parameters of each notebook."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from code_hash import code_of_notebook, code_of_pictures, code_of_run
from grid import CONTROL_ARMS, GRID, MODE_CELLS, PAPER_ARMS, QUICK_ARMS, QUICK_CELLS, Cell, check_arms, distinct

from alutils.data.description import OWN, Table, read_description
from alutils.experiment import ANNOTATION_MODES, PROFILES_DIR, Experiment
from alutils.system.checks import ConfigError, did_you_mean, expanded
from alutils.system.files import sha256
from alutils.system.settings import parse_settings

ROOT = Path(__file__).resolve().parent.parent

SINGLE = ("01_data", "02_model", "03_uncertainty", "05_partial_annotation", "07_methods")
KEYS = {
    "profile": "a file in profiles/, or a path; quick",
    "data": "folder with images and masks, such as ISIC 2018; none: synthetic images",
    "seeds": "of Table I; [0, 1, 2, 3, 4, 5]: with fewer no claim has a verdict",
    "table2_seeds": "of Table II; those of Table I",
    "strategies": "the arms of Table I; default: the paper's and two controls, three if the profile is quick",
    "cells": "of Table II, [[annotation, tau_u, tau_b], ...]; default: the grid and the other modes, one if quick",
    "overrides": "changes of the profile, YAML",
    "table2_overrides": "further ones for notebook 05b, which win; {n_queries: 20} with the profile paper",
    "runs": "where the runs go; runs/<profile>",
    "figures": "where the figures go; figures/<profile>",
    "runs_per_gpu": "how many runs share a GPU; 1",
}
"""What ``snakemake --config`` takes."""

RUNS_README = """\
# Runs of the batch

| what | where |
|---|---|
| executed notebooks | `NOTEBOOK.ipynb`, or `NOTEBOOK/RUN.ipynb` where one notebook makes many runs; a failed one ends with its traceback |
| what a notebook wrote | the folder of the same name without `.ipynb` |
| a run's record | in it, below a folder with the run's name: `run.json` (settings, data, versions) and `rounds.jsonl` (one line per round) |
| a run's last state | beside the record: weights and labels, from which a stopped run goes on |
| the batch's marks | `job.json` (what was asked for) and `done.json` (that it is done); without the second, the job is run again |

`pd.read_json("rounds.jsonl", lines=True)` reads a record, `alutils.runs.collect.load_results(FOLDER)` all of them together. Everything
here may be deleted: the batch makes it again.
"""  # noqa: E501

FIGURES_README = """\
# Tables and figures of the batch

Notebook 06 writes them from the records of the runs: `summary.md` has all tables, each of them is a CSV and a Markdown file too, and
each figure is a PNG and an SVG. They appear when all runs are done.
"""  # noqa: E501

TEXTS = ("profile", "data", "runs", "figures")


class Batch:
    """The runs of a configuration.

    Args:
        config: see :data:`KEYS`; what is left out or empty has its default. Values may be text, as from the command
            line.

    Raises:
        ConfigError: for an unknown key (the nearest is suggested) or a value that cannot be used.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        for key in parse_settings(config, source="the batch's configuration"):
            if key not in KEYS:
                raise ConfigError(f"{key}: the batch has no such setting; {did_you_mean(key, list(KEYS))}")
        given = {
            key: _text(key, value) if key in TEXTS else _typed(value)
            for key, value in config.items()
            if value is not None and value != "" and value != []
        }
        self.profile = _profile(given.get("profile", "quick"))
        quick = self.profile == "quick"  # minutes on a laptop: few arms with enough seeds, not many with too few
        self.data = given.get("data", "")
        self.seeds = _seeds("seeds", given.get("seeds", list(range(6))))
        self.table2_seeds = _seeds("table2_seeds", given.get("table2_seeds", self.seeds))
        self.arms = check_arms(_listed(given.get("strategies", QUICK_ARMS if quick else PAPER_ARMS + CONTROL_ARMS)))
        self.overrides = parse_settings(given.get("overrides", {}), source="overrides")
        name = Path(self.profile).stem
        default = {"n_queries": 20} if self.profile == "paper" else {}
        table2_overrides = given.get("table2_overrides", default)
        self.table2_overrides = parse_settings(table2_overrides, source="table2_overrides")
        changes = {"04_image_al": {}, "05b_partial_loop": self.table2_overrides}
        self.experiments = {
            notebook: Experiment.from_profile(self.profile, **{**self.overrides, **own})
            for notebook, own in changes.items()
        }
        if self.profile != name and _shipped(name).exists() and not {"runs", "figures"} <= set(given):
            raise ConfigError(
                f"profile: {self.profile} has the name of {_shipped(name)}, so that both would write to the same "
                "folders; give the file another name, or folders of its own (runs=... figures=...)"
            )
        self.cells = distinct(_cells(given.get("cells", QUICK_CELLS if quick else GRID + MODE_CELLS)))
        self.runs = _folder("runs", given.get("runs", f"runs/{name}"))
        self.figures = _folder("figures", given.get("figures", f"figures/{name}"))
        self.runs_per_gpu = given.get("runs_per_gpu", 1)
        whole = isinstance(self.runs_per_gpu, int) and not isinstance(self.runs_per_gpu, bool)
        if not whole or self.runs_per_gpu < 1:
            raise ConfigError(f"runs_per_gpu: must be a whole number of at least 1, got {self.runs_per_gpu!r}")
        if self.data and not Path(self.data).is_dir():
            raise ConfigError(
                f"data: there is no folder {Path(self.data).absolute()}; give one with images and masks "
                "(alutils-download makes one with ISIC 2018), or none for synthetic images"
            )

    @property
    def runs_of(self) -> dict[str, list[str]]:
        """The names of the runs whose records notebook 06 reads, by notebook, such as "entropy-seed0"."""
        return {
            "04_image_al": [f"{arm}-seed{seed}" for arm, seed in product(self.arms, self.seeds)],
            "05b_partial_loop": [f"{cell}-seed{seed}" for cell, seed in product(self.cells, self.table2_seeds)],
        }

    @property
    def names(self) -> list[str]:
        """The names of all jobs: the notebook's, followed in 04 and 05b by a slash and the run's."""
        runs = [f"{notebook}/{run}" for notebook, runs in self.runs_of.items() for run in runs]
        return [*SINGLE, *runs, "06_results"]

    @property
    def plan(self) -> str:
        """The configuration as text, and how many runs of each notebook it makes."""
        about = {
            "profile": self.profile,
            "data": self.data or "synthetic images",
            "strategies": " ".join(self.arms),
            "seeds": " ".join(map(str, self.seeds)),
            "cells": " ".join(self.cells),
            "table2_seeds": " ".join(map(str, self.table2_seeds)),
            "overrides": _yaml(self.overrides) or "none",
            "table2_overrides": _yaml(self.table2_overrides) or "none",
            "runs": self.runs,
            "figures": self.figures,
            "runs_per_gpu": self.runs_per_gpu,
        }
        counts = dict.fromkeys(SINGLE, 1) | {name: len(runs) for name, runs in self.runs_of.items()} | {"06_results": 1}
        counts["in all"] = sum(counts.values())
        others = {str(path.parent.relative_to(self.runs)) for path in Path(self.runs).glob("*/*/job.json")}
        others -= set(self.names)
        return "\n".join(
            [f"{key:<18}{value}" for key, value in about.items()]
            + ["", f"{'notebook':<24}runs"]
            + [f"{name:<24}{count:>4}" for name, count in counts.items()]
            + (["", f"06_results also reads earlier runs: {' '.join(sorted(others))}"] if others else [])
        )

    @functools.cached_property
    def description(self) -> dict[str, str]:
        """The hash of the description that lies beside the data, with its tables; empty where there is none."""
        if not self.data or not Path(self.data, OWN).exists():
            return {}
        found = read_description(Path(self.data, OWN))
        tables = [Path(self.data, part.csv) for part in (found.group, found.split) if isinstance(part, Table)]
        contents = [path.read_bytes() for path in tables if path.is_file()]
        return {"description": sha256(b"\n".join([found.model_dump_json().encode(), *contents]))[:12]}

    @property
    def readmes(self) -> dict[str, str]:
        """What lies in the folders of runs and of figures, as Markdown by folder."""
        made = (
            f"Made by the batch with these settings (`runs` and `figures` are its folders):\n\n```\n{self.plan}\n```\n"
        )
        return {self.runs: f"{RUNS_README}\n{made}", self.figures: f"{FIGURES_README}\n{made}"}

    @property
    def unfinished(self) -> str:
        """The executed notebooks of the jobs that began and did not end, as text."""
        began = [name for name in self.names if Path(self.runs, name, "job.json").exists()]
        failed = [name for name in began if not Path(self.runs, name, "done.json").exists()]
        return "\n".join(["not finished, see:", *(f"  {self.runs}/{name}.ipynb" for name in failed)])

    def job(self, name: str) -> str:
        """A job as JSON, which ``run_notebook.py`` takes. The job is run again if this text differs from the last time.

        Args:
            name: one of :attr:`names`, such as "04_image_al/entropy-seed0".
        """
        notebook, _, run = name.partition("/")
        what, _, seed = run.rpartition("-seed")
        changes, own = self.overrides, {}
        if notebook == "04_image_al":
            own = {"strategy": what, "seed": int(seed), "compare": False}
        elif notebook == "05b_partial_loop":
            changes = {**self.overrides, **self.table2_overrides}
            own = {**vars(self.cells[what]), "strategy": "least_confidence", "seed": int(seed), "compare": False}
        common = {"profile": self.profile, "data_root": self.data}
        if notebook == "06_results":
            own = {"runs": self.runs, "output_dir": self.figures}
        else:
            common["overrides"] = _yaml(changes)
        code = code_hash(notebook, self.profile, own.get("strategy"))
        pictures = {"pictures": code_of_pictures(ROOT)} if "strategy" in own else {}
        about = {"name": name, "notebook": notebook, "code": code, **pictures, **self.description}
        return json.dumps({**about, "parameters": {**common, **own}})


@functools.cache
def code_hash(notebook: str, profile: str, arm: str | None) -> str:
    """The hash of what a job's results depend on besides its parameters: code and settings, never prose or comments.

    Args:
        notebook: its name.
        profile: whose settings count, not its text.
        arm: the strategy of a run, None for a notebook that only shows something.

    Returns:
        12 hexadecimal digits.
    """
    settings = Experiment.from_profile(profile).model_dump_json()
    if arm:
        return code_of_run(ROOT, arm, settings)
    return code_of_notebook(ROOT, ROOT / "notebooks" / f"{notebook}.ipynb", settings)


def as_typed(config: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration with its texts as they were typed: Snakemake reads 007 as the number 7.

    Args:
        config: as Snakemake read it.
        arguments: of the command line.

    >>> as_typed({"runs": 20240501, "seeds": 7}, ["snakemake", "--config", "runs=2024_05_01", "seeds=007"])
    {'runs': '2024_05_01', 'seeds': 7}
    """
    entries = [argument.removeprefix("--config=").removeprefix("-C").partition("=") for argument in arguments]
    typed = {key: value.strip("'\"") for key, equals, value in entries if equals and key in TEXTS}  # as Snakemake does
    return {key: value if value is None else typed.get(key, value) for key, value in config.items()}


def check_for_cluster(entries: Sequence[str]) -> None:
    """Refuse settings that a cluster's jobs would not get as they were typed.

    Snakemake hands the texts of its ``--config`` on to each job through several shells, within Python's quotes. Numbers
    (007), spaces and quotes of one kind arrive as they are. What is refused here would be changed, or run as a command.

    Args:
        entries: such as "data=/data/isic2018".

    Raises:
        ConfigError: naming the setting and its text.
    """
    for entry in entries:
        key, _, text = entry.partition("=")
        if set(text) & set("$`\\") or {"'", '"'} <= set(text) or not text.isprintable():
            raise ConfigError(
                f"{key}: a cluster's jobs would not get {text!r} from a command line: shells on the way change $, `, "
                "\\, line breaks and quotes of both kinds; write it into a YAML file: --configfile mine.yaml"
            )


def _typed(value: Any) -> Any:
    """The value with its numbers and truth values: Snakemake leaves them as text within lists and mappings."""
    if isinstance(value, Mapping):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return found if found is None or isinstance(found, bool | int | float) else value


def _listed(value: Any) -> list[Any]:
    """The value as a list; it may be a list, a text such as "0 1 2" or "0,1,2", or a single item."""
    if isinstance(value, str):
        return [_typed(item) for item in re.split(r"[\s,]+", value.strip())]
    return list(value) if isinstance(value, list | tuple) else [value]


def _seeds(key: str, value: Any) -> list[int]:
    seeds = _listed(value)
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ConfigError(f"{key}: each must be a whole number from 0 to 2**32 - 1, such as [0, 1], got {seed!r}")
    return list(dict.fromkeys(seeds))


def _cells(value: Any) -> list[Cell]:
    cells = []
    for given in value if isinstance(value, list) else [value]:
        if not isinstance(given, Cell) and not (isinstance(given, list) and len(given) == 3):
            raise ConfigError(f"cells: each must be [annotation, tau_u, tau_b], e.g. [partial, 0.25, 0.5], got {given}")
        cell = given if isinstance(given, Cell) else Cell(*given)
        if cell.annotation not in ANNOTATION_MODES:
            hint = did_you_mean(str(cell.annotation), list(ANNOTATION_MODES))
            raise ConfigError(f"cells: there is no annotation '{cell.annotation}'; {hint}")
        if cell.annotation == "full":
            raise ConfigError("cells: full annotation is the arm least_confidence of Table I; leave it out here")
        try:
            tested = Experiment(annotation=cell.annotation, tau_u=cell.tau_u, tau_b=cell.tau_b)
        except ConfigError as error:
            raise ConfigError(f"cells: {cell}: {error}") from None
        cells.append(Cell(tested.annotation, tested.tau_u, tested.tau_b))
    return cells


def _yaml(changes: Mapping[str, Any]) -> str:
    """The changes as YAML on one line, as the notebooks take them; an empty text if there are none."""
    return yaml.safe_dump(dict(changes), default_flow_style=True, width=float("inf")).strip() if changes else ""


def _text(key: str, value: Any) -> str:
    """A name or a path as text; a ``~`` at its beginning is the home folder."""
    if not isinstance(value, str | Path):
        raise ConfigError(
            f"{key}: must be text, but {value!r} was read, which may not be what was written (007 is read as 7); in a "
            f"file put it into quotes, on a command line write {key}=./007 for 007"
        )
    text = str(value)
    if not text.isprintable():
        raise ConfigError(
            f"{key}: must not contain line breaks or other characters that cannot be printed, got {text!r}"
        )
    return str(expanded(key, text)) if text.startswith("~") else text


def _profile(value: str) -> str:
    """The name of a shipped profile, however it was written, or the path of another file."""
    path = Path(value)
    is_path = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    return path.stem if is_path and path.resolve() == _shipped(path.stem).resolve() else value


def _shipped(name: str) -> Path:
    return PROFILES_DIR / f"{name}.yaml"


def _folder(key: str, value: str) -> str:
    """A folder that Snakemake reads as it was written: it takes braces for wildcards and cuts spaces at the ends."""
    if set(value) & set("{}"):
        raise ConfigError(f"{key}: must not contain braces, got {value}")
    if value != value.strip() or not value.rstrip("/"):
        raise ConfigError(f"{key}: must be a folder without spaces at the ends of its name, got {value!r}")
    if Path(value).is_file():
        raise ConfigError(f"{key}: {value} is a file; give a folder")
    return value.rstrip("/")
