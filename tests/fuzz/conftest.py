"""What holds for every fuzz test: no hub, one thread; a long run says what repeats it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no path must fail at once

import torch

from tests.support.mutations import SEED, TIMES

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    if SEED is not None:
        terminalreporter.write_line(f"FUZZ_TIMES={TIMES} FUZZ_SEED={SEED} repeats these examples")
