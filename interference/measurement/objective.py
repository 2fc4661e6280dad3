"""Objective: which loss of an example is measured, and how a run names it.

The mean cross-entropy over supervised tokens is measured in batches. A loss of the caller's, or another one that the
model's own forward computes, is measured one example per backward pass.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from interference.errors import ConfigError, MeasurementError
from interference.gradients.autograd import Loss, loss_of, model_loss
from interference.gradients.examples import inputs_of, single
from interference.gradients.losses import example_losses
from interference.gradients.state import activate, as_found, own_randomness
from interference.measurement.units import Batch, Workload, one_by_one
from interference.run.remarks import PLAIN_LOSS
from mixlora import routed
from mixlora.common.errors import type_of
from mixlora.common.labels import IGNORED
from mixlora.tuner.model import base_model_of

EXACT = 1e-4
"""Relative difference below which two losses of an example are the same: rounding makes less, any other term more."""


@dataclass(frozen=True)
class Objective:
    """Which loss is measured.

    Attributes:
        loss: of a batch of one example; None for the mean cross-entropy over supervised tokens.
        words: what a run records of it.
    """

    loss: Loss | None = None
    words: str = PLAIN_LOSS


PLAIN = Objective()


def given(loss: Loss) -> Objective:
    """The objective of a caller's own loss.

    Raises:
        ConfigError: if it cannot be called.
    """
    if not callable(loss):
        raise ConfigError(f"loss is {type_of(loss)}, but must be a function of (model, batch of one example)")
    return Objective(loss, f"{name_of(loss)}, given by the caller, one example per backward pass")


def of_work(model: nn.Module, adapter: str, work: Workload, loss: Loss | None = None) -> tuple[Objective, Workload]:
    """The objective of a workload, and the workload, whose first part has been looked at.

    Args:
        model: its own loss counts where the caller gives none.
        adapter: the probed adapter.
        work: what will be measured.
        loss: the caller's.
    """
    if loss is not None:
        return given(loss), replace(work, parts=map(one_by_one, work.parts))
    batch, work = first_batch(work)
    found = PLAIN if batch is None else of_model(model, adapter, batch)
    return found, work if found.loss is None else replace(work, parts=map(one_by_one, work.parts))


def first_batch(work: Workload) -> tuple[Batch | None, Workload]:
    """The first batch of some work, of one example where it can be made again, and the work with this batch in it."""
    parts = iter(work.parts)
    first = next(parts, None)
    if first is None:
        return None, replace(work, parts=())
    batch = next((batch for batch, _ in one_by_one(first).batches), None)
    return batch, replace(work, parts=chain([first], parts))


def of_model(model: nn.Module, adapter: str, batch: Batch) -> Objective:
    """The objective of a model by itself: plain, unless its own forward computes another loss.

    Its `loss_function` tells, and so does the loss of one example: terms may be added to it elsewhere, as the balance
    of a mixture's experts is.
    """
    base = base_model_of(model)
    if "labels" not in inspect.signature(base.forward).parameters:
        return PLAIN
    if function := own_function(model):
        return Objective(model_loss, f"the model's own loss ({function}), one example per backward pass")
    if agrees(model, adapter, batch, None):
        return PLAIN
    name = type(base).__name__
    return Objective(model_loss, f"the model's own loss (that of {name}.forward), one example per backward pass")


def own_function(model: nn.Module) -> str | None:
    """The name of the model's loss function, where that is not the one of causal language models."""
    function = getattr(base_model_of(model), "loss_function", None)
    return None if function is None or function is ForCausalLMLoss else name_of(function)


def agrees(model: nn.Module, adapter: str, batch: Batch, loss: Loss | None) -> bool:
    """Whether a loss of one example of a batch is its mean cross-entropy; True where no example has a supervised token.

    Args:
        model: its state is restored.
        adapter: the probed adapter.
        batch: collated examples.
        loss: None for the model's own.
    """
    supervised = (batch["labels"][:, 1:] != IGNORED).any(dim=1)
    if not bool(supervised.any()):
        return True
    try:
        example = single(batch, int(supervised.nonzero()[0]))
    except MeasurementError:  # its pictures cannot be told apart
        if loss is not None:
            raise
        example = dict(batch)
    with as_found(model), own_randomness(0), without_graph(model):
        activate(model, adapter)
        model.eval()
        found, plain = _own(model, example) if loss is None else _both(model, example, loss)
    return found is None or bool(torch.isclose(found, plain.to(found.device), rtol=EXACT, atol=1e-6, equal_nan=True))


@contextmanager
def without_graph(model: nn.Module) -> Iterator[None]:
    """Inside, forwards keep no graph, unless that would change the weights.

    On a processor, bitsandbytes packs 4-bit weights for inference, in bfloat16, at the first input that needs no
    gradient. The measurement that follows would have their precision.
    """
    base: Any = base_model_of(model)
    if not getattr(base, "is_loaded_in_4bit", False) or next(model.parameters()).device.type != "cpu":
        with torch.no_grad():
            yield
        return
    handle = base.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    try:
        with torch.enable_grad():
            yield
    finally:
        handle.remove()


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called."""
    if isinstance(function, partial):
        return name_of(function.func)
    return str(getattr(function, "__qualname__", type(function).__name__))


def _own(model: nn.Module, example: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """The loss that the model's forward returns, if any, and the mean cross-entropy of the same logits.

    The batch is of one example, or of several that cannot be taken apart.
    """
    with routed(model, tasks=example.get("tasks"), alone=len(example["labels"]) == 1):
        output = model(**{"use_cache": False, "return_dict": True, **inputs_of(example)})
    loss, logits = getattr(output, "loss", None), getattr(output, "logits", None)
    if loss is None:
        return None, torch.zeros(())
    if not isinstance(logits, Tensor) or logits.shape[:2] != example["labels"].shape:
        return loss.double(), example_losses(model, example)[0][0].double()
    targets = example["labels"][:, 1:].flatten().to(logits.device)
    return loss.double(), F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED).double()


def _both(model: nn.Module, example: dict[str, Any], loss: Loss) -> tuple[Tensor, Tensor]:
    with own_randomness(0):
        plain = example_losses(model, example)[0][0].double()
    with own_randomness(0):
        return loss_of(model, example, loss).double(), plain
