"""The loop of Fig. 1: what arms share, what is queried, what is read of the masks, and that a stop changes nothing."""

import json
import os
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from alutils import erring, steps
from alutils.annotation import NO_AUDIT, WRITING_MODES, Oracle, human_pixels
from alutils.data.splits import Split, Splits
from alutils.experiment import Experiment
from alutils.loop import run_active_learning
from alutils.model import build_unet
from alutils.queries import BASELINES, STRATEGIES
from alutils.regions import CLICKED_MODES
from alutils.rounds import KEYS, run_tables
from alutils.runs.collect import load_runs, load_table
from alutils.system.checks import ConfigError
from alutils.training import TrainingDiverged, predict_probabilities

torch.set_num_threads(1)

SAME = tuple(key for key in KEYS if key != "seconds")  # what a stop must not change, to the last digit
MODES = get_args(Experiment.model_fields["annotation"].annotation)
DRAWN_MODES = tuple(mode for mode in MODES if mode not in CLICKED_MODES)  # the others are in test_regions.py


def make_experiment(**changes):
    settings = {
        "image_size": 64, "encoder_weights": None, "decoder_channels": (16, 16, 16, 16, 16), "batch_size": 4,
        "epochs": 1, "cold_start": 4, "query_size": 2, "n_queries": 2, "mc_samples": 2,
    }  # fmt: skip
    return Experiment(**{**settings, **changes})


def make_partial(annotation, **changes):
    """Thresholds near one half: of what a model says that has hardly learned, some is sure, and both ways."""
    return make_experiment(**{"annotation": annotation, "n_queries": 3, "tau_u": 0.025, "tau_b": 0.46, **changes})


def disks(n, name, size=64):
    """Dark disks on light, noisy skin."""
    rng = np.random.default_rng(len(name))
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(20, 44, (n, 2, 1, 1)), rng.uniform(6, 18, (n, 1, 1))
    masks = np.hypot(x - centre[:, 0], y - centre[:, 1]) < radius
    skin = rng.normal(190, 12, (n, 3, size, size)) - 90 * masks[:, None]
    images = torch.from_numpy(skin.clip(0, 255).astype(np.uint8))
    return Split(images, torch.from_numpy(masks[:, None].astype(np.uint8)), tuple(f"{name}{i}" for i in range(n)))


def make_splits(n=11, size=64):
    return Splits(disks(n, "train", size), disks(3, "val", size), disks(3, "test_", size))


def run(folder, experiment=None, splits=None, **options):
    """All rounds."""
    options = {"device": "cpu", "progress": False, **options}
    return list(run_active_learning(experiment or make_experiment(), splits or make_splits(), folder, **options))


def first_round(folder, experiment, splits=None, **options):
    options = {"device": "cpu", "progress": False, **options}
    return next(run_active_learning(experiment, splits or make_splits(), folder, **options))


