"""The data augmentation of section IV-D: batched, on the images' device, with parameters drawn for each image.

torchvision's transforms draw one set of parameters for a whole batch. kornia draws one per image, but from the global
random state, and it is slower (``benchmarks/augment.py`` compares the three). This module therefore draws and batches
itself; the tests compare it with torchvision's functions image by image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from alutils.data.thumbnails import LUMA
from alutils.experiment import Augmentation, Computing, Training
from alutils.system.device import to_device


class AugmentParameters(NamedTuple):
    """What is done to each image of a batch. Every tensor has shape (N,).

    The angle is counter-clockwise, in degrees; the flips, bool, come before the rotation. Brightness, contrast and
    saturation are factors, applied in this order; 1 leaves the image as it is. The blur's sigma is in pixels.
    """

    angle: torch.Tensor
    horizontal_flip: torch.Tensor
    vertical_flip: torch.Tensor
    brightness: torch.Tensor
    contrast: torch.Tensor
    saturation: torch.Tensor
    blur_sigma: torch.Tensor


def draw_parameters(n: int, augmentation: Augmentation, generator: torch.Generator) -> AugmentParameters:
    """Draw the parameters of ``n`` images: flips by their probability, all else uniformly in its range (section IV-D).

    The generator belongs to the CPU, so that a seed gives the same augmentation on every device.

    >>> parameters = draw_parameters(4, Augmentation(), torch.Generator().manual_seed(0))
    >>> bool(parameters.angle.abs().max() <= 30), parameters.brightness.shape
    (True, torch.Size([4]))
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    return AugmentParameters(
        angle=uniform(-augmentation.rotation, augmentation.rotation),
        horizontal_flip=uniform(0, 1) < augmentation.horizontal_flip,
        vertical_flip=uniform(0, 1) < augmentation.vertical_flip,
        brightness=uniform(1 - augmentation.brightness, 1 + augmentation.brightness),
        contrast=uniform(1 - augmentation.contrast, 1 + augmentation.contrast),
        saturation=uniform(1 - augmentation.saturation, 1 + augmentation.saturation),
        blur_sigma=uniform(augmentation.blur_sigma_min, augmentation.blur_sigma_max),
    )


def apply_parameters(
    images: torch.Tensor, masks: torch.Tensor, parameters: AugmentParameters, *, blur_kernel: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rotate, recolour and blur each image by its own parameters, and move its masks with it.

    Args:
        images: uint8, (N, 3, H, W).
        masks: uint8, (N, C, H, W), one or more masks per image, 0 and 1.
        parameters: of the N images.
        blur_kernel: side of the Gaussian kernel, pixels, odd.

    Returns:
        The images, float32, 0 to 1, and the masks, uint8, still 0 and 1 (rotated by nearest neighbour). Pixels that a
        rotation brings in from outside the picture are background, and black before they are recoloured.

    >>> images, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    >>> parameters = draw_parameters(2, Augmentation(), torch.Generator().manual_seed(0))
    >>> new_images, new_masks = apply_parameters(images, masks, parameters)
    >>> new_images.shape, new_masks.unique().tolist()
    (torch.Size([2, 3, 8, 8]), [0, 1])
    """
    p = AugmentParameters(*to_device(torch.stack([values.float() for values in parameters]), images.device))
    brightness, contrast, saturation = (values.view(-1, 1, 1, 1) for values in (p.brightness, p.contrast, p.saturation))
    grid = F.affine_grid(_inverse_motion(p, *images.shape[2:]), list(images.shape), align_corners=False)
    x = F.grid_sample(images.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    y = F.grid_sample(masks.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False).to(masks.dtype)
    x = (x * brightness).clamp(0, 1)
    x = _blend(x, _grey(x).mean((1, 2, 3), keepdim=True), contrast)
    x = _blend(x, _grey(x), saturation)
    return _blur(x, p.blur_sigma, blur_kernel), y


def normalize(images: torch.Tensor, computing: Computing) -> torch.Tensor:
    """What the network sees: ``(image - mean) / SD`` for each channel (section IV-D).

    Args:
        images: uint8, 0 to 255, or float, 0 to 1, shape (N, 3, H, W).
        computing: the settings ``normalize_mean`` and ``normalize_std``.

    >>> normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), Computing()).flatten().tolist()[0]
    2.24...
    """
    x = images if images.is_floating_point() else images.float() / 255
    mean = torch.tensor(computing.normalize_mean, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(computing.normalize_std, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def augment(
    images: torch.Tensor, masks: torch.Tensor, training: Training, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment a batch with newly drawn parameters and normalize it for the network.

    The arguments are those of :func:`apply_parameters` and :func:`draw_parameters`. It returns the images, float32,
    normalized, and the masks, uint8.

    >>> images, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    >>> augment(images, masks, Training(), torch.Generator().manual_seed(0))[0].shape
    torch.Size([2, 3, 8, 8])
    """
    parameters = draw_parameters(len(images), training, generator)
    x, y = apply_parameters(images, masks, parameters, blur_kernel=training.blur_kernel)
    return normalize(x, training), y


def _inverse_motion(p: AugmentParameters, height: int, width: int) -> torch.Tensor:
    """Where each output pixel comes from, affine (N, 2, 3), in coordinates of -1 to 1: rotation undone, then flips."""
    radians = torch.deg2rad(p.angle)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    flip_x, flip_y = 1 - 2 * p.horizontal_flip, 1 - 2 * p.vertical_flip
    x_row = torch.stack([cos * flip_x, -sin * flip_x * (height / width), zero], 1)
    y_row = torch.stack([sin * flip_y * (width / height), cos * flip_y, zero], 1)
    return torch.stack([x_row, y_row], 1)


def _grey(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _blend(images: torch.Tensor, others: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``others`` at factor 0, ``images`` at factor 1; a larger factor goes further in the same direction."""
    return torch.lerp(others, images, factor).clamp(0, 1)


def _blur(images: torch.Tensor, sigma: torch.Tensor, kernel: int) -> torch.Tensor:
    """Separable Gaussian blur with one standard deviation per image. Borders are reflected."""
    n, channels, height, width = images.shape
    reach = kernel // 2
    distance = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    x = F.pad(images, (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, weights[:, None, None, :], groups=n * channels)
    x = F.conv2d(x, weights[:, None, :, None], groups=n * channels)
    return x.view(n, channels, height, width)
