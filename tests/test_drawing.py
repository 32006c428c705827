"""What a person draws: only in the band, counted, replayed, saved, read again; and the widget's answers."""

import contextlib
import io
import itertools
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from IPython.display import Image
from matplotlib.path import Path as Polygon
from PIL import Image as PILImage

from alutils.data.splits import Split
from alutils.lab import annotator as annotator_module
from alutils.lab.annotator import Annotator
from alutils.lab.drawing import (
    LONGEST_PAUSE,
    Drawing,
    Request,
    drawing_table,
    file_stem,
    find_drawing,
    make_requests,
    read_drawing,
    replay,
)
from alutils.system.checks import DataError

untimed = settings(deadline=None)
SQUARE = [(1.5, 2.5), (4.5, 2.5), (4.5, 5.5), (1.5, 5.5)]  # columns 2 to 4, rows 3 to 5


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make_request(id="a", where=None, start=None, size=8, **options):
    image = np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)
    where = np.ones((1, size, size), bool) if where is None else where
    return Request(id, image, where, np.zeros((1, size, size), np.uint8) if start is None else start, **options)


def left_half(size=8):
    return np.broadcast_to(np.arange(size) < size // 2, (1, size, size))


corners = st.lists(st.tuples(st.floats(-30, 40), st.floats(-30, 40)), min_size=0, max_size=9)
radii = st.none() | st.tuples(st.floats(0.01, 5), st.floats(0.01, 5))
strokes_drawn = st.lists(st.tuples(corners, st.booleans(), radii), max_size=5)
masks = hnp.arrays(bool, (1, 8, 8))


def draw(drawing, points, erase, radius):
    return drawing.lasso(points, erase=erase) if radius is None else drawing.brush(points, radius, erase=erase)


# Strokes


def test_a_lasso_is_matplotlibs_polygon():
    rng, size = np.random.default_rng(0), 64
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    points = (rng.uniform(20, 44, 2) + rng.uniform(5, 40, (12, 1)) * np.c_[np.cos(angles), np.sin(angles)]).round(2)
    drawing = Drawing(make_request(size=size))
    drawing.lasso(points)
    y, x = np.mgrid[:size, :size]
    inside = Polygon(np.r_[points, points[:1]], closed=True).contains_points(np.c_[x.ravel(), y.ravel()])
    assert 0.05 < inside.mean() < 0.95
    np.testing.assert_array_equal(drawing.mask[0], inside.reshape(size, size))


@pytest.mark.parametrize("radius", [0.5, 3, (6.2, 2.5), (40, 1)])
def test_a_brush_is_the_union_of_discs_along_its_way(radius):
    size, rng = 64, np.random.default_rng(0)
    points = rng.uniform(-15, 80, (6, 2)).round(2)
    drawing = Drawing(make_request(size=size))
    changed = drawing.brush(points, radius)
    y, x = np.mgrid[:size, :size]
    rx, ry = np.broadcast_to(radius, 2)
    discs, larger = np.zeros((size, size), bool), np.zeros((size, size), bool)
    for a, b in itertools.pairwise(points):
        for cx, cy in np.linspace(a, b, 2000):
            far = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
            discs |= far <= 1
            larger |= far <= 1.01  # the discs between those tried
    mask = drawing.mask[0]
    assert 0 < changed == mask.sum() < size * size
    assert not (discs & ~mask).any() and not (mask & ~larger).any()


def test_a_click_with_a_brush_is_one_disc_and_an_eraser_takes_it_back():
    drawing = Drawing(make_request(where=left_half()))
    assert drawing.brush([(3, 3)], 1) == 4  # a plus of five pixels, one of them beyond the band
    assert drawing.brush([(3, 4)], 0.4, erase=True) == 1
    expected = np.zeros((8, 8), bool)
    expected[[2, 3, 3], [3, 2, 3]] = True
    np.testing.assert_array_equal(drawing.mask[0], expected)
    assert drawing.brush([], 1) == drawing.brush([(30, 30)], 1) == 0 and drawing.n_strokes == 2


@untimed
@given(masks, masks, strokes_drawn)
def test_nothing_changes_outside_of_the_band_and_the_strokes_replay_to_the_mask(where, start, strokes):
    request = make_request(where=where, start=start)
    drawing = Drawing(request)
    for points, erase, radius in strokes:
        before = drawing.mask.copy()
        changed = draw(drawing, points, erase, radius)
        assert changed == (before != drawing.mask).sum()
        assert not ((drawing.mask != before) & (drawing.mask == erase)).any()  # adding only adds, erasing only erases
        np.testing.assert_array_equal(drawing.mask[~where], start[~where])
    np.testing.assert_array_equal(replay(request, drawing.strokes)[-1], drawing.mask)


@untimed
@given(masks, masks, strokes_drawn)
def test_undo_goes_back_stroke_by_stroke_redo_forward_and_clear_to_the_start(where, start, strokes):
    drawing = Drawing(make_request(where=where, start=start))
    history = [drawing.mask]
    for stroke in strokes:
        if draw(drawing, *stroke):
            history.append(drawing.mask)
    drawn, effort = drawing.strokes, (drawing.n_strokes, drawing.pixels_changed)
    for take_back in ([drawing.undo] * len(history), [drawing.clear]):  # one undo more than there are strokes
        for mask, step in zip([*history[-2::-1], start], take_back, strict=False):
            step()
            np.testing.assert_array_equal(drawing.mask, start if step == drawing.clear else mask)
        assert drawing.strokes == [] and drawing.can_redo == (len(history) > 1)
        for mask in [*history[1:], history[-1]]:
            drawing.redo()
            np.testing.assert_array_equal(drawing.mask, mask)
        assert drawing.strokes == drawn and (drawing.n_strokes, drawing.pixels_changed) == effort


def test_a_stroke_after_undo_ends_what_can_be_redone():
    drawing = Drawing(make_request())
    for x in (1, 3, 5):
        drawing.brush([(x, 1)], 0.4)
    drawing.undo()
    drawing.undo()
    drawing.brush([(7, 1)], 0.4)
    drawing.redo()
    assert np.flatnonzero(drawing.mask[0, 1]).tolist() == [1, 7] and not drawing.can_redo
    drawing.undo()
    drawing.undo()
    drawing.redo()
    drawing.redo()
    assert np.flatnonzero(drawing.mask[0, 1]).tolist() == [1, 7]


def test_what_is_taken_back_counts_as_effort_and_what_changes_nothing_does_not():
    drawing = Drawing(make_request(where=left_half()))
    marked = drawing.lasso(SQUARE)
    drawing.undo()
    assert drawing.lasso(SQUARE) == marked == 6
    for slip in ([(4.5, 0), (7.5, 0), (7.5, 7.5)], SQUARE, SQUARE[:2]):  # outside of the band, no change, no area
        assert drawing.lasso(slip) == 0
    assert (drawing.n_strokes, drawing.pixels_changed) == (2, 12)


def test_time_counts_while_somebody_is_at_work():
    clock = Clock()
    drawing = Drawing(make_request(), clock=clock)
    clock.now += 500  # nobody has begun
    drawing.touch()
    clock.now += 4
    drawing.lasso(SQUARE)
    clock.now += 7
    drawing.undo()
    assert drawing.seconds == 11
    clock.now += 3600  # lunch
    drawing.touch()
    assert drawing.seconds == 11 + LONGEST_PAUSE
    clock.now += 2
    drawing.pause()
    clock.now += 20  # another image
    drawing.touch()
    assert drawing.seconds == 13 + LONGEST_PAUSE


# Requests


NAMES = ["a b", "..", "../a", "/etc/passwd", "a\\b", ".hidden", "a\n", "a\0", "50 %", "é1"]
MASK, IMAGE = torch.zeros(1, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=10) | st.sampled_from(NAMES))
def test_every_id_has_a_file_of_its_own_in_the_folder(id):
    stem = file_stem(id)
    assert unquote(stem) == id and re.fullmatch(r"[\w%-][\w%.-]*", stem)
    if re.fullmatch(r"[\w-][\w.-]*", id):
        assert stem == id


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Request("", IMAGE, MASK, MASK), "cannot name a file"),
        (lambda: Request("a", MASK, MASK, MASK), "image must be"),
        (lambda: Request("a", IMAGE, MASK[:, :7], MASK), "where must be"),
        (lambda: Request("a", IMAGE, MASK, MASK + 2), "start must be"),
        (lambda: Drawing(make_request()).lasso([(0, 0), (1, float("nan")), (2, 2)]), "corners must be"),
        (lambda: Drawing(make_request()).brush([(0, float("inf"))], 1), "corners must be"),
        (lambda: Drawing(make_request()).brush([(0, 0)], 0), "radius must be .* got 0"),
        (lambda: Annotator([], "nowhere"), "no image"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_the_models_labels_are_there_outside_of_the_band_and_background_within():
    images, truth = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    split, band = Split(images, truth, ("a", "b", "c")), torch.from_numpy(left_half().copy())[None]
    (request,) = make_requests(split, torch.tensor([2]), band, torch.ones(1, 1, 8, 8, dtype=torch.uint8), tau_u=0.25)
    assert (request.id, request.mode, request.n_decided, request.tau_u) == ("c", "band", 32, 0.25)
    np.testing.assert_array_equal(request.start, ~left_half())
    (request,) = make_requests(split, torch.tensor([0]))
    assert request.mode == "full" and request.n_decided == 64 and not request.start.any()


# Files


def save_one(folder, id="a", **options):
    clock = Clock()
    drawing = Drawing(make_request(id, where=left_half(), start=~left_half(), **options), clock=clock)
    drawing.lasso(SQUARE)
    clock.now += 3.5
    drawing.lasso([(2.5, 0), (9, 0), (9, 9), (2.5, 9)], erase=True)
    drawing.save(folder)
    return drawing


def test_a_drawing_is_a_png_and_a_json_that_anybody_can_read(tmp_path):
    id = "../ISIC_0.1"
    drawing = save_one(tmp_path / "drawn", id, tau_u=0.25)
    record, picture = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]
    assert (record.suffix, picture.suffix) == (".json", ".png") and record.stem == picture.stem == file_stem(id)
    pixels = np.asarray(PILImage.open(picture))
    expected = np.zeros((8, 8), np.uint8)
    expected[3:6, 2], expected[:, 4:] = 255, 255
    np.testing.assert_array_equal(pixels, expected)
    says = json.loads(record.read_text())
    names = ("id", "mode", "seconds", "n_strokes", "pixels_decided", "pixels_changed", "tau_u")
    assert [says[name] for name in names] == [id, "band", 3.5, 2, 32, 9 - 0 - 3 + 3, 0.25]
    assert says["strokes"][0] == {"corners": [list(corner) for corner in SQUARE], "erase": False}
    found, mask = read_drawing(tmp_path / "drawn", id)
    np.testing.assert_array_equal(mask, drawing.mask)
    np.testing.assert_array_equal(replay(drawing.request, found.strokes)[-1], mask)
    assert drawing_table(tmp_path / "drawn")["image_id"].tolist() == [id]


