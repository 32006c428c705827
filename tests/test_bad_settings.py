"""Settings and arguments that cannot be used: one clear error of the project's own, before any work."""

import math
import sys
import traceback
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st

from alutils import uncertainty
from alutils.annotation import Oracle, audit_annotations, human_pixels, merge_annotations
from alutils.cost import annotation_cost
from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.lab.notebook import open_workspace
from alutils.metrics import dice_score
from alutils.queries.select import select_queries
from alutils.report.calibration import expected_calibration_error, reliability
from alutils.system.checks import ConfigError, DataError
from alutils.system.settings import parse_settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

from batch import Batch  # noqa: E402
from batch import ConfigError as BatchConfigError  # noqa: E402

OURS = {ROOT / "alutils", ROOT / "workflow"}
quickly = settings(deadline=None, max_examples=60)


def refused(function, *named):
    """The message of the one error that ``function`` ends with: ours, of our code, alone, naming what is wrong."""
    with pytest.raises((ConfigError, BatchConfigError, DataError, ValueError)) as caught:
        function()
    error = caught.value
    assert type(error) in (ConfigError, BatchConfigError, DataError, ValueError)
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    assert OURS & set(raised_in.parents)
    message = str(error)
    assert all(str(name) in message for name in named), message
    assert len(message) < 20_000
    return message


# Each field of the experiment

FIELDS = Experiment.model_fields
NUMBERS = {name: field.annotation for name, field in FIELDS.items() if field.annotation in (int, float)}
TEXTS = [name for name, field in FIELDS.items() if field.annotation in (str, bool) or get_args(field.annotation)]


def beyond_bounds():
    """The first value beyond each bound that a field declares."""
    for name, kind in NUMBERS.items():
        for bound in FIELDS[name].metadata:
            if isinstance(bound, Ge):
                yield name, bound.ge - 1 if kind is int else math.nextafter(bound.ge, -math.inf)
            elif isinstance(bound, Le):
                yield name, bound.le + 1 if kind is int else math.nextafter(bound.le, math.inf)
            elif isinstance(bound, Gt):
                yield name, kind(bound.gt)
            elif isinstance(bound, Lt):
                yield name, kind(bound.lt)


WRONG = [
    *beyond_bounds(),
    *((name, value) for name in NUMBERS for value in ("3", None, True, [1])),
    *((name, value) for name, kind in NUMBERS.items() if kind is float for value in (math.nan, math.inf, "1e-4")),
    *((name, 1.5) for name, kind in NUMBERS.items() if kind is int),
    *((name, 10**400) for name in NUMBERS),
    *((name, 3) for name in TEXTS),
    *((name, None) for name in TEXTS if name != "encoder_weights"),
    *(("n_synthetic", value) for value in ([10**9, 1, 1], [0, 1, 1], [1, 1], [1, 1, "1"], "1,1,1", {1, 2, 3})),
    *(("decoder_channels", value) for value in ([10**9] * 5, [16] * 4, [16.5] * 5)),
    ("image_size", 10**9),
    ("image_size", 33),
    ("blur_kernel", 4),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:20])
def test_a_wrong_value_is_refused_with_its_name(name, value):
    message = refused(lambda: Experiment(**{name: value}), f"{name}: ")
    assert "got " in message


@pytest.mark.parametrize("name", [*NUMBERS, "self", "cls", "profile", "values", ""])
def test_a_name_that_is_no_setting_is_refused(name):
    refused(lambda: Experiment.from_profile("quick", **{f"{name}_" if name in FIELDS else name: 1}), "no such setting")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@quickly
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=6), json_like, max_size=4))
def test_any_mapping_makes_an_experiment_or_one_error(overrides):
    try:
        assert isinstance(Experiment.from_profile("quick", **overrides), Experiment)
    except ConfigError as error:
        assert error.__suppress_context__ or error.__context__ is None


@quickly
@given(st.text() | st.text("{}[]:,-&*!<>'\"\n\t ?|0aé~=", max_size=20))
def test_any_text_is_settings_or_one_error(text):
    try:
        assert all(isinstance(name, str) for name in parse_settings(text))
    except ConfigError as error:
        assert error.__suppress_context__ or error.__context__ is None


