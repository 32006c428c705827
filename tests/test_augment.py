"""The batched augmentation against torchvision's functions, image by image with the same parameters."""

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from alutils.augment import AugmentParameters, apply_parameters, augment, draw_parameters, normalize
from alutils.experiment import Experiment

PAPER = Experiment()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=6, height=40, width=40):
    g = generator(1)
    images = torch.randint(0, 256, (n, 3, height, width), generator=g, dtype=torch.uint8)
    masks = torch.zeros(n, 1, height, width, dtype=torch.uint8)
    masks[:, :, 8:30, 12:20] = 1
    return images, masks


def still(n, **changes):
    """Parameters that change nothing, except ``changes``."""
    ones, off = torch.ones(n), torch.zeros(n, dtype=torch.bool)
    values = {"angle": torch.zeros(n), "horizontal_flip": off, "vertical_flip": off}
    values |= {"brightness": ones, "contrast": ones, "saturation": ones, "blur_sigma": torch.full((n,), 0.01)}
    return AugmentParameters(**{**values, **changes})


def torchvision_reference(image, mask, p, i):
    x, y = image.float() / 255, mask.float()
    if p.horizontal_flip[i]:
        x, y = TF.hflip(x), TF.hflip(y)
    if p.vertical_flip[i]:
        x, y = TF.vflip(x), TF.vflip(y)
    x = TF.rotate(x, p.angle[i].item(), InterpolationMode.BILINEAR)
    y = TF.rotate(y, p.angle[i].item(), InterpolationMode.NEAREST)
    x = TF.adjust_brightness(x, p.brightness[i].item())
    x = TF.adjust_contrast(x, p.contrast[i].item())
    x = TF.adjust_saturation(x, p.saturation[i].item())
    return TF.gaussian_blur(x, [5, 5], [p.blur_sigma[i].item()] * 2), y


@pytest.mark.parametrize("size", [(40, 40), (32, 48)])
def test_every_image_is_what_torchvision_makes_of_it(size):
    images, masks = batch(6, *size)
    p = draw_parameters(6, Experiment(blur_sigma_max=2.0), generator())  # the paper's blur is hardly seen
    x, y = apply_parameters(images, masks, p)
    for i in range(len(images)):
        expected_x, expected_y = torchvision_reference(images[i], masks[i], p, i)
        # grid_sample and torchvision's rotation round coordinates differently: at a half-pixel a neighbour may be taken
        assert torch.allclose(x[i], expected_x, atol=2e-3), (x[i] - expected_x).abs().max()
        assert (y[i] != expected_y).float().mean() < 0.003


def test_flips_and_a_counter_clockwise_quarter_turn_move_image_and_mask_exactly():
    images, masks = batch(5)
    horizontal, vertical = (torch.tensor(which, dtype=bool) for which in ([0, 1, 0, 1, 0], [0, 0, 1, 1, 0]))
    angle = torch.tensor([0.0, 0, 0, 0, 90])
    x, y = apply_parameters(images, masks, still(5, horizontal_flip=horizontal, vertical_flip=vertical, angle=angle))
    moves = [
        *(lambda t, dims=dims: t.flip(dims) for dims in ([], [-1], [-2], [-2, -1])),
        lambda t: t.rot90(1, (-2, -1)),
    ]
    for i, move in enumerate(moves):
        assert torch.equal((x[i] * 255).round().byte(), move(images[i]))
        assert torch.equal(y[i], move(masks[i]))


def test_masks_stay_binary_and_several_channels_move_together():
    images, masks = batch(8)
    two = torch.cat([masks, 1 - masks], 1)
    _, y = apply_parameters(images, two, draw_parameters(8, PAPER, generator()))
    assert y.dtype == torch.uint8 and set(y.unique().tolist()) == {0, 1}
    assert int((y[:, 0] & y[:, 1]).sum()) == 0


def test_parameters_are_drawn_for_each_image_in_the_papers_ranges():
    p = draw_parameters(4000, PAPER, generator())
    for values, low, high in (
        (p.angle, -30, 30),
        (p.brightness, 0.8, 1.2),
        (p.contrast, 0.8, 1.2),
        (p.saturation, 0.8, 1.2),
        (p.blur_sigma, 0.01, 0.2),
    ):
        assert values.min() >= low and values.max() <= high
        assert values.min() < low + 0.02 * (high - low) and values.max() > high - 0.02 * (high - low)
    assert abs(p.horizontal_flip.float().mean() - 0.5) < 0.03
    assert abs(p.vertical_flip.float().mean() - 0.5) < 0.03
    assert len(p.angle.unique()) > 3900


def test_the_papers_blur_changes_no_8_bit_pixel():
    images, masks = batch(4)
    x, _ = apply_parameters(images, masks, still(4, blur_sigma=torch.full((4,), 0.2)))
    assert torch.equal((x * 255).round().byte(), images)


def test_same_generator_state_same_batch_and_the_global_state_is_left_alone():
    images, masks = batch()
    before = torch.get_rng_state()
    first = augment(images, masks, PAPER, generator(3))
    second = augment(images, masks, PAPER, generator(3))
    other = augment(images, masks, PAPER, generator(4))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_normalization_is_torchvisions():
    images, _ = batch()
    expected = TF.normalize(images.float() / 255, PAPER.normalize_mean, PAPER.normalize_std)
    assert torch.allclose(normalize(images, PAPER), expected, atol=1e-5)
