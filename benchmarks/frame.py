"""What the benchmarks share: contenders timed in turns, peak memory in an own process, a table and a JSON file."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from alutils.runs.provenance import provenance
from alutils.system.device import resolve_device
from alutils.system.files import write_json

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
BLUR = 41  # pixels

Work = Callable[[], object]


def parser(description: str, script: str) -> argparse.ArgumentParser:
    """Command line of a benchmark: where to write, on which device, with how many threads."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "results" / "bench" / f"{Path(script).stem}.json"
    options.add_argument("--out", type=Path, default=default, help=f"JSON file to write, {default.relative_to(ROOT)}")
    options.add_argument("--device", type=resolve_device, default="auto")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    return options


def seconds(work: Work, device: torch.device | None = None) -> float:
    """How long ``work`` takes, what it leaves to a GPU included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def in_turns(
    contenders: Mapping[str, Work], repetitions: int, *, warm_up: int = 1, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Seconds of each contender, one after the other again and again, so that what else the machine does meets all."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + warm_up):
        for name, work in contenders.items():
            taken = seconds(work, device)
            if repetition >= warm_up:
                times[name].append(taken)
    return times


class Contender:
    """A contender in a process of its own, which has only what its user would have, and waits while others work.

    Settings such as the memory allocator's are a process's: a peer beside ours would profit from ours.

    Args:
        make: a function of a module's top level; it returns the work, there.
        *arguments: what can be pickled.
        threads: for torch.
        device: to be waited for.
    """

    def __init__(self, make: Callable[..., Work], *arguments: object, threads: int, device: torch.device) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        # Not a daemon, as those may have no children, and a DataLoader has workers.
        self._process = spawn.Process(target=_work_when_told, args=(theirs, make, arguments, threads, device))
        self._process.start()
        theirs.close()

    def seconds(self) -> float:
        """Of one turn."""
        return self._ask("go")

    def peak_mib(self) -> float:
        """As :func:`peak_mib`, of all that the process has done."""
        return self._ask("peak") / MIB

    def _ask(self, what: str) -> float:
        try:
            self._pipe.send(what)
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise RuntimeError("a contender's process ended; its error is printed above") from None

    def close(self) -> None:
        """End the process, which ends by itself once nobody can ask it any more."""
        self._pipe.close()
        self._process.join()


def apart_in_turns(
    makers: Mapping[str, Sequence[Any]], repetitions: int, *, threads: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """:func:`in_turns` for contenders in processes of their own, and the peak memory of each, MiB.

    Args:
        makers: of each contender, the function that makes it and its arguments, as for :class:`Contender`.
        repetitions: turns that count, after one that does not.
        threads: for torch, in each process.
        device: to be waited for.
    """
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name, maker in makers.items():
            contenders[name] = Contender(*maker, threads=threads, device=device)
            stack.callback(contenders[name].close)
        turns = [{name: one.seconds() for name, one in contenders.items()} for _ in range(1 + repetitions)]
        times = {name: [turn[name] for turn in turns[1:]] for name in contenders}
        return times, {name: contender.peak_mib() for name, contender in contenders.items()}


def blurred(masks: torch.Tensor) -> torch.Tensor:
    """Masks as a model might predict them: probabilities that rise along the border of each lesion."""
    return F.avg_pool2d(masks.float(), BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)


def median_ratio(times: Mapping[str, Sequence[float]], name: str, over: str) -> float:
    """The median of the ratios of ``name`` to ``over``, turn by turn."""
    return statistics.median(a / b for a, b in zip(times[name], times[over], strict=True))


def peak_mib(work: Callable[..., object], *arguments: object) -> float:
    """Peak memory of a process that does ``work(*arguments)`` and nothing else, MiB: on a GPU, of its tensors there.

    To be asked before this process has grown: a child's peak begins at what its parent held.

    Args:
        work: a function of a module's top level.
        *arguments: what can be pickled.
    """
    return in_own_process(_peak, work, arguments) / MIB


def in_own_process(work: Callable[..., Any], *arguments: object) -> Any:
    """What ``work(*arguments)`` returns in a new process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def report(out: Path, rows: Sequence[Mapping[str, Any]], device: torch.device, **about: Any) -> None:
    """Print the rows as a table, and write them with the machine and the versions."""
    table = pd.DataFrame(rows)
    with pd.option_context("display.width", 200, "display.max_columns", None, "display.precision", 4):
        print(table.to_string(index=False, na_rep=""))
    write_json(out, {"machine": provenance(device), **about, "rows": list(rows)})
    print(f"written to {out}")


def _work_when_told(
    pipe: Connection, make: Callable[..., Work], arguments: Sequence[object], threads: int, device: torch.device
) -> None:
    torch.set_num_threads(threads)
    work = make(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(seconds(work, device) if pipe.recv() == "go" else _peak_bytes())


def _peak(work: Callable[..., object], arguments: Sequence[object]) -> int:
    work(*arguments)
    return _peak_bytes()


def _peak_bytes() -> int:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
