"""What a function of one's own is: its source and the values that it uses, as a checksum by which a change shows."""

from __future__ import annotations

import ast
import dis
import enum
import functools
import hashlib
import inspect
import linecache
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import nn

from alutils.experiment import Experiment
from alutils.system.checks import ConfigError

_PLAIN = (
    *(NoneType, bool, int, float, complex, str, bytes, range, slice, PurePath, enum.Enum),
    *(torch.dtype, torch.device, np.dtype, np.generic, Experiment),
)
"""Their ``repr`` tells all of them."""

_OTHERS = (Path(__file__).resolve().parents[1], Path(sysconfig.get_path("stdlib")).resolve())
"""Folders whose code is nobody's own, besides those of installed packages."""


def code_checksum(setting: str, *objects: object) -> str | None:
    """16 hexadecimal digits that change with what ``objects`` would do, or None where none of them is one's own code.

    Of a function they stand for its source (without comments, docstrings and layout), its defaults and attributes, what
    it captured, the arguments of a ``functools.partial``, and whatever its code names in its module or notebook:
    values, and functions and classes, of which the same is taken in turn. Of an object: its class and its attributes.
    Values count by what they hold: numbers, text, tensors, arrays, lists, sets and dicts of them, a network's weights.

    What escapes: what is reached through a module (``helpers.f`` after ``import helpers``), and installed packages;
    objects of their types (a data frame, a ``torch.Generator``); files that the code reads. A function that changes the
    values that it captured is another one afterwards.

    Args:
        setting: what to call them in an error.
        objects: functions, classes or callable objects.

    Raises:
        ConfigError: if the source of a function cannot be had, or is not what runs.

    >>> def brightest(model, images, experiment, generator):
    ...     return images.float().mean((1, 2, 3))
    >>> len(code_checksum("strategy", brightest))
    16
    >>> code_checksum("strategy", max)
    Traceback (most recent call last):
    alutils.system.checks.ConfigError: strategy: the source of 'max' cannot be had, it is not written in Python; ...
    """
    reader = _Reader(setting)
    found = [digest for thing in objects if (digest := reader.read_callable(thing))]
    return _hash(*found)[:16] if found else None


