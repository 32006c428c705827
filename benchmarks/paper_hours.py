"""What the paper's experiment would take on this device, from the measured time of its parts.

    python benchmarks/paper_hours.py
    python benchmarks/paper_hours.py --out runs/hours.json --image-size 64 --batch-size 8  # tried out in a minute

Measured: a training step, scoring an image once, scoring it by Monte Carlo dropout. Counted: the steps and images of
each run of Table I (36 queries) and Table II (20 queries) on the 2,594 + 100 + 1,000 images of ISIC 2018.
"""

from __future__ import annotations

import statistics
import sys

import torch
from frame import ROOT, parser, report, seconds

from alutils import STRATEGIES, Experiment, fit, make_generator, make_synthetic, select_queries, unet_for
from alutils.data.isic2018 import OFFICIAL_COUNTS
from alutils.queries import BASELINES

sys.path.insert(0, str(ROOT / "workflow"))
from grid import CONTROL_ARMS, GRID, MODE_CELLS, PAPER_ARMS, distinct

N_TRAIN, N_VAL, N_TEST = OFFICIAL_COUNTS.values()


def scored_images(paper: Experiment, strategy: str) -> int:
    """Images that pass the network without training: the pool at each query, validation and test set each round."""
    pool = sum(N_TRAIN - n for n in paper.labelled_per_round[:-1])
    return (0 if strategy == "random" else pool) + (N_VAL + N_TEST) * (paper.n_queries + 1)


def audited_images(paper: Experiment) -> int:
    """Images of earlier queries that the audit of partial annotation passes through the network, over all rounds."""
    return sum(n - paper.cold_start for n in paper.labelled_per_round)


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--image-size", type=int, default=512)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--compile", action="store_true", help="with torch.compile; its start is not in the hours")
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)
    device = settings.device
    measured = Experiment(
        image_size=settings.image_size, batch_size=settings.batch_size, encoder_weights=None, compile=settings.compile
    )
    images = make_synthetic(settings.batch_size, 1, 1, image_size=settings.image_size).train.to(device)
    model = unet_for(measured).to(device)

    def train() -> None:
        fit(model, images.images, images.masks, measured, make_generator(0), n_steps=settings.steps, progress=False)

    def score(strategy: str) -> None:
        select_queries(model, images.images, 1, measured, make_generator(0), STRATEGIES[strategy])

    first = seconds(train, device)  # the first time also chooses algorithms, and compiles
    step = statistics.median(seconds(train, device) for _ in range(3)) / settings.steps
    scoring = {}
    for strategy in ("least_confidence", "mc_dropout"):
        score(strategy)
        scoring[strategy] = seconds(lambda name=strategy: score(name), device) / len(images)
    table_1, table_2 = Experiment(), Experiment(n_queries=20)
    hours = {}
    for strategy in PAPER_ARMS + CONTROL_ARMS:
        pool = scoring["mc_dropout" if strategy == "mc_dropout" else "least_confidence"]
        queries = 0 if strategy in BASELINES else scored_images(table_1, strategy)
        hours[strategy] = (table_1.n_training_steps * step + queries * pool) / 3600
    passes = scored_images(table_2, "least_confidence") + audited_images(table_2)
    partial = (table_2.n_training_steps * step + passes * scoring["least_confidence"]) / 3600
    row = {
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "compile": settings.compile,
        "start_s": first - step * settings.steps,
        "step_s": step,
        "score_image_s": scoring["least_confidence"],
        "score_image_by_dropout_s": scoring["mc_dropout"],
        "hours_of_table_1_a_seed": sum(hours.values()),
        "hours_of_table_2_a_seed": len(distinct(GRID + MODE_CELLS)) * partial,
        "hours_of_the_paper_s_5_and_9_runs": sum(hours[arm] for arm in PAPER_ARMS) + len(GRID) * partial,
    }
    report(settings.out, [row], device, hours_of_a_run=hours | {"partial": partial})


if __name__ == "__main__":
    main()
