"""The files of a run: numbers come back exactly, files are whole or absent, and finished runs are found and read."""

import hashlib
import json
import subprocess
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from alutils.report.statistics import paired_difference
from alutils.report.tables import table_1, table_2
from alutils.runs.folder import (
    RecordsError,
    _git_state,
    load_diverged,
    load_results,
    load_runs,
    load_table,
    provenance,
    write_csv,
    write_json,
    write_results,
)
from alutils.system.checks import ConfigError

NUMBERS = np.concatenate(
    [
        np.random.default_rng(0).random(2000) * 10.0 ** np.random.default_rng(1).integers(-300, 300, 2000),
        np.random.default_rng(2).random(500).astype(np.float32).astype(np.float64),
        [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3],
    ]
)


# round, image, and the two percentages of Table II
ANNOTATIONS = ("0,007,100.0,30.0", "0,NA,100.0,50.0", "1,x,12.5,2.0", "2,y,37.5,5.0")


def make_run(
    folder, *, strategy="random", seed=0, status="finished", val=(0.5, 0.75), test=(0.25, 0.5),
    annotations=ANNOTATIONS, settings=None, data=None, others=None,
):  # fmt: skip
    """A run's files as text, without the code that writes them."""
    folder.mkdir(parents=True)
    record = {
        "status": status,
        "experiment": {"strategy": strategy, "seed": seed, "decoder_channels": [16, 8], **(settings or {})},
        "data": {"train": {"images": 40}, **(data or {})},
        **(others or {}),
        "seconds": 12.5,
        "provenance": [{"device": "first"}, {"device": "second", "cpu": "x", "torch": "2", "git_commit": None}],
    }
    rounds = "".join(f"{k},{4 + 2 * k},{k + 1},0.5,{dice}\n" for k, dice in enumerate(val))
    (folder / "rounds.csv").write_text("round,n_labelled,steps,loss,val_dice\n" + rounds)
    dice = "".join(f"{name},{value}\n" for name, value in zip(("007", "NA"), test, strict=True))
    (folder / "test_dice.csv").write_text("image_id,dice\n" + dice)
    (folder / "queries.csv").write_text("round,image_id,score,lesion_area_percent,rank\n0,007,1.5,20.0,1\n")
    columns = "round,image_id,verify_percent,positive_percent,boundary_px,regions,vertices,clicks\n"
    (folder / "annotations.csv").write_text(columns + "".join(f"{line},14.5,1,8,9\n" for line in annotations))
    (folder / "audit.csv").write_text("round,cohort,images,wrong_pixels,mask_dice\n1,1,2,12,0.75\n")
    (folder / "timing.csv").write_text("round,phase,seconds\n0,training,2.5\n1,training,10.0\n")
    record["sha256"] = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.csv")}
    checksum = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (folder / "run.json").write_text(json.dumps({**record, "checksum": checksum}))


def test_csv_numbers_read_back_exactly_in_one_line(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": NUMBERS, "n": range(len(NUMBERS))}))
    back = pd.read_csv(tmp_path / "a.csv")
    assert back["x"].to_numpy().tobytes() == NUMBERS.tobytes()
    assert list(back.columns) == ["x", "n"] and back["n"].dtype == np.int64


def test_json_numbers_read_back_exactly(tmp_path):
    write_json(tmp_path / "a.json", {"x": NUMBERS.tolist()})
    assert np.array(json.loads((tmp_path / "a.json").read_text())["x"]).tobytes() == NUMBERS.tobytes()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})  # not JSON

    def broken(path, *_, **__):
        path.write_bytes(b"x\n1")
        raise OSError("disk full")

    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [1]}))
    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="disk full"):
        write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [2]}))
    monkeypatch.undo()
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert (tmp_path / "a.csv").read_bytes() == b"x\n1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


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
    (tmp_path / "below").mkdir()
    assert _git_state(tmp_path / "below") == (None, None)


