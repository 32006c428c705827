"""A slider over pictures drawn beforehand: it works in a web page, without a kernel."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from alutils.lab.figures import DPI

MOST = 8
"""The most frames of one slider: each is stored in the notebook's file."""

_PAGE = """<div class="frames" style="max-width: {width}px">
<img src="{src}" alt="{alt}" style="max-width: 100%">
<label>{name} <input type="range" min="0" max="{last}" value="{start}" style="width: 60%; vertical-align: middle"
data-frames="{frames}" oninput="const frame = JSON.parse(this.dataset.frames)[this.value];
const [image, value, text] = ['img', 'output', 'pre'].map(tag => this.closest('.frames').querySelector(tag));
image.src = frame.src; image.alt = frame.alt; value.value = frame.value; text.textContent = frame.text">
<output>{value}</output></label>
<pre style="white-space: pre-wrap">{text}</pre></div>"""


def show_frames(
    draw: Callable[[Any], tuple[Figure, str, str]], name: str, values: Sequence[Any], *, start: Any = None
) -> None:
    """Draw a figure for each value and show one of them, with a slider that changes it in the page itself.

    Where HTML is not shown (a PDF) or its script is not run (GitHub, an untrusted notebook), one picture stands still.

    Args:
        draw: takes a value and returns a figure, the text below it, and what else there is to see in it for those who
            cannot see it. All figures must have the same size.
        name: of what changes, beside the slider.
        values: 2 to 8 of them, in the slider's order.
        start: the value shown first; by default the first.

    Raises:
        ValueError: if there are fewer or more values, or ``start`` is none of them.

    >>> def draw(x):
    ...     return Figure(figsize=(2, 1)), f"x is {x}", "An empty figure."
    >>> show_frames(draw, "x", range(9))
    Traceback (most recent call last):
    ValueError: values: a slider over x takes 2 to 8 frames, got 9
    """
    if not 2 <= len(values) <= MOST:
        raise ValueError(f"values: a slider over {name} takes 2 to {MOST} frames, got {len(values)}")
    at = 0 if start is None else list(values).index(start)
    frames = []
    for i, value in enumerate(values):
        figure, text, description = draw(value)
        src = f"data:image/webp;base64,{base64.b64encode(_drawn(figure, 'webp', 50)).decode()}"
        alt = f"{text.removesuffix('.')}. {description}"
        frames.append({"src": src, "alt": alt, "value": f"{value}", "text": text})
        if i == at:
            still, width = _drawn(figure, "jpeg", 70), int(figure.get_figwidth() * DPI)
        plt.close(figure)
    page = {"name": name, "width": width, "last": len(values) - 1, "start": at, "frames": json.dumps(frames)}
    page = _PAGE.format_map({key: html.escape(str(shown)) for key, shown in (page | frames[at]).items()})
    bundle = {"text/html": page, "image/jpeg": base64.b64encode(still).decode(), "text/plain": frames[at]["text"]}
    display(bundle, metadata={"image/jpeg": {"alt": " ".join(frames[at]["alt"].split())}}, raw=True)


def _drawn(figure: Figure, kind: str, quality: int) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=DPI, pil_kwargs={"quality": quality})
    return picture.getvalue()
