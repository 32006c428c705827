"""Nothing leaks: who reads which masks, and what is in the pool, the labelled set and the evaluation sets."""

import tempfile
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_active_learning import MODES, SAME, contents, make_experiment, make_partial, make_splits, run

from alutils import steps
from alutils.annotation import Oracle
from alutils.data.splits import Split, Splits
from alutils.loop import run_active_learning
from alutils.metrics import dice_score
from alutils.queries import STRATEGIES
from alutils.training import predict_probabilities

few = settings(deadline=None, max_examples=12)


def shuffled(model, images, experiment, generator):
    return torch.randperm(len(images), generator=generator)


def noise_for_masks(splits, *names):
    """The same splits, with masks of noise where ``names`` says so."""

    def noisy(split):
        masks = torch.randint(0, 2, split.masks.shape, generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
        return Split(split.images, masks, split.ids)

    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    return Splits(**{name: noisy(split) if name in names else split for name, split in parts.items()})


@few
@given(
    n=st.integers(4, 9),
    cold_start=st.integers(2, 4),
    query_size=st.integers(1, 4),
    n_queries=st.integers(0, 3),
    strategy=st.sampled_from([*STRATEGIES, shuffled]),
    mode=st.sampled_from(MODES),
    n_before=st.integers(0, 3),
    seed=st.integers(0, 3),
)
def test_the_sets_stay_apart_and_no_image_is_queried_twice(
    n, cold_start, query_size, n_queries, strategy, mode, n_before, seed
):
    named = {"strategy": strategy} if isinstance(strategy, str) else {}
    own = None if named else strategy
    experiment = make_partial(
        mode,
        image_size=32,
        batch_size=16,
        cold_start=cold_start,
        query_size=query_size,
        n_queries=n_queries,
        seed=seed,
        **named,
    )
    splits = make_splits(n, 32)
    apart = {*splits.val.ids, *splits.test.ids}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(steps, "fit", lambda *_, **__: torch.ones(1))
        begun = run_active_learning(experiment, splits, folder, strategy=own, device="cpu", progress=False)
        for _ in zip(range(n_before), begun, strict=False):  # stopped in the middle
            pass
        rounds = run(folder, experiment, splits, strategy=own)
    for round_, after in pairwise(rounds):
        queried = round_.queries["image_id"].tolist()
        pool = set(splits.train.ids) - set(round_.labelled_ids)
        assert set(queried) <= pool and len(set(queried)) == len(queried) == min(query_size, len(pool))
        assert after.labelled_ids == (*round_.labelled_ids, *queried)
    for round_ in rounds:
        assert len(set(round_.labelled_ids)) == len(round_.labelled_ids)
        assert set(round_.labelled_ids) <= set(splits.train.ids) and not set(round_.labelled_ids) & apart


@pytest.mark.parametrize("mode", MODES)
def test_nobody_but_the_oracle_reads_the_masks_of_the_training_split(tmp_path, mode):
    experiment, splits = make_partial(mode, n_queries=2), make_splits()
    run(tmp_path / "true", experiment, splits)
    run(tmp_path / "noise", experiment, noise_for_masks(splits, "train"), oracle=Oracle(splits.train.masks))
    assert contents(tmp_path / "noise") == contents(tmp_path / "true")


@pytest.mark.parametrize("strategy", ["least_confidence", "mc_dropout"])
def test_validation_and_test_masks_change_their_own_dice_alone(tmp_path, strategy):
    experiment, splits = make_experiment(strategy=strategy, annotation="partial"), make_splits()
    run(tmp_path / "true", experiment, splits)
    before = contents(tmp_path / "true")
    for name in ("val", "test"):
        run(tmp_path / name, experiment, noise_for_masks(splits, name))
        after = contents(tmp_path / name)
        changed = {f"{name}_dice", f"{name}_dice_per_image"} | ({"test_jaccard"} if name == "test" else set())
        found = {key for key in SAME if before[key] != after[key]}
        assert changed <= found <= changed | {"test_thresholded_jaccard"}  # that one may be 0 in both


def test_only_the_positive_control_gets_the_pools_masks_and_it_asks_for_the_worst(tmp_path):
    seen, splits = {}, make_splits()

    def watched(view):
        seen["masks"] = view.masks
        return torch.zeros(len(view))

    run(tmp_path / "own", make_experiment(n_queries=1), splits, strategy=watched)
    assert seen["masks"] is None
    assert [name for name in STRATEGIES if STRATEGIES[name].sees_masks] == ["lowest_dice"]
    assert STRATEGIES["power-lowest_dice"].sees_masks
    experiment = make_experiment(strategy="lowest_dice", n_queries=1)
    begun = run_active_learning(experiment, splits, tmp_path / "control", device="cpu", progress=False)
    round_ = next(begun)
    pool = [i for i, name in enumerate(splits.train.ids) if name not in round_.labelled_ids]
    p = predict_probabilities(round_.model, splits.train.images, experiment, indices=torch.tensor(pool))
    dice = dice_score(p, splits.train.masks[pool])
    worst = {splits.train.ids[pool[i]] for i in dice.argsort()[:2].tolist()}
    assert set(round_.queries["image_id"]) == worst
