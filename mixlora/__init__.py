"""Conditional Mixture-of-LoRA (Shen et al., ACL 2024) as a PEFT method, and the data it is trained and measured on.

Using a name of this package registers the method "MIXLORA" with PEFT: `from mixlora import MixLoraConfig`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixlora.config import MixLoraConfig
    from mixlora.layer import MixLoraLayer
    from mixlora.model import MixLoraModel, routed
    from mixlora.routing import Selection

__all__ = ["MixLoraConfig", "MixLoraLayer", "MixLoraModel", "Selection", "routed"]

_HOMES = {
    "MixLoraConfig": "config",
    "MixLoraLayer": "layer",
    "MixLoraModel": "model",
    "Selection": "routing",
    "routed": "model",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for: neither torch nor PEFT is imported before."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    importlib.import_module("mixlora.model")  # registers the method
    return getattr(importlib.import_module(f"mixlora.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """What completion offers."""
    return __all__
