"""Where the network computes, in which precision and memory layout, and how pictures get there."""

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

from alutils.experiment import Experiment
from alutils.system.checks import ConfigError
from alutils.system.cores import usable_cores


class OutOfMemory(RuntimeError):
    """A device's memory is too small; for a batch, the message names a batch size that fits."""


class Compute(NamedTuple):
    """How a network computes.

    Args:
        device: where.
        dtype: what autocast computes in, ``torch.bfloat16`` or ``torch.float16``; ``torch.float32``: no autocast.
        layout: of its weights and pictures in memory, ``torch.channels_last`` or ``torch.contiguous_format``.
    """

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format

    def autocast(self) -> torch.autocast:
        """The context for a pass through the network."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if half else None, enabled=half)


def prepare(model: nn.Module, experiment: Experiment) -> Compute:
    """Bring ``model`` into the layout that is fastest where it is.

    That is channels-last for half precision on any device, and for float32 on a CPU. The choice rests on what the
    device can do, not on a measurement: that would change with the load of the machine, and the results with it.

    Args:
        model: on the device where it is to run.
        experiment: its ``precision`` is used; with ``compile`` the model is compiled, once, at its next pass.

    Raises:
        ConfigError: as :func:`check_deterministic`.

    >>> prepare(nn.Conv2d(3, 1, 1), Experiment(precision="float32")).dtype
    torch.float32
    """
    device = next(model.parameters()).device
    check_deterministic(model, experiment, device)
    dtype = working_dtype(device, experiment.precision)
    plain = dtype == torch.float32 and device.type != "cpu"
    layout = torch.contiguous_format if plain else torch.channels_last
    model.to(memory_format=layout)
    if device.type == "cpu":
        keep_freed_memory()
        keep_to_own_cores()
    if experiment.compile and model._compiled_call_impl is None:
        model.compile()
    return Compute(device, dtype, layout)


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that a pass through the network frees, for the next pass.

    The GNU C library gives large blocks back to the system at once, and gets them anew, page by page, for every layer.
    At 512 x 512 that takes about a fifth of the time (``benchmarks/allocator.py``). Other C libraries are left alone.

    Returns:
        Whether the C library took the setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    library = ctypes.CDLL(None)
    return all(library.mallopt(which, 2**31 - 1) == 1 for which in (trim_threshold, mmap_threshold))


@functools.cache
def keep_to_own_cores() -> None:
    """Limit torch's threads to the cores that this process may use, unless ``OMP_NUM_THREADS`` is set.

    By itself torch heeds the CPU affinity, but not a container's quota; there its threads would wait for each other.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def working_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The type in which the network computes on ``device``: bfloat16 or float16 (by autocast), or float32 throughout.

    With ``precision="auto"`` it is bfloat16 if the device has instructions for it: emulated, it is slow. A GPU that has
    fast instructions for float16 only (V100, T4) takes float16. Everything else takes float32.

    >>> working_dtype(torch.device("cpu"), "float32")
    torch.float32
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        with torch.cuda.device(device):  # what is asked next is about the present one
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
            return torch.float16 if torch.cuda.get_device_capability()[0] >= 7 else torch.float32
    has_bfloat16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def resolve_device(name: str = "auto", *, deterministic: bool = False) -> torch.device:
    """The device called ``name``: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".

    Args:
        name: see above.
        deterministic: the experiment's setting. If the device is CUDA's and CUDA has not started yet, it is started so
            that it can repeat itself, which then holds until this process ends.

    Raises:
        ConfigError: if there is no such device here, or ``deterministic`` comes too late.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if not isinstance(name, str):
        raise ConfigError(f"device: must be a name such as 'auto', 'cpu' or 'cuda:1', got {name!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if deterministic and name.startswith("cuda"):
        _check_cublas()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: '{name}' cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from None
    if device.type == "cpu":
        keep_to_own_cores()
    return device


@contextmanager
def deterministic_algorithms(experiment: Experiment) -> Iterator[None]:
    """A context in which torch uses only deterministic algorithms, if ``experiment.deterministic``.

    Afterwards torch's settings are as they were.

    Raises:
        ConfigError: if torch has no deterministic algorithm for what is computed.

    >>> with deterministic_algorithms(Experiment(deterministic=True)):
    ...     print(torch.are_deterministic_algorithms_enabled())
    True
    """
    if not experiment.deterministic:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warns, measures = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which would choose by time
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise ConfigError(f"deterministic: {str(error).partition(',')[0]}; {_REMEDY}") from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
        torch.backends.cudnn.benchmark = measures


def check_deterministic(model: nn.Module, experiment: Experiment, device: torch.device) -> None:
    """Refuse what cannot be repeated to the bit on ``device``, where ``experiment.deterministic`` asks for that.

    On a CPU everything can be repeated. Only layers are looked at. What a network computes without a layer is refused
    by torch in the first step, see :func:`deterministic_algorithms`.

    Raises:
        ConfigError: if torch has no deterministic algorithm for a layer, which the message names, or if CUDA has
            started without what such algorithms need.

    >>> model, experiment = nn.Sequential(nn.AdaptiveAvgPool2d(2)), Experiment(deterministic=True)
    >>> check_deterministic(model, experiment, torch.device("cuda"))
    Traceback (most recent call last):
    alutils.system.checks.ConfigError: deterministic: torch has no deterministic algorithm for the layer 0, ...;
    choose another encoder or network, or deterministic: false
    """
    if not experiment.deterministic or device.type == "cpu":
        return
    for name, layer in model.named_modules():
        if _lacks_deterministic(layer):
            raise ConfigError(
                f"deterministic: torch has no deterministic algorithm for the layer {name or 'itself'}, "
                f"{type(layer).__name__}; {_REMEDY}"
            )
    if device.type == "cuda":
        _check_cublas()


_REMEDY = "choose another encoder or network, or deterministic: false"

# As torch.use_deterministic_algorithms lists them, and what is built on them
_WITHOUT_DETERMINISTIC = (
    *(nn.AvgPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.CTCLoss, nn.NLLLoss, nn.EmbeddingBag),
)


def _lacks_deterministic(layer: nn.Module) -> bool:
    if isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        size = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,)
        return any(side != 1 for side in size)  # of one pixel it is a mean
    upsampling = layer.mode if isinstance(layer, nn.Upsample) else getattr(layer, "interpolation_mode", None)
    return (
        isinstance(layer, _WITHOUT_DETERMINISTIC)
        or upsampling in ("linear", "bicubic", "trilinear")  # for "bilinear" torch has one
        or getattr(layer, "padding_mode", None) == "reflect"
    )


def _check_cublas() -> None:
    """Let CUDA's library for matrices repeat itself; it reads the environment variable for that when CUDA starts."""
    name, fitting = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
    given = os.environ.get(name)
    if given is None and not torch.cuda.is_initialized():
        os.environ[name] = fitting[0]
    elif given not in fitting:
        state = "CUDA has started without" if given is None else f"it is {given!r}, and CUDA cannot repeat itself with"
        raise ConfigError(
            f"deterministic: {name} must be {' or '.join(fitting)} before CUDA starts, but {state} it; set "
            f"{name}={fitting[0]} before you start Python or Jupyter, or restart the kernel and begin with this run"
        )


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``batch`` on ``device``; to a GPU by way of pinned memory, so that the CPU does not wait for the copy.

    >>> to_device(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def within_memory(work: Callable[[int], Any], n: int, setting: str, device: torch.device) -> Any:
    """What ``work(n)`` returns, or an error that names a smaller ``n`` if the device's memory is too small.

    Args:
        work: a function of the number of images.
        n: number of images.
        setting: the setting to reduce, for the message.
        device: where ``work`` computes.

    Raises:
        OutOfMemory: if ``n`` images do not fit; the message names the largest of n/2, n/4, ... that was tried and fits.

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


@contextmanager
def memory_for(what: str, remedy: str, device: torch.device) -> Iterator[None]:
    """A context in which running out of memory becomes an error that says what did not fit, and the remedy.

    Args:
        what: what is put into the memory, in the plural.
        remedy: what to do if it does not fit.
        device: whose memory it is.

    Raises:
        OutOfMemory: in place of torch's own error.

    >>> with memory_for("query_size: the labels", "take a smaller one", torch.device("cpu")):
    ...     raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    Traceback (most recent call last):
    alutils.system.device.OutOfMemory: query_size: the labels do not fit into the memory of cpu; take a smaller one
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{what} do not fit into the memory of {device}; {remedy}") from None


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
    # The words are of a CPU; of Apple's devices and of pinned memory; of NVIDIA's libraries
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(one in str(error) for one in words)


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
