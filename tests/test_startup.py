"""What importing the package does to the process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(code):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "workflow")])}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def test_settings_names_and_the_batch_load_no_large_library():
    code = """
import importlib, sys
for name in ("alutils", "alutils.experiment", "alutils.system.files", "alutils.queries.registry", "batch", "run_notebook"):
    importlib.import_module(name)
    print(name, *{"torch", "pandas", "matplotlib"} & set(sys.modules))
"""
    assert run(code).splitlines() == [
        "alutils", "alutils.experiment", "alutils.system.files", "alutils.queries.registry", "batch", "run_notebook",
    ]  # fmt: skip


def test_the_garbage_collector_is_left_alone():
    assert run("import alutils, gc; alutils.fit; print(gc.isenabled(), gc.get_freeze_count())") == "True 0\n"
