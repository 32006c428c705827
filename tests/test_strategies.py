"""The arms beside the paper's, each against an oracle of its own: closed forms, NumPy, SciPy or scikit-image."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity
from test_active_learning import contents, make_experiment, make_splits, run
from test_queries import FAIR, SETTINGS, flat_pool, generator, random_pool
from torch import nn

from alutils import loop, steps
from alutils.data.packed import PackedMasks
from alutils.data.splits import ImageView
from alutils.data.superpixels import superpixels
from alutils.data.thumbnails import thumbnails
from alutils.experiment import Experiment, Training
from alutils.model import build_unet, unet_for
from alutils.queries import STRATEGIES
from alutils.queries.ceal import _scores, quotas
from alutils.queries.clustered import chosen_cold_start, nearest_to_centres, typical_of_clusters
from alutils.queries.combined import _mutual_information
from alutils.queries.geometry import distances_from, furthest_first, nearest_of, spread_out
from alutils.queries.registry import wrapper
from alutils.queries.select import ask, chosen_of, select_queries
from alutils.queries.similar import Similarity
from alutils.queries.view import Labelled, View
from alutils.queries.wrappers import diverse, power, stochastic, stratified
from alutils.runs.arm import run_identity
from alutils.system.checks import ConfigError
from alutils.training import fit, predict_probabilities

torch.set_num_threads(1)


class Encoded(nn.Module):
    """Red is lesion; the features are the image's three mean colours. ``passes`` counts images through the encoder."""

    def __init__(self, dropped=0.5):
        super().__init__()
        self.gain, self.dropout, self.passes = nn.Parameter(torch.tensor(8.0)), nn.Dropout(dropped), 0
        self.segmentation_head = nn.Identity()

    def encode(self, images):
        self.passes += len(images)
        return [images, images]

    def decode(self, stages):
        return self.segmentation_head(self.gain * (self.dropout(stages[-1])[:, :1] - 0.5))

    def forward(self, images):
        return self.decode(self.encode(images))


def make_view(pool, n, *, labelled=0, model=None, seed=0, **settings):
    """The last images of ``pool`` to query ``n`` of; the first are labelled."""
    images, all_ = pool, torch.arange(len(pool))
    masks = PackedMasks.pack(torch.zeros(labelled, 1, *pool.shape[2:], dtype=torch.uint8))
    known = Labelled(ImageView(images, all_[:labelled]), tuple(map(str, range(labelled))), masks, masks)
    experiment = Experiment(**{"encoder_weights": None, **SETTINGS, **settings})
    view = View.of(model or Encoded(), ImageView(images, all_[labelled:]), experiment, generator(seed), n)
    view.labelled = known
    return view


def query(name, view):
    return chosen_of(ask(view, STRATEGIES[name] if isinstance(name, str) else name), view)


def by(scores):
    """A strategy with these scores."""

    def mine(view):
        return torch.tensor(scores, dtype=torch.float32)

    return mine


# The view


def test_scores_areas_and_features_cost_one_pass_of_the_model():
    view = make_view(random_pool(11), 4, labelled=3)
    list(view.probabilities())
    assert view.predicted_area().shape == (8,) and view.features().shape == (8, 3)
    assert view.model.passes == 8
    assert view.features("labelled").shape == (3, 3) and view.model.passes == 11
    expected = random_pool(11)[3:].float().mean((2, 3)) / 255
    torch.testing.assert_close(view.features(), expected)
    red = random_pool(11)[3:, :1].float() / 255
    torch.testing.assert_close(view.predicted_area(), (red >= 0.5).float().mean((1, 2, 3)))


@pytest.mark.parametrize("name", FAIR)
def test_querying_takes_at_most_two_passes_beside_its_samples(name):
    view = make_view(random_pool(20), 4, labelled=4, mc_samples=2)
    query(name, view)
    assert view.model.passes <= 2 * 16 + 4  # what is labelled may be seen once


