"""Progress that reads well in JupyterLab, in an executed notebook and in a terminal."""

from __future__ import annotations

import io
from typing import Any

from IPython import get_ipython
from IPython.display import display
from tqdm import tqdm


class _NotebookLine(tqdm):
    """One line of text, rewritten in place: tqdm's own widget would be saved with a notebook as it was at its start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        super().__init__(*args, file=io.StringIO(), ncols=100, ascii=False, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        self._handle.update({"text/plain": str(self)}, raw=True)
        return True


def progress_bar(label: str, total: int, unit: str = "it", *, shown: bool = True) -> tqdm:
    """A bar with tqdm's interface for ``total`` steps, each called ``unit``; silent unless ``shown``.

    >>> with progress_bar("training", total=3, unit="step", shown=False) as bar:
    ...     for _ in range(3):
    ...         bar.update()
    """
    in_notebook = getattr(get_ipython(), "kernel", None) is not None
    bar = _NotebookLine if in_notebook and shown else tqdm
    return bar(total=total, desc=label, unit=unit, mininterval=0.5, disable=not shown)
