"""What can be wrong with a user's input to `mixlora`; every message names the value, the place and the remedy."""

import unicodedata

_STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def plain(text: object) -> str:
    """The text without control characters and breaks of lines, so that a name from a file cannot steer the terminal."""
    return "".join(c if unicodedata.category(c) not in _STEERING else "\N{REPLACEMENT CHARACTER}" for c in str(text))


class MixLoraError(Exception):
    """A mistake in the input, told in one sentence. The command line exits with 2 on it."""


class DataError(MixLoraError):
    """A data file, a record of it or an image of it cannot be used."""


class ConfigError(MixLoraError, ValueError):
    """An option of the method with a value that is not allowed."""


class AdapterError(MixLoraError, ValueError):
    """A module that cannot be adapted, or an adapter that does not fit its base."""


class MergeError(MixLoraError, ValueError):
    """Merging was asked for, which an input-dependent delta does not allow."""


class RoutingError(MixLoraError, ValueError):
    """A forward whose instances cannot be routed: an unknown task, a selection of another batch."""


class CheckpointError(MixLoraError):
    """A checkpoint, adapter or directory on disk cannot be read, converted, or put into a model."""


class TrainingError(MixLoraError):
    """A training or evaluation has failed: no memory is left, a file cannot be written, or the loss is no number.

    It is no mistake in the input, and the command line exits with 1 on it.
    """
