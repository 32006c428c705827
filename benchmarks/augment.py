"""The augmentation of section IV-D three ways: ours, kornia's, and torchvision's image by image.

    pip install -e '.[bench]' && python benchmarks/augment.py

torchvision's transforms draw one set of parameters for a whole batch, so to give each image its own they have to be
called once an image. kornia draws for each image, but from the global random state.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import kornia.augmentation as K
import torch
from frame import in_turns, median_ratio, parser, report
from torchvision import tv_tensors
from torchvision.transforms import v2

from alutils import Experiment, make_generator
from alutils.augment import augment

PAPER = Experiment()
CASES = ((8, 64), (32, 64), (32, 128), (8, 512))  # images, size


def ours(images: torch.Tensor, masks: torch.Tensor) -> Callable[[], object]:
    generator = make_generator(0)
    return lambda: augment(images, masks, PAPER, generator)


def kornia(images: torch.Tensor, masks: torch.Tensor) -> Callable[[], object]:
    transform = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomRotation(30.0, p=1.0),
        K.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, p=1.0),
        K.RandomGaussianBlur((5, 5), (0.01, 0.2), p=1.0),
        K.Normalize(torch.tensor(PAPER.normalize_mean), torch.tensor(PAPER.normalize_std)),
        data_keys=["input", "mask"],
    )
    return lambda: transform(images.float() / 255, masks.float())


def torchvision(images: torch.Tensor, masks: torch.Tensor) -> Callable[[], object]:
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomRotation(30, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.GaussianBlur(5, (0.01, 0.2)),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(PAPER.normalize_mean, PAPER.normalize_std),
        ]
    )

    def batch() -> object:
        pairs = [transform(tv_tensors.Image(x), tv_tensors.Mask(y)) for x, y in zip(images, masks, strict=True)]
        return [torch.stack(column) for column in zip(*pairs, strict=True)]

    return batch


def compare(n: int, size: int, repetitions: int) -> dict[str, float]:
    """Median seconds of a batch, the three in turns."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 2, (n, 1, size, size), dtype=torch.uint8, generator=generator)
    contenders = {make.__name__: make(images, masks) for make in (ours, kornia, torchvision)}
    times = in_turns(contenders, repetitions, warm_up=2)
    medians = {f"{name}_s": statistics.median(taken) for name, taken in times.items()}
    ratios = {f"{name}_over_ours": median_ratio(times, name, "ours") for name in ("kornia", "torchvision")}
    return {"images": n, "size": size, **medians, **ratios}


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=20)
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)
    report(settings.out, [compare(n, size, settings.repetitions) for n, size in CASES], settings.device)


if __name__ == "__main__":
    main()
