"""Training: images a second, against the bare model step and against the pipeline that one would write.

    python benchmarks/training.py                      # 128 and 512 pixels, from synthetic files
    python benchmarks/training.py --data data/isic2018 # with that folder's files as well

In turns, each in a process of its own, all on the same number of images:
- ours: `fit` on resident uint8 images, augmented in batches;
- the bare step: forward, loss, backward and optimizer on resident random tensors, in the same precision and layout;
- the pipeline: a DataLoader of 2 workers that decode with Pillow and augment image by image with torchvision, float32.

The bare step also in both precisions and memory layouts, to show what the product's choice is worth.

The targets on 2 cores with AVX512-BF16: at most 1.08 of the bare step, at least 2.5 times the pipeline's images a
second from files of 512 pixels and 5 times from larger ones.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from frame import Work, apart_in_turns, median_ratio, parser, report, seconds
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import tv_tensors
from torchvision.transforms import v2

from alutils import Experiment, build_unet, fit, make_generator, make_synthetic
from alutils.data.isic2018 import FOLDERS
from alutils.system.device import set_up_model
from alutils.training import segmentation_loss

NATIVE = ((1024, 768), (3024, 2016))  # the official training archive has 4.3 MB an image: most are rather the latter
SIZES = (128, 512)
MEMORY_SIZE = 128
N_FILES = 128


class Case(NamedTuple):
    """Batch size and images of one turn."""

    batch_size: int
    images: int


def case(size: int, device: torch.device) -> Case:
    """The paper's batch size, but on a CPU a smaller one for large images."""
    if device.type == "cuda":
        return Case(32, N_FILES)
    return Case(32, N_FILES) if size < 256 else Case(8, 16)


