"""Explorers: controls redraw the figure, its numbers are right, and without a kernel a still picture remains."""

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from alutils import Experiment, make_synthetic, run_active_learning
from alutils.lab import explorers, figures, frames, interactive
from alutils.lab.explorers import explore_curves, explore_rounds, explore_thresholds


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

    monkeypatch.setattr(interactive, "display", display)
    return outputs


@pytest.fixture(scope="module")
def pictures():
    """Two images, masks, and probabilities that fall from 1 to 0 from left to right, in the second the other way."""
    images = torch.randint(0, 256, (2, 3, 16, 40), generator=torch.Generator().manual_seed(0)).byte()
    truths = torch.zeros(2, 1, 16, 40, dtype=torch.uint8)
    truths[:, :, 4:12, 5:18] = 1
    ramp = torch.linspace(1, 0, 40).expand(1, 1, 16, 40)
    return images, truths, torch.cat([ramp, ramp.flip(-1)])


def after(text, words):
    """The number that follows ``words``."""
    return float(re.search(r"\d+(\.\d+)?", text.split(words)[1])[0])


def dice(a, g):
    return 2 * np.sum((a == 1) & (g == 1)) / (np.sum(a) + np.sum(g))


# A figure with controls


def test_where_nobody_moves_it_no_widget_is_made(pictures, shown):
    explorer = explore_thresholds(*pictures)
    explorer._ipython_display_()
    alts, texts, [controls] = shown
    assert alts == [" ".join(explorer.alt.split())] and texts == [{"text/plain": explorer.text}]
    assert "image, tau_u, tau_b" in controls["text/plain"] and len(controls) == 1
    assert "controls" not in vars(explorer)


def test_where_nobody_moves_it_a_slider_over_frames_can_stand_in(pictures, monkeypatch):
    pages = []
    monkeypatch.setattr(frames, "display", lambda bundle, metadata, raw: pages.append(bundle))
    explorer = explore_thresholds(*pictures, tau_u=0.25)
    explorer.show("tau_u", [0.125, 0.25, 0.5])
    assert pages[0]["text/plain"] == explorer.text
    assert all(f"tau_u = {tau_u}, tau_b" in pages[0]["text/html"] for tau_u in ("0.125", "0.250", "0.500"))


# The curves of section III-A


def test_moving_p_marks_the_curves_and_the_pixels_near_it(pictures, shown):
    images, _, p = pictures
    std = 0.5 * torch.rand(p.shape, generator=torch.Generator().manual_seed(1))
    explorer = explore_curves(images, p, std, names=["one", "two"])
    explorer._ipython_display_()
    explorer.controls["image"].value = 1
    explorer.controls["p"].value = 0.725
    curves, _, maps = explorer.figure.axes
    at = {tuple(np.round(line.get_xydata()[0], 4)) for line in curves.lines if len(line.get_xydata()) == 1}
    eq_1, eq_2 = abs(0.5 - 0.725), -0.725 * np.log2(0.725)
    binary = eq_2 - 0.275 * np.log2(0.275)
    assert at == {(0.725, round(value, 4)) for value in (0.5 - eq_1, eq_2, binary)}
    near = np.abs(p[1, 0].numpy() - 0.725) <= explorers.NEAR
    assert near.any() and not near.all()
    paler, photograph = maps.images[0].get_array(), images[1].permute(1, 2, 0).numpy() / 255
    np.testing.assert_allclose(paler[near], 0.3 * photograph[near] + 0.7, atol=1e-6)
    beside = np.roll(near, 1, axis=1) | np.roll(near, -1, axis=1)
    assert (paler[beside & ~near] == 0).all()
    np.testing.assert_allclose(paler[~beside & ~near], photograph[~beside & ~near], atol=1e-6)
    alt = shown[0][-1]
    assert len(shown[0]) == len(shown[1]) == 3
    for words, value in (("p = ", 0.725), ("eq. 1 ", eq_1), ("eq. 2 ", eq_2), ("binary entropy ", binary)):
        assert after(alt, words) == pytest.approx(value, abs=5e-4)
    assert f"{near.sum()}, {100 * near.mean():.1f} % of two" in alt
    assert after(alt, "median of their eq. 3 is ") == pytest.approx(np.median(std[1, 0].numpy()[near]), abs=5e-4)


def test_the_band_of_eq_3_holds_the_middle_of_the_pixels_of_each_p(pictures):
    images, _, p = pictures
    std = torch.rand(p.shape, generator=torch.Generator().manual_seed(1))
    curves, right, _ = explore_curves(images, p, std).figure.axes
    (line,) = right.lines
    x, medians = line.get_xydata()[3]
    theirs = std[0][(p[0] >= 0.3) & (p[0] < 0.4)]
    assert x == pytest.approx(0.35) and medians == pytest.approx(np.median(theirs))
    assert "eq. 3 here (right)" in [text.get_text() for text in curves.get_legend().get_texts()]


# The thresholds of section III-B


