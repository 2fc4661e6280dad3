"""Run `!interference ...` and `!mixlora ...` of a notebook in the notebook's own process, which has torch already.

A tutorial imports this in a hidden cell. Other commands go to the shell as ever.
"""

import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from unittest.mock import patch

import peft  # noqa: F401  what it says while it is loaded belongs to the hidden cell
import torch
from IPython import get_ipython

from interference.cli import main as interference
from mixlora.cli import main as mixlora

COMMANDS: dict[str, Callable[[], None]] = {"interference": interference, "mixlora": mixlora}

torch.set_num_threads(1)  # the same sums, in the same order, on every machine
_notebook = get_ipython()
_outer = _notebook.system


def system(line: str) -> None:
    """Run a command line; one of our own that fails ends the notebook."""
    words = shlex.split(_notebook.var_expand(line, depth=1), comments=True)
    if not words or words[0] not in COMMANDS:
        _outer(line)
        return
    code: object = 0
    with patch.object(sys, "argv", words), redirect_stderr(sys.stdout):
        try:
            COMMANDS[words[0]]()
        except SystemExit as ended:
            code = ended.code or 0
    if code:
        raise RuntimeError(f"{line} ended with {code}")


_notebook.system = system
