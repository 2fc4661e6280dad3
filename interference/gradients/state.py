"""The state of a model that a measurement changes, and how it is restored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, set_adapter
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


def activate(model: nn.Module, adapter: str) -> None:
    """Make `adapter` the only active one, unless it already is."""
    if any(layer.active_adapters != [adapter] for layer in _adapted(model)):
        set_adapter(model, adapter)


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Restore training modes, requires_grad and active adapters on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    active = [(layer, layer._active_adapter) for layer in _adapted(model)]
    try:
        yield
    finally:
        for layer, names in active:
            layer._active_adapter = names
        for module, training in modes:
            module.training = training
        for parameter, needed in required:
            parameter.requires_grad_(needed)


def _adapted(model: nn.Module) -> list[Any]:
    """Modules that choose among adapters: tuner layers, and wrappers of modules that are saved whole."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
