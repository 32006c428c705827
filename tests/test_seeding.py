"""Streams of random numbers: repeatable, independent, and apart from the global state."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from alutils.system.seeding import make_generator, seeded


def draw(*key):
    return torch.rand(4, generator=make_generator(*key))


def test_the_same_key_gives_the_same_stream():
    assert torch.equal(draw(3, 1, 4), draw(3, 1, 4))


def test_other_keys_give_other_streams():
    keys = [(5,), (5, 0), (5, 0, 0), (5, 1), (5, 0, 1), (5, 1, 0), (2**32 + 5,), (6,)]
    for first, second in itertools.combinations(keys, 2):
        assert not torch.equal(draw(*first), draw(*second)), (first, second)


def test_seeded_layers_follow_the_generator_and_the_global_state_is_put_back():
    dropout = torch.nn.Dropout(0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    outputs = []
    for key in ((0, 1), (0, 1), (0, 2)):
        with seeded(make_generator(*key)):
            outputs.append(dropout(torch.ones(50)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_state_is_put_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(make_generator(0)):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_on_the_cpu_no_accelerator_is_reseeded(monkeypatch):
    """torch.manual_seed would seed them all, and nothing would put their state back."""

    def refuse(*_):
        raise AssertionError("an accelerator was seeded")

    for seeding in ("cuda.manual_seed_all", "mps.manual_seed", "xpu.manual_seed_all", "manual_seed"):
        monkeypatch.setattr(f"torch.{seeding}", refuse)
    with seeded(make_generator(0)):
        first = torch.rand(3)
    with seeded(make_generator(0), "cpu"):
        assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("fails", [False, True])
def test_of_the_accelerators_only_the_one_that_draws_is_seeded_and_then_put_back(monkeypatch, fails):
    """A machine with two of them, each with a generator of its own."""
    there = {index: torch.Generator().manual_seed(index) for index in (0, 1)}
    before = {index: generator.get_state() for index, generator in there.items()}
    module = SimpleNamespace(
        get_rng_state=lambda device: there[device.index].get_state(),
        set_rng_state=lambda state, device: there[device.index].set_state(state),
    )
    cpu_generator = torch.Generator
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": cpu_generator())
    drawn = []
    for key in ((0, 1), (0, 1), (0, 2)):
        try:
            with seeded(make_generator(*key), "cuda:1"):
                drawn.append(torch.rand(4, generator=there[1]))
                assert torch.equal(there[0].get_state(), before[0])
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert all(torch.equal(generator.get_state(), before[index]) for index, generator in there.items())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
