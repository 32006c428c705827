"""What an annotation costs: closed forms of simple shapes, NumPy's counts, and that only the human's pixels matter."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alutils.annotation import merge_annotations
from alutils.cost import CURRENCIES, annotation_cost, average_cost

untimed = settings(deadline=None)
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


@untimed
@given(truths_and_humans())
def test_percentages_are_numpys(images):
    truth, human = images
    table = annotation_cost(torch.from_numpy(truth), torch.from_numpy(human))
    assert table.columns.tolist() == list(CURRENCIES) and len(table) == len(truth)
    np.testing.assert_allclose(table["verify_percent"], 100 * human.mean((1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(table["positive_percent"], 100 * (human & (truth == 1)).mean((1, 2, 3)), rtol=1e-12)
    assert annotation_cost(torch.from_numpy(truth), torch.from_numpy(human.astype(np.uint8))).equals(table)


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


@untimed
@given(truths_and_humans())
def test_regions_are_joined_at_edges_not_at_corners(images):
    truth, human = images
    table = annotation_cost(torch.from_numpy(truth), torch.from_numpy(human))
    assert table["regions"].tolist() == [regions_by_hand(one[0]) for one in human]


# The outline


def outline_length(truth):
    """By the lesion pixels of each square of four: a corner is cut off, a side is crossed, or two corners are."""
    t = truth.astype(int)
    lesion = t[:-1, :-1] + t[1:, :-1] + t[:-1, 1:] + t[1:, 1:]
    diagonal = (lesion == 2) & (t[:-1, :-1] == t[1:, 1:])
    corners = np.isin(lesion, (1, 3)).sum() + 2 * diagonal.sum()
    return corners * math.sqrt(0.5) + ((lesion == 2) & ~diagonal).sum()


@untimed
@given(shapes.flatmap(planes))
def test_the_outline_of_a_whole_image_is_as_long_as_its_squares_say(truth):
    table = annotation_cost(torch.from_numpy(truth), torch.ones(truth.shape, dtype=torch.bool))
    np.testing.assert_allclose(table["boundary_px"].astype(float), [outline_length(one[0]) for one in truth], atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(10, 10), (4, 9), (2, 3)])
def test_a_rectangle_has_eight_corners_because_its_four_are_cut_off(height, width):
    found = cost(rectangle((5, 5 + height), (5, 5 + width)), tolerance=0.1)
    assert found["boundary_px"] == pytest.approx(2 * (height - 1) + 2 * (width - 1) + 4 * math.sqrt(0.5))
    assert (found["regions"], found["vertices"], found["clicks"]) == (1, 8, 9)


def test_an_outline_ends_at_the_edge_of_the_image():
    """A lesion over the upper half: one straight line from side to side."""
    found = cost(rectangle((0, 10), (0, 20)))
    assert (found["boundary_px"], found["vertices"], found["clicks"]) == (19, 2, 3)


@pytest.mark.parametrize("radius", [8, 14, 20, 28])
def test_a_disks_outline_is_near_its_circumference_and_simpler_with_more_tolerance(radius):
    found = [cost(disk(radius), tolerance=tolerance) for tolerance in (0.1, 0.5, 1, 2, 4)]
    for one in found:
        assert one["boundary_px"] == pytest.approx(2 * math.pi * radius, rel=0.1)
        assert one["regions"] == 1 and one["clicks"] == one["vertices"] + 1
    vertices = [one["vertices"] for one in found]
    assert vertices == sorted(vertices, reverse=True) and vertices[0] > vertices[2] > vertices[4]
    assert cost(disk(radius))["vertices"] == vertices[2]  # the default is a pixel


def test_a_band_cuts_the_outline_into_two_lines():
    """Rows 8 to 11 cross the square's left and right side, three pixels each from centre to centre."""
    found = cost(rectangle((5, 15), (5, 15)), rectangle((8, 12), (0, 20)))
    assert (found["boundary_px"], found["regions"], found["vertices"], found["clicks"]) == (6, 1, 4, 6)
    assert (found["verify_percent"], found["positive_percent"]) == (20, 10)


