"""A person as the oracle: what is asked and answered; whoever draws the truth gets the simulated oracle's run."""

import contextlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_active_learning import contents, lines_of, make_experiment, make_partial, make_splits, run

from alutils import steps, training
from alutils.annotation import AnnotationsNeeded, Oracle
from alutils.data.splits import Split
from alutils.lab.annotator import Annotator
from alutils.lab.drawing import Drawing, drawing_table
from alutils.lab.human_oracle import HumanOracle
from alutils.loop import run_active_learning
from alutils.queries.view import View
from alutils.runs.collect import load_runs, load_table
from alutils.runs.folder import RecordsError
from alutils.system.checks import ConfigError, DataError
from alutils.training import probability_batches

INDICES = torch.tensor([3, 0])


def make_oracle(folder, **options):
    return HumanOracle(make_splits().train, folder, **options)


def draw_pixels(drawing, mask):
    """A lasso around each pixel that is to change: the person with the steadiest hand."""
    for _, y, x in np.argwhere((mask != drawing.mask) & drawing.request.where):
        corners = [(x - 0.4, y - 0.4), (x + 0.4, y - 0.4), (x + 0.4, y + 0.4), (x - 0.4, y + 0.4)]
        drawing.lasso(corners, erase=not mask[0, y, x])


def true_mask(oracle, id):
    return oracle.truth(torch.tensor([make_splits().train.ids.index(id)]))[0].numpy().astype(bool)


def draw(oracle, limit=None, answer=lambda truth: truth):
    """The scripted person draws what was asked for, ``answer`` of the truth; ``limit``: goes home after so many."""
    for request in oracle.requests()[:limit]:
        drawing = Drawing(request)
        draw_pixels(drawing, answer(true_mask(oracle, request.id)))
        drawing.save(oracle.folder)


def run_with_a_person(folder, experiment, oracle, splits=None, **options):
    """Call the run until it needs nobody; the rounds, and how often it stopped to ask."""
    for n_stops in range(20):
        try:
            return run(folder, experiment, splits, oracle=oracle), n_stops
        except AnnotationsNeeded:
            draw(oracle, **options)
    raise AssertionError("the run asks for ever")


def some_band():
    band = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    band[:, :, 20:44, 10:60] = True
    return band


# Asking


def test_what_is_not_drawn_is_asked_for_and_what_is_drawn_is_the_answer(tmp_path):
    oracle, band, truth = make_oracle(tmp_path, tau_u=0.25), some_band(), make_splits().train.masks
    suggestion = torch.ones(2, 1, 64, 64, dtype=torch.uint8)
    with pytest.raises(AnnotationsNeeded) as needed:
        oracle.annotate(INDICES, band, suggestion)
    assert needed.value.ids == ("train3", "train0") and needed.value.folder == tmp_path
    assert (oracle.n_images, oracle.n_pixels, oracle.n_positive) == (0, 0, 0)
    requests = make_oracle(tmp_path).requests()  # after a new start of the kernel
    assert [request.id for request in requests] == ["train3", "train0"]
    for request, where, index in zip(requests, band, INDICES, strict=True):
        np.testing.assert_array_equal(request.where, where)
        np.testing.assert_array_equal(request.start, ~where)  # the model's lesion, but where the person decides
        np.testing.assert_array_equal(request.image, make_splits().train.images[index])
    draw(oracle)
    answer = oracle.annotate(INDICES, band, suggestion)
    assert answer.dtype == torch.uint8 and torch.equal(answer, truth[INDICES] * band)
    assert torch.equal(oracle.annotate(INDICES, band), answer)  # what the model suggests plays no part in the answer
    assert (oracle.n_images, oracle.n_pixels) == (4, 2 * int(band.sum()))
    assert oracle.n_positive == 2 * int(answer.sum())
    assert drawing_table(tmp_path, make_splits().train)["mode"].tolist() == ["band", "band"]


def test_a_drawing_for_another_band_is_asked_for_again(tmp_path):
    oracle, band = make_oracle(tmp_path), some_band()
    with pytest.raises(AnnotationsNeeded):
        oracle.annotate(INDICES, band)
    draw(oracle)
    other = band.clone()
    other[1, 0, 0, 0] = True
    with pytest.raises(AnnotationsNeeded) as needed:
        oracle.annotate(INDICES, other)
    assert needed.value.ids == ("train0",)
    draw(oracle)
    assert oracle.annotate(INDICES, other).shape == (2, 1, 64, 64)


def test_nobody_is_asked_for_no_pixels(tmp_path):
    oracle = make_oracle(tmp_path / "none")
    nothing = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    assert not oracle.annotate(INDICES, nothing).any()
    assert oracle.annotate(INDICES[:0]).shape == (0, 1, 64, 64)
    assert oracle.requests() == [] and not (tmp_path / "none").exists()


