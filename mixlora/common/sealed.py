"""Seals: a checksum of a JSON record, kept in the record itself. It reveals damage to any value or name.

Also checksums of whole files, which a sealed record names.

A seal is no protection against forgery: whoever changes a record may seal it again.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"
"""Its key."""
LENGTH = 32


def seal(record: Mapping[str, Any]) -> str:
    """The checksum of a record, whatever the order of its keys."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode()).hexdigest()[:LENGTH]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON has it, with its seal in place of any that it had."""
    whole = json.loads(json.dumps({key: value for key, value in record.items() if key != SEAL}))
    return {**whole, SEAL: seal(whole)}


def intact(record: Mapping[str, Any]) -> bool:
    """Whether a record carries a seal, and it is that of the rest."""
    return record.get(SEAL) == seal({key: value for key, value in record.items() if key != SEAL})


def checksum(data: bytes) -> str:
    """The checksum of a file's content."""
    return hashlib.blake2b(data).hexdigest()[:LENGTH]
