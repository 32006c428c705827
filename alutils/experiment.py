"""One frozen, validated description of a run. The defaults are the paper's values (section IV-D)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alutils.system.checks import ConfigError, did_you_mean, expanded, shown
from alutils.system.settings import DegenerateMasks, from_list, parse_settings

_PACKAGE = Path(__file__).resolve().parent
PROFILES_DIR = _PACKAGE.parent / "profiles" if (_PACKAGE.parent / "profiles").is_dir() else _PACKAGE / "profiles"
"""The folder of the profiles: beside the package in the project, inside the package in an installed wheel."""

_MOST = 1_000_000  # images, queries, epochs, ...: a larger number is a typing error, and would fill the memory
_Count = Annotated[int, Field(ge=1, le=_MOST)]
_Counts = Annotated[tuple[_Count, _Count, _Count], from_list]
_Filter = Annotated[int, Field(ge=1, le=4096)]
_Filters = Annotated[tuple[_Filter, _Filter, _Filter, _Filter, _Filter], from_list]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]

_G = TypeVar("_G", bound="_Settings")


class _Settings(BaseModel):
    """Settings that are checked when they are made and never change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None


class Pictures(_Settings):
    """The images and masks (section IV-D)."""

    image_size: int = Field(512, ge=32, le=2048, multiple_of=32, description="side of the square images, pixels")
    n_synthetic: _Counts = Field(
        (2594, 100, 1000),
        description="images in train, validation and test where they are synthetic; by default ISIC 2018's",
    )
    degenerate_masks: DegenerateMasks = Field(
        "warn",
        description="masks of photographs without lesion, or all lesion: warn (name them), error (refuse them) or keep",
    )


class Acquisition(_Settings):
    """Which images are queried, and how many (section IV-D).

    The default is 36 queries, because 10 epochs x (4 + 5 + ... + 40) batches = 8140 steps (footnote 6).
    """

    cold_start: _Count = Field(128, description="images that are fully annotated before the first round")
    cold_start_by: Literal["random", "kmeans", "typiclust"] = Field(
        "random", description="how the cold start is chosen: by lot, or one image per cluster of ImageNet's features"
    )
    query_size: _Count = Field(32, description="images queried after each training")
    n_queries: int = Field(36, ge=0, le=_MOST, description="queries after the cold start (Table I: 36; Table II: 20)")
    strategy: str = Field("least_confidence", min_length=1, description="how images are queried, see alutils.queries")
    reduction: Literal["sum", "mean", "median", "top_k", "band_mean"] = Field(
        "sum",
        description="how pixels' uncertainty becomes the image's score; band_mean takes those with |0.5 - p| <= tau_u",
    )
    power_beta: float = Field(1.0, gt=0, description="exponent of power-: the larger, the surer the highest scores win")
    mc_samples: int = Field(20, ge=2, le=_MOST, description="N of eq. 3, Monte Carlo dropout samples; [24] takes 20")

    @property
    def labelled_per_round(self) -> tuple[int, ...]:
        """Images in the labelled set at each training: the cold start, then one more query each time."""
        return tuple(self.cold_start + k * self.query_size for k in range(self.n_queries + 1))

    def labelled_among(self, n_train: int) -> tuple[int, ...]:
        """:attr:`labelled_per_round` for a training set of ``n_train`` images: the round with all of them is the last.

        >>> Acquisition(cold_start=4, query_size=2, n_queries=9).labelled_among(7)
        (4, 6, 7)
        """
        sizes = self.labelled_per_round
        n_before = sum(n < n_train for n in sizes)  # rounds after which the pool still has images
        return tuple(min(n, n_train) for n in sizes[: n_before + 1])


class Labelling(_Settings):
    """Who labels which pixels of the queried images (section III-B)."""

    annotation: Literal[
        "full",
        "partial",
        "human-only",
        "model-only",
        "partial-refreshed",
        "contour-band",
        "superpixels",
        "correction",
    ] = Field("full", description="who labels the pixels of queried images, see alutils.annotation")
    oracle_noise: _Share = Field(
        0.0,
        description="area that the simulated oracle labels wrongly, as a share of the lesion; experts differ by 0.15",
    )
    tau_u: float = Field(0.25, ge=0, le=0.5, description="a pixel is uncertain where |0.5 - p| <= tau_u, see III-B")
    tau_b: float = Field(0.25, gt=0, lt=1, description="the model labels a pixel lesion where p >= tau_b, see III-B")
    smallest_part: int = Field(
        0, ge=0, le=_MOST, description="parts of a lesion with fewer pixels do not count in what an annotation costs"
    )