def test_load_runs_has_a_row_for_each_finished_run(tmp_path):
    make_run(tmp_path / "b" / "entropy-1", strategy="entropy", seed=1, val=(0.1, 0.2, 0.3), test=(1.0, 0.5))
    make_run(tmp_path / "a")
    make_run(tmp_path / "c", status="running")
    runs = load_runs(tmp_path)
    assert runs.to_dict("records") == [
        {
            "run": "a", "strategy": "random", "seed": 0, "decoder_channels": (16, 8), "network": "unet_for",
            "n_train": 40, "n_labelled": 6, "steps": 3, "val_dice": 0.75, "test_dice": 0.375, "verify_percent": 25.0,
            "positive_percent": 3.5, "seconds": 12.5, "device": "second", "cpu": "x", "torch": "2", "git_commit": None,
        },
        {
            "run": "b/entropy-1", "strategy": "entropy", "seed": 1, "decoder_channels": (16, 8),
            "network": "unet_for", "n_train": 40, "n_labelled": 8, "steps": 6, "val_dice": 0.3, "test_dice": 0.75,
            "verify_percent": 25.0, "positive_percent": 3.5,
            "seconds": 12.5, "device": "second", "cpu": "x", "torch": "2", "git_commit": None,
        },
    ]  # fmt: skip
    assert len(runs.groupby(["decoder_channels", "strategy"])) == 2


def test_a_run_without_queries_has_no_percentages_of_table_ii(tmp_path):
    make_run(tmp_path / "a", strategy="full", annotations=ANNOTATIONS[:2])
    make_run(tmp_path / "b")
    runs = load_runs(tmp_path)
    for name, of_queries in {"verify_percent": 25.0, "positive_percent": 3.5}.items():
        assert runs[name].dtype == np.float64 and np.isnan(runs[name][0]) and runs[name][1] == of_queries


def test_load_table_joins_the_runs_and_keeps_ids_as_text(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", strategy="entropy", seed=3)
    make_run(tmp_path / "c", status="running")
    dice = load_table(tmp_path, "test_dice")
    assert dice["image_id"].tolist() == ["007", "NA"] * 2
    assert dice["run"].tolist() == ["a", "a", "b", "b"] and dice["seed"].tolist() == [0, 0, 3, 3]
    assert load_table(tmp_path, "rounds").groupby("strategy")["val_dice"].last().to_dict() == {
        "entropy": 0.75,
        "random": 0.75,
    }
    assert load_table(tmp_path, "queries")["score"].tolist() == [1.5, 1.5]
    assert load_table(tmp_path, "timing")["seconds"].sum() == 25
    annotations = load_table(tmp_path, "annotations")
    assert annotations["image_id"].tolist() == ["007", "NA", "x", "y"] * 2 and annotations["clicks"].sum() == 72
    assert load_table(tmp_path, "audit")["wrong_pixels"].tolist() == [12, 12]
    names = "rounds, queries, annotations, audit, test_dice, timing"
    with pytest.raises(ValueError, match=f"name must be one of {names}, got 'round'"):
        load_table(tmp_path, "round")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecordsError, match="no finished run below .*; 0 are unfinished"):
        load_runs(tmp_path)
    make_run(tmp_path / "a", status="running")
    with pytest.raises(RecordsError, match="no finished run below .*; 1 are unfinished"):
        load_table(tmp_path, "rounds")
    make_run(tmp_path / "b")
    (tmp_path / "b" / "test_dice.csv").unlink()
    with pytest.raises(RecordsError, match=r"b/test_dice.csv cannot be read .*; restore it, or delete .*b to run it"):
        load_runs(tmp_path)
    (tmp_path / "a" / "run.json").write_text('{"status": "fini')
    with pytest.raises(RecordsError, match=r"a/run.json cannot be read"):
        load_runs(tmp_path)
    (tmp_path / "a" / "run.json").write_text('{"status": "finished"}')
    with pytest.raises(
        RecordsError, match=r"a/run.json is not the record of a run: it lacks checksum, data, experiment"
    ):
        load_runs(tmp_path)
    (tmp_path / "a" / "run.json").write_text("3")
    with pytest.raises(RecordsError, match=r"a/run.json cannot be read"):
        load_runs(tmp_path)


