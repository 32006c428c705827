"""Random numbers from seeds that are passed on purpose; the global random state is never relied on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def make_generator(seed: int, *purpose: int) -> torch.Generator:
    """A CPU generator for one purpose; another seed or another purpose gives an independent stream of numbers.

    Args:
        seed: a whole number >= 0.
        purpose: whole numbers from 0 to 2**32 - 1, such as what the numbers are for, and the round.

    Raises:
        ValueError: if a number is negative.

    >>> torch.equal(torch.rand(3, generator=make_generator(0, 1)), torch.rand(3, generator=make_generator(0, 1)))
    True
    """
    (state,) = np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) % 2**63)


@contextmanager
def seeded(generator: torch.Generator, device: torch.device | str = "cpu") -> Iterator[None]:
    """A context for layers that draw from the global random state, which is put back afterwards.

    Args:
        generator: of the CPU; the seed comes from it.
        device: where the layers draw. Only this device's state and the CPU's are touched.
    """
    device, seed = torch.device(device), int(torch.randint(2**62, (1,), generator=generator))
    accelerators = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(accelerators, device_type=device.type):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all accelerators as well
        for accelerator in accelerators:
            state = torch.Generator(accelerator).manual_seed(seed).get_state()
            torch.get_device_module(accelerator).set_rng_state(state, accelerator)
        yield
