"""Left padding: positions that are those of each example alone, and a check that padding changes nothing.

Models with absolute positions count padding on the left, unless positions are given as `generate` gives them. Models
with a recurrent state, or that take no positions, may not tell padding from tokens at all.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interference.errors import MeasurementError
from interference.gradients.examples import single
from interference.gradients.state import own_randomness
from mixlora.tuner.model import base_model_of

SAME = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative difference of losses below which padding has changed nothing, by dtype of the model."""
SAME_IN_HALF = 5e-2
"""The same for narrower dtypes."""


def padded_left(batch: Mapping[str, Any]) -> Tensor | None:
    """The rows of a batch that begin with padding; None if there is none."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    rows = (~mask[:, 0].bool()).nonzero()[:, 0]
    return rows if len(rows) else None


def with_positions(model: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch padded on the left with `position_ids` as `generate` gives them, where the model takes them.

    A model that derives positions from pictures and the mask (`get_rope_index`) keeps its own.
    """
    if batch.get("position_ids") is not None or padded_left(batch) is None:
        return batch
    base = base_model_of(model)
    own = any(hasattr(module, "get_rope_index") for module in (base, getattr(base, "model", base)))
    if own or "position_ids" not in inspect.signature(base.forward).parameters:
        return batch
    mask = batch["attention_mask"].long()
    return {**batch, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def check_padding(model: nn.Module, batch: Mapping[str, Any], losses: Callable[[Mapping[str, Any]], Tensor]) -> bool:
    """Check that an example has the same loss with and without the padding on its left.

    Args:
        model: in evaluation mode.
        batch: collated examples.
        losses: of a batch, [batch].

    Returns:
        Whether there was something to check.

    Raises:
        MeasurementError: if the loss depends on the padding.
    """
    rows = padded_left(batch)
    if rows is None:
        return False
    row = int(rows[batch["attention_mask"][rows].sum(dim=1).argmin()])
    try:
        alone = single(batch, row)
    except MeasurementError:  # its pictures cannot be told apart
        return False
    with own_randomness(0):
        expected = losses(alone)
    with own_randomness(0):
        found = losses(single(batch, row, padded=True))
    tolerance = SAME.get(next(model.parameters()).dtype, SAME_IN_HALF)
    if not bool(torch.isclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True).all()):
        raise MeasurementError(
            f"{type(base_model_of(model)).__name__} computes another loss for an example with padding on its left "
            f"({found.item():.4g}, without {expected.item():.4g}); pad on the right, or collate one example per batch "
            "(batch_size: 1 in a configuration)"
        )
    return True
