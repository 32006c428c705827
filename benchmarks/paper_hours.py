"""What the paper's experiment would take on this device, from the measured time of its parts.

    python benchmarks/paper_hours.py results/bench/paper_hours.json
    python benchmarks/paper_hours.py out.json --image-size 64 --batch-size 8    # tried out in a minute on a CPU

Measured: a training step, scoring an image once, scoring it by Monte Carlo dropout. Counted: the steps and images of
each run of Table I (36 queries) and Table II (20 queries) on the 2,594 + 100 + 1,000 images of ISIC 2018.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from alutils import STRATEGIES, Experiment, fit, make_generator, make_synthetic, select_queries, unet_for
from alutils.active_learning import BASELINES
from alutils.records import provenance, write_json
from alutils.training import resolve_device

N_TRAIN, N_VAL, N_TEST = 2594, 100, 1000
TABLE_1 = ("random", "least_confidence", "entropy", "mc_dropout", "full", "full_cosine", "random_at_once")
TABLE_2_RUNS = 5 + 4  # the distinct cells of the grid, and the modes that are neither full nor in the grid


def seconds(work: Callable[[], object], device: torch.device) -> float:
    work()  # the first time also chooses algorithms
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def scored_images(paper: Experiment, strategy: str) -> int:
    """Images that pass the network without training: the pool at each query, validation each round, the test set."""
    pool = sum(N_TRAIN - n for n in paper.labelled_per_round[:-1])
    return (0 if strategy == "random" else pool) + N_VAL * (paper.n_queries + 1) + N_TEST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="JSON file to write")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="auto")
    settings = parser.parse_args()
    device = resolve_device(settings.device)
    measured = Experiment(image_size=settings.image_size, batch_size=settings.batch_size, encoder_weights=None)
    images = make_synthetic(settings.batch_size, 1, 1, image_size=settings.image_size).train.to(device)
    model = unet_for(measured).to(device)

    def train() -> None:
        fit(model, images.images, images.masks, measured, make_generator(0), n_steps=settings.steps, progress=False)

    def score(strategy: str) -> float:
        work = lambda: select_queries(model, images.images, 1, measured, make_generator(0), STRATEGIES[strategy])  # noqa: E731
        return seconds(work, device) / len(images)

    step, once, dropout = seconds(train, device) / settings.steps, score("least_confidence"), score("mc_dropout")
    table_1, table_2 = Experiment(), Experiment(n_queries=20)
    runs = {}
    for strategy in TABLE_1:
        pool = dropout if strategy == "mc_dropout" else once
        queries = 0 if strategy in BASELINES else scored_images(table_1, strategy)
        runs[strategy] = (table_1.n_training_steps * step + queries * pool) / 3600
    partial = (table_2.n_training_steps * step + scored_images(table_2, "least_confidence") * once) / 3600
    row = {
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "step_s": step,
        "score_image_s": once,
        "score_image_by_dropout_s": dropout,
        "hours_of_a_run": runs | {"partial": partial},
        "hours_of_table_1_a_seed": sum(runs.values()),
        "hours_of_table_2_a_seed": TABLE_2_RUNS * partial,
    }
    for name, value in row.items():
        print(name, value)
    write_json(settings.out, {"machine": provenance(device), **row})


if __name__ == "__main__":
    main()
