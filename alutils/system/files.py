"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class CannotWrite(OSError):
    """A file or folder cannot be written; the message names it, the reason and the remedy."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.reason = error.strerror or str(error)
        remedy = "what was there is unchanged; make room, check the permissions or give another folder, and start again"
        super().__init__(error.errno, f"{path} cannot be written ({self.reason}): {remedy}")


@contextmanager
def replacing(path: str | Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes ``path``'s place once the block ended without an error.

    Args:
        path: the file to write; its folder is made.
        keep: where the old file goes, in place of what was there; None: it is gone. A crash may come between the two
            moves: then there is ``keep`` and no ``path``.

    Raises:
        CannotWrite: for what goes wrong with the files within the block; what was there before is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except OSError as error:
        raise CannotWrite(path, error) from None
    finally:
        with suppress(OSError):  # not there, or on a disk that has become read-only
            temporary.unlink()


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what killed processes left of files called ``name`` in ``folder``; no other process may write there."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


class AppendedLines:
    """A file of one JSON value per line, to which lines are only appended.

    The lines that count are the file's first bytes, as many as ``checksum`` says; what a stopped process left follows.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._n_bytes, self._sum = path, 0, hashlib.sha256()

    @property
    def checksum(self) -> dict[str, Any]:
        """How many "bytes" count, and their "sha256"."""
        return {"bytes": self._n_bytes, "sha256": self._sum.hexdigest()}

    def read(self, bytes: int, sha256: str) -> list[Any]:
        """The lines of an earlier :attr:`checksum`, which count from now on; ValueError if they were changed."""
        with self.path.open("rb") as file:
            content = file.read(bytes)
        self._n_bytes, self._sum = len(content), hashlib.sha256(content)
        if self.checksum != {"bytes": bytes, "sha256": sha256}:
            raise ValueError(f"{self.path} was changed since then")
        return [json.loads(line) for line in content.splitlines()]

    def append(self, value: Any) -> None:
        """Write and sync one line; CannotWrite if that fails, with the file as it was."""
        content = json.dumps(value, allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                self.cut()
            raise CannotWrite(self.path, error) from None
        self._n_bytes += len(content)
        self._sum.update(content)

    def cut(self) -> None:
        """Cut off what does not count."""
        if self.path.exists() and self.path.stat().st_size != self._n_bytes:
            os.truncate(self.path, self._n_bytes)


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal digits, as ``sha256sum`` prints it."""
    return hashlib.sha256(content).hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path``, whole or not at all; numbers read back exactly equal."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write ``table`` without its index to ``path``, whole or not at all; numbers read back exactly equal.

    Pandas before 3 reads their last digit only with ``float_precision="round_trip"``.
    """
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
