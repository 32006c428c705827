"""Figures that follow sliders, and stand still where there is no kernel (sections III-A and III-B, Fig. 1 and 2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any

import ipywidgets
import numpy as np
import torch
from IPython.display import DisplayHandle, display
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation, distance_transform_edt
from skimage.segmentation import mark_boundaries

from alutils import figures
from alutils.annotation import merge_annotations
from alutils.cost import annotation_cost
from alutils.data import Split
from alutils.metrics import dice_score
from alutils.records import Round
from alutils.uncertainty import binary_entropy, least_confidence, one_sided_entropy

NEAR = 0.025
"""A pixel is near a probability p if its own is at most this far from it."""

Drawing = tuple[Figure, str, str]
"""A figure, what is to be read below it (sentences, a line each), and what else there is to see in it."""


class Explorer:
    """A figure, its numbers as text, and the controls that draw both anew: shown as the last value of a cell.

    Where nobody can move a control (papermill, nbconvert, a web page) a line says so in the controls' place. No widget
    is made there, so an executed notebook carries none. The numbers are text besides being in the alternative text,
    because JupyterLab drops the latter.

    Args:
        draw: from the controls' values, by name, to a :data:`Drawing`. It should make a ``matplotlib.figure.Figure``,
            which pyplot does not keep.
        controls: by name, what makes a widget of a ``value`` and a ``description``.
        values: at first, one for each control.

    Attributes:
        figure: the one last drawn.
        text: what is to be read below it.
        alt: its alternative text.

    Raises:
        Exception: what ``draw`` raises. Once the figure is shown, the error also takes its place.

    >>> slider = partial(ipywidgets.IntSlider, min=1, max=9)
    >>> explorer = Explorer(lambda n: (Figure((n, 1)), f"{n} inches.", "Nothing is drawn."), {"n": slider}, n=2)
    >>> explorer.controls["n"].value = 3
    >>> explorer.alt
    '3 inches. Nothing is drawn.'
    """

    def __init__(
        self, draw: Callable[..., Drawing], controls: Mapping[str, Callable[..., ipywidgets.ValueWidget]], **values: Any
    ) -> None:
        self._function, self._make, self._values = draw, controls, values
        self._shown: tuple[DisplayHandle, DisplayHandle] | None = None
        self._draw()

    @cached_property
    def controls(self) -> dict[str, ipywidgets.ValueWidget]:
        """The widgets by name, made when they are first asked for."""
        widgets = {name: make(value=self._values[name], description=name) for name, make in self._make.items()}
        for name, widget in widgets.items():
            widget.observe(partial(self._moved, name), "value")
        return widgets

    def _moved(self, name: str, change: Mapping[str, Any]) -> None:
        self._values[name] = change["new"]
        try:
            self._draw()
            self._show()
        except Exception as error:
            if self._shown:  # JupyterLab puts what a callback raises into a log that few readers open
                message = f"The figure could not be drawn. {type(error).__name__}: {error}"
                for handle, text in zip(self._shown, (message, ""), strict=True):
                    handle.update({"text/plain": text}, raw=True)
            raise

    def _draw(self) -> None:
        self.figure, self.text, description = self._function(**self._values)
        self.alt = f"{self.text} {description}"

    def _show(self) -> None:
        if self._shown:
            figure, text = self._shown
            figures.show_figure(self.figure, self.alt, update=figure, quick=True)
            text.update({"text/plain": self.text}, raw=True)

    def _ipython_display_(self) -> None:
        self._shown = display(display_id=True), display(display_id=True)
        self._show()
        controls = {"text/plain": f"Controls: {', '.join(self._make)}. Run this cell in JupyterLab to move them."}
        if figures.someone_is_there():
            controls = ipywidgets.VBox(list(self.controls.values()))._repr_mimebundle_() | controls
        display(controls, raw=True)


def explore_curves(
    images: torch.Tensor,
    probabilities: torch.Tensor,
    mc_std: torch.Tensor,
    *,
    names: Sequence[str] = (),
    p: float = 0.3,
) -> Explorer:
    """Section III-A: a slider over p, its place on the curves of eq. 1 and 2, and its pixels in the maps of an image.

    Eq. 3 is no function of p. In its place the plot has what the samples of *this image* give: the median of eq. 3 over
    the pixels of about the same p, and the band that holds the middle 80 % of them.

    Args:
        images: uint8 (n, 3, H, W), to choose from.
        probabilities: of the lesion, (n, 1, H, W), 0 to 1.
        mc_std: eq. 3 of the same pixels, (n, 1, H, W), see :func:`alutils.mc_dropout_std`.
        names: of the images; none: they are numbered.
        p: where the slider is at first, 0 to 1.

    Raises:
        ValueError: if there is no image, a shape does not fit, or ``p`` is out of range.

    >>> images, maps = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 1, 8, 8), 0.3)
    >>> print(explore_curves(images, maps, maps).text)
    p = 0.300: eq. 1 0.200, eq. 2 0.521, binary entropy 0.881.
    Pixels within 0.025 of it: 64, 100.0 % of image 1; the median of their eq. 3 is 0.300.
    """
    choices = _choices(images, names, probabilities=probabilities, mc_std=mc_std)

    @cache
    def prepared(image: int) -> Maps:
        return Maps(images[image], probabilities[image], mc_std[image])

    def draw(image: int, p: float) -> Drawing:
        return draw_curves(prepared(image), choices[image][0], p)

    controls = {
        "image": partial(ipywidgets.Dropdown, options=choices),
        "p": partial(ipywidgets.FloatSlider, min=0, max=1, step=0.025, readout_format=".3f"),
    }
    return Explorer(draw, controls, image=0, p=p)


class Maps:
    """What of an image and its maps does not depend on p, for :func:`draw_curves`."""

    def __init__(self, image: torch.Tensor, probability: torch.Tensor, std: torch.Tensor) -> None:
        self.probability, self.std = (plane[0].detach().cpu().float().numpy() for plane in (probability, std))
        p = torch.from_numpy(self.probability)
        self.pictures = {
            "image": _colour(image),
            "prediction p": _colour(probability),
            "0.5 - eq. 1": _heat(0.5 - least_confidence(p), 0.5),
            "eq. 2": _heat(one_sided_entropy(p), 0.531),
            "binary entropy": _heat(binary_entropy(p), 1.0),
            f"eq. 3 (bright: {max(self.std.max(), 1e-6):.2f})": _heat(std[0], max(self.std.max(), 1e-6)),
        }
        edges = np.linspace(0, 1, 21)
        place = np.digitize(self.probability.ravel(), edges[1:-1])
        groups = [self.std.ravel()[place == k] for k in range(20)]
        self.bins = (edges[:-1] + edges[1:]) / 2
        self.spread = np.array([np.percentile(its, (10, 50, 90)) if len(its) > 4 else [np.nan] * 3 for its in groups]).T
        lesion = self.probability >= 0.5
        has_outline = lesion.any() and not lesion.all()
        self.distance = np.where(lesion, *map(distance_transform_edt, (lesion, ~lesion))) if has_outline else None


def draw_curves(maps: Maps, name: str, p: float) -> Drawing:
    """The figure of :func:`explore_curves`: the curves with ``p`` marked, the maps with its pixels paler."""
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, got {p}: it is a probability")
    near = np.abs(maps.probability - p) <= NEAR + 1e-6
    at = torch.tensor([p])
    values = {"eq. 1": least_confidence(at), "eq. 2": one_sided_entropy(at), "binary entropy": binary_entropy(at)}
    said = ", ".join(f"{what} {value.item():.3f}" for what, value in values.items())
    where = f"Pixels within {NEAR} of it: {near.sum()}, {100 * near.mean():.1f} % of {name}"
    if near.any():
        where += f"; the median of their eq. 3 is {np.median(maps.std[near]):.3f}"
        if maps.distance is not None:
            where += f", that of their distance from the predicted outline {np.median(maps.distance[near]):.1f} px"
    figure = Figure(figsize=(9.5, 3.8))
    axes = figure.add_axes((0.05, 0.12, 0.4, 0.86))
    figures.draw_measures(axes, [p] * 3)
    low, middle, high = maps.spread
    axes.fill_between(maps.bins, low, high, color=figures.GREEN, alpha=0.25, linewidth=0)
    axes.plot(maps.bins, middle, color=figures.GREEN, linestyle="dashdot", label="eq. 3, this image")
    axes.axvline(p, color="gray", linewidth=0.8)
    axes.set(ylabel="", xlim=(0, 1), ylim=(0, 1.25))
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
    rim = binary_dilation(near, iterations=max(1, len(near) // 100)) & ~near
    marked = {title: _marked(picture, near, rim) for title, picture in maps.pictures.items()}
    _draw_pictures(figure.add_axes((0.46, 0.01, 0.53, 0.98)), marked, n_columns=3)
    description = (
        "Left, uncertainty over the probability p: eq. 1 turned over is a tent and binary entropy an arch, both "
        "highest at 0.5, eq. 2 leans to the left; eq. 3 of this image is a band, for it is no function of p. Right, "
        "the image, its prediction and four maps of uncertainty; the pixels near p are paler, with a black rim."
    )
    return figure, f"p = {p:.3f}: {said}.\n{where}.", description


def explore_thresholds(
    images: torch.Tensor,
    truths: torch.Tensor,
    probabilities: torch.Tensor,
    *,
    names: Sequence[str] = (),
    tau_u: float = 0.25,
    tau_b: float = 0.5,
) -> Explorer:
    """Section III-B, Fig. 2: sliders for both thresholds; who labels what, at what cost, and how good the mask becomes.

    Args:
        images: uint8 (n, 3, H, W), to choose from.
        truths: their masks, uint8 (n, 1, H, W), 0 and 1.
        probabilities: of the lesion, (n, 1, H, W), 0 to 1.
        names: of the images; none: they are numbered.
        tau_u: where its slider is at first, 0 to 0.5.
        tau_b: the same, 0.05 to 0.95.

    Raises:
        ValueError: if there is no image, a shape does not fit, or what :func:`alutils.merge_annotations` raises.

    >>> images, p = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 1, 8, 8), 0.3)
    >>> print(explore_thresholds(images, images[:, :1], p).text)
    tau_u = 0.250, tau_b = 0.500, image 1: the human verifies 100.0 % of the pixels and marks 0.0 % as lesion.
    Dice of the merged mask 1.000; of the prediction alone, from p = 0.5 on, 1.000.
    tau_b changes nothing here: it lies between 0.250 and 0.750, and such pixels are the human's.
    """
    choices = _choices(images, names, truths=truths, probabilities=probabilities)

    @cache
    def still(image: int) -> dict[str, np.ndarray]:
        return {
            "image, true outline": _outlined(images[image], truths[image]),
            "prediction p": _colour(probabilities[image]),
        }

    def draw(image: int, tau_u: float, tau_b: float) -> Drawing:
        chosen = slice(image, image + 1)
        tensors = images[chosen], truths[chosen], probabilities[chosen]
        return draw_thresholds(*tensors, still(image), choices[image][0], tau_u, tau_b)

    slider = partial(ipywidgets.FloatSlider, step=0.025, readout_format=".3f")
    controls = {
        "image": partial(ipywidgets.Dropdown, options=choices),
        "tau_u": partial(slider, min=0, max=0.5),
        "tau_b": partial(slider, min=0.05, max=0.95),
    }
    return Explorer(draw, controls, image=0, tau_u=tau_u, tau_b=tau_b)


def draw_thresholds(
    image: torch.Tensor,
    truth: torch.Tensor,
    p: torch.Tensor,
    still: Mapping[str, np.ndarray],
    name: str,
    tau_u: float,
    tau_b: float,
) -> Drawing:
    """The figure of :func:`explore_thresholds` for one image, (1, 3, H, W); ``still`` are pictures that come first."""
    merged, human = merge_annotations(truth, p, tau_u, tau_b)
    cost = annotation_cost(truth, human).iloc[0]
    dice, alone = (dice_score(mask, truth).item() for mask in (merged, p))
    numbers = (
        f"tau_u = {tau_u:.3f}, tau_b = {tau_b:.3f}, {name}: the human verifies {cost['verify_percent']:.1f} % of the "
        f"pixels and marks {cost['positive_percent']:.1f} % as lesion."
    )
    quality = f"Dice of the merged mask {dice:.3f}; of the prediction alone, from p = 0.5 on, {alone:.3f}."
    low, high = 0.5 - tau_u, 0.5 + tau_u
    if abs(0.5 - tau_b) <= tau_u + 1e-9:
        acts = f"tau_b changes nothing here: it lies between {low:.3f} and {high:.3f}, and such pixels are the human's."
    else:
        between = (tau_b, low) if tau_b < low else (high, tau_b)
        whose = "lesion" if tau_b < low else "background"
        n = (((p >= tau_b) != (p >= 0.5)) & ~human).sum().item()
        acts = f"tau_b acts: {n} pixels with p between {between[0]:.3f} and {between[1]:.3f} are the model's {whose}."
    pictures = {
        "(a) uncertain pixels": _colour(human[0]),
        "who labelled what": figures.label_colours(image[0], merged[0], human[0]),
    }
    figure = Figure(figsize=(9.5, 3.7))
    _draw_pictures(figure.add_axes((0.01, 0.28, 0.98, 0.72)), {**still, **pictures}, n_columns=4)
    _draw_division(figure.add_axes((0.07, 0.16, 0.9, 0.06)), low, high, tau_b)
    figures.label_legend(figure)
    description = (
        "Four pictures: the image with its true outline; its probabilities; the uncertain pixels, which are the "
        "human's; who labelled what, the human in colour, the model in black and white. Below, a bar from p = 0 to 1 "
        "says who labels the pixels of each p."
    )
    return figure, f"{numbers}\n{quality}\n{acts}", description


def _draw_division(axes: Axes, low: float, high: float, tau_b: float) -> None:
    """Who labels the pixels of each p, in the colours of :func:`alutils.figures.draw_labels`."""
    colours = figures.LABELLED_BY
    axes.axvspan(0, min(tau_b, low), color=colours["model: background"])
    axes.axvspan(min(tau_b, low), low, color=colours["model: lesion"])
    axes.axvspan(low, high, 0, 0.5, color=colours["human: background"])
    axes.axvspan(low, high, 0.5, 1, color=colours["human: lesion"])
    axes.axvspan(high, max(tau_b, high), color=colours["model: background"])
    axes.axvspan(max(tau_b, high), 1, color=colours["model: lesion"])
    axes.plot(tau_b, 1.3, "v", color=figures.BLACK, clip_on=False)
    axes.text(tau_b + 0.01, 1.15, "tau_b", fontsize=8)
    axes.text(-0.01, 0.5, "p", fontsize=9, ha="right", va="center")
    axes.set(xlim=(0, 1), ylim=(0, 1), yticks=[], xticks=np.linspace(0, 1, 9))
    axes.tick_params(labelsize=8)


def explore_rounds(rounds: Sequence[Round], pool: Split) -> Explorer:
    """Fig. 1, backwards: a slider over the queries of a run, and over the images of each by rank.

    It shows the labels that the run holds at its end. Outside of the human's pixels they are the binarized prediction
    of the model that queried the image (with ``partial-refreshed``: of the last model; ``human-only`` ignores them).

    Args:
        rounds: of :func:`alutils.run_active_learning`, all of them, as a list.
        pool: the run's training split.

    Raises:
        ValueError: if the rounds do not end with one that has its labels, or nothing was queried.
    """
    if not rounds or rounds[-1].labels is None:
        raise ValueError(
            "rounds: the last has no labels; give all of run_active_learning, list(run), to its last round"
        )
    labels = rounds[-1].labels
    ends = [*(one.n_labelled for one in rounds), len(labels.indices)]
    queries = [slice(*pair) for pair in itertools.pairwise(ends) if pair[0] < pair[1]]
    if not queries:
        raise ValueError("rounds: nothing was queried in this run; take one with a query strategy")
    if int(labels.indices.max()) >= len(pool):
        raise ValueError(f"pool: the run asked for image {int(labels.indices.max())}, but there are only {len(pool)}")

    @cache
    def dice_of(query: int) -> torch.Tensor:
        place = queries[query - 1]
        return dice_score(labels.masks[place].cpu(), pool.masks[labels.indices[place]].cpu())

    @cache
    def still(index: int) -> dict[str, np.ndarray]:
        return {"image, true outline": _outlined(pool.images[index], pool.masks[index])}

    def draw(query: int, rank: int) -> Drawing:
        dice = dice_of(query)
        rank = min(rank, len(dice))  # the last query of an exhausted pool is shorter
        place = queries[query - 1].start + rank - 1
        index = int(labels.indices[place])
        mask, human = (plane[place : place + 1] for plane in (labels.masks, labels.human))
        text = (
            f"Query {query}, after training on {rounds[query - 1].n_labelled} images to a validation Dice of "
            f"{rounds[query - 1].val_dice:.3f}; rank {rank} of {len(dice)}: {pool.ids[index]}.\n"
            f"The human labelled {100 * human.float().mean():.1f} % of its pixels. Dice of its labels "
            f"{dice[rank - 1]:.3f}, on average over this query {dice.mean():.3f}."
        )
        pictures = {
            **still(index),
            "its labels": _colour(mask[0]),
            "who labelled what": figures.label_colours(pool.images[index], mask[0], human[0]),
        }
        figure, description = draw_round(pictures, rounds, query)
        return figure, text, description

    lengths = [place.stop - place.start for place in queries]
    controls = {
        "query": partial(ipywidgets.IntSlider, min=1, max=len(queries)),
        "rank": partial(ipywidgets.IntSlider, min=1, max=max(lengths)),
    }
    return Explorer(draw, controls, query=1, rank=1)


def draw_round(pictures: Mapping[str, np.ndarray], rounds: Sequence[Round], query: int) -> tuple[Figure, str]:
    """The figure of :func:`explore_rounds` and what there is to see: pictures of one image, and where in the run."""
    figure = Figure(figsize=(9.5, 3))
    _draw_pictures(figure.add_axes((0.01, 0.11, 0.64, 0.88)), pictures, n_columns=3)
    axes = figure.add_axes((0.71, 0.27, 0.28, 0.6))
    x, y = [one.n_labelled for one in rounds], [one.val_dice for one in rounds]
    axes.plot(x, y, "o-", color=figures.BLUE, markersize=4)
    axes.plot(x[query - 1], y[query - 1], "D", color=figures.BLACK, markersize=8)
    axes.set_xlabel("labelled images", fontsize=8)
    axes.set_title("validation Dice", fontsize=9)
    axes.tick_params(labelsize=8)
    figures.label_legend(figure)
    description = (
        "Three pictures: the image with its true outline; its labels; who labelled what, the human in "
        "colour, the model in black and white. Right, validation Dice over the labelled images, this round marked: "
        f"{', '.join(f'{value:.2f}' for value in y)}."
    )
    return figure, description


def _choices(images: torch.Tensor, names: Sequence[str], **maps: torch.Tensor) -> list[tuple[str, int]]:
    """Check the tensors against each other; the images' names with their places, for a dropdown."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or len(images) == 0:
        raise ValueError(f"images must be uint8 (n, 3, H, W), at least one, got {images.dtype} {tuple(images.shape)}")
    shape = (len(images), 1, *images.shape[2:])
    for name, tensor in maps.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, as the images do, got {tuple(tensor.shape)}")
    names = names or [f"image {i + 1}" for i in range(len(images))]
    if len(names) != len(images):
        raise ValueError(f"names: {len(names)} of them for {len(images)} images; give one each, or none")
    return [(name, i) for i, name in enumerate(names)]


