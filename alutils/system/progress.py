"""Progress that reads well in JupyterLab, in an executed notebook and in a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import display
from tqdm import tqdm


class _NotebookLine(tqdm):
    """A tqdm whose bar is one line of text that is rewritten in place.

    tqdm's own notebook bar is a widget, which stays at its first state once the notebook is saved; this line is saved
    as it last was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._null = Path(os.devnull).open("w")  # noqa: SIM115 - closed with the bar
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        super().__init__(*args, file=self._null, ncols=100, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        self._handle.update({"text/plain": str(self)}, raw=True)
        return True

    def close(self) -> None:
        super().close()
        self._null.close()


def progress_bar(label: str, total: int, unit: str = "it", *, shown: bool = True) -> tqdm:
    """A progress bar (tqdm's interface: ``update(n)``, ``set_postfix(...)``, ``close()``, ``with``).

    Args:
        label: what is being done.
        total: how many ``unit`` there are to do.
        unit: the name of one.
        shown: False for a bar that shows nothing.

    >>> with progress_bar("training", total=3, unit="step", shown=False) as bar:
    ...     for _ in range(3):
    ...         bar.update()
    """
    in_notebook = getattr(get_ipython(), "kernel", None) is not None
    bar = _NotebookLine if in_notebook and shown else tqdm
    return bar(total=total, desc=label, unit=unit, mininterval=0.5, disable=not shown)
