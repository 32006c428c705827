"""What a user gave is checked here, and refused in one message that names it, the value and the remedy."""

from __future__ import annotations

import difflib
import functools
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A setting or a parameter cannot be used; the message names the field, the value and the remedy."""


class DataError(ValueError):
    """The data on disk cannot be used; the message names the files and the remedy."""


def did_you_mean(name: str, valid: list[str]) -> str:
    """``did you mean 'x'?`` for the nearest valid name, or the list of all where none is near.

    >>> did_you_mean("entorpy", ["entropy", "random"])
    "did you mean 'entropy'?"
    """
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"the valid ones are {', '.join(sorted(valid))}"


def printable(text: str) -> str:
    """Line breaks and bytes that are no text as Python escapes them, so that a message names each file on one line.

    >>> print(printable("a\\nb\\udcff"))
    a\\nb\\udcff
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(items: Iterable[Any], *, separator: str = ", ") -> str:
    """The first ten of ``items`` and, where there are more, how many: whole lists of ids would fill the screen.

    >>> listed(range(3)), listed(range(2594))
    ('0, 1, 2', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (2594 in all)')
    """
    shown = [printable(str(item)) for item in items]
    more = [f"... ({len(shown)} in all)"] if len(shown) > 10 else []
    return separator.join(shown[:10] + more)


def shown(value: Any) -> str:
    """``repr``, cut short: a few lines of YAML can stand for a list of gigabytes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 80
    try:
        return short.repr(value)
    except ValueError:  # Python does not write out numbers of more than 4300 digits
        return f"a huge {type(value).__name__}"


def function_name(function: Any) -> str:
    """The name of a function, of the one in a ``functools.partial``, or of an object's class.

    >>> function_name(max), function_name(functools.partial(max, 0))
    ('max', 'max')
    """
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", type(function).__name__)


def check_text(**parameters: object) -> None:
    """Refuse what is no text, above all what papermill and YAML made a number of.

    Raises:
        ConfigError: naming the parameter, and how to write it.

    >>> check_text(device="cuda:1", output_dir=20240501)
    Traceback (most recent call last):
    alutils.system.checks.ConfigError: output_dir: must be text, got 20240501. papermill's -p and YAML make numbers ...
    """
    for name, value in parameters.items():
        if isinstance(value, bool | int | float):
            raise ConfigError(
                f"{name}: must be text, got {value!r}. papermill's -p and YAML make numbers of digits (007 becomes 7): "
                f"with papermill, write -r {name} and the text as you meant it; in YAML and Python, put it in quotes, "
                f'such as "{value}"'
            )
        if not isinstance(value, str | os.PathLike):
            raise ConfigError(f"{name}: must be text, got {shown(value)}; leave it out for its default")


def expanded(name: str, path: str | os.PathLike[str]) -> Path:
    """A path as a user gave it, ``~`` made the home folder.

    Args:
        name: of the parameter or environment variable that it was given for.
        path: absolute, or relative to the current folder.

    Raises:
        ConfigError: naming the parameter, if no file or folder can have that path.

    >>> expanded("output_dir", "runs/mine").parts
    ('runs', 'mine')
    >>> expanded("output_dir", "~/mine") == Path.home() / "mine"
    True
    """
    check_text(**{name: path})
    try:
        if "\0" in str(path):
            raise ValueError("it holds the character 0")
        return Path(path).expanduser()
    except (TypeError, ValueError, RuntimeError) as error:  # or a path of bytes, ~ without a home folder, no such user
        raise ConfigError(f"{name}: {path!r} cannot be a path ({error}); write the whole path") from None
