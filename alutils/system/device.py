"""Where the network computes, in which precision and memory layout, and what happens if the memory is too small."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from alutils.system.checks import ConfigError
from alutils.system.cores import usable_cores


class OutOfMemory(RuntimeError):
    """A device's memory is too small; for a batch, the message names a batch size that fits."""


class Compute(NamedTuple):
    """How a network computes: on which device, in which type (by autocast), and in which memory layout."""

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format

    def autocast(self) -> torch.autocast:
        """The context for a pass through the network."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if half else None, enabled=half)


def set_up_model(model: nn.Module, precision: str = "auto", *, compile: bool = False) -> Compute:
    """Bring ``model`` into the layout that is fastest on its device, and return how to compute with it.

    Args:
        model: changed in place.
        precision: as in :func:`working_dtype`.
        compile: compile the model, once, at its next pass.
    """
    device = next(model.parameters()).device
    dtype = working_dtype(device, precision)
    # By rule, not by a measurement: that would change with the load of the machine, and the results with it
    plain = dtype == torch.float32 and device.type != "cpu"
    layout = torch.contiguous_format if plain else torch.channels_last
    model.to(memory_format=layout)
    if device.type == "cpu":
        keep_freed_memory()
        keep_to_own_cores()
    if compile and model._compiled_call_impl is None:
        model.compile()
    return Compute(device, dtype, layout)


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that a pass through the network frees, and return whether it does.

    The GNU C library gives large blocks back at once and fetches them again page by page for every layer, which takes
    a fifth of the time at 512 x 512 (``benchmarks/allocator.py``). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    library = ctypes.CDLL(None)
    return all(library.mallopt(which, 2**31 - 1) == 1 for which in (trim_threshold, mmap_threshold))


@functools.cache
def keep_to_own_cores() -> None:
    """Limit torch's threads to a container's quota of cores, which torch does not see, unless the user set a number."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def working_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The type in which the network computes on ``device``; "auto" is the fastest that is not emulated there.

    That is bfloat16 where the device has instructions for it, float16 on a GPU that has them for float16 only (V100,
    T4), and float32 everywhere else. On a GPU the convolutions of float32 use TF32, as torch has it by default.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers the next questions for the current GPU
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
            return torch.float16 if torch.cuda.get_device_capability()[0] >= 7 else torch.float32
    has_bfloat16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def resolve_device(name: str = "auto", *, deterministic: bool = False) -> torch.device:
    """The device called ``name``: "auto" (a CUDA GPU where there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: if there is no such device here, or CUDA has already started without what ``deterministic`` needs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if deterministic and device.type == "cuda":
            _make_cuda_repeatable()
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device: {name!r} cannot be used here ({reason}); try 'cpu'") from None
    if device.type == "cpu":
        keep_to_own_cores()
    return device


def _make_cuda_repeatable() -> None:
    variable = "CUBLAS_WORKSPACE_CONFIG"  # CUDA's library for matrices reads it when it starts
    if not torch.cuda.is_initialized():
        os.environ.setdefault(variable, ":4096:8")
    if os.environ.get(variable) not in (":4096:8", ":16:8"):
        raise ConfigError(
            f"deterministic: CUDA needs the environment variable {variable}=:4096:8 before it starts, got "
            f"{os.environ.get(variable)}; set it before you start Python or Jupyter, or restart the kernel"
        )


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """A context in which torch uses only deterministic algorithms if they are ``wanted``.

    Raises:
        ConfigError: if torch has none for what is computed.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warns, measures = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it chooses algorithms by their speed
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        what = str(error).partition(",")[0]
        raise ConfigError(f"deterministic: {what}; choose another network, or deterministic: false") from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
        torch.backends.cudnn.benchmark = measures


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``batch`` on ``device``; to a GPU by way of pinned memory, so that the CPU does not wait for the copy."""
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def within_memory(work: Callable[[int], Any], n: int, setting: str, device: torch.device) -> Any:
    """What ``work(n)`` returns for a batch of ``n`` images.

    Raises:
        OutOfMemory: if the memory of ``device`` is too small. The message names the ``setting`` to reduce and the first
            of n/2, n/4, ... that fits; these are tried.
    """
    remedy = "not even one fits: take a smaller image_size or another device"
    for size in [n >> halvings for halvings in range(n.bit_length())]:
        if size < n and device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            result = work(size)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                continue
            raise
        if size == n:
            return result
        remedy = f"{size} fit"
        break
    raise OutOfMemory(f"{setting}: the memory of {device} is too small for {n} images at a time; {remedy}")


def batches_within_memory(
    work: Callable[[int, int], Any], n: int, batch_size: int, setting: str, device: torch.device
) -> Iterator[tuple[slice, Any]]:
    """``work(start, size)`` of ``n`` images, batch by batch: which images, and the result of :func:`within_memory`.

    Raises:
        ValueError: if ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; None takes the default")
    for start in range(0, n, batch_size):
        chosen = slice(start, min(start + batch_size, n))
        yield chosen, within_memory(functools.partial(work, start), chosen.stop - start, setting, device)


@contextmanager
def memory_for(what: str, remedy: str, device: torch.device) -> Iterator[None]:
    """A context in which running out of memory is an OutOfMemory that names ``what`` (a plural) and the ``remedy``."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{what} do not fit into the memory of {device}; {remedy}") from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    # A CPU's words; those of Apple's devices and of pinned memory; those of NVIDIA's libraries
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def check_compiler(device: torch.device) -> None:
    """ConfigError if torch cannot compile here, which torch itself finds out only at a network's first pass."""
    options = {"fx_graph_cache": False}  # a result from the cache would need no compiler
    try:
        torch.compile(lambda x: x + 1, options=options)(torch.zeros(2, device=device))
    except Exception as error:  # torch and the compilers have several types
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ConfigError(
            f"compile: torch.compile does not work on {device} ({reason}); it needs a C++ compiler (g++), and triton "
            "on a GPU; or set compile to false"
        ) from None