class _Reader:
    """Reads each object once."""

    def __init__(self, setting: str) -> None:
        self.setting = setting
        self._digests: dict[int, str] = {}
        self._kept: list[object] = []  # an id is an object's own as long as it lives

    def read_callable(self, thing: Any) -> str | None:
        """Of what is to be called; None where it is this package's or an installed class, an error without source."""
        if isinstance(thing, type):
            return self.digest(thing) if _own_members(thing) else None
        if isinstance(thing, FunctionType):
            return None if _path(thing).is_relative_to(_OTHERS[0]) else self.digest(thing, in_full=True)
        if isinstance(thing, MethodType | functools.partial):
            self.read_callable(thing.func if isinstance(thing, functools.partial) else thing.__func__)
            return self.digest(thing)
        if hasattr(thing, "__wrapped__"):  # functools.lru_cache
            return self.read_callable(thing.__wrapped__)
        call = inspect.getattr_static(type(thing), "__call__", None)
        if not isinstance(call, FunctionType):
            raise self._no_source(thing, "it is not written in Python")
        return _hash(self.digest(call, in_full=True), *self._object(thing))

    def digest(self, value: Any, *, in_full: bool = False) -> str:
        if id(value) not in self._digests:
            self._digests[id(value)] = "itself"  # while it is read: a function may name itself
            self._kept.append(value)
            self._digests[id(value)] = _hash(_name(type(value)), *self._parts(value, in_full))
        return self._digests[id(value)]

    def _parts(self, value: Any, in_full: bool) -> Iterator[str]:
        if isinstance(value, _PLAIN):
            yield repr(value)
        elif isinstance(value, torch.Tensor):
            flat = value.detach().cpu().to_dense().contiguous().flatten()
            yield from (str(value.dtype), str(tuple(value.shape)), _hash(flat.view(torch.uint8).numpy().tobytes()))
        elif isinstance(value, np.ndarray):
            content = self.digest(value.tolist()) if value.dtype == object else _hash(value.tobytes())
            yield from (str(value.dtype), str(value.shape), content)
        elif isinstance(value, list | tuple):
            yield from map(self.digest, value)
        elif isinstance(value, set | frozenset):
            yield from sorted(map(self.digest, value))
        elif isinstance(value, dict):
            yield from (self.digest(part) for item in value.items() for part in item)
        elif isinstance(value, FunctionType):
            yield from self._function(value) if in_full or _is_own(_path(value)) else [_name(value)]
        elif isinstance(value, MethodType):
            yield from map(self.digest, (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            yield from map(self.digest, (value.func, value.args, value.keywords))
        elif isinstance(value, type):
            yield from (_name(value), self.digest(_own_members(value)))
        elif isinstance(value, nn.Module) or _own_members(type(value)):
            yield from self._object(value)
        elif isinstance(value, ModuleType) or callable(value):
            yield _name(value)

    def _function(self, function: FunctionType) -> Iterator[str]:
        code = function.__code__
        yield self._source(function)
        used = [function.__defaults__, function.__kwdefaults__, vars(function)]
        for cell in function.__closure__ or ():
            try:
                used.append(cell.cell_contents)
            except ValueError:  # what it is to hold is not there yet
                used.append(None)
        names = sorted(_global_names(code) & set(function.__globals__))
        yield from map(self.digest, [*used, *names, *(function.__globals__[name] for name in names)])

    def _object(self, thing: object) -> Iterator[str]:
        yield self.digest(type(thing))
        if isinstance(thing, nn.Module):
            yield from (str(thing), self.digest(dict(thing.state_dict())))
            return
        slots = [name for cls in type(thing).__mro__ for name in vars(cls).get("__slots__", ())]
        for name in sorted({*getattr(thing, "__dict__", ()), *slots}):
            yield from (name, self.digest(getattr(thing, name, None)))

    def _source(self, function: FunctionType) -> str:
        code = function.__code__
        linecache.checkcache(code.co_filename)
        text = "".join(linecache.getlines(code.co_filename, function.__globals__))
        if not text:
            raise self._no_source(function, "it was not typed into a file or a notebook's cell")
        try:
            # A cell's text is kept with the cell; a file may have been edited after it was loaded
            is_there = not _path(function).is_file() or code in _codes(compile(text, code.co_filename, "exec", 0, True))
            found = [node for node in ast.walk(ast.parse(text)) if _may_be(node, code)] if is_there else []
        except SyntaxError:
            found = []
        if len(found) > 1:  # lambdas on one line
            found = [node for node in found if _position(node.body) in set(code.co_positions())]
        if len(found) != 1:
            raise self._no_source(function, f"{code.co_filename} was changed since it was loaded (restart the kernel)")
        for node in ast.walk(found[0]):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and ast.get_docstring(node) is not None
            ):
                node.body = node.body[1:] or [ast.Pass()]
        return ast.unparse(found[0])

    def _no_source(self, thing: Any, reason: str) -> ConfigError:
        return ConfigError(
            f"{self.setting}: the source of '{_name(thing).rpartition('.')[2]}' cannot be had, {reason}; write it with "
            "def in a file or a notebook's cell, so that a run's record can tell what ran"
        )


def _hash(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        whole.update(f"{len(encoded)}:".encode() + encoded)
    return whole.hexdigest()


def _name(thing: Any) -> str:
    named = thing if hasattr(thing, "__name__") else type(thing)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', named.__name__)}"


def _path(function: FunctionType) -> Path:
    return Path(function.__code__.co_filename).resolve()


def _is_own(path: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not any(path.is_relative_to(folder) for folder in _OTHERS)


def _own_members(cls: type) -> dict[str, Any]:
    """Of a class and its bases: the functions of one's own, wherever they were put, and the values of own classes."""
    members = {}
    for base in cls.__mro__:
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        is_own = base.__module__ == "__main__" or (file is not None and _is_own(Path(file).resolve()))
        for name, member in vars(base).items():
            behind = [member, *(getattr(member, part, None) for part in ("__func__", "fget", "fset", "func"))]
            functions = [part for part in behind if isinstance(part, FunctionType)]
            # What dataclasses generate has no file; it follows from the fields
            own = [part for part in functions if part.__code__.co_filename != "<string>" and _is_own(_path(part))]
            if own or (is_own and not functions and not name.startswith("__")):
                members[f"{base.__qualname__}.{name}"] = own or member
    return members


def _global_names(code: CodeType) -> set[str]:
    loads = ("LOAD_GLOBAL", "LOAD_NAME")
    return {step.argval for part in _codes(code) for step in dis.get_instructions(part) if step.opname in loads}


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code and those within it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _may_be(node: ast.AST, code: CodeType) -> bool:
    """Whether the node is of the function's kind, name and first line."""
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return (node.name, min(part.lineno for part in (node, *node.decorator_list))) == (code.co_name, code.co_firstlineno)


def _position(node: ast.AST) -> tuple[int, int, int, int]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset
