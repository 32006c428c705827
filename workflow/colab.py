"""Give the first notebooks a button that opens them in Colab, and the cell that sets Colab up.

    python workflow/colab.py

The button leads to the address "Repository" in pyproject.toml's [project.urls]. Without one, there is neither button
nor cell: the script takes them out. It can be run any number of times; run `make notebooks` after it has changed
something. Not tried on Colab itself yet.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("00_tour", "04_image_al")
BUTTON, SET_UP = "colab-button", "colab-set-up"  # the cells' ids
NOT_ON_COLAB = ("segmentation-models-pytorch", "filelock", "anywidget", "lazy-loader")
"""Of our dependencies those that Colab lacks or has too old; anything more would make it ask for a restart."""


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in NOTEBOOKS:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        write(path, with_colab(notebook, name, project))


def write(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Write a notebook if that changes it."""
    text = nbformat.writes(notebook) + "\n"
    if text != path.read_text(encoding="utf-8"):
        path.write_text(text, encoding="utf-8")


def with_colab(notebook: nbformat.NotebookNode, name: str, project: dict[str, Any]) -> nbformat.NotebookNode:
    """The notebook with the button and the cell below its title, or without them.

    Args:
        notebook: whose first cell is the title.
        name: such as "04_image_al".
        project: the table of pyproject.toml.

    >>> title = nbformat.v4.new_markdown_cell("# 4", id="title")
    >>> notebook = nbformat.v4.new_notebook(cells=[title])
    >>> project = {"urls": {"Repository": "https://github.com/a/b"}, "dependencies": ["torch>=2", "filelock>=4.1,<5"]}
    >>> [cell.id for cell in with_colab(notebook, "04_image_al", project).cells]
    ['title', 'colab-button', 'colab-set-up']
    >>> [cell.id for cell in with_colab(notebook, "04_image_al", {"urls": {}, "dependencies": []}).cells]
    ['title']
    """
    notebook = nbformat.from_dict(notebook)
    there = {cell.id: cell for cell in notebook.cells if cell.id in (BUTTON, SET_UP)}
    first, *others = [cell for cell in notebook.cells if cell.id not in there]
    address = project["urls"].get("Repository", "").rstrip("/")
    wanted = colab_cells(address, name, project["dependencies"]) if address else []
    same = [cell.id in there and there[cell.id].source == cell.source for cell in wanted]  # then it stays as executed
    wanted = [there[cell.id] if kept else cell for cell, kept in zip(wanted, same, strict=True)]
    notebook.cells = [first, *wanted, *others]
    return notebook


def colab_cells(address: str, name: str, dependencies: list[str]) -> list[nbformat.NotebookNode]:
    """The button, and the guarded cell that fetches the project and what Colab lacks."""
    opened = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    button = f"[![Open this notebook in Colab]({badge})]({opened}/blob/main/notebooks/{name}.ipynb)"
    missing = [line for line in dependencies if re.split(r"[<>=]", line)[0] in NOT_ON_COLAB]
    code = f"""import sys

if "google.colab" in sys.modules:  # elsewhere this cell does nothing
    !git clone --quiet --depth 1 {address} /content/project
    %cd -q /content/project
    %pip install --quiet {" ".join(f"'{line}'" for line in missing)}"""
    return [nbformat.v4.new_markdown_cell(button, id=BUTTON), nbformat.v4.new_code_cell(code, id=SET_UP)]


if __name__ == "__main__":
    main()
