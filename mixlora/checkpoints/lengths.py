"""How long texts may be: by the positions that a base has, and by what it was made for."""

from typing import Any

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
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def longest_text(section: BaseSection, processor: Any) -> int | None:
    """How many tokens the base was made for, by its configuration and its tokenizer; None where neither says so."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return longest_of(own_config(section).get_text_config(), tokenizer.model_max_length)


def longest_of(text: Any, own: int) -> int | None:
    """The same of a text model's configuration and what its tokenizer says."""
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    factor, found = dict(scaling).get("factor"), getattr(text, "max_position_embeddings", None)
    times = max(factor, 1) if isinstance(factor, int | float) else 1
    return max(int(found * times) if isinstance(found, int) else 0, own if own < _UNKNOWN else 0) or None
