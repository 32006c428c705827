"""Random numbers from seeds that are passed on purpose; the global random state is never relied on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def make_generator(seed: int, *purpose: int) -> torch.Generator:
    """A CPU generator for one purpose: another seed or purpose gives an independent stream, the same ones the same.

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
    """Within it, layers that know only the global random state (dropout, initial weights) draw from a seed that
    ``generator`` gives; afterwards the global state is as it was before.

    >>> with seeded(make_generator(0)):
    ...     first = torch.rand(2)
    >>> with seeded(make_generator(0)):
    ...     print(torch.equal(torch.rand(2), first))
    True
    """
    device = torch.device(device)
    accelerators = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(accelerators, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        yield
