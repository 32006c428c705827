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

    >>> torch.equal(torch.rand(3, generator=make_generator(0, 1)), torch.rand(3, generator=make_generator(0, 1)))
    True
    """
    (state,) = np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) % 2**63)


@contextmanager
def seeded(generator: torch.Generator, device: torch.device | str = "cpu") -> Iterator[None]:
    """A context for layers that draw from the global random state (dropout, initial weights): its seed comes from
    ``generator``, and afterwards the global state is as it was before.

    Args:
        generator: of the CPU.
        device: where the layers draw. Only this device's state and the CPU's are touched.
    """
    device, seed = torch.device(device), int(torch.randint(2**62, (1,), generator=generator))
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    before = accelerator.get_rng_state(device) if accelerator else None
    with torch.random.fork_rng([]):
        try:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all accelerators as well
            if accelerator:
                accelerator.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
            yield
        finally:
            if accelerator:
                accelerator.set_rng_state(before, device)
