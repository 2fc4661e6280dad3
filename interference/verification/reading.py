"""Losses of units, read again and again while parameters move: of several examples at once where that changes nothing.

Not here: the steps between (`steps`, `adam`), and gradients (`derivation`).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interference.gradients.autograd import Loss, loss_of, tokens_of
from interference.gradients.examples import singles
from interference.gradients.losses import example_losses
from interference.measurement.units import Batch
from interference.verification.derivation import apart

Rows = tuple[Batch, Sequence[int]]
SAME = 1e-5
"""How much a loss may differ, as a share, in a padded batch and alone: rounding of float32."""


class Losses:
    """Reads every unit's loss."""

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[list[Batch]],
        padded: Iterable[Rows],
        token_mean: bool,
        loss: Loss | None,
    ) -> None:
        """Read nothing yet.

        Args:
            model: whose losses they are.
            units: each unit's batches.
            padded: the same examples in larger batches, with the unit of each row.
            token_mean: weigh the examples of a unit by their supervised tokens.
            loss: of a batch of one example; None for the mean cross-entropy over supervised tokens.
        """
        self._model, self._token_mean, self._loss = model, token_mean, loss
        self._count = len(units)
        self._batches: list[Rows] = [*apart(units)]
        self._untried = [*padded]

    def __call__(self) -> NDArray[np.float64]:
        """Each unit's loss [units], nats per token, as the model is. Padded batches are tried when it is first read."""
        found = self._read(self._batches)
        if self._untried:
            padded, self._untried = self._untried, []
            together = self._read(padded)
            if np.allclose(together, found, rtol=SAME, atol=0):
                self._batches, found = padded, together
        return found

    def _read(self, batches: Iterable[Rows]) -> NDArray[np.float64]:
        totals, sizes = np.zeros((2, self._count))
        for batch, owners in batches:
            losses, tokens = self._of(batch)
            weights = tokens if self._token_mean else np.ones_like(tokens)
            np.add.at(totals, list(owners), losses * weights)
            np.add.at(sizes, list(owners), weights)
        found: NDArray[np.float64] = totals / sizes
        return found

    @torch.no_grad()
    def _of(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The losses and supervised tokens of a batch's examples."""
        pair: tuple[Tensor, Tensor]
        if self._loss is None:
            pair = example_losses(self._model, batch)
        else:
            losses = [loss_of(self._model, example, self._loss) for example in singles(batch)]
            pair = torch.stack(losses), tokens_of(batch)
        values, tokens = (each.double().cpu().numpy() for each in pair)
        return values, tokens
