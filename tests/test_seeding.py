"""Streams of random numbers: repeatable, independent, and apart from the global state."""

import itertools

import pytest
import torch

from alutils.seeding import make_generator, seeded


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
