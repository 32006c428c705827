"""The exercises: the student's version is the source with gaps, solutions get all points, typical mistakes do not."""

import ast
import csv
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde
from nbgrader.preprocessors import Execute, NbGraderPreprocessor
from test_notebooks import machine_paths

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))
from exercises import Course as RealCourse  # noqa: E402

SOURCE = ROOT / "notebooks" / "exercises"
EXERCISES = sorted(SOURCE.glob("*.ipynb"))
STUB = "# YOUR CODE HERE\nraise NotImplementedError()"
by_name = pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)


def cells_of(path):
    return nbformat.read(path, as_version=4).cells


def kind(cell):
    """What nbgrader makes of a cell: "solution", "test", "answer" (in writing) or "plain"."""
    grader = cell.metadata.get("nbgrader", {"grade": False, "solution": False})
    names = {(False, True): "solution", (True, False): "test", (True, True): "answer", (False, False): "plain"}
    return names[grader["grade"], grader["solution"]]


def grade_id(cell):
    return cell.metadata.nbgrader.grade_id


def with_body(source, body):
    """The source of a solution cell with ``body`` in place of the solution."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return re.sub(r" *### BEGIN SOLUTION\n.*### END SOLUTION", lambda _: indented.rstrip(), source, flags=re.DOTALL)


def run_cell(cell, names):
    exec(compile(cell.source, "a cell", "exec"), names)


class ExecuteHere(NbGraderPreprocessor):
    """Runs the cells in this process, which has long imported torch, in place of a kernel for each notebook.

    Cells that train for long are left out: no point depends on them.
    """

    def preprocess(self, nb, resources):
        names = {"__name__": "__main__"}
        for cell in (cell for cell in nb.cells if cell.cell_type == "code"):
            if "trains" in cell.metadata.get("tags", []):
                continue
            try:
                run_cell(cell, names)
            except Exception as error:
                output = nbformat.v4.new_output("error", ename=type(error).__name__, evalue=str(error), traceback=[])
                cell.outputs = [output]
        return nb, resources


class Course(RealCourse):
    """The exercises copied to a folder of their own, with the settings that they come with."""

    def __init__(self, root):
        shutil.copytree(SOURCE, root / "notebooks" / "exercises")
        super().__init__(root)
        self.root = root
        usual = Autograde.autograde_preprocessors.default()
        self.in_this_process = [ExecuteHere if step is Execute else step for step in usual]
        self.config.Autograde.autograde_preprocessors = self.in_this_process
        self.release()

    def released(self, stem):
        return self.folder / "release" / stem / f"{stem}.ipynb"

    def hand_in(self, student, notebooks):
        """Put notebooks, or the text of files, into the student's folder; by file name without ending."""
        folder = self.folder / "handed_in" / student
        folder.mkdir(parents=True)
        for stem, notebook in notebooks.items():
            text = notebook if isinstance(notebook, str) else nbformat.writes(notebook)
            (folder / f"{stem}.ipynb").write_text(text, encoding="utf-8")

    def grades(self, student, notebooks):
        """What nbgrader gives for the submitted ``notebooks`` (by stem): {(stem, grade_id): grade}."""
        self.hand_in(student, notebooks)
        found = {}
        for stem in notebooks:
            row = self._graded(student, stem, self.folder / "handed_in" / student / f"{stem}.ipynb")
            assert not row["problem"], row["problem"]
            with Gradebook(self.config.CourseDirectory.db_url) as book:
                (notebook,) = book.find_submission(stem, student).notebooks
                for grade in notebook.grades:
                    found[stem, grade.name] = grade.auto_score, grade.max_score, grade.needs_manual_grade
        return found


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return Course(tmp_path_factory.mktemp("course"))


def solved(path, course):
    """The student's version with the solutions put into the gaps."""
    notebook, source = nbformat.read(course.released(path.stem), as_version=4), cells_of(path)
    for cell, original in zip(notebook.cells, source, strict=True):
        if kind(cell) in ("solution", "answer"):
            cell.source = original.source
    return notebook


