"""Masks of one bit per pixel against NumPy's packing, and against the masks themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alutils.data.packed import PackedMasks

shapes = st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(1, 3), st.sampled_from([8, 16, 24]))
masks_of_any_shape = shapes.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)))


def some_masks(n=5):
    return torch.from_numpy(np.random.default_rng(n).integers(0, 2, (n, 1, 4, 16), np.uint8))


@given(masks_of_any_shape)
def test_the_bits_are_numpys_and_the_masks_come_back(masks):
    packed = PackedMasks.pack(torch.from_numpy(masks))
    assert packed.bits.dtype == torch.uint8
    np.testing.assert_array_equal(packed.bits.numpy(), np.packbits(masks, axis=-1))
    assert packed[:].dtype == packed.dtype == torch.uint8
    np.testing.assert_array_equal(packed[:].numpy(), masks)
    assert packed.shape == masks.shape and len(packed) == len(masks) and packed.device == torch.device("cpu")
    assert torch.equal(PackedMasks.pack(torch.from_numpy(masks.astype(bool))).bits, packed.bits)


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), slice(None, None, 2), slice(2, 2), torch.tensor([4, 0, 0]), torch.tensor([True, False] * 2 + [True])],
    ids=str,
)
def test_it_is_read_as_a_tensor_is(index):
    masks = some_masks()
    packed = PackedMasks.pack(masks)
    assert torch.equal(packed[index], masks[index])
    packed[index].fill_(1)  # reading copies
    assert torch.equal(packed[:], masks)


def test_plus_puts_the_others_behind():
    first, others = some_masks(2), some_masks(3)
    both = PackedMasks.pack(first).plus(PackedMasks.pack(others))
    assert len(both) == 5 and torch.equal(both[:], torch.cat([first, others]))
    assert torch.equal(PackedMasks.pack(first[:0]).plus(both)[:], both[:])
