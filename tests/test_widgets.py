"""Explorers: controls redraw the figure, its numbers are right, and without a kernel a still picture remains."""

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import nbclient
import nbconvert
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from alutils import Experiment, figures, make_synthetic, run_active_learning, widgets
from alutils.widgets import Explorer, explore_curves, explore_rounds, explore_thresholds

TINY = {
    "image_size": 64, "cold_start": 4, "query_size": 3, "epochs": 1, "encoder_weights": None,
    "decoder_channels": (16,) * 5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    before = plt.get_fignums()
    yield
    assert plt.get_fignums() == before


@pytest.fixture
def shown(monkeypatch):
    """The notebook's outputs: for the figure (its alternative texts, one after the other), for the text, and others."""
    outputs = []

    class Handle(list):
        def update(self, output, raw=False):
            self.append(output if raw else output._repr_mimebundle_()[1]["image/jpeg"]["alt"])

    def display(*what, display_id=None, raw=False):
        outputs.append(Handle(what))
        return outputs[-1]

    monkeypatch.setattr(widgets, "display", display)
    return outputs


@pytest.fixture(scope="module")
def pictures():
    """Two images, masks, and probabilities that fall from 1 to 0 from left to right, in the second the other way."""
    images = torch.randint(0, 256, (2, 3, 16, 40), generator=torch.Generator().manual_seed(0)).byte()
    truths = torch.zeros(2, 1, 16, 40, dtype=torch.uint8)
    truths[:, :, 4:12, 5:18] = 1
    ramp = torch.linspace(1, 0, 40).expand(1, 1, 16, 40)
    return images, truths, torch.cat([ramp, ramp.flip(-1)])


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def after(alt, words):
    """The number that follows ``words``."""
    return numbers(alt.split(words)[1])[0]


def test_moving_p_marks_the_curves_and_the_pixels_near_it(pictures, shown):
    images, _, p = pictures
    std = 0.5 * torch.rand(p.shape, generator=torch.Generator().manual_seed(1))
    explorer = explore_curves(images, p, std, names=["one", "two"])
    explorer._ipython_display_()
    explorer.controls["image"].value = 1
    explorer.controls["p"].value = 0.725
    curves, maps = explorer.figure.axes
    at = {tuple(np.round(line.get_xydata()[0], 4)) for line in curves.lines if len(line.get_xydata()) == 1}
    eq_1, eq_2 = abs(0.5 - 0.725), -0.725 * np.log2(0.725)
    binary = eq_2 - 0.275 * np.log2(0.275)
    assert at == {(0.725, round(value, 4)) for value in (0.5 - eq_1, eq_2, binary)}
    near = np.abs(p[1, 0].numpy() - 0.725) <= widgets.NEAR
    assert near.any() and not near.all()
    paler, photograph = maps.images[0].get_array(), images[1].permute(1, 2, 0).numpy() / 255
    np.testing.assert_allclose(paler[near], 0.3 * photograph[near] + 0.7, atol=1e-6)
    beside = np.roll(near, 1, axis=1) | np.roll(near, -1, axis=1)
    assert (paler[beside & ~near] == 0).all()
    np.testing.assert_allclose(paler[~beside & ~near], photograph[~beside & ~near], atol=1e-6)
    alts, texts, _controls = shown
    alt = alts[-1]
    assert alt.startswith("p = 0.725: ") and len(alts) == len(texts) == 3
    assert texts[-1] == {"text/plain": explorer.text} and alt.startswith(explorer.text.replace("\n", " "))
    for words, value in (("eq. 1 ", eq_1), ("eq. 2 ", eq_2), ("binary entropy ", binary)):
        assert after(alt, words) == pytest.approx(value, abs=5e-4)
    assert f"within 0.025 of it: {near.sum()}, {100 * near.mean():.1f} % of two" in alt
    assert after(alt, "median of their eq. 3 is ") == pytest.approx(np.median(std[1, 0].numpy()[near]), abs=5e-4)


def test_the_band_of_eq_3_holds_the_middle_of_the_pixels_of_each_p(pictures):
    images, _, p = pictures
    std = torch.rand(p.shape, generator=torch.Generator().manual_seed(1))
    curves = explore_curves(images, p, std).figure.axes[0]
    (line,) = [line for line in curves.lines if "eq. 3" in line.get_label()]
    x, medians = line.get_xydata()[6]
    theirs = std[0][(p[0] >= 0.3) & (p[0] < 0.35)]
    assert x == pytest.approx(0.325) and medians == pytest.approx(np.median(theirs))


@pytest.mark.parametrize(("tau_u", "tau_b"), [(0.25, 0.1), (0.125, 0.75), (0.0, 0.3), (0.5, 0.5)])
def test_the_numbers_of_both_thresholds_are_those_of_numpy(pictures, shown, tau_u, tau_b):
    images, truths, probabilities = pictures
    explorer = explore_thresholds(images, truths, probabilities)
    explorer._ipython_display_()
    explorer.controls["tau_u"].value = tau_u
    explorer.controls["tau_b"].value = tau_b
    y, p = truths[0, 0].numpy(), probabilities[0, 0].numpy()
    human = np.abs(0.5 - p) <= tau_u
    merged = np.where(human, y, p >= tau_b)
    alt = shown[0][-1]
    assert after(alt, "the human verifies ") == pytest.approx(100 * human.mean(), abs=0.051)
    assert after(alt, "pixels and marks ") == pytest.approx(100 * (human & (y == 1)).mean(), abs=0.051)
    assert after(alt, "Dice of the merged mask ") == pytest.approx(dice(merged, y), abs=5e-4)
    assert after(alt, "from p = 0.5 on, ") == pytest.approx(dice(p >= 0.5, y), abs=5e-4)
    _outline, _p, band, who = explorer.figure.axes[0].images
    np.testing.assert_array_equal(band.get_array()[..., 0], human)
    colours = np.array([to_rgb(colour) for colour in figures.LABELLED_BY.values()])
    grey = images[0].float().mean(0).numpy()[..., None] / 255
    np.testing.assert_allclose(who.get_array(), 0.35 * grey + 0.65 * colours[2 * human + merged], atol=1e-5)


def dice(a, g):
    return 2 * np.sum((a == 1) & (g == 1)) / (np.sum(a) + np.sum(g))


def test_it_says_where_tau_b_changes_nothing_and_there_it_changes_nothing(pictures):
    images, truths, probabilities = pictures
    explorer = explore_thresholds(images, truths, probabilities, tau_u=0.3, tau_b=0.5)
    by_tau_b = {}
    for step in range(2, 39):
        explorer.controls["tau_b"].value = tau_b = 0.025 * step
        written = explorer.figure.axes[0].images[-1].get_array()
        by_tau_b[step] = ("tau_b changes nothing" in explorer.text, written.tobytes())
        assert (
            ("tau_b changes nothing" in explorer.text)
            == (abs(0.5 - tau_b) <= 0.3 + 1e-9)
            != ("tau_b acts" in explorer.text)
        )
    assert len({written for idle, written in by_tau_b.values() if idle}) == 1
    assert len({written for idle, written in by_tau_b.values()}) > 5


def test_the_pixels_on_which_tau_b_acts_are_counted(pictures):
    images, truths, probabilities = pictures
    explorer = explore_thresholds(images, truths, probabilities, tau_u=0.25, tau_b=0.9)
    p = probabilities[0].numpy()
    n = ((p > 0.75) & (p < 0.9)).sum()
    assert f"tau_b acts: {n} pixels with p between 0.750 and 0.900 are the model's background" in explorer.text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose last query is shorter than the others: 4 + 3 + 3 + 1 images."""
    splits = make_synthetic(11, 2, 2, image_size=64)
    experiment = Experiment(n_queries=3, annotation="partial", tau_u=0.1, **TINY)
    return list(run_active_learning(experiment, splits, tmp_path_factory.mktemp("run"), progress=False)), splits.train


def test_the_scrubber_shows_the_labels_of_each_queried_image(finished, shown):
    rounds, pool = finished
    explorer = explore_rounds(rounds, pool)
    explorer._ipython_display_()
    explorer.controls["query"].value = 2
    explorer.controls["rank"].value = 3
    name = rounds[1].queries["image_id"].iloc[2]
    place = 4 + 3 + 2
    i = pool.ids.index(name)
    truth, labels = pool.masks[i, 0].numpy(), rounds[-1].labels
    mask, human = (plane[place : place + 1][0, 0].numpy() for plane in (labels.masks, labels.human))
    alt = shown[0][-1]
    assert alt.startswith("Query 2, after training on 7 images") and f"rank 3 of 3: {name}." in alt
    assert after(alt, "The human labelled ") == pytest.approx(100 * human.mean(), abs=0.051)
    assert after(alt, "Dice of its labels ") == pytest.approx(dice(mask, truth), abs=5e-4)
    assert after(alt, "validation Dice of ") == pytest.approx(rounds[1].val_dice, abs=5e-4)
    pictures, curve = explorer.figure.axes
    np.testing.assert_array_equal(pictures.images[1].get_array()[..., 0], mask)
    np.testing.assert_allclose(curve.lines[1].get_xydata(), [[7, rounds[1].val_dice]])
    explorer.controls["query"].value = 3
    assert f"rank 1 of 1: {rounds[2].queries['image_id'].iloc[0]}." in explorer.text


def test_the_scrubber_wants_a_whole_run_and_its_own_pool(finished):
    rounds, pool = finished
    for wrong in ([], [*rounds[:-1], replace(rounds[-1], labels=None)]):
        with pytest.raises(ValueError, match="rounds: the last has no labels"):
            explore_rounds(wrong, pool)
    with pytest.raises(ValueError, match="pool: the run asked for image"):
        explore_rounds(rounds, make_synthetic(2, 1, 1, image_size=64).train)


def test_a_run_without_queries_is_refused(tmp_path):
    splits = make_synthetic(6, 2, 2, image_size=64)
    full = Experiment(strategy="full", n_queries=0, **TINY)
    rounds = list(run_active_learning(full, splits, tmp_path / "full", progress=False))
    with pytest.raises(ValueError, match="nothing was queried"):
        explore_rounds(rounds, splits.train)


PLANE = torch.zeros(2, 1, 8, 8)
IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explore_curves(IMAGES[:0], PLANE[:0], PLANE[:0]), "images must be uint8 .* at least one"),
        (lambda: explore_curves(IMAGES.float(), PLANE, PLANE), "images must be uint8 .* torch.float32"),
        (lambda: explore_curves(IMAGES, PLANE, PLANE[:1]), r"mc_std must have shape \(2, 1, 8, 8\)"),
        (lambda: explore_curves(IMAGES, PLANE, PLANE, names=["one"]), "names: 1 of them for 2 images"),
        (lambda: explore_curves(IMAGES, PLANE, PLANE, p=1.5), "p must be from 0 to 1, got 1.5"),
        (lambda: explore_thresholds(IMAGES, PLANE.byte(), PLANE[..., :4]), r"probabilities must have shape"),
        (lambda: explore_thresholds(IMAGES, PLANE.byte(), PLANE, tau_u=0.6), "tau_u must be from 0 to 0.5, got 0.6"),
        (lambda: explore_thresholds(IMAGES, PLANE.byte(), PLANE, tau_b=0.0), "tau_b must be above 0"),
        (lambda: explore_thresholds(IMAGES, PLANE, PLANE), "truth must be uint8"),
    ],
)
def test_what_cannot_be_explored_is_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_error_takes_the_figures_place_and_is_raised(shown):
    def draw(x):
        if x == 3:
            raise RuntimeError("three cannot be drawn")
        return plt.Figure((1, 1)), f"x is {x}.", "An empty figure."

    explorer = Explorer(draw, {"x": widgets.ipywidgets.IntSlider}, x=1)
    explorer._ipython_display_()
    with pytest.raises(RuntimeError, match="three"):
        explorer.controls["x"].value = 3
    message = "The figure could not be drawn. RuntimeError: three cannot be drawn"
    assert [output[-1] for output in shown[:2]] == [{"text/plain": message}, {"text/plain": ""}]
    explorer.controls["x"].value = 4
    assert shown[0][-1] == "x is 4. An empty figure."


CELL = """
import torch
from alutils.widgets import explore_thresholds
images, p = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
explorer = explore_thresholds(images, images[:, :1], p)
explorer
"""


def executed(client, *sources):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client(notebook, kernel_name="python3").execute()
    return notebook


def test_an_executed_notebook_holds_a_picture_a_sentence_and_no_widget():
    notebook = executed(nbclient.NotebookClient, CELL)
    picture, text, controls = notebook.cells[0].outputs
    assert "tau_b changes nothing" in text.data["text/plain"]
    assert "the human verifies" in picture.metadata["image/jpeg"]["alt"]
    assert controls.data == {"text/plain": "Controls: image, tau_u, tau_b. Run this cell in JupyterLab to move them."}
    assert "widgets" not in notebook.metadata
    page, _ = nbconvert.HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert "Run this cell in JupyterLab" in page and "widget-view" not in page
    assert re.search(r'<img[^>]*alt="tau_u = 0.250', page)


class Editor(nbclient.NotebookClient):
    """Says which cell it runs, as JupyterLab does."""

    async def async_start_new_kernel_client(self, **settings):
        client = await super().async_start_new_kernel_client(**settings)
        message = client.session.msg

        def with_cell(kind, *args, **kwargs):
            made = message(kind, *args, **kwargs)
            made["metadata"]["cellId"] = "some-cell"
            return made

        client.session.msg = with_cell
        return client


def test_in_an_editor_the_controls_are_shown_and_the_picture_follows_them():
    notebook = executed(Editor, CELL, "explorer.controls['tau_u'].value = 0.5")
    picture, text, controls = notebook.cells[0].outputs
    assert text.data["text/plain"].startswith("tau_u = 0.500")
    assert "tau_u = 0.500" in picture.metadata["image/jpeg"]["alt"]
    assert set(controls.data) == {"text/plain", "application/vnd.jupyter.widget-view+json"}
    assert controls.data["text/plain"].startswith("Controls: image, tau_u, tau_b. Run this cell in JupyterLab")
