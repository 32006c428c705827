"""Settings and arguments that cannot be used: one clear error of the project's own, before any work."""

import math
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st

from alutils.annotation import Oracle, merge_annotations
from alutils.cost import annotation_cost
from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.lab.notebook import open_workspace
from alutils.metrics import dice_score
from alutils.queries.select import select_queries
from alutils.report.calibration import reliability
from alutils.system.checks import ConfigError, DataError
from alutils.system.settings import parse_settings
from alutils.uncertainty import image_score, least_confidence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

from batch import Batch  # noqa: E402
from batch import ConfigError as BatchConfigError  # noqa: E402

OURS = {ROOT / "alutils", ROOT / "workflow"}


def refused(function, *named):
    """The function ends with one error: ours, of our code, alone, short, naming what is wrong."""
    with pytest.raises((ConfigError, BatchConfigError, DataError, ValueError)) as caught:
        function()
    error = caught.value
    assert type(error) in (ConfigError, BatchConfigError, DataError, ValueError)
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    assert OURS & set(raised_in.parents)
    assert all(str(name) in str(error) for name in named), str(error)
    assert len(str(error)) < 20_000


# The experiment

FIELDS = Experiment.model_fields


def beyond_bounds():
    """The first value beyond each bound that a field declares."""
    for name, kind in ((name, field.annotation) for name, field in FIELDS.items()):
        for bound in FIELDS[name].metadata:
            if isinstance(bound, Ge):
                yield name, bound.ge - 1 if kind is int else math.nextafter(bound.ge, -math.inf)
            elif isinstance(bound, Le):
                yield name, bound.le + 1 if kind is int else math.nextafter(bound.le, math.inf)
            elif isinstance(bound, Gt):
                yield name, kind(bound.gt)
            elif isinstance(bound, Lt):
                yield name, kind(bound.lt)


def test_the_first_value_beyond_each_bound_is_refused_with_its_name():
    assert len(list(beyond_bounds())) > 30
    for name, value in beyond_bounds():
        refused(lambda: Experiment(**{name: value}), f"{name}: ", "got ")  # noqa: B023


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("epochs", "3", "integer"),
        ("epochs", True, "got True"),
        ("epochs", 10**400, "1000000"),
        ("learning_rate", math.nan, "finite"),
        ("learning_rate", "1e-4", "YAML reads 1e-4 as text"),
        ("loss", "focal", "'bce'"),
        ("encoder", None, "string"),
        ("image_size", 100, "multiple of 32"),
        ("blur_kernel", 4, "odd"),
        ("blur_sigma_max", 0.001, "blur_sigma_min"),
        ("n_synthetic", [10**9, 1, 1], "1000000"),
        ("decoder_channels", [10**9] * 5, "4096"),
        ("normalize_std", [0.2, 0, 0.2], "greater than 0"),
        ("learning_rte", 0.1, "did you mean 'learning_rate'"),
        ("widgets", 0.1, "batch_size"),  # nothing is near: all are listed
        ("self", 1, "no such setting"),
    ],
)
def test_a_wrong_value_of_each_kind_is_refused_with_its_name(name, value, named):
    refused(lambda: Experiment.from_profile("quick", **{name: value}), f"{name}: ", named)


