"""Per-example gradients of any loss: one example per backward pass, without hooks.

The fast path (`probe`) knows one loss, the mean cross-entropy over supervised tokens. Every other is measured here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interference.errors import MeasurementError
from interference.gradients.examples import inputs_of, singles
from interference.gradients.targets import Target
from mixlora import MixLoraLayer, routed
from mixlora.common.errors import type_of
from mixlora.common.labels import IGNORED

Loss = Callable[[nn.Module, dict[str, Any]], Tensor]
"""A model and a batch of one example to its loss, a scalar."""


def model_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The loss that the model's own forward returns."""
    found: Tensor = model(**{"use_cache": False, **batch}).loss
    return found


def weights_of(targets: Sequence[Target]) -> dict[str, Tensor]:
    """The probed parameters: {block name: weight}."""
    return {tap.block.name: tap.weight for target in targets for tap in target.taps.values()}


def tokens_of(batch: Mapping[str, Any]) -> Tensor:
    """The number of supervised tokens of every row [batch]; the first token of a row is never predicted.

    Raises:
        MeasurementError: if a row has none.
    """
    tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    if not bool(tokens.all()):
        row = int((tokens == 0).nonzero()[0])
        raise MeasurementError(
            f"row {row} of the batch has no supervised token; every label is -100 or its first token"
        )
    return tokens


def loss_of(model: nn.Module, example: Mapping[str, Any], loss: Loss) -> Tensor:
    """The loss of a batch of one example.

    Raises:
        MeasurementError: if it is not a scalar.
    """
    with routed(model, tasks=example.get("tasks"), alone=True):
        found = loss(model, inputs_of(example))
    if not isinstance(found, Tensor) or found.numel() != 1:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{type_of(found)}"
        raise MeasurementError(f"the loss of an example is {what}, but must be a scalar tensor")
    return found.reshape(())


def gradients_of(
    model: nn.Module, batch: Mapping[str, Any], targets: Sequence[Target], loss: Loss
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Each example's gradient of its own loss.

    Args:
        model: in evaluation mode, with the targets' parameters alone requiring gradients.
        batch: collated examples with `labels` [batch, seq]; a batch of one reaches the loss as it is.
        targets: the probed modules.
        loss: of a batch of one example.

    Returns:
        gradients {block name: [batch, *factor shape]}, losses [batch], and the factors that each example used.

    Raises:
        MeasurementError: if the loss is not a scalar, or does not depend on a target.
    """
    weights = weights_of(targets)
    rows: list[dict[str, Tensor]] = []
    losses, selections = [], list[dict[str, Tensor]]()
    for example in singles(batch):
        found = loss_of(model, example, loss)
        rows.append(_gradients(found, weights))
        losses.append(found.detach().to(torch.promote_types(found.dtype, torch.float32)))
        selections.append(selections_of(targets))
    gradients = {name: torch.stack([row.pop(name) for row in rows]) for name in weights}
    chosen = {name: torch.cat([one[name] for one in selections]) for name in selections[0]}
    return gradients, torch.stack(losses), chosen


def selections_of(targets: Sequence[Target]) -> dict[str, Tensor]:
    """{name of the block of A or B: [batch, r]}, the factors that the examples of the last forward used."""
    found: dict[str, Tensor] = {}
    for target in targets:
        if isinstance(target.layer, MixLoraLayer) and target.layer.selection is not None:
            a, b = target.blocks[:2]
            found |= {a.name: target.layer.selection.A, b.name: target.layer.selection.B}
    return found


def _gradients(loss: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not loss.requires_grad:
        raise MeasurementError("the loss does not depend on the adapter; it must come from the model's own forward")
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, found, strict=True):
        if gradient is None:
            raise MeasurementError(f"{name.rpartition('.')[0]} took no part in the loss; leave it out of the modules")
    return {
        name: gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        for name, gradient in zip(weights, found, strict=True)
    }
