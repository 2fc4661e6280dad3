"""Batches taken apart: one example alone, the inputs of a forward, and rows that hold several examples."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interference.errors import MeasurementError

COUNTS = ("num_items_in_batch",)
"""Keys with which a Trainer scales the loss of a whole step; the loss of an example has its own count."""


def inputs_of(batch: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """What a model's forward takes of a batch, without the `others`."""
    return {key: value for key, value in batch.items() if key not in ("tasks", *COUNTS, *others)}


def singles(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The examples of a batch, each as a batch of its own; a batch of one example stays as it was collated.

    Raises:
        MeasurementError: if a tensor does not have the examples along its first axis.
    """
    size = len(batch["labels"])
    return [dict(batch)] if size == 1 else [single(batch, row) for row in range(size)]


def single(batch: Mapping[str, Any], row: int, padded: bool = False) -> dict[str, Any]:
    """Example `row` of a batch as a batch of its own, without padding unless `padded`.

    Raises:
        MeasurementError: as `singles`.
    """
    size, seq = batch["labels"].shape
    mask = batch.get("attention_mask")
    kept = torch.ones(seq, dtype=torch.bool) if mask is None or padded else mask[row].bool()
    example: dict[str, Any] = {}
    for key, value in batch.items():
        if key in COUNTS:
            continue
        if isinstance(value, list) and len(value) == size:
            example[key] = value[row : row + 1]
        elif not isinstance(value, Tensor):
            example[key] = value
        elif value.shape[:2] == (size, seq):
            example[key] = value[row : row + 1, kept]
        elif size == 1:
            example[key] = value
        elif value.dim() > 0 and len(value) == size:
            example[key] = value[row : row + 1]
        else:
            raise MeasurementError(
                f"{key} of shape {tuple(value.shape)} cannot be split into the {size} examples of the batch; "
                "collate one example per batch (batch_size: 1 in a configuration)"
            )
    return example


def packed(batch: Mapping[str, Any]) -> bool:
    """Whether a row of a batch holds several examples: positions start again, or lengths of sequences say so."""
    rows = len(batch["labels"])
    for key, least in (("seq_lengths", 0), ("cu_seq_lens_q", 1), ("cu_seqlens", 1)):
        if key in batch and _count(batch[key]) > rows + least:
            return True
    positions, mask = batch.get("position_ids"), batch.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return False
    again = positions[:, 1:] <= positions[:, :-1]
    if isinstance(mask, Tensor) and mask.shape == positions.shape:
        again = again & mask[:, 1:].bool() & mask[:, :-1].bool()
    return bool(again.any())


def _count(values: Any) -> int:
    if isinstance(values, Tensor):
        return values.numel()
    return sum(len(value) if isinstance(value, (list, tuple)) else 1 for value in values)
