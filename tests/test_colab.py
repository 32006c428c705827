"""The buttons that open notebooks in Colab: as pyproject.toml's address says, and none without an address."""

import json
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))
from colab import NOTEBOOKS, with_colab  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PATHS = [path for path in (ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS) if path.is_file()]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_committed_notebooks_are_as_the_address_says(path):
    notebook = nbformat.read(path, as_version=4)
    assert with_colab(notebook, path.stem, PROJECT) == notebook  # else: python workflow/colab.py


def test_no_other_notebook_has_a_button():
    others = [path for path in (ROOT / "notebooks").rglob("*.ipynb") if path not in PATHS]
    assert [path.name for path in others if "colab.research" in path.read_text()] == []


def test_with_an_address_there_is_one_button_and_one_guarded_cell_and_without_it_they_go():
    notebook = nbformat.read(ROOT / "notebooks" / "04_image_al.ipynb", as_version=4)
    cells = with_colab(notebook, "04_image_al", {**PROJECT, "urls": {}}).cells
    address = {**PROJECT, "urls": {"Repository": "https://github.com/someone/project/"}}
    once = with_colab(notebook, "04_image_al", address)
    nbformat.validate(once)
    once.cells[2].execution_count = 1
    assert with_colab(once, "04_image_al", address) == once
    button, set_up = once.cells[1:3]
    page = "https://colab.research.google.com/github/someone/project/blob/main/notebooks/04_image_al.ipynb"
    assert f"({page})" in button.source
    guard = set_up.source.splitlines().index('if "google.colab" in sys.modules:  # elsewhere this cell does nothing')
    assert [line for line in set_up.source.splitlines()[guard + 1 :] if not line.startswith("    ")] == []
    assert "git clone --quiet --depth 1 https://github.com/someone/project /content" in set_up.source
    assert with_colab(once, "04_image_al", {**PROJECT, "urls": {}}).cells == cells
    assert json.dumps(once).count("colab.research") == 2