class Control(_Settings):
    """A second network after each round, trained from the initial weights on the labelled set; the run ignores it."""

    control: Literal["none", "equal_steps", "belief"] = Field(
        "none",
        description="what it is trained on; equal_steps: all labels; belief: the human's, where a model wrote the rest",
    )
    control_steps: _Count = Field(1000, description="optimizer steps of the second network, the same in each round")


class Network(_Settings):
    """The network (section IV-C): a U-Net, or another."""

    architecture: str = Field("unet", min_length=1, description="any of segmentation-models-pytorch, such as 'fpn'")
    encoder: str = Field("resnet18", min_length=1, description="any encoder of segmentation-models-pytorch")
    encoder_weights: str | None = Field(
        "imagenet", description="a name that the encoder has weights for, the path of a file, or null: random"
    )
    decoder_channels: _Filters = Field((256, 128, 64, 32, 16), description="filters of the decoder stages of a U-Net")
    skip_convolutions: bool = Field(True, description="1x1 convolution + batch norm + ReLU on the U-Net's skips")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the deepest features dropped before the decoder")


class Computing(_Settings):
    """What every pass of images through the network depends on (the normalization: section IV-D)."""

    batch_size: _Count = Field(32, description="images per step; a prediction takes twice as many")
    precision: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="auto: bfloat16 where the device has instructions for it, or else float16 (GPUs), or float32",
    )
    deterministic: bool = Field(
        False, description="on a GPU, only algorithms that repeat themselves to the bit; on a CPU all do"
    )
    compile: bool = Field(False, description="torch.compile the network: takes a minute, so for long runs on a GPU")
    normalize_mean: Annotated[tuple[float, float, float], from_list] = Field(
        (0.485, 0.456, 0.406), description="means of red, green and blue, whose values are 0 to 1"
    )
    normalize_std: Annotated[tuple[_Positive, _Positive, _Positive], from_list] = Field(
        (0.229, 0.224, 0.225), description="their standard deviations"
    )


class Augmentation(_Settings):
    """How training images are changed at random (section IV-D)."""

    rotation: float = Field(30.0, ge=0, le=180, description="largest rotation to either side, degrees")
    horizontal_flip: _Share = Field(0.5, description="probability")
    vertical_flip: _Share = Field(0.5, description="probability")
    brightness: _Share = Field(0.2, description="largest relative change")
    contrast: _Share = Field(0.2, description="largest relative change")
    saturation: _Share = Field(0.2, description="largest relative change")
    blur_kernel: int = Field(5, ge=1, le=31, description="side of the Gaussian kernel, pixels, odd")
    blur_sigma_min: float = Field(0.01, ge=1e-6, description="pixels")  # much less would be 0 in float32
    blur_sigma_max: float = Field(0.2, gt=0, description="pixels")

    @model_validator(mode="after")
    def _check_blur(self) -> Self:
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: must be odd, got {self.blur_kernel}")
        if self.blur_sigma_max < self.blur_sigma_min:
            raise ValueError(
                f"blur_sigma_max: must be at least blur_sigma_min = {self.blur_sigma_min}, got {self.blur_sigma_max}"
            )
        return self


class Training(Augmentation, Computing):
    """One training on the labelled set (section IV-D)."""

    epochs: _Count = Field(10, description="passes over the labelled set in each round")
    learning_rate: float = Field(0.01, gt=0, description="of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0001, ge=0, description="of SGD")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the learning rate within one training")
    loss: Literal["bce", "dice", "bce+dice"] = Field("bce", description="binary cross-entropy with logits, soft Dice")
    consistency: float = Field(
        0.0, ge=0, description="weight of the squared difference from the mirror image's prediction; [15] takes 1"
    )
    fine_tune: bool = Field(True, description="each round starts from the last round's weights; false: from scratch")

    def steps_for(self, n_labelled: int) -> int:
        """Optimizer steps of a training on ``n_labelled`` images: epochs times batches; an incomplete batch counts.

        >>> Training(epochs=10, batch_size=32).steps_for(40)
        20
        """
        return self.epochs * math.ceil(n_labelled / self.batch_size)


