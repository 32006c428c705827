"""The files around the code agree with each other."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
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


def test_imports_within_alutils_go_downwards_only():
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


WORKS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import alutils
print(alutils.__file__, alutils.Experiment.from_profile("quick").image_size)
"""


def test_a_wheel_has_all_modules_and_profiles_and_works_without_the_project(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("alutils", "profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    endings = (".py", ".pyi", ".js", ".css")
    code = [path.relative_to(ROOT) for path in (ROOT / "alutils").rglob("*") if path.suffix in endings]
    profiles = [Path("alutils", "profiles", path.name) for path in (ROOT / "profiles").glob("*.yaml")]
    assert [path for path in (*code, *profiles) if not (installed / path).is_file()] == []

    shutil.rmtree(source)
    modules = [".".join(path.with_suffix("").parts) for path in code if path.suffix == ".py"]
    modules = [name.removesuffix(".__init__") for name in modules]
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", WORKS, *modules], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "alutils" / "__init__.py"), "64"]


def test_citation_names_the_project_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["preferred-citation"]["title"].startswith("Combining Image and Region Uncertainty")


def test_the_page_on_reliability_says_how_many_faults_were_injected():
    counts = json.loads((ROOT / "results" / "faults.json").read_text())
    assert counts["failed_tests"] == 0
    page = (ROOT / "website" / "reliability.md").read_text()
    for fault, n in counts["survived"].items():
        assert f"| {fault} | {n:,} |" in page


def test_make_lab_opens_copies_of_the_notebooks_and_overwrites_none(tmp_path):
    project = tmp_path / "a project"
    for name in ("Makefile", "pyproject.toml"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    committed = {name: f"committed {name}" for name in ("01_data", "04_image_al", "exercises/1_pixel_uncertainty")}
    for name, text in committed.items():
        (project / "notebooks" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "notebooks" / f"{name}.ipynb").write_text(text)
    jupyter = project / ".venv" / "bin" / "jupyter"
    jupyter.parent.mkdir(parents=True)
    jupyter.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > started\n')
    jupyter.chmod(0o755)
    (project / ".venv" / "installed").touch()

    def make_lab():
        subprocess.run(["make", "lab"], cwd=project, check=True, capture_output=True)
        return {name: (project / "lab" / f"{name}.ipynb").read_text() for name in committed}

    assert make_lab() == committed
    assert f"--ServerApp.root_dir={project}" in (project / "started").read_text().splitlines()
    mine = project / "lab" / "04_image_al.ipynb"
    mine.write_text("mine")
    (project / "notebooks" / "04_image_al.ipynb").write_text("newer")
    assert make_lab() == {**committed, "04_image_al": "mine"}
    mine.unlink()
    assert make_lab() == {**committed, "04_image_al": "newer"}


def test_git_ignores_the_copies():
    assert {"/lab/", "/runs/"} <= set((ROOT / ".gitignore").read_text().splitlines())


def make(*arguments):
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_make_alone_starts_nothing_and_help_lists_every_target():
    status, said = make()
    assert status == 0 and said == make("help")[1] and not re.search("snakemake|venv", said)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[1] for line in shown.splitlines() if line.startswith("make ")} == set(targets.split())


@pytest.mark.parametrize("given", ["SEED=1", "seeds=1", "SEEEDS=$(error not this)", "seed's=1"])
def test_make_refuses_a_variable_that_it_does_not_know_and_names_the_nearest(given):
    status, said = make("plan", given)
    assert status == 2 and f"there is no variable {given.split('=')[0]}; did you mean SEEDS?" in said


def test_make_takes_the_variables_that_its_help_lists():
    assert make("help", "PYTHON=python3", "PROFILE=study", "DATA=a b", "SEEDS=0 1", "CORES=1")[0] == 0


TEXTS = (
    "results/quick/SHA256SUMS",
    "results/faults.json",
    "alutils/experiment.py",
    "Makefile",
    "notebooks/01_data.ipynb",
    "figures/recorded/fig1.svg",
    "profiles/quick.yaml",
    ".ci/run",
)
BINARIES = ("figures/recorded/fig1.png", "results/quick/rounds.csv.gz")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_a_checkout_has_the_same_bytes_whatever_the_line_ends_of_the_system():
    asked = subprocess.run(
        ["git", "check-attr", "eol", "text", "--", *TEXTS, *BINARIES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    found = dict(line.rsplit(": ", 1) for line in asked)
    assert {name: found[f"{name}: eol"] for name in TEXTS} == dict.fromkeys(TEXTS, "lf")
    assert {name: found[f"{name}: text"] for name in BINARIES} == dict.fromkeys(BINARIES, "unset")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_recorded_results_pass_their_checksums_in_a_checkout_with_autocrlf(tmp_path):
    def git(*arguments, cwd=tmp_path):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments], cwd=cwd, check=True)

    names = ("results/quick/SHA256SUMS", "results/quick/rounds.csv.gz")
    for name in (".gitattributes", *names):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes((ROOT / name).read_bytes())
    git("init", "--quiet", "one")
    git("add", ".", cwd=tmp_path / "one")
    git("commit", "--quiet", "-m", "first", cwd=tmp_path / "one")
    git("clone", "--quiet", "-c", "core.autocrlf=true", "one", "two")
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (ROOT / name).read_bytes()
