"""One synthetic picture, drawn from its factors.

A picture is ``light * exp(-(skin + lesion + freckles + ink))``, the law of Beer and Lambert: each term in the exponent
is an optical density, the colour of a pigment times the amount of it at that pixel. Bubbles, ruler and hairs are
painted on top. All lengths are in picture widths, so a picture keeps its composition at every size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.special import expit

from alutils.system.tensors import is_number

# The kinds of picture: the common one, three rare lesions and two rare artefacts.
SUBTYPES = ("common", "hypopigmented", "reddish", "multipart", "hairy", "ink")

# Optical densities in red, green and blue of the amount of pigment that has a density of 1 in green.
MELANIN = np.array([0.45, 1.0, 1.36])
SKIN = np.array([0.65, 1.0, 1.20])
BLOOD = np.array([0.15, 1.0, 0.80])
BLUE_GREY = np.array([1.15, 1.0, 0.70])
INK = np.array([0.80, 1.0, 0.10])
BLEACH = np.array([-0.4, -0.7, -0.8])  # less pigment than in the skin around it, hence lighter
PALE_SKIN = np.array([0.95, 0.87, 0.84])  # share of the light that the palest skin reflects
HAIR = np.array([0.16, 0.11, 0.09])

_LAYERS = ("shape", "texture", "skin", "light", "freckles", "ink", "bubbles", "ruler", "hairs", "camera")
_OVERSAMPLING = 4  # drawings are made this many times larger and averaged down, which smooths them


def check_range(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """ValueError if ``value`` is no number from ``low`` to ``high``, or with ``whole`` no whole one."""
    if not is_number(value, whole=whole) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {what} from {low} to {high}, got {value!r}")


def _factor(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class LesionFactors:
    """Everything that one picture is made from; the metadata of each numeric field holds its ``"range"``.

    Change one factor with :func:`dataclasses.replace`, and the rest of the picture stays as it is. Each row of
    ``Split.factors`` makes its picture again: ``render_lesion(LesionFactors(**split.factors.iloc[0]))``.

    Args:
        seed: draws what the numbers below leave open, such as the course of the border and of the hairs.
        subtype: one of ``SUBTYPES``; it sets the lesion's pigment.
        difficulty: what the other factors were drawn from, 0 easy to 1 hard; it does not change the picture itself.
        area: share of lesion pixels, exact up to the rounding to whole pixels.
        centre_x, centre_y: centre of the lesion (of its main part), in picture widths from the upper left corner.
        elongation, irregularity: 0 for a round lesion, and for a smooth border.
        n_parts: number of parts: the main one and its satellites, which may touch it.
        contrast: typical optical density of the lesion in green; 0.7 halves the light, 0 makes it invisible.
        softness: width of the border, as a share of the lesion's radius.
        variegation, network: strength of the colour zones and of the pigment network inside the lesion.
        skin_tone: 0 light to 1 dark.
        patches: optical density of the red to brown patches of the skin.
        exposure, warmth: brightness and white balance (-1 bluish to 1 yellowish) of the camera.
        shading, vignette: difference of the light between two sides of the picture, and darkness of its corners.
        n_freckles, n_ink, n_bubbles, n_hairs: number of brown spots, pen strokes, gel bubbles and hairs.
        ruler: 1 for a ruler, 0 for none.
        shot: 0, or the number of another picture of the same lesion, which has its own camera noise.

    A factor outside its range is a ValueError that names it.

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
    shot: int = _factor(0, 0, 2**32 - 1)

    def __post_init__(self) -> None:
        if self.subtype not in SUBTYPES:
            raise ValueError(f"subtype must be one of {', '.join(SUBTYPES)}, got {self.subtype!r}")
        for item in fields(self):
            if "range" in item.metadata:
                whole = isinstance(item.default, int)
                check_range(item.name, getattr(self, item.name), *item.metadata["range"], whole=whole)


