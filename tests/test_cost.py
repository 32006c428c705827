"""What an annotation costs: closed forms of simple shapes, NumPy's counts, and that only the human's pixels matter."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alutils.cost import CURRENCIES, annotation_cost, average_cost

some = settings(deadline=None, max_examples=60)
shapes = st.tuples(st.integers(0, 3), st.just(1), st.integers(1, 9), st.integers(1, 9))


@st.composite
def planes(draw, shape, dtype=np.uint8):
    """Empty, full, or noise: every square of four pixels in every state."""
    share, seed = draw(st.sampled_from([0, 0.3, 0.5, 0.7, 1])), draw(st.integers(0, 2**32 - 1))
    return (np.random.default_rng(seed).random(shape) < share).astype(dtype)


@st.composite
def truths_and_humans(draw):
    shape = draw(shapes)
    return draw(planes(shape)), draw(planes(shape, bool))


def batch(plane):
    return torch.from_numpy(np.asarray(plane, np.uint8))[None, None]


def cost(truth, human=None, **options):
    """Of one image; the human labels all of it where no pixels are given."""
    truth = batch(truth)
    return annotation_cost(truth, torch.ones_like(truth) if human is None else batch(human), **options).iloc[0]


def disk(radius, size=64):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(y, x) < radius


def rectangle(rows, columns, size=20):
    mask = np.zeros((size, size), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


# Pixels and regions


def regions_by_hand(human):
    """Flood one region after the other, edge to edge."""
    left, n = {tuple(place) for place in np.argwhere(human)}, 0
    while left:
        n, front = n + 1, [left.pop()]
        while front:
            y, x = front.pop()
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & left
            left -= near
            front.extend(near)
    return n


@some
@given(truths_and_humans())
def test_percentages_are_numpys_and_regions_are_joined_at_edges_not_at_corners(images):
    truth, human = images
    table = annotation_cost(torch.from_numpy(truth), torch.from_numpy(human))
    assert table.columns.tolist() == list(CURRENCIES) and len(table) == len(truth)
    np.testing.assert_allclose(table["verify_percent"], 100 * human.mean((1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(table["positive_percent"], 100 * (human & (truth == 1)).mean((1, 2, 3)), rtol=1e-12)
    assert table["regions"].tolist() == [regions_by_hand(plane[0]) for plane in human]
    assert annotation_cost(torch.from_numpy(truth), torch.from_numpy(human.astype(np.uint8))).equals(table)


# The outline


def outline_length(truth):
    """By the lesion pixels of each square of four: a corner is cut off, a side is crossed, or two corners are."""
    t = truth.astype(int)
    lesion = t[:-1, :-1] + t[1:, :-1] + t[:-1, 1:] + t[1:, 1:]
    diagonal = (lesion == 2) & (t[:-1, :-1] == t[1:, 1:])
    corners = np.isin(lesion, (1, 3)).sum() + 2 * diagonal.sum()
    return corners * math.sqrt(0.5) + ((lesion == 2) & ~diagonal).sum()


@some
@given(shapes.flatmap(planes))
def test_the_outline_of_a_whole_image_is_as_long_as_its_squares_say(truth):
    table = annotation_cost(torch.from_numpy(truth), torch.ones(truth.shape, dtype=torch.bool))
    lengths = [outline_length(plane[0]) for plane in truth]
    np.testing.assert_allclose(table["boundary_px"].astype(float), lengths, atol=1e-9)


SQUARE, EVERYTHING, BAND = rectangle((5, 15), (5, 15)), rectangle((0, 20), (0, 20)), rectangle((8, 12), (0, 20))
APART = rectangle((8, 10), (8, 10)) | rectangle((0, 2), (0, 2))  # one region inside the square, one outside
ACROSS = rectangle((12, 14), (3, 8))  # the square's left side


@pytest.mark.parametrize(
    ("truth", "human", "drawn"),
    [
        pytest.param(SQUARE, EVERYTHING, (4 * 9 + 4 * math.sqrt(0.5), 1, 8, 9), id="the four corners are cut off"),
        pytest.param(rectangle((0, 10), (0, 20)), EVERYTHING, (19, 1, 2, 3), id="ends at the edge of the image"),
        pytest.param(SQUARE, BAND, (3 + 3, 1, 4, 6), id="a band cuts it into two lines"),
        pytest.param(SQUARE, APART, (0, 2, 0, 2), id="a click for each region without outline"),
        pytest.param(SQUARE, APART | ACROSS, (1, 3, 2, 5), id="a line, and two regions without"),
        pytest.param(~EVERYTHING, EVERYTHING, (0, 1, 0, 1), id="no lesion"),
        pytest.param(EVERYTHING, ~EVERYTHING, (0, 0, 0, 0), id="nothing to do"),
    ],
)
def test_what_is_drawn_of_simple_shapes(truth, human, drawn):
    """Lengths go from pixel centre to pixel centre."""
    found = cost(truth, human, tolerance=0.1)
    assert found[["boundary_px", "regions", "vertices", "clicks"]].tolist() == pytest.approx(drawn)


def test_a_disks_outline_is_near_its_circumference_and_simpler_with_more_tolerance():
    table = pd.DataFrame([cost(disk(20), tolerance=tolerance) for tolerance in (0.1, 1, 4)])
    assert table["boundary_px"].to_numpy() == pytest.approx(2 * math.pi * 20, rel=0.1)
    vertices = table["vertices"].tolist()
    assert vertices[0] > vertices[1] > vertices[2] and cost(disk(20))["vertices"] == vertices[1]  # by default 1 pixel


@pytest.mark.parametrize("mask", [disk(20), ~disk(20)], ids=["disk", "hole"])
def test_each_half_of_a_disk_or_of_a_hole_is_one_line_wherever_its_outline_begins(mask):
    """Half of what remains of the whole outline without the two pixels at which it crosses from half to half."""
    upper = np.arange(64)[:, None] < 32
    whole = cost(mask)["boundary_px"]
    vertices = set()
    for half in (upper, ~upper, upper.T, ~upper.T):
        found = cost(mask, np.broadcast_to(half, (64, 64)))
        assert found["boundary_px"] == pytest.approx((whole - 2) / 2)
        assert found["regions"] == 1 and found["clicks"] == found["vertices"] + 1
        vertices.add(found["vertices"])
    assert max(vertices) - min(vertices) <= 1 and max(vertices) < cost(mask)["vertices"]


@some
@given(truths_and_humans(), st.data())
def test_the_truth_of_other_pixels_has_no_influence(images, data):
    truth, human = images
    other = np.where(human, truth, data.draw(planes(truth.shape)))
    costs = [annotation_cost(torch.from_numpy(mask), torch.from_numpy(human)) for mask in (truth, other)]
    pd.testing.assert_frame_equal(*costs)


def test_a_lesion_pixel_beyond_a_corner_of_the_humans_changes_nothing():
    """Two lesion pixels meet at a corner; of the other two pixels there, the human has one."""
    truth = rectangle((1, 2), (2, 3), 4) | rectangle((2, 3), (1, 2), 4)
    beyond = rectangle((2, 3), (2, 3), 4)
    human = rectangle((1, 3), (1, 3), 4) & ~beyond
    pd.testing.assert_series_equal(cost(truth | beyond, human), cost(truth, human))


# Means over a run


def run_table(rounds):
    """Each currency its own multiple of 1, 2, 3, ..., so that no column can stand for another."""
    numbers = np.arange(1.0, len(rounds) + 1)
    return pd.DataFrame({"round": rounds, **{name: 10.0**i * numbers for i, name in enumerate(CURRENCIES)}})


def test_specks_are_nobodys_to_draw_and_all_else_costs_what_it_did():
    truth = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    truth[..., 2:7, 2:7] = 1
    alone = annotation_cost(truth, torch.ones_like(truth))
    truth[..., 12, 12] = truth[..., 13, 13] = 1  # two specks of a pixel each, joined at a corner
    costs = annotation_cost(truth, torch.ones_like(truth), smallest_part=2)
    pd.testing.assert_frame_equal(costs, alone)
    assert annotation_cost(truth, torch.ones_like(truth))["clicks"][0] > alone["clicks"][0]
    assert annotation_cost(truth, torch.ones_like(truth), smallest_part=26)["clicks"][0] == 1  # a look: no lesion


def test_average_cost_tells_the_cold_start_from_the_queries():
    table = average_cost(run_table([0, 0, 1, 2, 2]))
    assert table.index.tolist() == ["cold start", "queries (without cold start)", "labelled set (with cold start)"]
    assert table.columns.tolist() == ["images", *CURRENCIES, "total_clicks"]
    assert table["images"].tolist() == [2, 3, 5]
    for i, name in enumerate(CURRENCIES):
        np.testing.assert_allclose(table[name], 10.0**i * np.array([1.5, 4, 3]))
    np.testing.assert_allclose(table["total_clicks"], 1e5 * np.array([3, 12, 15]))
    no_queries = average_cost(run_table([0, 0])).loc["queries (without cold start)"]
    assert no_queries[list(CURRENCIES)].isna().all() and no_queries["images"] == 0 == no_queries["total_clicks"]
