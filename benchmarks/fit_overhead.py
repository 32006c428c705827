"""How much of `fit` is not the network: the share of its time outside forward, backward and optimizer step.

    python benchmarks/fit_overhead.py results/bench/fit_overhead.json

Python's profiler (cProfile) adds its own cost to the parts outside, so the share is an upper bound. On a CPU the
operations are synchronous, so the times are those of the work; the target is at most 15 %.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats

import torch

from alutils import Experiment, build_unet, fit, make_generator, make_synthetic
from alutils.records import provenance, write_json

INSIDE = {
    "forward": ("model.py", "forward"),
    "loss": ("training.py", "segmentation_loss"),
    "backward": ("_tensor.py", "backward"),
    "optimizer": ("optimizer.py", "wrapper"),
}
CASES = (  # image size, batch size, decoder
    (64, 8, (64, 48, 32, 24, 16)),
    (128, 32, (256, 128, 64, 32, 16)),
)


def profile_fit(size: int, batch_size: int, decoder_channels: tuple[int, ...], n_steps: int) -> dict[str, float]:
    splits = make_synthetic(2 * batch_size, 1, 1, image_size=size)
    experiment = Experiment(image_size=size, batch_size=batch_size)
    model = build_unet(encoder_weights=None, decoder_channels=decoder_channels)

    def train(n: int) -> None:
        fit(model, splits.train.images, splits.train.masks, experiment, make_generator(0), n_steps=n, progress=False)

    train(2)
    profiler = cProfile.Profile()
    profiler.runcall(train, n_steps)
    stats = pstats.Stats(profiler).stats
    total = max(cumulative for (_, _, name), (_, _, _, cumulative, _) in stats.items() if name == "fit")
    parts = {}
    for part, (file, function) in INSIDE.items():
        times = [row[3] for (path, _, name), row in stats.items() if name == function and path.endswith(f"/{file}")]
        parts[part] = max(times) / n_steps
    seconds = total / n_steps
    outside = 1 - sum(parts.values()) / seconds
    return {"image_size": size, "batch_size": batch_size, "step_s": seconds, **parts, "outside_percent": 100 * outside}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="JSON file to write")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    rows = [profile_fit(*case, settings.steps) for case in CASES]
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    write_json(settings.out, {"machine": provenance(), "cases": rows})


if __name__ == "__main__":
    main()
