"""What a job's results depend on besides its parameters: the code, without its comments and documentation."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path

import yaml

from alutils.queries.registry import find_marked

LOOP = "alutils.loop"
"""The module that makes a run: with what it imports it decides what comes out."""

STRATEGIES = "alutils.queries"
"""Where the query strategies are; a file that defines some counts only for runs of these."""


def code_of_run(root: Path, arm: str, settings: str) -> str:
    """The hash of what a run of notebooks 04 and 05b depends on.

    The notebook's cells and the drawing code do not count.

    Args:
        root: of the project.
        arm: the run's strategy or baseline.
        settings: the profile's.

    Returns:
        12 hexadecimal digits, the same on every version of Python.
    """
    return _hash([*_sources(run_modules(root, arm)), settings])


@functools.cache
def code_of_commit(root: Path, commit: str, arm: str) -> str:
    """:func:`code_of_run` as it was at a commit; the commit's name where this checkout does not hold it."""
    found = subprocess.run(["git", "-C", str(root), "archive", commit, "alutils"], capture_output=True)
    if found.returncode:
        return commit
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(found.stdout)) as files:
        for member in filter(tarfile.TarInfo.isfile, files):
            path = Path(folder) / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.extractfile(member).read())
        return code_of_run(Path(folder), arm, settings="")


def code_of_notebook(root: Path, notebook: Path, settings: str) -> str:
    """The hash of what a notebook shows: of its code cells, all of alutils with its tables, the profile's settings."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [significant("".join(cell["source"]), cell=True) for cell in cells if cell["cell_type"] == "code"]
    return _hash([*code, *_all_of(root / "alutils"), settings])


def code_of_pictures(root: Path) -> str:
    """The hash of what makes a run's pictures out of files, or of nothing. It is no part of :func:`code_of_run`."""
    return _hash(_all_of(root / "alutils" / "data"))


@functools.cache
def _all_of(folder: Path) -> list[list[str]]:
    """The modules in a folder and below, and the YAML files beside them, by name and without their comments."""
    readers = {"*.py": significant, "*.yaml": lambda text: json.dumps(yaml.safe_load(text))}
    return [
        [path.relative_to(folder).as_posix(), read(path.read_text(encoding="utf-8"))]
        for pattern, read in readers.items()
        for path in sorted(folder.rglob(pattern))
    ]


def run_modules(root: Path, arm: str) -> dict[str, Path]:
    """The modules of alutils that the loop imports, directly or not, with their files.

    A file that defines only other arms' strategies is left out. ``alutils/__init__.py`` is left out where only modules
    are imported from it, because it only gathers names.
    """
    folder = root.joinpath(*STRATEGIES.split("."))
    places = find_marked(folder, "strategy") | find_marked(folder, "wrapper")
    families = {name: _module_name(root, path) for name, (path, *_) in places.items()}
    own = sorted({families[part] for part in arm.split("-") if part in families})  # a baseline has none
    loop = _closure(root, [LOOP], {}, skip=set(families.values()) - set(own))
    return _closure(root, own, {name: path for name, path in loop.items() if name not in own})


@functools.cache
def significant(source: str, *, cell: bool = False) -> str:
    """Python code without comments, docstrings, other bare texts, blank lines and spaces at the ends of lines.

    What does not count is cut out of the text, since tokens and syntax trees differ between versions of Python.

    Args:
        source: the text of a module or a cell.
        cell: whether it is a notebook's cell, where a bare text at the end is shown.

    >>> print(significant('def f(x):  # as in eq. 1\\n    \"\"\"Twice.\"\"\"\\n\\n    return "#" + 2 * x  \\n'))
    def f(x):
        return "#" + 2 * x
    """
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):  # of a cell: a line for IPython or the shell
        return source
    lines = source.split("\n")
    cuts: dict[int, list[tuple[int, int]]] = {}
    for token in tokens:
        if token.type == tokenize.COMMENT:
            cuts.setdefault(token.start[0], []).append((token.start[1], len(lines[token.start[0] - 1])))
    within = _rows_within_texts(tokens)
    for node in _bare_texts(tree, cell):
        first, last = node.lineno, node.end_lineno
        for row in range(first, last + 1):
            line = lines[row - 1].encode()  # the tree counts bytes, the tokens characters
            start = len(line[: node.col_offset].decode()) if row == first else 0
            end = len(line[: node.end_col_offset].decode()) if row == last else len(lines[row - 1])
            cuts.setdefault(row, []).append((start, end))
            within.discard(row)
    kept = []
    for row, line in enumerate(lines, start=1):
        for start, end in sorted(cuts.get(row, ()), reverse=True):
            line = line[:start] + line[end:]
        if row in within:
            kept.append(line)
        elif line.strip():
            kept.append(line.rstrip())
    return "\n".join(kept)


def _rows_within_texts(tokens: list[tokenize.TokenInfo]) -> set[int]:
    """The rows whose end lies within a text of several rows: there, spaces and empty rows are part of it."""
    starts = {getattr(tokenize, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
    ends = {getattr(tokenize, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}
    rows: set[int] = set()
    opened: list[int] = []
    for token in tokens:
        if token.type == tokenize.STRING:
            rows.update(range(token.start[0], token.end[0]))
        elif token.type in starts:  # since Python 3.12 such a text is many tokens
            opened.append(token.start[0])
        elif token.type in ends:
            rows.update(range(opened.pop(), token.end[0]))
    return rows


def _bare_texts(tree: ast.Module, cell: bool) -> Iterator[ast.Expr]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) and not (cell and node is tree) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement


def _closure(root: Path, start: list[str], found: dict[str, Path], skip: Collection[str] = ()) -> dict[str, Path]:
    """What is ``found`` already, the modules of ``start``, and all that these import."""
    found, waiting = dict(found), list(start)
    while waiting:
        name = waiting.pop()
        path = _file_of(root, name)
        if path is not None and name not in found and name not in skip:
            found[name] = path
            waiting += _imported(root, name, path)
    return found


@functools.cache
def _imported(root: Path, module: str, path: Path) -> list[str]:
    """The modules of alutils that a module's text imports, with the packages that they lie in."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if _file_of(root, name)}
            names |= modules
            if base != "alutils" or modules != inner:
                names.add(base)
    for name in tuple(names):
        parts = name.split(".")
        names.update(".".join(parts[:n]) for n in range(2, len(parts)))
    return sorted(name for name in names if name.split(".")[0] == "alutils")


def _file_of(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources(modules: dict[str, Path]) -> list[list[str]]:
    return [[name, significant(modules[name].read_text(encoding="utf-8"))] for name in sorted(modules)]


def _hash(parts: list[str | list[str]]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
