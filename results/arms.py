"""Run arms one after the other and collect their records: what table1.py and table2.py share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alutils.lab.notebook import RUNS_DIR, open_workspace
from alutils.loop import run_active_learning
from alutils.runs.collect import write_results
from alutils.system.checks import expanded


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every such script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder for the collected records")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--data", default="", help="folder with ISIC 2018; none: synthetic images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overrides", default="", help="changes of the profile, YAML")
    return parser


def run_arms(options: argparse.Namespace, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Each arm, a name with its settings, for each seed; then their records together."""
    results = expanded("results", options.results)
    runs = RUNS_DIR / "results" / results.name
    common = {"profile": options.profile, "device": options.device, "overrides": options.overrides}
    work = open_workspace("results", data_root=options.data, **common)
    for seed in options.seeds:
        for name, settings in arms.items():
            experiment = work.experiment.model_copy(update={"seed": seed, **settings})
            folder = runs / f"{name}-seed{seed}"
            *_, last = run_active_learning(experiment, work.splits, folder, device=options.device, progress=False)
            print(f"{folder.name}: validation Dice {last.val_dice:.3f}, test Dice {last.test_dice:.3f}", flush=True)
    write_results(results, runs)
