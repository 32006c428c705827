"""ISIC 2018 Task 1 in the folders of its official archives."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from alutils.data.folders import Layout
from alutils.data.pairs import open_pairs
from alutils.data.splits import Splits

OFFICIAL_COUNTS = {"train": 2594, "val": 100, "test": 1000}  # images (section IV-A)

FOLDERS = {  # the images and the masks of each split, as in the official archives
    "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
}

LAYOUT = Layout(
    name="ISIC 2018",
    folders=FOLDERS,
    mask_suffix="_segmentation",
    ignored="ISIC_*_superpixels.png",  # for Task 2 of other years; they lie beside the images
    remedy='alutils-download "{root}" fetches what is missing (13.8 GB in all) and unpacks official archives that lie '
    "there; or pass the folder that holds the six official folders",
)


def load_isic2018(
    root: str | Path,
    image_size: int = 512,
    *,
    cache_dir: str | Path | None = None,
    degenerate_masks: Literal["warn", "error", "keep"] = "warn",
    n_workers: int | None = None,
) -> Splits:
    """The images and masks of ISIC 2018 Task 1, squashed to squares as in section IV-D.

    The first call decodes every file and writes a cache, which later calls verify and map into memory. Its key is the
    names, the sizes and the first and last 4 KiB of all files, so that a copy of the data uses the same cache. Delete
    the cache (:func:`~alutils.data.cache.sweep_caches`) after a change that leaves all of these as they were.

    A subset of the official files works too (:func:`isic2018_report`). Pixels are taken as they are stored, the first
    frame of several, without transparency. Each opening warns of images that EXIF data turn while their masks are not
    turned, and of images in two splits whose pixels are all equal. JPEG files hold no checksum: damage that still
    decodes is not noticed.

    Args:
        root: the folder with the six official folders, as :func:`alutils.download_isic2018` leaves it. Images and masks
            are JPEG or PNG of any size; other files and superpixels are ignored.
        image_size: side of the squares in pixels, a multiple of 32 from 32 to 2048. Images are antialiased; a pixel of
            the mask is 1 where at least half of its area is lesion.
        cache_dir: folder of the cache; by default the environment variable ``ALUTILS_CACHE`` or, without it, the
            user's cache folder. It takes ``4 * image_size**2`` bytes per image: 3.9 GB for the full set at 512.
        degenerate_masks: what to do with masks that show, at their native size, no lesion or nothing else: "warn" loads
            them and names them in a warning, "error" refuses them, "keep" loads them.
        n_workers: threads that decode; by default one for each CPU core that this process may use.

    Returns:
        The three splits, each sorted by id. Writing to the tensors changes neither the cache nor the files.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if a folder is missing, or any file is missing, broken or not what it should be (one message counts
            each kind of problem, with its first ten files and the remedy), or the cache cannot be written.

    >>> load_isic2018("no/such/folder")
    Traceback (most recent call last):
    alutils.system.checks.DataError: ISIC 2018 cannot be read from ...no/such/folder: ...
    """
    return open_pairs(
        root, LAYOUT, image_size, cache_dir=cache_dir, degenerate_masks=degenerate_masks, n_workers=n_workers
    )


def isic2018_report(splits: Splits) -> pd.DataFrame:
    """How much of the official data set was found: one row per split, with the images found and the official count.

    >>> from alutils.data.synthetic import make_synthetic
    >>> isic2018_report(make_synthetic(2, 1, 1, image_size=32)).loc["val"].to_dict()
    {'images': 1, 'official': 100, 'complete': False}
    """
    found = [len(getattr(splits, name)) for name in OFFICIAL_COUNTS]
    report = pd.DataFrame(
        {"images": found, "official": OFFICIAL_COUNTS.values()}, index=pd.Index(FOLDERS, name="split")
    )
    return report.assign(complete=report["images"] == report["official"])
