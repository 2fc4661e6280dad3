"""The loop that trains the suite's base from scratch. Not here: training on the base (`mixlora.training`)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixlora.pretraining.muon import Muon

Report = Callable[[int, float], None]
"""Called after each step with the number of steps done and the step's loss."""


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates: a linear warm-up, then a cosine to zero.

    Attributes:
        steps: optimizer steps.
        learning_rate: AdamW's peak.
        matrix_rate: Muon's peak, for the matrices that `optimise` gets.
        warmup: steps until the peak.
        weight_decay: of both.
        clip: the largest norm of a step's gradient.
    """

    steps: int
    learning_rate: float
    matrix_rate: float = 0.0
    warmup: int = 10
    weight_decay: float = 0.0
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """The share of the peak learning rate in a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup))


def optimise(
    parameters: Iterable[nn.Parameter],
    loss_at: Callable[[int], Tensor],
    schedule: Schedule,
    report: Report | None = None,
    matrices: Iterable[nn.Parameter] = (),
    stop_after: int | None = None,
) -> list[float]:
    """Minimise the loss; its value at each step.

    Args:
        parameters: what AdamW trains; frozen ones are skipped.
        loss_at: the loss of a step, counted from 0.
        schedule: steps and learning rates.
        report: called after every step.
        matrices: what Muon trains.
        stop_after: stop early, after this number of steps of the schedule.
    """
    by_adam = [parameter for parameter in parameters if parameter.requires_grad]
    by_muon = list(matrices)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(by_adam, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    ]
    if by_muon:
        optimizers.append(Muon(by_muon, lr=schedule.matrix_rate, weight_decay=schedule.weight_decay))
    paces = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor) for optimizer in optimizers]
    losses = []
    for step in range(schedule.steps if stop_after is None else min(stop_after, schedule.steps)):
        loss = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_([*by_adam, *by_muon], schedule.clip)
        for optimizer, pace in zip(optimizers, paces, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            pace.step()
        losses.append(loss.item())
        if report is not None:
            report(step + 1, losses[-1])
    return losses
