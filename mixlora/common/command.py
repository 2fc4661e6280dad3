"""The command line that `mixlora` and `interference` have in common: how one starts and ends, and options of both.

Nothing heavy is imported here, nor the library that parses the options: that is for the files that declare them.
"""

import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from mixlora.common import system
from mixlora.common.errors import ConfigError, EndedError, Stopped, ToolError, plain

SETTINGS: Mapping[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""What both say to the library that parses their options."""
_ANSWER = 5
"""Seconds in which a launcher answers."""
_ASK_NOTHING = {"--help", "-h", "--version"}
"""Options that need no libraries."""


def run(app: Callable[[], object], alone: Collection[str] = ()) -> None:
    """Run a command: errors become one sentence on stderr and an exit code; with --debug they are raised.

    Args:
        app: reads the arguments and does what they ask for.
        alone: subcommands that write and share no work, which a launcher of several processes must not start.
    """
    debug, interruption = "--debug" in sys.argv, _Interruption()
    try:
        interruption.watch()
        _quieten()
        system.open_streams()
        with system.written():
            if not _ASK_NOTHING & {*sys.argv[1:]}:
                if system.processes()["WORLD_SIZE"] > 1:
                    signal.signal(signal.SIGTERM, _stop)
                _refuse_several(alone)
                system.raise_limits()
            app()
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is not an Exception
        if debug:
            raise
        sys.exit(_interrupted() if interruption.came or isinstance(error, KeyboardInterrupt) else _told(error))
    finally:
        _leave_signals()
        interruption.leave()


class _Interruption:
    """Whether Ctrl-C came: a library that it interrupts may turn it into an error of its own."""

    def __init__(self) -> None:
        self.came = False

    def watch(self) -> None:
        """Notice it from now on, unless somebody else does."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def leave(self) -> None:
        """Stop noticing it."""
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.default_int_handler(number, frame)


def _quieten() -> None:
    """Leave out what libraries say to each other's developers."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it; its kernels are not our subject
    warnings.filterwarnings("ignore", category=FutureWarning)  # between PEFT and transformers
    warnings.filterwarnings("ignore", "(?s).*joblib will operate in serial mode")  # where shared memory is full


def _interrupted() -> int:
    """Say that Ctrl-C ended the command; the exit code that shells give it."""
    _complain("run the same command again", word="interrupted")
    return 128 + signal.SIGINT


def _stop(*_: object) -> None:
    """Answer SIGTERM, which launchers send to the others where one process ended."""
    _leave_signals()  # a second one ends this process at once
    raise Stopped("SIGTERM arrived, perhaps because another process ended; the same command continues")


def _leave_signals() -> None:
    if signal.getsignal(signal.SIGTERM) is _stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _told(error: BaseException) -> int:
    """Tell an error in one sentence; the exit code."""
    if _are_several():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, where another process ends first
    if not _is_first(error):
        return getattr(error, "exit_code", 1)
    if isinstance(error, EndedError | Stopped):
        _complain(str(error), word="stopped")
        return error.exit_code
    known = error if isinstance(error, ToolError) else system.scarce(error)
    if known is None:
        hint = "run again with --debug (before the command) for the traceback"
        _complain(f"{type(error).__name__}: {error}; {hint}")
        return 1
    _complain(str(known), known.lines)
    return known.exit_code


def _refuse_several(alone: Collection[str]) -> None:
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if _are_several() and name in alone:
        refused = ConfigError(
            f"{name} runs in one process, but was started in {os.environ['WORLD_SIZE']} (WORLD_SIZE); start it "
            "without torchrun or accelerate"
        )
        refused.shared = True
        raise refused


def _are_several() -> bool:
    """Whether several processes work together; not where the environment is malformed, which is an error of its own."""
    try:
        return system.processes()["WORLD_SIZE"] > 1
    except ConfigError:
        return False


def _is_first(error: BaseException) -> bool:
    """Whether no other of several processes has told how they end, so that one sentence stands before the launcher's.

    What torchrun and accelerate share with their processes knows. Under another launcher each tells its own error, and
    the first one that of all.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and _are_several():
        with suppress(Exception):  # a launcher that no longer answers
            from datetime import timedelta

            from torch.distributed import TCPStore

            place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = TCPStore(place, port, is_master=False, timeout=timedelta(seconds=_ANSWER))
            return int(store.add(f"told/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1)) == 1
    return not getattr(error, "shared", False) or speaks()


def speaks() -> bool:
    """Whether this process, of several that work together, is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def call(*words: object) -> str:
    """A command as a shell reads it: words with spaces or signs of the shell's own are quoted."""
    return shlex.join(str(word) for word in words)


def next_steps(*steps: str, quiet: bool = False) -> None:
    """Say on standard error what to do after a command, one line per step; `quiet` says nothing.

    What the command printed is written first. Of several processes only the first one speaks.
    """
    if quiet or not speaks():
        return
    sys.stdout.flush()
    for word, step in zip(("next", *["  or"] * len(steps)), steps, strict=False):
        try:
            print(f"{word}: {plain(step)}", file=sys.stderr, flush=True)
        except OSError:  # nobody reads it
            system.silence(sys.stderr)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if that is wanted."""
    if wanted:
        from importlib.metadata import version

        print(version("task-interference"))
        sys.exit(0)


def among(*values: str) -> Callable[[str], list[str]]:
    """What completes an option or argument: those of the values that begin with what is typed."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


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


def _complain(message: str, lines: bool = False, word: str = "error") -> None:
    shown = "\n".join(map(plain, message.split("\n"))) if lines else plain(message)
    try:
        print(f"{word}: {shown}", file=sys.stderr, flush=True)
    except OSError:  # the exit code tells, too
        system.silence(sys.stderr)
