"""Opening a folder of ISIC 2018: the first time, when every file is decoded, and from the cache.

    python benchmarks/open_data.py --data data/isic2018

The target: under 0.5 s from the cache.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial

from frame import parser, report, seconds

from alutils import load_isic2018


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--data", required=True, help="folder with ISIC 2018")
    options.add_argument("--sizes", type=int, nargs="+", default=[128, 512])
    settings = options.parse_args()
    rows = []
    for size in settings.sizes:
        with tempfile.TemporaryDirectory() as cache:
            load = partial(load_isic2018, settings.data, size, cache_dir=cache)
            first = seconds(load)
            again = statistics.median(seconds(load) for _ in range(5))
            splits = load()
        pairs = sum(map(len, (splits.train, splits.val, splits.test)))
        rows.append({"size": size, "pairs": pairs, "decode_s": first, "open_s": again, "ratio": first / again})
    report(settings.out, rows, settings.device)


if __name__ == "__main__":
    main()
