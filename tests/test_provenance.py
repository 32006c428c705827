"""What made a run, and the commit of the code."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from importlib import metadata

import torch

from alutils.runs.provenance import _git_state, provenance


def test_provenance_says_what_made_a_run_and_is_json():
    found = json.loads(json.dumps(provenance("cpu")))
    for package in ("torch", "torchvision", "segmentation_models_pytorch", "numpy", "alutils"):
        assert found[package].startswith(metadata.version(package))
    assert found["device"] == "cpu" and found["cpu"] and found["threads"] == torch.get_num_threads()
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found["time"])) < timedelta(minutes=1)
    assert set(found) >= {"python", "platform", "git_commit", "git_dirty"}


def test_the_commit_is_gits_and_null_outside_a_checkout(tmp_path):
    def git(*arguments):
        settings = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert _git_state(tmp_path) == (None, None)
    git("init")
    assert _git_state(tmp_path) == (None, None)  # nothing committed yet
    result = tmp_path / "results" / "bench" / "one.json"
    result.parent.mkdir(parents=True)
    for file in (tmp_path / "file", result):
        file.write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    result.write_text("2")
    assert _git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    assert _git_state(tmp_path) == (git("rev-parse", "HEAD"), True)
    (tmp_path / "file").write_text("1")
    (tmp_path / "notes.txt").write_text("not code")
    assert _git_state(tmp_path)[1] is False
    (tmp_path / "alutils" / "queries").mkdir(parents=True)
    (tmp_path / "alutils" / "queries" / "mine.py").write_text("a strategy that no commit has")
    assert _git_state(tmp_path)[1] is True
    (tmp_path / "below").mkdir()
    assert _git_state(tmp_path / "below") == (None, None)