@by_name
def test_the_students_version_is_the_source_with_gaps(path, course):
    source, released = cells_of(path), cells_of(course.released(path.stem))
    for original, cell in zip(source, released, strict=True):
        assert cell.cell_type == original.cell_type and kind(cell) == kind(original)
        expected = original.source
        if kind(original) == "solution":
            expected = with_body(expected, STUB)
        elif kind(original) == "answer":
            expected = "YOUR ANSWER HERE"
        elif kind(original) == "test":
            hidden = r"### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS"  # at the beginning or at the end
            expected = re.sub(rf"^{hidden}\n|\n{hidden}$", "", expected, flags=re.DOTALL)
        assert cell.source == expected
        assert not cell.get("outputs")


@by_name
def test_the_students_version_holds_no_line_of_a_solution_or_a_hidden_test(path, course):
    released = "\n".join(cell.source for cell in cells_of(course.released(path.stem)))
    assert not re.search("(BEGIN|END) (SOLUTION|HIDDEN)", released)
    secrets = []
    for cell in cells_of(path):
        if kind(cell) == "answer":
            secrets += cell.source.split(". ")
        for region in re.findall(r"### BEGIN .*?\n(.*?)### END ", cell.source, flags=re.DOTALL):
            secrets += [line.strip() for line in region.splitlines()]
    secrets = [secret for secret in secrets if len(secret) > 25 and not secret.startswith("def ")]
    assert len(secrets) > 10
    assert [secret for secret in secrets if secret in released] == []


def test_making_it_leaves_everything_below_runs_and_keeps_the_teachers_files_back(course):
    assert {path.name for path in course.root.iterdir()} == {"notebooks", "runs"}
    files = sorted((course.folder / "release").rglob("*.*"))
    assert files == [course.released(path.stem) for path in EXERCISES]


def test_solutions_get_all_points(course):
    notebooks = {path.stem: solved(path, course) for path in EXERCISES}
    grades = course.grades("solved", notebooks)
    by_tests = {name: grade for name, grade in grades.items() if name[1].endswith("-tests")}
    assert len(by_tests) >= 37 and len(grades) - len(by_tests) == 18
    assert {name: grade for name, grade in by_tests.items() if grade[0] != grade[1]} == {}
    assert all(grades[name][2] for name in grades.keys() - by_tests.keys())  # an answer waits for the teacher


def test_untouched_gaps_get_no_point(course):
    notebooks = {path.stem: nbformat.read(course.released(path.stem), as_version=4) for path in EXERCISES}
    grades = course.grades("untouched", notebooks)
    assert len(grades) >= 55
    assert {name: grade for name, grade in grades.items() if grade[0] != 0} == {}


