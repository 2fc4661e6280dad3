"""Collated batches of a caller: checked before the model sees them, so that a mistake is named by its place."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interference.errors import ScopeError
from interference.gradients.examples import packed
from mixlora.checkpoints.lengths import positions_of
from mixlora.common.errors import type_of
from mixlora.common.labels import IGNORED
from mixlora.tuner.model import base_model_of


def refuse_packed(batch: Mapping[str, Any], place: str) -> None:
    """Raise a ScopeError if a row of the batch at a `place` holds several examples."""
    if packed(batch):
        raise ScopeError(
            f"{place}: a row holds several packed examples, whose gradients cannot be told apart; collate without "
            "packing (of TRL: packing=False, padding_free=False)"
        )


def check_batch(model: nn.Module, batch: Any, place: str) -> None:
    """Check a collated batch.

    Args:
        model: that is to take it.
        batch: what the caller gave.
        place: of the batch, in words.

    Raises:
        ScopeError: if it is not a dict, or its labels, tokens or mask are not what the model can take.
    """
    if not isinstance(batch, Mapping):
        raise ScopeError(f"{place} is {type_of(batch)}, but must be a dict of tensors, as a collator gives it")
    if "labels" not in batch:
        raise ScopeError(f"{place} has no labels; collate it with labels [batch, seq]")
    _check_tokens(batch["labels"], f"{place}: labels")
    shape = tuple(batch["labels"].shape)
    tokens, mask = batch.get("input_ids"), batch.get("attention_mask")
    if tokens is not None:
        _check_tokens(tokens, f"{place}: input_ids")
        _check_shape(tokens, shape, f"{place}: input_ids")
    if isinstance(mask, Tensor) and mask.dim() <= 2:
        _check_shape(mask, shape, f"{place}: attention_mask")
    base = base_model_of(model)
    if "input_ids" in inspect.signature(base.forward).parameters and tokens is None and "inputs_embeds" not in batch:
        raise ScopeError(f"{place} has no input_ids; collate it with input_ids [batch, seq]")
    _check_ranges(base, batch, place)


def _check_tokens(values: Any, what: str) -> None:
    if not isinstance(values, Tensor):
        raise ScopeError(f"{what} is {type_of(values)}, but must be a tensor [batch, seq] of whole numbers")
    if values.dim() != 2 or not len(values):
        raise ScopeError(f"{what} has shape {tuple(values.shape)}, but must be [batch, seq] with one row per example")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        kind = str(values.dtype).removeprefix("torch.")
        raise ScopeError(f"{what} is of {kind}, but must be of whole numbers; use .long()")


def _check_shape(values: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(values.shape) != shape:
        raise ScopeError(f"{what} has shape {tuple(values.shape)}, but labels has {shape}; both must be [batch, seq]")


def _check_ranges(base: Any, batch: Mapping[str, Any], place: str) -> None:
    """Check that labels and tokens are in the model's vocabulary, and that it has positions for the tokens."""
    labels, tokens = batch["labels"], batch.get("input_ids")
    config = getattr(base, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None)
    if isinstance(size, int) and text is config:  # others have placeholders of pictures beyond it
        size += getattr(text, "additional_vocab_size", 0)
        _check_range(labels[labels != IGNORED], size, f"{place}: a label", f" or {IGNORED}")
        if tokens is not None:
            _check_range(tokens, size, f"{place}: a token of input_ids", "")
    limit = positions_of(text)
    if limit is not None and labels.shape[1] > limit:
        raise ScopeError(
            f"{place} has rows of {labels.shape[1]} tokens, but the model has positions for {limit}; truncate them"
        )


def _check_range(values: Tensor, size: int, what: str, also: str) -> None:
    wrong = values[(values < 0) | (values >= size)]
    if len(wrong):
        raise ScopeError(f"{what} is {int(wrong[0])}, but must be at least 0 and below the vocabulary's {size}{also}")