def lines_of(folder):
    path = Path(folder) / "rounds.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def contents(folder, names=SAME):
    """What the records of all rounds say, by the key."""
    return {name: [line[name] for line in lines_of(folder)] for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run: its folder and its rounds."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, run(folder)


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(steps, "fit", refuse)


# What a round is


def test_the_labelled_set_grows_as_the_experiment_says_by_queries_from_the_pool(undisturbed):
    _, rounds = undisturbed
    experiment, ids = make_experiment(), make_splits().train.ids
    assert tuple(round_.n_labelled for round_ in rounds) == experiment.labelled_per_round == (4, 6, 8)
    assert tuple(len(round_.losses) for round_ in rounds) == tuple(
        map(experiment.steps_for, experiment.labelled_per_round)
    )
    assert sum(len(round_.losses) for round_ in rounds) == experiment.n_training_steps
    assert [round_.number for round_ in rounds] == [0, 1, 2]
    for round_, after in pairwise(rounds):
        assert after.labelled_ids == round_.labelled_ids + tuple(round_.queries["image_id"])
        assert round_.queries["rank"].tolist() == [1, 2] and round_.queries["score"].is_monotonic_decreasing
    assert len(rounds[-1].queries) == 0
    assert len(set(rounds[-1].labelled_ids)) == 8 and set(rounds[-1].labelled_ids) < set(ids)
    assert tuple(ids[i] for i in rounds[-1].labelled) == rounds[-1].labelled_ids


def test_the_queries_of_the_live_model_are_numpys_ranking_of_the_pool(tmp_path):
    splits, experiment = make_splits(), make_experiment()
    round_ = first_round(tmp_path, experiment)
    pool = [i for i in range(11) if i not in round_.labelled.tolist()]
    p = predict_probabilities(round_.model, splits.train.images[pool], experiment).double().numpy().reshape(7, -1)
    certainty = np.abs(0.5 - p).sum(1)
    order = np.argsort(certainty, kind="stable")
    assert round_.queries["image_id"].tolist() == [splits.train.ids[pool[i]] for i in order[:2]]
    assert round_.queries["image_id"].tolist() != [splits.train.ids[pool[i]] for i in order[::-1][:2]]
    np.testing.assert_allclose(round_.queries["score"], -certainty[order[:2]], rtol=1e-5)
    area = [100 * splits.train.masks[pool[i]].numpy().mean() for i in order[:2]]
    np.testing.assert_allclose(round_.queries["lesion_area_percent"], area, rtol=1e-6)
    predicted = [100 * (p[i] >= 0.5).mean() for i in order[:2]]
    np.testing.assert_allclose(round_.queries["predicted_area_percent"], predicted, rtol=1e-6)


def test_validation_and_test_dice_are_eq_4_of_the_live_model(undisturbed):
    _, rounds = undisturbed
    splits, experiment, last = make_splits(), make_experiment(), rounds[-1]
    for split, dice, mean in (
        (splits.val, last.val_dice_per_image, last.val_dice),
        (splits.test, last.test_dice_per_image, last.test_dice),
    ):
        a = predict_probabilities(last.model, split.images, experiment).numpy() >= 0.5
        g = split.masks.numpy() == 1
        expected = 2 * (a & g).sum((1, 2, 3)) / (a.sum((1, 2, 3)) + g.sum((1, 2, 3)))
        np.testing.assert_allclose(dice.numpy(), expected, rtol=1e-6)
        assert mean == pytest.approx(expected.mean())
    jaccard = expected / (2 - expected)  # of the test images
    assert last.line["test_jaccard"] == pytest.approx(jaccard.mean())
    assert last.line["test_thresholded_jaccard"] == pytest.approx(np.where(jaccard >= 0.65, jaccard, 0).mean())
    assert set(rounds[0].seconds) == {"training", "evaluation", "test", "query", "annotation"}
    assert set(last.seconds) == {"training", "evaluation", "test", "annotation"}


def test_each_round_records_the_test_images_and_the_last_their_mean_height_over_the_labelled_images(undisturbed):
    _, rounds = undisturbed
    curves = np.array([round_.test_dice_per_image.tolist() for round_ in rounds])
    expected = ((curves[0] + curves[1]) / 2 + (curves[1] + curves[2]) / 2) / 2  # 4, 6 and 8 labelled images
    table = rounds[-1].line["test_dice_per_image"]
    assert table["image_id"] == list(make_splits().test.ids)
    np.testing.assert_allclose(table["area"], expected, rtol=1e-12)


def test_the_change_of_the_predictions_is_one_minus_the_dice_between_two_rounds(tmp_path):
    splits, masks = make_splits(), []
    begun = run_active_learning(make_experiment(epochs=9), splits, tmp_path, device="cpu", progress=False)
    for round_ in begun:
        masks.append(predict_probabilities(round_.model, splits.val.images, make_experiment()).numpy() >= 0.5)
    assert masks[0].any() or masks[1].any()
    for before, after, round_ in zip(
        masks, masks[1:], load_table(tmp_path, "rounds").iloc[1:].itertuples(), strict=False
    ):
        total = before.sum((1, 2, 3)) + after.sum((1, 2, 3))
        same = np.where(total > 0, 2 * (before & after).sum((1, 2, 3)) / np.maximum(total, 1), 1)
        assert round_.prediction_change == pytest.approx(1 - same.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("control", "mode"),
    [("equal_steps", "full"), ("equal_steps", "human-only"), ("belief", "partial"), ("belief", "model-only")],
)
def test_a_control_is_trained_from_the_start_and_changes_nothing(tmp_path, monkeypatch, control, mode):
    plain = make_partial(mode, n_queries=2)
    experiment = plain.model_copy(update={"control": control, "control_steps": 3})
    run(tmp_path / "plain", plain)
    fits, real = [], steps.fit

    def watched(model, images, masks, *arguments, **options):
        before = next(model.parameters()).clone()
        losses = real(model, images, masks, *arguments, **options)
        fits.append((before, options, len(losses)))
        return losses

    monkeypatch.setattr(steps, "fit", watched)
    first = run_active_learning(experiment, make_splits(), tmp_path / "control", device="cpu", progress=False)
    next(first)
    first.close()
    rounds = run(tmp_path / "control", experiment)  # goes on after a stop
    same, other = contents(tmp_path / "plain"), contents(tmp_path / "control")
    of_control = {"control_val_dice", "control_test_dice"} | ({"audit"} if control == "belief" else set())
    assert {key for key in SAME if same[key] != other[key]} == of_control
    assert [n for _, _, n in fits[1::2]] == [3] * (len(fits) // 2)
    assert all(torch.equal(before, fits[0][0]) for before, _, _ in fits[1::2])
    of_humans = control == "belief" or mode == "human-only"
    assert all((options["annotated"] is not None) == of_humans for _, options, _ in fits[1::2])
    if control == "belief":
        audit = rounds[-1].audit
        assert audit["control_repeated_pixels"].between(0, audit["wrong_pixels"]).all() and len(audit) == 2


@pytest.mark.parametrize(("control", "mode"), [("equal_steps", "full"), ("belief", "partial")])
def test_a_control_that_diverges_leaves_no_number_and_the_run_goes_on(tmp_path, monkeypatch, capsys, control, mode):
    plain = make_partial(mode, n_queries=1)
    run(tmp_path / "plain", plain)
    real = steps.fit

    def diverging(*arguments, **options):
        if options["n_steps"] == 3:
            raise TrainingDiverged("the loss was nan")
        return real(*arguments, **options)

    monkeypatch.setattr(steps, "fit", diverging)
    rounds = run(tmp_path / "control", plain.model_copy(update={"control": control, "control_steps": 3}))
    assert contents(tmp_path / "control", ["val_dice", "queries"]) == contents(
        tmp_path / "plain", ["val_dice", "queries"]
    )
    assert contents(tmp_path / "control", ["control_val_dice"])["control_val_dice"] == [None, None]
    assert load_table(tmp_path, "rounds").query("run == 'control'")["control_test_dice"].isna().all()
    assert control == "equal_steps" or rounds[-1].audit["control_repeated_pixels"].isna().all()
    assert "control: the loss was nan" in capsys.readouterr().err


def test_belief_is_about_labels_that_a_model_wrote(tmp_path):
    with pytest.raises(ConfigError, match="control: 'belief' is about labels that a model writes"):
        run(tmp_path, make_experiment(control="belief"))


def test_a_run_does_not_go_on_from_a_weights_file_that_was_overwritten(tmp_path):
    file, encoder = tmp_path / "encoder.pth", build_unet(encoder_weights=None).encoder
    torch.save(encoder.state_dict(), file)
    experiment = make_experiment(encoder_weights=str(file))
    first_round(tmp_path / "run", experiment)
    run(tmp_path / "run", experiment)
    torch.save({name: 2 * tensor for name, tensor in encoder.state_dict().items()}, file)
    with pytest.raises(ConfigError, match=r"differ in\n  weights: \w{16} there, \w{16} here$"):
        run(tmp_path / "run", experiment)


# What arms share


def test_arms_of_a_seed_share_the_cold_start_and_the_initial_weights(tmp_path, undisturbed):
    _, rounds = undisturbed
    for strategy in ("random", "entropy", "mc_dropout"):
        round_ = first_round(tmp_path / strategy, make_experiment(strategy=strategy))
        assert round_.labelled_ids == rounds[0].labelled_ids
        assert torch.equal(round_.losses, rounds[0].losses)  # the same weights, batches and dropout
        assert torch.equal(round_.val_dice_per_image, rounds[0].val_dice_per_image)
    other = first_round(tmp_path / "seed", make_experiment(seed=1))
    assert set(other.labelled_ids) != set(rounds[0].labelled_ids) and not torch.equal(other.losses, rounds[0].losses)


def test_every_seed_round_and_purpose_draws_its_own_random_numbers(tmp_path, monkeypatch):
    seeds = {}

    def fake_fit(model, images, masks, experiment, generator, **_):
        seeds[folder].append(generator.initial_seed())
        return torch.ones(1)

    def strategy(model, images, experiment, generator):
        seeds[folder].append(generator.initial_seed())
        return torch.zeros(len(images))

    def watched_pixels(probabilities, experiment, generator, regions):
        seeds[folder].append(generator.initial_seed())
        return human_pixels(probabilities, experiment, generator, regions)

    monkeypatch.setattr(steps, "fit", fake_fit)
    monkeypatch.setattr(steps, "human_pixels", watched_pixels)
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        seeds[folder] = []
        run(tmp_path / folder, make_experiment(seed=seed, annotation="contour-band"), strategy=strategy)
    assert seeds["a"] == seeds["b"]
    assert len({*seeds["a"], *seeds["c"]}) == 14  # three trainings, two queries and two annotations each


def test_fine_tuning_carries_the_weights_over_and_from_scratch_does_not(tmp_path, monkeypatch):
    initial = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16)).state_dict()
    real_fit = steps.fit

    def weights(model):
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def same(a, b):
        return all(torch.equal(a[name], b[name]) for name in a)

    for fine_tune in (True, False):
        before, after = [], []

        def watched(model, *args, before=before, after=after, **options):
            before.append(weights(model))
            losses = real_fit(model, *args, **options)
            after.append(weights(model))
            return losses

        monkeypatch.setattr(steps, "fit", watched)
        run(tmp_path / str(fine_tune), make_experiment(fine_tune=fine_tune))
        assert same(before[0], initial)
        for k in (1, 2):
            assert same(before[k], after[k - 1] if fine_tune else initial)


