"""Run the arms of Table I and the cells of Table II one after the other, and collect their records.

    python workflow/record.py results/quick
    python workflow/record.py results/isic2018-small --profile small --data data/isic2018 --seeds 0 1 \\
        --overrides "{encoder_weights: data/resnet18_imagenet.pth}"

Finished runs are not run again and a stopped run continues, so the same command can be given until all is done. The
batch (the Snakefile) runs the notebooks; this script runs the loop alone, whose records are all that results/ keeps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grid import ARMS, CLICK_CELLS, CONTROL_ARMS, GRID, MODE_CELLS, PAPER_ARMS, Cell, check_arms, distinct

from alutils.lab.notebook import RUNS_DIR, open_workspace
from alutils.loop import run_active_learning
from alutils.runs.collect import write_results
from alutils.system.checks import expanded

PARTS = {"modes": [Cell("partial", 0.25, 0.25), *MODE_CELLS], "grid": GRID, "clicks": CLICK_CELLS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder for the collected records")
    parser.add_argument("--table", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--arms", nargs="+", default=PAPER_ARMS + CONTROL_ARMS, metavar="ARM",
                        help=f"of Table I: {', '.join(ARMS)}, or one with a wrapper, such as power-entropy; "
                        f"by default {', '.join(PAPER_ARMS + CONTROL_ARMS)}")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["modes", "grid"],
                        help="of Table II; by default modes and grid")  # fmt: skip
    parser.add_argument("--profile", default="quick")
    parser.add_argument(
        "--data", default="", help="folder with images and masks, such as ISIC 2018; none: synthetic images"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overrides", default="", help="changes of the profile, YAML")
    options = parser.parse_args()

    settings = {arm: {"strategy": arm} for arm in check_arms(options.arms) if 1 in options.table}
    cells = [cell for part in options.only for cell in PARTS[part] if 2 in options.table]
    settings |= {name: vars(cell) for name, cell in distinct(cells).items()}

    results = expanded("results", options.results)
    runs = RUNS_DIR / "results" / results.name
    common = {"profile": options.profile, "device": options.device, "overrides": options.overrides}
    work = open_workspace("results", data_root=options.data, **common)
    for seed in options.seeds:
        for name, changes in settings.items():
            experiment = work.experiment.model_copy(update={"seed": seed, **changes})
            folder = runs / f"{name}-seed{seed}"
            *_, last = run_active_learning(experiment, work.splits, folder, device=options.device, progress=False)
            print(f"{folder.name}: validation Dice {last.val_dice:.3f}, test Dice {last.test_dice:.3f}", flush=True)
    write_results(results, runs)


if __name__ == "__main__":
    main()
