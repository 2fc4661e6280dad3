"""What can go wrong in a measurement: the errors that both packages share, and those of measuring alone."""

from mixlora.common.errors import BusyError, CheckpointError, ConfigError, DataError, RunError, ToolError, WriteError

__all__ = [
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InterferenceError",
    "MeasurementError",
    "RunError",
    "ScopeError",
    "WriteError",
]

InterferenceError = ToolError
"""The parent of every error that this package raises on purpose."""


class ScopeError(InterferenceError):
    """A layer, module, side, task or block that is not there."""


class MeasurementError(InterferenceError):
    """The measurement itself failed: a loss or gradient that is not finite, or is zero throughout."""
