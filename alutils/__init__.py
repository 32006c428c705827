"""Active learning for melanoma segmentation (Martin et al., CBMI 2024): the helpers behind the notebooks.

The names that :mod:`alutils` offers are listed in ``__init__.pyi``. Each is imported when it is first used, so that a
process that needs only settings does not load torch.
"""

from importlib import import_module
from importlib.util import find_spec

import lazy_loader

_offered, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A name of the stub, or a module, as in ``alutils.augment.normalize``."""
    if name not in __all__ and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    return _offered(name)
