"""Patterns by which an adapter's configuration names modules: they are tried on a base before PEFT does it for long."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from mixlora.common.errors import ToolError
from mixlora.common.limits import limited

_OF_MODULES = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
_OF_TARGETS = ("rank_pattern", "alpha_pattern")


def check_patterns(config: PeftConfig, base: nn.Module, refusal: Callable[[str], ToolError]) -> None:
    """Check that an adapter's patterns can be matched against the modules of a base.

    What else may be wrong with them, PEFT says.

    Args:
        config: the adapter's.
        base: the model that it is for.
        refusal: the error, given what is wrong: which keys have patterns that take how long.

    Raises:
        ToolError: `refusal`'s.
    """
    names = [name for name, _ in base.named_modules()]
    targets = limited(lambda: _targets(config, names), lambda what: refusal(_asked(config, _OF_MODULES, what)))
    patterns = {key: list(getattr(config, key, None) or {}) for key in _OF_TARGETS}
    for key, own in patterns.items():
        if len(own) > len(names):
            raise refusal(f"{key} has {len(own)} patterns for a base of {len(names)} modules")
    limited(
        lambda: _match(patterns.values(), targets),
        lambda what: refusal(_asked(config, _OF_TARGETS, what)),
    )


def _targets(config: PeftConfig, names: Sequence[str]) -> list[str]:
    with suppress(Exception):  # no pattern, or a configuration that has no such keys
        return [name for name in names if check_target_module_exists(config, name)]
    return []


def _match(patterns: Iterable[Sequence[str]], names: Sequence[str]) -> None:
    """Match as PEFT does: of each key's patterns the first that fits."""
    for own in patterns:
        with suppress(re.error, TypeError):
            compiled = [re.compile(rf"(.*\.)?({pattern})$") for pattern in own]
            for name in names:
                next((pattern for pattern in compiled if pattern.match(name)), None)


def _asked(config: PeftConfig, keys: Sequence[str], what: str) -> str:
    given = ", ".join(_given(config, keys))
    return f"matching {given} against the base's modules {what}"


def _given(config: PeftConfig, keys: Sequence[str]) -> Iterator[str]:
    """The keys that hold patterns, with these."""
    for key in keys:
        value = getattr(config, key, None)
        if isinstance(value, str):
            yield f"{key} {value!r:.80}"
        elif value:
            yield f"{key} ({len(value)})"
