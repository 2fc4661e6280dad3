"""Conditional Mixture-of-LoRA (Shen et al., ACL 2024) as a PEFT method, and the data it is trained and measured on.

Using a name of this package registers the method "MIXLORA" with PEFT: `from mixlora import MixLoraConfig`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixlora.common.aliases import Aliases

if TYPE_CHECKING:
    from mixlora.checkpoints import conversion as official
    from mixlora.tuner.config import MixLoraConfig
    from mixlora.tuner.layer import MixLoraLayer
    from mixlora.tuner.model import MixLoraModel, routed
    from mixlora.tuner.routing import Selection

__all__ = ["MixLoraConfig", "MixLoraLayer", "MixLoraModel", "Selection", "official", "routed"]

_HOMES = {
    "MixLoraConfig": "config",
    "MixLoraLayer": "layer",
    "MixLoraModel": "model",
    "Selection": "routing",
    "routed": "model",
}
_MODULES = {"official": "checkpoints.conversion"}
"""Public modules that live in a wing: `mixlora.official` is `mixlora.checkpoints.conversion`."""

sys.meta_path.append(Aliases(__name__, _MODULES))


def __getattr__(name: str) -> Any:
    """Load a public name on first use: importing the package imports neither torch nor PEFT."""
    if name in _MODULES:
        return import_module(f"{__name__}.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("mixlora.tuner.model")  # registers the method
    return getattr(import_module(f"mixlora.tuner.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__
