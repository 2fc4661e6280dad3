"""What can go wrong in a measurement; every message names the value, the place and the remedy."""

import errno


class InterferenceError(Exception):
    """A mistake in the input, told in one sentence. The command line exits with 2 on it."""


class ConfigError(InterferenceError):
    """A configuration key or value that cannot be used."""


class CheckpointError(InterferenceError):
    """A base model or an adapter that cannot be loaded or does not fit."""


class ScopeError(InterferenceError):
    """A layer, module, side, task or block that is not there."""


class RunError(InterferenceError):
    """A run directory that cannot be read or written."""


class WriteError(RunError):
    """What was measured cannot be written: no room is left, or the disk is gone.

    It is no mistake in the input, and the command line exits with 1 on it.
    """


def unwritable(message: str, error: OSError) -> RunError:
    """The error of a place that cannot be written: the disk's fault where it is full, else that of who named it."""
    return (WriteError if error.errno in (errno.ENOSPC, errno.EDQUOT) else RunError)(message)


class MeasurementError(InterferenceError):
    """The measurement itself failed: a loss or gradient that is not finite, or is zero throughout."""


def amount(count: float) -> str:
    """A number of bytes for a reader."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
