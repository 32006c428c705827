"""Merging, costing and packing a query's masks against training on them once: 32 images of 512 x 512.

    python benchmarks/annotation.py

The predictions are the true masks blurred and shifted, so that each has a band along its border and is wrong in places.
The target is at most 3 % of one training step.
"""

from __future__ import annotations

import statistics

import torch
from frame import blurred, in_turns, parser, report

from alutils import Experiment, annotation_cost, build_unet, fit, make_generator, make_synthetic, merge_annotations
from alutils.data.packed import PackedMasks

SIZE, N, SHIFT = 512, 32, 12


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=5)
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)

    train = make_synthetic(N, 1, 1, image_size=SIZE).train
    probabilities = blurred(train.masks.roll(SHIFT, -1))
    experiment, model = Experiment(image_size=SIZE, batch_size=N), build_unet(encoder_weights=None)
    merged, human = merge_annotations(train.masks, probabilities, 0.25, 0.5)

    def train_once() -> None:
        fit(model, train.images, train.masks, experiment, make_generator(0), n_steps=1, progress=False)

    parts = {
        "merge_s": lambda: merge_annotations(train.masks, probabilities, 0.25, 0.5),
        "cost_s": lambda: annotation_cost(merged, human),
        "pack_s": lambda: (PackedMasks.pack(merged), PackedMasks.pack(human)),
        "train_once_s": train_once,
    }
    times = in_turns(parts, settings.repetitions)
    row = {name: statistics.median(taken) for name, taken in times.items()}
    row["share_percent"] = 100 * (row["merge_s"] + row["cost_s"] + row["pack_s"]) / row["train_once_s"]
    row["human_percent"] = 100 * human.float().mean().item()
    report(settings.out, [row], settings.device, image_size=SIZE, images=N)


if __name__ == "__main__":
    main()
