"""What a process gains that keeps the memory that the network frees (`alutils.system.device.keep_freed_memory`).

    python benchmarks/allocator.py

A training and a scoring with and without it, in processes of their own, in turns. The target: below 1 at 512 pixels.
"""

from __future__ import annotations

import resource
import statistics
from typing import Any

import torch
from frame import in_own_process, parser, peak_mib, report, seconds

from alutils import STRATEGIES, Experiment, build_unet, fit, make_generator, select_queries
from alutils.system import device as computing

CASES = {128: (32, 64), 512: (8, 16)}  # image size: batch size, images


def measure(keep: bool, size: int, threads: int) -> dict[str, Any]:
    """Seconds of a training and of a scoring, after one of each that does not count."""
    torch.set_num_threads(threads)
    if not keep:
        computing.keep_freed_memory = lambda: False
    batch_size, n = CASES[size]
    experiment = Experiment(image_size=size, batch_size=batch_size, epochs=1)
    generator, model = torch.Generator().manual_seed(0), build_unet(encoder_weights=None)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 2, (n, 1, size, size), generator=generator, dtype=torch.uint8)
    works = {
        "training": lambda: fit(model, images, masks, experiment, make_generator(0), progress=False),
        "scoring": lambda: select_queries(model, images, 1, experiment, make_generator(0), STRATEGIES["entropy"]),
    }
    found = {}
    for name, work in works.items():
        work()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found[f"{name}_s"] = seconds(work)
        found[f"{name}_page_faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return found


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=3)
    settings = options.parse_args()
    rows = []
    for size in CASES:
        turns = [
            [in_own_process(measure, keep, size, settings.threads) for keep in (True, False)]
            for _ in range(settings.repetitions)
        ]
        memory = [peak_mib(measure, keep, size, settings.threads) for keep in (True, False)]
        for name in ("training", "scoring"):
            with_it, without = ([turn[i][f"{name}_s"] for turn in turns] for i in (0, 1))
            rows.append(
                {
                    "size": size,
                    "what": name,
                    "with_s": statistics.median(with_it),
                    "without_s": statistics.median(without),
                    "with_over_without": statistics.median(a / b for a, b in zip(with_it, without, strict=True)),
                    "page_faults_with": turns[-1][0][f"{name}_page_faults"],
                    "page_faults_without": turns[-1][1][f"{name}_page_faults"],
                    "peak_mib_with": memory[0],
                    "peak_mib_without": memory[1],
                }
            )
    report(settings.out, rows, settings.device)


if __name__ == "__main__":
    main()
