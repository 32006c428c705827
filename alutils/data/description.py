"""What a folder of images and masks looks like: read from YAML, shipped for public data sets, or recognised."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from alutils.system.checks import ConfigError, DataError, did_you_mean, expanded, listed, shown
from alutils.system.settings import DegenerateMasks, from_list, parse_settings

DESCRIPTIONS = {path.stem: path for path in sorted((Path(__file__).parent / "descriptions").glob("*.yaml"))}
"""The files of the shipped descriptions by name."""

OWN = "description.yaml"
"""A file of this name beside the data describes it."""

ENDINGS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pcx", ".qoi", ".pbm", ".pgm", ".ppm", ".pnm",
)  # fmt: skip
"""The endings of the files that are read, in lower case."""

_Grey = Annotated[int, Field(ge=0, le=255)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Files(_Part):
    """Where the images and masks of a split lie: paths below the root, without their endings.

    ``{id}`` stands for the name of an image and ``*`` for anything within one part of a path. Where the last part of
    ``masks`` has a ``*``, an image may have several masks, which are united.
    """

    images: str
    masks: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("images", "masks"):
            pattern = getattr(self, name)
            if "{id}" not in pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise ValueError(f"{name}: must be a path below the data's folder that holds {{id}}, got {pattern!r}")
            if pattern.lower().endswith(ENDINGS) or "\\" in pattern:
                raise ValueError(f"{name}: must have no ending, and / between names, got {pattern!r}")
        if self.images == self.masks:
            raise ValueError(f"masks: must be another path than images, got {self.masks!r} for both")
        return self


class Table(_Part):
    """A CSV file below the root: which column has the image's id, and which one the group or split."""

    csv: str
    id: str = "id"
    by: str


class Fractions(_Part):
    """Seeded shares of the images: for train, validation and test, or of the training set for train and validation."""

    fractions: Annotated[tuple[float, ...], from_list, Field(min_length=2, max_length=3)]
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (min(self.fractions) > 0 and abs(sum(self.fractions) - 1) <= 1e-6):  # written so that NaN is refused
            raise ValueError(f"fractions: must be above 0 and have the sum 1, got {list(self.fractions)}")
        return self


# The tags tell which kind an entry was meant to be, so that an error speaks of that one alone
_GroupBy = Annotated[
    Annotated[Table, Tag("table")] | Annotated[str, Tag("pattern")],
    Discriminator(lambda value: "pattern" if isinstance(value, str) else "table"),
]
_SplitBy = Annotated[
    Annotated[Table, Tag("table")] | Annotated[Fractions, Tag("shares")],
    Discriminator(
        lambda value: "table" if isinstance(value, Table) or (isinstance(value, dict) and "csv" in value) else "shares"
    ),
]
# The parts by the names and tags that lead to them
_PARTS = dict.fromkeys(("train", "val", "test", "all"), Files) | {"table": Table, "shares": Fractions}


class Description(_Part):
    """Where the images and masks of a data set lie, how masks are read, and how the images are split.

    Args:
        name: for titles and records.
        train, val, test: the folders of each split; or
        all: those of all images, which ``split`` divides. Without ``val``, two fractions divide the training set.
        id: a regular expression for the names of images; files whose names do not fit are ignored.
        threshold: grey level, 1 to 255, from which a mask's pixel is lesion; without it a mask holds 0 and 255, or 0
            and 1.
        lesion_values: grey levels that are lesion, all others are not.
        degenerate_masks: what is done with masks that show no lesion or nothing else. ``load_pairs`` and a notebook's
            ``overrides`` can say otherwise, a profile only with "error" or "keep".
        group: which images stay in one split: a table, or a regular expression whose first parentheses hold, in the id,
            the group's name.
        split: a table with "train", "val" and "test", or fractions.
        ignored: a pattern, with ``*`` for anything, of the names of files that are neither images nor masks.
        remedy: how to get the data; ``{root}`` stands for its folder.
    """

    name: str = Field(min_length=1)
    train: Files | None = None
    val: Files | None = None
    test: Files | None = None
    all: Files | None = None
    id: str = "[^/]+"
    threshold: int | None = Field(None, ge=1, le=255)
    lesion_values: Annotated[tuple[_Grey, ...], from_list, Field(min_length=1)] | None = None
    degenerate_masks: DegenerateMasks = "warn"
    group: _GroupBy | None = None
    split: _SplitBy | None = None
    ignored: str = ""
    remedy: str = "pass the folder in which these lie"

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, pattern in (("id", self.id), ("group", self.group)):
            if not isinstance(pattern, str):
                continue
            try:
                found = re.compile(pattern)
                self.matcher("{id}")
            except re.error as error:
                raise ValueError(f"{name}: {pattern!r} is not a regular expression ({error})") from None
            if name == "group" and not found.groups:
                raise ValueError(f"group: {pattern!r} has no group in parentheses, which names what stays together")
        if self.threshold is not None and self.lesion_values is not None:
            raise ValueError("threshold, lesion_values: give one of them")
        n = len(self.split.fractions) if isinstance(self.split, Fractions) else 0
        whole = self.all is not None and self.split is not None and n != 2
        if self.all is not None and (self.train or self.val or self.test or not whole):
            raise ValueError("all: goes with a split (a table or three fractions) and without train, val and test")
        if self.all is None:
            named = self.train and self.test and (self.val is not None) != (n == 2) and (n == 2 or not self.split)
            if not named:
                raise ValueError(
                    "train, val, test: give all three, or train and test with two fractions in split, or all"
                )
        return self

    @cached_property
    def parts(self) -> dict[str, Files]:
        """The files by the name of their split, or "all"."""
        names = ("train", "val", "test", "all")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def matcher(self, pattern: str) -> re.Pattern[str]:
        """What matches the whole path of a picture below the root; its group "id" is the image's id."""
        text = re.escape(pattern).replace(r"\*", "[^/]*").replace(r"\{id\}", f"(?P<id>(?:{self.id}))", 1)
        endings = "|".join(map(re.escape, ENDINGS))
        return re.compile(text.replace(r"\{id\}", "(?P=id)") + f"(?:{endings})", re.IGNORECASE)


