"""Monte Carlo dropout that encodes once against N full passes: time in turns in one process, and peak memory by N.

    python benchmarks/mc_dropout.py results/bench/mc_dropout.json --size 128

The targets: at most 0.65 of the time of the full passes for N = 20, and a peak memory that does not depend on N.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from alutils.config import Experiment
from alutils.model import build_unet
from alutils.records import provenance, write_json
from alutils.training import resolve_device, uses_bfloat16
from alutils.uncertainty import mc_dropout_maps

MIB = 2**20
MEMORY_SAMPLES = (5, 20, 80)


class FullPasses(nn.Module):
    """The same network without encode and decode, so that every sample is a pass through all of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


def network_and_images(settings: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    device = resolve_device(settings.device)
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch_size, 3, settings.size, settings.size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return build_unet(encoder_weights=None).to(device), images.to(device)


def seconds(model: nn.Module, images: torch.Tensor, experiment: Experiment, n_samples: int) -> float:
    start = time.perf_counter()
    maps = mc_dropout_maps(model, images, experiment, torch.Generator().manual_seed(0), n_samples)
    maps.std.sum().item()  # waits for the device
    return time.perf_counter() - start


def measure_time(settings: argparse.Namespace, precision: str) -> dict[str, object]:
    """Encoding once and full passes in turns, so that what else the machine does meets both."""
    model, images = network_and_images(settings)
    arms = {"encode_once": model, "full_passes": FullPasses(model)}
    experiment = Experiment(precision=precision)
    for arm in arms.values():
        seconds(arm, images, experiment, 2)
    times = {name: [] for name in arms}
    for _ in range(settings.repetitions):
        for name, arm in arms.items():
            times[name].append(seconds(arm, images, experiment, settings.samples))
    ratios = [once / full for once, full in zip(*times.values(), strict=True)]
    return {
        "precision": precision,
        **{f"{name}_s": round(statistics.median(values), 4) for name, values in times.items()},
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def measure_peak(settings: argparse.Namespace) -> int:
    """Bytes, of this process on a CPU and of its tensors on a GPU, so each N needs a process of its own."""
    model, images = network_and_images(settings)
    mc_dropout_maps(model, images, Experiment(), torch.Generator().manual_seed(0), settings.peak)
    if images.device.type == "cuda":
        return torch.cuda.max_memory_allocated(images.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_in_own_process(settings: argparse.Namespace, n_samples: int) -> int:
    options = ["--size", settings.size, "--batch-size", settings.batch_size, "--device", settings.device]
    command = [sys.executable, __file__, "--peak", n_samples, *options]
    return int(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", default="results/bench/mc_dropout.json", help="the JSON file to write")
    parser.add_argument("--size", type=int, default=128, help="side of the images, pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--samples", type=int, default=20, help="N of the timing")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)  # what a process of measure_peak is asked for
    settings = parser.parse_args()
    if settings.peak:
        print(measure_peak(settings))
        return

    # Memory first: a child's ru_maxrss starts at what its parent held, which has to be less than its own.
    peaks = [{"n_samples": n, "mib": round(peak_in_own_process(settings, n) / MIB, 1)} for n in MEMORY_SAMPLES]
    device = resolve_device(settings.device)
    product = "bfloat16" if uses_bfloat16(device) else "float32"
    times = [measure_time(settings, precision) for precision in dict.fromkeys(("float32", product))]

    print(f"{settings.batch_size} images of {settings.size} x {settings.size}, N = {settings.samples}")
    for row in times:
        print(
            f"  {row['precision']:9} encode once {row['encode_once_s']:8.3f} s   "
            f"full passes {row['full_passes_s']:8.3f} s   ratio {row['ratio']:.3f}"
        )
    print(f"peak memory ({product})")
    for row in peaks:
        print(f"  N = {row['n_samples']:3} {row['mib']:10.1f} MiB")
    result = {
        "machine": provenance(device),
        "size": settings.size,
        "batch_size": settings.batch_size,
        "n_samples": settings.samples,
        "product_precision": product,
        "time": times,
        "peak_memory": peaks,
    }
    write_json(settings.output, result)
    print(f"written to {settings.output}")


if __name__ == "__main__":
    main()
