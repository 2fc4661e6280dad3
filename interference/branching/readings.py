"""Readings: collated examples of all tasks whose losses are read while a Trainer trains, and those losses.

Not here: held-out examples of a configuration (`held_out`), and the steps between two readings (`trainers`).
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import Trainer

from interference.errors import MeasurementError, ScopeError
from interference.gradients.autograd import tokens_of
from interference.gradients.losses import losses_by
from interference.gradients.state import own_randomness, without_autocast
from interference.measurement.labels import workload
from interference.measurement.objective import without_graph
from interference.measurement.trainer_loss import objective_of
from interference.measurement.units import Batch, Part, Unit, contents
from mixlora.data.groups import connected


class Readings:
    """Examples of all tasks, in evaluation mode and in the precision of the model's own weights.

    Args:
        trainer: whose loss is read, of its model.
        batches: {task: collated batches}, the same ones each time they are iterated.
        groups: {task: a label for every example}; None where all are independent, but for copies of one.
        seed: of what random numbers a reading draws.

    Raises:
        ScopeError: if there is one task alone, or batches or groups do not fit.
    """

    def __init__(
        self, trainer: Trainer, batches: Mapping[str, Iterable[Batch]], groups: Mapping[str, Any] | None, seed: int
    ) -> None:
        self.trainer = trainer
        self.model: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        self._batches = batches
        self._groups = groups
        self._seed = seed
        self._units, self._tokens, self._digests = list[Unit](), list[int](), list[str]()
        with own_randomness(seed):
            for part in self._parts():
                for batch, _ in part.batches:
                    self._units += part.units
                    self._tokens += tokens_of(batch).tolist()
                    self._digests += shown(batch)
            adapter = str(getattr(self.model, "active_adapter", ""))
            self.objective, _ = objective_of(trainer, self.model, adapter, workload(self.model, batches, "example"))

    def table(self) -> pd.DataFrame:
        """A row for every example: task, id, source, group, tokens.

        Raises:
            ScopeError: if a task has fewer than two groups.
        """
        keys: list[list[Hashable]] = [
            [("content", digest)] if unit.group is None else [("content", digest), ("label", unit.group)]
            for digest, unit in zip(self._digests, self._units, strict=True)
        ]
        found = pd.DataFrame(
            {
                "task": [unit.task for unit in self._units],
                "id": [unit.ids for unit in self._units],
                "source": [unit.source for unit in self._units],
                "group": connected(keys),
                "tokens": self._tokens,
            }
        )
        for task, count in found.groupby("task", sort=False)["group"].nunique().items():
            if count < 2:
                raise ScopeError(
                    f"the held-out examples of task {task!r} are one group, but 2 are needed for an interval: give it "
                    "examples that share nothing with these"
                )
        return found

    def place_of(self, batch: Batch) -> str | None:
        """Where an example of a batch is read, by its tokens and pictures; None if none of them is."""
        found = next((digest for digest in shown(batch) if digest in self._digests), None)
        return None if found is None else self._units[self._digests.index(found)].source

    def losses(self) -> Tensor:
        """Every example's loss [examples], nats per token, float64.

        Raises:
            MeasurementError: if one is not finite.
        """
        found, model = list[Tensor](), self.model
        model.eval()
        with own_randomness(self._seed), without_graph(model), without_autocast(model):
            for part in self._parts():
                found += [losses_by(model, batch, self.objective.loss)[0].double().cpu() for batch, _ in part.batches]
        losses = torch.cat(found)
        if not bool(losses.isfinite().all()):
            source = self._units[int((~losses.isfinite()).nonzero()[0])].source
            raise MeasurementError(f"the loss of {source} is not finite")
        return losses

    def _parts(self) -> Iterator[Part]:
        yield from workload(self.model, self._batches, "example", self._groups).parts


def shown(batch: Batch) -> list[str]:
    """A digest of every example of a batch: of its tokens and pictures, whatever of it is supervised."""
    tokens = batch.get("input_ids", batch["labels"])
    seen = {key: value for key, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point()}
    masked = {"attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
    return contents({**seen, **masked, "labels": tokens})
