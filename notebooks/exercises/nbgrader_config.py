"""Where nbgrader finds the exercises and where it writes, for ``workflow/exercises.py`` and for the Formgrader.

Everything lies below ``runs/exercises``, which git ignores. Each exercise is an assignment with a score of its own.
"""

import html
import os
import re
import sys
from pathlib import Path

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import markdown2html_mistune

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "exercises"
RUNS.mkdir(parents=True, exist_ok=True)

# nbgrader starts alembic by its name, wherever it was itself started from
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

c = get_config()  # noqa: F821, nbgrader defines it
course = c.CourseDirectory
course.course_id = "active-learning"
course.root = str(ROOT)
course.source_directory = "runs/exercises/source"  # copies of the notebooks of this folder, one folder per assignment
course.release_directory = "runs/exercises/release"
course.submitted_directory = "runs/exercises/submitted"
course.autograded_directory = "runs/exercises/autograded"
course.feedback_directory = "runs/exercises/feedback"
course.db_url = f"sqlite:///{RUNS / 'gradebook.db'}"


def seconds_for(cell):
    """An endless loop ends after a minute; a cell that trains networks is given more."""
    return 900 if "trains" in cell.metadata.get("tags", []) else 60


c.ExecutePreprocessor.timeout_func = seconds_for


@pass_context
def with_mathml(context, source):
    """Markdown as HTML with formulas that a browser shows by itself, without MathJax from the internet."""
    parts = re.split(r"(<(pre|code)\b.*?</\2>)", markdown2html_mistune(source), flags=re.DOTALL)
    for i in range(0, len(parts), 3):  # what is not code
        for formula, display in ((r"\$\$(.+?)\$\$", "block"), (r"\$(.+?)\$", "inline")):
            show = lambda found, display=display: convert(html.unescape(found[1]), display=display)  # noqa: E731
            parts[i] = re.sub(formula, show, parts[i], flags=re.DOTALL)
    return "".join(part for i, part in enumerate(parts) if i % 3 != 2)


c.HTMLExporter.filters = {"markdown2html": with_mathml}
