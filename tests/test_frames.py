"""A slider over frames: each has its picture, text and description, and it moves in a page without a kernel."""

import base64
import io
import json
import re
from html import unescape

import pytest
from matplotlib.figure import Figure
from PIL import Image

from alutils.lab import frames
from alutils.lab.frames import show_frames


def draw(value):
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().bar([0], [value])
    return figure, f"the bar's <height> is {value}", 'A "bar".'


@pytest.fixture
def shown(monkeypatch):
    displayed = []
    monkeypatch.setattr(frames, "display", lambda bundle, metadata, raw: displayed.append((bundle, metadata)))
    show_frames(draw, "height", [1, 2, 3], start=2)
    return displayed[0]


def test_each_frame_has_a_picture_of_its_own_and_a_still_one_stands_where_html_is_not_shown(shown):
    bundle, metadata = shown
    assert metadata["image/jpeg"]["alt"] == 'the bar\'s <height> is 2. A "bar".'
    made = json.loads(unescape(re.search(r'data-frames="([^"]*)"', bundle["text/html"])[1]))
    assert [frame["value"] for frame in made] == ["1", "2", "3"]
    assert [frame["alt"] for frame in made] == [f'the bar\'s <height> is {n}. A "bar".' for n in (1, 2, 3)]
    pictures = [Image.open(io.BytesIO(base64.b64decode(frame["src"].split(",")[1]))) for frame in made]
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"])))
    assert {picture.size for picture in [*pictures, still]} == {(240, 160)}
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert "<script" not in bundle["text/html"] and bundle["text/html"].count("<img") == 1


@pytest.mark.parametrize("n", [1, 9])
def test_too_few_or_too_many_frames_are_refused(n):
    with pytest.raises(ValueError, match=f"values: a slider over x takes 2 to 8 frames, got {n}"):
        show_frames(draw, "x", range(n))
