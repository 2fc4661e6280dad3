"""Held out: the examples whose losses are read, in batches that are made once, and their losses under a model.

Not here: which examples these are (`pools`), and what their pictures look like to frozen weights (`pictures`).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from interference.branching.pictures import Features
from interference.errors import MeasurementError
from interference.gradients.losses import exact_answers, losses_by
from interference.gradients.state import own_randomness
from interference.measurement.objective import Objective, of_model, without_graph
from interference.measurement.sample import Sample, padded_batches
from interference.measurement.units import Batch


class HeldOut:
    """Examples of all tasks, sorted by length, and their losses in evaluation mode.

    Args:
        encoded: the examples, each a unit of its own.
        model: whose losses will be read; the plain loss, or one that its own forward computes.
        adapter: the adapter that is read with it.
        batch_size: examples in one forward pass.
        budget: bytes that are kept in memory, half of batches and half of features of their pictures; the others are
            made again for each reading.
    """

    def __init__(self, encoded: Sample, model: nn.Module, adapter: str, batch_size: int, budget: int) -> None:
        self.encoded = encoded
        self.device = next(model.parameters()).device
        units = encoded.units
        order = sorted(range(len(units)), key=lambda k: (units[k].has_image, units[k].length, k))
        self._runs = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self._kept: dict[int, list[tuple[Batch, list[int]]]] = {}
        self._left = budget // 2
        ((first, _), *_) = self._made([order[0]])
        self.objective: Objective = of_model(model, adapter, first)
        pictured = next((k for k in order if units[k].has_image and self.objective.loss is None), None)
        example = None if pictured is None else self._made([pictured])[0][0]
        self._features = Features(model, adapter, example, budget // 2)

    @property
    def forwards(self) -> int:
        """Forward passes of one reading."""
        return len(self._runs) if self.objective.loss is None else len(self.encoded.units)

    def losses(self, model: nn.Module) -> Tensor:
        """Every example's loss [examples], nats per token, float64; the random generators stay as they were.

        Raises:
            MeasurementError: if one is not finite.
        """
        found = self._read(model, self._losses_of)
        if not bool(found.isfinite().all()):
            unit = self.encoded.units[int((~found.isfinite()).nonzero()[0])]
            raise MeasurementError(f"the loss of {unit.task!r}, example {unit.unit.source}, is not finite")
        return found

    def _losses_of(self, model: nn.Module, batch: Batch) -> Tensor:
        return losses_by(model, batch, self.objective.loss)[0]

    def answers(self, model: nn.Module) -> Tensor:
        """Whether the model gives exactly the answer of every example [examples], 1 or 0; see `exact_answers`."""
        return self._read(model, exact_answers)

    def _read(self, model: nn.Module, read: Callable[[nn.Module, Batch], Tensor]) -> Tensor:
        """A number for every example [examples], float64."""
        found = torch.empty(len(self.encoded.units), dtype=torch.float64)
        model.eval()
        with own_randomness(0), without_graph(model):
            for number, batch, places in self._batches():
                with self._features.of(number):
                    found[places] = read(model, batch).double().cpu()
        return found

    def _batches(self) -> Iterator[tuple[int, Batch, list[int]]]:
        for number, run in enumerate(self._runs):
            made = self._kept.get(number)
            if made is None:
                made = self._made(run)
                size = sum(value.nbytes for batch, _ in made for value in batch.values() if isinstance(value, Tensor))
                if size <= self._left:
                    self._left -= size
                    self._kept[number] = made
            for batch, places in made:
                yield number, batch, places

    def _made(self, run: list[int]) -> list[tuple[Batch, list[int]]]:
        """The batches of some places; those with pictures are apart from those without."""
        found = padded_batches(self.encoded, run, len(run), self.device)
        return [
            ({**batch, "tasks": [self.encoded.units[run[row]].task for row in rows]}, [run[row] for row in rows])
            for batch, rows in found
        ]
