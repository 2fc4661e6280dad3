"""Pictures: their features under weights that do not train, computed once for each batch that is read again.

Not here: batches (`held_out`), and pictures that are trained on, whose batches are seen once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from interference.gradients.losses import example_losses
from interference.gradients.state import activate, as_found, own_randomness
from interference.gradients.trained import trained_parameters
from interference.measurement.units import Batch
from mixlora.tuner.model import base_model_of

_UNREAD = ("last_hidden_state", "hidden_states", "attentions")
"""What image encoders return beside the features that the language model reads."""


class Features:
    """Features of pictures, kept by the number of their batch.

    Args:
        model: whose `get_image_features` computes them.
        adapter: the adapter that will train.
        batch: one example with a picture; None if no example has one.
        budget: bytes that may be kept.
    """

    def __init__(self, model: nn.Module, adapter: str, batch: Batch | None, budget: int) -> None:
        encoder = None if batch is None else _encoder(model)
        self._encoder = encoder if encoder is not None and _is_frozen(model, adapter, encoder, batch) else None
        self._kept: dict[int, Any] = {}
        self._left = budget

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Inside, one forward over batch `number`: its features are computed the first time, then taken from memory."""
        if self._encoder is None:
            yield
            return
        with _replaced(self._encoder, lambda own: lambda *args, **given: self._found(number, own, args, given)):
            yield

    def _found(self, number: int, own: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if number in self._kept:
            return self._kept[number]
        found = own(*args, **given)
        if not isinstance(found, ModelOutput):
            return found
        found = type(found)(**{name: value for name, value in found.items() if name not in _UNREAD})
        size = sum(tensor.nbytes for tensor in _tensors(found))
        if size <= self._left:
            self._left -= size
            self._kept[number] = found
        return found


def _encoder(model: nn.Module) -> Any:
    """The module whose forward asks for features of pictures; None if there is none, or several."""
    found = [module for module in base_model_of(model).modules() if hasattr(module, "get_image_features")]
    inner = [each for each in found if not any(other is not each and other in found for other in each.modules())]
    return inner[0] if len(inner) == 1 else None


def _is_frozen(model: nn.Module, adapter: str, encoder: Any, batch: Any) -> bool:
    """Whether the features of a batch's pictures depend on nothing that a training with the adapter changes."""
    if any(isinstance(module, nn.modules.batchnorm._NormBase) for module in encoder.modules()):
        return False  # steps would change its running means
    seen: list[Tensor] = []

    def watched(own: Any) -> Any:
        def call(*args: Any, **given: Any) -> Any:
            found = own(*args, **given)
            seen.extend(_tensors(found))
            return found

        return call

    with as_found(model), own_randomness(0), torch.enable_grad(), _replaced(encoder, watched):
        activate(model, adapter)
        model.eval()
        trained = trained_parameters(model, adapter)
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        example_losses(model, batch)
    return bool(seen) and not any(tensor.requires_grad for tensor in seen)


@contextmanager
def _replaced(encoder: Any, made: Any) -> Iterator[None]:
    """Inside, the encoder's `get_image_features` is another one, made of its own."""
    encoder.get_image_features = made(encoder.get_image_features)
    try:
        yield
    finally:
        del encoder.get_image_features


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor within what an encoder returns."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, (list, tuple)) else []
