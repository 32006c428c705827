"""What an annotation costs the expert, by six measures. Table II reports the first two."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours

from alutils.system.tensors import check_mask, check_planes, is_number

CURRENCIES = ("verify_percent", "positive_percent", "boundary_px", "regions", "vertices", "clicks")
"""The columns of :func:`annotation_cost`: six measures of cost."""

_DRAWN = {"boundary_px": "float64", "regions": "int64", "vertices": "int64", "clicks": "int64"}


def annotation_cost(
    truth: torch.Tensor, human: torch.Tensor, *, tolerance: float = 1.0, smallest_part: int = 0
) -> pd.DataFrame:
    """What it costs an expert to label the pixels ``human`` of each image: one row per image.

    - ``verify_percent``: the human's pixels, % of the image; Table II's "% of pixels to verify/annotate";
    - ``positive_percent``: the lesion pixels among them, % of the image; Table II's "% of annotated pixels";
    - ``boundary_px``: length, in pixels, of the lesion's outline where the pixels on both sides of it are the human's;
    - ``regions``: places to look at: parts of the human's pixels, each connected edge to edge;
    - ``vertices``: corners of the lines that draw this outline, simplified to ``tolerance`` (Douglas-Peucker);
    - ``clicks``: one per vertex, one to end each line, and one per region without an outline, to say whether it is
      lesion or background.

    Args:
        truth: uint8 (N, 1, H, W), 0 and 1. Only its values at the human's pixels matter, and where ``smallest_part``
            is above 1, the size of its parts.
        human: the pixels that the expert labels, bool or 0 and 1, the same shape.
        tolerance: how far a drawn line may be from the true outline, pixels.
        smallest_part: parts of the lesion with fewer pixels are taken for specks that nobody draws.

    Raises:
        ValueError: if an argument is not as above, or ``tolerance`` is not above 0.

    >>> truth = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    >>> truth[..., 2:6, 2:6] = 1
    >>> annotation_cost(truth, torch.ones_like(truth), tolerance=0.5)[["positive_percent", "clicks"]].iloc[0].tolist()
    [25.0, 5.0]
    """
    check_planes(truth=truth, human=human)
    if not is_number(tolerance) or not tolerance > 0:
        raise ValueError(f"tolerance must be above 0 pixels, got {tolerance!r}")
    check_mask("truth", truth)
    check_mask("human", human)
    human = human.bool()
    if smallest_part > 1:
        truth = without_specks(truth, smallest_part)
    pairs = zip(truth[:, 0].cpu().numpy(), human[:, 0].cpu().numpy(), strict=True)
    drawings = [_drawing(mask, pixels, tolerance) for mask, pixels in pairs]
    shares = {"verify_percent": human, "positive_percent": human & (truth == 1)}
    n_pixels = human.shape[2] * human.shape[3]
    percent = {name: 100 * pixels.flatten(1).sum(1).cpu().numpy() / n_pixels for name, pixels in shares.items()}
    return pd.DataFrame(percent).join(pd.DataFrame(drawings, columns=list(_DRAWN)).astype(_DRAWN))


def without_specks(masks: torch.Tensor, smallest_part: int) -> torch.Tensor:
    """The masks, uint8 (N, 1, H, W), without their edge-connected parts of fewer than ``smallest_part`` pixels."""
    kept = masks.cpu().numpy().copy()
    for mask in kept[:, 0]:
        parts, _ = ndimage.label(mask)
        mask[(np.bincount(parts.ravel()) < smallest_part)[parts]] = 0
    return torch.from_numpy(kept).to(masks.device)


def clicked_cost(costs: pd.DataFrame, clicks: torch.Tensor) -> pd.DataFrame:
    """The costs of labelling superpixels by one click each, where nothing is drawn.

    Args:
        costs: from :func:`annotation_cost`, of the pixels that were labelled.
        clicks: superpixels labelled in each image, int64 (N,).
    """
    number = clicks.numpy()
    return costs.assign(boundary_px=0.0, regions=number, vertices=0, clicks=number)


def average_cost(annotations: pd.DataFrame) -> pd.DataFrame:
    """The mean cost per image, with and without the cold start, which is annotated in full in every mode.

    Args:
        annotations: a run's table, with the columns of :func:`annotation_cost` and ``round``, 0 for the cold start.

    Returns:
        Three rows: "cold start", "queries (without cold start)", which is how Table II is read here, and "labelled set
        (with cold start)". The columns are ``images``, the mean of each measure, and ``total_clicks``.

    >>> table = pd.DataFrame({"round": [0, 1, 1], **{name: [9.0, 1.0, 3.0] for name in CURRENCIES}})
    >>> average_cost(table)[["images", "clicks", "total_clicks"]].to_numpy().tolist()
    [[1.0, 9.0, 9.0], [2.0, 2.0, 4.0], [3.0, 4.333333333333333, 13.0]]
    """
    queried = annotations["round"] > 0
    parts = {
        "cold start": annotations[~queried],
        "queries (without cold start)": annotations[queried],
        "labelled set (with cold start)": annotations,
    }
    rows = {
        name: {"images": len(part), **part[list(CURRENCIES)].mean(), "total_clicks": part["clicks"].sum()}
        for name, part in parts.items()
    }
    return pd.DataFrame(rows).T


def _drawing(truth: np.ndarray, human: np.ndarray, tolerance: float) -> tuple[float, int, int, int]:
    """What the expert draws in one image: the values for :data:`_DRAWN`."""
    regions, n_regions = ndimage.label(human)
    boundary, vertices, n_lines = 0.0, 0, 0
    outlined = np.zeros(n_regions + 1, dtype=bool)
    for line in _outlines(truth, human):
        closed = len(line) > 2 and np.array_equal(line[0], line[-1])
        boundary += np.hypot(*np.diff(line, axis=0).T).sum()
        vertices += len(approximate_polygon(line, tolerance)) - closed
        n_lines += 1
        outlined[regions[tuple(line[0].astype(int))]] = True
    without_outline = n_regions - int(outlined[1:].sum())
    return float(boundary), n_regions, vertices, vertices + n_lines + without_outline


def _outlines(truth: np.ndarray, human: np.ndarray) -> list[np.ndarray]:
    """The lesion's outline, cut where it leaves the human's pixels: lines of (row, column) points, in pixels.

    A point of the outline is halfway between a lesion pixel and a background pixel. It counts if both are the human's.
    """
    lesion_rows, lesion_columns = (np.flatnonzero(((truth == 1) & human).any(axis)) for axis in (1, 0))
    if not len(lesion_rows):
        return []
    top, left = max(lesion_rows[0] - 1, 0), max(lesion_columns[0] - 1, 0)
    outside_or_lesion = (truth == 1) | ~human  # so the truth elsewhere changes nothing
    part = outside_or_lesion[top : lesion_rows[-1] + 2, left : lesion_columns[-1] + 2]
    if min(part.shape) < 2:
        return []
    lines = []
    for points in find_contours(part, 0.5):
        points += (top, left)
        low, high = np.floor(points).astype(int), np.ceil(points).astype(int)
        inside = human[*low.T] & human[*high.T]
        if inside.all():
            lines.append(points)
            continue
        if np.array_equal(points[0], points[-1]):  # let a closed outline begin where it is not the human's
            start = int(inside.argmin())
            points, inside = np.roll(points[:-1], -start, axis=0), np.roll(inside[:-1], -start)
        cuts = np.flatnonzero(np.diff(inside)) + 1
        lines += [piece for piece, kept in zip(np.split(points, cuts), np.split(inside, cuts), strict=True) if kept[0]]
    return lines
