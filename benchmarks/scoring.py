"""Scoring the pool by least confidence and by entropy, against the bare forward pass; and by pools of growing size.

    python benchmarks/scoring.py

The bare pass is the network in evaluation mode on resident, normalized images of the same precision and layout. The
targets: at most 1.05 of its time, and a time per image that does not depend on the pool's size (within 10 %).
"""

from __future__ import annotations

import statistics

import torch
from frame import Work, in_turns, median_ratio, parser, report

from alutils import STRATEGIES, Experiment, build_unet, make_generator, select_queries
from alutils.augment import normalize
from alutils.system.device import set_up_model

SIZES = {128: (32, 256), 512: (8, 32)}  # image size: training's batch size, images in the pool
SCALING_SIZE, SCALING = 128, (64, 128, 256, 512)


def pool_of(n: int, size: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8).to(device)


def score(model: torch.nn.Module, pool: torch.Tensor, experiment: Experiment, strategy: str) -> Work:
    return lambda: select_queries(model, pool, 1, experiment, make_generator(0), STRATEGIES[strategy])


def bare_pass(model: torch.nn.Module, pool: torch.Tensor, experiment: Experiment) -> Work:
    compute = set_up_model(model)
    x = normalize(pool, experiment).contiguous(memory_format=compute.layout)

    def work() -> None:
        model.eval()
        with torch.inference_mode(), compute.autocast():
            for batch in x.split(2 * experiment.batch_size):
                model(batch)

    return work


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=7)
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)
    device, rows = settings.device, []
    model = build_unet(encoder_weights=None).to(device)
    for size, (batch_size, n) in SIZES.items():
        experiment, pool = Experiment(image_size=size, batch_size=batch_size), pool_of(n, size, device)
        contenders = {name: score(model, pool, experiment, name) for name in ("least_confidence", "entropy")}
        contenders["bare pass"] = bare_pass(model, pool, experiment)
        times = in_turns(contenders, settings.repetitions, device=device)
        for name, taken in times.items():
            ratio = median_ratio(times, name, "bare pass")
            ms = 1000 * statistics.median(taken) / n
            rows.append({"size": size, "pool": n, "what": name, "ms_per_image": ms, "over_bare_pass": ratio})
    batch_size, _ = SIZES[SCALING_SIZE]
    experiment = Experiment(image_size=SCALING_SIZE, batch_size=batch_size)
    contenders = {
        str(n): score(model, pool_of(n, SCALING_SIZE, device), experiment, "least_confidence") for n in SCALING
    }
    times = in_turns(contenders, settings.repetitions, device=device)
    smallest = str(SCALING[0])
    for n in SCALING:
        ms = 1000 * statistics.median(times[str(n)]) / n
        growth = median_ratio(times, str(n), smallest) * SCALING[0] / n
        row = {"size": SCALING_SIZE, "pool": n, "what": "least_confidence", "ms_per_image": ms}
        rows.append({**row, "time_per_image_over_smallest_pool": growth})
    report(settings.out, rows, device)


if __name__ == "__main__":
    main()
