"""What can be wrong with a user's input to `mixlora`; every message names the value, the place and the remedy."""


class MixLoraError(Exception):
    """A mistake in the input, told in one sentence. The command line exits with 2 on it."""


class DataError(MixLoraError):
    """A data file, a record of it or an image of it cannot be used."""
