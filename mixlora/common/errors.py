"""The errors of both commands: mistakes in the input, and work that failed. Messages say what, where and the remedy."""

import errno
import re
import traceback
import unicodedata
from types import TracebackType

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""A disk without room, a user's quota used up, a file larger than allowed."""
_TRACEBACK = "(%tb shows the traceback, %debug opens the debugger there)"
_STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def plain(text: object) -> str:
    """The text with control characters and line breaks replaced, so that a name cannot control the terminal."""
    return "".join(c if unicodedata.category(c) not in _STEERING else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def type_of(value: object) -> str:
    """The type of a value with its article, as "an int"."""
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeio" else f"a {name}"


class ToolError(Exception):
    """The root: a mistake in the input, described in one sentence.

    Attributes:
        exit_code: the command's exit code: 2 for a mistake in the input, 1 if the work failed.
        shared: whether every process of a job raises it; only the first one then prints it.
        lines: whether the message is a list, a line for each problem, whose line breaks are printed.
    """

    exit_code = 2
    shared = False
    lines = False
    _told: TracebackType | None = None

    def _render_traceback_(self) -> list[str]:
        """What IPython shows, line by line: the sentence, and the traceback where it is asked for again (`%tb`)."""
        if self._told is not None and self._told is self.__traceback__:
            return [plain(line) for line in "".join(traceback.format_exception(self)).splitlines()]
        self._told = self.__traceback__
        shown = [plain(line) for line in str(self).split("\n")] if self.lines else [plain(self)]
        return [f"{type(self).__name__}: {shown[0]}", *shown[1:], _TRACEBACK]


MixLoraError = ToolError
"""The public name of the root in `mixlora`; `interference.errors.InterferenceError` is the same class."""


class ConfigError(ToolError, ValueError):
    """A key, an option or its value that is not allowed."""


class DataError(ToolError):
    """A data file, a record of it or an image of it cannot be used."""


class CheckpointError(ToolError):
    """A checkpoint or an adapter cannot be read, converted, loaded, or written."""


class RunError(ToolError):
    """A directory of results cannot be read or written."""


class BusyError(RunError):
    """Another process works on the same directory."""


class WriteError(RunError):
    """Results cannot be written because the disk is full or gone. The input is right."""

    exit_code = 1


class ResourceError(RunError):
    """The system gives the process too little: open files, memory. The input is right."""

    exit_code = 1


class EndedError(RunError):
    """Another process of the same job ended, so this one cannot continue. What is done is kept."""

    exit_code = 1


class Stopped(BaseException):
    """The process was asked to stop. Not an Exception, so that code that takes any error for bad input lets it pass.

    Attributes:
        exit_code: the command's exit code.
    """

    exit_code = 1


class TrainingError(ToolError):
    """A training or evaluation failed: memory ran out, a file cannot be written, the loss is not finite."""

    exit_code = 1


class AdapterError(ToolError, ValueError):
    """A module cannot be adapted, or an adapter does not fit its base."""


class MergeError(ToolError, ValueError):
    """An adapter cannot be merged, because its delta depends on the input."""


class RoutingError(ToolError, ValueError):
    """The instances of a forward cannot be routed: an unknown task, a selection of another batch."""


def reason(error: BaseException) -> str:
    """What went wrong: the system's words, such as "Permission denied", or else the error's own."""
    return getattr(error, "strerror", None) or str(error)


def is_full(number: int | None) -> bool:
    """Whether an errno says that there is no room to write."""
    return number in _FULL


def unwritable(
    failed: str,
    error: BaseException,
    kind: type[ToolError] = RunError,
    option: str = "--out",
    again: str = "the same command continues",
) -> ToolError:
    """The error for a path that cannot be written: a `WriteError` if its disk is full, else the user's mistake.

    Args:
        failed: what cannot be done, as "x/y cannot be written".
        error: the system's, or that of a library that has its number in its words.
        kind: of the error, if the disk is not full.
        option: what names another path.
        again: what happens once there is room.
    """
    found = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    if is_full(number):
        return WriteError(f"{failed}: {reason(error)}; make room there, and {again}")
    return kind(f"{failed}: {reason(error)}; choose another {option}")