def test_a_drawing_saved_before_there_was_a_brush_is_read_as_it_was(tmp_path):
    drawing = save_one(tmp_path)
    says = json.loads((tmp_path / "a.json").read_text())
    assert [sorted(stroke) for stroke in says["strokes"]] == [["corners", "erase"]] * 2  # what was written then
    again = Drawing(drawing.request, saved=find_drawing(tmp_path, drawing.request))
    again.brush([(0, 0), (3, 7)], (1.5, 0.7))
    again.save(tmp_path)
    record, mask = find_drawing(tmp_path, drawing.request)
    assert [stroke.radius for stroke in record.strokes] == [None, None, (1.5, 0.7)]
    np.testing.assert_array_equal(replay(drawing.request, record.strokes)[-1], mask)
    assert (mask != drawing.mask).any()


def test_a_saved_drawing_can_be_gone_on_with(tmp_path):
    request = save_one(tmp_path).request
    record, mask = find_drawing(tmp_path, request)
    clock = Clock()
    again = Drawing(request, clock=clock, saved=(record, mask))
    np.testing.assert_array_equal(again.mask, mask)
    again.touch()
    clock.now += 2
    again.undo()
    again.save(tmp_path)
    record, mask = find_drawing(tmp_path, request)
    assert (record.seconds, record.n_strokes, len(record.strokes)) == (5.5, 2, 1)
    assert mask[0, 3:6, 2:4].all()


