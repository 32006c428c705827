"""Monte Carlo dropout that encodes once, against N full passes, against BaaL, and by N: time in turns, and peak memory.

    pip install -e '.[bench]' && python benchmarks/mc_dropout.py

BaaL (`patch_module`, then `predict_on_dataset`) repeats each image N times in memory and keeps all predictions; its
computation is float32. Each contender has a process of its own. The targets for N = 20: at most 0.65 of the time of
the full passes, 0.40 of BaaL's in float32 and 0.13 as the product runs it, and a fifth of its peak memory, whatever N.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from frame import Work, apart_in_turns, median_ratio, parser, report
from torch import nn
from torch.utils.data import Dataset

from alutils import Experiment, build_unet, make_generator
from alutils.augment import normalize
from alutils.samples import mc_dropout_std
from alutils.system.device import working_dtype

BATCH_SIZE = 32  # of images, the default of BaaL; ours is twice the training's
EXPERIMENT = Experiment(batch_size=BATCH_SIZE // 2)
N_SAMPLES, BY_N = 20, (5, 10, 20, 40, 80)


class FullPasses(nn.Module):
    """The same network without encode and decode, so that every sample is a pass through all of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


class Normalized(Dataset):
    """What BaaL predicts on."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = normalize(images, EXPERIMENT)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i], 0


def pictures(n: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def ours(n: int, size: int, device: torch.device, precision: str, n_samples: int = N_SAMPLES) -> Work:
    return _std(build_unet(encoder_weights=None), n, size, device, precision, n_samples)


def full_passes(n: int, size: int, device: torch.device, precision: str) -> Work:
    return _std(FullPasses(build_unet(encoder_weights=None)), n, size, device, precision, N_SAMPLES)


def _std(model: nn.Module, n: int, size: int, device: torch.device, precision: str, n_samples: int) -> Work:
    model, images = model.to(device), pictures(n, size).to(device)
    experiment = EXPERIMENT.model_copy(update={"precision": precision})
    return lambda: mc_dropout_std(model, images, experiment, make_generator(0), n_samples)


def baal(n: int, size: int, device: torch.device) -> Work:
    from baal.bayesian.dropout import patch_module
    from baal.modelwrapper import ModelWrapper, TrainingArgs

    model, images = patch_module(build_unet(encoder_weights=None)).to(device), Normalized(pictures(n, size))
    settings = TrainingArgs(batch_size=BATCH_SIZE, use_cuda=device.type == "cuda", workers=0)
    wrapper = ModelWrapper(model, settings)

    def work() -> None:
        predictions = wrapper.predict_on_dataset(images, iterations=N_SAMPLES, verbose=False)
        torch.from_numpy(predictions).sigmoid().std(-1, correction=0)

    return work


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--images", type=int, default=32)
    options.add_argument("--size", type=int, default=128, help="side of the images, pixels")
    options.add_argument("--repetitions", type=int, default=3)
    settings = options.parse_args()
    device, case = settings.device, (settings.images, settings.size, settings.device)
    product = str(working_dtype(device)).removeprefix("torch.")

    apart = partial(apart_in_turns, threads=settings.threads, device=device)
    makers = {f"ours, {precision}": (ours, *case, precision) for precision in dict.fromkeys(("float32", product))}
    makers |= {name.replace("ours", "full passes"): (full_passes, *make[1:]) for name, make in makers.items()}
    makers["BaaL, float32"] = (baal, *case)
    times, peaks = apart(makers, settings.repetitions)
    memory = {"BaaL, N = 20": peaks["BaaL, float32"]}
    rows = []
    for name, taken in times.items():
        row = {"what": name, "n_samples": N_SAMPLES, "seconds": statistics.median(taken)}
        if name.startswith("ours"):
            row["over_full_passes"] = median_ratio(times, name, name.replace("ours", "full passes"))
            row["over_baal"] = median_ratio(times, name, "BaaL, float32")
        rows.append(row)
    times, peaks = apart({str(n): (ours, *case, product, n) for n in BY_N}, settings.repetitions)
    memory |= {f"ours, N = {n}": peaks[str(n)] for n in BY_N}
    for n in BY_N:
        more = (statistics.median(times[str(n)]) - statistics.median(times[str(BY_N[0])])) / max(1, n - BY_N[0])
        row = {"what": f"ours, {product}", "n_samples": n, "seconds": statistics.median(times[str(n)])}
        rows.append(row | ({"s_per_further_sample": more} if n > BY_N[0] else {}))
    memory = {name: round(value, 1) for name, value in memory.items()}
    print("peak memory, MiB:", memory)
    report(settings.out, rows, device, images=settings.images, size=settings.size, peak_memory_mib=memory)


if __name__ == "__main__":
    main()
