"""Single modules of alutils without the package, whose import of torch would cost each job of the batch seconds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_alone(name: str) -> ModuleType:
    """The module ``alutils.<name>``, one that imports nothing else of alutils.

    Args:
        name: such as "config" or "files".
    """
    spec = importlib.util.spec_from_file_location(f"alutils_{name}_alone", ROOT / "alutils" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