class Files(Dataset):
    """Images and masks in a folder, opened, made small and augmented one by one."""

    def __init__(self, folder: Path, size: int, experiment: Experiment, n: int) -> None:
        self.images, self.masks = (sorted(folder.rglob(pattern))[:n] for pattern in ("*.jpg", "*.png"))
        self.transform = v2.Compose(
            [
                v2.Resize((size, size), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomRotation(experiment.rotation, interpolation=v2.InterpolationMode.BILINEAR),
                v2.ColorJitter(experiment.brightness, experiment.contrast, experiment.saturation),
                v2.GaussianBlur(experiment.blur_kernel, (experiment.blur_sigma_min, experiment.blur_sigma_max)),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(experiment.normalize_mean, experiment.normalize_std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = Image.open(self.images[i]).convert("RGB"), Image.open(self.masks[i]).convert("L")
        x, y = self.transform(tv_tensors.Image(v2.functional.pil_to_tensor(image)), tv_tensors.Mask(mask))
        return x, (y.view(1, *x.shape[1:]) > 127).float()


def experiment_for(size: int, device: torch.device, precision: str = "auto") -> Experiment:
    return Experiment(image_size=size, batch_size=case(size, device).batch_size, epochs=1, precision=precision)


def ours(size: int, device: torch.device, precision: str = "auto") -> Work:
    experiment = experiment_for(size, device, precision)
    train = make_synthetic(case(size, device).images, 1, 1, image_size=size).train.to(device)
    model = build_unet(encoder_weights=None).to(device)
    return lambda: fit(model, train.images, train.masks, experiment, make_generator(0), progress=False)


def one_step(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, compute, optimizer: torch.optim.SGD) -> None:
    with compute.autocast():
        logits = model(x)
    loss = segmentation_loss(logits.float(), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def sgd(model: torch.nn.Module, experiment: Experiment) -> torch.optim.SGD:
    settings = {name: getattr(experiment, name) for name in ("momentum", "weight_decay")}
    return torch.optim.SGD(model.parameters(), lr=experiment.learning_rate, **settings)


def bare_step(size: int, device: torch.device, precision: str = "auto", layout: str | None = None) -> Work:
    """``layout``: a name in torch; None: the product's choice. The allocator is set as for ours."""
    experiment, (batch_size, n) = experiment_for(size, device, precision), case(size, device)
    model = build_unet(encoder_weights=None).to(device).train()
    compute, optimizer = set_up_model(model, experiment.precision), sgd(model, experiment)
    if layout:
        compute = compute._replace(layout=getattr(torch, layout))
        model.to(memory_format=compute.layout)
    x = torch.randn(batch_size, 3, size, size, device=device).contiguous(memory_format=compute.layout)
    y = torch.rand(batch_size, 1, size, size, device=device).round()

    def work() -> None:
        for _ in range(n // batch_size):
            one_step(model, x, y, compute, optimizer)

    return work


def pipeline(size: int, device: torch.device, folder: Path) -> Work:
    experiment, (batch_size, n) = experiment_for(size, device), case(size, device)
    model = build_unet(encoder_weights=None).to(device).train()
    optimizer = sgd(model, experiment)
    files = Files(folder, size, experiment, n)
    loader = DataLoader(files, batch_size, shuffle=True, num_workers=2, persistent_workers=True)

    def work() -> None:
        for x, y in loader:
            loss = segmentation_loss(model(x.to(device)), y.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return work


def layout_rows(size: int, device: torch.device, threads: int, repetitions: int) -> list[dict[str, Any]]:
    """The bare step in both precisions and memory layouts, from which the product's choice follows."""
    choices = list(itertools.product(("float32", "bfloat16"), ("contiguous_format", "channels_last")))
    makers = {", ".join(choice): (bare_step, size, device, *choice) for choice in choices}
    times, _ = apart_in_turns(makers, repetitions, threads=threads, device=device)
    batch_size, n = case(size, device)
    return [
        {
            "size": size,
            "batch_size": batch_size,
            "precision": precision,
            "layout": layout,
            "contender": "bare step",
            "step_s": statistics.median(times[name]) / (n // batch_size),
            "images_per_s": n / statistics.median(times[name]),
            "over_float32_contiguous": median_ratio(times, name, "float32, contiguous_format"),
        }
        for name, (precision, layout) in zip(makers, choices, strict=True)
    ]


def write_files(folder: Path, n: int, width: int, height: int) -> Path:
    """Synthetic pairs as JPEG and PNG files of any size."""
    pairs = make_synthetic(n, 1, 1, image_size=512).train
    for name, image, mask in zip(pairs.ids, pairs.images, pairs.masks, strict=True):
        picture, outline = v2.functional.to_pil_image(image), v2.functional.to_pil_image(255 * mask)
        picture.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg", quality=90)
        outline.resize((width, height), Image.Resampling.NEAREST).save(folder / f"{name}_segmentation.png")
    return folder


def training_folder(data: Path) -> Path:
    """A folder whose images and masks are those of the training set of ISIC 2018."""
    folder = Path(tempfile.mkdtemp())
    for name in FOLDERS["train"]:
        for path in sorted((data / name).iterdir()):
            if path.suffix in (".jpg", ".png") and "superpixels" not in path.name:
                (folder / path.name).symlink_to(path.resolve())
    return folder


def share_of_peak(size: int, device: torch.device, step_s: float) -> dict[str, float]:
    """The step's floating-point operations a second over those of a large product of bfloat16 matrices."""
    experiment = experiment_for(size, device)
    model = build_unet(encoder_weights=None).to(device).train()
    compute, optimizer = set_up_model(model, experiment.precision), sgd(model, experiment)
    x = torch.randn(experiment.batch_size, 3, size, size, device=device).contiguous(memory_format=compute.layout)
    with FlopCounterMode(display=False) as counter:
        one_step(model, x, x[:, :1].sigmoid().round(), compute, optimizer)
    n = 16384 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    peak = 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(10))
    rate = counter.get_total_flops() / step_s
    return {"tflops": rate / 1e12, "peak_tflops": peak / 1e12, "share_of_peak": rate / peak}


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--data", type=Path, help="a folder with ISIC 2018, for its files as well")
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, choices=SIZES)
    options.add_argument("--repetitions", type=int, default=5)
    settings = options.parse_args()
    device = settings.device
    folders = {
        f"{width} x {height}": write_files(Path(tempfile.mkdtemp()), N_FILES, width, height)
        for width, height in ((512, 512), *NATIVE)
    }
    if settings.data:
        folders["ISIC 2018"] = training_folder(settings.data)
    torch.set_num_threads(settings.threads)
    rows: list[dict[str, Any]] = []
    memory: dict[str, float] = {}
    for size in settings.sizes:
        batch_size, n = case(size, device)
        cases = [("auto", {})]
        if size == MEMORY_SIZE:
            cases = [("auto", {f"pipeline, {name}": path for name, path in folders.items()}), ("float32", {})]
        for precision, paths in cases:
            makers = {
                "ours": (ours, size, device, precision),
                "bare step": (bare_step, size, device, precision),
                **{name: (pipeline, size, device, path) for name, path in paths.items()},
            }
            times, peaks = apart_in_turns(makers, settings.repetitions, threads=settings.threads, device=device)
            if paths:
                memory = peaks
            for name, taken in times.items():
                own = precision if not name.startswith("pipeline") else "float32"
                rows.append(
                    {
                        "size": size,
                        "batch_size": batch_size,
                        "precision": own,
                        "contender": name,
                        "step_s": statistics.median(taken) / (n // batch_size),
                        "images_per_s": n / statistics.median(taken),
                        "ours_over_it": median_ratio(times, "ours", name),
                        "it_over_ours": median_ratio(times, name, "ours"),
                    }
                )
        rows += layout_rows(size, device, settings.threads, settings.repetitions)
    steps = {row["size"]: row["step_s"] for row in reversed(rows) if row["contender"] == "ours"}
    peaks = {str(size): share_of_peak(size, device, step) for size, step in steps.items()}
    print("peak memory, MiB:", {name: round(value) for name, value in memory.items()})
    print("share of the measured bfloat16 peak:", {size: round(one["share_of_peak"], 3) for size, one in peaks.items()})
    report(settings.out, rows, device, peak_memory_mib=memory, peak=peaks)


if __name__ == "__main__":
    main()