def render_lesion(factors: LesionFactors, image_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """One picture, uint8 (size, size, 3), RGB, and its mask, uint8 (size, size), 1 on the lesion.

    The same factors give the same composition at every ``image_size``, which is 16 to 1024 pixels (else ValueError).

    >>> image, mask = render_lesion(LesionFactors(area=0.25), image_size=32)
    >>> image.shape, int(mask.sum()) == 32 * 32 // 4
    ((32, 32, 3), True)
    """
    check_range("image_size", image_size, 16, 1024, whole=True)
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


def _stream(factors: LesionFactors, layer: str) -> np.random.Generator:
    """The generator of one layer: each has its own, so that more hairs do not move the lesion."""
    shot = (factors.shot,) if factors.shot and layer == "camera" else ()
    return np.random.default_rng((factors.seed, _LAYERS.index(layer), *shot))


@lru_cache(maxsize=8)
def _plane(size: int) -> np.ndarray:
    """Pixel centres as complex numbers x + iy, in picture widths, (size, size)."""
    line = (np.arange(size) + 0.5) / size
    return line[None, :] + 1j * line[:, None]


@lru_cache(maxsize=64)
def _weights(cells: int, size: int) -> np.ndarray:
    """Gaussian weights (size, cells + 4) from a coarse grid to the pixels; their squares add up to 1 at each pixel."""
    nodes = (np.arange(cells + 4) - 1.5) / cells
    line = (np.arange(size) + 0.5) / size
    weights = np.exp(-0.5 * ((line[:, None] - nodes) * cells / 0.6) ** 2)
    return weights / np.sqrt((weights**2).sum(1, keepdims=True))


def _noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise of mean 0 and variance 1, (size, size); its blots are 1 / cells of a picture width wide."""
    weights = _weights(cells, size)
    return weights @ rng.standard_normal((cells + 4, cells + 4)) @ weights.T


class _Canvas:
    """A drawing of discs and lines; lengths are in picture widths, points are complex numbers x + iy."""

    def __init__(self, size: int) -> None:
        self.side = _OVERSAMPLING * size
        self._image = Image.new("L", (self.side, self.side))
        self._draw = ImageDraw.Draw(self._image)

    def disc(self, centre: complex, radius: float, **style: int) -> None:
        x, y, r = centre.real * self.side, centre.imag * self.side, radius * self.side
        self._draw.ellipse((x - r, y - r, x + r, y + r), **style)

    def line(self, points: np.ndarray, width: float, cover: float) -> None:
        """A line through ``points``; where it is thinner than one pixel of the canvas, it is paler instead."""
        pixels = width * self.side
        fill = round(255 * cover * min(1.0, pixels))
        self._draw.line((points * self.side).view(float).tolist(), fill=fill, width=max(1, round(pixels)))

    def cover(self) -> np.ndarray:
        """How much of each pixel the drawing covers, 0 to 1, (size, size, 1)."""
        return np.asarray(self._image.reduce(_OVERSAMPLING), dtype=float)[..., None] / 255


def _lesion_field(factors: LesionFactors, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The field q (0 at the centre, 1 on the border) and the mask q <= 1, both (size, size)."""
    # Each part has q = r / R(theta) with log R = Re(sum_k c_k exp(i k theta)), a polynomial of exp(i theta). The least
    # q over the parts is scaled so that the wanted number of pixels has q <= 1, whatever the shape and the cut.
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
    ties = np.flatnonzero(q == level)  # symmetric lesions have several pixels at this q: take as many as are wanted
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
    near_0 = np.exp(-((_noise(rng, 40, size) / 0.5) ** 2))  # the contours of a noise make a net
    lines = 1.5 * factors.network * near_0[..., None]
    pigment = {"hypopigmented": BLEACH, "reddish": BLOOD}.get(factors.subtype, MELANIN)
    if factors.subtype != "hypopigmented":
        pigment = pigment + share * (second - pigment)
    return factors.contrast * presence[..., None] * (base * pigment + lines * MELANIN)


def _skin(factors: LesionFactors, size: int) -> np.ndarray:
    """Optical density of the skin: its tone, its grain and its patches, (size, size, 3)."""
    rng = _stream(factors, "skin")
    hue = BLOOD + rng.random() * (MELANIN - BLOOD)
    tone = factors.skin_tone + 0.03 * _noise(rng, 4, size) + 0.025 * _noise(rng, 40, size)
    patches = factors.patches * expit(5 * (_noise(rng, 4, size) - 0.8))
    return tone[..., None] * SKIN + patches[..., None] * hue


def _light(factors: LesionFactors, size: int) -> np.ndarray:
    """The light on each pixel: exposure, white balance, a brighter side and dark corners, (size, size, 3)."""
    rng = _stream(factors, "light")
    offset = _plane(size) - (0.5 + 0.5j)
    side = 1 + factors.shading * (offset * np.exp(2j * np.pi * rng.random())).real
    corners = 1 - factors.vignette * expit((np.abs(offset) - rng.uniform(0.52, 0.62)) / 0.03)
    colour = factors.exposure * (1 + 0.12 * factors.warmth * np.array([1, 0, -1]))
    return (side * corners)[..., None] * colour


def _freckles(factors: LesionFactors, size: int) -> np.ndarray:
    """Optical density of small brown spots anywhere in the picture, (size, size, 3)."""
    rng, canvas = _stream(factors, "freckles"), _Canvas(size)
    for _ in range(factors.n_freckles):
        canvas.disc(complex(*rng.random(2)), rng.uniform(0.006, 0.028), fill=int(rng.integers(60, 256)))
    return 0.6 * canvas.cover() * MELANIN


def _ink(factors: LesionFactors, size: int) -> np.ndarray:
    """Optical density of a surgeon's pen strokes around the lesion, (size, size, 3)."""
    rng, canvas = _stream(factors, "ink"), _Canvas(size)
    middle = complex(factors.centre_x, factors.centre_y)
    blots = np.maximum(0.8 + 0.4 * _noise(rng, 20, size), 0)[..., None]
    for _ in range(factors.n_ink):
        start, length, away, width = rng.uniform([0, 0.1, 0.2, 0.02], [2 * np.pi, 1.0, 0.5, 0.08])
        reach = away + 0.01 * rng.standard_normal(12)
        arc = np.exp(1j * (start + np.linspace(0, length, 12)))
        canvas.line(middle + reach * arc, width, rng.uniform(0.4, 1.0))
    return 1.2 * blots * canvas.cover() * INK


def _bubbles(factors: LesionFactors, size: int) -> np.ndarray:
    """Cover of the bright rims and glints of gel bubbles, (size, size, 1)."""
    rng, canvas = _stream(factors, "bubbles"), _Canvas(size)
    for _ in range(factors.n_bubbles):
        centre, radius = complex(*rng.random(2)), rng.uniform(0.01, 0.06)
        canvas.disc(centre, radius, outline=90, width=max(1, canvas.side // 120))
        canvas.disc(centre - radius * (0.4 + 0.4j), radius / 5, fill=220)
    return canvas.cover()


def _ruler(factors: LesionFactors, size: int) -> np.ndarray:
    """Cover of a ruler along one side, (size, size, 1): one tick every 2 % of the picture, every fifth one longer."""
    rng, canvas = _stream(factors, "ruler"), _Canvas(size)
    start, turn = complex(*rng.uniform([-0.45, 0.35], [-0.2, 0.45])), np.exp(1j * rng.uniform(-0.2, 0.1))
    ticks, quarter = np.arange(0, rng.uniform(0.4, 0.7), 0.02), 1j ** rng.choice(4, p=[0.6, 0.15, 0.1, 0.15])
    marks = [along - 1j * np.array([0, 0.025 if i % 5 else 0.045]) for i, along in enumerate(ticks)]
    for stroke in (ticks[[0, -1]], *marks):
        canvas.line((0.5 + 0.5j) + quarter * (start + turn * stroke), 0.006, 0.9)
    return canvas.cover()


def _hairs(factors: LesionFactors, size: int) -> np.ndarray:
    """Cover of curved hairs, (size, size, 1)."""
    rng, canvas = _stream(factors, "hairs"), _Canvas(size)
    t = np.linspace(0, 1, 10)
    for _ in range(factors.n_hairs):
        middle, way = complex(*rng.random(2)), np.exp(2j * np.pi * rng.random())
        length, bend, width, cover = rng.uniform([0.2, -0.6, 0.004, 0.5], [1.0, 0.6, 0.013, 0.95])
        canvas.line(middle + length * way * (t - 0.5 + 1j * bend * t * (1 - t)), width, cover)
    return canvas.cover()
