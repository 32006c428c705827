"""What a kernel of the batch does before the first cell (run_notebook.py): import what a run needs, and freeze it.

Libraries stay to the end of the process. Python would look for garbage among them while they are imported and once more
when the process ends, which takes a second or two (benchmarks/startup.py). The kernel belongs to the batch alone, so
that nobody else's process is changed.
"""

import gc

gc.disable()
try:
    import alutils.lab.figures
    import alutils.lab.notebook
    import alutils.loop
finally:
    gc.freeze()
    gc.enable()
del alutils, gc