def test_two_bands_cut_it_into_four_lines_of_two_regions():
    bands = rectangle((6, 8), (0, 20)) | rectangle((10, 14), (0, 20))
    found = cost(rectangle((5, 15), (5, 15)), bands)
    assert (found["boundary_px"], found["regions"], found["vertices"], found["clicks"]) == (1 + 1 + 3 + 3, 2, 8, 12)


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


# Where there is no outline


@pytest.mark.parametrize("value", [0, 1])
def test_an_image_of_one_kind_costs_one_click(value):
    found = cost(np.full((20, 20), value))
    assert found.to_dict() == {
        "verify_percent": 100, "positive_percent": 100 * value, "boundary_px": 0, "regions": 1, "vertices": 0,
        "clicks": 1,
    }  # fmt: skip


def test_each_region_without_outline_costs_a_click():
    inside_and_outside = rectangle((8, 10), (8, 10)) | rectangle((0, 2), (0, 2))
    found = cost(rectangle((5, 15), (5, 15)), inside_and_outside)
    assert (found["boundary_px"], found["regions"], found["vertices"], found["clicks"]) == (0, 2, 0, 2)
    with_band = inside_and_outside | rectangle((12, 14), (3, 8))  # across the left side
    found = cost(rectangle((5, 15), (5, 15)), with_band)
    assert (found["boundary_px"], found["regions"], found["vertices"], found["clicks"]) == (1, 3, 2, 5)


@pytest.mark.parametrize("value", [0, 1])
def test_without_pixels_it_costs_nothing(value):
    assert cost(np.full((20, 20), value), np.zeros((20, 20))).tolist() == [0] * 6


def test_no_images_give_an_empty_table():
    nothing = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)
    table = annotation_cost(nothing, nothing.bool())
    assert table.columns.tolist() == list(CURRENCIES) and len(table) == 0


# Only the human's pixels


@untimed
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


@untimed
@given(shapes.flatmap(planes), st.data(), st.sampled_from([0.125, 0.25, 0.375]))
def test_merged_masks_cost_what_the_truth_does(mask, data, tau_u):
    truth = torch.from_numpy(mask)
    p = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).random(mask.shape)
    merged, human = merge_annotations(truth, torch.from_numpy(p), tau_u, 0.5)
    pd.testing.assert_frame_equal(annotation_cost(merged, human), annotation_cost(truth, human))


# What is refused


def test_bad_input_is_named():
    truth = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"truth has shape \(2, 1, 8, 8\) and human \(1, 1, 8, 8\); they must agree"):
        annotation_cost(truth, truth[:1])
    with pytest.raises(ValueError, match=r"truth has shape \(2, 1, 8, 8\) and human \(2, 8, 8\)"):
        annotation_cost(truth, truth[:, 0])
    for tolerance in (0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"tolerance must be above 0 pixels, got {tolerance}"):
            annotation_cost(truth, truth, tolerance=tolerance)


# Means over a run


def run_table(rounds):
    """Each currency its own multiple of 1, 2, 3, ..., so that no column can stand for another."""
    numbers = np.arange(1.0, len(rounds) + 1)
    return pd.DataFrame({"round": rounds, **{name: 10.0**i * numbers for i, name in enumerate(CURRENCIES)}})


def test_average_cost_tells_the_cold_start_from_the_queries():
    table = average_cost(run_table([0, 0, 1, 2, 2]))
    assert table.index.tolist() == ["cold start", "queries (without cold start)", "labelled set (with cold start)"]
    assert table.columns.tolist() == ["images", *CURRENCIES, "total_clicks"]
    assert table["images"].tolist() == [2, 3, 5]
    for i, name in enumerate(CURRENCIES):
        np.testing.assert_allclose(table[name], 10.0**i * np.array([1.5, 4, 3]))
    np.testing.assert_allclose(table["total_clicks"], 1e5 * np.array([3, 12, 15]))


def test_average_cost_without_queries_has_no_means_for_them():
    table = average_cost(run_table([0, 0]))
    queries = table.loc["queries (without cold start)"]
    assert queries[list(CURRENCIES)].isna().all() and queries["images"] == 0 and queries["total_clicks"] == 0
    assert table.loc["cold start"].equals(table.loc["labelled set (with cold start)"])
