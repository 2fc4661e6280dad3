"""What holds for every fuzz test: one thread; a long run says what repeats it."""

import torch

from tests.support.mutations import SEED, TIMES

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    if SEED is not None:
        terminalreporter.write_line(f"FUZZ_TIMES={TIMES} FUZZ_SEED={SEED} repeats these examples")
