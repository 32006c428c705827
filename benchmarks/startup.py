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

BEFORE = {"with": "", "without": "import gc; gc.disable = gc.freeze = int; "}
COLLECT = "; import gc, time; start = time.perf_counter(); gc.collect(); print(time.perf_counter() - start)"


def live(code: str) -> str:
    """What a process says that runs ``code`` and ends."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=5)
    settings = options.parse_args()
    codes = {name: f"{before}import alutils" for name, before in BEFORE.items()}
    times = in_turns({name: functools.partial(live, code) for name, code in codes.items()}, settings.repetitions)
    rows = [
        {
            "collector kept away": name,
            "process_s": statistics.median(times[name]),
            "over_without": median_ratio(times, name, over="without"),
            "later_collection_ms": 1000 * float(live(code + COLLECT)),
        }
        for name, code in codes.items()
    ]
    report(settings.out, rows, settings.device)


if __name__ == "__main__":
    main()