def test_a_drawing_that_is_opened_with_another_start_is_shown_and_saved_as_it_was(tmp_path):
    proposed, background = (
        make_request(where=left_half(), start=start) for start in (np.ones((1, 8, 8)), ~left_half())
    )
    for first, other, n_strokes in ((proposed, background, 0), (proposed, background, 1), (background, proposed, 1)):
        drawing = Drawing(first)
        if n_strokes:
            drawing.brush([(1, 1)], 1, erase=first is proposed)
        drawing.save(tmp_path)
        for request in (other, first, other):
            again = Drawing(request, saved=find_drawing(tmp_path, request))
            np.testing.assert_array_equal(again.mask, drawing.mask)
            assert again.saved and again.n_strokes == n_strokes
            again.save(tmp_path)


def test_a_drawing_for_other_pixels_is_not_the_one_asked_for(tmp_path):
    save_one(tmp_path)
    assert find_drawing(tmp_path, make_request(where=left_half(), start=~left_half())) is not None
    assert find_drawing(tmp_path, make_request()) is None
    assert find_drawing(tmp_path, make_request("b")) is None


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".png", lambda path: path.unlink()),
        (".json", lambda path: path.write_bytes(b"\xff\xfe")),
        (".json", lambda path: path.write_text(path.read_text().replace('"id":"a"', '"id":"b"'))),
    ],
)
def test_damaged_files_are_refused_by_name_with_the_remedy(tmp_path, suffix, damage):
    request = save_one(tmp_path).request
    damage(tmp_path / f"a{suffix}")
    for read in (lambda: read_drawing(tmp_path, "a"), lambda: find_drawing(tmp_path, request)):
        with pytest.raises(DataError, match=r"a\.json and its \.png cannot be used: .*draw the image again"):
            read()


