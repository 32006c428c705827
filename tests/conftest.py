"""What the tests share: one thread for each process, and one site for all of them."""

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

torch.set_num_threads(1)  # pytest-xdist runs as many test processes as there are cores

ROOT = Path(__file__).resolve().parent.parent


def slider_notebook() -> dict:
    """A notebook with what a slider leaves, and with two pictures in one cell."""
    pixel = io.BytesIO()
    Image.new("L", (1, 1), 255).save(pixel, "PNG")
    picture = base64.b64encode(pixel.getvalue()).decode()
    widget = {"model_id": "0", "version_major": 2, "version_minor": 0}
    outputs = [
        {"data": {"application/vnd.jupyter.widget-view+json": widget, "text/plain": "interactive(children=())"}},
        {"data": {"image/png": picture}, "metadata": {"image/png": {"alt": "a single white pixel"}}},
        {"data": {"image/png": picture}, "metadata": {"image/png": {"alt": "the same pixel once more"}}},
    ]
    outputs = [{"output_type": "display_data", "metadata": {}, **output} for output in outputs]
    code = {"cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1, "source": "1", "outputs": outputs}
    title = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A slider"}
    about = {"language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": about, "cells": [title, code]}


@pytest.fixture(scope="session")
def site(tmp_path_factory, request):
    """The folder of the site, built from a copy of the repository with one more exercise; warnings are errors.

    All processes of pytest-xdist share it.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if hasattr(request.config, "workerinput") else shared) / "site"
    with FileLock(shared.with_suffix(".lock")):
        if not (shared / "html" / "index.html").exists():
            build_site(shared)
    return shared / "html"


def build_site(folder: Path) -> None:
    source = folder / "source"
    source.mkdir(parents=True)
    for path in ROOT.glob("[!.]*"):
        if path.is_file():
            shutil.copy(path, source)
        elif path.name not in ("runs", "data", "lab"):
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "notebooks" / "exercises" / "slider.ipynb").write_text(json.dumps(slider_notebook()))
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "website"]
    places = ["-d", folder / "doctrees", ".", folder / "html"]
    built = subprocess.run([*command, *places], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
