"""The plan of results/ says what is run; recording goes on where it was, mixes nothing and loses nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alutils.experiment import Experiment
from alutils.runs.collect import load_results
from alutils.runs.folder import RecordsError
from alutils.system.checks import ConfigError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import record  # noqa: E402
from code_hash import code_of_commit  # noqa: E402
from recordings import in_order, read_plan  # noqa: E402

TINY = """
folders:
  tiny:
    profile: quick
    overrides:
      {image_size: 32, n_synthetic: [8, 2, 2], cold_start: 2, query_size: 2, n_queries: 1, epochs: 1, batch_size: 2,
       precision: float32, decoder_channels: [4, 4, 4, 4, 4]}
    seeds: 0-0
    arms: [random, full]
"""


def written(tmp_path, text=TINY):
    (tmp_path / "plan.yaml").write_text(text)
    return tmp_path / "plan.yaml"


def options(tmp_path):
    return ("--plan", str(tmp_path / "plan.yaml"), "--results", str(tmp_path / "results"), "--device", "cpu")


def command(tmp_path, *arguments, monkeypatch):
    monkeypatch.setenv("ALUTILS_RUNS", str(tmp_path / "runs"))
    words = [sys.executable, str(ROOT / "workflow" / "record.py"), *arguments, *options(tmp_path)]
    return subprocess.run(words, capture_output=True, text=True)


def test_the_plan_names_runs_of_settings_that_there_are():
    plan = read_plan()
    study, quick = plan.recordings["study"], plan.recordings["quick"]
    assert len(study.experiments) == 170 and len(quick.experiments) == 160
    cell = study.experiments["partial-0.375-0.5-seed9"]
    assert (cell.strategy, cell.annotation, cell.tau_u, cell.seed) == ("least_confidence", "partial", 0.375, 9)
    profile = Experiment.from_profile("study", encoder_weights="data/resnet18_imagenet.pth").model_dump()
    changes = {
        name: {
            key: value
            for key, value in next(iter(recording.experiments.values())).model_dump().items()
            if value != profile[key] and key not in ("strategy", "annotation", "tau_b")
        }
        for name, recording in plan.recordings.items()
        if recording.profile == "study"
    }
    readings = {name: change for name, change in changes.items() if change}
    assert readings == {
        "study-bce+dice": {"loss": "bce+dice"}, "study-dropout-0": {"dropout": 0.0},
        "study-from-scratch": {"fine_tune": False}, "study-plain-skips": {"skip_convolutions": False},
        "study-band-mean": {"reduction": "band_mean"}, "study-epochs-5": {"epochs": 5},
        "study-epochs-20": {"epochs": 20}, "study-equal-steps": {"control": "equal_steps"},
        "study-belief": {"control": "belief"}, "study-fpn": {"architecture": "fpn"},
        "study-deeplabv3plus": {"architecture": "deeplabv3plus"}, "study-linknet": {"architecture": "linknet"},
    }  # fmt: skip


def test_no_recording_leaves_the_precision_to_the_processor():
    for recording in read_plan().recordings.values():
        assert {e.precision for e in recording.experiments.values()} < {"float32", "bfloat16"}, recording.name


def test_methods_are_recorded_once_beside_the_arms_that_they_are_compared_with():
    plan = read_plan().recordings
    for profile in ("quick", "study"):
        base, methods = plan[profile], plan[f"{profile}-methods"]
        assert not base.experiments.keys() & methods.experiments.keys() and set(methods.seeds) < set(base.seeds)
        assert base.overrides == methods.overrides


def test_two_seeds_of_everything_come_before_the_next_two(tmp_path):
    text = "folders: {a: {seeds: 4-7, arms: [random, full]}, b: {seeds: 0-1, cells: [partial-0.25-0.5]}}"
    order = [f"{recording.name}/{run}" for recording, run in in_order(read_plan(written(tmp_path, text)).named("ab"))]
    first = ["a/random-seed4", "a/full-seed4", "a/random-seed5", "a/full-seed5"]
    cells = ["b/partial-0.25-0.5-seed0", "b/partial-0.25-0.5-seed1"]
    assert order == [*first, *cells, "a/random-seed6", "a/full-seed6", "a/random-seed7", "a/full-seed7"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("folder: {}", "there is no entry 'folder'; did you mean 'folders'"),
        ("folders: {a: {seed: 1}}", "a: there is no entry 'seed'; did you mean 'seeds'"),
        ("folders: {a: {seeds: 10}}", "a: seeds must be the first and the last, such as 0-9, got 10"),
        ("folders: {a: {seeds: 0-1, arms: [entorpy]}}", "a: .*there is no 'entorpy'; did you mean 'entropy'"),
        (
            "folders: {a: {seeds: 0-1, cells: [partial]}}",
            "a: cells: each must look like partial-0.25-0.5, got 'partial'",
        ),
        ("folders: {a: {seeds: 0-1, arms: [full], overrides: {epoch: 1}}}", "(?s)a: .*did you mean 'epochs'"),
        ("same_code: [abc]", "same_code must be a list of lists"),
    ],
)
def test_a_plan_that_cannot_be_used_is_refused_by_name(tmp_path, text, error):
    with pytest.raises(ConfigError, match=error):
        read_plan(written(tmp_path, text))
    with pytest.raises(ConfigError, match="there is no recording 'studdy'; did you mean 'study'"):
        read_plan().named(["studdy"])


def test_runs_are_made_collected_and_not_made_again(tmp_path, monkeypatch):
    broken = TINY + "  broken: {profile: quick, seeds: 0-0, arms: [random], overrides: {cold_start: 999}}\n"
    written(tmp_path, broken)
    found = command(tmp_path, "broken", "tiny", "--jobs", "2", monkeypatch=monkeypatch)
    assert found.returncode == 1 and "broken/random-seed0: " in found.stderr and "cold_start: 999" in found.stderr
    runs = load_results(tmp_path / "results" / "tiny")["runs"]
    assert runs["run"].tolist() == ["full-seed0", "random-seed0"] and "2 of 2 runs" in found.stdout
    before = {path.name: path.read_bytes() for path in (tmp_path / "results" / "tiny").iterdir()}
    # Without its folder, a collected run is done; a new seed joins it
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    written(tmp_path, TINY.replace("0-0", "0-1").replace("[random, full]", "[random]"))
    listing = command(tmp_path, "--list", monkeypatch=monkeypatch).stdout
    assert listing.splitlines()[1].split()[:4] == ["tiny", "1", "1", "1"]
    assert command(tmp_path, "tiny", monkeypatch=monkeypatch).returncode == 0
    assert [path.name for path in (tmp_path / "runs" / "results" / "tiny").iterdir()] == ["random-seed1"]
    runs = load_results(tmp_path / "results" / "tiny")["runs"]
    assert runs["run"].tolist() == ["random-seed0", "random-seed1"]
    # The first runs, collected anew, are the first bytes; without a name, folders without runs are passed over
    written(tmp_path, broken)
    (tmp_path / "runs").rename(tmp_path / "aside")
    (tmp_path / "elsewhere").rename(tmp_path / "runs")
    assert command(tmp_path, "--collect", monkeypatch=monkeypatch).returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "tiny").iterdir()} == before
    # A changed plan takes neither
    written(tmp_path, TINY.replace("epochs: 1", "epochs: 2"))
    assert "-seed0 was made with other settings" in command(tmp_path, "tiny", monkeypatch=monkeypatch).stderr


def test_a_kill_stops_the_runs_too_and_they_go_on(tmp_path, monkeypatch):
    written(tmp_path, TINY.replace("n_queries: 1", "n_queries: 3").replace("epochs: 1", "epochs: 60"))
    monkeypatch.setenv("ALUTILS_RUNS", str(tmp_path / "runs"))
    words = [sys.executable, str(ROOT / "workflow" / "record.py"), "tiny", "--jobs", "2", *options(tmp_path)]
    lines = tmp_path / "runs" / "results" / "tiny" / "random-seed0" / "rounds.jsonl"
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not lines.with_name("state.pt").exists():
            time.sleep(0.01)
        process.terminate()
        assert "stopped; the same command goes on" in process.communicate()[1] and process.returncode == 1
    first = without_times(lines)
    found = command(tmp_path, "tiny", monkeypatch=monkeypatch)  # at once: no process of the first one holds the folder
    assert found.returncode == 0 and "2 of 2 runs" in found.stdout
    assert without_times(lines) == first


def without_times(lines):
    """The first round, which is made again if it was stopped before its state was on disk."""
    return json.loads(lines.read_text().splitlines()[0]) | {"seconds": None}


def test_runs_of_several_codes_or_precisions_are_refused(tmp_path):
    plan = read_plan(written(tmp_path))
    (tiny,) = plan.named(["tiny"])

    def records(**changes):
        start = {"git_commit": "a" * 40, "git_dirty": False, "precision": "float32", "cpu": "x"}
        return {"one": {"provenance": [start]}, "other": {"provenance": [start, {**start, **changes}]}}

    record._refuse_to_mix(tiny, plan, records(cpu="y"))
    with pytest.raises(RecordsError, match=r"precision float32: one, other\n  precision bfloat16: other"):
        record._refuse_to_mix(tiny, plan, records(precision="bfloat16"))
    with pytest.raises(RecordsError, match=r"code a{40}: one, other\n  code a{40} with changes: other\n.*"):
        record._refuse_to_mix(tiny, plan, records(git_dirty=True))
    with pytest.raises(RecordsError, match=f"code {'b' * 40}: other\n.*same_code"):
        record._refuse_to_mix(tiny, plan, records(git_commit="b" * 40))
    declared = written(tmp_path, f"same_code: [[{'b' * 40}, {'a' * 40}]]\n{TINY}")
    record._refuse_to_mix(tiny, read_plan(declared), records(git_commit="b" * 40))


def test_commits_that_change_nothing_that_a_run_executes_have_one_code(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.check_output(["git", "-C", tmp_path, *who, *arguments], text=True).strip()

    def commit(loop):
        (tmp_path / "alutils" / "loop.py").write_text(loop)
        git("add", ".")
        git("commit", "-q", "-m", "x")
        return git("rev-parse", "HEAD")

    (tmp_path / "alutils" / "queries").mkdir(parents=True)
    (tmp_path / "alutils" / "queries" / "own.py").write_text('@strategy("own")\ndef own(view):\n    return 1\n')
    git("init", "-q")
    codes = [code_of_commit(tmp_path, commit(loop), "own") for loop in ("x = 1\n", "x = 1  # a remark\n", "x = 2\n")]
    assert codes[0] == codes[1] != codes[2] and len(codes[2]) == 12
    assert code_of_commit(tmp_path, "f" * 40, "own") == "f" * 40