def test_no_flipped_bit_of_the_picture_changes_the_mask_unnoticed(tmp_path):
    drawing, path = save_one(tmp_path), tmp_path / "a.png"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with contextlib.suppress(DataError):
            np.testing.assert_array_equal(read_drawing(tmp_path, "a")[1], drawing.mask)


def test_the_table_has_what_was_recorded_and_dice_where_the_truth_is_known(tmp_path):
    truth = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    truth[0, 0, 3:6, 2:5] = 1
    split = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), truth, ("b", "a"))
    for id in ("b", "c"):
        drawing = Drawing(make_request(id))
        drawing.lasso(SQUARE)
        drawing.save(tmp_path)
    save_one(tmp_path)
    table = drawing_table(tmp_path, split)
    assert table[["image_id", "mode", "pixels_decided"]].values.tolist() == [
        ["a", "band", 32], ["b", "full", 64], ["c", "full", 64],
    ]  # fmt: skip
    np.testing.assert_array_equal(table["dice"], [0, 1, np.nan])
    assert table["seconds"][0] == 3.5 and drawing_table(tmp_path)["dice"].isna().all()


# The widget, without a screen


def make_annotator(folder, n=3):
    requests = [make_request(f"image{i}", where=left_half(64), start=~left_half(64), size=64) for i in range(n)]
    return Annotator(requests, folder)


def press(annotator, act, **more):
    """What the browser sends; the answer."""
    annotator.panel._handle_custom_msg({"do": act, **more}, [])
    return annotator.panel.view


WIDE, NARROW = ([[10.5, 10.5], [x, 10.5], [x, 20.5], [10.5, 20.5]] for x in (50.5, 20.5))


def test_what_the_browser_sends_draws_takes_back_saves_and_opens_the_next(tmp_path):
    annotator = make_annotator(tmp_path)
    panel, first = annotator.panel, annotator.drawing
    view = press(annotator, "stroke", id=0.25, corners=WIDE, erase=False)
    assert first.n_strokes == 1 and first.mask[0, 11:21, 11:32].all() and first.n_marked == 210
    assert view["place"] == "1 of 3: image0" and view["received"] == 0.25 and "unsaved changes" in view["news"]
    assert "image 1 of 3 | image0 | 210 of your 2048 pixels marked" in view["line"]
    assert "1 stroke, 210 pixel changes" in view["line"]
    press(annotator, "stroke", id=0.5, corners=NARROW, erase=True)
    assert first.n_marked == 110
    assert press(annotator, "undo")["redo"] and first.n_marked == 210
    press(annotator, "redo")
    press(annotator, "stroke", id=0.75, corners=[[5, 50]], radius=[1.0, 1.0], erase=False)
    shown = np.unpackbits(np.frombuffer(panel.lesion, np.uint8)).reshape(1, 64, 64)
    np.testing.assert_array_equal(shown, first.mask)
    assert first.n_marked == 115
    press(annotator, "save")
    np.testing.assert_array_equal(read_drawing(tmp_path, "image0")[1], first.mask)
    assert annotator.position == 1 and annotator.drawing.n_marked == 0 and panel.view["news"] == ""
    press(annotator, "stroke", id=0.1, corners=WIDE, erase=False)
    assert not press(annotator, "clear")["undo"] and annotator.drawing.n_marked == 0
    view = press(annotator, "back")
    assert annotator.drawing is first and "image 1 of 3 (saved)" in view["line"]
    assert press(annotator, "skip")["place"] == "2 of 3: image1"
    press(annotator, "redo")
    assert "press again" in press(annotator, "accept")["line"] and annotator.position == 1  # there is a stroke
    press(annotator, "touch")
    assert "| 2 saved" in press(annotator, "accept")["line"]
    assert press(annotator, "accept")["news"] == "done: run the next cell"
    assert [len(read_drawing(tmp_path, f"image{i}")[0].strokes) for i in range(3)] == [3, 0, 0]
    np.testing.assert_array_equal(read_drawing(tmp_path, "image1")[1], annotator.drawing.request.start)


