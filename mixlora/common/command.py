"""The command line that `mixlora` and `interference` have in common: how one starts and ends, and options of both.

Nothing heavy is imported here, nor the library that parses the options: that is for the files that declare them.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixlora.common.errors import ConfigError, ToolError, plain

SETTINGS: Mapping[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""What both say to the library that parses their options."""


def run(app: Callable[[], object]) -> None:
    """Run a command: errors become one sentence on stderr and an exit code; with --debug they are raised.

    Args:
        app: reads the arguments and does what they ask for.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it; its kernels are not our subject
    warnings.filterwarnings("ignore", category=FutureWarning)  # between PEFT and transformers
    debug = "--debug" in sys.argv
    try:
        app()
    except ToolError as error:
        if debug:
            raise
        if not error.shared or speaks():  # all raise it, and one tells it
            _complain(str(error), error.lines)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        hint = "run again with --debug (before the command) for the traceback"
        _complain(f"{type(error).__name__}: {error}; {hint}")
        sys.exit(1)


def speaks() -> bool:
    """Whether this process, of several that work together, is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def print_version(wanted: bool) -> None:
    """Print the version and exit, if that is wanted."""
    if wanted:
        from importlib.metadata import version

        print(version("task-interference"))
        sys.exit(0)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given: those that are neither None nor empty mappings."""
    return {key: value for key, value in values.items() if value not in (None, {})}


def tasks(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """The tasks of --task NAME=FILE as keys of a configuration.

    Raises:
        ConfigError: if one is not of that form, or a name is given twice.
    """
    found = [_task(text) for text in texts]
    if twice := [name for k, (name, _) in enumerate(found) if name in dict(found[:k])]:
        raise ConfigError(f"--task names {twice[0]!r} twice; give every task a name of its own")
    return dict(found)


def _task(text: str) -> tuple[str, dict[str, str]]:
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise ConfigError(f"--task {text!r} is not of the form NAME=FILE")
    return name, {"file": file}


def _complain(message: str, lines: bool = False) -> None:
    shown = "\n".join(map(plain, message.split("\n"))) if lines else plain(message)
    print(f"error: {shown}", file=sys.stderr, flush=True)
