"""A record's values: where the record stands, what counts as missing, and what is taken for text."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mixlora.common.errors import DataError, type_of
from mixlora.common.files import parse_json


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        values: by key.
        source: its place, for messages.
        position: its number in its file, which is its id if it has none.
        ignored: keys that are not read in its messages.
    """

    values: Mapping[str, Any]
    source: str
    position: int
    ignored: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise self.error(f"{type_of(self.values)} where a record is expected; write an object.")

    def at(self, position: int) -> "Record":
        """The record with another position."""
        return replace(self, position=position)

    @property
    def keys(self) -> str:
        """The names of what it has, as many as a message takes."""
        return f"{', '.join(map(str, self.values)) or 'none':.300}"

    def error(self, text: str) -> DataError:
        """What is wrong with this record."""
        return DataError(f"{self.source}: {text}")


def is_missing(value: Any) -> bool:
    """Whether a value counts as missing: null, or not a number, as tables have it in empty cells."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    """A value for a message."""
    return f"{value!r:.60}"


def as_text(value: Any, what: str, record: Record) -> str:
    """The value as text; a number is written as JSON writes it.

    Raises:
        DataError: it is something else, or text that cannot be written to a file again.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        raise record.error(f"the text of {what} is {shown(value)}, {type_of(value)}; write it as a string.")
    if half := half_character(value):
        raise record.error(f"the text of {what} holds {half!a}, half a character; remove it.")
    return value


def half_character(text: str) -> str:
    """The first half of a character in a text, which no file in UTF-8 can hold; nothing where there is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""


def of_json(value: Any, what: str, record: Record) -> Any:
    """A value that may be written as JSON in a string.

    Raises:
        DataError: the string is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise record.error(f"{what} is {shown(value)}, which is not valid JSON ({error}).") from None
