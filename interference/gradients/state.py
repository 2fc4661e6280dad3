"""The state that a measurement changes, of a model and of random generators, and how it is restored."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
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


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Inside, random numbers start from a seed; afterwards the generators are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.callback(random.setstate, python)
        stack.callback(np.random.set_state, numpy)
        kind = torch.accelerator.current_accelerator()
        devices = [] if kind is None else range(torch.accelerator.device_count())
        stack.enter_context(torch.random.fork_rng(devices, device_type="cuda" if kind is None else kind.type))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Inside, the model's forward is its own, without the autocast that accelerate put around it."""
    if "_original_forward" not in model.__dict__:
        yield
        return
    wrapped = model.forward
    model.forward = model.__dict__["_original_forward"]
    try:
        yield
    finally:
        model.forward = wrapped


def _adapted(model: nn.Module) -> list[Any]:
    """Modules that choose among adapters: tuner layers, and wrappers of modules that are saved whole."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