# The pool and the oracle


def test_where_the_pool_ends_the_last_query_is_smaller_and_one_training_follows(tmp_path):
    rounds = run(tmp_path, make_experiment(n_queries=9), make_splits(7))
    assert [round_.n_labelled for round_ in rounds] == [4, 6, 7]
    assert [len(round_.queries) for round_ in rounds] == [2, 1, 0]
    assert rounds[-1].test_dice is not None and len(run(tmp_path, make_experiment(n_queries=9), make_splits(7))) == 3


def test_without_queries_there_is_one_round(tmp_path):
    rounds = run(tmp_path, make_experiment(n_queries=0))
    assert [round_.n_labelled for round_ in rounds] == [4] and rounds[0].test_dice is not None


def test_how_many_images_tied_at_the_cut_is_recorded_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "fit", lambda *_, **__: torch.ones(1))

    def saturated(model, images, experiment, generator):
        return torch.zeros(len(images))

    rounds = run(tmp_path / "ties", strategy=saturated)
    assert [round_.tied for round_ in rounds] == [7, 5, 0]
    assert pd.read_json(tmp_path / "ties" / "rounds.jsonl", lines=True)["tied"].tolist() == [7, 5, 0]
    assert [round_.tied for round_ in run(tmp_path / "ties", strategy=saturated)] == [7, 5, 0]
    first_of_pool = []
    for seed in range(3):
        start = first_round(tmp_path / f"seed {seed}", make_experiment(seed=seed), strategy=saturated)
        pool = [name for name in make_splits().train.ids if name not in start.labelled_ids]
        first_of_pool.append(start.queries["image_id"].tolist() == pool[: len(start.queries)])
    assert not all(first_of_pool)  # a lot, and not the order of the files
    assert first_round(tmp_path / "clean", make_experiment()).tied == 0


def test_the_oracle_reads_the_masks_of_queried_images_only(tmp_path, undisturbed):
    folder, rounds = undisturbed
    splits = make_splits()
    unread = [i for i in range(11) if i not in rounds[-1].labelled.tolist()]
    splits.train.masks[unread] = 1 - splits.train.masks[unread]
    run(tmp_path / "unread", splits=splits)
    assert contents(tmp_path / "unread") == contents(folder)

    splits = make_splits()
    later = [i for i in range(11) if i not in rounds[0].labelled.tolist()]
    splits.train.masks[later] = 1 - splits.train.masks[later]
    rounds_then = run(tmp_path / "later", splits=splits)
    assert torch.equal(rounds_then[0].losses, rounds[0].losses)
    assert rounds_then[0].queries["score"].equals(rounds[0].queries["score"])
    assert not torch.equal(rounds_then[1].losses, rounds[1].losses)  # what was queried is read


def test_the_model_learns_from_what_was_annotated_before_and_after_a_stop(tmp_path, monkeypatch):
    """Not from what the training split says: the annotation need not be the true mask."""
    seen = []

    def watched(model, images, masks, *_, **__):
        seen.append(masks[:])
        return torch.ones(1)

    class Contrary(Oracle):
        def annotate(self, indices, where=None, suggestion=None):
            return 1 - super().annotate(indices, where)

    monkeypatch.setattr(steps, "fit", watched)
    with monkeypatch.context() as patch:
        patch.setattr(erring, "Oracle", Contrary)
        first_round(tmp_path, make_experiment())
    rounds = run(tmp_path)
    true = make_splits().train.masks
    assert seen[1].dtype == torch.uint8 and torch.equal(seen[1], 1 - true[rounds[1].labelled])
    assert torch.equal(seen[2], torch.cat([1 - true[rounds[1].labelled], true[rounds[2].labelled[6:]]]))


