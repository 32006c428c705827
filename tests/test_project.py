"""The files around the code say the same as each other."""

import json
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "snakemake": "snakemake-minimal",
    "playwright": "playwright-python",
}


def pyproject_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pairs = [re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in listed]
    return {CONDA_NAMES.get(name, name): versions for name, versions in pairs} | {"python": project["requires-python"]}


def test_environment_yml_lists_the_packages_and_ranges_of_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict([*line.split(maxsplit=1), ""][:2] for line in listed)
    assert conda.pop("pip") == ""
    assert conda == pyproject_ranges()


def test_every_range_has_a_lower_bound_and_the_next_major_release_as_the_upper_one():
    for name, versions in pyproject_ranges().items():
        if name != "python":
            assert re.fullmatch(r">=[\d.]+,<\d+", versions), (name, versions)


def test_environment_yml_says_what_every_package_is_for():
    lines = re.findall(r"^  - .*$", (ROOT / "environment.yml").read_text().split("dependencies:")[1], re.MULTILINE)
    assert [line for line in lines if "#" not in line] == ["  - python >=3.11"]


def test_citation_names_the_project_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["preferred-citation"]["title"].startswith("Combining Image and Region Uncertainty")


def test_the_readme_says_how_many_faults_were_injected():
    counts = json.loads((ROOT / "results" / "faults.json").read_text())
    assert counts["failed_tests"] == 0
    readme = (ROOT / "README.md").read_text()
    for fault, n in counts["survived"].items():
        assert f"| {fault} | {n:,} |" in readme
