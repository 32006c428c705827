"""Faults injected on purpose: how many of each, and what came of them.

``make test`` injects a few of each kind; ``make test-faults`` injects all and writes ``results/faults.json``.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from alutils.runs.provenance import provenance

FULL = os.environ.get("ALUTILS_FAULTS") == "full"
RESULT = Path(__file__).resolve().parent.parent.parent / "results" / "faults.json"


@pytest.fixture
def times():
    """How often to inject a fault: ``times(short, full)``."""
    return lambda short, full: full if FULL else short


@pytest.fixture
def tally(record_property):
    """Count for the report: ``tally("SIGKILL of a run", 50)`` after so many faults were injected and survived.

    "Survived" is what the documentation promises: the same result as without the fault, or one clear error.
    """
    return lambda fault, survived: record_property("fault", (fault, survived))


def pytest_terminal_summary(terminalreporter):
    """One line per kind of fault; with all faults injected, the file for website/reliability.md as well."""
    survived, failed = defaultdict(int), 0
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            failed += outcome != "passed"
            for name, value in report.user_properties if report.when == "call" else ():
                if name == "fault":
                    survived[value[0]] += value[1]
    survived = {fault: n for fault, n in sorted(survived.items()) if n}
    if not survived:
        return
    terminalreporter.section("faults injected and survived")
    for fault, n in survived.items():
        terminalreporter.line(f"{n:6d}  {fault}")
    if FULL:
        content = {"machine": provenance(), "survived": survived, "failed_tests": failed}
        RESULT.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