# Who labels which pixel


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run of each annotation mode, as needed: what the model learned from, what the oracle was asked, what was said.

    ``masks`` and ``annotated`` are what each training got; ``asked`` are the oracle's questions, and ``human`` the same
    as a mask of the pool; ``again`` and ``new`` are each round's probabilities of the images queried before, and of
    those queried after it.
    """

    @cache
    def watch(mode):
        experiment, splits, folder = make_partial(mode), make_splits(), tmp_path_factory.mktemp("watched") / mode
        seen = SimpleNamespace(folder=folder, experiment=experiment, truth=splits.train.masks, rounds=[])
        seen.masks, seen.annotated, seen.asked, seen.again, seen.new = [], [], [], [], []
        seen.human = torch.zeros_like(seen.truth, dtype=torch.bool)
        real_fit = steps.fit

        def watched_fit(model, images, masks, *args, annotated=None, **options):
            seen.masks.append(masks[:])
            seen.annotated.append(None if annotated is None else annotated[:])
            return real_fit(model, images, masks, *args, annotated=annotated, **options)

        class WatchedOracle(Oracle):
            def __init__(self, masks):
                super().__init__(masks)
                seen.oracle = self

            def annotate(self, indices, where=None, suggestion=None):
                seen.asked.append((indices, where))
                seen.human[indices] = True if where is None else where
                return super().annotate(indices, where)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "fit", watched_fit)
            patch.setattr(erring, "Oracle", WatchedOracle)
            for round_ in run_active_learning(experiment, splits, folder, device="cpu", progress=False):
                queried = torch.tensor([splits.train.ids.index(name) for name in round_.queries["image_id"]]).long()
                for said, images in ((seen.again, round_.labelled[4:]), (seen.new, queried)):
                    said.append(predict_probabilities(round_.model, splits.train.images[images], experiment))
                seen.rounds.append(round_)
        return seen

    return watch


@pytest.mark.parametrize("mode", DRAWN_MODES)
def test_the_oracle_is_asked_once_for_each_queried_image_and_for_its_humans_pixels(watched, mode):
    seen = watched(mode)
    assert torch.equal(torch.cat([indices for indices, _ in seen.asked]), seen.rounds[-1].labelled)
    assert seen.human[seen.rounds[0].labelled].all()
    queried = seen.rounds[-1].labelled[4:]
    share = seen.human[queried].float().mean().item()
    assert share == {"full": 1, "model-only": 0}.get(mode, share)
    assert mode in ("full", "model-only") or 0.01 < share < 0.99


@pytest.mark.parametrize("mode", DRAWN_MODES)
def test_the_annotations_on_disk_are_what_the_oracle_counted(watched, mode):
    seen = watched(mode)
    table, n_pixels = run_tables(lines_of(seen.folder))["annotations"], 64 * 64
    assert len(table) == seen.oracle.n_images == 10
    assert table["verify_percent"].sum() * n_pixels / 100 == pytest.approx(seen.oracle.n_pixels, abs=1e-6)
    assert table["positive_percent"].sum() * n_pixels / 100 == pytest.approx(seen.oracle.n_positive, abs=1e-6)
    human = seen.human[seen.rounds[-1].labelled].numpy()
    lesion = seen.truth[seen.rounds[-1].labelled].numpy() == 1
    np.testing.assert_allclose(table["verify_percent"], 100 * human.mean((1, 2, 3)))
    np.testing.assert_allclose(table["positive_percent"], 100 * (human & lesion).mean((1, 2, 3)))
    assert tuple(table["image_id"]) == seen.rounds[-1].labelled_ids
    assert table["round"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    (row,) = load_runs(seen.folder).to_dict("records")
    assert row["verify_percent"] == pytest.approx(100 * human[4:].mean())
    assert row["positive_percent"] == pytest.approx(100 * (human & lesion)[4:].mean())


@pytest.mark.parametrize("mode", DRAWN_MODES)
def test_the_model_learns_the_humans_labels_and_elsewhere_what_a_model_wrote(watched, mode):
    """What the model wrote stays as it was first written, or is what the model before this training says."""
    seen = watched(mode)
    for k, masks in enumerate(seen.masks):
        labelled = seen.rounds[k].labelled
        if mode == "partial-refreshed" and k:
            written = torch.cat([seen.again[k - 1], seen.new[k - 1]])
        else:
            written = torch.cat([seen.new[j] for j in range(k)]) if k else seen.new[0][:0]
        expected = seen.truth[labelled].clone()
        expected[4:] = torch.where(seen.human[labelled[4:]], expected[4:], written >= seen.experiment.tau_b)
        assert torch.equal(masks, expected)
    for round_, masks in zip(seen.rounds, seen.masks[1:], strict=False):  # what is shown is what comes next
        assert torch.equal(round_.labels.masks[:], masks)
        assert torch.equal(round_.labels.human[:].bool(), seen.human[round_.labels.indices])
    changed = any(not torch.equal(after[: len(before)], before) for before, after in pairwise(seen.masks))
    assert changed == (mode == "partial-refreshed")
    wrong = (seen.masks[-1] != seen.truth[seen.rounds[-1].labelled]).any()
    assert wrong == (mode != "full")


@pytest.mark.parametrize("mode", DRAWN_MODES)
def test_the_loss_ignores_what_is_not_the_humans_in_human_only_and_nothing_elsewhere(watched, mode):
    seen = watched(mode)
    for round_, annotated in zip(seen.rounds, seen.annotated, strict=True):
        if mode == "human-only":
            assert torch.equal(annotated, seen.human[round_.labelled].to(torch.uint8))
        else:
            assert annotated is None


@pytest.mark.parametrize("mode", DRAWN_MODES)
def test_the_audit_counts_what_was_trained_on_by_the_round_that_was_first(watched, mode):
    seen = watched(mode)
    table = run_tables(lines_of(seen.folder))["audit"]
    assert table.columns.tolist() == ["round", "cohort", "images", *NO_AUDIT.columns]
    expected = []
    for k in range(1, 4) if mode in WRITING_MODES else []:
        for cohort in range(1, k + 1):
            place = slice(2 + 2 * cohort, 4 + 2 * cohort)
            images = seen.rounds[k].labelled[place]
            mask, truth, model = seen.masks[k][place].numpy(), seen.truth[images].numpy(), ~seen.human[images].numpy()
            p = seen.again[k][place.start - 4 : place.stop - 4].numpy()
            wrong = model & (mask != truth)
            repeated = wrong & ((p >= np.float32(seen.experiment.tau_b)) == mask)
            counts = [model.sum(), wrong.sum(), (wrong & (truth == 1)).sum(), repeated.sum()]
            dice = [
                np.mean(2 * (a & truth).sum((1, 2, 3)) / (a.sum((1, 2, 3)) + truth.sum((1, 2, 3))))
                for a in (mask, p >= 0.5)
            ]
            expected.append([k, cohort, 2, *counts, *dice])
    np.testing.assert_allclose(table.to_numpy(float), np.array(expected).reshape(-1, 9), rtol=1e-6)


@pytest.mark.parametrize("mode", ["full", "human-only", "model-only", "partial-refreshed"])
def test_only_the_humans_pixels_of_queried_images_have_an_influence(tmp_path, watched, mode):
    """Masks that lie everywhere else give the same run; the audit and the lesion's area look at the truth itself."""
    seen, names = watched(mode), [key for key in SAME if key not in ("queries", "audit")]
    splits = make_splits()
    splits.train.masks[~seen.human] = 1 - splits.train.masks[~seen.human]
    rounds = run(tmp_path / "elsewhere", seen.experiment, splits)
    assert contents(tmp_path / "elsewhere", names) == contents(seen.folder, names)
    for round_, other in zip(rounds, seen.rounds, strict=True):
        assert round_.queries[["image_id", "score"]].equals(other.queries[["image_id", "score"]])
    if mode != "model-only":
        splits = make_splits()
        there = seen.human.clone()
        there[seen.rounds[0].labelled] = False
        splits.train.masks[there] = 1 - splits.train.masks[there]
        rounds = run_active_learning(seen.experiment, splits, tmp_path / "there", device="cpu", progress=False)
        assert torch.equal(next(rounds).losses, seen.rounds[0].losses)
        assert not torch.equal(next(rounds).losses, seen.rounds[1].losses)


