"""Figures carry alternative text, are saved whole, and show the pixels, means and bands that they should."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from alutils.lab import figures
from alutils.report import curves


@pytest.fixture
def shown(monkeypatch):
    displayed = []
    monkeypatch.setattr(figures, "display", displayed.append)
    return displayed


def chart():
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1], [0, 1])
    return figure


def test_a_figure_is_shown_with_its_alternative_text_and_closed(shown):
    figure = chart()
    figures.show_figure(figure, "A line\n    that rises.")
    _data, metadata = shown[0]._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "A line that rises."
    assert not plt.fignum_exists(figure.number)


def test_a_figure_without_alternative_text_is_refused():
    with pytest.raises(ValueError, match="alt"):
        figures.show_figure(chart(), " ")


def test_a_figure_is_saved_as_png_and_svg_the_same_bytes_each_time(shown, tmp_path):
    saved = []
    for name in ("a", "b"):
        figures.show_figure(chart(), "A line.", save_as=tmp_path / name / "line")
        saved.append([(tmp_path / name / f"line{suffix}").read_bytes() for suffix in (".png", ".svg")])
    assert saved[0] == saved[1]
    assert [file.name for file in sorted((tmp_path / "a").iterdir())] == ["line.png", "line.svg"]


def test_photographs_are_shown_as_jpeg_and_charts_as_png(shown):
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    clouds = torch.nn.functional.interpolate(coarse, size=256, mode="bicubic").clamp(0, 1)[0]
    figure, ax = plt.subplots()
    figures.draw_image(ax, (255 * clouds).byte())
    figures.show_figure(figure, "Clouds.")
    figures.show_figure(chart(), "A line.")
    assert [Image.open(io.BytesIO(image.data)).format for image in shown] == ["JPEG", "PNG"]


def test_the_outline_runs_between_the_pixels_of_the_mask():
    mask = torch.zeros(1, 20, 30)
    mask[:, 5:10, 8:20] = 1
    figure, ax = plt.subplots()
    figures.draw_outline(ax, mask, figures.TRUTH)
    corners = np.concatenate([path.vertices for path in ax.collections[-1].get_paths()])
    assert corners.min(0) == pytest.approx([7.5, 4.5]) and corners.max(0) == pytest.approx([19.5, 9.5])
    plt.close(figure)


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_without_or_full_of_lesion_can_be_drawn(value):
    figure, ax = plt.subplots()
    figures.draw_outline(ax, torch.full((1, 8, 8), value), figures.TRUTH)
    assert len(ax.collections) == 2 * value
    plt.close(figure)


def test_each_pixel_has_the_colour_of_who_labelled_it():
    mask = torch.tensor([[[0, 1, 0, 1]]], dtype=torch.uint8)
    human = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    figure, axes = plt.subplots()
    figures.draw_labels(axes, torch.full((3, 1, 4), 255, dtype=torch.uint8), mask, human, "title")
    shown = axes.images[0].get_array()
    for pixel, colour in zip(shown[0], figures.LABELLED_BY.values(), strict=True):
        np.testing.assert_allclose(pixel, 0.35 + 0.65 * np.array(to_rgb(colour)))
    figures.label_legend(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(figures.LABELLED_BY)
    figures.label_legend(figure, outline=True)
    assert [text.get_text() for text in figure.legends[1].get_texts()] == [*figures.LABELLED_BY, "true outline"]
    plt.close(figure)


def test_labels_are_drawn_with_the_true_outline_where_a_truth_is_given():
    figure, (without, beside) = plt.subplots(1, 2)
    image, truth = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    truth[0, 2:6, 2:6] = 1
    figures.draw_labels(without, image, truth, truth)
    figures.draw_labels(beside, image, truth, truth, truth=truth, width=2)
    assert not without.collections
    colours = [to_rgb(tuple(drawn.get_edgecolor()[0][:3])) for drawn in beside.collections]
    assert colours == [to_rgb(figures.BLACK), to_rgb(figures.TRUTH_AMONG_LABELS)]
    plt.close(figure)


def recorded(*arms):
    """Runs of two rounds and two seeds, one per arm and seed."""
    rows = [{"run": f"{arm}{seed}", "strategy": arm, "seed": seed} for arm in arms for seed in (0, 1)]
    runs = pd.DataFrame([row | {"annotation": "full", "val_dice": 0.8, "test_dice": 0.8} for row in rows])
    dice = [
        {"round": k, "n_labelled": 8 + 8 * k, "val_dice": 0.6 + 0.2 * k, "test_dice": 0.5 + 0.1 * k} for k in (0, 1)
    ]
    rounds = pd.DataFrame([row | of_round for row in rows for of_round in dice])
    return {"runs": runs, "rounds": rounds}


def test_fig_4_has_a_line_for_each_strategy_also_for_those_that_are_not_the_papers():
    figure, alt = curves.draw_with_differences(recorded("random", "kcentre", "largest_lesion", "full"))
    upper, lower = figure.axes
    names = [text.get_text() for text in upper.get_legend().get_texts()]
    assert names == ["kcentre", "largest lesion", "random", "full data: mean, worst and best seed"]
    assert len({(line.get_color(), line.get_marker()) for line in upper.lines}) == 4
    assert len(upper.collections) == 1, "of three strategies random selection alone has a band"
    assert len(lower.containers) == 2 and "largest lesion 60.0 %" in alt
    plt.close(figure)


def test_fig_4_says_that_nothing_was_queried_where_that_is_so():
    figure, alt = curves.draw_with_differences(recorded("full", "random_at_once"))
    assert "no curve" in alt
    plt.close(figure)


def test_learning_curves_are_means_over_seeds_with_a_band_from_worst_to_best():
    rounds = pd.DataFrame({"strategy": "entropy", "n_labelled": [8, 16, 8, 16], "val_dice": [0.2, 0.6, 0.4, 0.7]})
    figure, axes = plt.subplots()
    curves.draw_learning_curves(axes, rounds, pd.Series([0.8, 0.9]))
    line, *levels = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[8, 30], [16, 65]])
    np.testing.assert_allclose([level.get_ydata() for level in levels], [[85] * 2, [80] * 2, [90] * 2])
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(np.round(point, 6)) for point in band} >= {(8, 20), (8, 40), (16, 60), (16, 70)}
    plt.close(figure)


def test_rounds_in_part_stand_beside_full_annotation_and_leave_the_cold_start_out():
    names = ["strategy", "annotation", "tau_u", "tau_b"]
    settings = [("least_confidence", "full", 0.25, 0.25), ("least_confidence", "partial", 0.25, 0.25)]
    runs = pd.DataFrame(settings, columns=names).assign(run=["a", "b"])
    rounds = pd.DataFrame({"run": list("aabb"), "round": [0, 1] * 2, "n_labelled": [8, 16] * 2, "val_dice": 0.5})
    costs = {"verify_percent": [100, 100, 100, 40], "positive_percent": [20, 22, 20, 6]}
    annotations = rounds[["run", "round"]].assign(**costs)
    results = {"runs": runs, "rounds": rounds, "annotations": annotations}
    figure, alt = curves.draw_rounds_in_part({"these runs": results})
    upper, lower = figure.axes
    assert [line.get_label() for line in upper.lines] == ["full annotation", "partial annotation"]
    found = {line.get_label(): line.get_xydata().tolist() for line in lower.lines}
    assert found["labelled as lesion, full annotation"] == [[16, 22]]
    assert found["labelled as lesion, partial annotation"] == [[16, 6]]
    assert found["verified, partial annotation"] == [[16, 40]] and "5 and 21 %" in alt
    assert found["lesion in the cold start: 20 %"] == [[0, 20], [1, 20]]
    plt.close(figure)

    other_cell = results | {"runs": runs.assign(tau_u=0.375)}  # what full annotation verifies is not shown in its place
    figure, _ = curves.draw_rounds_in_part({"these runs": other_cell})
    assert not any("partial" in str(line.get_label()) for axes in figure.axes for line in axes.lines)
    plt.close(figure)
