"""How many seeds it takes: for each claim of the paper the interval so far, and the seeds for the half-width aimed at.

    python workflow/seeds.py runs/quick results/quick

reads the first of the folders that has finished runs, and says of those before it why it does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alutils.report.claims import PLAN, judge
from alutils.report.endpoints import OVER_IMAGES
from alutils.report.statistics import MOST_SEEDS
from alutils.runs.collect import load_results
from alutils.runs.folder import RecordsError


def main(folders: list[str]) -> None:
    for folder in folders:
        try:
            table = judge(load_results(folder))
        except RecordsError as error:
            print(f"No runs to plan the seeds by: {error}")
            continue
        aims = ", ".join(f"{by} {aim}" for by, aim in PLAN["aim"].items())
        print(
            f"\nSeeds by the spread in {Path(folder)}, for intervals of +- ({aims}); at least {PLAN['fewest_seeds']}:\n"
        )
        if table.empty:
            print("none of the paper's claims has runs there")
            return
        half = (table["high"] - table["low"]) / 2
        shown = table.assign(interval=half.map("+- {:.1f}".format), needed=table["seeds_wanted"].astype(object))
        lacking = table["by"].isin(OVER_IMAGES).map({True: "more test images", False: f"over {MOST_SEEDS:,}"})
        lacking = lacking.mask(half.isna(), "a spread: more seeds")
        shown["needed"] = shown["needed"].where(table["seeds_wanted"].notna(), lacking)
        columns = ["difference", "by", "seeds", "interval", "needed"]
        print(shown[columns].drop_duplicates().set_index("difference").to_string())
        return


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
