"""Where nbgrader finds the exercises and where it writes; run it in this folder, as the README beside this file says.

Everything it writes lies below ``runs/exercises``, which git ignores.
"""

import os
import sys
from pathlib import Path

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
course.source_directory = HERE.parent.name  # in which the assignment is a folder, this one
course.release_directory = "runs/exercises/release"
course.submitted_directory = "runs/exercises/submitted"
course.autograded_directory = "runs/exercises/autograded"
course.feedback_directory = "runs/exercises/feedback"
course.db_url = f"sqlite:///{RUNS / 'gradebook.db'}"
course.ignore = [".ipynb_checkpoints", "__pycache__", "README.md", Path(__file__).name]  # not for students


def seconds_for(cell):
    """An endless loop ends after a minute; a cell that trains networks is given more."""
    return 900 if "trains" in cell.metadata.get("tags", []) else 60


c.ExecutePreprocessor.timeout_func = seconds_for
