"""What every notebook does first: read its parameters, open the data, choose the device."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from IPython import get_ipython

from alutils.data.description import find_description
from alutils.data.pairs import load_pairs
from alutils.data.splits import Splits
from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.system.checks import ConfigError, check_text, did_you_mean, expanded
from alutils.system.device import resolve_device
from alutils.system.files import replacing
from alutils.system.settings import parse_settings

ROOT = Path(__file__).resolve().parents[2]
RUNS_DIR = expanded("ALUTILS_RUNS", os.environ.get("ALUTILS_RUNS") or ROOT / "runs")
FIGURES_DIR = expanded("ALUTILS_FIGURES", os.environ.get("ALUTILS_FIGURES") or ROOT / "figures")
RESULTS_DIR = ROOT / "results"


@dataclass(frozen=True)
class Workspace:
    """What a notebook works with."""

    experiment: Experiment
    splits: Splits
    device: torch.device
    output_dir: Path
    data_name: str  # in titles


def open_workspace(  # seven parameters: each is one of papermill's, which pass through by name
    notebook: str,
    *,
    profile: str = "quick",
    data_root: str = "",
    seed: int | None = None,
    device: str = "auto",
    output_dir: str = "",
    overrides: str | Mapping[str, Any] = "",
    **settings: Any,
) -> Workspace:
    """Check a notebook's parameters, then load or generate its data.

    Args:
        notebook: its name, such as "01_data".
        profile: name or path, see :meth:`Experiment.from_profile`.
        data_root: a folder with images and masks, see :func:`alutils.data.description.find_description`; by default
            synthetic images.
        seed: of the experiment; the profile's by default.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        output_dir: by default ``by-hand/<profile>/<notebook>`` in the folder of runs (the environment variable
            ``ALUTILS_RUNS``, or ``runs``), where no batch reads.
        overrides: changes of the profile's settings, as a mapping or as YAML text.
        **settings: the notebook's other parameters that are settings; they win over ``overrides``.

    Raises:
        ConfigError: for parameters that cannot be used, and for those that papermill passed and the notebook lacks.
        DataError: if ``data_root`` cannot be used.

    >>> workspace = open_workspace("01_data", overrides="{n_synthetic: [4, 2, 2]}", device="cpu")
    >>> len(workspace.splits.train), workspace.device.type, workspace.data_name
    (4, 'cpu', 'synthetic images')
    """
    refuse_unknown_parameters(notebook)
    texts = {"strategy": settings["strategy"]} if "strategy" in settings else {}
    check_text(profile=profile, data_root=data_root, device=device, output_dir=output_dir, **texts)
    changes = parse_settings(overrides)
    changes.update(settings if seed is None else {"seed": seed, **settings})
    experiment = Experiment.from_profile(profile, **changes)
    chosen_device = resolve_device(device, deterministic=experiment.deterministic)
    folder = expanded("output_dir", output_dir) if output_dir else RUNS_DIR / "by-hand" / Path(profile).stem / notebook
    _check_folder(folder)
    if data_root:
        root = expanded("data_root", data_root)
        degenerate: Any = experiment.degenerate_masks
        if degenerate == "warn" and "degenerate_masks" not in changes:  # a profile's default
            degenerate = None
        splits = load_pairs(find_description(root), root, experiment.image_size, degenerate_masks=degenerate)
        name = splits.source
    else:
        name = "synthetic images"
        splits = make_synthetic(*experiment.n_synthetic, image_size=experiment.image_size)
    return Workspace(experiment, splits.placed(chosen_device), chosen_device, folder, name)


def show_code(function: Callable[..., Any]) -> None:
    """Print the source of a function without its docstring, so that a text shows the code that really runs."""
    signature, _, body = inspect.getsource(function).split('"""')
    print((signature.rstrip() + body).rstrip())


def refuse_unknown_parameters(notebook: str) -> None:
    """Stop a notebook that papermill gave a parameter it does not have; papermill itself only warns.

    The cell that papermill made last (a person may have edited it since) is compared with the cell tagged "parameters"
    in the project's notebook of that name. Without such a file, all parameters are accepted.

    Raises:
        ConfigError: naming the parameter and the nearest one that there is.
    """
    shell, file = get_ipython(), ROOT / "notebooks" / f"{notebook}.ipynb"
    ran = shell.history_manager.input_hist_raw if shell else []
    given = next((cell for cell in reversed(ran) if "# Parameters" in cell.splitlines()), "")
    if not given or not file.exists():
        return
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parameters = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    known = _assigned_names("\n".join(parameters))
    for name in _assigned_names(given):
        if name not in known:
            raise ConfigError(f"{name}: this notebook has no such parameter; {did_you_mean(name, known)}")


def copy_figures(source: str | Path, names: Sequence[str], target: Path) -> list[str]:
    """Copy the PNG and SVG pictures called ``names`` from wherever they lie below ``source``; returns those found."""
    found = []
    for name in (f"{stem}{suffix}" for stem in names for suffix in (".png", ".svg")):
        for path in sorted(expanded("source", source).rglob(name))[:1]:
            with replacing(target / name) as temporary:
                shutil.copyfile(path, temporary)
            found.append(name)
    return found


def _check_folder(folder: Path) -> None:
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir: {nearest} is a file or cannot be written to; give another folder")


def _assigned_names(cell: str) -> list[str]:
    return re.findall(r"^(\w+) *=(?!=)", cell, re.MULTILINE)
