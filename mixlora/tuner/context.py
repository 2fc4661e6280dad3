"""Context: what an adapted Linear must know of the forward it is part of: masks, the prompt, packing, tasks.

Not here: how it gets to know that (`tracker`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixlora.common.labels import IGNORED
from mixlora.tuner.config import Pooling
from mixlora.tuner.routing import Selection

_GRIDS = ("image_grid_thw", "video_grid_thw")
"""Inputs with a row for each picture or video of a batch, in models that pack them into one sequence."""

Held = dict[tuple[str, str], Selection]  # by adapted module and adapter


@dataclass(frozen=True)
class Packing:
    """Several sequences in one row; each begins where the positions start again.

    If the model is on several GPUs, this is on the first one, and the values are on their layer's.

    Attributes:
        index: [instances, longest], the index of every token in the flattened batch; 0 where there is no token.
        mask: [instances, longest], where there is a token.
    """

    index: Tensor
    mask: Tensor

    def unpack(self, values: Tensor) -> Tensor:
        """[batch, seq, ...] to [instances, longest, ...]."""
        return values.flatten(0, 1)[self.index.to(values.device)]

    def pack(self, values: Tensor, batch: int) -> Tensor:
        """[instances, longest, ...] back to [batch, seq, ...]."""
        return values[self.mask.to(values.device)].unflatten(0, (batch, -1))


@dataclass
class Context:
    """One forward of the model.

    Attributes:
        shape: batch and seq of its tokens.
        attended: [instances, seq], tokens that are not padding; None for all.
        prompt: [instances, seq], attended tokens before the first supervised one; None for all.
        packing: how rows split into instances; None if each row is one instance.
        tasks: the task of every instance; None if they were not given.
        pictures: number of pictures among its inputs; None if unknown.
        alone: whether even `all` ignores padding, as if every instance were alone in its batch.
        decoding: whether the tokens continue a cached prompt.
        held: the prompt's selections, which generated tokens use.
        drawn: the random selections of this forward, for its recomputation.
    """

    shape: tuple[int, int]
    attended: Tensor | None = None
    prompt: Tensor | None = None
    packing: Packing | None = None
    tasks: Sequence[str] | None = None
    pictures: int | None = None
    alone: bool = False
    decoding: bool = False
    held: Held = field(default_factory=dict)
    drawn: Held = field(default_factory=dict)

    def mask(self, pooling: Pooling) -> Tensor | None:
        """Positions to pool over [instances, seq]; None for all."""
        if pooling is Pooling.ALL and not self.alone:
            return None if self.packing is None else self.packing.mask
        return self.prompt if pooling is Pooling.PROMPT else self.attended


def pool(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of x [instances, seq, d] over the positions of a mask [instances, seq]: [instances, d]."""
    if mask is None:
        return x.mean(dim=1)
    mask = mask.to(x.device)  # if the model is on several GPUs, the mask is on the first
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    dtype = torch.promote_types(x.dtype, torch.float32)
    weights = mask.to(dtype) / count  # divided before the sum, which could overflow float16
    return torch.bmm(weights.unsqueeze(1).to(x.dtype), x).squeeze(1).to(dtype)


def pictures_of(inputs: Mapping[str, Any]) -> int | None:
    """The number of pictures among a forward's inputs; None if they do not tell."""
    grids = [inputs[name] for name in _GRIDS if isinstance(inputs.get(name), Tensor)]
    if grids:
        return sum(len(grid) for grid in grids)
    pixels = inputs.get("pixel_values")
    return len(pixels) if isinstance(pixels, Tensor) and pixels.dim() == 4 else None


def packing_of(positions: Tensor | None, tokens: Tensor, attended: Tensor | None) -> Packing | None:
    """How rows split where positions [batch, seq] start again; None if none does.

    As in transformers, rows are packed if position_ids are given and drop, and no padding is masked.
    """
    if positions is None or positions.dim() != 2 or (attended is not None and not bool(attended.all())):
        return None
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[:, 1:] = positions[:, 1:] <= positions[:, :-1]
    if not bool(starts[:, 1:].any()):
        return None
    batch, seq = tokens.shape[:2]
    firsts = starts.expand(batch, seq).flatten().nonzero()[:, 0]
    ends = torch.cat([firsts[1:], firsts.new_tensor([batch * seq])])
    lengths = ends - firsts
    offsets = torch.arange(int(lengths.max()), device=firsts.device)
    mask = offsets < lengths[:, None]
    return Packing(torch.where(mask, firsts[:, None] + offsets, 0), mask)


def prompt_mask(context: Context, labels: Tensor | None) -> Tensor | None:
    """The mask of attended tokens before the first supervised one, or of all attended ones if none precedes it."""
    if labels is None or tuple(labels.shape) != context.shape:
        return context.attended
    supervised = labels != IGNORED
    attended = context.attended
    if context.packing is not None:
        supervised = context.packing.unpack(supervised) & context.packing.mask
    if attended is None:
        attended = torch.ones_like(supervised)
    before = attended & (supervised.cumsum(dim=1) == 0)
    return torch.where(before.any(dim=1, keepdim=True), before, attended)
