"""Procedural dermoscopy: pictures of lesions with exact masks, so that everything runs without any data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from alutils.data.rendering import SUBTYPES, LesionFactors, check_range, render_lesion
from alutils.data.splits import Split, Splits

_RARE_SHARES = np.array([0.08, 0.36, 0.20, 0.16, 0.20])  # of the kinds in SUBTYPES after the common one
_KNOB_RANGES = {
    "difficulty": (0, 2),
    "rare": (0, 1),
    "mean_area": (0.05, 0.5),
    "artefacts": (0, 3),
    "redundancy": (0, 1),
}


def _draw_factors(
    rng: np.random.Generator,
    difficulty: float,
    rare: float,
    mean_area: float,
    artefacts: float,
    skin_tones: tuple[float, float],
) -> LesionFactors:
    """Draw the factors of one picture; the arguments are those of :func:`make_synthetic`."""
    seed = int(rng.integers(2**32))
    is_rare = rng.random() < rare
    n_kinds = 5 if artefacts else 3  # the last two kinds are artefacts
    odds = _RARE_SHARES[:n_kinds] / _RARE_SHARES[:n_kinds].sum()
    subtype = SUBTYPES[1 + rng.choice(n_kinds, p=odds)] if is_rare else "common"
    # Most common lesions are easy (mean 0.22); rare ones lie around the middle (mean 0.5).
    hard = min(1.0, difficulty * (rng.beta(3, 3) if is_rare else rng.beta(1.3, 4.5)))
    share = (mean_area - 0.01) / 0.84  # mean of the beta distribution that is then stretched to 1 % ... 85 %
    centre_x, centre_y = np.clip(rng.normal(0.5, 0.09, 2), 0.25, 0.75).tolist()

    def count(usual: float, at_most: int) -> int:
        return min(at_most, int(rng.poisson(usual)))

    return LesionFactors(
        seed=seed,
        subtype=subtype,
        difficulty=hard,
        area=0.01 + 0.84 * rng.beta(1, 1 / share - 1),
        centre_x=centre_x,
        centre_y=centre_y,
        elongation=rng.uniform(0, 0.3),
        irregularity=rng.uniform(0.02, 0.12 + 0.2 * hard),
        contrast=0.9 * (0.35 / 0.9) ** hard * rng.uniform(0.75, 1.3),
        softness=0.02 + 0.1 * hard * rng.random(),
        variegation=rng.uniform(0, 0.5),
        network=rng.uniform(0.1, 0.6),
        skin_tone=skin_tones[0] + (skin_tones[1] - skin_tones[0]) * rng.beta(1, 2.2),
        patches=rng.random() ** (1.5 - hard),
        exposure=rng.uniform(0.75, 1.1),
        warmth=rng.uniform(-1, 1),
        shading=rng.uniform(0, 0.6),
        n_parts=int(rng.integers(2, 5)) if subtype == "multipart" else 1,
        vignette=rng.uniform(0.4, 0.9) if rng.random() < 0.15 * artefacts else 0.0,
        ruler=int(rng.random() < 0.25 * artefacts),
        n_freckles=count((5 + 20 * hard) * rng.random(), 100),
        n_ink=count(artefacts * (5 if subtype == "ink" else 0.4), 10),
        n_bubbles=count(artefacts * (0.5 + 4 * hard), 50),
        n_hairs=count(artefacts * (30 if subtype == "hairy" else 4 * rng.random() ** 2 + 8 * hard), 200),
    )


def _another_shot(factors: LesionFactors, number: int, rng: np.random.Generator) -> LesionFactors:
    return replace(
        factors,
        shot=number,
        centre_x=factors.centre_x + rng.uniform(-0.02, 0.02),
        centre_y=factors.centre_y + rng.uniform(-0.02, 0.02),
        area=factors.area * rng.uniform(0.95, 1.05),
        exposure=factors.exposure * rng.uniform(0.95, 1.05),
    )


def _make_split(
    name: str, n: int, size: int, seeds: tuple[int, int], draw: Callable[..., LesionFactors], redundancy: float = 0.0
) -> Split:
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    masks = torch.empty(n, 1, size, size, dtype=torch.uint8)
    rows, common = [], []
    for i in range(n):
        factors, rng = draw(np.random.default_rng((*seeds, i))), np.random.default_rng((*seeds, i, 1))
        if common and rng.random() < redundancy:
            factors = _another_shot(common[rng.integers(len(common))], i, rng)
        elif factors.subtype == "common":
            common.append(factors)
        image, mask = render_lesion(factors, size)
        images[i], masks[i, 0] = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)
        rows.append(asdict(factors))
    return Split(images, masks, tuple(f"synthetic_{name}_{i:04d}" for i in range(n)), pd.DataFrame(rows))


def make_synthetic(  # eleven parameters, because each is one property of the data set that a reader may change
    n_train: int = 400,
    n_val: int = 50,
    n_test: int = 100,
    *,
    image_size: int = 64,
    seed: int = 0,
    difficulty: float = 1.0,
    rare: float = 0.4,
    mean_area: float = 0.21,
    artefacts: float = 1.0,
    skin_tones: tuple[float, float] = (0.0, 1.0),
    redundancy: float = 0.0,
) -> Splits:
    """A synthetic stand-in for ISIC 2018: the same form, a similar distribution of areas, and exact masks.

    Most pictures are easy and alike. A minority is hard or of a rare kind (lighter than the skin, reddish, in several
    parts, under hairs, amid ink), so that it can pay to choose which ones to annotate. Each picture depends only on
    the arguments from ``image_size`` on, its split and its number in it. Other processors may round isolated pixels
    differently.

    Args:
        n_train, n_val, n_test: number of pictures, at least 1 each.
        image_size: height and width in pixels, 16 to 1024.
        seed: 0 to 2**32 - 1.
        difficulty: scales the difficulty of every picture, 0 (all easy) to 2; each stays between 0 and 1. A harder
            picture has less contrast, a softer and more irregular border, more patches, freckles, bubbles and hairs.
        rare: probability of a rare kind, 0 to 1.
        mean_area: mean share of lesion pixels, 0.05 to 0.5; the areas run from 0.01 to 0.85.
        artefacts: scales the number of hairs, bubbles, ink strokes, rulers and dark corners, 0 (none) to 3.
        skin_tones: the lightest and the darkest skin, between 0 (light) and 1 (dark).
        redundancy: probability, 0 to 1, that a training picture is a near-duplicate: another shot of an earlier lesion
            of the common kind, a little shifted and scaled, in other light, with other noise. It has that lesion's
            ``seed`` in ``Split.factors``, and ``shot`` above 0. The rare kinds become rarer in training alone.

    Returns:
        The splits; ``Split.factors`` has one row of :class:`LesionFactors` per image.

    Raises:
        ValueError: if an argument is out of range, or the pictures do not fit into the memory; the message names it.

    >>> splits = make_synthetic(3, 1, 1, image_size=32)
    >>> splits.train.images.shape, splits.train.ids[0]
    (torch.Size([3, 3, 32, 32]), 'synthetic_train_0000')
    """
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    for name, n in sizes.items():
        check_range(f"n_{name}", n, 1, 1_000_000, whole=True)
    check_range("image_size", image_size, 16, 1024, whole=True)
    check_range("seed", seed, 0, 2**32 - 1, whole=True)
    needed, memory = 4 * sum(sizes.values()) * image_size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:  # the system would kill the process after hours of drawing
        raise ValueError(
            f"n_train, n_val, n_test: the pictures take {needed / 2**30:.0f} GiB, and this machine has "
            f"{memory / 2**30:.0f} GiB of memory; take fewer, or a smaller image_size"
        )
    knobs = {"difficulty": difficulty, "rare": rare, "mean_area": mean_area, "artefacts": artefacts}
    for name, (low, high) in _KNOB_RANGES.items():
        check_range(name, {**knobs, "redundancy": redundancy}[name], low, high)
    if not isinstance(skin_tones, (tuple, list)) or len(skin_tones) != 2:
        raise ValueError(f"skin_tones must be two numbers, the lightest and the darkest, got {skin_tones!r}")
    check_range("skin_tones[0]", skin_tones[0], 0, 1)
    check_range("skin_tones[1]", skin_tones[1], skin_tones[0], 1)
    draw = partial(_draw_factors, **knobs, skin_tones=tuple(skin_tones))
    made = {
        name: _make_split(name, n, image_size, (seed, k), draw, redundancy if name == "train" else 0.0)
        for k, (name, n) in enumerate(sizes.items())
    }
    return Splits(**made)
