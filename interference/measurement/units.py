"""Units: what one gradient belongs to, how batches are made of them, and their mean gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interference.errors import ScopeError
from interference.gradients.probe import BatchGradients

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """What one gradient belongs to: its task, and the examples it is the mean of."""

    task: str
    ids: str
    source: str


@dataclass(frozen=True)
class Part:
    """Some whole units and their batches.

    Attributes:
        units: the units.
        batches: collated batches, and for each row the position of its unit in `units`; made when they are iterated.
    """

    units: Sequence[Unit]
    batches: Iterable[tuple[Batch, Sequence[int]]]


@dataclass
class Probed:
    """What probing found, part by part.

    Attributes:
        units: all units, in the order they were probed.
        losses: of each unit, nats per token.
        tokens: supervised tokens of each unit.
        sizes: units in each part.
    """

    units: list[Unit] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, part: Part, losses: Sequence[float], tokens: Sequence[int]) -> None:
        """Note a part that is in the spool."""
        self.units += part.units
        self.losses += losses
        self.tokens += tokens
        self.sizes.append(len(part.units))


class UnitMeans:
    """Mean gradients of units, summed up batch by batch."""

    def __init__(self, units: int, token_mean: bool) -> None:
        self.units = units
        self.token_mean = token_mean
        self.weights = torch.zeros(units, dtype=torch.float64)
        self.tokens = torch.zeros(units, dtype=torch.float64)
        self._losses = torch.zeros(units, dtype=torch.float64)
        self._sums: dict[str, Tensor] = {}

    def add(self, found: BatchGradients, owners: Sequence[int]) -> None:
        """Add a batch whose row n belongs to unit `owners[n]`."""
        index, tokens = torch.tensor(owners), found.tokens.double().cpu()
        weights = tokens if self.token_mean else torch.ones_like(tokens)
        self.weights.index_add_(0, index, weights)
        self.tokens.index_add_(0, index, tokens)
        self._losses.index_add_(0, index, weights * found.losses.double().cpu())
        for name, gradient in found.gradients.items():
            if name not in self._sums:
                self._sums[name] = gradient.new_zeros(self.units, *gradient.shape[1:])
            weighted = gradient * _rowwise(weights, gradient) if self.token_mean else gradient
            self._sums[name].index_add_(0, index.to(gradient.device), weighted)

    def rows(self) -> dict[str, Tensor]:
        """{block: [units, *factor shape]}, the means."""
        return {name: total / _rowwise(self.weights, total) for name, total in self._sums.items()}

    def losses(self) -> list[float]:
        """The units' losses, nats per token."""
        return (self._losses / self.weights).tolist()


def _rowwise(weights: Tensor, rows: Tensor) -> Tensor:
    """Weights [units] as a factor of rows [units, ...]."""
    return weights.to(rows).view(-1, *[1] * (rows.dim() - 1))


def of_collated(batches: Mapping[str, Iterable[Batch]], unit: str) -> Iterator[Part]:
    """Parts of batches that the caller collated, one a batch: its rows are units, or it is a unit as a whole."""
    for task, iterable in batches.items():
        for number, given in enumerate(iterable):
            if "labels" not in given:
                raise ScopeError(f"task {task!r}, batch {number} has no labels; collate it with labels [batch, seq]")
            rows = range(len(given["labels"]))
            batch = {"tasks": [task] * len(rows), **given}
            if unit == "batch":
                yield Part([Unit(task, f"batch {number}", f"{task} batch {number}")], [(batch, [0] * len(rows))])
            else:
                units = [Unit(task, f"{number}.{row}", f"{task} batch {number} row {row}") for row in rows]
                yield Part(units, [(batch, list(rows))])
