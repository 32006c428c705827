"""What makes a job of the batch run again: its code and its profile's settings, never prose."""

import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import batch  # noqa: E402
import code_hash  # noqa: E402
from code_hash import code_of_notebook, code_of_run, run_modules, significant  # noqa: E402

from alutils.queries import BASELINES, STRATEGIES  # noqa: E402

SHOWING = {"01_data", "02_model", "03_uncertainty", "05_partial_annotation", "06_results", "07_methods"}
RUNS = {"04_image_al", "05b_partial_loop"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """What the hash reads of the project, as a copy to be edited."""
    for name in ("alutils", "notebooks", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(batch, "ROOT", tmp_path)
    return tmp_path


def jobs(project):
    """{job's name: the job}, of the files as they are now."""
    batch.code_hash.cache_clear()
    code_hash._all_of.cache_clear()
    code_hash._imported.cache_clear()
    profile, folders = project / "profiles" / "quick.yaml", {"runs": "runs", "figures": "figures"}
    config = {
        "profile": profile,
        **folders,
        "seeds": 0,
        "strategies": "random entropy",
        "cells": [["partial", 0.25, 0.5]],
    }
    made = batch.Batch(config)
    return {name: json.loads(made.job(name)) for name in made.names}


def add(path, text):
    path.write_text(path.read_text() + text)


def edit(path, kind, source):
    notebook = nbformat.read(path, as_version=4)
    [*_, cell] = [cell for cell in notebook.cells if cell.cell_type == kind]
    cell.source = source
    nbformat.write(notebook, path)


def test_a_job_changes_with_its_code_and_settings_and_with_nothing_else(project):
    before = jobs(project)

    def changed():
        nonlocal before
        after = jobs(project)
        changes = {name for name in before if before[name] != after[name]}
        before = after
        return {name.partition("/")[0] for name in changes}

    notebooks, package, profile = project / "notebooks", project / "alutils", project / "profiles" / "quick.yaml"
    edit(notebooks / "04_image_al.ipynb", "markdown", "better prose")
    edit(notebooks / "06_results.ipynb", "markdown", "better prose")
    edit(notebooks / "04_image_al.ipynb", "code", "better = 'picture'")  # what runs make are their records
    add(package / "metrics.py", "# a comment\n")
    add(profile, "# a comment\n")
    assert changed() == set()
    edit(notebooks / "02_model.ipynb", "code", "better = 'code'")
    assert changed() == {"02_model"}
    add(package / "lab" / "figures.py", "SIZE = 7\n")
    assert changed() == SHOWING
    add(package / "metrics.py", "SMALL = 1e-9\n")
    assert changed() == SHOWING | RUNS
    add(profile, "momentum: 0.8\n")
    assert changed() == SHOWING | RUNS
    add(package / "data" / "rendering.py", "DARK = 1\n")  # no module of the loop, but it draws the pictures
    assert changed() == SHOWING | RUNS
    add(package / "report" / "claims.yaml", "# a comment\n")
    assert changed() == set()
    add(package / "report" / "claims.yaml", "more: 1\n")
    assert changed() == SHOWING


def test_a_job_depends_on_the_description_beside_its_data_and_on_the_tables_that_it_names(tmp_path):
    def job():
        return json.loads(batch.Batch({"data": tmp_path}).job("04_image_al/random-seed0"))

    description, table, seen = tmp_path / "description.yaml", tmp_path / "splits.csv", [job()]
    assert "description" not in seen[0]  # such jobs are what they were
    text = "name: x\nall: {images: 'x/{id}', masks: 'y/{id}'}\nsplit: {csv: splits.csv, by: split}\n"
    for path, content in ((description, text), (table, "id,split\na,train\n"), (table, "id,split\na,val\n")):
        path.write_text(content)
        seen.append(job())
    description.write_text(text + "threshold: 9\n")
    seen.append(job())
    description.write_text("# a comment\n" + text + "threshold: 9\n")
    assert job() == seen[-1] and all(one != other for one, other in pairwise(seen))


def test_the_hash_of_a_notebook_is_of_its_code_cells_alone(tmp_path):
    def hash_of(*cells):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return code_of_notebook(ROOT, path, "settings")

    code, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    first = hash_of(prose("a"), code("x = 1"))
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert hash_of(code("x = 1", outputs=[nbformat.v4.new_output("stream", text="1")]), prose("b")) == first
    assert hash_of(code("x = 1  # why")) == first
    assert len({first, hash_of(code("x = 2")), hash_of(code("x"), code(" = 1")), hash_of()}) == 4
    assert hash_of(code("%time x")) != hash_of(code("%time y")) and hash_of(code("'shown'")) != hash_of(code("'other'"))


ODD = (
    '"""Doc"""  # and comment\n# é\nX = f"""\n  # not a comment   \n{1 + 1!r:>{10}}\n\n  """ + f\'é {"#"}\'; "é"  # c\n'
    'def g(x, y="é"):\n    """é doc\n\n    # inside\n    """\n\n    s = ("a"  # one\n         f"b {x}"   \n\n'
    '         "c")\n'
    '    "bare"\n    return s + """keep   \n\nblank"""  \n'
)


def test_what_counts_of_code_is_the_same_on_every_version_of_python():
    expected = (
        'X = f"""\n  # not a comment   \n{1 + 1!r:>{10}}\n\n  """ + f\'é {"#"}\';\n'
        'def g(x, y="é"):\n    s = ("a"\n         f"b {x}"\n         "c")\n    return s + """keep   \n\nblank"""'
    )
    assert significant(ODD) == expected
    changes = {"1 + 1": "1 + 2", "é {": "e {", "keep   ": "keep ", 'y="é"': 'y="e"'}  # code, f-strings, long texts
    assert all(significant(ODD.replace(old, new)) != expected for old, new in changes.items())


FILES = {
    "__init__": "from alutils.lab.figures import draw",
    "loop": "from alutils import seeds\nfrom alutils.queries.registry import STRATEGIES\nimport alutils.models.unet",
    "seeds": "", "figures": "import alutils.loop", "common": "", "tables": "",
    "models/__init__": "from .unet import UNet", "models/unet": "from ..metrics import dice\nclass UNet: pass",
    "models/other": "", "metrics": "def dice():\n    from alutils import common",
    "queries/__init__": "", "queries/registry": "def strategy(name, **options): pass", "queries/helpers": "",
    "queries/maps": "from alutils.queries import helpers\n@strategy('entropy')\ndef score_entropy(): pass",
    "queries/dropout": "@strategy('mc_dropout', needs_dropout=True)\ndef a(): pass\n@strategy('bald')\ndef b(): pass",
    "queries/sampling": "@strategy('random')\ndef score_at_random(): 0",
}  # fmt: skip


def test_a_run_depends_on_what_the_loop_imports_and_on_its_own_strategy_s_file(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "alutils" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    always = {"loop", "seeds", "models", "models.unet", "metrics", "common", "queries", "queries.registry"}
    for arm, own in {
        "entropy": {"queries.maps", "queries.helpers"}, "bald": {"queries.dropout"},
        "random": {"queries.sampling"}, "full_cosine": set(),
    }.items():  # fmt: skip
        assert {name.removeprefix("alutils.") for name in run_modules(tmp_path, arm)} == always | own, arm


def test_today_s_run_depends_on_training_and_not_on_pictures_or_tables():
    found = {name.removeprefix("alutils.") for name in run_modules(ROOT, "entropy")}
    assert found >= {"loop", "training", "uncertainty", "queries.registry", "queries.pixel", "system.seeding"}
    assert not found & {"queries.baseline", "queries.sampled", "queries.per_cluster"}
    assert found >= {
        name.removeprefix("alutils.")
        for name in code_hash._imported(ROOT, code_hash.LOOP, ROOT / "alutils" / "loop.py")
    }
    assert not [name for name in found if name.startswith(("lab", "report", "alutils"))]
    assert all(re.fullmatch("[0-9a-f]{12}", code_of_run(ROOT, arm, "settings")) for arm in [*STRATEGIES, *BASELINES])
