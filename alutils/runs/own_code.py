"""A checksum of a function of one's own: of its source and of the values that it uses."""

from __future__ import annotations

import ast
import dis
import enum
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.system.checks import ConfigError, function_name
from alutils.system.files import sha256

# Their repr tells everything about a value
_PLAIN = (
    *(NoneType, bool, int, float, complex, str, bytes, range, slice, PurePath, enum.Enum),
    *(torch.dtype, torch.device, np.dtype, np.generic, Experiment),
)
# What decorators, methods, functools.partial and properties hold
_INSIDE = ("__wrapped__", "__func__", "__self__", "func", "args", "keywords", "fget")
_PACKAGE, _LIBRARY = Path(__file__).resolve().parents[1], Path(sysconfig.get_path("stdlib")).resolve()


def code_checksum(setting: str, *objects: object) -> str | None:
    """16 hexadecimal digits that change with what ``objects`` would do, or None where none of them is one's own code.

    A function counts with its source (without comments, docstrings and layout), its defaults and attributes, the values
    that it captured, and every value, function and class that its code names in its module or notebook. Objects count
    with their class and attributes, values with what they hold.

    What is not seen: what is reached through a module (``helpers.f`` after ``import helpers``), installed packages and
    objects of their types (a data frame, a ``torch.Generator``), and files that the code reads. A function that changes
    the values that it captured counts as another one afterwards.

    Args:
        setting: what to call them in an error.
        objects: functions, classes or callable objects.

    Raises:
        ConfigError: if the source of a function cannot be found, or is not what runs.

    >>> def brightest(model, images, experiment, generator):
    ...     return images.float().mean((1, 2, 3))
    >>> len(code_checksum("strategy", brightest))
    16
    """
    reader = _Reader(setting)
    found = [reader.digest(thing) for thing in objects if reader.is_ones_own(thing)]
    return _hash(*found)[:16] if found else None


class _Reader:
    """Reads each object once."""

    def __init__(self, setting: str) -> None:
        self.setting = setting
        self._digests: dict[int, str] = {}
        self._kept: list[object] = []  # as long as an object lives, no other one has its id

    def is_ones_own(self, thing: object) -> bool:
        if isinstance(thing, BuiltinFunctionType):
            raise self._no_source(thing)
        if isinstance(thing, type):
            return bool(_own_members(thing))
        return not (isinstance(thing, FunctionType) and _file(thing).is_relative_to(_PACKAGE))

    def digest(self, value: Any) -> str:
        if id(value) not in self._digests:
            self._digests[id(value)] = "itself"  # while it is read: a function may name itself
            self._kept.append(value)
            self._digests[id(value)] = _hash(_name(type(value)), *self._parts(value))
        return self._digests[id(value)]

    def _parts(self, value: Any) -> Iterator[str]:
        if isinstance(value, _PLAIN):
            yield repr(value)
        elif isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            yield f"{value.dtype} {tuple(value.shape)} {sha256(content.numpy().tobytes())}"
        elif isinstance(value, np.ndarray):
            content = self.digest(value.tolist()) if value.dtype == object else sha256(value.tobytes())
            yield f"{value.dtype} {value.shape} {content}"
        elif isinstance(value, set | frozenset):
            yield from sorted(map(self.digest, value))
        elif isinstance(value, list | tuple):
            yield from map(self.digest, value)
        elif isinstance(value, dict):
            yield from map(self.digest, value.items())
        elif isinstance(value, FunctionType) and _is_own(_file(value)):
            yield self._source(value)
            yield from map(self.digest, _used_by(value))
        elif isinstance(value, type):
            yield from (_name(value), self.digest(_own_members(value)))
        elif isinstance(value, nn.Module):
            yield from (self.digest(type(value)), str(value), self.digest(dict(value.state_dict())))
        elif _own_members(type(value)):
            yield from (self.digest(type(value)), self.digest(object.__getstate__(value)))
        else:
            yield _name(value)
            if not isinstance(value, ModuleType):
                yield from (self.digest(getattr(value, name)) for name in _INSIDE if hasattr(value, name))

    def _source(self, function: FunctionType) -> str:
        code = function.__code__
        try:
            text = "".join(inspect.findsource(function)[0])
            # A cell's text is kept with the cell; a file may have been edited after it was loaded
            if _file(function).is_file() and code not in _codes(compile(text, code.co_filename, "exec", 0, True)):
                raise self._no_source(function)
            (node,) = (node for node in ast.walk(ast.parse(text)) if _is_of(code, node))
        except (OSError, SyntaxError, ValueError):
            raise self._no_source(function) from None
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(part):
                part.body = part.body[1:] or [ast.Pass()]
        return ast.unparse(node)

    def _no_source(self, thing: object) -> ConfigError:
        return ConfigError(
            f"{self.setting}: the source of '{function_name(thing)}' cannot be found, or its file was edited since it "
            "was loaded; write it with def in a file or a notebook's cell and restart the kernel after an edit, so "
            "that a run's record can tell what ran"
        )


def _hash(*parts: str) -> str:
    return sha256(repr(parts).encode())


def _name(thing: Any) -> str:
    named = thing if hasattr(thing, "__name__") else type(thing)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', named.__name__)}"


def _file(function: FunctionType) -> Path:
    return Path(function.__code__.co_filename).resolve()


def _is_own(path: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not path.is_relative_to(_PACKAGE) and not path.is_relative_to(_LIBRARY)


def _own_members(cls: type) -> dict[str, Any]:
    """The functions and values of a class and of its bases, as far as these are one's own."""
    members = {}
    for base in cls.__mro__:
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if base.__module__ != "__main__" and not (file and _is_own(Path(file).resolve())):
            continue
        for name, member in vars(base).items():
            code = getattr(inspect.unwrap(member), "__code__", None)
            # What dataclasses generate has no file; it follows from the fields
            if code.co_filename != "<string>" if code else not name.startswith("__"):
                members[f"{base.__qualname__}.{name}"] = member
    return members


def _used_by(function: FunctionType) -> list[Any]:
    """The values that a function carries, and those of its module that its code loads, by name."""
    captured = [cell.cell_contents for cell in function.__closure__ or ()]
    steps = (step for code in _codes(function.__code__) for step in dis.get_instructions(code))
    loaded = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    named = {name: function.__globals__[name] for name in sorted(loaded & set(function.__globals__))}
    return [function.__defaults__, function.__kwdefaults__, vars(function), captured, named]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all those within it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _is_of(code: CodeType, node: ast.AST) -> bool:
    """Whether the node is the function or lambda that the code was made from."""
    if isinstance(node, ast.Lambda):
        body = node.body
        position = (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset)
        return code.co_name == "<lambda>" and position in code.co_positions()
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    first_line = min(part.lineno for part in (node, *node.decorator_list))
    return (node.name, first_line) == (code.co_name, code.co_firstlineno)
