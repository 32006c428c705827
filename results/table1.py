"""Run the arms of Table I one after the other and collect their records as small CSV files.

    python results/table1.py results/quick --profile quick --seeds 0 1 2
    python results/table1.py results/isic2018-small --profile small --data data/isic2018 --seeds 0 1 \
        --overrides "{encoder_weights: data/resnet18_imagenet.pth}"

Finished runs are not run again, and a stopped one continues: the same command can be given until all is done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alutils.active_learning import BASELINES, run_active_learning
from alutils.notebook import RUNS_DIR, open_workspace
from alutils.queries import STRATEGIES
from alutils.records import TABLES, load_runs, load_table, write_csv

ARMS = [*STRATEGIES, *BASELINES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder for the CSV files")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--data", default="", help="folder with ISIC 2018; none: synthetic images")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overrides", default="", help="changes of the profile, YAML")
    settings = parser.parse_args()

    runs = RUNS_DIR / "table1" / settings.results.name
    common = {"profile": settings.profile, "device": settings.device, "overrides": settings.overrides}
    work = open_workspace("table1", data_root=settings.data, **common)
    for seed in settings.seeds:
        for arm in settings.arms:
            experiment = work.experiment.model_copy(update={"seed": seed, "strategy": arm})
            folder = runs / f"{arm}-seed{seed}"
            *_, last = run_active_learning(experiment, work.splits, folder, device=settings.device)
            print(f"{folder.name}: validation Dice {last.val_dice:.3f}, test Dice {last.test_dice:.3f}", flush=True)
            write_csv(settings.results / "runs.csv", load_runs(runs))
    for table in TABLES:
        write_csv(settings.results / f"{table}.csv", load_table(runs, table))


if __name__ == "__main__":
    main()
