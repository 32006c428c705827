"""README.md is short, its numbers are those of the recorded runs, and the examples on the pages name what there is."""

import ast
import importlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import alutils
from alutils.data.description import read_description
from alutils.report.endpoints import by_arm, by_seed, query_clicks
from alutils.report.statistics import compare_arms, paired, spread
from alutils.report.tables import by_query, table_modes
from alutils.runs.collect import load_results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "website").glob("*.md"))]
ARMS = {
    "random": "random selection",
    "least_confidence": "least confidence",
    "entropy": "entropy",
    "mc_dropout": "Monte Carlo dropout",
    "full": "the full data set",
    "partial-0.25-0.5": "partial annotation",
    "partial-0.375-0.5": "a wider band (three eighths)",
    "lowest_dice": "a control that sees the masks and asks for the worst segmented images",
}


def blocks(kind: str) -> list[tuple[str, str]]:
    """The blocks of code of a kind on all pages, each with its page's name."""
    found = [(page.name, re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)) for page in PAGES]
    return [(name, text) for name, all_kinds in found for this, text in all_kinds if this == kind]


def in_brackets(effect: Any) -> str:
    """An effect with its interval, as the README writes it: with two decimals where one would put an end onto zero."""
    on_zero = {f"{abs(effect.low):.1f}", f"{abs(effect.high):.1f}"} & {"0.0"}
    decimals = 2 if on_zero else 1
    return f"{effect.mean:+.1f} [{effect.low:+.{decimals}f}, {effect.high:+.{decimals}f}]"


def measured(folder: Path) -> list[str]:
    """What may be said of the recorded runs of a folder: effects with their 95 % intervals, pixels and clicks."""
    results = load_results(folder, f"{folder}-lowest-dice")
    dice, area = by_arm(results, "dice"), by_arm(results, "area")
    said = []
    for arm, other in itertools.permutations(ARMS.keys() & dice.keys(), 2):
        effect = spread(paired(dice[arm], dice[other])).difference()
        said.append(f"{ARMS[arm]} against {ARMS[other]}: {in_brackets(effect)}")
    effect = spread(paired(area["least_confidence"], area["random"])).difference()
    said.append(f", and as the mean over the learning curve {in_brackets(effect)}")
    narrow = [dice[f"partial-0.125-{tau_b}"] for tau_b in (0.25, 0.5, 0.75)]
    effects = [in_brackets(spread(paired(arm, dice["partial-0.25-0.5"])).difference()) for arm in narrow]
    said.append(
        "a narrower band (one eighth) against partial annotation, with `tau_b` 0.25, 0.5 and 0.75: "
        f"{effects[0]}, {effects[1]} and {effects[2]}"
    )
    verified = by_query(results, ["partial-0.25-0.5"]).loc[("verify", "partial-0.25-0.5")]
    said.append(f"{verified.iloc[0]:.0f} % in the first query, {verified.iloc[-1]:.0f} % in the last")
    modes = table_modes(results)
    said.append(f"human verifies {modes.loc['partial', 'verify']:.0f} % of a queried image's pixels")
    said += [
        f"{modes.loc['partial', 'clicks']:.1f} clicks",
        f"whole outline takes {modes.loc['full', 'clicks']:.1f} clicks",
    ]
    all_queries = by_seed(results, query_clicks(results))
    more = [
        in_brackets(spread(paired(clicks["partial-0.25-0.5"], clicks["least_confidence"])).difference())
        for clicks in (all_queries, by_arm(results, "clicks"))
    ]
    said.append(f"The difference is {more[0]} clicks, in the second half of the queries {more[1]}")
    n_seeds, n_images = dice["random"].shape
    return [*said, f"95 % interval over {n_seeds} seeds and {n_images} test images"]


def what_labels_cost(folder: Path) -> list[str]:
    """What may be said of one labelled set with several kinds of labels."""
    images = pd.read_csv(folder / "test_dice.csv.gz")
    dice = {kind: 100 * rows.pivot_table("dice", "seed", "image") for kind, rows in images.groupby("labels")}
    pairs = {"the model's labels": ("written", "whole"), "no label of the model": ("human", "whole-inside")}
    effects = {said: spread(paired(dice[one], dice[other])).difference() for said, (one, other) in pairs.items()}
    said = [f"{kind} against true masks: {in_brackets(effect)}" for kind, effect in effects.items()]
    return [*said, f"On one labelled set ({images['seed'].nunique()} seeds"]


def where_choosing_pays(folder: Path) -> list[str]:
    """What may be said of ``results/when``: effects on the rare kinds, per pool."""
    images = pd.read_csv(folder / "test_dice.csv.gz").query("kind != 'common'")
    said = []
    for pool, rows in images.groupby("pool"):
        dice = {arm: 100 * runs.pivot_table("dice", "seed", "image") for arm, runs in rows.groupby("strategy")}
        effects = {row.Index: in_brackets(row) for row in compare_arms(dice, "random").itertuples()}
        said.append(f"in a {pool} pool: k-centre {effects['kcentre']}, least confidence {effects['least_confidence']}")
    return said


def test_the_readme_takes_two_minutes_to_read():
    assert len(README.splitlines()) <= 130


def test_every_number_of_what_was_found_is_that_of_the_recorded_runs():
    section = README.split("## What was found\n")[1].split("\n## ")[0]
    (folder,) = re.findall(r"<!-- From (\S+)\. ", section)
    findings = " ".join(line for line in section.split("-->")[1].split("![")[0].split("\n"))
    findings = re.sub(r"\s+", " ", findings)
    assert len(re.findall(r" - \*\*", findings)) == 6
    apart = where_choosing_pays(ROOT / "results" / "when") + what_labels_cost(ROOT / "results" / "labels")
    for said in sorted(measured(ROOT / folder) + apart, key=len, reverse=True):
        findings = re.sub(re.escape(said), "", findings, flags=re.IGNORECASE)
    findings = re.sub(r"The paper reports [+-]?[\d.]+(?:, [+-][\d.]+ and [+-][\d.]+)?", "", findings)
    assert re.findall(r"[^.]*(?:\d\.\d|\d %|\d seeds|\d clicks)[^.]*", findings) == []


def test_the_pictures_and_pages_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_notebook_is_named_in_the_readme_and_on_the_welcome_page():
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        assert f"[{path.stem}](notebooks/{path.name})" in README
        assert f"(lab/{path.name})" in (ROOT / "welcome.md").read_text()


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_each_description_of_a_folder_on_the_pages_is_valid(page, text, tmp_path):
    (tmp_path / "description.yaml").write_text(text)
    assert read_description(tmp_path / "description.yaml").name.startswith("My "), page


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_each_python_example_on_the_pages_uses_names_that_exist(page, code):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("alutils"):
            assert all(hasattr(importlib.import_module(node.module), name.name) for name in node.names), page
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "alutils":
            assert hasattr(alutils, node.attr), f"{page}: alutils.{node.attr}"


def test_each_papermill_command_on_the_pages_passes_parameters_that_the_notebook_has():
    commands = re.findall(
        r"papermill (notebooks/\S+) \S+ (.*)", "\n".join(text for _, text in blocks("")).replace("\\\n", " ")
    )
    assert len(commands) > 3
    for notebook, options in commands:
        cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
        (parameters,) = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        names = re.findall(r"-p (\w+)", options)
        assert names and all(re.search(rf"^{name} = ", parameters, re.MULTILINE) for name in names), options
