"""Active learning for melanoma segmentation (Martin et al., CBMI 2024): the helpers behind the notebooks.

The names that :mod:`alutils` offers are listed in ``__init__.pyi``. Each is imported when it is first used, so that a
process that needs only settings does not load torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
