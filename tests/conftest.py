"""One thread for each test process: pytest-xdist runs as many of them as there are cores."""

import torch

torch.set_num_threads(1)
