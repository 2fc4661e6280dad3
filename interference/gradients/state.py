"""The state that a measurement changes, of a model, of a Trainer and of random generators, and how it is restored."""

import copy
import random
from collections import deque
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
    """Inside, random numbers start from a seed; afterwards the generators are as before.

    An accelerator that this process has not used yet stays unused: to ask for the state of its generators would start
    it, which takes hundreds of megabytes of a GPU for a model on the CPU.
    """
    python, numpy, kind = random.getstate(), np.random.get_state(), _started()
    with ExitStack() as stack:
        stack.callback(random.setstate, python)
        stack.callback(np.random.set_state, numpy)
        devices = () if kind is None else range(torch.accelerator.device_count())
        stack.enter_context(torch.random.fork_rng(devices, device_type=kind or "cuda"))
        random.seed(seed)
        np.random.seed(seed)
        if kind is None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the others when they start
        else:
            torch.manual_seed(seed)
        yield


def _started() -> str | None:
    """The kind of accelerator that this process has used; None if it has used none."""
    found = torch.accelerator.current_accelerator()
    if found is None or not getattr(torch.get_device_module(found), "is_initialized", lambda: True)():
        return None
    return found.type


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


@contextmanager
def set_aside(trainer: Any) -> Iterator[None]:
    """Inside, a Trainer keeps its books in copies; afterwards every attribute is the one it was."""
    kept = dict(vars(trainer))
    try:
        for name, value in kept.items():
            if isinstance(value, (dict, list, set, deque)) and _figures(value):
                setattr(trainer, name, copy.deepcopy(value))
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(kept)


def _figures(value: Any) -> bool:
    """Whether a value is numbers and words, however nested: books are, datasets and models are not."""
    if isinstance(value, dict):
        return all(map(_figures, value.values()))
    if isinstance(value, (list, set, deque, tuple)):
        return all(map(_figures, value))
    return value is None or isinstance(value, (bool, int, float, str))