def test_make_grade_right_half_endless_and_broken_hand_ins(course, capfd, monkeypatch):
    """In real kernels; an answer in writing holds a formula, and a browser renamed a file."""
    path = EXERCISES[0]
    half = solved(path, course)
    first, second = [cell for cell in half.cells if kind(cell) == "test"][:2]
    first.source = second.source = "pass  # a student's shortcut"  # the locked tests come back
    gaps = {grade_id(cell): cell for cell in half.cells if kind(cell) == "solution"}
    gaps["e1-least-confidence"].source = gaps["e1-least-confidence"].source.replace("(0.5 - p).abs()", "0.5 - p")
    gaps["e1-binary-entropy"].source = "def binary_entropy(p:"
    gaps["e1-most-unsure-first"].source = with_body(
        gaps["e1-most-unsure-first"].source, "endless = True\nwhile endless:\n    pass"
    )
    limit = course.config.ExecutePreprocessor.timeout_func
    assert {limit(cell) for cell in half.cells} == {60}
    monkeypatch.setitem(course.config.Autograde, "autograde_preprocessors", Autograde.autograde_preprocessors.default())
    monkeypatch.setitem(
        course.config.ExecutePreprocessor, "timeout_func", lambda cell: 2 if "most_unsure_first" in cell.source else 60
    )
    course.hand_in("ana", {f"{path.stem} (1)": solved(path, course), "essay": half})
    course.hand_in("ben", {path.stem: half})
    course.hand_in("cem", {path.stem: "<html>not found</html>"})
    lines = []
    course.grade(lines.append)
    assert capfd.readouterr() == ("", "")
    mine = [line for line in lines if line.startswith(("ana", "ben", "cem"))]
    assert mine == [
        "ana: essay.ipynb is left out: its name begins with none of the exercises' names",
        "ana  1_pixel_uncertainty: 9 of 9 points by tests, 2 answers to read",
        "ben  1_pixel_uncertainty: 4 of 9 points by tests (lost: e1-least-confidence, e1-binary-entropy, "
        "e1-most-unsure-first), 2 answers to read",
        "cem  1_pixel_uncertainty: 1_pixel_uncertainty.ipynb is not a notebook: ask for the file again",
    ]
    with (course.folder / "grades.csv").open() as file:
        points = {row["student"]: row["by_tests"] for row in csv.DictReader(file)}
    assert (float(points["ana"]), float(points["ben"]), float(points["cem"])) == (9, 4, 0)
    page = (course.folder / "feedback" / "ben" / path.stem / f"{path.stem}.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|MathJax|url\(["']?(https?:)?//""", page)
    prose = re.sub(r"(?s)<(pre|style)\b.*?</\1>", "", page)
    assert page.count("<math ") > 20 and "Uncertainty}_" not in prose and "$" not in prose
    assert "did you forget the absolute value" in page and "No reply from kernel before timeout" in page


def test_a_hand_in_is_graded_once_and_anew_where_its_grading_was_interrupted(course, monkeypatch):
    path, call, calls = EXERCISES[0], course.call, []
    course.hand_in("dee", {path.stem: nbformat.read(course.released(path.stem), as_version=4)})
    handed_in = course.folder / "handed_in" / "dee" / path.name
    assert course._graded("dee", path.stem, handed_in)["by_tests"] == 0
    nbformat.write(solved(path, course), handed_in)

    def killed(action, name, student):
        """After nbgrader's copy without outputs."""
        submitted, autograded = (course.folder / part / student / name for part in ("submitted", "autograded"))
        shutil.copy(submitted / f"{name}.ipynb", autograded)
        raise KeyboardInterrupt

    def noted(action, *arguments):
        calls.append(action)
        return call(action, *arguments)

    monkeypatch.setattr(course, "call", killed)
    with pytest.raises(KeyboardInterrupt):
        course._graded("dee", path.stem, handed_in)
    monkeypatch.setattr(course, "call", noted)
    assert [course._graded("dee", path.stem, handed_in)["by_tests"] for _ in range(2)] == [9, 9]
    assert calls == ["autograde", "generate_feedback", "generate_feedback"]


@by_name
def test_the_cells_that_train_are_given_more_time(path, course):
    limit = course.config.ExecutePreprocessor.timeout_func
    for cell in cells_of(course.released(path.stem)):
        long = cell.cell_type == "code" and kind(cell) == "plain" and trains(cell)
        assert limit(cell) == (900 if long else 60)


def trains(cell):
    """Whether the cell itself, and not only a function that it defines, calls what trains a network."""
    statements = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    calls = [node.func for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Call)]
    names = {getattr(function, "attr", getattr(function, "id", "")) for function in calls}
    return bool(names & {"fit", "final_dice", "trained", "losses_of"})


@by_name
@pytest.mark.parametrize("body", ["raise NotImplementedError()", "return None"])
def test_an_error_in_one_gap_costs_no_points_of_another(path, body):
    for gap in [cell for cell in cells_of(path) if kind(cell) == "solution"]:
        names, lost = {"__name__": "__main__"}, []
        for cell in cells_of(path):
            if kind(cell) == "solution" and grade_id(cell) == grade_id(gap):
                cell.source = with_body(cell.source, body)
            try:
                if kind(cell) in ("solution", "test") or defines(cell):
                    run_cell(cell, names)
            except Exception:
                if kind(cell) == "test":
                    lost.append(grade_id(cell))
        assert lost == [f"{grade_id(gap)}-tests"]


def defines(cell):
    """Whether a cell that is not the student's has something that others need."""
    return (
        cell.cell_type == "code"
        and kind(cell) == "plain"
        and bool(re.search(r"^(import|from|def|class) ", cell.source, re.M))
    )


