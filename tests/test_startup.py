"""What importing the package does to the process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_LIBRARIES = [
    "alutils", "alutils.experiment", "alutils.queries.registry", "alutils.system.checks", "alutils.system.cores",
    "alutils.system.files", "alutils.system.settings", "batch", "run_notebook",
]  # fmt: skip
LOAD = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, *{"torch", "pandas", "matplotlib"} & set(sys.modules), sep=" loads ")
"""


def run(code, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "workflow")])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_settings_names_files_and_the_batch_load_no_large_library():
    assert run(LOAD, *WITHOUT_LIBRARIES).splitlines() == WITHOUT_LIBRARIES


def test_the_garbage_collector_is_left_alone():
    assert run("import alutils, gc; alutils.fit; print(gc.isenabled(), gc.get_freeze_count())") == "True 0\n"


def test_a_module_is_found_without_an_import_of_its_own():
    assert run("import alutils; print(alutils.augment.normalize.__name__)") == "normalize\n"
