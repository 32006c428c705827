"""Procedural dermoscopy: pictures of lesions with exact masks, so that everything runs without any data.

A picture is ``light * exp(-(skin + lesion + freckles + ink))``, the law of Beer and Lambert: each term in the exponent
is an optical density, the colour of a pigment times how much of it lies at that pixel. Bubbles, ruler and hairs are
painted on top. All lengths are in picture widths, so a picture keeps its composition at every size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache, partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from scipy.special import expit

from alutils.data import Split, Splits
from alutils.metrics import is_number

SUBTYPES = ("common", "hypopigmented", "reddish", "multipart", "hairy", "ink")
"""Kinds of picture: the common one, the rare lesions, and the rare artefacts."""
_RARE_SHARES = np.array([0.08, 0.36, 0.20, 0.16, 0.20])

# Optical density in red, green and blue of as much pigment as absorbs 1 in green.
MELANIN = np.array([0.45, 1.0, 1.36])
SKIN = np.array([0.65, 1.0, 1.20])
BLOOD = np.array([0.15, 1.0, 0.80])
BLUE_GREY = np.array([1.15, 1.0, 0.70])
INK = np.array([0.80, 1.0, 0.10])
BLEACH = np.array([-0.4, -0.7, -0.8])  # lighter than the skin around it: less pigment than there
PALE_SKIN = np.array([0.95, 0.87, 0.84])  # share of the light that the palest skin gives back
HAIR = np.array([0.16, 0.11, 0.09])

_LAYERS = ("shape", "texture", "skin", "light", "freckles", "ink", "bubbles", "ruler", "hairs", "camera")
_OVERSAMPLING = 4  # drawings are made this many times larger and averaged down, which smooths them


def _check(name: str, value: Any, low: float, high: float, kind: type = Real) -> None:
    if not is_number(value, whole=kind is Integral) or not low <= value <= high:
        what = "a whole number" if kind is Integral else "a number"
        raise ValueError(f"{name} must be {what} from {low} to {high}, got {value!r}")


def _factor(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class LesionFactors:
    """Everything that one picture is made from; the metadata of each field holds its ``"range"``.

    Change one factor with :func:`dataclasses.replace` and the rest of the picture stays as it is. A row of
    ``Split.factors`` makes its picture again: ``render_lesion(LesionFactors(**split.factors.iloc[0]))``.

    Args:
        seed: draws what the numbers below leave open, such as the course of the border and of the hairs.
        subtype: one of :data:`SUBTYPES`; the renderer takes the lesion's pigment from it.
        difficulty: what the other factors were drawn from, 0 easy to 1 hard; a record that the renderer does not read.
        area: share of lesion pixels, met exactly but for the rounding to whole pixels.
        centre_x, centre_y: centre of the (main) lesion, in picture widths from the upper left corner.
        elongation: 0 for a round lesion.
        irregularity: how far the border runs in and out, 0 for a smooth one.
        n_parts: the lesion and its satellites, which may touch it.
        contrast: typical optical density of the lesion in green; 0.7 halves the light, 0 cannot be seen.
        softness: width of the border, as a share of the lesion's radius.
        variegation: strength of the colour zones inside the lesion.
        network: strength of the pigment network inside the lesion.
        skin_tone: 0 light to 1 dark.
        patches: optical density of the red to brown patches of the skin.
        exposure, warmth: brightness and white balance (-1 bluish to 1 yellowish) of the camera.
        shading: difference of the light between two sides of the picture.
        vignette: darkness of the corners.
        n_freckles, n_ink, n_bubbles, n_hairs: number of brown spots, pen strokes, gel bubbles and hairs.
        ruler: 1 with ruler marks.

    Raises:
        ValueError: if a factor lies outside its range; the message names it.

    >>> from dataclasses import replace
    >>> faint = replace(LesionFactors(), contrast=0.1)
    >>> faint.contrast, faint.area
    (0.1, 0.21)
    """

    seed: int = _factor(0, 0, 2**32 - 1)
    subtype: str = "common"
    difficulty: float = _factor(0.0, 0, 1)
    area: float = _factor(0.21, 0.005, 0.95)
    centre_x: float = _factor(0.5, 0, 1)
    centre_y: float = _factor(0.5, 0, 1)
    elongation: float = _factor(0.15, 0, 0.5)
    irregularity: float = _factor(0.15, 0, 1)
    n_parts: int = _factor(1, 1, 5)
    contrast: float = _factor(0.7, 0, 2)
    softness: float = _factor(0.05, 0.005, 0.5)
    variegation: float = _factor(0.3, 0, 1)
    network: float = _factor(0.3, 0, 1)
    skin_tone: float = _factor(0.2, 0, 1)
    patches: float = _factor(0.0, 0, 1)
    exposure: float = _factor(0.95, 0.4, 1.3)
    warmth: float = _factor(0.0, -1, 1)
    shading: float = _factor(0.1, 0, 1)
    vignette: float = _factor(0.0, 0, 1)
    n_freckles: int = _factor(0, 0, 100)
    n_ink: int = _factor(0, 0, 10)
    n_bubbles: int = _factor(0, 0, 50)
    n_hairs: int = _factor(0, 0, 200)
    ruler: int = _factor(0, 0, 1)

    def __post_init__(self) -> None:
        if self.subtype not in SUBTYPES:
            raise ValueError(f"subtype must be one of {', '.join(SUBTYPES)}, got {self.subtype!r}")
        for item in fields(self):
            if "range" in item.metadata:
                kind = Integral if isinstance(item.default, int) else Real
                _check(item.name, getattr(self, item.name), *item.metadata["range"], kind)


# --- Tools that the layers share --------------------------------------------------------------------------------------


def _stream(factors: LesionFactors, layer: str) -> np.random.Generator:
    """A generator for one layer only, so that more hairs do not move the lesion."""
    return np.random.default_rng((factors.seed, _LAYERS.index(layer)))


@lru_cache(maxsize=8)
def _plane(size: int) -> np.ndarray:
    """Pixel centres as complex numbers x + iy, in picture widths, (size, size)."""
    line = (np.arange(size) + 0.5) / size
    return line[None, :] + 1j * line[:, None]


@lru_cache(maxsize=64)
def _weights(cells: int, size: int) -> np.ndarray:
    """Gaussian weights (size, cells + 4) from a coarse grid to the pixels; they keep a variance of 1 at 1."""
    nodes = (np.arange(cells + 4) - 1.5) / cells
    line = (np.arange(size) + 0.5) / size
    weights = np.exp(-0.5 * ((line[:, None] - nodes) * cells / 0.6) ** 2)
    return weights / np.sqrt((weights**2).sum(1, keepdims=True))


def _noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise of mean 0 and variance 1 with blots 1 / cells of a picture width wide, (size, size)."""
    weights = _weights(cells, size)
    return weights @ rng.standard_normal((cells + 4, cells + 4)) @ weights.T


