"""Where the network computes, in which precision and memory layout, and how pictures get there."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from alutils.config import ConfigError, Experiment
from alutils.cores import usable_cores


class OutOfMemory(RuntimeError):
    """A device cannot hold a batch; the message names a batch size that it can."""


class Compute(NamedTuple):
    """How a network computes.

    Args:
        device: where.
        bfloat16: whether in bfloat16 autocast.
        layout: of its weights and pictures in memory, ``torch.channels_last`` or ``torch.contiguous_format``.
    """

    device: torch.device
    bfloat16: bool
    layout: torch.memory_format

    def autocast(self) -> torch.autocast:
        """The context for a pass through the network."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def prepare(model: nn.Module, experiment: Experiment) -> Compute:
    """Bring ``model`` into the layout that is fastest where it is.

    Channels-last goes with bfloat16 everywhere, and on a CPU with float32 too. The choice
    rests on what the device can do and not on a measurement, whose outcome would change with what else the machine
    does, and the results with it.

    Args:
        model: on the device where it is to run.
        experiment: its ``precision``; with ``compile`` the model is compiled, at its next pass and only once.

    >>> prepare(nn.Conv2d(3, 1, 1), Experiment(precision="float32")).bfloat16
    False
    """
    device = next(model.parameters()).device
    bfloat16 = uses_bfloat16(device, experiment.precision)
    layout = torch.channels_last if bfloat16 or device.type == "cpu" else torch.contiguous_format
    model.to(memory_format=layout)
    if device.type == "cpu":
        keep_freed_memory()
        keep_to_own_cores()
    if experiment.compile and model._compiled_call_impl is None:
        model.compile()
    return Compute(device, bfloat16, layout)


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep what a pass through the network frees, for the next one; whether that could be had.

    The GNU C library gives large blocks back to the system at once, and gets them anew, page by page, for every layer:
    about a fifth of the time at 512 x 512 (``benchmarks/allocator.py``). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    library = ctypes.CDLL(None)
    return all(library.mallopt(which, 2**31 - 1) == 1 for which in (trim_threshold, mmap_threshold))


@functools.cache
def keep_to_own_cores() -> None:
    """Let torch compute with no more threads than this process may use cores, unless ``OMP_NUM_THREADS`` says so.

    By itself torch heeds the affinity, and not the quota of a container: there its threads would wait for each other.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def uses_bfloat16(device: torch.device, precision: str = "auto") -> bool:
    """Whether the network runs in bfloat16 autocast on ``device``.

    With ``precision="auto"`` it does where the device has instructions for it; elsewhere it is emulated, and slow.

    >>> uses_bfloat16(torch.device("cpu"), "float32")
    False
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def resolve_device(name: str = "auto") -> torch.device:
    """The device called ``name``: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: if there is no such device here.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if not isinstance(name, str):
        raise ConfigError(f"device: must be a name such as 'auto', 'cpu' or 'cuda:1', got {name!r}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: '{name}' cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from None
    return device


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``batch`` on ``device``; to a GPU by way of pinned memory, so that the CPU does not wait for the copy.

    >>> to_device(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def within_memory(work: Callable[[int], torch.Tensor], n: int, setting: str, device: torch.device) -> torch.Tensor:
    """What ``work(n)`` returns, where the device's memory is large enough for it.

    Args:
        work: does its work for so many images.
        n: images.
        setting: what to change where they are too many.
        device: where.

    Raises:
        OutOfMemory: naming the largest of n/2, n/4, ... that was tried and fits.

    >>> within_memory(torch.ones, 2, "batch_size", torch.device("cpu"))
    tensor([1., 1.])
    """
    try:
        return work(n)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
    fitting = n // 2  # by now that error is gone, and the memory that it held
    while fitting and not _fits(work, fitting, device):
        fitting //= 2
    remedy = f"{fitting} fit" if fitting else "not even one fits: take a smaller image_size or another device"
    raise OutOfMemory(f"{setting}: the memory of {device} is too small for {n} images at a time; {remedy}")


def _fits(work: Callable[[int], object], n: int, device: torch.device) -> bool:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        work(n)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return False
    return True


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # the latter on a CPU


def check_compiler(device: torch.device) -> None:
    """Compile a trifle on ``device``: torch looks for a compiler no sooner than a network is first called.

    Raises:
        ConfigError: if that fails.
    """
    options = {"fx_graph_cache": False}  # what was compiled once needs no compiler again
    try:
        torch.compile(lambda x: x + 1, options=options)(torch.zeros(2, device=device))
    except Exception as error:  # torch has several types for it, and the compilers theirs
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        needed = "a C++ compiler (g++)" if device.type == "cpu" else "triton and a C compiler (gcc)"
        raise ConfigError(
            f"compile: torch.compile does not work on {device} ({(lines or [type(error).__name__])[0][:200]}); install "
            f"what it needs, {needed}, or set compile to false"
        ) from None
