"""What it brings that Python does not look for garbage among what `import alutils` makes (the head of `alutils`).

    python benchmarks/startup.py

A process that imports alutils and ends, with and without it, in turns. The target: at most 0.8 of the time.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys

from frame import in_turns, median_ratio, parser, report

PROCESS = """
import gc, time
start = time.perf_counter()
import alutils
imported = time.perf_counter()
gc.collect()
print(imported - start, time.perf_counter() - imported)
"""
CONTENDERS = {"with": PROCESS, "without": "import gc\ngc.disable = gc.freeze = int\n" + PROCESS}


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=5)
    settings = options.parse_args()
    parts: dict[str, list[tuple[float, ...]]] = {name: [] for name in CONTENDERS}

    def live(name: str) -> None:
        said = subprocess.run([sys.executable, "-c", CONTENDERS[name]], capture_output=True, text=True, check=True)
        parts[name].append(tuple(map(float, said.stdout.split())))

    works = {name: functools.partial(live, name) for name in CONTENDERS}
    times = in_turns(works, settings.repetitions)
    rows = [
        {
            "collector kept away": name,
            "process_s": statistics.median(times[name]),
            "import_s": statistics.median(imported for imported, _ in parts[name]),
            "collection_ms": 1000 * statistics.median(collected for _, collected in parts[name]),
            "over_without": median_ratio(times, name, over="without"),
        }
        for name in CONTENDERS
    ]
    report(settings.out, rows, settings.device)


if __name__ == "__main__":
    main()
