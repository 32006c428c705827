"""Figures that follow sliders, and stand still where there is no kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import ipywidgets
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from alutils.lab.figures import show_figure
from alutils.lab.frames import show_frames

Drawn = tuple[Figure, str, str]
"""What an explorer shows: a figure, the sentences below it (one per line), and what else there is to see in it."""


def is_interactive() -> bool:
    """Whether a person runs this cell in an editor: JupyterLab and VS Code name the cell, papermill does not."""
    shell = get_ipython()
    return hasattr(shell, "get_parent") and "cellId" in shell.get_parent().get("metadata", {})


class Explorer:
    """A figure, its numbers as text, and controls that redraw both. Put it at the end of a cell to display it.

    Where nobody can move a control (papermill, nbconvert, a web page), a line that says so takes the controls' place
    and no widget is made. The numbers are shown as text too, because JupyterLab drops alternative text.
    ``figure``, ``text`` and ``alt`` are what was drawn last.

    Args:
        draw: is called with the controls' values by name.
        controls: by name, a function that makes the widget from a ``value`` and a ``description``.
        values: the first value of each control.
    """

    def __init__(
        self, draw: Callable[..., Drawn], controls: Mapping[str, Callable[..., ipywidgets.ValueWidget]], **values: Any
    ) -> None:
        self._function, self._make, self._values = draw, controls, values
        self._outputs: tuple[DisplayHandle, DisplayHandle] | None = None
        self._draw()

    @cached_property
    def controls(self) -> dict[str, ipywidgets.ValueWidget]:
        """The widgets by name, made when they are first asked for."""
        wide = {"layout": {"width": "min(40rem, 95%)"}, "style": {"description_width": "5rem"}}  # enough to aim with
        widgets = {name: make(value=self._values[name], description=name, **wide) for name, make in self._make.items()}
        for name, widget in widgets.items():
            widget.observe(partial(self._moved, name), "value")
        return widgets

    def show(self, name: str, values: Sequence[Any]) -> None:
        """Display it with its controls; where nobody can move them, with a slider over frames of up to 8 ``values``.

        ``name`` is the control that the frames move; its first value is one of ``values``.
        """
        if is_interactive() or len(values) < 2:
            display(self)
        else:
            show_frames(
                lambda value: self._function(**self._values | {name: value}), name, values, start=self._values[name]
            )

    def _moved(self, name: str, change: Mapping[str, Any]) -> None:
        self._values[name] = change["new"]
        self._draw()

    def _draw(self) -> None:
        self.figure, self.text, description = self._function(**self._values)
        self.alt = f"{self.text} {description}"
        self._show()

    def _show(self) -> None:
        if self._outputs:
            show_figure(self.figure, self.alt, update=self._outputs[0])
            self._outputs[1].update({"text/plain": self.text}, raw=True)

    def _ipython_display_(self) -> None:
        self._outputs = display(display_id=True), display(display_id=True)
        self._show()
        controls = {"text/plain": f"Controls: {', '.join(self._make)}. Run this cell in JupyterLab to move them."}
        if is_interactive():
            controls = ipywidgets.VBox(list(self.controls.values()))._repr_mimebundle_() | controls
        display(controls, raw=True)
