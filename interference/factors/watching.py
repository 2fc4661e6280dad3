"""Watching: what the examples of one batch select, from hooks on one forward; which examples make a batch, a group.

Not here: all batches of a job, and what is kept of them (`observer`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from interference.blocks import Component, to_frame
from interference.errors import MeasurementError
from interference.gradients.losses import can_skip_logits
from interference.gradients.targets import Target
from interference.statistics.groups import Codes
from mixlora import MixLoraLayer, routed
from mixlora.data.collation import Encoded
from mixlora.data.groups import connected
from mixlora.data.images import content
from mixlora.tuner.context import pool


def observe(model: nn.Module, targets: Sequence[Target], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the examples of one batch select: {block name: [batch, r]}.

    Args:
        model: in evaluation mode, the targets' adapter the active one.
        targets: all MixLoRA, or all LoRA.
        batch: collated prompts with `attention_mask`; `tasks`, the task of every example, is for MixLoRA's routers.

    Raises:
        MeasurementError: if a module does not keep the examples of the batch apart, or a value is not finite.
    """
    mask = batch["attention_mask"].bool()
    inputs = {key: value for key, value in batch.items() if key != "tasks"}
    if can_skip_logits(model) and all(target.place.layer is not None for target in targets):
        inputs["logits_to_keep"] = 1
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for target in targets:
            hooks.enter_context(_watched(target, mask, found))
        with routed(model, tasks=batch.get("tasks"), alone=True):
            model(**inputs, use_cache=False)
    for target in targets:
        values = found.get(target.place.name)
        if values is None or len(values) != len(mask):
            raise MeasurementError(
                f"{target.path} does not keep the {len(mask)} examples of a batch apart (one image per example, or "
                "text alone in the language model); leave the module out"
            )
    return found


@dataclass(frozen=True)
class Grouping:
    """The groups of the examples, and how many have the prompt of another.

    Attributes:
        groups: [examples].
        copies: examples whose prompt an earlier one has.
    """

    groups: Codes
    copies: int

    @classmethod
    def of(cls, encoded: Sequence[Encoded], groups: Sequence[int]) -> "Grouping":
        """The given groups; groups of examples with the same prompt, whose selections are equal, are one."""
        prompts = [_prompt(one) for one in encoded]
        joined = connected([("group", group), prompt] for group, prompt in zip(groups, prompts, strict=True))
        return cls(np.array(joined, dtype=np.intp), len(prompts) - len(set(prompts)))


def _prompt(encoded: Encoded) -> tuple[str, str]:
    """What tells an example's prompt and pictures from others."""
    found = hashlib.sha256(repr(list(encoded.input_ids)).encode())
    for image in encoded.example.images:
        found.update(content(image))
    return "prompt", found.hexdigest()


def batches(encoded: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """The rows of each forward, the longest first. Either all rows of a forward have an image or none has."""
    longest = sorted(range(len(encoded)), key=lambda k: -len(encoded[k].input_ids))
    for kind in (False, True):
        alike = [k for k in longest if encoded[k].has_image is kind]
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def blocks_of(targets: Sequence[Target], mixture: bool) -> pd.DataFrame:
    """What `Selections.blocks` holds of the targets."""
    blocks = [block for target in targets for block in target.blocks[: 2 if mixture else 1]]
    weights = [tap.weight for target in targets for tap in list(target.taps.values())[: 2 if mixture else 1]]
    return to_frame(blocks).drop(columns="size").assign(factors=[len(weight) for weight in weights])


@contextmanager
def _watched(target: Target, mask: Tensor, found: dict[str, Tensor]) -> Iterator[None]:
    """Inside, forwards put what the target selects into `found`. If a module runs again, its last call counts."""

    def chosen(layer: Any, _: Any, output: Tensor) -> None:
        _check_finite(target, output)
        a, b = target.blocks[:2]
        found.update({a.name: layer.selection.A.int(), b.name: layer.selection.B.int()})

    def activated(_: nn.Module, __: Any, output: Tensor) -> None:
        _check_finite(target, output)
        if target.place.component is not Component.LANGUAGE and output.dim() == 3:
            found[target.place.name] = pool(output, None).float()
        elif output.shape[:-1].numel() == mask.numel():  # a DoRA first multiplies its matrices with each other
            found[target.place.name] = pool(output.reshape(*mask.shape, -1), mask).float()

    mixture = isinstance(target.layer, MixLoraLayer)
    module = target.layer if mixture else next(iter(target.taps.values())).module
    handle = module.register_forward_hook(chosen if mixture else activated)
    try:
        yield
    finally:
        handle.remove()


def _check_finite(target: Target, output: Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise MeasurementError(
            f"{target.path} gives values that are not finite; the checkpoint is broken or its dtype too narrow (try "
            "dtype: float32)"
        )