def test_any_id_that_a_split_allows_can_be_drawn_or_is_refused_at_once(tmp_path):
    images, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    oracle = HumanOracle(Split(images, masks, ("../left eye", "$5$")), tmp_path / "drawn")
    with pytest.raises(AnnotationsNeeded) as needed:
        oracle.annotate(torch.tensor([1, 0]))
    assert needed.value.ids == ("$5$", "../left eye")
    annotator = Annotator(oracle.requests(), oracle.folder)
    annotator.figure.canvas.draw()  # "$5$" is no formula
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]
    with pytest.raises(ValueError, match="id '' cannot name a file"):
        HumanOracle(Split(images, masks, ("a", "")), tmp_path)


def test_requests_that_cannot_be_used_are_refused_by_name_and_asked_anew(tmp_path):
    oracle = make_oracle(tmp_path)
    with pytest.raises(AnnotationsNeeded):
        oracle.annotate(INDICES)
    with pytest.raises(DataError, match=r"requests\.npz cannot be used"):  # they are for images that this split lacks
        HumanOracle(make_splits(3).train, tmp_path).requests()
    (tmp_path / "requests.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"requests\.npz cannot be used .*call run_active_learning again"):
        oracle.requests()
    with pytest.raises(AnnotationsNeeded):
        oracle.annotate(INDICES)
    assert len(oracle.requests()) == 2


def test_no_flipped_bit_changes_what_is_asked_for_unnoticed(tmp_path):
    oracle, path = make_oracle(tmp_path), tmp_path / "requests.npz"
    with pytest.raises(AnnotationsNeeded):
        oracle.annotate(INDICES, torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.5)
    expected, whole = oracle.requests(), path.read_bytes()
    for position in range(0, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with contextlib.suppress(DataError):
            for request, as_written in zip(oracle.requests(), expected, strict=True):
                assert request.id == as_written.id
                np.testing.assert_array_equal(request.where, as_written.where)
                np.testing.assert_array_equal(request.start, as_written.start)


# In a run


@pytest.mark.parametrize("mode", ["partial-refreshed", "contour-band", "model-only"])
def test_a_person_who_draws_the_truth_gives_the_simulated_run_to_the_byte(tmp_path, mode):
    experiment = make_partial(mode, n_queries=2)
    run(tmp_path / "simulated", experiment)
    rounds, n_stops = run_with_a_person(tmp_path / "human", experiment, make_oracle(tmp_path / "drawings"))
    assert contents(tmp_path / "human") == contents(tmp_path / "simulated")
    assert n_stops == (0 if mode == "model-only" else 2)
    drawn = {path.stem for path in (tmp_path / "drawings").glob("*.png")}
    assert drawn == (set() if mode == "model-only" else set(rounds[-1].labelled_ids[4:]))


def test_a_run_learns_what_was_drawn_and_is_measured_with_the_truth(tmp_path):
    experiment, truth = make_experiment(n_queries=1), make_splits().train.masks
    rounds, _ = run_with_a_person(
        tmp_path / "run", experiment, make_oracle(tmp_path / "drawings"), answer=lambda truth: ~truth
    )
    labels = rounds[-1].labels
    assert torch.equal(labels.masks[:4], truth[labels.indices[:4]])  # the cold start is the simulated oracle's
    assert torch.equal(labels.masks[4:], 1 - truth[labels.indices[4:]])
    queries = pd.concat(one.queries for one in rounds)
    np.testing.assert_allclose(queries["lesion_area_percent"], 100 * truth[labels.indices[4:]].float().mean((1, 2, 3)))


def test_a_person_may_draw_the_cold_start_too(tmp_path):
    oracle = make_oracle(tmp_path / "drawings", draws_cold_start=True)
    rounds, n_stops = run_with_a_person(tmp_path / "run", make_experiment(n_queries=1), oracle)
    assert n_stops == 2 and len(drawing_table(tmp_path / "drawings")) == len(rounds[-1].labelled) == 6


def test_a_person_who_stops_amid_the_images_is_asked_for_the_others_and_no_more(tmp_path):
    experiment, drawings = make_partial("partial", n_queries=1), tmp_path / "drawings"
    simulated = run(tmp_path / "simulated", experiment)
    for n_left in (2, 1):
        with pytest.raises(AnnotationsNeeded) as needed:
            run(tmp_path / "run", experiment, oracle=make_oracle(drawings))
        assert len(needed.value.ids) == n_left
        draw(make_oracle(drawings), limit=3 - n_left)
    again = run(tmp_path / "run", experiment, oracle=make_oracle(drawings))
    assert again[-1].labelled_ids == simulated[-1].labelled_ids
    assert contents(tmp_path / "run") == contents(tmp_path / "simulated")


def test_a_round_that_waits_is_not_trained_again(tmp_path, monkeypatch):
    """Otherwise a run whose training does not repeat to the bit would ask for another band each time."""
    trained = []
    real_fit = steps.fit

    def never_the_same(model, images, *args, **options):
        losses = real_fit(model, images, *args, **options)
        trained.append(len(options["indices"]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1 + 0.001 * len(trained)
        return losses

    monkeypatch.setattr(steps, "fit", never_the_same)
    oracle = make_oracle(tmp_path / "drawings")
    rounds, n_stops = run_with_a_person(tmp_path / "run", make_partial("partial", n_queries=2, tau_u=0.1), oracle)
    assert trained == [4, 6, 8] and n_stops == 2
    assert len(drawing_table(tmp_path / "drawings")) == 4
    assert not (tmp_path / "run" / "waiting.pt").exists()
    assert all(one.seconds["training"] > 0 for one in rounds)


@pytest.mark.parametrize("mode", ["partial-refreshed", "contour-band"])
def test_a_round_that_waits_predicts_nothing_anew(tmp_path, mode, monkeypatch):
    """Another machine predicts otherwise, so it would ask for another band, and label the rest otherwise."""
    experiment, drawings = make_partial(mode, n_queries=2), tmp_path / "drawings"
    expected, _ = run_with_a_person(tmp_path / "one machine", experiment, make_oracle(tmp_path / "others"))
    for _ in range(2):
        with pytest.raises(AnnotationsNeeded):
            run(tmp_path / "run", experiment, oracle=make_oracle(drawings))
        draw(make_oracle(drawings))
        go_on_elsewhere(tmp_path / "run", experiment, make_oracle(drawings), monkeypatch)
    again = run(tmp_path / "run", experiment, oracle=make_oracle(drawings))
    assert contents(tmp_path / "run") == contents(tmp_path / "one machine")
    for kind in ("masks", "human"):
        assert torch.equal(getattr(again[-1].labels, kind)[:], getattr(expected[-1].labels, kind)[:])


def go_on_elsewhere(folder, experiment, oracle, monkeypatch):
    """Until the waiting round is over, where the network's predictions are shifted."""

    def other_batches(*arguments, **options):
        for chosen, p in probability_batches(*arguments, **options):
            yield chosen, (p + 0.02).clamp(max=1)

    def other_passes(view, real=View._passes):
        for chosen, (p, features) in real(view):
            yield chosen, ((p + 0.02).clamp(max=1), features)

    with monkeypatch.context() as elsewhere:
        for module in (steps, training):
            elsewhere.setattr(module, "probability_batches", other_batches)
        elsewhere.setattr(View, "_passes", other_passes)
        n_done = len(lines_of(folder))
        rounds = run_active_learning(experiment, make_splits(), folder, oracle=oracle, device="cpu", progress=False)
        for _ in range(n_done + 1):
            next(rounds)


def test_a_damaged_model_of_a_waiting_round_is_named(tmp_path):
    oracle = make_oracle(tmp_path / "drawings")
    with pytest.raises(AnnotationsNeeded):
        run(tmp_path / "run", oracle=oracle)
    (tmp_path / "run" / "waiting.pt").write_bytes(b"half")
    with pytest.raises(RecordsError, match="waiting.pt cannot be read .*; delete it to train this round again"):
        run(tmp_path / "run", oracle=oracle)


def test_the_record_tells_a_person_from_a_simulation(tmp_path):
    experiment = make_experiment(n_queries=1)
    run_with_a_person(tmp_path / "human", experiment, make_oracle(tmp_path / "drawings"))
    run(tmp_path / "simulated", experiment, oracle=Oracle(make_splits().train.masks))
    assert json.loads((tmp_path / "human" / "run.json").read_text())["data"]["oracle"] == "human"
    run(tmp_path / "simulated", experiment)  # the same one, though nobody gave it
    with pytest.raises(ConfigError, match=r"data\.oracle: human there, absent here"):
        run(tmp_path / "human", experiment)
    with pytest.raises(ConfigError, match=r"data\.oracle: absent there, human here"):
        run(tmp_path / "simulated", experiment, oracle=make_oracle(tmp_path / "drawings"))


def test_a_persons_run_does_not_get_among_the_simulated_ones_of_the_tables(tmp_path):
    experiment = make_partial("partial", n_queries=1)
    run(tmp_path / "simulated", experiment)
    run_with_a_person(tmp_path / "person", experiment, make_oracle(tmp_path / "drawn"))
    assert load_runs(tmp_path)["run"].tolist() == ["simulated"]
    assert set(load_table(tmp_path, "rounds")["run"]) == {"simulated"}
    assert load_runs(tmp_path / "person")["run"].tolist() == ["."]


def test_a_person_who_cannot_be_asked_is_refused_at_the_call(tmp_path):
    with pytest.raises(ConfigError, match="incoming: must be another folder than .*drawn, which holds the drawings"):
        HumanOracle(make_splits().train, tmp_path / "drawn", incoming=tmp_path / "other" / ".." / "drawn")
    with pytest.raises(ConfigError, match=r"oracle: must be an alutils.Oracle or None, got 'human'"):
        run(tmp_path / "run", make_experiment(), oracle="human")
    others = HumanOracle(make_splits(7).train, tmp_path / "drawn")
    with pytest.raises(ConfigError, match=r"oracle: it knows masks of shape \(7, 1, 64, 64\)"):
        run(tmp_path / "run", make_experiment(), oracle=others)
    with pytest.raises(ConfigError, match="oracle: strategy 'full' queries no images"):
        run(tmp_path / "run", make_experiment(strategy="full"), oracle=make_oracle(tmp_path / "drawn"))
    assert not (tmp_path / "run").exists()