def test_a_folder_that_cannot_be_written_is_said_on_the_line(tmp_path):
    (tmp_path / "file").touch()
    annotator = make_annotator(tmp_path / "file" / "drawings")
    annotator.lasso(SQUARE)
    view = press(annotator, "save")  # the error itself goes to Jupyter's log
    assert view["line"].startswith("save failed: ") and not annotator.drawing.saved


def test_a_photograph_is_shown_in_its_own_size_and_shape_and_never_a_mask_of_its_name(tmp_path):
    requests, data = [make_request("IMD 1", size=64), make_request("IMD 2", size=64)], tmp_path / "data"
    square = PILImage.fromarray(requests[0].image.transpose(1, 2, 0))
    for folder, picture in (("images", square), ("a masks folder", PILImage.new("L", (64, 64), 255))):
        (data / folder).mkdir(parents=True)
        picture.resize((1000, 600)).save(data / folder / "IMD 1.WebP", lossless=True)
    annotator = Annotator(requests, tmp_path / "drawn", data)
    view, picture = annotator.panel.view, PILImage.open(io.BytesIO(annotator.panel.picture))
    assert view["native"] == (1000, 600) and view["size"] == (64, 64) and view["place"] == "1 of 2: IMD 1"
    assert picture.size == (1000, 600) and np.asarray(picture.convert("L")).mean() < 200
    view = press(annotator, "skip")
    assert view["native"] == (64, 64) and view["place"] == f"2 of 2: IMD 2 (no picture of this name in {data})"
    np.testing.assert_array_equal(np.asarray(PILImage.open(io.BytesIO(annotator.panel.picture))), np.asarray(square))
    assert "(no" not in Annotator(requests, tmp_path / "drawn").panel.view["place"]
    with pytest.raises(DataError, match=r"originals: .*nowhere is no folder; give the one with the photographs"):
        Annotator(requests, tmp_path / "drawn", tmp_path / "nowhere")


def test_what_is_changed_after_saving_is_not_called_saved(tmp_path):
    annotator = make_annotator(tmp_path, n=1)
    for change in (lambda: annotator.lasso(SQUARE), annotator.undo):
        change()
        assert "(saved)" not in annotator.status() and "| 0 saved" in annotator.status()
        assert annotator.news() == "● unsaved changes"
        annotator.save()
        assert "image 1 of 1 (saved)" in annotator.status() and "all 1 saved" in annotator.status()
    annotator.undo()  # there is nothing to take back
    assert "(saved)" in annotator.status() and annotator.news() == "done: run the next cell"
    annotator.redo()
    assert "(saved)" not in annotator.status()
    annotator.undo()
    assert "(saved)" in annotator.status()


def test_a_drawing_without_lesion_is_saved_at_the_second_press(tmp_path):
    annotator = make_annotator(tmp_path)
    assert "Nothing is marked in image0" in press(annotator, "save")["line"] and not list(tmp_path.iterdir())
    press(annotator, "undo")
    press(annotator, "save")
    assert not list(tmp_path.iterdir())  # asked anew
    press(annotator, "touch")  # the mouse moved on its way to the button
    press(annotator, "save")
    resumed = make_annotator(tmp_path)  # after a new start of the kernel
    assert resumed.position == 1 and [drawing.saved for drawing in resumed.drawings] == [True, False, False]


def test_outside_of_the_band_the_picture_never_changes(tmp_path):
    annotator = make_annotator(tmp_path)
    before = annotator.figure.axes[0].images[0].get_array().copy()
    annotator.lasso([(-5, -5), (70, -5), (70, 70), (-5, 70)])
    after = annotator.figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(after[:, 32:], before[:, 32:])
    assert (after[:, :32] != before[:, :32]).any(-1).all()


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr("alutils.lab.figures.display", outputs.append)
    monkeypatch.setattr(annotator_module, "display", lambda content, raw=False: outputs.append(content))
    return outputs


def test_without_somebody_to_draw_it_is_a_picture_with_alternative_text_and_no_widget(tmp_path, shown):
    annotator = make_annotator(tmp_path)
    annotator._ipython_display_()
    picture, sentence = shown
    assert isinstance(picture, Image) and "image0" in picture.alt and "2048 of 4096" in picture.alt
    assert "JupyterLab" in sentence["text/plain"]
    assert "panel" not in vars(annotator) and not list(tmp_path.iterdir())