@pytest.mark.parametrize("mode", ["partial-refreshed", "contour-band"])
def test_at_tau_u_of_one_half_every_mode_is_full_annotation(tmp_path, watched, mode):
    run(tmp_path, make_partial(mode, tau_u=0.5))
    names = [key for key in SAME if key != "audit"]
    assert contents(tmp_path, names) == contents(watched("full").folder, names)


# Baselines and one's own strategies


def test_baselines_train_once_for_all_the_steps_of_an_arm(tmp_path, undisturbed):
    _, arm = undisturbed
    done = {}
    for name in BASELINES:
        (done[name],) = run(tmp_path / name, make_experiment(strategy=name, learning_rate=0.001))
        assert len(done[name].losses) == make_experiment().n_training_steps == sum(len(round_.losses) for round_ in arm)
        assert len(done[name].queries) == 0 and done[name].test_dice is not None
    assert sorted(done["full"].labelled_ids) == sorted(make_splits().train.ids)
    assert done["full_cosine"].labelled_ids == done["full"].labelled_ids
    assert done["full_cosine"].losses[0] == done["full"].losses[0]
    assert not torch.equal(done["full_cosine"].losses, done["full"].losses)
    assert done["random_at_once"].n_labelled == arm[-1].n_labelled
    assert done["random_at_once"].labelled_ids[:4] == arm[0].labelled_ids
    runs = load_runs(tmp_path).set_index("strategy")
    assert runs["steps"].to_dict() == dict.fromkeys(BASELINES, 5)
    assert runs["n_labelled"].to_dict() == {"full": 11, "full_cosine": 11, "random_at_once": 8}


def test_where_the_pool_ends_baselines_take_the_steps_that_an_arm_takes(tmp_path, monkeypatch):
    def fake_fit(model, images, masks, experiment, generator, *, indices, n_steps, **_):
        return torch.ones(n_steps or experiment.steps_for(len(indices)))

    monkeypatch.setattr(steps, "fit", fake_fit)
    splits = make_splits(7)
    arm = run(tmp_path / "random", make_experiment(strategy="random", n_queries=30), splits)
    for name in BASELINES:
        (done,) = run(tmp_path / name, make_experiment(strategy=name, n_queries=30), splits)
        assert len(done.losses) == sum(len(round_.losses) for round_ in arm) == 1 + 2 + 2
        assert done.n_labelled == 7


def test_a_strategy_of_ones_own_queries_and_is_recorded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "fit", lambda *_, **__: torch.ones(1))

    def darkest(model, images, experiment, generator):
        return -images.float().mean((1, 2, 3))

    train = make_splits().train
    rounds = run(tmp_path, strategy=darkest)
    queried = [train.ids.index(name) for round_ in rounds for name in round_.queries["image_id"]]
    pool = [i for i in range(11) if i not in rounds[0].labelled.tolist()]
    brightness = train.images.numpy().astype(float).mean((1, 2, 3))
    assert queried == sorted(pool, key=lambda i: brightness[i])[:4]
    assert load_runs(tmp_path)["strategy"].tolist() == ["darkest"]
    with pytest.raises(ConfigError, match=r"experiment.strategy: darkest there, least_confidence here"):
        run(tmp_path)