# What is pooled


def make_arm(folder, strategy="random", seed=0, annotation="full", tau_u=0.25, tau_b=0.25, *, epochs=9, **more):
    """A run as :func:`make_run` writes it, with the settings that tell arms apart."""
    settings = {"annotation": annotation, "tau_u": tau_u, "tau_b": tau_b, "epochs": epochs, **more.pop("settings", {})}
    make_run(folder, strategy=strategy, seed=seed, settings=settings, **more)


def test_a_run_that_is_there_twice_is_refused_with_both_places(tmp_path):
    for seed in (0, 1):
        make_arm(tmp_path / f"04/random-seed{seed}", seed=seed, test=(0.2, 0.4))
    assert table_1(load_results(tmp_path)).loc["random", "seeds"] == 2
    make_arm(tmp_path / "by notebook/random-seed0", seed=0)
    with pytest.raises(RecordsError) as error:
        load_results(tmp_path)
    said = str(error.value)
    assert "random, full, seed 0: 04/random-seed0, by notebook/random-seed0" in said and "seed 1" not in said
    assert "delete" in said and "only" not in said.splitlines()[-1]  # nothing there tells them apart


def test_runs_of_other_settings_are_listed_and_only_chooses(tmp_path):
    for seed in (0, 1):
        make_arm(tmp_path / f"random-seed{seed}", seed=seed)
        make_arm(tmp_path / f"entropy-seed{seed}", "entropy", seed=seed)
    make_arm(tmp_path / "random-seed2", seed=2, epochs=3, data={"test": {"checksum": "ab"}}, test=(1.0, 1.0))
    make_arm(
        tmp_path / "diverged", seed=3, epochs=3, status="diverged", others={"diverged": {"round": 1, "message": ""}}
    )
    with pytest.raises(RecordsError) as error:
        load_results(tmp_path)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert sorted(lines[1:3], reverse=True) == [
        "epochs: 9 in entropy-seed0, entropy-seed1, random-seed0, random-seed1; 3 in random-seed2",
        "data.test.checksum: absent in entropy-seed0, entropy-seed1, random-seed0, random-seed1; ab in random-seed2",
    ]
    assert "epochs: 9" in lines[-1].partition('only="{')[2]

    results = load_results(tmp_path, only="{epochs: 9}")
    assert table_1(results).loc[["random", "entropy"], "seeds"].tolist() == [2, 2]
    dice = {arm: its.set_index("seed")["test_dice"] for arm, its in results["runs"].groupby("strategy")}
    assert paired_difference(dice["random"], dice["entropy"]).n_seeds == 2
    assert all("random-seed2" not in table["run"].tolist() for table in results.values())
    assert load_results(tmp_path, only={"epochs": 3})["runs"]["run"].tolist() == ["random-seed2"]
    assert load_diverged(tmp_path, only="{epochs: 9}").empty and len(load_diverged(tmp_path, only="{epochs: 3}")) == 1
    with pytest.raises(ConfigError, match="only: no run has a setting 'epoch'; did you mean 'epochs'?"):
        load_results(tmp_path, only="{epoch: 9}")
    with pytest.raises(RecordsError, match="none of the 5 finished runs"):
        load_results(tmp_path, only="{epochs: 4}")


