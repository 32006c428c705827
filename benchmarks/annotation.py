"""Merging, costing and packing a query's masks against training on them once: 32 images of 512 x 512.

    python benchmarks/annotation.py results/bench/annotation.json

The predictions are the true masks blurred and shifted, so that each has a band along its border and is wrong in places.
The target is at most 3 % of one training step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from alutils import Experiment, annotation_cost, build_unet, fit, make_generator, make_synthetic, merge_annotations
from alutils.packed import PackedMasks
from alutils.records import provenance, write_json

SIZE, N, BLUR, SHIFT = 512, 32, 41, 12


def seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)

    train = make_synthetic(N, 1, 1, image_size=SIZE).train
    shifted = train.masks.float().roll(SHIFT, -1)
    probabilities = F.avg_pool2d(shifted, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)
    experiment, model = Experiment(image_size=SIZE, batch_size=N), build_unet(encoder_weights=None)
    merged, human = merge_annotations(train.masks, probabilities, 0.25, 0.5)

    def train_once() -> None:
        fit(model, train.images, train.masks, experiment, make_generator(0), n_steps=1, progress=False)

    train_once()  # the first step also chooses the convolutions' algorithms
    parts = {
        "merge_s": lambda: merge_annotations(train.masks, probabilities, 0.25, 0.5),
        "cost_s": lambda: annotation_cost(merged, human),
        "pack_s": lambda: (PackedMasks.pack(merged), PackedMasks.pack(human)),
        "train_once_s": train_once,
    }
    row = {name: seconds(work, settings.repeats) for name, work in parts.items()}
    row["share_percent"] = 100 * (row["merge_s"] + row["cost_s"] + row["pack_s"]) / row["train_once_s"]
    row["human_percent"] = 100 * human.float().mean().item()
    print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    write_json(settings.out, {"machine": provenance(), "image_size": SIZE, "images": N, **row})


if __name__ == "__main__":
    main()