def _colour(image: torch.Tensor) -> np.ndarray:
    """A picture in colours from 0 to 1, float32 (H, W, 3): of uint8 (3, H, W), or (1, H, W) from 0 to 1 in grey."""
    pixels = image.detach().cpu().float() / (255 if image.shape[0] == 3 else 1)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _heat(pixels: torch.Tensor, top: float) -> np.ndarray:
    return colormaps["cividis"](pixels.detach().cpu().float().numpy() / top)[..., :3].astype(np.float32)


def _outlined(image: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """The picture with the mask's outline, small ones enlarged: the outline is two pixels wide."""
    enlarged = np.ones((max(1, 256 // image.shape[-1]),) * 2)
    pixels, lesion = np.kron(_colour(image), enlarged[..., None]), np.kron(mask[0].cpu().numpy(), enlarged)
    return mark_boundaries(pixels, lesion.astype(int), color=to_rgb(figures.TRUTH), outline_color=to_rgb(figures.BLACK))


def _marked(picture: np.ndarray, where: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Paler at the pixels ``where``, black at their rim: both show in print and on any colours."""
    marked = picture.copy()
    marked[where] = 0.3 * picture[where] + 0.7
    marked[rim] = 0
    return marked


def _draw_pictures(axes: Axes, pictures: Mapping[str, np.ndarray], n_columns: int) -> None:
    """Pictures of one size with their titles, as one picture: axes of their own would take most of the time."""
    height, width = next(iter(pictures.values())).shape[:2]
    gap, head = 0.04 * width, 0.13 * height
    axes.set_axis_off()
    for i, (title, picture) in enumerate(pictures.items()):
        left, top = (i % n_columns) * (width + gap), (i // n_columns) * (height + head)
        axes.imshow(picture, extent=(left, left + width, top + height, top))
        axes.text(left + width / 2, top - 0.03 * height, title, fontsize=9, ha="center", va="bottom")
    n_rows = -(-len(pictures) // n_columns)
    axes.set(xlim=(0, n_columns * (width + gap) - gap), ylim=(n_rows * (height + head) - head, -head))
