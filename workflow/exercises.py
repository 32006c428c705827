"""Make the students' version of the exercises, and grade what they hand in.

    python workflow/exercises.py release
    python workflow/exercises.py grade

``notebooks/exercises/README.md`` says where everything lies.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import nbformat
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps.api import NbGraderAPI
from traitlets.config import Config, PyFileConfigLoader

from alutils.system.files import replacing, sha256, write_text

ROOT = Path(__file__).resolve().parent.parent
MATHJAX = re.compile(r"<!-- Loading mathjax macro -->.*?<!-- End of mathjax configuration -->", re.DOTALL)


class Course:
    """The exercises of a project's folder, and what students handed in below its ``runs/exercises``."""

    def __init__(self, root: Path = ROOT) -> None:
        self.notebooks, self.folder = root / "notebooks" / "exercises", root / "runs" / "exercises"
        self.names = [path.stem for path in sorted(self.notebooks.glob("*.ipynb"))]
        self.config: Config = PyFileConfigLoader("nbgrader_config.py", str(self.notebooks)).load_config()
        for part in ("source", "handed_in"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)

    def release(self) -> None:
        """The notebooks with gaps, ``release/NAME/NAME.ipynb`` for each exercise NAME."""
        for name in self.names:
            (self.folder / "source" / name).mkdir(exist_ok=True)
            shutil.copy(self.notebooks / f"{name}.ipynb", self.folder / "source" / name)
            failure = self.call("generate_assignment", name)
            if failure:
                raise RuntimeError(f"{name}: {failure}")

    def grade(self, say: Callable[[str], object] = print) -> None:
        """Grade what is new, write all feedback and ``grades.csv``, and ``say`` a line per student and exercise."""
        students = sorted(path for path in (self.folder / "handed_in").iterdir() if path.is_dir())
        rows = []
        for student in students:
            found = self._handed_in(student, say)
            for name in self.names:
                row = self._graded(student.name, name, found[name]) if name in found else None
                if row:
                    rows.append({"student": student.name, "exercise": name, **row})
                    say(_line(rows[-1]))
        if not rows:
            say(f"nothing to grade: put each student's notebooks into {self.folder / 'handed_in'}/NAME/")
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / "grades.csv", text.getvalue())
        say(f"{sum(row['to_read'] for row in rows)} answers in writing wait to be read in the Formgrader")
        say(f"points: {self.folder / 'grades.csv'}; pages for the students: {self.folder / 'feedback'}/NAME/")

    def _handed_in(self, student: Path, say: Callable[[str], object]) -> dict[str, Path]:
        """The newest file of each exercise; a browser may have added to its name, as in "1_pixel_uncertainty (1)"."""
        found: dict[str, Path] = {}
        for path in sorted(student.rglob("*.ipynb"), key=lambda path: (path.stat().st_mtime, path.name)):
            if ".ipynb_checkpoints" not in path.parts:
                name = next((name for name in self.names if path.name.startswith(name)), None)
                if name:
                    found[name] = path
                else:
                    say(f"{student.name}: {path.name} is left out: its name begins with none of the exercises' names")
        return found

    def _graded(self, student: str, name: str, path: Path) -> dict[str, Any]:
        submitted = self.folder / "submitted" / student / name / f"{name}.ipynb"
        autograded = self.folder / "autograded" / student / name / f"{name}.ipynb"
        # Interrupted, autograding leaves a copy that was not run; the mark is only there once it came to its end
        mark = self.folder / "graded" / student / f"{name}.sha256"
        failure, content = "", path.read_bytes()
        if not (autograded.exists() and mark.exists() and mark.read_text(encoding="utf-8") == sha256(content)):
            try:
                nbformat.reads(content.decode(), as_version=4)
            except Exception:  # JSON's, nbformat's and Unicode's have no class in common
                return _row(problem=f"{path.name} is not a notebook: ask for the file again")
            mark.unlink(missing_ok=True)
            with replacing(submitted) as fresh:
                fresh.write_bytes(content)
            failure = self.call("autograde", name, student)
            if not failure:
                write_text(mark, sha256(content))
        if failure:
            return _row(problem=f"not graded: {failure}")
        page = self.folder / "feedback" / student / name / f"{name}.html"
        page.unlink(missing_ok=True)  # of an earlier hand-in
        failure = self.call("generate_feedback", name, student)
        if page.exists():
            write_text(page, MATHJAX.sub("", page.read_text(encoding="utf-8")))
        points = self._points(student, name)
        return points if page.exists() else {**points, "problem": f"graded, but without a feedback page: {failure}"}

    def _points(self, student: str, name: str) -> dict[str, Any]:
        with Gradebook(self.config.CourseDirectory.db_url) as book:
            try:
                (notebook,) = book.find_submission(name, student).notebooks
            except MissingEntry:
                return _row(problem="not graded: nbgrader does not know it; run make exercises first")
            tests = [grade for grade in notebook.grades if grade.cell.cell_type == "code"]
            answers = [grade for grade in notebook.grades if grade.cell.cell_type == "markdown"]
            return _row(
                by_tests=sum(grade.score for grade in tests),
                of_tests=sum(grade.max_score for grade in tests),
                by_teacher=sum(grade.score for grade in answers),
                of_teacher=sum(grade.max_score for grade in answers),
                to_read=sum(bool(grade.needs_manual_grade) for grade in answers),
                lost=" ".join(grade.name.removesuffix("-tests") for grade in tests if grade.score < grade.max_score),
            )

    def call(self, action: str, *arguments: str) -> str:
        """What went wrong in nbgrader's ``action``, in one line; its log, full of alarming lines, is not shown."""
        logging.disable(logging.CRITICAL)
        try:
            with _no_stderr(), redirect_stderr(io.StringIO()):
                done = getattr(NbGraderAPI(config=self.config), action)(*arguments)
        finally:
            logging.disable(logging.NOTSET)
        if done["success"]:
            return ""
        return (done.get("error") or done.get("log") or "for an unknown reason").strip().splitlines()[-1]


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Nothing is written to the standard error stream, not even by kernels that are started."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _row(**values: Any) -> dict[str, Any]:
    numbers = dict.fromkeys(("by_tests", "of_tests", "by_teacher", "of_teacher", "to_read"), 0)
    return {**numbers, "lost": "", "problem": "", **values}


def _line(row: dict[str, Any]) -> str:
    head = f"{row['student']}  {row['exercise']}:"
    if row["problem"]:
        return f"{head} {row['problem']}"
    line = f"{head} {row['by_tests']:g} of {row['of_tests']:g} points by tests"
    if row["lost"]:
        line += f" (lost: {row['lost'].replace(' ', ', ')})"
    if row["to_read"]:
        return f"{line}, {row['to_read']} answers to read"
    return f"{line}, {row['by_teacher']:g} of {row['of_teacher']:g} by the teacher"


if __name__ == "__main__":
    if sys.argv[1:] not in (["release"], ["grade"]):
        sys.exit(__doc__)
    getattr(Course(), sys.argv[1])()
