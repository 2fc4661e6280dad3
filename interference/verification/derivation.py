"""Gradients of units, derived twice: as a run computes them, and by autograd of one example at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from interference.gradients.autograd import Loss
from interference.gradients.examples import single
from interference.gradients.probe import BatchGradients, Probe
from interference.gradients.targets import Target
from interference.measurement.units import Batch, UnitMeans
from interference.verification import reference
from mixlora.common.labels import IGNORED

TOGETHER = 8
"""Examples in a padded batch when gradients are measured again."""


def gram_of(rows: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """The Gram matrix [units, units] over all blocks together, of {block: [units, ...]}."""
    whole = torch.cat([row.flatten(1) for row in rows.values()], dim=1).double()
    found: NDArray[np.float64] = (whole @ whole.T).numpy()
    return found


def unit_gradients(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Iterable[tuple[Batch, Sequence[int]]],
    units: int,
    token_mean: bool,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """The units' gradients as a run computes them: {block: [units, ...]}.

    Args:
        model: the model.
        targets: its probed modules.
        batches: padded, or of one example each where the run measured a `loss` of its own, with the unit of each row.
        units: how many there are.
        token_mean: weigh the examples of a unit by their supervised tokens.
        loss: that the run measured; None for the mean cross-entropy over supervised tokens.
    """
    mean = UnitMeans(units, token_mean)
    with Probe(model, targets, loss) as probe:
        for batch, owners in batches:
            mean.add(probe.gradients(batch), owners)
    return _gathered(mean)


def together(units: Sequence[list[Batch]]) -> Iterator[tuple[Batch, list[int]]]:
    """The examples of collated batches in padded batches, with the unit of each row."""
    singles = [
        (k, single(batch, row))
        for k, batches in enumerate(units)
        for batch in batches
        for row in range(len(batch["labels"]))
    ]
    for start in range(0, len(singles), TOGETHER):
        for chunk in _alike(singles[start : start + TOGETHER]):
            yield _padded([alone for _, alone in chunk]), [k for k, _ in chunk]


def apart(units: Sequence[list[Batch]]) -> Iterator[tuple[Batch, list[int]]]:
    """The batches of units as they are, with the unit of each row."""
    for k, batches in enumerate(units):
        for batch in batches:
            yield batch, [k] * len(batch["labels"])


@dataclass(frozen=True)
class Derived:
    """What is derived of some units.

    Attributes:
        rows: {block: their gradients [units, *factor shape]}.
        told: the loss (nats per token) and the number of supervised tokens of each.
    """

    rows: dict[str, Tensor]
    told: list[tuple[float, int]]


def derive(
    model: nn.Module,
    targets: Sequence[Target],
    units: Sequence[list[Batch]],
    token_mean: bool,
    loss: Loss | None = None,
) -> Derived:
    """The units' gradients and losses by batch-1 autograd, of the model's own loss or of `loss`."""
    mean = UnitMeans(len(units), token_mean)
    for k, batches in enumerate(units):
        for batch in batches:
            gradients, losses = reference.with_losses(model, batch, targets, loss)
            tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
            mean.add(BatchGradients(gradients, losses, tokens), [k] * len(tokens))
    return Derived(_gathered(mean), list(zip(mean.losses(), mean.tokens.long().tolist(), strict=True)))


def _alike(singles: Sequence[tuple[int, Batch]]) -> list[list[tuple[int, Batch]]]:
    """Examples grouped by the shapes of their tensors: with or without an image, and by its size."""
    groups: dict[tuple[Any, ...], list[tuple[int, Batch]]] = {}
    for k, alone in singles:
        form = {
            key: tuple(value.shape[1:])
            for key, value in alone.items()
            if isinstance(value, Tensor) and value.shape[:2] != alone["labels"].shape
        }
        groups.setdefault((*sorted(alone), *sorted(form.items())), []).append((k, alone))
    return list(groups.values())


def _padded(singles: Sequence[Batch]) -> Batch:
    """Batches of one example each as one batch, padded on the right."""
    longest = max(alone["labels"].shape[1] for alone in singles)
    found: dict[str, Any] = {}
    for key, first in singles[0].items():
        values = [alone[key] for alone in singles]
        if isinstance(first, list):
            found[key] = [item for value in values for item in value]
        elif not isinstance(first, Tensor):
            found[key] = first
        elif first.shape[:2] == singles[0]["labels"].shape:
            fill = IGNORED if key == "labels" else 0
            found[key] = torch.cat([F.pad(value, (0, longest - value.shape[1]), value=fill) for value in values])
        else:
            found[key] = torch.cat(values)
    lengths = torch.tensor([alone["labels"].shape[1] for alone in singles], device=found["labels"].device)
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return {"attention_mask": mask.long(), **found}


def _gathered(mean: UnitMeans) -> dict[str, Tensor]:
    """The means on the CPU, as layers may be on several GPUs."""
    return {name: rows.cpu() for name, rows in mean.rows().items()}
