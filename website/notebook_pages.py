"""What the site changes in a notebook before it becomes a page: folded plots, coloured code, no solutions."""

from __future__ import annotations

import re
from typing import Any

Notebook = dict[str, Any]

_SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.MULTILINE | re.DOTALL)
_HIDDEN = re.compile(r"^ *### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS\n?", re.MULTILINE | re.DOTALL)
_ANSWER = "*Your answer.*"


def fold_plots(notebook: Notebook) -> None:
    """Fold the code of each cell that draws a figure, below a line to open it by."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and re.search(r"\bshow_figure\(|\bplt\.", _source(cell)):
            tags = cell["metadata"].get("tags", [])
            cell["metadata"]["tags"] = [*tags, "hide-input"]


def colour_shown_code(notebook: Notebook) -> None:
    """Make the source that ``show_code`` printed a block of Python."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and re.match(r"(show_code\(.*\)\n?)+$", _source(cell)):
            printed = "".join("".join(output["text"]) for output in cell["outputs"] if "text" in output)
            shown = {"text/markdown": f"```python\n{printed}\n```", "text/plain": printed}
            cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": shown}]


def take_out_solutions(notebook: Notebook) -> None:
    """Leave gaps for code and answers, as in the students' version, and no hidden tests."""
    for cell in notebook["cells"]:
        code = _SOLUTION.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()", _source(cell))
        cell["source"] = _ANSWER if _is_answer(cell) else _HIDDEN.sub("", code)


def solutions(notebook: Notebook) -> str:
    """The solutions of an exercise as Markdown, below the headings of its parts."""
    text, titles = [], []  # of the parts since the last solution
    for cell in notebook["cells"]:
        source = _source(cell)
        if _is_answer(cell) or _SOLUTION.search(source):
            code = re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", source, flags=re.MULTILINE).rstrip()
            text += [*titles, source if _is_answer(cell) else f"```python\n{code}\n```"]
            titles = []
        elif cell["cell_type"] == "markdown":
            found = [f"#{line}" for line in re.findall(r"^#+ .*", source, re.MULTILINE)]
            titles = [line for line in titles if line.startswith("## ") or not found] + found
            titles += re.findall(r"^\*\*Question .*?(?=\n\n|\Z)", source, re.MULTILINE | re.DOTALL)
    return "\n\n".join(text)


def _is_answer(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "markdown" and cell["metadata"].get("nbgrader", {}).get("solution", False)


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])
