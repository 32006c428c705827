"""When active learning helps: what the script's tables say of a run, and a call that cannot be run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_labels import TINY

from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.loop import run_active_learning
from alutils.metrics import mean_height

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import when  # noqa: E402


def test_the_tables_of_a_run_are_its_rounds_and_its_test_images_with_the_area_of_their_curves(tmp_path):
    experiment = Experiment.from_profile("quick", **{**TINY, "n_queries": 2, "query_size": 2})
    splits = make_synthetic(*experiment.n_synthetic, image_size=32)
    rounds = list(run_active_learning(experiment, splits, tmp_path, progress=False, device="cpu"))
    assert when.per_round(rounds, splits)["labelled"].tolist() == [2, 4, 6]
    table = when.per_image(rounds[-1], splits)
    curves = torch.stack([one.test_dice_per_image for one in rounds]).double().numpy()
    assert table["dice"].tolist() == pytest.approx(curves[-1], abs=5e-5)
    assert table["area"].tolist() == pytest.approx(mean_height(np.array([2, 4, 6]), curves), abs=5e-5)
    assert table["kind"].tolist() == splits.test.factors["subtype"].tolist() and table["image"].tolist() == [0, 1]


def test_a_seed_that_there_is_not_is_named_in_one_line_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ALUTILS_RUNS", str(tmp_path / "runs"))
    words = [sys.executable, str(ROOT / "workflow" / "when.py"), str(tmp_path / "out"), "--seeds", "0", "-1"]
    failed = subprocess.run(words, capture_output=True, text=True)
    assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1
    assert "seed: input should be greater than or equal to 0, got -1" in failed.stderr
    assert list(tmp_path.iterdir()) == []
