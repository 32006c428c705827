"""Finished runs are found, their tables are derived from their lines, and only what belongs together is pooled."""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alutils.report.endpoints import mean_per_image
from alutils.report.statistics import paired_difference
from alutils.report.tables import table_1, table_2, table_audit, table_modes
from alutils.runs.collect import (
    TABLES,
    finished_records,
    load_diverged,
    load_results,
    load_runs,
    load_table,
    write_results,
)
from alutils.runs.folder import RecordsError
from alutils.system.checks import ConfigError

RECORDED = Path(__file__).resolve().parent.parent / "results"
NUMBERS = np.concatenate(
    [
        np.random.default_rng(0).random(500) * 10.0 ** np.random.default_rng(1).integers(-300, 300, 500),
        np.random.default_rng(2).random(500).astype(np.float32).astype(np.float64),
        [0.1 + 0.2, 5e-324, 8.9e307, 1 / 3],
    ]
)

# Of two rounds: images and the two percentages of Table II
ANNOTATIONS = ((("007", 100.0, 30.0), ("NA", 100.0, 50.0)), (("x", 12.5, 2.0), ("y", 37.5, 5.0)))


def make_lines(val=(0.5, 0.75), test=(0.25, 0.5), annotations=ANNOTATIONS):
    """What a run of as many rounds as there are validation Dice writes, without the code that writes it."""
    lines = []
    for k, dice in enumerate(val):
        last = k == len(val) - 1
        rows = annotations[k] if k < len(annotations) else ()
        names = ("image_id", "verify_percent", "positive_percent")
        costs = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        others = {"boundary_px": 14.5, "regions": 1, "vertices": 8, "clicks": 9}
        audit = {"cohort": 1, "images": 2, "wrong_pixels": 12, "mask_dice": 0.75}
        queries = {"image_id": "b", "score": 1.5, "lesion_area_percent": 20.0}
        lines.append(
            {
                "round": k, "n_labelled": 4 + 2 * k, "steps": k + 1, "loss": 0.5, "losses": [0.5] * (k + 1),
                "val_dice": dice, "val_dice_per_image": [dice],
                "test_dice": sum(test) / len(test) if last else None,
                "test_dice_per_image": {"image_id": ["007", "NA"], "dice": list(test)} if last else None,
                "tied": 0, "seconds": {"training": 2.5 + k},
                "annotations": costs | {name: [value] * len(rows) for name, value in others.items()},
                "queries": {name: [] if last else [value] for name, value in queries.items()},
                "audit": {name: [value] if last else [] for name, value in audit.items()},
            }
        )  # fmt: skip
    return lines


