"""Opening a folder of ISIC 2018: the first time, when every file is decoded, and from the cache.

    python benchmarks/open_data.py data/isic2018 results/bench/open_data.json

The target: under 0.5 s from the cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

from alutils import load_isic2018
from alutils.records import provenance, write_json


def seconds(folder: str, size: int, cache: str) -> tuple[float, int]:
    start = time.perf_counter()
    splits = load_isic2018(folder, size, cache_dir=cache)
    return time.perf_counter() - start, sum(map(len, (splits.train, splits.val, splits.test)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with ISIC 2018")
    parser.add_argument("out", help="JSON file to write")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512])
    settings = parser.parse_args()
    rows = []
    for size in settings.sizes:
        with tempfile.TemporaryDirectory() as cache:
            first, pairs = seconds(settings.data, size, cache)
            again = statistics.median(seconds(settings.data, size, cache)[0] for _ in range(5))
        rows.append({"size": size, "pairs": pairs, "decode_s": first, "open_s": again, "ratio": first / again})
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    write_json(settings.out, {"machine": provenance(), "cases": rows})


if __name__ == "__main__":
    main()
