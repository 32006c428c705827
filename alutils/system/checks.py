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
    """``text`` on one line, for messages: line breaks and bytes that are no text become Python's escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(items: Iterable[Any], *, separator: str = ", ") -> str:
    """The first ten of ``items`` and, where there are more, how many.

    >>> listed(range(2594))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (2594 in all)'
    """
    texts = [printable(str(item)) for item in items]
    more = [f"... ({len(texts)} in all)"] if len(texts) > 10 else []
    return separator.join(texts[:10] + more)


def shown(value: Any) -> str:
    """``repr``, cut short: a few lines of YAML can stand for a list of gigabytes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 80
    try:
        return short.repr(value)
    except ValueError:  # Python does not write out numbers of more than 4300 digits
        return f"a huge {type(value).__name__}"


def function_name(function: Any) -> str:
    """The name of a function, of the one in a ``functools.partial``, or of an object's class."""
    function = unwrapped(function)
    return getattr(function, "__name__", type(function).__name__)


def unwrapped(function: Any) -> Any:
    """The function in a ``functools.partial``, or ``function`` itself."""
    return function.func if isinstance(function, functools.partial) else function


def check_text(**parameters: object) -> None:
    """Refuse by a ConfigError what is no text, above all digits that papermill or YAML turned into a number."""
    for name, value in parameters.items():
        if not isinstance(value, str | os.PathLike):
            raise ConfigError(
                f"{name}: must be text, got {shown(value)}; leave it out for its default. papermill's -p and YAML make "
                f"numbers of digits (007 becomes 7): with papermill, write -r {name} and the text; in YAML and Python, "
                f'put it in quotes, such as "{shown(value)}"'
            )


def expanded(name: str, path: str | os.PathLike[str]) -> Path:
    """A path as a user gave it for the parameter or environment variable ``name``, with ``~`` as the home folder.

    Raises:
        ConfigError: if no file or folder can have that path.
    """
    check_text(**{name: path})
    try:
        if "\0" in str(path):
            raise ValueError("it holds the character 0")
        return Path(path).expanduser()
    except (ValueError, RuntimeError) as error:  # the second: ~ without a home folder
        raise ConfigError(f"{name}: {path!r} cannot be a path ({error}); write the whole path") from None
