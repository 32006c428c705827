"""ISIC 2018 Task 1 in the folders of its official archives."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from alutils.data.description import fixed_folder, read_description
from alutils.data.pairs import open_pairs
from alutils.data.splits import Splits
from alutils.system.settings import DegenerateMasks

OFFICIAL_COUNTS = {"train": 2594, "val": 100, "test": 1000}  # images (section IV-A)

FOLDERS = {  # the images and the masks of each split, as in the official archives
    name: (fixed_folder(part.images), fixed_folder(part.masks))
    for name, part in read_description("isic2018").parts.items()
}


def load_isic2018(
    root: str | Path,
    image_size: int = 512,
    *,
    cache_dir: str | Path | None = None,
    degenerate_masks: DegenerateMasks | None = None,
    n_workers: int | None = None,
) -> Splits:
    """The images and masks of ISIC 2018 Task 1: :func:`~alutils.data.pairs.load_pairs` with its description.

    ``root`` is the folder with the six official folders, as :func:`alutils.download_isic2018` leaves it. A subset of
    the official files works too (:func:`isic2018_report`).

    >>> load_isic2018("no/such/folder")
    Traceback (most recent call last):
    alutils.system.checks.DataError: ISIC 2018 cannot be read from ...no/such/folder: ...
    """
    return open_pairs("isic2018", root, image_size, cache_dir, degenerate_masks, n_workers)


def isic2018_report(splits: Splits) -> pd.DataFrame:
    """How much of the official data set was found: one row per split, with the images found and the official count.

    >>> from alutils.data.synthetic import make_synthetic
    >>> isic2018_report(make_synthetic(2, 1, 1, image_size=32)).loc["val"].to_dict()
    {'images': 1, 'official': 100, 'complete': False}
    """
    found = [len(getattr(splits, name)) for name in OFFICIAL_COUNTS]
    report = pd.DataFrame(
        {"images": found, "official": OFFICIAL_COUNTS.values()}, index=pd.Index(OFFICIAL_COUNTS, name="split")
    )
    return report.assign(complete=report["images"] == report["official"])
