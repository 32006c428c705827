"""Explorers: sliders over the measures of section III-A, the thresholds of section III-B, and the rounds of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial

import ipywidgets
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation
from skimage.segmentation import mark_boundaries

from alutils.annotation import merge_annotations
from alutils.cost import annotation_cost
from alutils.data.splits import Split
from alutils.experiment import same_run
from alutils.lab import figures
from alutils.lab.diagrams import draw_measures
from alutils.lab.interactive import Drawn, Explorer
from alutils.metrics import dice_score
from alutils.rounds import Round
from alutils.uncertainty import binary_entropy, least_confidence, one_sided_entropy

NEAR = 0.025
"""A pixel is near a probability p if its own probability is at most this far from p."""

_CURVES_SEEN = (
    "Left, uncertainty over the probability p: eq. 1 turned over is a tent and binary entropy an arch, both highest at "
    "0.5, eq. 2 leans to the left; eq. 3 of this image is a band, because it is no function of p. Right, the image, "
    "its prediction and four maps of uncertainty; the pixels near p are paler, with a black rim."
)
_WHO = "who labelled what, the human in colour, the model in black and white, with the true outline"
_THRESHOLDS_SEEN = (
    "Four pictures: the image with its true outline; its probabilities; the uncertain pixels, which are the human's; "
    f"{_WHO}. Below, a bar from p = 0 to 1 says who labels the pixels of each p."
)

_slider = partial(ipywidgets.FloatSlider, step=0.025, readout_format=".3f")


def explore_curves(
    images: torch.Tensor,
    probabilities: torch.Tensor,
    mc_std: torch.Tensor,
    *,
    names: Sequence[str] = (),
    p: float = 0.3,
) -> Explorer:
    """Section III-A: a slider over p marks the curves of eq. 1 and 2 at p, and the pixels near p in an image's maps.

    Eq. 3 is no function of p: the plot shows the median and the middle 80 % of the image's pixels of about the same p.

    Args:
        images: uint8 (n, 3, H, W).
        probabilities: of the lesion, (n, 1, H, W), 0 to 1.
        mc_std: eq. 3 of the same pixels, (n, 1, H, W), see :func:`alutils.mc_dropout_std`.
        names: of the images; by default they are numbered.
        p: where the slider stands at first, 0 to 1.

    Raises:
        ValueError: if there is no image, or a shape or ``p`` does not fit.

    >>> images, maps = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 1, 8, 8), 0.3)
    >>> print(explore_curves(images, maps, maps).text)
    p = 0.300: eq. 1 0.200, eq. 2 0.521, binary entropy 0.881.
    Pixels within 0.025 of it: 64, 100.0 % of image 1; the median of their eq. 3 is 0.300.
    """
    choices = _choices(images, names, probabilities=probabilities, mc_std=mc_std)
    planes, stds = (maps[:, 0].detach().cpu().float() for maps in (probabilities, mc_std))
    pictures = cache(lambda image: _uncertainty_pictures(images[image], planes[image], stds[image]))

    def draw(image: int, p: float) -> Drawn:
        probability, std = planes[image].numpy(), stds[image].numpy()
        near = np.abs(probability - p) <= NEAR + 1e-6
        figure = Figure(figsize=(9.5, 3.8))
        _draw_curves(figure.add_axes((0.05, 0.12, 0.355, 0.86)), p, probability, std)
        marked = {title: _marked(picture, near) for title, picture in pictures(image).items()}
        figures.draw_pictures(figure.add_axes((0.46, 0.01, 0.53, 0.98)), marked, n_columns=3)
        eq_1, eq_2, binary = (f(torch.tensor(p)).item() for f in (least_confidence, one_sided_entropy, binary_entropy))
        median = f"; the median of their eq. 3 is {np.median(std[near]):.3f}" if near.any() else ""
        text = (
            f"p = {p:.3f}: eq. 1 {eq_1:.3f}, eq. 2 {eq_2:.3f}, binary entropy {binary:.3f}.\n"
            f"Pixels within {NEAR} of it: {near.sum()}, {100 * near.mean():.1f} % of {choices[image][0]}{median}."
        )
        return figure, text, _CURVES_SEEN

    controls = {"image": partial(ipywidgets.Dropdown, options=choices), "p": partial(_slider, min=0, max=1)}
    return Explorer(draw, controls, image=0, p=p)


def _uncertainty_pictures(image: torch.Tensor, p: torch.Tensor, std: torch.Tensor) -> dict[str, np.ndarray]:
    highest = max(std.max().item(), 1e-6)
    return {
        "image": figures.as_rgb(image),
        "prediction p": figures.as_rgb(p[None]),
        "0.5 - eq. 1": _heat(0.5 - least_confidence(p), 0.5),
        "eq. 2": _heat(one_sided_entropy(p), 0.531),
        "binary entropy": _heat(binary_entropy(p), 1.0),
        f"eq. 3 (bright: {highest:.2f})": _heat(std, highest),
    }


def _marked(picture: np.ndarray, near: np.ndarray) -> np.ndarray:
    rim = binary_dilation(near, iterations=max(1, len(near) // 100)) & ~near
    marked = np.where(near[..., None], 0.3 * picture + 0.7, picture)
    marked[rim] = 0
    return marked


def _draw_curves(axes: Axes, p: float, probability: np.ndarray, std: np.ndarray) -> None:
    draw_measures(axes, [p] * 3)
    edges = np.linspace(0, 1, 11)
    places = np.digitize(probability, edges[1:-1])
    groups = [std[places == k] for k in range(10)]
    spread = [np.percentile(group, (10, 50, 90)) if len(group) > 4 else [np.nan] * 3 for group in groups]
    low, middle, high = np.transpose(spread)
    bins = (edges[:-1] + edges[1:]) / 2
    right = axes.twinx()  # eq. 3 is much smaller than the others
    right.fill_between(bins, low, high, color=figures.GREEN, alpha=0.25, linewidth=0)
    right.plot(bins, middle, color=figures.GREEN, linestyle="dashdot", marker=".", label="eq. 3")
    right.tick_params(axis="y", colors=figures.GREEN, labelsize=8)
    right.set_ylim(0, 1.25 * max(0.1, np.nanmax(high, initial=0)))
    axes.axvline(p, color="gray", linewidth=0.8)
    axes.set(ylabel="", xlim=(0, 1), ylim=(0, 1.25))
    lines = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    names = ["0.5 - eq. 1", "eq. 2", "binary entropy", "eq. 3 here (right)"]
    axes.legend(lines, names, frameon=False, fontsize=8, loc="upper center", ncols=2)


def explore_thresholds(
    images: torch.Tensor,
    truths: torch.Tensor,
    probabilities: torch.Tensor,
    *,
    names: Sequence[str] = (),
    tau_u: float = 0.25,
    tau_b: float = 0.5,
) -> Explorer:
    """Section III-B, Fig. 2: sliders for both thresholds show who labels what, at what cost, and the mask's Dice.

    Args:
        images: uint8 (n, 3, H, W).
        truths: their masks, uint8 (n, 1, H, W), 0 and 1.
        probabilities: of the lesion, (n, 1, H, W), 0 to 1.
        names: of the images; by default they are numbered.
        tau_u, tau_b: where the sliders stand at first, 0 to 0.5 and 0.05 to 0.95.

    Raises:
        ValueError: if there is no image, a shape does not fit, or :func:`alutils.merge_annotations` refuses a value.

    >>> images, p = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 1, 8, 8), 0.3)
    >>> print(explore_thresholds(images, images[:, :1], p).text)
    tau_u = 0.250, tau_b = 0.500, image 1: the human verifies 100.0 % of the pixels and marks 0.0 % as lesion.
    Dice of the merged mask 1.000; of the prediction alone, from p = 0.5 on, 1.000.
    tau_b changes nothing here: it lies between 0.250 and 0.750, and such pixels are the human's.
    """
    choices = _choices(images, names, truths=truths, probabilities=probabilities)
    outlined = cache(lambda image: _outlined(figures.as_rgb(images[image]), truths[image]))

    def draw(image: int, tau_u: float, tau_b: float) -> Drawn:
        truth, p = truths[image][None], probabilities[image][None]
        merged, human = merge_annotations(truth, p, tau_u, tau_b)
        pictures = {
            "image, true outline": outlined(image),
            "prediction p": figures.as_rgb(p[0]),
            "(a) uncertain pixels": figures.as_rgb(human[0]),
            "who labelled what": _outlined(figures.label_colours(images[image], merged[0], human[0]), truth[0]),
        }
        cost = annotation_cost(truth, human).iloc[0]
        text = (
            f"tau_u = {tau_u:.3f}, tau_b = {tau_b:.3f}, {choices[image][0]}: the human verifies "
            f"{cost['verify_percent']:.1f} % of the pixels and marks {cost['positive_percent']:.1f} % as lesion.\n"
            f"Dice of the merged mask {dice_score(merged, truth).item():.3f}; of the prediction alone, from p = 0.5 "
            f"on, {dice_score(p, truth).item():.3f}.\n{_what_tau_b_changes(p, human, tau_u, tau_b)}"
        )
        return _thresholds_figure(pictures, tau_u, tau_b), text, _THRESHOLDS_SEEN

    controls = {
        "image": partial(ipywidgets.Dropdown, options=choices),
        "tau_u": partial(_slider, min=0, max=0.5),
        "tau_b": partial(_slider, min=0.05, max=0.95),
    }
    return Explorer(draw, controls, image=0, tau_u=tau_u, tau_b=tau_b)


def _what_tau_b_changes(p: torch.Tensor, human: torch.Tensor, tau_u: float, tau_b: float) -> str:
    low, high = 0.5 - tau_u, 0.5 + tau_u
    if same_run(tau_u, tau_b)[1] == 0.5:
        return f"tau_b changes nothing here: it lies between {low:.3f} and {high:.3f}, and such pixels are the human's."
    start, end, label = (tau_b, low, "lesion") if tau_b < low else (high, tau_b, "background")
    n = (((p >= tau_b) != (p >= 0.5)) & ~human).sum().item()
    return f"tau_b acts: {n} pixels with p between {start:.3f} and {end:.3f} are the model's {label}."


def _thresholds_figure(pictures: Mapping[str, np.ndarray], tau_u: float, tau_b: float) -> Figure:
    figure = Figure(figsize=(9.5, 3.7))
    figures.draw_pictures(figure.add_axes((0.01, 0.28, 0.98, 0.72)), pictures, n_columns=4)
    axes = figure.add_axes((0.07, 0.16, 0.9, 0.06))
    low, high = 0.5 - tau_u, 0.5 + tau_u
    for start, end, bottom, top, who in (
        (0, min(tau_b, low), 0, 1, "model: background"),
        (min(tau_b, low), low, 0, 1, "model: lesion"),
        (low, high, 0, 0.5, "human: background"),
        (low, high, 0.5, 1, "human: lesion"),
        (high, max(tau_b, high), 0, 1, "model: background"),
        (max(tau_b, high), 1, 0, 1, "model: lesion"),
    ):
        axes.axvspan(start, end, bottom, top, color=figures.LABELLED_BY[who])
    axes.plot(tau_b, 1.3, "v", color=figures.BLACK, clip_on=False)
    axes.text(tau_b + 0.01, 1.15, "tau_b", fontsize=8)
    axes.text(-0.01, 0.5, "p", fontsize=9, ha="right", va="center")
    axes.set(xlim=(0, 1), ylim=(0, 1), yticks=[], xticks=np.linspace(0, 1, 9))
    axes.tick_params(labelsize=8)
    figures.label_legend(figure, outline=True)
    return figure


def explore_rounds(rounds: Sequence[Round], pool: Split) -> Explorer:
    """Fig. 1 in retrospect: one slider over the queries of a run, one over the images of each query by rank.

    The labels shown are those at the end of the run. Outside the human's pixels they are the binarized prediction of
    the model that queried the image, or with ``partial-refreshed`` of the last model.

    Args:
        rounds: all rounds of a run, ``list(alutils.run_active_learning(...))``.
        pool: the run's training split.

    Raises:
        ValueError: if the last round has no labels, nothing was queried, or the pool is too small to be the run's.
    """
    if not rounds or rounds[-1].labels is None:
        raise ValueError("rounds: the last has no labels; give all rounds of a run, list(run_active_learning(...))")
    labels, sizes = rounds[-1].labels, [len(round_.queries) for round_ in rounds if len(round_.queries)]
    if not sizes:
        raise ValueError("rounds: nothing was queried in this run; take one with a query strategy")
    if labels.indices.max() >= len(pool):
        raise ValueError(f"pool: the run asked for image {labels.indices.max()}, but there are only {len(pool)}")

    def draw(query: int, rank: int) -> Drawn:
        trained = rounds[query - 1]
        asked = slice(trained.n_labelled, trained.n_labelled + sizes[query - 1])
        dice = dice_score(labels.masks[asked].cpu(), pool.masks[labels.indices[asked]].cpu())
        rank = min(rank, len(dice))  # the last query of an exhausted pool is shorter
        place = asked.start + rank - 1
        index = int(labels.indices[place])
        mask, human = (masks[place : place + 1][0] for masks in (labels.masks, labels.human))
        pictures = {
            "image, true outline": _outlined(figures.as_rgb(pool.images[index]), pool.masks[index]),
            "its labels": figures.as_rgb(mask),
            "who labelled what": _outlined(figures.label_colours(pool.images[index], mask, human), pool.masks[index]),
        }
        text = (
            f"Query {query}, after training on {trained.n_labelled} images to a validation Dice of "
            f"{trained.val_dice:.3f}; rank {rank} of {len(dice)}: {pool.ids[index]}.\n"
            f"The human labelled {100 * human.float().mean():.1f} % of its pixels. Dice of its labels "
            f"{dice[rank - 1]:.3f}, on average over this query {dice.mean():.3f}."
        )
        description = (
            f"Three pictures: the image with its true outline; its labels; {_WHO}. Right, validation Dice over the "
            f"labelled images, this round marked: {', '.join(f'{round_.val_dice:.2f}' for round_ in rounds)}."
        )
        return _rounds_figure(pictures, rounds, query), text, description

    slider = partial(ipywidgets.IntSlider, min=1)
    controls = {"query": partial(slider, max=len(sizes)), "rank": partial(slider, max=max(sizes))}
    return Explorer(draw, controls, query=1, rank=1)


def _rounds_figure(pictures: Mapping[str, np.ndarray], rounds: Sequence[Round], query: int) -> Figure:
    figure = Figure(figsize=(9.5, 3))
    figures.draw_pictures(figure.add_axes((0.01, 0.11, 0.64, 0.88)), pictures, n_columns=3)
    axes = figure.add_axes((0.71, 0.27, 0.28, 0.6))
    x, y = [round_.n_labelled for round_ in rounds], [round_.val_dice for round_ in rounds]
    axes.plot(x, y, "o-", color=figures.BLUE, markersize=4)
    axes.plot(x[query - 1], y[query - 1], "D", color=figures.BLACK, markersize=8)
    axes.set_xlabel("labelled images", fontsize=8)
    axes.set_title("validation Dice", fontsize=9)
    axes.tick_params(labelsize=8)
    figures.label_legend(figure, outline=True)
    return figure


def _choices(images: torch.Tensor, names: Sequence[str], **maps: torch.Tensor) -> list[tuple[str, int]]:
    """Each image's name and position, for a dropdown."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or len(images) == 0:
        raise ValueError(f"images must be uint8 (n, 3, H, W), at least one, got {images.dtype} {tuple(images.shape)}")
    shape = (len(images), 1, *images.shape[2:])
    for name, tensor in maps.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, as the images do, got {tuple(tensor.shape)}")
    names = names or [f"image {i + 1}" for i in range(len(images))]
    if len(names) != len(images):
        raise ValueError(f"names: {len(names)} of them for {len(images)} images")
    return [(name, i) for i, name in enumerate(names)]


def _heat(pixels: torch.Tensor, highest: float) -> np.ndarray:
    return colormaps["cividis"](pixels.numpy() / highest)[..., :3].astype(np.float32)


def _outlined(picture: np.ndarray, mask: torch.Tensor) -> np.ndarray:
    """The picture, (H, W, 3), with the mask's outline, enlarged to about 256 pixels where it is smaller."""
    enlarged = np.ones((max(1, 256 // len(picture)),) * 2)
    pixels, lesion = np.kron(picture, enlarged[..., None]), np.kron(mask[0].cpu().numpy(), enlarged)
    line, edge = to_rgb(figures.TRUTH_AMONG_LABELS), to_rgb(figures.BLACK)
    return mark_boundaries(pixels, lesion.astype(int), color=line, outline_color=edge)