def _paint(size: int, draw_on: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
    """How much of each pixel a drawing covers, 0 to 1, (size, size, 1)."""
    side = _OVERSAMPLING * size
    canvas = Image.new("L", (side, side))
    draw_on(ImageDraw.Draw(canvas), side)
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=float)[..., None] / 255


def _line(draw: ImageDraw.ImageDraw, side: int, points: np.ndarray, width: float, cover: float) -> None:
    """A line through complex ``points``; one thinner than a pixel of the canvas becomes paler instead."""
    pixels = width * side
    fill = round(255 * cover * min(1.0, pixels))
    draw.line((points * side).view(float).tolist(), fill=fill, width=max(1, round(pixels)))


def _disc(draw: ImageDraw.ImageDraw, side: int, centre: complex, radius: float, **style: int) -> None:
    x, y, r = centre.real * side, centre.imag * side, radius * side
    draw.ellipse((x - r, y - r, x + r, y + r), **style)


# --- The lesion -------------------------------------------------------------------------------------------------------


def _lesion_field(factors: LesionFactors, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The field q (0 at the centre, 1 on the border) and the mask q <= 1 of the wanted area, both (size, size).

    A part gives q = r / R(theta) with log R = Re(sum_k c_k exp(i k theta)), a polynomial of the direction exp(i theta).
    The lesion is the least q over its parts, scaled so that the wanted number of pixels has q <= 1. So the area is
    right whatever the shape, and wherever the picture cuts it off.
    """
    rng = _stream(factors, "shape")
    middle = complex(factors.centre_x, factors.centre_y)
    radius = np.sqrt(factors.area / np.pi)
    order = np.arange(3, 20)
    q = np.full((size, size), np.inf)
    for part in range(factors.n_parts):
        turn, away = np.exp(2j * np.pi * rng.random(2))
        reach, scale = rng.uniform([1.1, 0.35], [1.9, 0.8]) if part else (0.0, 1.0)
        waves = (rng.standard_normal(len(order)) + 1j * rng.standard_normal(len(order))) / order
        offset = _plane(size) - (middle + reach * radius * away)
        distance = np.abs(offset)
        coefficients = np.concatenate(([0, 0, factors.elongation * turn], factors.irregularity * waves))
        log_border = np.polyval(coefficients[::-1], offset / np.maximum(distance, 1e-9)).real
        q = np.minimum(q, distance / (scale * np.exp(log_border)))
    wanted = max(1, round(factors.area * size**2))
    level = np.partition(q, wanted - 1, axis=None)[wanted - 1]
    mask = q < level
    ties = np.flatnonzero(q == level)  # symmetric lesions have pixels at the same q: take as many as the area needs
    mask.flat[ties[: wanted - mask.sum()]] = True
    return q / level, mask


def _lesion(factors: LesionFactors, q: np.ndarray) -> np.ndarray:
    """Optical density of the lesion: soft border, darker core, colour zones and pigment network, (size, size, 3)."""
    rng, size = _stream(factors, "texture"), len(q)
    presence = expit((1 - q) / factors.softness)  # one half on the border of the mask
    core = rng.uniform(-0.2, 1.0) * (0.5 - np.minimum(q, 1))
    second = rng.choice([BLUE_GREY, BLOOD, MELANIN])
    zones = factors.variegation * (_noise(rng, 5, size) + 0.7 * _noise(rng, 12, size))
    share = factors.variegation * expit(4 * (_noise(rng, 4, size) - 0.5))[..., None]
    base = np.maximum(1 + core + zones - 0.5 * factors.network, 0.1)[..., None]
    lines = (
        1.5 * factors.network * np.exp(-((_noise(rng, 40, size) / 0.5) ** 2))[..., None]
    )  # where the noise is near 0
    pigment = {"hypopigmented": BLEACH, "reddish": BLOOD}.get(factors.subtype, MELANIN)
    if factors.subtype != "hypopigmented":
        pigment = pigment + share * (second - pigment)
    return factors.contrast * presence[..., None] * (base * pigment + lines * MELANIN)


# --- What surrounds it ------------------------------------------------------------------------------------------------


def _skin(factors: LesionFactors, size: int) -> np.ndarray:
    """Optical density of the skin: its tone, its grain and its patches, (size, size, 3)."""
    rng = _stream(factors, "skin")
    hue = BLOOD + rng.random() * (MELANIN - BLOOD)
    tone = factors.skin_tone + 0.03 * _noise(rng, 4, size) + 0.025 * _noise(rng, 40, size)
    patches = factors.patches * expit(5 * (_noise(rng, 4, size) - 0.8))
    return tone[..., None] * SKIN + patches[..., None] * hue


def _light(factors: LesionFactors, size: int) -> np.ndarray:
    """Light on each pixel: exposure, white balance, a brighter side and dark corners, (size, size, 3)."""
    rng = _stream(factors, "light")
    offset = _plane(size) - (0.5 + 0.5j)
    side = 1 + factors.shading * (offset * np.exp(2j * np.pi * rng.random())).real
    corners = 1 - factors.vignette * expit((np.abs(offset) - rng.uniform(0.52, 0.62)) / 0.03)
    colour = factors.exposure * (1 + 0.12 * factors.warmth * np.array([1, 0, -1]))
    return (side * corners)[..., None] * colour


def _freckles(factors: LesionFactors, size: int) -> np.ndarray:
    """Optical density of small brown spots all over the picture, (size, size, 3)."""
    rng = _stream(factors, "freckles")

    def draw_on(draw: ImageDraw.ImageDraw, side: int) -> None:
        for _ in range(factors.n_freckles):
            _disc(draw, side, complex(*rng.random(2)), rng.uniform(0.006, 0.028), fill=int(rng.integers(60, 256)))

    return 0.6 * _paint(size, draw_on) * MELANIN


def _ink(factors: LesionFactors, size: int) -> np.ndarray:
    """Optical density of a surgeon's pen strokes around the lesion, (size, size, 3)."""
    rng = _stream(factors, "ink")
    middle = complex(factors.centre_x, factors.centre_y)
    blots = np.maximum(0.8 + 0.4 * _noise(rng, 20, size), 0)[..., None]

    def draw_on(draw: ImageDraw.ImageDraw, side: int) -> None:
        for _ in range(factors.n_ink):
            start, length, away, width = rng.uniform([0, 0.1, 0.2, 0.02], [2 * np.pi, 1.0, 0.5, 0.08])
            reach = away + 0.01 * rng.standard_normal(12)
            arc = np.exp(1j * (start + np.linspace(0, length, 12)))
            _line(draw, side, middle + reach * arc, width, rng.uniform(0.4, 1.0))

    return 1.2 * blots * _paint(size, draw_on) * INK


def _bubbles(factors: LesionFactors, size: int) -> np.ndarray:
    """Cover of the bright rims and glints of gel bubbles, (size, size, 1)."""
    rng = _stream(factors, "bubbles")

    def draw_on(draw: ImageDraw.ImageDraw, side: int) -> None:
        for _ in range(factors.n_bubbles):
            centre, radius = complex(*rng.random(2)), rng.uniform(0.01, 0.06)
            _disc(draw, side, centre, radius, outline=90, width=max(1, side // 120))
            _disc(draw, side, centre - radius * (0.4 + 0.4j), radius / 5, fill=220)

    return _paint(size, draw_on)


def _ruler(factors: LesionFactors, size: int) -> np.ndarray:
    """Cover of a ruler along a side: a tick each 2 % of the picture, each fifth one longer, (size, size, 1)."""
    rng = _stream(factors, "ruler")
    start, turn = complex(*rng.uniform([-0.45, 0.35], [-0.2, 0.45])), np.exp(1j * rng.uniform(-0.2, 0.1))
    ticks, quarter = np.arange(0, rng.uniform(0.4, 0.7), 0.02), 1j ** rng.choice(4, p=[0.6, 0.15, 0.1, 0.15])

    def draw_on(draw: ImageDraw.ImageDraw, side: int) -> None:
        def stroke(points: np.ndarray) -> None:
            _line(draw, side, (0.5 + 0.5j) + quarter * (start + turn * points), 0.006, 0.9)

        stroke(ticks[[0, -1]])
        for i, along in enumerate(ticks):
            stroke(along - 1j * np.array([0, 0.045 if i % 5 == 0 else 0.025]))

    return _paint(size, draw_on)


def _hairs(factors: LesionFactors, size: int) -> np.ndarray:
    """Cover of curved hairs, (size, size, 1)."""
    rng = _stream(factors, "hairs")
    t = np.linspace(0, 1, 10)

    def draw_on(draw: ImageDraw.ImageDraw, side: int) -> None:
        for _ in range(factors.n_hairs):
            middle, way = complex(*rng.random(2)), np.exp(2j * np.pi * rng.random())
            length, bend, width, cover = rng.uniform([0.2, -0.6, 0.004, 0.5], [1.0, 0.6, 0.013, 0.95])
            _line(draw, side, middle + length * way * (t - 0.5 + 1j * bend * t * (1 - t)), width, cover)

    return _paint(size, draw_on)


def render_lesion(factors: LesionFactors, image_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """One picture and its mask; the same factors give the same composition at every size.

    Args:
        factors: what to draw.
        image_size: height and width in pixels, 16 to 1024.

    Returns:
        The picture, uint8 (size, size, 3), RGB, and the mask, uint8 (size, size), 1 on the lesion.

    Raises:
        ValueError: if ``image_size`` is out of range.

    >>> image, mask = render_lesion(LesionFactors(area=0.25), image_size=32)
    >>> image.shape, int(mask.sum()) == 32 * 32 // 4
    ((32, 32, 3), True)
    """
    _check("image_size", image_size, 16, 1024, Integral)
    size = int(image_size)
    q, mask = _lesion_field(factors, size)
    density = _skin(factors, size) + _lesion(factors, q)
    if factors.n_freckles:
        density += _freckles(factors, size)
    if factors.n_ink:
        density += _ink(factors, size)
    light = _light(factors, size)
    picture = light * PALE_SKIN * np.exp(-density)
    if factors.n_bubbles:
        picture += 0.5 * light * _bubbles(factors, size)
    if factors.ruler:
        picture *= 1 - 0.85 * _ruler(factors, size)
    if factors.n_hairs:
        picture += _hairs(factors, size) * (light * HAIR - picture)
    picture += 0.012 * _stream(factors, "camera").standard_normal(picture.shape)
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8), mask.astype(np.uint8)


# --- Many pictures ----------------------------------------------------------------------------------------------------


def _draw_factors(
    rng: np.random.Generator,
    difficulty: float,
    rare: float,
    mean_area: float,
    artefacts: float,
    skin_tones: tuple[float, float],
) -> LesionFactors:
    """Draw the factors of one picture; the arguments are the knobs of :func:`make_synthetic`."""
    seed = int(rng.integers(2**32))
    is_rare = rng.random() < rare
    n_kinds = 5 if artefacts else 3  # the last two kinds are artefacts
    odds = _RARE_SHARES[:n_kinds] / _RARE_SHARES[:n_kinds].sum()
    subtype = SUBTYPES[1 + rng.choice(n_kinds, p=odds)] if is_rare else "common"
    # Most common lesions are easy (mean 0.22); rare ones lie around the middle (mean 0.5).
    hard = min(1.0, difficulty * (rng.beta(3, 3) if is_rare else rng.beta(1.3, 4.5)))
    share = (mean_area - 0.01) / 0.84  # the mean of a beta distribution that is then stretched from 1 % to 85 %
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


def _check_memory(n: int, size: int) -> None:
    """Refuse more pictures than could ever be held: the system would kill the process after hours of painting."""
    needed, memory = 4 * n * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"n_train, n_val, n_test: {n} pictures of {size} x {size} pixels take {needed / 2**30:.0f} GiB, and this "
            f"machine has {memory / 2**30:.0f} GiB of memory; take fewer, or a smaller image_size"
        )


def _make_split(number: int, name: str, n: int, size: int, seed: int, draw: Callable[..., LesionFactors]) -> Split:
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    masks = torch.empty(n, 1, size, size, dtype=torch.uint8)
    rows = []
    for i in range(n):
        factors = draw(np.random.default_rng((seed, number, i)))
        image, mask = render_lesion(factors, size)
        images[i], masks[i, 0] = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)
        rows.append(asdict(factors))
    return Split(images, masks, tuple(f"synthetic_{name}_{i:04d}" for i in range(n)), pd.DataFrame(rows))


def make_synthetic(
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
) -> Splits:
    """Synthetic stand-in for ISIC 2018: the same form, an area distribution like its own, and exact masks.

    Most pictures are easy and alike; a minority is hard or of a rare kind (lighter than the skin, reddish, in several
    parts, under hairs, amid ink), so that choosing which to annotate can pay. Picture i of a split depends on ``seed``,
    the split and i alone: not on how many are made, nor on the process. Across processors at most isolated rounding
    may differ.

    Args:
        n_train, n_val, n_test: number of pictures, at least 1 each.
        image_size: height and width in pixels, 16 to 1024.
        seed: 0 to 2**32 - 1.
        difficulty: scales the difficulty of every picture, 0 (all easy) to 2; each stays between 0 and 1. A harder
            picture has less contrast, a softer and more irregular border, more patches, freckles, bubbles and hairs.
        rare: probability of a rare kind, 0 to 1.
        mean_area: mean share of lesion pixels, 0.05 to 0.5; the areas run from 0.01 to 0.85.
        artefacts: scales the number of hairs, bubbles, ink strokes, rulers and dark corners, 0 (none) to 3.
        skin_tones: lightest and darkest skin, between 0 (light) and 1 (dark).

    Returns:
        The splits; ``Split.factors`` has a row of :class:`LesionFactors` an image.

    Raises:
        ValueError: if an argument is out of range, or the pictures do not fit the machine's memory; it is named.

    >>> splits = make_synthetic(3, 1, 1, image_size=32)
    >>> splits.train.images.shape, splits.train.ids[0]
    (torch.Size([3, 3, 32, 32]), 'synthetic_train_0000')
    """
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    for name, n in sizes.items():
        _check(f"n_{name}", n, 1, 1_000_000, Integral)
    _check("image_size", image_size, 16, 1024, Integral)
    _check_memory(sum(sizes.values()), image_size)
    _check("seed", seed, 0, 2**32 - 1, Integral)
    _check("difficulty", difficulty, 0, 2)
    _check("rare", rare, 0, 1)
    _check("mean_area", mean_area, 0.05, 0.5)
    _check("artefacts", artefacts, 0, 3)
    if not isinstance(skin_tones, (tuple, list)) or len(skin_tones) != 2:
        raise ValueError(f"skin_tones must be two numbers, the lightest and the darkest, got {skin_tones!r}")
    lightest, darkest = skin_tones
    _check("skin_tones[0]", lightest, 0, 1)
    _check("skin_tones[1]", darkest, lightest, 1)
    draw = partial(
        _draw_factors,
        difficulty=difficulty,
        rare=rare,
        mean_area=mean_area,
        artefacts=artefacts,
        skin_tones=(lightest, darkest),
    )
    return Splits(**{name: _make_split(k, name, sizes[name], image_size, seed, draw) for k, name in enumerate(sizes)})
