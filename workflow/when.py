"""When does active learning help? Four strategies on a redundant and on a diverse synthetic pool, paired by seed.

    OMP_NUM_THREADS=1 python workflow/when.py results/when

Both pools have the quick profile's size, and the same validation and test images. In the redundant one about four in
five training pictures repeat a common lesion, so that the rare kinds are rarer in training than in the test. Fixed
before the runs: the last round's test Dice and the mean height of the test curve, of all test images and of those of a
rare kind; each strategy is compared with random selection.

Finished runs are not run again and a stopped run continues, so the same command can be given until all is done. Parts
of it (``--seeds``) can run side by side. The tables hold all finished runs.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from own_tables import gather
from record import run_script

from alutils.data.splits import Splits
from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.lab.notebook import RUNS_DIR
from alutils.loop import run_active_learning
from alutils.rounds import Round
from alutils.system.checks import expanded
from alutils.system.files import write_csv

POOLS = {"redundant": {"redundancy": 0.8}, "diverse": {}}
STRATEGIES = ("random", "least_confidence", "entropy", "kcentre")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder for the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 110)))
    options = parser.parse_args()
    results = expanded("results", options.results)
    runs = RUNS_DIR / "results" / results.name
    experiments = [  # all of them before the first run: a seed that there is not ends the script at once
        Experiment.from_profile("quick", strategy=strategy, seed=seed)
        for seed, strategy in product(options.seeds, STRATEGIES)
    ]
    size = {"image_size": experiments[0].image_size}
    pools = {name: make_synthetic(*experiments[0].n_synthetic, **size, **knobs) for name, knobs in POOLS.items()}
    for experiment, (pool, splits) in product(experiments, pools.items()):
        folder = runs / f"{pool}-{experiment.strategy}-seed{experiment.seed}"
        rounds = list(run_active_learning(experiment, splits, folder, device="cpu", progress=False))
        tables = {"rounds": per_round(rounds, splits), "test_dice": per_image(rounds[-1], splits)}
        for name, table in tables.items():
            table.insert(0, "pool", pool)
            table.insert(1, "strategy", experiment.strategy)
            table.insert(2, "seed", experiment.seed)
            write_csv(folder / f"{name}.csv", table)
        print(f"{folder.name}: test Dice {rounds[-1].test_dice:.3f}", flush=True)
    gather(results, runs, ("rounds", "test_dice"), f"python workflow/when.py results/{results.name}")


def per_round(rounds: list[Round], splits: Splits) -> pd.DataFrame:
    """What was labelled, how many different lesions and how many of a rare kind, and the Dice that came of it."""
    kinds, lesions = splits.train.factors["subtype"].to_numpy(), splits.train.factors["seed"].to_numpy()
    rare = torch.from_numpy(splits.test.factors["subtype"].to_numpy() != "common")
    rows = [
        {
            "labelled": round_.n_labelled,
            "lesions": len(set(lesions[round_.labelled])),
            "rare": int((kinds[round_.labelled] != "common").sum()),
            "val_dice": round_.val_dice,
            "test_dice": round_.test_dice,
            "rare_dice": round_.test_dice_per_image[rare].double().mean().item(),
            "seconds": sum(round_.seconds.values()),
        }
        for round_ in rounds
    ]
    return pd.DataFrame(rows).round(5)


def per_image(last: Round, splits: Splits) -> pd.DataFrame:
    """Dice of each test image after the last round, and the area: its curve's mean height over the labelled images."""
    kinds, found = splits.test.factors["subtype"], last.line["test_dice_per_image"]
    table = pd.DataFrame({"image": kinds.index, "kind": kinds, "dice": found["dice"], "area": found["area"]})
    return table.round(4)


if __name__ == "__main__":
    run_script(main)
