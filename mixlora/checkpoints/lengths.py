"""How long texts may be: by the positions that a base has, and by what it was made for.

What a checkpoint's files give for a length counts only where it is a finite number above 0.
"""

import math
from collections.abc import Mapping
from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from mixlora.checkpoints.loading import own_config
from mixlora.common.sections import BaseSection

_UNKNOWN = 10**9
"""Of a tokenizer that knows no longest text, transformers says that it has 10^30 tokens."""


def positions(section: BaseSection) -> int | None:
    """How many tokens the base has positions for; None where they are computed, as rotary ones, for any number."""
    return positions_of(own_config(section).get_text_config())


def positions_of(text: Any) -> int | None:
    """The same of a text model's configuration."""
    if hasattr(text, "rope_parameters") or hasattr(text, "rope_theta"):
        return None
    return int(_number(getattr(text, "max_position_embeddings", None))) or None


def longest_text(section: BaseSection, processor: Any) -> int | None:
    """How many tokens the base was made for, by its configuration and its tokenizer; None where neither says so."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return longest_of(own_config(section).get_text_config(), tokenizer.model_max_length)


def without_no_number(tokenizer: Any) -> None:
    """Let a tokenizer know no longest text where its file gives no number, which it would compare with lengths."""
    if not _number(tokenizer.model_max_length):
        tokenizer.model_max_length = VERY_LARGE_INTEGER


def longest_of(text: Any, own: Any) -> int | None:
    """The same of a text model's configuration and what its tokenizer says."""
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    factor = _number(scaling.get("factor")) if isinstance(scaling, Mapping) else 0
    made = _number(getattr(text, "max_position_embeddings", None)) * max(factor, 1)
    said = _number(own)
    return int(max(made, said if said < _UNKNOWN else 0)) or None


def _number(value: Any) -> float:
    """The value, at most `_UNKNOWN`; 0 where it is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or value == math.inf:
        return 0
    return min(value, _UNKNOWN)
