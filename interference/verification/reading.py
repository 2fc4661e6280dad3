"""Losses of units, read again and again while parameters move: of several examples at once where that changes nothing.

Not here: the steps between (`steps`, `adam`), and gradients (`derivation`).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from interference.gradients.autograd import Loss
from interference.gradients.losses import losses_by
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
        self._untried = [*padded] if loss is None else []  # any other loss is of one example

    def __call__(self) -> NDArray[np.float64]:
        """Each unit's loss [units], nats per token, as the model is. Padded batches are tried when it is first read."""
        found = self._read(self._batches)
        if self._untried:
            padded, self._untried = self._untried, []
            together = self._read(padded)
            if np.allclose(together, found, rtol=SAME, atol=0):
                self._batches, found = padded, together
        return found

    @torch.no_grad()
    def _read(self, batches: Iterable[Rows]) -> NDArray[np.float64]:
        totals, sizes = np.zeros((2, self._count))
        for batch, owners in batches:
            pair = losses_by(self._model, batch, self._loss)
            losses, tokens = (each.double().cpu().numpy() for each in pair)
            weights = tokens if self._token_mean else np.ones_like(tokens)
            np.add.at(totals, list(owners), losses * weights)
            np.add.at(sizes, list(owners), weights)
        found: NDArray[np.float64] = totals / sizes
        return found