def fixed_folder(pattern: str) -> str:
    """The folder in which all files of a pattern lie: what stands before its first variable part."""
    return re.split(r"[{*]", pattern)[0].rpartition("/")[0]


def read_description(description: str | Path) -> Description:
    """A description by its shipped name, or from the path of a YAML file.

    Raises:
        ConfigError: if there is no such name or file, or an entry cannot be used; it names the line and the remedy.

    >>> read_description("ph2").id
    'IMD\\\\d+'
    >>> read_description("ph3")
    Traceback (most recent call last):
    alutils.system.checks.ConfigError: description: there is no 'ph3'; did you mean 'ph2'?
    """
    path = DESCRIPTIONS.get(str(description).lower()) or expanded("description", description)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(
            f"description: there is no '{description}'; {did_you_mean(str(description), [*DESCRIPTIONS])}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"description {path} cannot be read: {error}") from None
    try:
        return Description(**parse_settings(text, source=str(path)))
    except ValidationError as error:
        raise ConfigError(f"description {path} cannot be used:\n" + "\n".join(_lines(error, text))) from None


def find_description(root: Path) -> Description:
    """The description of the data in ``root``: its own ``description.yaml``, or the shipped one that fits its folders.

    A description is returned even if only some of its folders are there: its reader says what is missing.

    Raises:
        DataError: if ``root`` is a folder with no folder of any shipped description, or with all folders of several.
        ConfigError: if ``description.yaml`` cannot be used.
    """
    if (root / OWN).exists():
        return read_description(root / OWN)
    found = {name: read_description(name) for name in DESCRIPTIONS}
    share = {name: _share_of_folders(root, description) for name, description in found.items()}
    fit = [name for name in found if share[name] == 1]
    if len(fit) == 1:
        return found[fit[0]]
    if fit:
        raise DataError(
            f"{root} looks like {' and '.join(fit)}: move the data sets into folders of their own, or write {OWN} there"
        )
    nearest = max(share, key=share.get)
    if share[nearest] > 0 or not root.is_dir():  # its reader says what is missing
        return found[nearest if share[nearest] else "isic2018"]
    looked_for = "\n".join(f"  {name}: {', '.join(_named_folders(found[name]))}" for name in found)
    raise DataError(
        f"{root} holds none of the known data sets. It was searched for the folders\n{looked_for}\nand {OWN}; "
        f"found there: {listed(sorted(path.name for path in root.iterdir())) or 'nothing'}. Remedy: pass the folder in "
        f'which such folders lie, or write {OWN} there, see "Your own images" in the README'
    )


def _named_folders(description: Description) -> list[str]:
    patterns = [p for part in description.parts.values() for p in (part.images, part.masks)]
    return [folder for folder in dict.fromkeys(map(fixed_folder, patterns)) if folder]


def _share_of_folders(root: Path, description: Description) -> float:
    """The share of a description's folders that are there, 0 to 1."""
    folders = _named_folders(description)
    return sum((root / folder).is_dir() for folder in folders) / len(folders)


def _lines(error: ValidationError, text: str) -> list[str]:
    """Pydantic's findings, each with the line of the file where its entry stands."""
    found = []
    for problem in error.errors():
        said, place = problem["msg"].removeprefix("Value error, "), problem["loc"]
        part = next((_PARTS[name] for name in reversed(place[:-1]) if name in _PARTS), Description)
        named = [re.match(r"\w*", said)[0]] if problem["type"] == "value_error" else []
        line, names = _found(text, (*place, *named))
        if problem["type"] == "extra_forbidden":
            said = f"{'.'.join(names)}: there is no such entry; {did_you_mean(names[-1], list(part.model_fields))}"
        elif problem["type"] == "missing":
            said = f"{'.'.join([*names, str(place[-1])])}: is missing"
        elif problem["type"] != "value_error":
            said = f"{'.'.join(names)}: {said}, got {shown(problem['input'])}"
        found.append(f"  line {line}: {said}")
    return found


def _found(text: str, place: tuple[Any, ...]) -> tuple[int, list[str]]:
    """The line of the last name in ``place`` that stands in the file, and those names; tags of kinds do not."""
    node, line, names = yaml.compose(text), 1, []
    for name in place:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value == name:
                node, line = value, key.start_mark.line + 1
                names.append(name)
                break
    return line, names