ANSWER = re.compile(r"^# (\w+) ([\w-]+): (.+)\n((?:(?!# ).*\n)+)", re.MULTILINE)
WRONG_ANSWERS = ANSWER.findall((Path(__file__).parent / "wrong_answers.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("stem", "gap", "message", "body"), WRONG_ANSWERS)
def test_a_wrong_answer_loses_its_points_and_is_told_why(stem, gap, message, body):
    names, name = {"__name__": "__main__"}, f"e{stem[0]}-{gap}"
    for cell in cells_of(SOURCE / f"{stem}.ipynb"):
        if kind(cell) == "solution" and grade_id(cell) == name:
            cell.source = with_body(cell.source, body)
        if kind(cell) == "test" and grade_id(cell) == f"{name}-tests":
            with pytest.raises(AssertionError, match=message):
                run_cell(cell, names)
            return
        if kind(cell) == "solution" or defines(cell):
            run_cell(cell, names)
    pytest.fail(f"{stem} has no test of {name}")


def test_every_gap_has_wrong_answers_to_be_told_from():
    gaps = {
        (path.stem, grade_id(cell)[3:]) for path in EXERCISES for cell in cells_of(path) if kind(cell) == "solution"
    }
    assert gaps == {(stem, gap) for stem, gap, *_ in WRONG_ANSWERS} and len(WRONG_ANSWERS) > 120


@by_name
def test_it_says_goal_time_points_what_to_read_and_gives_a_hint_for_each_gap(path):
    cells = cells_of(path)
    title, prose = cells[0].source, "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    points = stated_points(title)
    assert title.startswith(f"# Exercise {path.stem[0]} · ") and "**Goal:**" in title and "**Read first:**" in title
    assert 20 <= int(re.search(r"\*\*Time:\*\* (\d+) minutes", title)[1]) <= 40
    assert points == real_points(cells)
    n_gaps = sum(kind(cell) == "solution" for cell in cells)
    assert prose.count("**Hint**") + prose.count("**Hint:**") == n_gaps
    assert prose.count("**Expected") >= n_gaps - 1
    assert re.search(r"eq\. \d|Table I", title) and cells[-1].source.startswith("## Can you say it now?")
    predictions = [i for i, cell in enumerate(cells) if "prediction" in cell.metadata.get("tags", [])]
    assert predictions and all("**Your prediction**" in cells[i].source for i in predictions)


@by_name
def test_a_hint_and_what_to_read_first_hold_no_answer(path):
    cells = cells_of(path)
    first = re.search(r"\*\*Read first:\*\* .*?\n\n", cells[0].source, re.DOTALL)[0]
    assert "notebook" not in first  # the course's notebooks show the code
    called = set()
    for cell in cells:
        for region in re.findall(r"### BEGIN SOLUTION\n(.*?)### END", cell.source, re.DOTALL):
            called |= set(re.findall(r"\b(\w+)\(", region))
    hints = [hint for cell in cells for hint in re.findall(r"\*\*Hint.*?(?:\n\n|\Z)", cell.source, re.DOTALL)]
    named = {word for hint in hints for code in re.findall(r"`([^`]+)`", hint) for word in re.findall(r"\w+", code)}
    assert called & named == set()


def stated_points(title):
    return tuple(map(int, re.search(r"\*\*Points:\*\* (\d+) \((\d+) by tests, (\d+) by", title).groups()))


def real_points(cells):
    by_tests, by_teacher = (
        sum(cell.metadata.nbgrader.points for cell in cells if kind(cell) == of) for of in ("test", "answer")
    )
    return by_tests + by_teacher, by_tests, by_teacher


def test_the_readme_lists_the_exercises_with_their_time_and_points():
    rows = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.ipynb\) .*\| (\d+) \| (\d+) \| (\d+) \|", (SOURCE / "README.md").read_text(), re.M
    )
    listed = {stem: tuple(map(int, numbers)) for stem, _, *numbers in rows}
    found = {}
    for path in EXERCISES:
        cells = cells_of(path)
        minutes = int(re.search(r"\*\*Time:\*\* (\d+)", cells[0].source)[1])
        found[path.stem] = (minutes, *real_points(cells)[1:])
    assert listed == found
    total = re.search(r"^\| all .*\| (\d+) \| (\d+) \| (\d+) \|", (SOURCE / "README.md").read_text(), re.M).groups()
    assert tuple(map(int, total)) == tuple(map(sum, zip(*found.values(), strict=True)))


@by_name
def test_it_is_committed_executed_with_solutions_and_its_pictures_have_alternative_text(path):
    cells = [cell for cell in cells_of(path) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    for output in outputs:
        for picture in set(output.get("data", {})) & {"image/png", "image/jpeg"}:
            assert len(output.metadata[picture]["alt"]) > 40
    assert machine_paths(nbformat.read(path, as_version=4)) == []
