"""What the model's labels cost: four ways to label one labelled set."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.loop import run_active_learning

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import labels  # noqa: E402

TINY = {
    "image_size": 32, "n_synthetic": [8, 2, 2], "cold_start": 2, "query_size": 4, "n_queries": 1, "epochs": 2,
    "batch_size": 3, "precision": "float32", "decoder_channels": [4, 4, 4, 4, 4],
}  # fmt: skip
CELLS = ["partial-0.25-0.5", "partial-0.5-0.5"]
PLAN = {"folders": {"tiny": {"profile": "quick", "overrides": TINY, "seeds": "0-0", "cells": CELLS}}}


def measured(tmp_path, cell, monkeypatch):
    """The test Dice by labels and image, and when each training was written."""
    monkeypatch.setenv("ALUTILS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "plan.yaml").write_text(yaml.dump(PLAN))
    words = [sys.executable, str(ROOT / "workflow" / "labels.py"), str(tmp_path / cell), "--seeds", "0", "--cell", cell]
    words += ["--folder", "tiny", "--plan", str(tmp_path / "plan.yaml"), "--device", "cpu"]
    subprocess.run(words, check=True, capture_output=True)
    table = pd.read_csv(tmp_path / cell / "test_dice.csv.gz")
    assert json.loads((tmp_path / cell / "made_with.json").read_text())["threads"]
    trained = (tmp_path / "runs" / "results" / cell / "seed0").glob("*.csv")
    written = {path.name: path.stat().st_mtime_ns for path in trained if path.name != "test_dice.csv"}
    return table.pivot_table("dice", "image", "labels"), written


def test_labels_that_agree_give_equal_networks_and_others_do_not(tmp_path, monkeypatch):
    all_human, _ = measured(tmp_path, "partial-0.5-0.5", monkeypatch)  # a band of all probabilities
    assert len(all_human) == 2
    assert all_human["written"].equals(all_human["whole"].rename("written"))
    assert all_human["human"].equals(all_human["whole-inside"].rename("human"))


def test_a_model_that_labels_changes_what_is_learned_and_nothing_is_trained_twice(tmp_path, monkeypatch):
    first, written = measured(tmp_path, "partial-0.25-0.5", monkeypatch)
    assert len(written) == 4
    again, still = measured(tmp_path, "partial-0.25-0.5", monkeypatch)
    assert written == still and first.equals(again)


@pytest.mark.parametrize(
    ("asked", "run"),
    [(("--cell", "partial-0.3-0.5"), "partial-0.3-0.5-seed0"), (("--seeds", "-1"), "partial-0.25-0.5-seed-1")],
)
def test_a_run_that_the_plan_lacks_is_named_in_one_line(tmp_path, asked, run):
    words = [sys.executable, str(ROOT / "workflow" / "labels.py"), str(tmp_path / "out"), *asked]
    failed = subprocess.run(words, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith(f"study has no run {run}; ")
    assert "--cell may be partial-0.125-0.25, " in failed.stderr and len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_humans_labels_are_true_and_the_loss_counts_them_alone_where_it_says_so(tmp_path):
    experiment = Experiment.from_profile("quick", annotation="partial", tau_u=0.1, **TINY)
    splits = make_synthetic(*experiment.n_synthetic, image_size=32)
    *_, last = run_active_learning(experiment, splits, tmp_path, progress=False, device="cpu")
    ways = {name: (masks[:], counts) for name, (masks, counts) in labels.labels_of(last, splits).items()}
    written, human = ways["written"][0], last.labels.human[:]
    true = splits.train.masks[last.labels.indices]
    assert 0 < human[2:].sum() < human[2:].numel() and (written != true)[human == 0].any()
    assert torch.equal(written[human == 1], true[human == 1])
    assert torch.equal(ways["human"][0], written) and torch.equal(ways["human"][1][:], human)
    assert torch.equal(ways["whole"][0], true) and torch.equal(ways["whole-inside"][0], true)
    assert ways["whole-inside"][1].all() and ways["written"][1] is None is ways["whole"][1]
