"""What do the model's labels cost? The labelled set of partial annotation, labelled in four ways, paired by seed.

    OMP_NUM_THREADS=1 python workflow/labels.py results/labels

A run of partial annotation (by default ``partial-0.25-0.5`` of the plan's ``study``) queries images and labels them.
Four networks are then trained on these images alone, from the run's first weights, with as many steps as the run took
in all and the same random numbers. They differ in the labels:

- ``written``: the run's own, the human's in the band and the model's outside of it;
- ``whole``: the whole true masks;
- ``human``: the human's, and the loss ignores all other pixels, those that a rotation brings in too;
- ``whole-inside``: the whole true masks, and the loss ignores what a rotation brings in.

Fixed before the runs: test Dice, and three differences. ``written`` minus ``whole`` is the cost of the model's
mistakes, ``human`` minus ``whole-inside`` that of having no other labels, and ``human`` minus ``written`` compares the
two ways out. In the runs of ``study`` the arms also query other images, so there these costs cannot be told apart.

Finished trainings are not made again and a stopped run continues, so the same command can be given until all is done.
Parts of it (``--seeds``) can run side by side. The tables hold all finished runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from own_tables import gather
from record import run_script, workspace_of
from recordings import PLAN, read_plan

from alutils.data.packed import PackedMasks
from alutils.data.splits import Splits
from alutils.experiment import Experiment
from alutils.lab.notebook import RUNS_DIR
from alutils.loop import run_active_learning
from alutils.model import unet_for
from alutils.rounds import CONTROL, Round
from alutils.steps import evaluate
from alutils.system.checks import ConfigError, expanded, listed
from alutils.system.device import resolve_device
from alutils.system.files import write_csv
from alutils.system.seeding import make_generator
from alutils.training import fit

Labels = dict[str, tuple[torch.Tensor | PackedMasks, torch.Tensor | PackedMasks | None]]
"""By name: the masks, and which of their pixels count (None: all, and what a rotation brings in is background)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder for the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    parser.add_argument("--folder", default="study", help="of the plan: profile, data and settings")
    parser.add_argument("--cell", default="partial-0.25-0.5", help="who labels what in the run, tau_u and tau_b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plan", type=Path, default=PLAN, help="another plan than workflow/records.yaml")
    options = parser.parse_args()
    results = expanded("results", options.results)
    runs = RUNS_DIR / "results" / results.name
    (recording,) = read_plan(options.plan).named([options.folder])
    wanted = {seed: f"{options.cell}-seed{seed}" for seed in options.seeds}
    if missing := [run for run in wanted.values() if run not in recording.experiments]:
        cells = dict.fromkeys(run.rpartition("-seed")[0] for run in recording.experiments if run.startswith("partial-"))
        may = f"--cell may be {listed(cells)}, and --seeds {listed(recording.seeds)}"
        raise ConfigError(f"{recording.name} has no run {missing[0]}; {may}")
    splits = workspace_of(recording, options.device).splits.placed(resolve_device(options.device))
    for seed, run in wanted.items():
        table = of_run(recording.experiments[run], splits, runs / f"seed{seed}", options.device)
        write_csv(runs / f"seed{seed}" / "test_dice.csv", table)
    gather(results, runs, ["test_dice"], f"python workflow/labels.py results/{results.name}")


def of_run(experiment: Experiment, splits: Splits, folder: Path, device: str) -> pd.DataFrame:
    """Dice of each test image under each way of labelling; each training is on disk once it is made."""
    rounds = list(run_active_learning(experiment, splits, folder, device=device, progress=False))
    tables = []
    for name, (masks, counts) in labels_of(rounds[-1], splits).items():
        path = folder / f"{name}.csv"
        if not path.exists():
            model = unet_for(experiment).to(splits.train.images.device)
            fit(
                model,
                splits.train.images,
                masks,
                experiment,
                make_generator(experiment.seed, CONTROL),
                indices=rounds[-1].labels.indices,
                annotated=counts,
                n_steps=sum(round_.line["steps"] for round_ in rounds),
                progress=False,
            )
            dice, *_ = evaluate(model, splits.test, experiment)
            table = pd.DataFrame(
                {"labels": name, "seed": experiment.seed, "image": splits.test.ids, "dice": dice.numpy()}
            )
            write_csv(path, table.round(4))
        tables.append(pd.read_csv(path))
        print(f"seed {experiment.seed}, {name}: test Dice {tables[-1]['dice'].mean():.3f}", flush=True)
    return pd.concat(tables)


def labels_of(last: Round, splits: Splits) -> Labels:
    """The four ways to label the images of a run's last round."""
    labels = last.labels
    true = splits.train.masks[labels.indices]
    return {
        "written": (labels.masks, None),
        "whole": (true, None),
        "human": (labels.masks, labels.human),
        "whole-inside": (true, torch.ones_like(true)),
    }


if __name__ == "__main__":
    run_script(main)