def make_run(folder, *, strategy="random", seed=0, status="finished", settings=None, data=None, others=None, **rounds):
    """A run's files, without the code that writes them."""
    folder.mkdir(parents=True)
    content = "".join(json.dumps(line) + "\n" for line in make_lines(**rounds)).encode()
    (folder / "rounds.jsonl").write_bytes(content)
    record = {
        "status": status,
        "experiment": {"strategy": strategy, "seed": seed, "decoder_channels": [16, 8], **(settings or {})},
        "data": {"train": {"images": 40}, **(data or {})},
        **(others or {}),
        "seconds": 12.5,
        "provenance": [{"device": "first"}, {"device": "second", "cpu": "x", "torch": "2", "git_commit": None}],
    }
    if status == "finished":
        record["rounds"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    checksum = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (folder / "run.json").write_text(json.dumps({**record, "checksum": checksum}))


def make_arm(folder, strategy="random", seed=0, annotation="full", tau_u=0.25, tau_b=0.25, *, epochs=9, **more):
    """A run as :func:`make_run` writes it, with the settings that tell arms apart."""
    settings = {"annotation": annotation, "tau_u": tau_u, "tau_b": tau_b, "epochs": epochs, **more.pop("settings", {})}
    make_run(folder, strategy=strategy, seed=seed, settings=settings, **more)


def test_load_runs_has_a_row_for_each_finished_run(tmp_path):
    make_run(tmp_path / "b" / "entropy-1", strategy="entropy", seed=1, val=(0.1, 0.2, 0.3), test=(1.0, 0.5))
    make_run(tmp_path / "a")
    make_run(tmp_path / "c", status="running")
    runs = load_runs(tmp_path)
    assert runs.to_dict("records") == [
        {
            "run": "a", "strategy": "random", "seed": 0, "decoder_channels": (16, 8), "network": "unet_for",
            "architecture": "unet",  # of records without one
            "n_train": 40, "n_labelled": 6, "steps": 3, "val_dice": 0.75, "test_dice": 0.375,
            "test_jaccard": pytest.approx((1 / 7 + 1 / 3) / 2), "test_thresholded_jaccard": 0.0, "verify_percent": 25.0,
            "positive_percent": 3.5, "seconds": 12.5, "device": "second", "cpu": "x", "torch": "2", "git_commit": None,
        },
        {
            "run": "b/entropy-1", "strategy": "entropy", "seed": 1, "decoder_channels": (16, 8),
            "network": "unet_for", "architecture": "unet",
            "n_train": 40, "n_labelled": 8, "steps": 6, "val_dice": 0.3, "test_dice": 0.75,
            "test_jaccard": pytest.approx(2 / 3), "test_thresholded_jaccard": 0.5,
            "verify_percent": 25.0, "positive_percent": 3.5,
            "seconds": 12.5, "device": "second", "cpu": "x", "torch": "2", "git_commit": None,
        },
    ]  # fmt: skip
    assert len(runs.groupby(["decoder_channels", "strategy"])) == 2


def test_a_run_without_queries_has_no_percentages_of_table_ii(tmp_path):
    make_run(tmp_path / "a", strategy="full", annotations=ANNOTATIONS[:1])
    make_run(tmp_path / "b")
    runs = load_runs(tmp_path)
    for name, of_queries in {"verify_percent": 25.0, "positive_percent": 3.5}.items():
        assert runs[name].dtype == np.float64 and np.isnan(runs[name][0]) and runs[name][1] == of_queries


def test_every_digit_of_a_round_comes_back(tmp_path):
    make_run(tmp_path / "a", val=NUMBERS.tolist())
    assert load_table(tmp_path, "rounds")["val_dice"].to_numpy().tobytes() == NUMBERS.tobytes()


def test_load_table_joins_the_runs_and_keeps_ids_as_text(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", strategy="entropy", seed=3)
    make_run(tmp_path / "c", status="running")
    dice = load_table(tmp_path, "test_dice")
    assert dice["image_id"].tolist() == ["007", "NA"] * 2
    assert dice["run"].tolist() == ["a", "a", "b", "b"] and dice["seed"].tolist() == [0, 0, 3, 3]
    rounds = load_table(tmp_path, "rounds")
    assert rounds.groupby("strategy")["val_dice"].last().to_dict() == {"entropy": 0.75, "random": 0.75}
    assert (
        rounds["lesion_area_percent"].tolist()[::2] == [20.0, 20.0] and rounds["lesion_area_percent"].isna().sum() == 2
    )
    queries = load_table(tmp_path, "queries")
    assert list(queries) == ["run", "strategy", "seed", "round", "image_id", "rank"]
    assert queries["image_id"].tolist() == ["b", "b"] and queries["rank"].tolist() == [1, 1]
    annotations = load_table(tmp_path, "annotations")
    assert annotations["images"].tolist() == [2, 2, 2, 2] and annotations["clicks"].tolist() == [9.0] * 4
    assert annotations["verify_percent"].tolist() == [100.0, 25.0] * 2
    timing = load_table(tmp_path, "timing")
    assert timing[["round", "phase", "seconds"]].to_numpy().tolist() == [[0, "training", 2.5], [1, "training", 3.5]] * 2
    with pytest.raises(ValueError, match="name must be one of rounds, queries, .*, got 'round'"):
        load_table(tmp_path, "round")


def test_the_means_of_a_run_weigh_its_rounds_by_their_images(tmp_path):
    costs = (ANNOTATIONS[0], (("x", 10.0, 2.0), ("y", 20.0, 5.0), ("z", 60.0, 5.0)), (("v", 70.0, 8.0),))
    make_run(tmp_path / "a", val=(0.1, 0.2, 0.3), annotations=costs)
    queried = load_table(tmp_path, "annotations").query("round > 0")
    assert queried["verify_percent"].tolist() == [30.0, 70.0]
    assert mean_per_image(queried, "verify_percent").to_dict() == {"a": 40.0}
    assert load_runs(tmp_path)["verify_percent"].tolist() == [40.0]


def test_collected_runs_give_the_tables_of_their_folders_up_to_the_decimals_that_are_written(tmp_path):
    numbers = np.random.default_rng(3).random(40).tolist()
    images = [(str(i), 100 * value, 50 * value) for i, value in enumerate(numbers)]
    kinds = {"encoder_weights": None, "fine_tune": False, "learning_rate": 1e-05, "loss": "bce"}
    codes = {"strategy_code": "12345678", "oracle": None, "network": {"name": "mine", "code": "1e5"}}
    make_arm(tmp_path / "runs" / "a", val=numbers, test=(0.1 + 0.2, 1 / 3), annotations=[(), images],
             settings=kinds, others=codes)  # fmt: skip
    make_arm(tmp_path / "runs" / "b", "entropy", annotations=ANNOTATIONS[:1], test=(0.12345, 1.0), settings=kinds,
             others={**codes, "strategy_code": None})  # fmt: skip
    found = load_results(tmp_path / "runs")
    assert list(found) == ["runs", *TABLES]
    write_results(tmp_path / "collected", tmp_path / "runs")
    collected = load_results(tmp_path / "collected")
    for name in found:
        digits = 6 if name in ("runs", "rounds", "annotations", "timing") else 4
        pd.testing.assert_frame_equal(collected[name], found[name], rtol=0, atol=0.51 * 10**-digits)
    records = finished_records(tmp_path / "collected")
    for run, record in finished_records(tmp_path / "runs").items():
        assert {name: records[run][name] for name in ("experiment", "data", "seconds", *codes)} == {
            name: record[name] for name in ("experiment", "data", "seconds", *codes)
        }
        assert records[run]["provenance"] == record["provenance"][-1:]
    for table in (table_1, table_2, table_modes):
        pd.testing.assert_frame_equal(table(collected), table(found), rtol=0, atol=0.01)


def test_runs_of_several_weights_files_are_not_pooled_and_older_records_do_not_tell(tmp_path):
    make_arm(tmp_path / "old")
    make_arm(tmp_path / "new", seed=1, others={"weights": "a" * 16})
    assert load_results(tmp_path)["runs"]["seed"].tolist() == [1, 0]
    make_arm(tmp_path / "other", seed=2, others={"weights": "b" * 16})
    with pytest.raises(RecordsError, match=f"weights: {'a' * 16} in new; {'b' * 16} in other"):
        load_results(tmp_path)


def test_collected_runs_are_the_same_bytes_whenever_they_are_collected_and_in_whatever_parts(tmp_path):
    make_arm(tmp_path / "runs" / "a")
    make_arm(tmp_path / "runs" / "b", seed=1)
    for source, folder in (("runs", "one"), ("runs", "other"), ("one", "of collected ones")):
        write_results(tmp_path / folder, tmp_path / source)
    write_results(tmp_path / "in parts", tmp_path / "runs", only=["b"])
    write_results(tmp_path / "in parts", tmp_path / "in parts", tmp_path / "runs")
    written = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    tables = {f"{name}.csv.gz" for name in ("runs", "rounds", "queries", "audit", "test_dice")}
    assert set(written) == {*tables, "SHA256SUMS"}
    for folder in ("other", "of collected ones", "in parts"):
        assert {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} == written
    assert all(written[name][3:8] == bytes(5) for name in tables)  # neither a file's name nor a time
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "one", check=True, capture_output=True)


def test_a_run_of_two_sources_is_taken_from_the_last(tmp_path):
    make_arm(tmp_path / "old" / "a", val=(0.1, 0.2))
    make_arm(tmp_path / "new" / "a", val=(0.3, 0.4))
    make_arm(tmp_path / "old" / "b", seed=1, val=(0.5, 0.6))
    write_results(tmp_path / "all", tmp_path / "old", tmp_path / "new")
    assert load_runs(tmp_path / "all")["val_dice"].tolist() == [0.4, 0.6]
    assert load_table(tmp_path / "all", "rounds")["val_dice"].tolist() == [0.3, 0.4, 0.5, 0.6]
    with pytest.raises(RecordsError, match="no finished run to collect"):
        write_results(tmp_path / "none", tmp_path / "old", only=["c"])


@pytest.mark.parametrize(
    "folder", [path.parent for path in sorted(RECORDED.glob("*/runs.csv.gz"))], ids=lambda p: p.name
)
def test_recorded_results_are_small_and_read_by_one_line_of_pandas(folder):
    rounds, tables = pd.read_csv(folder / "rounds.csv.gz"), load_results(folder)
    expected = tables["rounds"][["run", "round", "val_dice", "test_dice"]]
    pd.testing.assert_frame_equal(rounds[list(expected)], expected)
    assert 'pd.read_csv("results/study/rounds.csv.gz")' in (RECORDED / "README.md").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12_000 * len(tables["runs"])
    final = rounds.groupby("run")["test_dice"].last()  # of the round that the runs' own number is of
    assert np.allclose(final.dropna(), tables["runs"].set_index("run")["test_dice"][final.dropna().index], atol=1e-6)


@pytest.mark.parametrize("name", ["runs.csv.gz", "rounds.csv.gz", "test_dice.csv.gz", "SHA256SUMS"])
def test_collected_results_that_were_changed_are_named(tmp_path, name):
    make_arm(tmp_path / "runs" / "a")
    write_results(tmp_path / "collected", tmp_path / "runs")
    path = tmp_path / "collected" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=r"collected/[rtqa].* cannot be read \(it was changed.*\); restore it"):
        load_results(tmp_path / "collected")
    path.unlink()
    with pytest.raises(RecordsError, match="no finished run" if name == "runs.csv.gz" else "No such file"):
        load_results(tmp_path / "collected")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecordsError, match="no finished run below .*; 0 are unfinished"):
        load_runs(tmp_path)
    make_run(tmp_path / "a", status="running")
    with pytest.raises(RecordsError, match="no finished run below .*; 1 are unfinished"):
        load_table(tmp_path, "rounds")
    make_run(tmp_path / "b")
    (tmp_path / "b" / "rounds.jsonl").unlink()
    with pytest.raises(RecordsError, match=r"b/rounds.jsonl cannot be read .*; restore it, or delete .*b to run it"):
        load_runs(tmp_path)
    (tmp_path / "a" / "run.json").write_text('{"status": "fini')
    with pytest.raises(RecordsError, match=r"a/run.json cannot be read"):
        load_runs(tmp_path)