class Experiment(Training, Network, Control, Labelling, Acquisition, Pictures):
    """Every setting of a run; the defaults are the values of section IV-D and of the readings of the paper.

    An experiment has the settings of all groups, so a function that takes a group takes an experiment too. A group
    alone is ``experiment.pictures``, ``.acquisition``, ``.labelling``, ``.controls``, ``.network``, ``.computing``,
    ``.augmentation`` or ``.training`` (which includes the two before it). ``profiles/paper.yaml`` lists all settings.

    Raises:
        ConfigError: for an unknown name (the nearest valid one is suggested), a wrong type or a value out of range.

    >>> paper = Experiment()
    >>> paper.n_training_steps, paper.labelled_per_round[-1]
    (8140, 1280)
    >>> paper.labelling
    Labelling(annotation='full', oracle_noise=0.0, tau_u=0.25, tau_b=0.25, smallest_part=0)
    >>> Experiment(query_sise=16)
    Traceback (most recent call last):
    alutils.system.checks.ConfigError: the experiment's settings cannot be used:
      query_sise: there is no such setting; did you mean 'query_size'?
    """

    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="seed of all that is drawn: cold start, initial weights, batches, augmentation, dropout",
    )

    pictures = property(lambda self: self._group(Pictures))
    acquisition = property(lambda self: self._group(Acquisition))
    labelling = property(lambda self: self._group(Labelling))
    controls = property(lambda self: self._group(Control))
    network = property(lambda self: self._group(Network))
    computing = property(lambda self: self._group(Computing))
    augmentation = property(lambda self: self._group(Augmentation))
    training = property(lambda self: self._group(Training))

    def _group(self, kind: type[_G]) -> _G:
        return kind.model_construct(**{name: getattr(self, name) for name in kind.model_fields})

    @classmethod
    def from_profile(cls, profile: str | Path = "paper", /, **overrides: Any) -> Experiment:
        """The settings of a profile, with ``overrides`` in place of some.

        Args:
            profile: the name of a file in ``profiles/`` ("quick", "study", "paper"), or the path of a YAML file.
                Settings that the file leaves out keep the paper's values.
            **overrides: settings by name.

        Raises:
            ConfigError: if there is no such profile, the file is not a YAML mapping, or a setting cannot be used.

        >>> Experiment.from_profile("paper", epochs=2).epochs
        2
        """
        path = _profile_path(profile)
        settings = parse_settings(_read_text(path), source=str(path))
        try:
            return cls(**{**settings, **overrides})
        except ConfigError as error:
            raise ConfigError(f"profile {path}{' with overrides' if overrides else ''}: {error}") from None

    @property
    def n_training_steps(self) -> int:
        """Optimizer steps over all rounds, provided that the pool lasts (the paper: 8140, footnote 6)."""
        return sum(map(self.steps_for, self.labelled_per_round))


ANNOTATION_MODES: tuple[str, ...] = get_args(Experiment.model_fields["annotation"].annotation)

TAU_U, TAU_B = (0.125, 0.25, 0.375), (0.25, 0.5, 0.75)
"""The thresholds of Table II."""


def same_run(tau_u: float, tau_b: float) -> tuple[float, float]:
    """The pair of thresholds that stands for all pairs with the same masks in mode "partial".

    The human labels the pixels with p from ``0.5 - tau_u`` to ``0.5 + tau_u``. A tau_b in that range decides about no
    pixel, and 0.5 stands for all of them.

    >>> same_run(0.25, 0.75), same_run(0.125, 0.75)
    ((0.25, 0.5), (0.125, 0.75))
    """
    return (tau_u, 0.5) if abs(0.5 - tau_b) <= tau_u + 1e-9 else (tau_u, tau_b)  # 0.8 - 0.5 is more than 0.3


def _profile_path(profile: str | Path) -> Path:
    if not isinstance(profile, str | os.PathLike):
        raise ConfigError(f"profile: must be a name such as 'quick' or the path of a YAML file, got {shown(profile)}")
    path = expanded("profile", profile)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    return PROFILES_DIR / f"{profile}.yaml"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = [file.stem for file in PROFILES_DIR.glob("*.yaml")]
        raise ConfigError(f"there is no profile file {path.absolute()}; {did_you_mean(path.stem, known)}") from None
    except (OSError, ValueError) as error:  # not UTF-8, or a path that no file can have
        raise ConfigError(f"profile file {str(path)!r} cannot be read: {error}") from None


def _explain(error: ValidationError, kind: type[_Settings]) -> str:
    """Pydantic's findings, one line per setting."""
    lines = ["the experiment's settings cannot be used:"]
    for found in error.errors():
        name = str(found["loc"][0]) if found["loc"] else ""
        if found["type"] == "extra_forbidden":
            hint = did_you_mean(name, list(kind.model_fields))
            lines.append(f"  {name}: there is no such setting; {hint}")
        elif not name:
            lines.append(f"  {found['msg'].removeprefix('Value error, ')}")
        else:
            remedy = ""
            if found["type"] == "float_type" and isinstance(found["input"], str):
                remedy = " (YAML reads 1e-4 as text: write 0.0001 or 1.0e-4)"
            lines.append(f"  {name}: {found['msg'][0].lower()}{found['msg'][1:]}, got {shown(found['input'])}{remedy}")
    return "\n".join(lines)
