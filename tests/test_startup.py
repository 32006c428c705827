"""What importing the package does to the process."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_is_as_it_was_and_has_nothing_to_do_with_what_was_imported(collecting):
    code = f"import gc; {'' if collecting else 'gc.disable();'} import alutils; print(gc.isenabled(), gc.collect())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{collecting} 0\n"