# What is pooled


def test_a_run_that_is_there_twice_is_refused_with_both_places(tmp_path):
    for seed in (0, 1):
        make_arm(tmp_path / f"04/random-seed{seed}", seed=seed, test=(0.2, 0.4))
    assert table_1(load_results(tmp_path)).loc["random", "seeds"] == 2
    make_arm(tmp_path / "by notebook/random-seed0", seed=0)
    with pytest.raises(RecordsError) as error:
        load_results(tmp_path)
    said = str(error.value)
    assert "random, seed 0: 04/random-seed0, by notebook/random-seed0" in said and "seed 1" not in said
    assert "delete" in said and "only" not in said.splitlines()[-1]  # nothing there tells them apart


def test_folders_are_pooled_and_each_run_must_be_in_one(tmp_path):
    make_arm(tmp_path / "a/random-seed0", seed=0)
    make_arm(tmp_path / "b/entropy-seed0", "entropy", seed=0)
    assert set(load_results(tmp_path / "a", tmp_path / "b")["runs"]["strategy"]) == {"random", "entropy"}
    make_arm(tmp_path / "c/random-seed0", seed=0)
    with pytest.raises(RecordsError, match=r"several of .*a and .*b and .*c have random-seed0$"):
        load_results(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    make_arm(tmp_path / "d/clasp-seed0", "clasp", seed=0, epochs=3)
    with pytest.raises(RecordsError, match="epochs: .*3 in clasp-seed0"):
        load_results(tmp_path / "a", tmp_path / "d")


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
    with pytest.raises(RecordsError, match=r"\n  partial-0.25-0.5, seed 0: c, e\n"):
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
    ],
    ids=["pictures", "network"],
)
def test_tables_i_and_ii_are_of_the_same_pictures_and_network(tmp_path, other):
    make_arm(tmp_path / "a")
    make_arm(tmp_path / "b", "least_confidence", 0, "partial", **other)
    with pytest.raises(RecordsError, match=r"\n  (data.test.checksum|network.name): absent in a; "):
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


def test_the_audit_tells_skin_called_lesion_from_missed_lesion():
    names = ["run", "round", "model_pixels", "wrong_pixels", "missed_pixels", "mask_dice", "model_dice"]
    audit = [("a", 1, 100, 50, 50, 0.1, 0.2), ("a", 2, 100, 10, 4, 0.5, 0.25), ("a", 2, 300, 30, 6, 0.75, 0.75)]
    runs = pd.DataFrame({"run": ["a"], "annotation": ["partial"], "tau_u": [0.25]})
    table = table_audit({"audit": pd.DataFrame(audit, columns=names), "runs": runs})
    assert table.loc[("partial", 0.25)].to_dict() == {
        "wrong": 10.0, "skin": 75.0, "worst": 50.0, "mask_dice": 62.5, "model_dice": 50.0
    }  # fmt: skip
