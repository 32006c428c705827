"""How long it takes to select a query of 32 among 2,594 images once their features are there; no model runs.

    python benchmarks/selection.py

The target: under 2 s each, and under 10 s per run for what is computed once (ALS compares thumbnails one row per image
that is labelled or chosen, 1,280 rows in a run of the paper's length).
"""

from __future__ import annotations

import statistics

import torch
from frame import in_turns, parser, report

from alutils import make_generator
from alutils.data.superpixels import superpixels
from alutils.data.thumbnails import thumbnails
from alutils.queries.clustered import nearest_to_centres, typical_of_clusters
from alutils.queries.combined import _grey_levels, _mutual_information
from alutils.queries.geometry import distances_from, furthest_first, nearest_of, spread_out
from alutils.queries.similar import Similarity

N, N_LABELLED, DIMENSIONS, QUERY = 2594, 640, 512, 32


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=5)
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)
    features = torch.randn(N, DIMENSIONS, generator=make_generator(0))
    pool, labelled = features[N_LABELLED:], features[:N_LABELLED]
    images = torch.randint(0, 256, (N, 3, 64, 64), generator=make_generator(1), dtype=torch.uint8)
    pictures, levels = thumbnails(images, 16), _grey_levels(images)
    similarity = Similarity(pictures)
    once = {"als, 1,280 rows": 1280, "nath, 1,280 rows": 1280, "superpixels, 2,594 images": N // 20}
    works = {
        "kcentre": lambda: furthest_first(distances_from(pool), nearest_of(pool, labelled), QUERY),
        "badge": lambda: spread_out(pool[:, :16], QUERY, make_generator(2)),
        "kmeans": lambda: nearest_to_centres(pool, QUERY, make_generator(2)),
        "typiclust": lambda: typical_of_clusters(pool, labelled, QUERY, make_generator(2)),
        "als, 1,280 rows": lambda: similarity(pictures[0]),
        "nath, 1,280 rows": lambda: _mutual_information(levels, levels[0]),
        "superpixels, 2,594 images": lambda: superpixels(images[:20]),
    }
    times = in_turns(works, settings.repetitions, device=torch.device("cpu"))
    rows = []
    for name, taken in times.items():
        per, times_per_run = ("run", once[name]) if name in once else ("query", 1)
        rows.append({"what": name, "per": per, "seconds": statistics.median(taken) * times_per_run})
    report(settings.out, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
