"""Which images are queried next: each strategy against NumPy, ties, and what is said of a bad strategy."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.model import build_unet
from alutils.queries import STRATEGIES
from alutils.queries.registry import find_marked
from alutils.queries.select import select_queries, tied_at_the_cut
from alutils.system.checks import ConfigError

torch.set_num_threads(1)

# Images are seen by the models below as they are, 0 to 1
SETTINGS = {"precision": "float32", "batch_size": 4, "normalize_mean": (0, 0, 0), "normalize_std": (1, 1, 1)}
FAIR = sorted(name for name in STRATEGIES if not STRATEGIES[name].sees_masks)
"""The strategies that do without the pool's masks: all but the positive control."""
BY_PREDICTION = ("least_confidence", "entropy", "binary_entropy")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class RedIsLesion(nn.Module):
    """Probability = sigmoid(8 (red - 0.5)), so that NumPy can follow; ``batches`` are the sizes it was asked for."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(8.0))
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        return self.gain * (images[:, :1] - 0.5)


class HalfIsDropped(RedIsLesion):
    """Each pixel's logit is 0 or doubled, with one half each."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(super().forward(images))


class EncodesAndDecodes(HalfIsDropped):
    """In two parts, as strategies need it that look at features."""

    def __init__(self):
        super().__init__()
        self.segmentation_head = nn.Identity()

    def encode(self, images):
        self.batches.append(len(images))
        return [images, images]

    def decode(self, stages):
        return self.segmentation_head(self.dropout(self.gain * (stages[-1][:, :1] - 0.5)))

    def forward(self, images):
        return self.decode(self.encode(images))


def random_pool(n=11, size=16):
    """Images that differ in how close they come to p = 0.5, how far they go from it, and how much of them is lesion."""
    rng = np.random.default_rng(0)
    nearest, spread, lesion = (rng.uniform(*limits, (n, 1, 1, 1)) for limits in ((1, 20), (5, 80), (0.1, 0.9)))
    distance = nearest + spread * np.abs(rng.standard_normal((n, 3, size, size)))
    side = np.where(rng.random((n, 3, size, size)) < lesion, 1, -1)
    return torch.from_numpy((127.5 + side * distance).clip(0, 255).astype(np.uint8))


def flat_pool(*values, size=64):
    """An image of one colour for each value, 0 to 255."""
    return torch.stack([torch.full((3, size, size), value, dtype=torch.uint8) for value in values])


def numpy_probabilities(pool):
    red = pool[:, 0].numpy().astype(np.float64).reshape(len(pool), -1) / 255
    return 1 / (1 + np.exp(-8 * (red - 0.5)))