@pytest.mark.parametrize(("tau_u", "tau_b"), [(0.25, 0.1), (0.125, 0.75)])
def test_the_numbers_of_both_thresholds_are_those_of_numpy(pictures, tau_u, tau_b):
    images, truths, probabilities = pictures
    explorer = explore_thresholds(images, truths, probabilities)
    explorer.controls["tau_u"].value = tau_u
    explorer.controls["tau_b"].value = tau_b
    y, p = truths[0, 0].numpy(), probabilities[0, 0].numpy()
    human = np.abs(0.5 - p) <= tau_u
    merged = np.where(human, y, p >= tau_b)
    assert after(explorer.text, "the human verifies ") == pytest.approx(100 * human.mean(), abs=0.051)
    assert after(explorer.text, "pixels and marks ") == pytest.approx(100 * (human & (y == 1)).mean(), abs=0.051)
    assert after(explorer.text, "Dice of the merged mask ") == pytest.approx(dice(merged, y), abs=5e-4)
    assert after(explorer.text, "from p = 0.5 on, ") == pytest.approx(dice(p >= 0.5, y), abs=5e-4)
    low, high = (tau_b, 0.5 - tau_u) if tau_b < 0.5 else (0.5 + tau_u, tau_b)
    assert after(explorer.text, "tau_b acts: ") == ((p >= low) & (p < high)).sum() > 0
    assert f"with p between {low:.3f} and {high:.3f} are the model's" in explorer.text
    _outline, _p, band, who = explorer.figure.axes[0].images
    np.testing.assert_array_equal(band.get_array()[..., 0], human)
    colours = np.array([to_rgb(colour) for colour in figures.LABELLED_BY.values()])
    grey = images[0].float().mean(0).numpy()[..., None] / 255
    centres = who.get_array()[8::16, 8::16]  # of the enlarged pixels, away from the outline
    np.testing.assert_allclose(centres, 0.35 * grey + 0.65 * colours[2 * human + merged], atol=1e-5)


def test_it_says_where_tau_b_changes_nothing_and_there_it_changes_nothing(pictures):
    explorer = explore_thresholds(*pictures, tau_u=0.3, tau_b=0.5)
    written = {True: set(), False: set()}
    for tau_b in (0.05, 0.1, 0.175, 0.2, 0.4, 0.8, 0.825, 0.9):
        explorer.controls["tau_b"].value = tau_b
        idle = "tau_b changes nothing" in explorer.text
        assert idle == (0.2 <= tau_b <= 0.8) != ("tau_b acts" in explorer.text)
        written[idle].add(explorer.figure.axes[0].images[-1].get_array().tobytes())
    assert len(written[True]) == 1 and len(written[False]) == 5


# The rounds of a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose last query is shorter than the first: 2 + 2 + 1 images."""
    splits = make_synthetic(5, 1, 1, image_size=64)
    tiny = {"image_size": 64, "encoder_weights": None, "decoder_channels": (8,) * 5, "epochs": 1}
    experiment = Experiment(cold_start=2, query_size=2, n_queries=2, annotation="partial", tau_u=0.1, **tiny)
    return list(run_active_learning(experiment, splits, tmp_path_factory.mktemp("run"), progress=False)), splits.train


def test_the_scrubber_shows_the_labels_of_each_queried_image(finished):
    rounds, pool = finished
    explorer = explore_rounds(rounds, pool)
    explorer.controls["rank"].value = 2
    name = rounds[0].queries["image_id"].iloc[1]
    truth, labels, place = pool.masks[pool.ids.index(name), 0].numpy(), rounds[-1].labels, 2 + 1
    mask, human = (plane[place : place + 1][0, 0].numpy() for plane in (labels.masks, labels.human))
    text = explorer.text
    assert text.startswith("Query 1, after training on 2 images") and f"rank 2 of 2: {name}." in text
    assert after(text, "The human labelled ") == pytest.approx(100 * human.mean(), abs=0.051)
    assert after(text, "Dice of its labels ") == pytest.approx(dice(mask, truth), abs=5e-4)
    assert after(text, "validation Dice of ") == pytest.approx(rounds[0].val_dice, abs=5e-4)
    pictures, curve = explorer.figure.axes
    np.testing.assert_array_equal(pictures.images[1].get_array()[..., 0], mask)
    np.testing.assert_allclose(curve.lines[1].get_xydata(), [[2, rounds[0].val_dice]])
    explorer.controls["query"].value = 2
    assert f"rank 1 of 1: {rounds[1].queries['image_id'].iloc[0]}." in explorer.text


# What is refused

PLANE = torch.zeros(2, 1, 8, 8)
IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explore_curves(IMAGES[:0], PLANE[:0], PLANE[:0]), "images must be uint8 .* at least one"),
        (lambda: explore_curves(IMAGES, PLANE, PLANE[:1]), r"mc_std must have shape \(2, 1, 8, 8\)"),
        (lambda: explore_curves(IMAGES, PLANE, PLANE, names=["one"]), "names: 1 of them for 2 images"),
        (lambda: explore_curves(IMAGES, PLANE, PLANE, p=1.5), "from 0 to 1"),
        (lambda: explore_thresholds(IMAGES, PLANE.byte(), PLANE, tau_u=0.6), "tau_u must be from 0 to 0.5, got 0.6"),
    ],
)
def test_what_cannot_be_explored_is_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_scrubber_wants_a_whole_run_with_queries_and_its_own_pool(finished):
    rounds, pool = finished
    for wrong in ([], [*rounds[:-1], replace(rounds[-1], labels=None)]):
        with pytest.raises(ValueError, match="rounds: the last has no labels"):
            explore_rounds(wrong, pool)
    with pytest.raises(ValueError, match="nothing was queried"):
        explore_rounds(rounds[-1:], pool)
    with pytest.raises(ValueError, match="pool: the run asked for image"):
        explore_rounds(rounds, pool.select([0, 1]))