def laughs(end):
    """Nine to the power of nine strings, in nine lines."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join([*lines, end])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("é".encode("latin1"), "cannot be read"),
        ("[1]", "must be a mapping"),
        ("epochs: [1", "not valid YAML"),
        ("epochs: 3\nmomentum: 0.5\nepochs: 4", "epochs stands twice"),
        ("? [a]\n: 4", "not valid YAML"),
        ("seed: 2020-13-41", "not valid YAML"),
        ("seed: 0x" + "f" * 5000, "seed: "),
        (laughs("epochs: *i"), "epochs: input should be a valid integer"),
        ("&a {epochs: *a}", "epochs: input should be a valid integer"),
        ("epochs: " + "[" * 3000 + "]" * 3000, "not valid YAML"),
        ('epochs: !!python/object/apply:os.system ["touch PWNED"]', "python/object"),
    ],
    ids=range(11),
)
def test_a_profile_that_cannot_be_used_is_refused_with_its_path(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: Experiment.from_profile(file), "mine.yaml", named)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@settings(deadline=None, max_examples=40)
@given(st.text() | st.text("{}[]:,-&*!<>'\"\n\t ?|0aé~=", max_size=20))
def test_any_text_is_settings_or_one_error(text):
    try:
        assert all(isinstance(name, str) for name in parse_settings(text))
    except ConfigError as error:
        assert error.__suppress_context__ or error.__context__ is None


def test_a_missing_profile_and_a_folder_are_refused(tmp_path):
    refused(lambda: Experiment.from_profile(tmp_path / "no.yaml"), tmp_path / "no.yaml", "quick")
    refused(lambda: Experiment.from_profile(tmp_path), tmp_path, "cannot be read")
    refused(lambda: Experiment.from_profile(3), "profile: must be a name", 3)
    refused(lambda: Experiment.from_profile("a\0b"), "profile: 'a\\x00b' cannot be a path")


# What papermill passes, and the batch's configuration


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"seed": -1}, "seed: "),
        ({"device": "gpu"}, "device: 'gpu'"),
        ({"device": None}, "device: "),
        ({"output_dir": 3}, "output_dir: "),
        ({"output_dir": __file__ + "/x"}, "is a file"),
        ({"data_root": "nowhere"}, "nowhere"),
        ({"overrides": 3}, "overrides must be a mapping"),
        ({"overrides": {"profile": "x"}}, "profile: there is no"),
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
        ({"profile": 1e5}, "profile: must be text"),
        ({"data": "~/no/such"}, Path.home() / "no/such"),
        ({"seeds": 2**32}, "seeds: "),
        ({"cells": [["partial", math.nan, 0.5]]}, "cells: "),
        ({"cells": [["full", 0.25, 0.25]]}, "cells: full annotation"),
        ({"overrides": {"self": 1}}, "self: "),
        ({"runs": "a\nb"}, "runs: "),
        ({"runs": __file__}, "is a file"),
    ],
)
def test_a_batch_is_refused_by_the_name_of_its_key(config, named):
    refused(lambda: Batch(config), named)


# Python functions

NOTHING, HALF = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.full((2, 1, 4, 4), 0.5)
POOL, GENERATOR, FULL = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.Generator(), Experiment()

CALLS = [
    *((lambda p=p: least_confidence(p), "probabilities") for p in (np.zeros(3), HALF * math.inf)),
    *((lambda maps=maps: image_score(maps), "maps") for maps in (None, torch.zeros(3))),
    (lambda: image_score(HALF, "sums"), "reduction: "),
    (lambda: image_score(HALF, "top_k", k=17), "k: "),
    (lambda: image_score(HALF, "band_mean"), "probabilities"),
    *((lambda tau=tau: merge_annotations(NOTHING, HALF, tau, 0.5), "tau_u") for tau in ("0.25", math.nan)),
    (lambda: merge_annotations(NOTHING, HALF, 0.25, math.inf), "tau_b"),
    (lambda: merge_annotations(NOTHING + 2, HALF, 0.25, 0.5), "truth"),
    (lambda: merge_annotations(NOTHING, HALF * 4, 0.25, 0.5), "probabilities"),
    *((lambda masks=masks: Oracle(masks), "masks") for masks in (NOTHING[:, 0], NOTHING.numpy())),
    *((lambda i=i: Oracle(NOTHING).annotate(torch.tensor(i)), "indices") for i in ([0.5], [2], [-1])),
    (lambda: annotation_cost(NOTHING + 255, NOTHING), "truth"),
    (lambda: annotation_cost(NOTHING, HALF), "human"),
    (lambda: annotation_cost(NOTHING, NOTHING, tolerance=0), "tolerance"),
    *((lambda p=p: dice_score(p, NOTHING), "probabilities") for p in (HALF * math.nan, HALF * 8)),
    (lambda: dice_score(HALF[:, 0], HALF[:, 0]), "predicted"),
    (lambda: dice_score(HALF, NOTHING, math.nan), "threshold"),
    (lambda: reliability(HALF, NOTHING, 2.5), "n_bins"),
    (lambda: reliability(HALF * math.nan, NOTHING), "probabilities"),
    *((lambda n=n: make_synthetic(n_train=n), "n_train") for n in (0, "3", 10**9)),
    (lambda: make_synthetic(10**6, image_size=1024), "n_train"),
    *((lambda n=n: select_queries(None, POOL, n, FULL, GENERATOR, len), "n must be") for n in (-1, 1.5)),
    (lambda: select_queries(None, POOL[:, :1], 1, FULL, GENERATOR, len), "images must be"),
    (lambda: select_queries(None, POOL, 1, FULL, GENERATOR, lambda *_: [math.nan] * 4), "must return"),
]


@pytest.mark.parametrize(("call", "named"), CALLS, ids=range(len(CALLS)))
def test_an_argument_is_refused_by_name(call, named):
    refused(call, named)


def test_empty_batches_are_no_error():
    none, p = NOTHING[:0], HALF[:0]
    assert merge_annotations(none, p, 0.25, 0.5)[0].shape == (0, 1, 4, 4)
    assert len(dice_score(p, none)) == len(annotation_cost(none, none)) == len(image_score(p)) == 0