def test_table_ii_may_have_other_settings_than_table_i_but_one_run_of_a_cell(tmp_path):
    make_arm(tmp_path / "a", settings={"n_queries": 36})
    make_arm(tmp_path / "b", "full", settings={"n_queries": 36})
    cell = ("least_confidence", 0, "partial", 0.25)
    make_arm(tmp_path / "c", *cell, 0.5, settings={"n_queries": 20})
    make_arm(tmp_path / "d", "least_confidence", 0, "model-only", settings={"n_queries": 20})
    assert table_2(load_results(tmp_path)).loc[(0.25, 0.75), "seeds"] == 1
    make_arm(tmp_path / "e", *cell, 0.75, settings={"n_queries": 20})  # the same masks: no second run
    with pytest.raises(RecordsError, match=r"\n  least_confidence, partial, 0.25, 0.5, seed 0: c, e\n"):
        load_results(tmp_path)


def test_the_band_of_the_queries_is_a_setting_where_it_chooses_them(tmp_path):
    for seed, tau_u in ((0, 0.25), (1, 0.1)):  # without the band's mean a fully annotated run has no use for tau_u
        make_arm(tmp_path / f"sum/{seed}", seed=seed, tau_u=tau_u)
        make_arm(tmp_path / f"band/{seed}", seed=seed, tau_u=tau_u, settings={"reduction": "band_mean"})
    assert len(load_results(tmp_path / "sum")["runs"]) == 2
    with pytest.raises(RecordsError, match=r"\n  tau_u: 0.25 in 0; 0.1 in 1\n"):
        load_results(tmp_path / "band")
    assert load_results(tmp_path / "band", only="{tau_u: 0.1}")["runs"]["run"].tolist() == ["1"]


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"test": {"checksum": "ab"}}},
        {"others": {"network": {"name": "mine"}}},
        {"others": {"oracle": {"code": "ab"}}},
    ],
    ids=["pictures", "network", "oracle"],
)
def test_tables_i_and_ii_are_of_the_same_pictures_network_and_oracle(tmp_path, other):
    make_arm(tmp_path / "a")
    make_arm(tmp_path / "b", "least_confidence", 0, "partial", **other)
    with pytest.raises(RecordsError, match=r"\n  (data.test.checksum|network.name|oracle.code): absent in a; "):
        load_results(tmp_path)
    assert load_results(tmp_path, only="{annotation: full}")["runs"]["run"].tolist() == ["a"]


def test_the_advice_of_an_error_can_be_given_as_it_stands(tmp_path):
    make_arm(tmp_path / "a", settings={"n_synthetic": [48, 16, 16]}, others={"network": {"name": "mine"}})
    make_arm(tmp_path / "b", seed=1, settings={"n_synthetic": [24, 8, 8]})
    with pytest.raises(RecordsError) as error:
        load_results(tmp_path)
    advice = str(error.value).partition('only="')[2].partition('"')[0]
    assert len(load_results(tmp_path, only=advice)["runs"]) == 1


def test_what_belongs_to_an_arm_may_differ_between_arms_alone(tmp_path):
    make_arm(tmp_path / "a", "mine", others={"source": "one"})
    make_arm(tmp_path / "b", "yours", others={"source": "two"})
    make_arm(tmp_path / "c", "random")
    assert len(load_results(tmp_path)["runs"]) == 3
    make_arm(tmp_path / "d", "mine", seed=1, others={"source": "another"})
    with pytest.raises(RecordsError, match="\n  source: one in a; another in d\n"):
        load_results(tmp_path)


def test_collected_tables_are_held_to_the_same_and_a_long_list_is_cut(tmp_path):
    for seed in range(30):
        make_arm(tmp_path / "runs" / f"{seed:02d}", seed=seed)
    results = load_results(tmp_path / "runs")
    results["runs"]["epochs"] = range(30)
    results["runs"]["seed"] = 0
    write_results(tmp_path / "collected", results)
    with pytest.raises(RecordsError) as error:
        load_results(tmp_path / "collected")
    assert "epochs: 0 in 00; 1 in 01;" in str(error.value) and "(30 in all)" in str(error.value)
    assert len(str(error.value)) < 1500
    only = load_results(tmp_path / "collected", only={"epochs": 3, "decoder_channels": [16, 8]})
    assert only["runs"]["run"].tolist() == ["03"]
