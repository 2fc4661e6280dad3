"""What holds for every fuzz test: no hub, one thread."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no path must fail at once

import torch

torch.set_num_threads(1)