def make_strategy(sign):
    def by_brightness(model, images, experiment, generator):
        return sign * images.float().mean((1, 2, 3))

    return by_brightness


def test_a_strategy_of_ones_own_is_known_by_its_code(tmp_path, no_training, monkeypatch):
    monkeypatch.setattr(steps, "fit", lambda *_, **__: torch.ones(1))
    rounds = run(tmp_path, strategy=make_strategy(1))
    assert_same_rounds(run(tmp_path, strategy=make_strategy(1)), rounds)
    with pytest.raises(ConfigError, match=r"differ in\n  strategy_code: \w{16} there, \w{16} here$"):
        run(tmp_path, strategy=make_strategy(-1))
    with pytest.raises(ConfigError, match="strategy: the source of 'max' cannot be found"):
        run(tmp_path / "max", strategy=max)
    own = make_strategy(-1)
    own.__name__ = "entropy"
    run(tmp_path / "entropy", strategy=own)
    with pytest.raises(ConfigError, match=r"differ in\n  strategy_code: \w{16} there, None here$"):
        run(tmp_path / "entropy", make_experiment(strategy="entropy"))
    run(tmp_path / "random", make_experiment(strategy="random"))
    run(tmp_path / "random", strategy=STRATEGIES["random"])


def test_a_prediction_that_is_no_number_ends_the_run_with_the_images_name_and_a_remedy():
    model, split = nn.Conv2d(3, 1, 1), make_splits().val
    model.bias.data.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match=f"image {split.ids[0]} is not a number; a learning_rate below .* may"):
        steps.evaluate(model, split, make_experiment())


class Inverted(Oracle):
    """Says lesion where there is none."""

    def truth(self, indices):
        return 1 - super().truth(indices)


def test_who_annotates_belongs_to_the_run(tmp_path, no_training, monkeypatch):
    monkeypatch.setattr(steps, "fit", lambda *_, **__: torch.ones(1))
    masks = make_splits().train.masks
    rounds = run(tmp_path)
    assert_same_rounds(run(tmp_path, oracle=Oracle(masks)), rounds)  # the same run, said in full
    erring_oracle = erring.ErringOracle(masks, 0.15, seed=1)
    for other in (Inverted(masks), Oracle(1 - masks), erring_oracle):
        with pytest.raises(ConfigError, match=r"differ in\n  oracle"):
            run(tmp_path, oracle=other)
    run(tmp_path / "erring", oracle=erring_oracle)
    with pytest.raises(
        ConfigError, match=r"differ in\n  oracle.noise: 0.15 there, 0.2 here\n  oracle.seed: 1 there, 2"
    ):
        run(tmp_path / "erring", oracle=erring.ErringOracle(masks, 0.2, seed=2))
    run(tmp_path / "inverted", oracle=Inverted(masks))
    with pytest.raises(ConfigError, match=r"differ in\n  oracle"):
        run(tmp_path / "inverted")


def test_what_is_said_of_degenerate_masks_makes_no_other_run(tmp_path, no_training, monkeypatch):
    monkeypatch.setattr(steps, "fit", lambda *_, **__: torch.ones(1))
    rounds = run(tmp_path)
    assert_same_rounds(run(tmp_path, make_experiment(degenerate_masks="keep")), rounds)


class TwoLayers(nn.Module):
    """A network without ``encode`` and ``decode``."""

    def __init__(self, width, dropout):
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(3, width, 5, padding=2),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 1, 1),
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, images):
        return self.last(self.dropout(self.norm(self.first(images)).relu()))


def two_layers(experiment):
    return TwoLayers(8, experiment.dropout)


@pytest.mark.parametrize("mode", ["full", "partial-refreshed"])
def test_the_loop_takes_any_network_and_records_what_it_is(tmp_path, mode):
    experiment = make_partial(mode, strategy="mc_dropout", n_queries=1)
    state = torch.get_rng_state()
    rounds = run(tmp_path / "a", experiment, network=two_layers)
    assert isinstance(rounds[-1].model, TwoLayers) and rounds[-1].test_dice is not None
    torch.manual_seed(1)
    run(tmp_path / "b", experiment, network=two_layers)  # its initial weights are the seed's
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    torch.set_rng_state(state)
    found = json.loads((tmp_path / "a" / "run.json").read_text())["network"]
    assert found["name"] == "two_layers" and found["class"].endswith("test_active_learning.TwoLayers")
    assert found["parameters"] == 3 * 25 * 8 + 8 + 2 * 8 + 8 + 1 and len(found["code"]) == len(found["structure"]) == 16
    assert_same_rounds(run(tmp_path / "a", experiment, network=two_layers), rounds)
    with pytest.raises(
        ConfigError, match=r"differ in\n  network.name: two_layers there, unet_for here\n  network.code"
    ):
        run(tmp_path / "a", experiment)