@quickly
@given(st.text() | st.integers() | st.none() | st.binary())
def test_any_profile_makes_an_experiment_or_one_error(profile):
    try:
        Experiment.from_profile(profile)
    except ConfigError as error:
        assert error.__suppress_context__ or error.__context__ is None


# Profile files


def laughs(end):
    """Nine to the power of nine strings, in nine lines."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join([*lines, end])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (bytes(range(256)), "cannot be read"),
        ("é".encode("latin1"), "cannot be read"),
        ("epochs: 3".encode("utf-16"), "cannot be read"),
        (b"\0epochs: 3", "not valid YAML"),
        ("[1]", "must be a mapping"),
        ("3", "must be a mapping"),
        ("3: 4", "must be a mapping"),
        ("a: {epochs: 3}", "a: there is no such setting"),
        ("epochs: 3\nmomentum: 0.5\nepochs: 4", "epochs stands twice"),
        ("\tepochs: 3", "not valid YAML"),
        (laughs("epochs: *i"), "epochs: input should be a valid integer"),
        ("&a {epochs: *a}", "epochs: input should be a valid integer"),
        ("epochs: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ('epochs: !!python/object/apply:os.system ["touch PWNED"]', "python/object"),
        ("? [a]\n: 4", "not valid YAML"),
        ("epochs: 3\n---\nepochs: 4", "not valid YAML"),
        ("seed: 2020-13-41", "not valid YAML"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("seed: 0x" + "f" * 5000, "seed: "),
        ('seed: !!int "abc"', "not valid YAML"),
        ('seed: !!int ""', "not valid YAML"),
        ('seed: !!bool "abc"', "not valid YAML"),
        ('seed: !!timestamp "abc"', "not valid YAML"),
        ("<<: 3", "not valid YAML"),
        ("self: 3", "self: there is no such setting"),
        ("seed: 0o77", "seed: input should be a valid integer, got '0o77'"),
    ],
    ids=range(26),
)
def test_a_profile_that_cannot_be_used_is_refused_with_its_path(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: Experiment.from_profile(file), "mine.yaml", named)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_an_empty_profile_is_the_papers():
    assert parse_settings("") == parse_settings("# nothing") == {}


def test_a_missing_profile_and_a_folder_are_refused(tmp_path):
    refused(lambda: Experiment.from_profile(tmp_path / "no.yaml"), tmp_path / "no.yaml", "quick")
    refused(lambda: Experiment.from_profile(tmp_path), tmp_path, "cannot be read")
    for profile in (3, None, [], b"quick", True):
        refused(lambda profile=profile: Experiment.from_profile(profile), "profile: must be a name", repr(profile))
    refused(lambda: Experiment.from_profile("a\0b"), "profile: 'a\\x00b' cannot be a path")
    for profile in ("\ud800", "a" * 5000):
        refused(lambda profile=profile: Experiment.from_profile(profile), "cannot be read")


# What papermill passes


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"seed": "3"}, "seed: "),
        ({"seed": 3.0}, "seed: "),
        ({"seed": True}, "seed: "),
        ({"seed": -1}, "seed: "),
        ({"device": "gpu"}, "device: 'gpu'"),
        ({"device": "cuda:99"}, "device: 'cuda:99'"),
        ({"device": None}, "device: "),
        ({"profile": 3}, "profile: "),
        ({"output_dir": __file__}, "is a file"),
        ({"output_dir": __file__ + "/x"}, "is a file"),
        ({"output_dir": 3}, "output_dir: "),
        ({"output_dir": "a\0b"}, "output_dir: "),
        ({"data_root": ["x"]}, "data_root: "),
        ({"data_root": "nowhere"}, "nowhere"),
        ({"overrides": ["epochs"]}, "overrides must be a mapping"),
        ({"overrides": 3}, "overrides must be a mapping"),
        ({"overrides": None}, "overrides must be a mapping"),
        ({"overrides": {3: 4}}, "overrides must be a mapping"),
        ({"overrides": {"profile": "x"}}, "profile: there is no"),
        ({"overrides": "{epochs: 1, epochs: 2}"}, "epochs stands twice"),
        ({"sed": 3}, "did you mean 'seed'?"),
        ({"overrides": "{n_synthetic: [1000000, 1, 1], image_size: 1024}"}, "memory"),
    ],
)
def test_a_notebooks_parameters_are_refused_by_name(tmp_path, parameters, named):
    tiny = {"overrides": {"n_synthetic": [2, 1, 1]}, "device": "cpu", "output_dir": str(tmp_path / "out")}
    refused(lambda: open_workspace("01_data", **{**tiny, **parameters}), named)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({3: 4}, "mapping"),
        ({"profile": ["a"]}, "profile: "),
        ({"profile": "a\0"}, "profile: "),
        ({"data": ["a"]}, "data: "),
        ({"data": True}, "data: "),
        ({"data": __file__}, "data: "),
        ({"data": "~/no/such"}, f"no folder {Path.home() / 'no/such'}"),
        ({"seeds": True}, "seeds: "),
        ({"seeds": {}}, "seeds: "),
        ({"seeds": 2**32}, "seeds: "),
        ({"seeds": "1e3"}, "seeds: "),
        ({"seeds": [None]}, "seeds: "),
        ({"strategies": 3}, "strategies: "),
        ({"strategies": [["random"]]}, "strategies: "),
        ({"cells": 3}, "cells: "),
        ({"cells": [[]]}, "cells: "),
        ({"cells": [["partial", math.nan, 0.5]]}, "cells: "),
        ({"cells": [[None, 1, 1]]}, "cells: "),
        ({"cells": [["full", 0.25, 0.25]]}, "cells: full annotation is the arm least_confidence"),
        ({"overrides": 3}, "overrides must"),
        ({"overrides": ["a"]}, "overrides must"),
        ({"overrides": {3: 4}}, "overrides must"),
        ({"overrides": {"self": 1}}, "self: "),
        ({"overrides": {"profile": 1}}, "profile: "),
        ({"overrides": "{epochs: 1, epochs: 2}"}, "epochs stands twice"),
        ({"overrides": {"n_synthetic": [10**9, 1, 1]}}, "n_s"),
        ({"table2_overrides": 3}, "table2_overrides must"),
        ({"runs": ["a"]}, "runs: "),
        ({"runs": True}, "runs: "),
        ({"runs": 7}, "runs: must be text, but 7 was read"),
        ({"profile": 1e5}, "profile: must be text, but 100000.0 was read"),
        ({"runs": "/"}, "runs: "),
        ({"runs": "a\0b"}, "runs: "),
        ({"runs": "a\nb"}, "runs: "),
        ({"runs": " "}, "runs: "),
        ({"runs": __file__}, "is a file"),
        ({"figures": "a\nb"}, "figures: "),
        ({"runs_per_gpu": True}, "runs_per_gpu: "),
        ({"runs_per_gpu": 1.5}, "runs_per_gpu: "),
    ],
)
def test_a_batch_is_refused_by_the_name_of_its_key(config, named):
    refused(lambda: Batch(config), named)


def test_a_folder_keeps_the_name_it_was_given():
    for name in ("yes", "2026", "007", "a~b", "./~"):
        assert Batch({"runs": name}).runs == name


# Python functions

NOTHING, HALF = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.full((2, 1, 4, 4), 0.5)
NOBODY, FULL = NOTHING.bool(), Experiment()
BAND = Experiment(annotation="contour-band")
POOL, GENERATOR = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.Generator()
MAPS = {
    f.__name__: f for f in (uncertainty.least_confidence, uncertainty.one_sided_entropy, uncertainty.binary_entropy)
}


def no_scores(scores):
    return lambda *_: scores


CALLS = [
    *(
        (f, (x,), "probabilities")
        for f in MAPS.values()
        for x in (np.zeros(3), [0.5], None, HALF * math.inf, HALF.cfloat())
    ),
    *(
        (uncertainty.image_score, (maps,), "maps")
        for maps in (None, np.zeros((2, 1, 2, 2)), torch.zeros(3), HALF[..., :0])
    ),
    *((uncertainty.image_score, (HALF, reduction), "reduction: ") for reduction in (None, ["sum"], "sums")),
    *((lambda k=k: uncertainty.image_score(HALF, "top_k", k=k), (), "k: ") for k in (1.5, "3", True, 0, 17)),
    *(
        (lambda t=t: uncertainty.image_score(HALF, "band_mean", probabilities=HALF, tau_u=t), (), "tau_u: ")
        for t in ("1", None)
    ),
    (lambda: uncertainty.image_score(HALF, "band_mean", probabilities=[1]), (), "probabilities"),
    *((merge_annotations, (NOTHING, HALF, tau, 0.5), "tau_u") for tau in ("0.25", None, True, HALF, math.nan)),
    *((merge_annotations, (NOTHING, HALF, 0.25, tau), "tau_b") for tau in ("0.5", None, math.inf)),
    *((merge_annotations, (truth, HALF, 0.25, 0.5), "truth") for truth in (None, NOTHING.numpy(), NOTHING + 2)),
    *(
        (merge_annotations, (NOTHING, p, 0.25, 0.5), "probabilities")
        for p in (None, HALF.numpy(), HALF[:, 0], HALF * 4)
    ),
    *((Oracle, (masks,), "masks") for masks in (None, HALF, NOTHING[:, 0], NOTHING.numpy())),
    *((Oracle(NOTHING).annotate, (indices,), "indices") for indices in ([0], 0, torch.tensor(0), torch.tensor([0.5]))),
    *((Oracle(NOTHING).annotate, (torch.tensor([index]),), "indices") for index in (2, -1)),
    *((annotation_cost, (truth, NOTHING), "truth") for truth in (NOTHING + 255, HALF, NOTHING[:, 0], NOTHING.numpy())),
    *((annotation_cost, (NOTHING, human), "human") for human in (NOTHING + 7, HALF, HALF * math.nan)),
    *((lambda t=t: annotation_cost(NOTHING, NOTHING, tolerance=t), (), "tolerance") for t in ("1", None, True, 0)),
    *((dice_score, (p, NOTHING), "probabilities") for p in (HALF * math.nan, HALF * math.inf, HALF * 8, -HALF)),
    *((dice_score, (p, p), "predicted") for p in (HALF.numpy(), HALF[0, 0, 0], HALF[:, 0], None)),
    *((dice_score, (HALF, NOTHING, threshold), "threshold") for threshold in (math.nan, 2.0, -1, "x")),
    *((reliability, (HALF, NOTHING, n), "n_bins") for n in (2.5, "x", True, None, 10**9, -1)),
    *((reliability, (p, NOTHING), "probabilities") for p in (NOTHING, HALF.numpy(), HALF * math.nan)),
    (expected_calibration_error, (HALF, HALF), "masks"),
    *(
        (lambda a=a: make_synthetic(**a), (), next(iter(a)))
        for a in (
            {"n_train": 0},
            {"n_train": True},
            {"n_val": "3"},
            {"n_test": None},
            {"image_size": 0},
            {"image_size": -32},
            {"difficulty": None},
            {"rare": True},
            {"n_train": 10**9},
            {"n_train": 10**6, "image_size": 1024},
        )
    ),
    *((select_queries, (None, POOL, n, FULL, GENERATOR, len), "n must be") for n in (-1, 1.5, "2", None, True)),
    *(
        (select_queries, (None, p, 1, FULL, GENERATOR, len), "images must be")
        for p in (POOL.float(), POOL[0], POOL.numpy(), POOL[:, :1])
    ),
    *(
        (select_queries, (None, POOL, 1, FULL, GENERATOR, no_scores(s)), "must return")
        for s in ([math.nan] * 4, {1: 2}, [[1]] * 4)
    ),
]


@pytest.mark.parametrize(("function", "arguments", "named"), CALLS, ids=range(len(CALLS)))
def test_an_argument_is_refused_by_name(function, arguments, named):
    refused(lambda: function(*arguments), named)


def test_empty_batches_are_no_error():
    none, p = NOTHING[:0], HALF[:0]
    assert merge_annotations(none, p, 0.25, 0.5)[0].shape == human_pixels(p, BAND, GENERATOR).shape == (0, 1, 4, 4)
    assert len(dice_score(p, none)) == len(annotation_cost(none, none)) == len(uncertainty.image_score(p)) == 0
    assert len(audit_annotations(none, none, none, p, 0.5)) == 0
