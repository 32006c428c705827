"""Copies of the notebooks whose trainings are brief, for nbval to run in minutes on any processor.

    python tests/brief.py FOLDER notebooks/*.ipynb

Each cell is run; only the default of the parameter ``overrides`` changes, where a notebook has it.
"""

import sys
from pathlib import Path

import papermill

BRIEF = "{epochs: 1, n_queries: 4}"

if __name__ == "__main__":
    folder, *paths = map(Path, sys.argv[1:])
    for path in paths:
        parameters = {"overrides": BRIEF} if "overrides" in papermill.inspect_notebook(path) else {}
        papermill.execute_notebook(path, folder / path.name, parameters, prepare_only=True, progress_bar=False)