def test_a_network_that_was_patched_in_is_recorded_as_what_ran(tmp_path, undisturbed, monkeypatch):
    folder, _ = undisturbed
    known = json.loads((folder / "run.json").read_text())["network"]
    assert known["name"] == "unet_for" and known["class"] == "alutils.model.UNet" and known["code"] is None
    with monkeypatch.context() as patch:
        patch.setattr("alutils.loop.unet_for", two_layers)
        with pytest.raises(ConfigError, match="network.name: unet_for there, two_layers here"):
            run(folder)
    with monkeypatch.context() as patch:
        patch.setattr("alutils.model._convolution_1x1", lambda channels: nn.Conv2d(channels, channels, 1))
        with pytest.raises(
            ConfigError, match=r"differ in\n  network.parameters: \d+ there, \d+ here\n  network.structure"
        ):
            run(folder)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("unet", "network: .* got 'unet'"),
        (lambda experiment: None, "network: '<lambda>' .* NoneType"),
        (lambda experiment: nn.Upsample(), "network: '<lambda>' .* parameters .* Upsample"),
        (lambda experiment: nn.Conv2d(3, 2, 1), r"network: '<lambda>' .* logits .* \(1, 2, 64, 64\)"),
        (lambda experiment: nn.Conv2d(1, 1, 1), r"network: '<lambda>' .* cannot use images \(1, 3, 64, 64\)"),
    ],
)
def test_what_is_no_network_is_refused_at_the_call(tmp_path, network, message):
    with pytest.raises(ConfigError, match=message):
        run_active_learning(make_experiment(), make_splits(), tmp_path / "run", network=network, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_strategy_that_returns_nonsense_ends_with_its_name(tmp_path):
    def nonsense(model, images, experiment, generator):
        return torch.zeros(len(images) + 1)

    with pytest.raises(
        ValueError, match=r"strategy 'nonsense' must return one score per image, shape \(7,\), .* got \(8,\)"
    ):
        run(tmp_path, strategy=nonsense)


def test_the_progress_bar_counts_the_rounds(undisturbed, capsys):
    folder, rounds = undisturbed
    run(folder, progress=True)
    shown = capsys.readouterr().err
    assert "active learning" in shown and "3/3" in shown and f"val_dice={rounds[-1].val_dice:.3f}" in shown


# What is refused


@pytest.mark.parametrize(
    ("changes", "n", "size", "message"),
    [
        ({"strategy": "entorpy"}, 11, 64, "strategy: there is no 'entorpy'; did you mean 'entropy'?"),
        ({"strategy": "bald", "dropout": 0.0}, 11, 64, "dropout: strategy 'bald' .* dropout 0.0"),
        ({"cold_start": 12}, 11, 64, "cold_start: 12 images, but the training set has only 11"),
        ({}, 11, 32, "image_size: 64 in the experiment, but the train images are 32 x 32"),
        ({"strategy": "full", "annotation": "partial"}, 11, 64, "annotation: 'partial' .* strategy 'full' queries"),
    ],
)
def test_what_cannot_work_is_refused_at_the_call(tmp_path, changes, n, size, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        run_active_learning(make_experiment(**changes), make_splits(n, size), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [{"image_size": 32, "cold_start": 1}, {"image_size": 32, "batch_size": 1},
     {"architecture": "deeplabv3plus", "batch_size": 1}],
)  # fmt: skip
def test_an_image_that_no_network_can_train_on_alone_is_refused_at_the_call(tmp_path, no_training, changes):
    experiment = make_experiment(**changes)
    with pytest.raises(ConfigError, match=r"batch_size, cold_start: a \w+ cannot train on one image .* at least 2"):
        run_active_learning(experiment, make_splits(13, experiment.image_size), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_empty_splits_unknown_devices_and_names_for_functions_are_refused_at_the_call(tmp_path):
    splits = make_splits()
    without = Splits(splits.train, splits.val.select([]), splits.test)
    with pytest.raises(ConfigError, match="splits: the val split has no images"):
        run_active_learning(make_experiment(), without, tmp_path / "run")
    with pytest.raises(ConfigError, match="device: 'abacus' cannot be used here"):
        run_active_learning(make_experiment(), splits, tmp_path / "run", device="abacus")
    with pytest.raises(ConfigError, match="strategy: must be a function or None, got 'random'"):
        run_active_learning(make_experiment(), splits, tmp_path / "run", strategy="random")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir: .*file is a file; give a folder"):
        run_active_learning(make_experiment(), splits, tmp_path / "file")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused_before_any_work(undisturbed, no_training):
    folder, _ = undisturbed
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError) as error:
        run_active_learning(make_experiment(epochs=3, loss="dice"), make_splits(10), folder, device="cpu")
    lines = str(error.value).splitlines()
    assert lines[0] == f"output_dir: {folder} holds another run; delete it or give another folder. They differ in"
    assert "  experiment.epochs: 1 there, 3 here" in lines and "  experiment.loss: bce there, dice here" in lines
    assert "  data.train.images: 11 there, 10 here" in lines
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "experiment.epochs", "experiment.loss", "data.train.images", "data.train.checksum",
    ]  # fmt: skip
    repainted = make_splits()
    repainted.test.images[0] += 1
    with pytest.raises(ConfigError, match=r"differ in\n  data.test.checksum: \w{16} there, \w{16} here$"):
        run_active_learning(make_experiment(), repainted, folder, device="cpu")
    relabelled = make_splits()
    relabelled.train.masks[0, 0, 0, 0] ^= 1
    with pytest.raises(ConfigError, match=r"differ in\n  data.train.checksum: \w{16} there, \w{16} here$"):
        run_active_learning(make_experiment(), relabelled, folder, device="cpu")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_with_a_state_and_no_record_is_refused(tmp_path):
    (tmp_path / "state.pt").touch()
    with pytest.raises(ConfigError, match=r"output_dir: .* has a state.pt but no run.json"):
        run_active_learning(make_experiment(), make_splits(), tmp_path, device="cpu")


# On disk


def test_the_records_and_their_tables_hold_what_the_rounds_say(undisturbed):
    folder, rounds = undisturbed
    table = pd.read_json(folder / "rounds.jsonl", lines=True)
    assert tuple(table) == KEYS and table["n_labelled"].tolist() == [4, 6, 8] and table["steps"].tolist() == [1, 2, 2]
    lines = lines_of(folder)
    assert [line["losses"] for line in lines] == [round_.losses.tolist() for round_ in rounds]
    np.testing.assert_allclose(
        table["loss"], [round_.losses.numpy().mean() for round_ in rounds], rtol=1e-6
    )  # one epoch each
    tables = run_tables(lines)
    assert list(tables["rounds"]) == [
        "round", "n_labelled", "steps", "loss", "val_dice", "predicted_dice", "prediction_change", "test_dice",
        "test_jaccard", "test_thresholded_jaccard", "control_val_dice", "control_test_dice", "tied",
    ]  # fmt: skip
    assert tables["rounds"]["val_dice"].tolist() == [round_.val_dice for round_ in rounds]
    queries = tables["queries"]
    assert queries.columns.tolist() == [
        "round", "image_id", "score", "lesion_area_percent", "predicted_area_percent", "rank",
    ]  # fmt: skip
    assert queries["image_id"].tolist() == list(rounds[-1].labelled_ids[4:])
    assert queries["score"].tolist() == [*rounds[0].queries["score"], *rounds[1].queries["score"]]
    annotations = tables["annotations"]
    assert tuple(annotations["image_id"]) == rounds[-1].labelled_ids
    assert annotations["round"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert annotations["clicks"].tolist() == [clicks for round_ in rounds for clicks in round_.annotations["clicks"]]
    assert len(tables["audit"]) == 0  # the human labels everything
    dice, timing = tables["test_dice"], tables["timing"]
    assert tuple(dice["image_id"]) == make_splits().test.ids
    assert dice["dice"].tolist() == rounds[-1].test_dice_per_image.tolist()
    assert timing["seconds"].tolist() == [seconds for round_ in rounds for seconds in round_.seconds.values()]
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["seconds"] == pytest.approx(timing["seconds"].sum())
    assert Experiment(**{k: tuple(v) if isinstance(v, list) else v for k, v in record["experiment"].items()}) == (
        make_experiment()
    )
    assert record["data"]["val"]["images"] == 3 and len(record["provenance"]) == 1


def test_load_runs_and_load_table_read_what_a_run_wrote(undisturbed):
    folder, rounds = undisturbed
    (row,) = load_runs(folder.parent).to_dict("records")
    assert row["run"] == "undisturbed"
    assert row["val_dice"] == rounds[-1].val_dice and row["test_dice"] == pytest.approx(rounds[-1].test_dice, abs=1e-15)
    assert row["n_labelled"] == 8 and row["steps"] == 5 and row["device"] == "cpu"
    assert row["decoder_channels"] == (16, 16, 16, 16, 16) and row["seconds"] > 0
    assert load_table(folder, "rounds")["val_dice"].tolist() == [round_.val_dice for round_ in rounds]


def test_the_same_seed_gives_the_same_files_whatever_the_global_random_state(tmp_path, undisturbed):
    folder, _ = undisturbed
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(tmp_path)
    assert contents(tmp_path) == contents(folder)
    assert torch.equal(torch.get_rng_state(), state)


# Stops


def assert_same_rounds(some, others):
    for round_, other in zip(some, others, strict=True):
        assert round_.labelled_ids == other.labelled_ids and torch.equal(round_.labelled, other.labelled)
        assert torch.equal(round_.losses, other.losses)
        assert torch.equal(round_.val_dice_per_image, other.val_dice_per_image)
        for table in ("queries", "annotations", "audit"):
            pd.testing.assert_frame_equal(getattr(round_, table), getattr(other, table))


def test_a_finished_run_yields_its_rounds_without_training_or_writing(undisturbed, no_training):
    folder, rounds = undisturbed
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run(folder)
    assert_same_rounds(again, rounds)
    assert (
        [round_.model is None for round_ in again] == [round_.labels is None for round_ in again] == [True, True, False]
    )
    for name in ("masks", "human"):
        assert torch.equal(getattr(again[-1].labels, name)[:], getattr(rounds[-1].labels, name)[:])
    assert torch.equal(again[-1].test_dice_per_image, rounds[-1].test_dice_per_image)
    weights, expected = again[-1].model.state_dict(), rounds[-1].model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.parametrize(("strategy", "n_before"), [("least_confidence", 1), ("mc_dropout", 2)])
def test_a_run_stopped_after_any_round_goes_on_as_if_it_had_not_been(tmp_path, undisturbed, strategy, n_before):
    folder, rounds = undisturbed
    experiment = make_experiment(strategy=strategy, fine_tune=strategy == "least_confidence")
    if strategy != "least_confidence":
        folder, rounds = tmp_path / "undisturbed", run(tmp_path / "undisturbed", experiment)
    stopped = tmp_path / "stopped"
    options = {"device": "cpu", "progress": False}
    for _, _ in zip(range(n_before), run_active_learning(experiment, make_splits(), stopped, **options), strict=False):
        pass
    assert json.loads((stopped / "run.json").read_text())["status"] == "running"
    assert len(lines_of(stopped)) == n_before
    again = run(stopped, experiment)
    assert_same_rounds(again, rounds)
    assert contents(stopped) == contents(folder)


def test_a_run_stopped_after_every_round_keeps_what_was_written_into_its_masks(tmp_path, watched):
    seen = watched("partial-refreshed")
    for n_rounds in range(1, 5):
        lives = run_active_learning(seen.experiment, make_splits(), tmp_path, device="cpu", progress=False)
        again = [round_ for _, round_ in zip(range(n_rounds), lives, strict=False)]
    assert_same_rounds(again, seen.rounds)
    assert contents(tmp_path) == contents(seen.folder)


def test_a_run_that_dies_at_any_file_goes_on_as_if_it_had_not(tmp_path, undisturbed, monkeypatch):
    """Its n-th life ends as it puts its n-th file in place, or as it syncs a round's line."""
    folder, rounds = undisturbed
    real_replace, real_sync, died_at, lives, n_files = Path.replace, os.fsync, [], 0, 0

    class Death(BaseException):
        pass

    def count(name):
        nonlocal n_files
        n_files += 1
        if n_files == lives + 1:
            died_at.append(name)
            raise Death

    def replace(self, target):
        count(Path(target).name)
        return real_replace(self, target)

    def sync(number):
        if Path(f"/proc/self/fd/{number}").resolve().name == "rounds.jsonl":
            count("rounds.jsonl")
        real_sync(number)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "fsync", sync)
    while lives < 30:
        n_files = 0
        try:
            again = run(tmp_path)
        except Death:
            lives += 1
        else:
            break
    assert set(died_at) >= {"run.json", "state.pt", "rounds.jsonl"}
    assert lives > 4
    assert_same_rounds(again, rounds)
    assert contents(tmp_path) == contents(folder)