def numpy_information(strategy, p):
    """Of each pixel, large where the model is unsure."""
    if strategy == "least_confidence":
        return -np.abs(0.5 - p)
    if strategy == "entropy":
        return -p * np.log2(p)
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def numpy_scores(strategy, reduction, p):
    information = numpy_information(strategy, p)
    if reduction == "top_k":
        return np.sort(information, axis=1)[:, -max(1, information.shape[1] // 100) :].mean(1)
    if reduction == "band_mean":
        return np.array([row[np.abs(0.5 - q) <= 0.25].mean() for row, q in zip(information, p, strict=True)])
    return getattr(np, reduction)(information, axis=1)


@pytest.mark.parametrize("reduction", ["sum", "mean", "median", "top_k", "band_mean"])
@pytest.mark.parametrize("strategy", BY_PREDICTION)
def test_scores_and_ranking_are_numpys(strategy, reduction):
    pool = random_pool()
    experiment = Experiment(strategy=strategy, reduction=reduction, **SETTINGS)
    chosen, scores = select_queries(RedIsLesion(), pool, 4, experiment, generator())
    expected = numpy_scores(strategy, reduction, numpy_probabilities(pool))
    assert scores.dtype == torch.float32 and scores.shape == (11,)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(expected[chosen], -np.sort(-expected)[:4], rtol=1e-5)  # images may tie
    assert expected[chosen].min() > expected.min()


@pytest.mark.parametrize("reduction", ["sum", "mean", "median", "top_k", "band_mean"])
@pytest.mark.parametrize("strategy", [*BY_PREDICTION, "mc_dropout", "bald"])
def test_the_unsure_image_goes_before_the_sure_ones(strategy, reduction):
    """Grey gives p = 0.55, black 0.02 and white 0.98: eq. 1 with its sign flipped would ask for black or white."""
    pool = flat_pool(0, 134, 255)
    if strategy in ("mc_dropout", "bald"):
        pool = flat_pool(127, 200, 128)  # dropping half of no signal changes nothing; of a strong one, much
    experiment = Experiment(strategy=strategy, reduction=reduction, **SETTINGS)
    chosen, _ = select_queries(HalfIsDropped(), pool, 1, experiment, generator())
    assert chosen.tolist() == [1]


@pytest.mark.parametrize("strategy", ["least_confidence", "mc_dropout"])
def test_the_band_of_the_band_mean_is_the_experiments(strategy):
    """Within a narrow band the first image has p = 0.5 alone; a wide one takes in its other half, p = 0.9."""
    pool = flat_pool(128, 136)
    pool[0, :, :32] = 197
    model, narrow_first = RedIsLesion(), 0
    if strategy == "mc_dropout":  # it is sure of p = 0.5, where there is no signal to drop
        model, narrow_first = HalfIsDropped(), 1
    for tau_u, first in ((0.1, narrow_first), (0.45, 1 - narrow_first)):
        experiment = Experiment(strategy=strategy, reduction="band_mean", tau_u=tau_u, **SETTINGS)
        assert select_queries(model, pool, 1, experiment, generator())[0].tolist() == [first]


def test_dropout_strategies_rank_and_score_as_the_closed_form():
    """Two outcomes with one half each: eq. 3 is half their distance, BALD H(their mean) minus the mean of their H."""
    pool = flat_pool(100, 160, 90, 230, 140)
    p = 1 / (1 + np.exp(-16 * (pool[:, 0, 0, 0].numpy() / 255 - 0.5)))  # kept: the logit doubled; dropped: 0.5

    def h(q):
        return -q * np.log2(q) - (1 - q) * np.log2(1 - q)

    closed_form = {"mc_dropout": np.abs(p - 0.5) / 2, "bald": h((p + 0.5) / 2) - (h(p) + 1) / 2}
    for name, expected in closed_form.items():
        experiment = Experiment(strategy=name, reduction="mean", mc_samples=200, **SETTINGS)
        chosen, scores = select_queries(HalfIsDropped(), pool, 5, experiment, generator())
        np.testing.assert_allclose(scores.numpy(), expected, rtol=0.02)
        assert chosen.tolist() == np.argsort(-expected).tolist()


class UnusedDropout(RedIsLesion):
    """Like some encoders: the dropout of a classifier that was cut off."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)


def test_a_strategy_that_needs_dropout_is_refused_where_nothing_is_dropped():
    def mine(model, images, experiment, generator):
        return torch.zeros(len(images))

    pool, nothing = random_pool(), HalfIsDropped()
    nothing.dropout.p = 0.0
    select_queries(nothing, pool, 1, Experiment(**SETTINGS), generator(), mine)
    mine.needs_dropout = True
    for model in (RedIsLesion(), UnusedDropout(), nothing):
        for name, own in (("mc_dropout", None), ("bald", None), ("mine", mine), ("mine", functools.partial(mine))):
            experiment = Experiment(strategy="random" if own else name, **SETTINGS)
            with pytest.raises(ConfigError, match=f"dropout: strategy '{name}'"):
                select_queries(model, pool, 1, experiment, generator(), own)
    model = HalfIsDropped().train()
    select_queries(model, pool, 1, Experiment(**SETTINGS), generator(), mine)
    assert model.training and model.dropout.training


def test_random_scores_are_uniform_and_come_from_the_generator_alone():
    experiment = Experiment(strategy="random", **SETTINGS)
    pool = torch.zeros(4000, 3, 1, 1, dtype=torch.uint8)
    chosen, scores = select_queries(RedIsLesion(), pool, 4000, experiment, generator())
    assert torch.equal(select_queries(RedIsLesion(), pool, 4000, experiment, generator())[0], chosen)
    assert not torch.equal(select_queries(RedIsLesion(), pool, 4000, experiment, generator(1))[0], chosen)
    assert sorted(chosen.tolist()) == list(range(4000))
    counts, _ = np.histogram(scores.numpy(), bins=10, range=(0, 1))
    assert counts.sum() == 4000 and abs(counts - 400).max() < 100  # five standard deviations


def test_a_lot_decides_among_equal_scores_and_a_small_pool_is_taken_whole():
    model, experiment = RedIsLesion(), Experiment(**SETTINGS)
    values = np.array([1.0, 2, 1, 2, 2, 1] * 10)

    def steps(model, images, experiment, generator):
        return torch.from_numpy(values)

    pool = torch.zeros(60, 3, 1, 1, dtype=torch.uint8)
    for n, n_tied in ((0, 0), (7, 30), (30, 0), (31, 30), (60, 0), (100, 0)):
        chosen, scores = select_queries(model, pool, n, experiment, generator(), steps)
        assert len(set(chosen.tolist())) == min(n, 60) and len(scores) == 60
        assert scores[chosen].tolist() == sorted(values, reverse=True)[:n]
        assert tied_at_the_cut(scores, chosen) == n_tied
    often = np.zeros(60)
    for seed in range(300):
        often[select_queries(model, pool, 3, experiment, generator(seed), steps)[0]] += 1
    assert not often[values == 1].any() and often[values == 2].min() > 10  # 30 on average, whatever the position
    again = [select_queries(model, pool, 9, experiment, generator(1), steps)[0].tolist() for _ in range(2)]
    assert again[0] == again[1]
    chosen, scores = select_queries(model, pool[:0], 5, experiment, generator())
    assert len(chosen) == len(scores) == 0
    with pytest.raises(ValueError, match="n must be a whole number of images, at least 0, got -1"):
        select_queries(model, pool, -1, experiment, generator())


@pytest.mark.parametrize("strategy", FAIR)
def test_scoring_holds_no_more_than_a_batch_and_leaves_the_network_bit_identical(strategy):
    network = build_unet(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pool = torch.randint(0, 256, (5, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    settings = {**SETTINGS, "batch_size": 1, "encoder_weights": None}
    experiment = Experiment(strategy=strategy, mc_samples=2, **settings)
    _, scores = select_queries(network, pool, 2, experiment, generator())
    assert not scores.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    model = EncodesAndDecodes()
    experiment = Experiment(strategy=strategy, encoder_weights=None, **SETTINGS)
    select_queries(model, random_pool(50), 2, experiment, generator())
    assert max(model.batches, default=0) <= 8


def test_a_strategy_of_ones_own_takes_a_few_lines():
    def darkest(model, images, experiment, generator):
        return -images.float().mean((1, 2, 3))

    pool = flat_pool(30, 10, 200, 20)
    chosen, scores = select_queries(RedIsLesion(), pool, 3, Experiment(**SETTINGS), generator(), darkest)
    assert chosen.tolist() == [1, 3, 0]
    assert scores.tolist() == [-30, -10, -200, -20]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(2, 1), r"one score per image, shape \(2,\), or the positions of 1 images, int64, got \(2, 1\)"),
        (torch.tensor([0.0, float("nan")]), "finite scores; image 1 of 2 has nan"),
        ("high", "2 numbers, got str"),
    ],
)
def test_numbers_of_any_kind_are_scores_and_anything_else_is_refused(answer, message):
    def mine(model, images, experiment, generator):
        return answer

    def query(strategy):
        return select_queries(RedIsLesion(), flat_pool(0, 0, size=8), 1, Experiment(**SETTINGS), generator(), strategy)

    for numbers in (np.array([3.0, 1.0]), [3, 1], torch.tensor([3.0, 1.0]).double()):
        chosen, scores = query(lambda *_, numbers=numbers: numbers)
        assert chosen.tolist() == [0] and scores.dtype == torch.float32
    with pytest.raises(ValueError, match=f"'mine' must return {message}"):
        query(mine)


def test_the_positive_control_works_in_runs_alone():
    with pytest.raises(ConfigError, match="'lowest_dice' is a positive control, which needs the pool's masks"):
        select_queries(RedIsLesion(), flat_pool(0, size=8), 1, Experiment(strategy="lowest_dice"), generator())
    with pytest.raises(ConfigError, match="positive control"):
        bound = functools.partial(STRATEGIES["lowest_dice"])
        select_queries(RedIsLesion(), flat_pool(0, size=8), 1, Experiment(), generator(), bound)


def test_a_bad_arm_is_reported_under_the_setting_that_names_it():
    with pytest.raises(ConfigError, match="^strategies: in 'power-kmeans' the wrapper 'power' needs a score"):
        STRATEGIES.check_arm("power-kmeans", "strategies")
    with pytest.raises(ConfigError, match="^strategy: 'power-power-entropy' has the wrapper 'power' twice; leave one"):
        STRATEGIES.check_arm("power-power-entropy", "strategy")


def test_an_unknown_name_is_answered_with_the_nearest_one():
    experiment = Experiment(strategy="mc-dropout", **SETTINGS)
    with pytest.raises(ConfigError, match=r"there is no 'mc-dropout'; did you mean 'mc_dropout'\?"):
        select_queries(RedIsLesion(), flat_pool(0, size=8), 1, experiment, generator())
    with pytest.raises(ConfigError, match="strategy: must be a function or None, got 'random'"):
        select_queries(RedIsLesion(), flat_pool(0, size=8), 1, experiment, generator(), "random")


# The registry


def test_the_names_are_there_without_torch_and_each_is_its_functions():
    code = "import sys; from alutils.queries import STRATEGIES as s; print(*s, 'bald' in s, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == [*STRATEGIES, "True", "False"]
    assert {"random", "least_confidence", "entropy", "mc_dropout", "kcentre", "ceal"} < set(STRATEGIES)
    assert all(STRATEGIES[name].__name__ == name for name in STRATEGIES)
    assert STRATEGIES["bald"].needs_dropout and not STRATEGIES["entropy"].needs_dropout
    assert STRATEGIES.get("full") is None


def test_a_new_strategy_is_one_function_in_one_file(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("import no_such_module\ndef helper(): pass\n\n@strategy('new', selects=True)\ndef score(): pass\n")
    assert find_marked(tmp_path, "strategy") == {"new": (mine, "score", True)}
    (tmp_path / "other.py").write_text("@strategy('new')\ndef other(): pass\n")
    with pytest.raises(ValueError, match="two functions are the strategy 'new', in .*mine.py and .*other.py"):
        find_marked(tmp_path, "strategy")