def test_untrained_features_are_computed_once_in_a_run_and_thumbnails_stand_for_them_without_weights(tmp_path):
    pool, kept = random_pool(9), {}
    for labelled in (2, 3):
        view = make_view(pool, 2, labelled=labelled, encoder_weights=None)
        view.kept = kept
        assert torch.equal(view.features(source="imagenet"), thumbnails(pool, 16).flatten(1)[labelled:])
        assert torch.equal(view.features("labelled", source="imagenet"), thumbnails(pool, 16).flatten(1)[:labelled])
    assert len(kept) == 1
    encoder = build_unet(encoder_weights=None, seed=3).encoder
    torch.save(
        {**encoder.state_dict(), "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}, tmp_path / "w.pth"
    )
    pool = torch.randint(0, 256, (3, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    view = make_view(pool, 1)
    with torch.inference_mode():
        expected = encoder.eval()(pool.float() / 255)[-1].mean((2, 3))
    torch.testing.assert_close(view.features(source=str(tmp_path / "w.pth")), expected)


def test_features_of_a_network_without_an_encoder_are_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1)

        def forward(self, images):
            return self.layer(images)

    with pytest.raises(ConfigError, match="needs features, and a Plain gives none"):
        query("kcentre", make_view(random_pool(5), 2, model=Plain()))


@pytest.mark.parametrize("bad", [torch.tensor([0, 0]), torch.tensor([0, 9]), torch.tensor([-1, 2])])
def test_a_selection_of_ones_own_is_positions_and_all_differ(bad):
    view = make_view(random_pool(9), 2)
    assert query(lambda view: torch.tensor([7, 1]), view).tolist() == [7, 1]
    with pytest.raises(ValueError, match="must select different positions from 0 to 8"):
        query(lambda view: bad, view)
    with pytest.raises(ValueError, match="selects images and gives no scores"):
        query(power(lambda view: torch.tensor([7, 1])), view)


@pytest.mark.parametrize(
    "name", sorted({*FAIR, *(f"{each}-entropy" for each in STRATEGIES._wrappers if each != "power")})
)
def test_a_wrapper_is_refused_before_what_is_marked_as_giving_no_scores_and_before_nothing_else(name):
    view = make_view(random_pool(9), 2, labelled=2, mc_samples=2)
    view.generator = generator()
    if STRATEGIES[name](view).dtype == torch.int64:
        with pytest.raises(
            ConfigError, match=f"'power-{name}' the wrapper 'power' needs a score .* '{name.split('-')[0]}'"
        ):
            STRATEGIES.check_arm(f"power-{name}", "strategy")
    else:
        STRATEGIES.check_arm(f"power-{name}", "strategy")
    STRATEGIES.check_arm(name, "strategy")


def test_a_wrapper_without_scores_is_refused_when_the_run_is_called(tmp_path):
    experiment = make_experiment(strategy="stratified-diverse-entropy")
    with pytest.raises(
        ConfigError, match="the wrapper 'stratified' needs a score for each image, but 'diverse' selects"
    ):
        loop.run_active_learning(experiment, make_splits(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_selection_of_the_whole_pool_is_one_and_its_order_stays():
    chosen, scores = select_queries(
        nn.Identity(), random_pool(4), 4, Experiment(**SETTINGS), generator(), lambda view: torch.tensor([2, 0, 3, 1])
    )
    assert chosen.tolist() == [2, 0, 3, 1] and scores.isnan().all()


@pytest.mark.parametrize("name", sorted({*FAIR, "stochastic-entropy", "diverse-entropy"}))
def test_no_image_is_queried_where_none_is_asked_for(name):
    assert query(name, make_view(random_pool(9), 0, labelled=2, mc_samples=2)).tolist() == []


@pytest.mark.parametrize("name", sorted({*FAIR, "power-least_confidence", "stratified-random", "diverse-entropy"}))
def test_a_pool_no_larger_than_the_query_is_taken_whole(name):
    for n in (1, 5):
        view = make_view(random_pool(n + 2), n, labelled=2, mc_samples=2)
        assert sorted(query(name, view).tolist()) == list(range(n))


RANDOM = {"random", "mc_dropout", "bald", "ceal", "clasp", "suggestive", "nath", "badge"}  # they draw by position


@pytest.mark.parametrize("name", sorted({*FAIR, "diverse-entropy"} - RANDOM))
def test_a_permutation_of_the_pool_permutes_the_choice(name):
    pool, order = random_pool(24), torch.randperm(20, generator=generator(5))
    plain = query(name, make_view(pool, 6, labelled=4))
    permuted = torch.cat([pool[:4], pool[4:][order]])
    assert set(order[query(name, make_view(permuted, 6, labelled=4))].tolist()) == set(plain.tolist())


# Wrappers


def test_power_noise_draws_in_proportion_to_the_scores_power():
    scores, beta = np.array([1.0, 2.0, 4.0, 0.0]), 1.5
    view = make_view(random_pool(4), 1, power_beta=beta)
    drawn = [int(query(power(by(scores)), view)) for _ in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, scores**beta / (scores**beta).sum(), atol=0.03)  # four standard deviations


def test_much_power_is_the_score_itself_and_least_confidence_is_counted_from_its_lowest():
    pool = random_pool(30)
    for name in ("entropy", "least_confidence"):
        top = query(name, make_view(pool, 7))
        assert query(f"power-{name}", make_view(pool, 7, power_beta=1e9)).tolist() == top.tolist()
    with pytest.raises(ValueError, match="scores of at least 0, the lowest is -1"):
        query(power(by([1.0, -1.0])), make_view(random_pool(2), 1))


def test_a_stochastic_batch_is_the_best_whole_group_of_the_random_order():
    scores = np.random.default_rng(1).random(10)
    chosen = query(stochastic(by(scores)), make_view(random_pool(10), 3, seed=7)).tolist()
    groups = torch.randperm(10, generator=generator(7))[:9].view(3, 3).tolist()
    best = max(groups, key=lambda group: scores[group].mean())
    assert chosen == sorted(best, key=lambda i: -scores[i])


def test_strata_are_thirds_by_predicted_area_and_each_gives_its_best():
    areas = [0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0]
    pool = torch.zeros(9, 3, 32, 80, dtype=torch.uint8)
    for picture, area in zip(pool, areas, strict=True):
        picture[:, :, : round(80 * area)] = 255
    scores = [0, 2, 1, 5, 4, 3, 6, 7, 8]
    assert sorted(query(stratified(by(scores)), make_view(pool, 3)).tolist()) == [1, 3, 8]
    assert sorted(query(stratified(by(scores)), make_view(pool, 6)).tolist()) == [1, 2, 3, 4, 7, 8]
    counts = np.zeros(3)
    for seed in range(60):
        chosen = query("stratified-random", make_view(pool, 4, seed=seed))
        per_stratum = np.bincount(chosen // 3, minlength=3)
        assert sorted(per_stratum) == [1, 1, 2]
        counts += per_stratum == 2
    assert counts.min() > 8  # the lot favours none: 20 on average


def test_diverse_takes_the_best_and_what_is_far_from_it():
    pool = flat_pool(10, 11, 12, 200, 13, size=32)
    assert query(diverse(by([5, 4, 3, 2, 1])), make_view(pool, 2)).tolist() == [0, 3]


def test_wrappers_go_around_each_other():
    pool = random_pool(12)
    chosen = query("stratified-power-entropy", make_view(pool, 6, power_beta=1e9))
    assert set(chosen.tolist()) == set(query("stratified-entropy", make_view(pool, 6)).tolist())
    assert STRATEGIES["power-mc_dropout"].needs_dropout and not STRATEGIES["power-entropy"].needs_dropout
    assert STRATEGIES["stratified-power-entropy"].__name__ == "stratified-power-entropy"
    assert "power-no" not in STRATEGIES and "no-entropy" not in STRATEGIES


# Geometry


def test_k_centre_on_a_line():
    line = torch.tensor([[0.0], [1.0], [4.0], [9.0], [10.0]])
    chosen = furthest_first(distances_from(line), nearest_of(line, line[:1]), 3)
    assert chosen.tolist() == [4, 2, 1]
    values = [0, 30, 60, 100, 250, 255]
    assert query("kcentre", make_view(flat_pool(*values, size=32), 2, labelled=1)).tolist() == [4, 2]  # 255, then 100


def test_spread_out_draws_by_the_squared_distance():
    line = torch.tensor([[5.0], [4.0], [3.0], [1.0]])
    seconds = [int(spread_out(line, 2, generator(seed))[1]) for seed in range(3000)]
    np.testing.assert_allclose(np.bincount(seconds, minlength=4) / 3000, np.array([0, 1, 4, 16]) / 21, atol=0.035)
    twins = torch.ones(4, 2)
    assert sorted(spread_out(twins, 4, generator()).tolist()) == [0, 1, 2, 3]


def three_gaussians(n=(40, 30, 20)):
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    noise = torch.randn(sum(n), 2, generator=generator(3))
    return centres.repeat_interleave(torch.tensor(n), 0) + noise, torch.arange(3).repeat_interleave(torch.tensor(n))


def test_typiclust_takes_the_dense_middle_of_each_gaussian_the_uncovered_ones_first():
    points, which = three_gaussians()
    chosen = typical_of_clusters(points, points[:0], 3, generator())
    assert which[chosen].tolist() == [0, 1, 2]  # the largest first
    for i in chosen.tolist():
        members = points[which == which[i]]
        distances = torch.cdist(members, members).sort(1).values[:, 1:]
        n = min(20, len(members) // 2)
        typical = members[distances[:, :n].mean(1).argmin()]
        assert torch.equal(points[i], typical)
    labelled = points[which == 0][:1] + 0.1
    after = typical_of_clusters(points, labelled, 2, generator())
    assert which[after].tolist() == [1, 2]


def test_the_nearest_to_the_centres_are_one_of_each_gaussian():
    points, which = three_gaussians()
    chosen = nearest_to_centres(points, 3, generator())
    assert sorted(which[chosen].tolist()) == [0, 1, 2]
    for i in chosen.tolist():
        members = points[which == which[i]]
        assert (points[i] - members.mean(0)).norm() == (members - members.mean(0)).norm(dim=1).min()


def test_an_empty_cluster_is_no_reason_to_warn():
    twins = torch.tensor([[0.0, 0.0], [5.0, 0.0], [9.0, 9.0]]).repeat(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(nearest_to_centres(twins, 5, generator()).tolist())) == 5


@pytest.mark.parametrize("how", ["kmeans", "typiclust"])
def test_cold_starts_are_of_their_size_and_of_the_seed(how):
    pool = random_pool(40)
    experiment = Experiment(cold_start_by=how, cold_start=12, encoder_weights=None, **SETTINGS)
    chosen = chosen_cold_start(pool, experiment, generator())
    assert len(set(chosen.tolist())) == 12
    assert torch.equal(chosen, chosen_cold_start(pool, experiment, generator()))


# Strategies


def test_clasp_gives_a_third_to_the_lesion_and_a_third_to_the_skin_and_ends_without_noise():
    rng = np.random.default_rng(0)
    pool = torch.from_numpy(rng.integers(60, 200, (12, 1, 1, 1)).repeat(3, 1).repeat(32, 2).repeat(32, 3)).byte()
    p = 1 / (1 + np.exp(-8 * (pool[:, 0, 0, 0].numpy() / 255 - 0.5)))
    h = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    view = make_view(pool, 6)
    view.round, view.n_rounds = 4, 5
    counts = np.zeros(12)
    for _ in range(200):
        counts[query("clasp", view)] += 1
    expected = []
    for scores in (h * p, h * (1 - p), h):
        expected += [i for i in np.argsort(-scores) if i not in expected][:2]
    assert set(np.argsort(-counts)[:6]) == set(expected) and counts[expected].min() > 100


def test_stochastic_and_clasp_do_without_their_noise_what_numpy_does_in_the_first_round():
    view = make_view(flat_pool(*range(100, 160, 5), size=32), 6)
    counts = np.zeros(12)
    for _ in range(300):
        counts[query("clasp", view)] += 1
    assert counts.min() > 60  # beta = 1 and scores alike: all are drawn


def test_ceals_quotas_are_lowest_random_and_highest():
    assert quotas(35) == (10, 10)
    pool = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    for i, picture in enumerate(pool):
        picture[:, : 1 + i, : 1 + i] = 255  # a larger lesion has more pixels, deeper ones and so a larger score
    seen = np.zeros(30)
    for seed in range(40):
        chosen = query("ceal", make_view(pool, 7, seed=seed, mc_samples=40)).tolist()
        assert len(set(chosen)) == 7
        seen[chosen] += 1
    assert seen[25:].sum() > 80 and seen[:5].sum() > 80  # 2 of 7 from either end, each time
    assert 80 < seen[5:25].sum() < 130 and seen[5:25].max() < 20  # and 3 from anywhere between


def test_ceal_lets_the_model_label_images_of_the_modal_bin_from_the_fifth_query_on():
    pool = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    pool[:6, :, 4:28, 4:28] = 255  # all others have the score 0
    for number, n in ((3, 0), (4, 4), (5, 8), (9, 24), (30, 32)):
        view = make_view(pool, 7, mc_samples=4)
        view.round = number
        chosen = set(query("ceal", view).tolist())
        found = set(view.pseudo_labelled.tolist())
        assert len(found) == min(n, 34 - len(chosen - set(range(6))))
        assert not found & (chosen | set(range(6)))


def test_ceal_weighs_all_pixels_alike_where_all_are_lesion():
    lower = torch.zeros(1, 1, 32, 32)
    lower[..., 16:, :] = 0.2
    mean = torch.full((1, 1, 32, 32), 0.9)
    assert torch.equal(_scores(lower, mean), _scores(lower.flip(2), mean)) and _scores(lower, mean) > 0


@pytest.mark.parametrize("positions", [[-1, 2], [3, 3], [40], [0.5], None])
def test_only_positions_in_the_pool_can_be_pseudo_labelled(positions):
    def mine(view):
        view.pseudo_labelled = None if positions is None else torch.tensor(positions)
        return torch.arange(len(view)).float()

    with pytest.raises(ValueError, match=r"different positions from 0 to 9 into view.pseudo_labelled, int64, got"):
        ask(make_view(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), 2), mine)


def test_pseudo_labels_join_one_training_and_are_what_the_model_says(tmp_path, monkeypatch):
    def mine(view):
        if view.round == 0:
            view.pseudo_labelled = torch.tensor([3, 2])
        return -torch.arange(len(view)).float()

    experiment, splits, seen = make_experiment(), make_splits(), []

    def watched(model, images, masks, *arguments, indices, **options):
        said = predict_probabilities(model, images, experiment, indices=indices[-2:]) >= 0.5
        seen.append((indices.tolist(), torch.equal(masks[slice(len(indices) - 2, None)].bool(), said)))
        return fit(model, images, masks, *arguments, indices=indices, **options)

    monkeypatch.setattr(steps, "fit", watched)
    rounds = run(tmp_path / "run", experiment, splits, strategy=mine)
    labelled = [round_.labelled.tolist() for round_ in rounds]
    pool = [i for i in range(len(splits.train)) if i not in labelled[0]]
    trained_on = [indices for indices, _ in seen]
    assert trained_on == [labelled[0], labelled[1] + [pool[3], pool[2]], labelled[2]] and seen[1][1]
    names = [splits.train.ids[pool[i]] for i in (3, 2)]
    assert [round_.line["pseudo_labelled"] for round_ in rounds] == [names, [], []]
    next(iter(loop.run_active_learning(experiment, splits, tmp_path / "stopped", strategy=mine, progress=False)))
    run(tmp_path / "stopped", experiment, splits, strategy=mine)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "run")


def test_a_queried_image_is_not_pseudo_labelled_too(tmp_path):
    def mine(view):
        view.pseudo_labelled = torch.arange(len(view))
        return -torch.arange(len(view)).float()

    first, second, last = run(tmp_path, make_experiment(), make_splits(), strategy=mine)
    assert first.line["pseudo_labelled"] and last.line["pseudo_labelled"] == []
    assert not {*first.line["pseudo_labelled"]} & {*second.labelled_ids}


def test_a_wrapper_of_ones_own_is_recorded_by_its_code_and_those_of_the_package_are_not(tmp_path):
    def wrapped_by(function):
        return wrapper("mine")(function)(STRATEGIES["entropy"])

    run(tmp_path, make_experiment(), make_splits(), strategy=wrapped_by(lambda view, inner: inner(view)))
    with pytest.raises(ConfigError, match=r"differ in\n  strategy_code: \w{16} there, \w{16} here$"):
        run(tmp_path, make_experiment(), make_splits(), strategy=wrapped_by(lambda view, inner: -inner(view)))
    shipped = run_identity(
        make_experiment(strategy="power-entropy"), make_splits(), None, unet_for, unet_for(make_experiment()), None
    )
    assert shipped["strategy_code"] is None


@pytest.mark.parametrize(
    "name",
    ["stratified-power-entropy", "clasp", "kcentre", "als", "ceal", "equal", "nath", "hal_ia", "badge", "typiclust"],
)
def test_an_arm_that_was_stopped_between_its_queries_asks_for_the_same_images(tmp_path, name):
    experiment = make_experiment(strategy=name, n_queries=3)
    run(tmp_path / "whole", experiment)
    rounds = loop.run_active_learning(experiment, make_splits(), tmp_path / "stopped", device="cpu", progress=False)
    next(rounds), next(rounds)  # one query made, and what the strategy keeps for the later ones
    rounds.close()
    run(tmp_path / "stopped", experiment)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_ceals_distance_is_from_the_lesions_border():
    mean = torch.zeros(1, 1, 16, 16)
    mean[..., 4:12, 4:12] = 0.9
    std = torch.rand(1, 1, 16, 16, generator=generator())
    depth = ndimage.distance_transform_edt(mean[0, 0].numpy() >= 0.5)
    expected = (std[0, 0].numpy() ** 2 * depth / depth.max()).sum()
    np.testing.assert_allclose(_scores(std, mean).item(), expected, rtol=1e-6)
    assert _scores(std, 0 * mean).item() == 0


def test_equal_adds_the_entropies_of_the_image_and_of_its_mirror_image():
    class Sided(Encoded):
        def decode(self, stages):
            return super().decode([stages[0] * torch.linspace(0.5, 1, stages[0].shape[-1])])

    pool, x = random_pool(5), random_pool(5)[:, 0].numpy() / 255
    ramp = np.linspace(0.5, 1, x.shape[-1])

    def h(logit):
        p = 1 / (1 + np.exp(-logit))
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    expected = (h(8 * (x * ramp - 0.5)) + h(8 * (x * ramp[::-1] - 0.5))).sum((1, 2))
    scores = ask(make_view(pool, 2, model=Sided()), STRATEGIES["equal"]).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_als_compares_as_scikit_image_does_and_needs_no_model():
    pictures = thumbnails(random_pool(6, size=32), 16)
    similarity = Similarity(pictures)
    for i, j in itertools.product(range(6), repeat=2):
        expected = structural_similarity(pictures[i].double().numpy(), pictures[j].double().numpy(), data_range=1.0)
        assert math.isclose(similarity(pictures[i])[j].item(), expected, abs_tol=1e-5)
    view = make_view(random_pool(8, size=32), 3, labelled=2)
    chosen = query("als", view)
    distance = np.array([[1 - Similarity(thumbnails(random_pool(8, size=32), 16))(p)[j] for j in range(8)] for p in
                         thumbnails(random_pool(8, size=32), 16)])  # fmt: skip
    covered, expected = [0, 1], []
    for _ in range(3):
        free = [i for i in range(8) if i not in covered]
        best = max(free, key=lambda i: distance[i, covered].min())
        covered.append(best)
        expected.append(best - 2)
    assert chosen.tolist() == expected and view.model.passes == 0


def test_suggestive_annotation_covers_the_pool():
    """The six unsure images fall into two groups by colour; a query of two takes one of each."""
    pool = flat_pool(127, 127, 127, 127, 127, 127, size=32)
    pool[:3, 1], pool[3:, 2] = 255, 255
    pool[:, 0] = torch.tensor([180, 181, 182, 183, 184, 185], dtype=torch.uint8).view(6, 1, 1)
    chosen = query("suggestive", make_view(pool, 3, mc_samples=8))
    assert {int(i) // 3 for i in chosen} == {0, 1}


def test_badges_gradients_vanish_where_the_model_is_sure():
    class Head(nn.Module):
        def forward(self, features):
            return 8 * (features[:, 1:] - 0.5)

    class WithConstant(Encoded):
        def decode(self, stages):
            red = stages[-1][:, :1]
            return self.segmentation_head(torch.cat([torch.ones_like(red), red], 1))

    model = WithConstant()
    model.segmentation_head = Head()
    pool = flat_pool(0, 255, 128, 160, 3, size=32)
    red = pool[:, 0, 0, 0].numpy() / 255
    p = 1 / (1 + np.exp(-8 * (red - 0.5)))
    norms = np.minimum(p, 1 - p) * np.hypot(1, red)
    assert query("badge", make_view(pool, 1, model=model)).tolist() == [norms.argmax()] == [2]
    gradients = (np.minimum(p, 1 - p) * np.stack([np.ones(5), red])).T
    squares = ((gradients - gradients[2]) ** 2).sum(1)
    seconds = [query("badge", make_view(pool, 2, model=model, seed=seed))[1].item() for seed in range(400)]
    np.testing.assert_allclose(np.bincount(seconds, minlength=5) / 400, squares / squares.sum(), atol=0.1)


def test_naths_mutual_information_is_numpys_and_a_twin_of_a_labelled_image_comes_last():
    rng = np.random.default_rng(0)
    levels = torch.from_numpy(rng.integers(0, 16, (3, 1024)))
    joint, *_ = np.histogram2d(levels[1], levels[0], bins=16, range=((-0.5, 15.5), (-0.5, 15.5)))
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    expected = (joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum()
    np.testing.assert_allclose(_mutual_information(levels, levels[0])[1], expected, rtol=1e-4)

    pool = torch.randint(0, 256, (6, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    pool[3] = pool[0]
    view = make_view(pool, 4, labelled=1, model=Encoded(dropped=1e-9), mc_samples=2)
    scores = ask(view, STRATEGIES["nath"]).scores
    view_without = make_view(pool, 4, model=Encoded(dropped=1e-9), mc_samples=2)
    alone = ask(view_without, STRATEGIES["nath"]).scores[1:]
    assert (scores - alone).argmin() == 2


def test_hal_ia_multiplies_ranks_and_prefers_the_unsure_the_ragged_and_the_new():
    pool = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    pool[0, 2] = 255
    pool[1, 0], pool[1, 2] = 60, 255  # surer, smooth, like the labelled image
    pool[2, 0] = 125
    pool[3, 0] = 125
    pool[3, 0, ::2, ::2] = 131  # ragged
    scores = ask(make_view(pool, 2, labelled=1), STRATEGIES["hal_ia"]).scores
    assert scores.argmax() == 2 and scores.argmin() == 0


def test_superpixels_cover_the_picture_and_large_pictures_are_cut_up_small():
    picture = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    picture[..., 128:] = 200
    regions = superpixels(picture)
    assert regions.shape == (1, 128, 128) and regions.min() == 0 and 100 < regions.max() < 300
    assert not set(regions[0, :, :60].flatten().tolist()) & set(regions[0, :, 68:].flatten().tolist())


# In the loop


@pytest.mark.parametrize(
    "name", ["kcentre", "als", "hal_ia", "nath", "badge", "typiclust", "power-entropy", "stochastic-entropy"]
)
def test_select_queries_takes_every_kind_by_name(name):
    network = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    pool = torch.randint(0, 256, (9, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    experiment = Experiment(strategy=name, encoder_weights=None, mc_samples=2, **SETTINGS)
    chosen, scores = select_queries(network, pool, 3, experiment, generator())
    assert len(set(chosen.tolist())) == 3 and scores.shape == (9,)


def test_a_wrapped_strategy_of_ones_own_is_recorded_by_its_own_code(tmp_path):
    def mine(view):
        return view.predicted_area()

    def other(view):
        return 1 - view.predicted_area()

    records = []
    for name, strategy in (("a", mine), ("b", power(mine)), ("c", power(other))):
        run(tmp_path / name, make_experiment(n_queries=1), make_splits(), strategy=strategy)
        records.append(json.loads((tmp_path / name / "run.json").read_text()))
    codes = [record["strategy_code"] for record in records]
    assert codes[0] == codes[1] != codes[2] and codes[0] is not None
    assert [record["experiment"]["strategy"] for record in records] == ["mine", "power-mine", "power-other"]
    with pytest.raises(ConfigError, match="holds another run"):
        run(tmp_path / "b", make_experiment(n_queries=1), make_splits(), strategy=power(other))


@pytest.mark.parametrize("how", ["kmeans", "typiclust"])
def test_a_chosen_cold_start_is_shared_by_all_arms_and_the_record_tells_of_its_features(tmp_path, how):
    splits, firsts = make_splits(), set()
    for strategy in ("random", "entropy", "random_at_once"):
        experiment = make_experiment(strategy=strategy, cold_start_by=how, n_queries=1)
        rounds = run(tmp_path / strategy, experiment, splits)
        firsts.add(rounds[0].labelled_ids[:4])
        assert len(set(rounds[0].labelled_ids)) == rounds[0].n_labelled
        record = json.loads((tmp_path / strategy / "run.json").read_text())
        assert record["data"]["cold_start_features"] == "thumbnails"
    random = run(tmp_path / "by lot", make_experiment(n_queries=1), splits)
    assert len(firsts) == 1 and firsts != {random[0].labelled_ids}


def test_the_consistency_loss_pulls_an_image_and_its_mirror_image_together():
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    images[..., :16] = 255
    masks = (images[:, :1] > 0).to(torch.uint8)

    def difference(weight):
        model = nn.Conv2d(3, 1, 9, padding=4)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        training = Training(consistency=weight, epochs=40, batch_size=4, precision="float32", rotation=0,
                            horizontal_flip=0, vertical_flip=0)  # fmt: skip
        losses = fit(model, images, masks, training, generator(), progress=False)
        p = predict_probabilities(model, torch.cat([images[:1], images[:1].flip(-1)]), training)
        return losses, (p[0] - p[1].flip(-1)).abs().mean().item()

    plain, apart = difference(0.0)
    strict, together = difference(50.0)
    assert together < 0.8 * apart and plain[0] == strict[0]  # zero weights: both predictions are one half
