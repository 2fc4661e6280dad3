"""Combining: branches whose steps weigh the losses of tasks, or combine one gradient for each task.

The steps are those of `mixlora train` with `training.weights` or `training.combine`.

Not here: the rules by which gradients are combined (`mixlora.training.combining`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interference.branching.branches import Branches, check_finite
from mixlora.data.collation import Encoded
from mixlora.training.combining import Combination, Gradients, supervised


@dataclass
class CombinedBranches(Branches):
    """Branches whose steps follow a combination.

    Attributes:
        combination: how the gradients of a step's tasks become one; None for the plain sum.
    """

    combination: Combination | None = None

    def backward(self, rows: Sequence[Encoded]) -> None:
        """Leave the combined gradient of some examples on the parameters that train.

        Raises:
            MeasurementError: if a loss is not finite.
        """
        if self.combination is None:
            super().backward(rows)
            return
        tasks = list(dict.fromkeys(one.example.task for one in rows))
        micro = self.recipe.micro
        parts = []
        for task in tasks:
            own = [one for one in rows if one.example.task == task]
            parts += [(task, own[start : start + micro]) for start in range(0, len(own), micro)]
        batches = [self.collator.collate(part, mixed=len({one.has_image for one in part}) > 1) for _, part in parts]
        tokens = dict.fromkeys(tasks, 0.0)
        for (task, _), batch in zip(parts, batches, strict=True):
            tokens[task] += supervised(batch)
        shares = self.combination.shares(tokens)
        made = Gradients([parameter for parameter in self.model.parameters() if parameter.requires_grad])
        for (task, part), batch in zip(parts, batches, strict=True):
            count = supervised(batch)
            loss = self.loss(batch, [task] * len(part), torch.tensor(count), 1) * (count * shares[task])
            check_finite(loss, "the training loss")
            with made.receiving(self.combination.row(task)):
                loss.backward()
        made.combine(list(dict.fromkeys(map(self.combination.row, shares))), self._coefficients)

    def _coefficients(self, gram: Tensor) -> Tensor:
        assert self.combination is not None
        return self.combination.coefficients(gram, self.done)
