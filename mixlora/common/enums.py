"""Enums: reads an option that is given by name, in Python or in a file, as a member of its enum."""

from enum import StrEnum
from typing import TypeVar

from mixlora.common.errors import ConfigError, ToolError

MUST_BE = "{name} is {value!r}, but must be one of {quoted}"
NONE_OF = "{name} {value!r} is not one of {members}"

Option = TypeVar("Option", bound=StrEnum)


def member(
    kind: type[Option], value: str, name: str, error: type[ToolError] = ConfigError, message: str = MUST_BE
) -> Option:
    """The member of `kind` that `value` names.

    Args:
        kind: the enum.
        value: a member or its text.
        name: what the message calls the option.
        error: the class to raise.
        message: a format string over `name`, `value`, `members` and `quoted`, the members in quotes.

    Raises:
        ToolError: of the class `error`, if there is none; the message lists the members.
    """
    try:
        return kind(value)
    except ValueError:
        members, quoted = ", ".join(kind), ", ".join(repr(one.value) for one in kind)
        raise error(message.format(name=name, value=value, members=members, quoted=quoted)) from None
