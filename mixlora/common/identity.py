"""Identities of jobs: nested values that say what a result depends on, and what differs between two of them."""

import re
from collections.abc import Mapping
from typing import Any

from mixlora.common.settings import leaves

_NAMED = 3
"""How many differences of two jobs a message names."""
_DIGEST = re.compile(r"[0-9a-f]{32}")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two jobs, for a message: at most three differences, then how many more.

    Args:
        there: identity of the job that was found.
        here: identity of the job that is asked for.

    Returns:
        "" if they are the same.
    """
    old, new = dict(leaves(there)), dict(leaves(here))
    other = [_difference(key, old.get(key), new.get(key)) for key in new | old if old.get(key) != new.get(key)]
    return ", ".join(other[:_NAMED] + [f"{len(other) - _NAMED} more"] * (len(other) > _NAMED))


def _difference(key: str, there: Any, here: Any) -> str:
    """One difference; a digest, 32 hexadecimal digits, says only that something has changed."""
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (there, here)):
        return f"{key:.200} has changed"
    return f"{key:.200} was {there!r:.200} and is now {here!r:.200}"
