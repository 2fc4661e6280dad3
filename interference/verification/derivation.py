"""Gradients of units, derived twice: as a run computes them, and by autograd of one example at a time."""

from collections.abc import Mapping, Sequence
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
    units: Sequence[list[Batch]],
    token_mean: bool,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """The units' gradients as a run computes them: {block: [units, ...]}.

    They come from padded batches, or from single examples if the run measured a `loss` of its own.
    """
    mean = UnitMeans(len(units), token_mean)
    if loss is not None:
        with Probe(model, targets, loss) as probe:
            for k, batches in enumerate(units):
                for batch in batches:
                    mean.add(probe.gradients(batch), [k] * len(batch["labels"]))
        return _gathered(mean)
    singles = [
        (k, single(batch, row))
        for k, batches in enumerate(units)
        for batch in batches
        for row in range(len(batch["labels"]))
    ]
    with Probe(model, targets) as probe:
        for start in range(0, len(singles), TOGETHER):
            for chunk in _alike(singles[start : start + TOGETHER]):
                mean.add(probe.gradients(_padded([alone for _, alone in chunk])), [k for k, _ in chunk])
    return _gathered(mean)


def derived_gradients(
    model: nn.Module,
    targets: Sequence[Target],
    units: Sequence[list[Batch]],
    token_mean: bool,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """The units' gradients by batch-1 autograd, of the model's own loss or of `loss`: {block: [units, ...]}."""
    mean = UnitMeans(len(units), token_mean)
    for k, batches in enumerate(units):
        for batch in batches:
            gradients = reference.of_targets(model, batch, targets, loss)
            tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
            mean.add(BatchGradients(gradients, torch.zeros(len(tokens)), tokens), [k] * len(tokens))
    return _gathered(mean)


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
