"""The website: builds without warnings, no link is broken, every picture is described, nothing comes from elsewhere."""

import inspect
import json
import pkgutil
import re
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

import alutils

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

from recordings import read_plan  # noqa: E402

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("0*.ipynb"))


class Page(HTMLParser):
    """What a page links to, loads and can be linked at, and the text of its article."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.anchors, self.images, self.words = [], [], set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and given.get("href"):
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "data", "poster", "srcset") if given.get(name)]
        self.loaded += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style") or "")
        if tag == "img":
            self.images.append(given)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="session")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def leaves(link: str) -> bool:
    return bool(urlsplit(link).scheme) or link.startswith("//")


def target(page: Path, link: str) -> tuple[Path, str]:
    """The file and the anchor in it that a relative link of a page leads to."""
    parts = urlsplit(link)
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page, unquote(parts.fragment)


def broken(page: Path, link: str, pages: dict[Path, Page]) -> bool:
    file, anchor = target(page, link)
    return not file.is_file() or (bool(anchor) and file in pages and anchor not in pages[file].anchors)


def test_the_front_page_leads_to_the_start_page_and_every_notebook_has_a_page(site, pages):
    assert pages[site / "index.html"].links == ["website/start.html"]
    assert {"Read", "Reproduce", "Teach"} <= set(pages[site / "website" / "start.html"].words)
    assert all((site / "notebooks" / f"{name}.html").is_file() for name in NOTEBOOKS)


def test_every_link_and_anchor_within_the_site_resolves(pages):
    links = [
        (page, link) for page, content in pages.items() for link in content.links + content.loaded if not leaves(link)
    ]
    assert len(links) > 1000
    assert [(page.name, link) for page, link in links if broken(page, link, pages)] == []


def test_relative_links_of_the_sources_are_links_in_the_site(site, pages):
    written = [path.relative_to(ROOT) for path in (ROOT / "website").glob("*.md")]
    for source in ("README.md", "results/README.md", *written):
        linked = {target(site / source, link)[0] for link in pages[(site / source).with_suffix(".html")].links}
        names = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / source).read_text())
        for name in names:
            path = (ROOT / source).parent / name
            if path.suffix in (".md", ".ipynb"):
                assert (site / path.resolve().relative_to(ROOT)).with_suffix(".html") in linked, name
            elif path.is_file() and path.suffix != ".png":
                assert [file for file in linked if file.name == path.name], name


def test_links_to_folders_lead_to_the_pages_about_them(site, pages):
    page = site / "website" / "batch.html"
    assert "(../profiles)" in (ROOT / "website" / "batch.md").read_text()
    article = page.read_text(encoding="utf-8").split("<article")[1].split("</article")[0]
    assert 'href="profiles.html"' in article


def test_scripts_styles_pictures_and_fonts_come_from_the_site_itself(site, pages):
    loaded = [link for content in pages.values() for link in content.loaded]
    assert [link for link in loaded if leaves(link) and not link.startswith("data:")] == []
    for style in site.rglob("*.css"):
        used = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", style.read_text(encoding="utf-8"))
        urls = [url or imported for url, imported in used]
        assert [url for url in urls if leaves(url) and not url.startswith("data:")] == [], style
        files = [unquote(urlsplit(url).path) for url in urls if not leaves(url) and not url.startswith("#")]
        assert [file for file in files if not (style.parent / file).is_file()] == [], style


def test_every_picture_of_a_notebook_has_its_alternative_text(site, pages):
    for name in NOTEBOOKS:
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        written = [
            about["alt"]
            for output in outputs
            for kind, about in output.get("metadata", {}).items()
            if kind.startswith("image/")
        ]
        images = pages[site / "notebooks" / f"{name}.html"].images
        shown = [" ".join((image.get("alt") or "").split()) for image in images]
        assert written
        assert [alt for alt in written if alt not in shown] == [], name


def test_every_picture_of_any_page_is_described_in_words(pages):
    alts = [(page.name, image.get("alt") or "") for page, content in pages.items() for image in content.images]
    assert len(alts) > 20
    assert [(name, alt) for name, alt in alts if len(alt.split()) < 4] == []


def test_every_public_name_has_an_api_entry(site, pages):
    anchors = set().union(
        *(content.anchors for page, content in pages.items() if page.parent == site / "website" / "api")
    )
    offered = {name: getattr(alutils, name) for name in set(alutils.__all__) - {"STRATEGIES"}}
    for name, value in offered.items():
        assert inspect.ismodule(value) or f"{value.__module__}.{name}" in anchors
    assert "alutils.queries.registry.STRATEGIES" in anchors
    assert {f"alutils.experiment.Experiment.{setting}" for setting in alutils.Experiment.model_fields} <= anchors
    found = pkgutil.walk_packages(alutils.__path__, "alutils.")
    assert {f"module-{module.name}" for module in found if not module.ispkg} <= anchors


def test_names_in_a_notebook_are_links_to_their_api_entries(site, pages):
    links = pages[site / "notebooks" / "03_uncertainty.html"].links
    assert "../website/api/paper.html#alutils.uncertainty.one_sided_entropy" in links
    assert "../website/api/paper.html#alutils.uncertainty.binary_entropy" in links
    links = pages[site / "website" / "extending.html"].links
    assert "api/paper.html#alutils.annotation.merge_annotations" in links
    assert "api/data.html#alutils.data.splits.Split" in links


def test_the_map_has_each_equation_table_figure_and_section_of_the_paper(site, pages):
    html = (site / "website" / "paper.html").read_text(encoding="utf-8")
    rows = {
        re.sub(r"<[^>]+>", "", row.split("</td>")[0]).strip(): row
        for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)
        if "<td" in row
    }
    items = [f"Eq. {n}," for n in range(1, 5)] + [f"Fig. {n}," for n in range(1, 6)] + ["Table I,", "Table II,"]
    items += ["III-A,", "III-B,", "IV-A,", "IV-B,", "IV-C,", "IV-D,", "IV-E,", "V-A,", "V-B,", "VI,", "VII,"]
    for item in items:
        found = [row for name, row in rows.items() if name.startswith(item)]
        assert found, item
        assert all("/notebooks/0" in row and "#alutils." in row for row in found), item


def test_the_map_names_no_function_or_setting_that_does_not_exist(site):
    html = (site / "website" / "paper.html").read_text(encoding="utf-8")
    article = html[html.index("<article") : html.index("</article")]
    named = re.findall(r'<code class="docutils literal notranslate"><span class="pre">([^<]+)</span></code>', article)
    linked = re.findall(r'href="[^"]*#alutils[^"]*"[^>]*>\s*<code[^>]*><span class="pre">([^<]+)</span>', article)
    assert len(named) > 60
    assert sorted(named) == sorted(linked)


def test_the_search_index_holds_words_of_the_notebooks(site):
    index = json.loads(
        (site / "searchindex.js").read_text(encoding="utf-8").removeprefix("Search.setIndex(").rstrip(")")
    )
    found = index["terms"]["photograph"]
    files = {index["docnames"][number] for number in (found if isinstance(found, list) else [found])}
    assert "notebooks/01_data" in files
    assert any(name.endswith("dropout") for name in index["terms"])


def test_equations_are_mathml(site):
    html = (site / "notebooks" / "03_uncertainty.html").read_text(encoding="utf-8")
    shown = re.findall(r'<div class="math"><math.*?</math></div>', html, re.DOTALL)
    assert len(shown) == 3
    assert "<mfrac>" in shown[2] and "<msqrt>" in shown[2]


def test_a_slider_becomes_a_sentence_and_two_pictures_of_a_cell_keep_their_own_descriptions(site, pages):
    page = pages[site / "notebooks" / "exercises" / "slider.html"]
    assert [image["alt"] for image in page.images] == ["a single white pixel", "the same pixel once more"]
    text = " ".join(page.words)
    assert "Run the notebook" in text
    assert "interactive(" not in text and "jupyter.widget" not in text
    assert "../notebooks/exercises/slider.html" in pages[site / "website" / "start.html"].links


def test_an_exercise_has_gaps_and_its_solutions_are_on_a_page_of_their_own(site, pages):
    for path in sorted((ROOT / "notebooks" / "exercises").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        solved = [
            line.strip()
            for cell in cells
            for part in re.findall("### BEGIN SOLUTION\n(.*?)### END SOLUTION", "".join(cell["source"]), re.DOTALL)
            for line in part.splitlines()
            if line.strip()
        ]
        exercise = "".join(pages[site / "notebooks" / "exercises" / f"{path.stem}.html"].words)
        assert "# YOUR CODE HERE" in exercise and "HIDDEN TESTS" not in exercise
        solutions = "".join(pages[site / "website" / "solutions.html"].words)
        assert solved and [line for line in solved if line not in solutions] == []
        long = [line for line in solved if len(line) > 40]  # shorter ones may stand in the text too
        assert [line for line in long if line in exercise] == []
        downloaded = site / "_sources" / "notebooks" / "exercises" / f"{path.stem}.ipynb"
        assert "BEGIN SOLUTION" not in downloaded.read_text(encoding="utf-8")


def test_plotting_code_is_folded_and_shown_code_is_coloured(site):
    html = (site / "notebooks" / "03_uncertainty.html").read_text(encoding="utf-8")
    folded = re.findall(r'<details class="[^"]*above-input.*?</details>', html, re.DOTALL)
    assert folded and all("show_figure" in re.sub("<[^>]+>", "", cell) or "plt" in cell for cell in folded)
    shown = re.findall(r'<div class="cell_output.*?</pre>', html, re.DOTALL)
    assert [output for output in shown if '<span class="k">def</span>' in output]


def test_code_can_be_copied_and_output_cannot(site, pages):
    assert any("copybutton" in link for link in pages[site / "notebooks" / "03_uncertainty.html"].loaded)


def test_links_to_a_repository_follow_the_one_address(site, pages):
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    linked = [link for link in pages[site / "website" / "start.html"].links if "github.com" in link]
    assert bool(linked) == bool(urls) and all(link.startswith(tuple(urls.values())) for link in linked)


def in_words(value) -> str:
    """A setting as the table of settings writes it."""
    if isinstance(value, tuple):
        return ", ".join(map(in_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "random" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def settings_of(profile: str) -> dict[str, str]:
    """What the table of settings is to say of a profile: its settings by name, and what follows from them by label."""
    experiment = alutils.Experiment.from_profile(profile)
    sizes, seeds = experiment.n_synthetic, "none"
    if profile == "study":
        run = pd.read_csv(ROOT / "results" / profile / "runs.csv.gz").iloc[0]
        sizes = tuple(int(run[f"data.{part}.images"]) for part in ("train", "val", "test"))
    if profile != "paper":
        seeds = len(read_plan().recordings[profile].seeds)
    derived = {
        "images to train on, for validation, for the test": sizes,
        "images labelled at the end": experiment.labelled_per_round[-1],
        "in % of the training images": round(100 * experiment.labelled_per_round[-1] / sizes[0]),
        "steps in all rounds": experiment.n_training_steps,
        "optimizer": "new in each round",
        "seeds of each arm that are to be recorded (other readings, methods: 6)": seeds,
    }
    return {name: in_words(value) for name, value in (dict(experiment) | derived).items()}


def test_the_table_of_settings_has_the_values_of_the_profiles():
    lines = (ROOT / "website" / "words.md").read_text(encoding="utf-8").splitlines()
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    names = [re.sub(r".*\(`(\w+)`\)", r"\1", row[0]) for row in rows]
    assert head[2:] == ["paper", "quick", "study"] and len(rows) > 15
    for column, profile in enumerate(head[2:], start=2):
        values = settings_of(profile)
        assert {name: row[column] for name, row in zip(names, rows, strict=True)} == {n: values[n] for n in names}
