"""What a function's checksum sees, what it does not, and what has none."""

import dataclasses
import functools
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import alutils
from alutils.queries import STRATEGIES
from alutils.runs.own_code import code_checksum
from alutils.system.checks import ConfigError

FIRST = """
from functools import lru_cache
import torch

FACTOR, TABLE = 2, {"a": torch.ones(2)}

def helper(x):
    return x * FACTOR

class Scorer:
    power = 1

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, model, images, experiment, generator):
        return self.scaled(images) ** self.power

    def scaled(self, images):
        return images * self.weight

def mine(model, images, experiment, generator, bonus=0):
    '''Its docstring.'''
    return helper(images) + TABLE["a"].sum() + bonus  # and a comment

@torch.no_grad()
def decorated_helper(x):
    return x * FACTOR

def with_decorated_helper(model, images, experiment, generator):
    return decorated_helper(images)

@lru_cache
def cached(model, images, experiment, generator):
    return helper(images)

first, second = (lambda m, i, e, g: i + 1), (lambda m, i, e, g: i + 2)
scorer = Scorer()
method = scorer.scaled
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Import a module with the given text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load_text(text, name="own_strategies"):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield load_text
    sys.modules.pop("own_strategies", None)


def checksums(module):
    names = ("mine", "with_decorated_helper", "cached", "first", "second", "scorer", "method")
    return {name: code_checksum("strategy", getattr(module, name)) for name in names}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("# and a comment", "  # another", ""),
        ("'''Its docstring.'''", "'''Another.'''\n    # with a comment", ""),
        ("+ bonus", "- bonus", "mine"),
        ("bonus=0", "bonus=1", "mine"),
        ("return x * FACTOR\n\ndef with", "return x / FACTOR\n\ndef with", "with_decorated_helper"),
        ("FACTOR, TABLE = 2", "FACTOR, TABLE = 3", "mine with_decorated_helper cached"),
        ("power = 1", "power = 2", "scorer method"),
        ("images * self.weight", "images - self.weight", "scorer method"),
        ("Scorer()", "Scorer(2.0)", "scorer method"),
        ("e, g: i + 2", "e, g: i + 3", "second"),
    ],
)
def test_what_would_do_something_else_has_another_checksum(load, old, new, changed):
    before = checksums(load(FIRST))
    assert before == checksums(load(FIRST)) and before["first"] != before["second"]
    assert FIRST.count(old) == 1
    after = checksums(load(FIRST.replace(old, new)))
    assert [name for name in before if before[name] != after[name]] == changed.split()


@dataclasses.dataclass
class Weighted:
    weight: int = 1

    def __call__(self, model, images, experiment, generator):
        return images * self.weight


def capturing(value):
    def strategy(model, images, experiment, generator):
        return value

    return strategy


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (1, 1, 1.0),
        ([1, {"k": (2,)}], [1, {"k": (2,)}], [1, {"k": (3,)}]),
        ({1, 2}, {2, 1}, {1, 3}),
        (torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0)),
        (np.array(["a", None]), np.array(["a", None]), np.array(["b", None])),
        (Weighted(), Weighted(1), Weighted(2)),
        (functools.partial(Weighted.__call__, 1), functools.partial(Weighted.__call__, 1), Weighted.__call__),
        (STRATEGIES["entropy"], STRATEGIES["entropy"], STRATEGIES["bald"]),
        (nn.Identity(), nn.Identity(), nn.ReLU()),
        (alutils.Experiment(), alutils.Experiment(seed=0), alutils.Experiment(seed=1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_captured_values_count_by_what_they_hold(one, same, other):
    a, b, c = (code_checksum("strategy", capturing(value)) for value in (one, same, other))
    assert a == b != c
    a, b, c = (code_checksum("strategy", functools.partial(capturing(1), e=value)) for value in (one, same, other))
    assert a == b != c


def test_functions_that_name_each_other_and_lists_that_hold_themselves_end(load):
    text = "numbers = [1]\nnumbers.append(numbers)\ndef f(x):\n    return g(x), numbers\ndef g(x):\n    return f(x)\n"
    assert len(code_checksum("strategy", load(text).f)) == 16


def test_the_packages_own_functions_need_no_checksum():
    assert code_checksum("strategy", STRATEGIES["entropy"]) is None
    assert code_checksum("network", alutils.unet_for, alutils.model.UNet, nn.Conv2d) is None


@pytest.mark.parametrize("function", [max, eval("lambda *a: 1")])
def test_what_has_no_source_is_refused(function):
    with pytest.raises(ConfigError, match="mine: the source of '.*' cannot be found, .*; write it with def"):
        code_checksum("mine", function)


def test_a_file_that_was_edited_after_it_was_loaded_is_no_source(load, tmp_path):
    module = load(FIRST)
    for text in (FIRST.replace("x * FACTOR", "x * 7"), "\n" + FIRST, "def ("):
        (tmp_path / "own_strategies.py").write_text(text)
        with pytest.raises(ConfigError, match="the source of '.*' cannot be found, or its file was edited"):
            code_checksum("strategy", module.mine)


CELLS = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for factor in (2, 3):
    shell.run_cell(f"factor = {factor}\\ndef helper(x):\\n    return x * factor")
    shell.run_cell("class Scorer:\\n    def __call__(self, *a):\\n        return helper(1)")
    shell.run_cell("def mine(*a):\\n    return Scorer()(a)", store_history=True)
    shell.run_cell("from alutils.runs.own_code import code_checksum; print(code_checksum('strategy', mine))")
"""


def test_functions_typed_into_a_notebooks_cells_have_a_source():
    done = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True, check=True)
    first, second = (line for line in done.stdout.splitlines() if len(line) == 16)
    assert first != second
