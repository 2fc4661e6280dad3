"""Combining: one gradient for each task of a step, and the aggregator that makes one gradient of them.

The aggregators are TorchJD's (https://torchjd.org). They see the Gram matrix of the tasks' gradients alone, and give a
weight for each. Not here: the plain sum, which is Trainer's own step (`trainer`).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, parse_flag_from_env
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mixlora.common.errors import ConfigError
from mixlora.common.labels import IGNORED
from mixlora.data.examples import Example
from mixlora.training.config import Combine, RecipeSection
from mixlora.training.trainer import TaskTrainer

RADIUS = 0.5
"""CAGrad's c: how far from the mean gradient, relative to its norm, the combined one may be."""
REGULARIZATION = 1e-8
"""What UPGrad and DualProj add to the diagonal of the Gram matrix, whose trace is 1. TorchJD's 1e-4 is for float32; it
hides the conflicts of a task whose gradient is a hundred times smaller than another's."""


class Combination:
    """How the gradients of a step's tasks become one.

    Args:
        recipe: which aggregator, the weights of tasks, and the seed of what is drawn.
        tasks: all tasks of the training.

    Raises:
        ConfigError: a weight is of no task, there is one task, FSDP or DeepSpeed divides gradients, or TorchJD is not
            installed.
    """

    def __init__(self, recipe: RecipeSection, tasks: Sequence[str]) -> None:
        self.combine, self.seed = recipe.combine, recipe.seed
        self.tasks = list(dict.fromkeys(tasks))
        if unknown := [name for name in recipe.weights if name not in self.tasks]:
            raise ConfigError(f"training.weights: there is no task {unknown[0]!r}; the tasks are {_listed(self.tasks)}")
        if len(self.tasks) == 1:
            raise ConfigError(
                f"{self.tasks[0]!r} is the only task, so there is nothing to combine; leave training.combine and "
                "training.weights out"
            )
        if divided := next((name for name in ("FSDP", "DeepSpeed") if parse_flag_from_env(_flag(name))), None):
            raise ConfigError(
                f"training.combine and training.weights need whole gradients, which {divided} divides among processes; "
                f"train without {divided}, or leave them out"
            )
        self.weights = {task: recipe.weights.get(task, 1.0) for task in self.tasks}
        self._weighting = None if self.combine == Combine.SUM else _weighting(self.combine)

    def row(self, task: str) -> str:
        """The name of the gradient that a task's losses add up in: its own, or for the sum that of all."""
        return "" if self.combine == Combine.SUM else task

    def shares(self, tokens: Mapping[str, float]) -> dict[str, float]:
        """What the loss of one supervised token of each task counts in its row's loss.

        A task's own loss is its mean over the step's tokens, times its weight relative to the mean weight of the step's
        tasks. For the sum: the weighted mean over all tokens.

        Args:
            tokens: supervised tokens of each task in the step, in all processes; a task without any is left out.
        """
        weights = {task: self.weights[task] for task, count in tokens.items() if count}
        if self.combine == Combine.SUM:
            whole = sum(weight * tokens[task] for task, weight in weights.items())
            return {task: weight / whole for task, weight in weights.items()}
        mean = sum(weights.values()) / len(weights)
        return {task: weight / mean / tokens[task] for task, weight in weights.items()}

    def coefficients(self, gram: Tensor, step: int) -> Tensor:
        """The weight of each row in the combined gradient: they sum to 1 where all rows are equal.

        Args:
            gram: inner products of the rows [rows, rows], float64, on the CPU.
            step: the number of the step, from 0; what is drawn in it is the same in every process, and when resumed.
        """
        rows = len(gram)
        size = gram.diagonal().mean()
        if not torch.isfinite(gram).all():
            return torch.full_like(gram[0], torch.nan)
        if self._weighting is None or rows == 1 or size == 0:
            return torch.full_like(gram[0], 1 / rows)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0]))
            found = self._weighting(gram / size)  # TorchJD takes a Gram matrix with a small trace for 0
        return found / {Combine.PCGRAD: rows, Combine.CAGRAD: 1 + RADIUS}.get(self.combine, 1)


class CombiningTrainer(TaskTrainer):
    """TaskTrainer whose steps follow a `Combination`. The logged loss is the mean of the rows' losses."""

    def __init__(self, *args: Any, combination: Combination, **kwargs: Any) -> None:
        self.combination = combination
        self._shares: dict[str, float] = {}
        super().__init__(*args, **kwargs)
        model: Any = self.model
        self._gradients = Gradients([own for own in model.parameters() if own.requires_grad])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's, of the batches of `ByTask`."""
        collate: Any = self.data_collator
        self.data_collator = ByTask(collate)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The micro-batches of a step; the supervised tokens of each task in all of them are counted."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        tasks = self.combination.tasks
        own = [sum(supervised(batch[task]) for batch in batches if task in batch) for task in tasks]
        counts = self.accelerator.reduce(torch.tensor(own, device=device), "sum")
        self._shares = self.combination.shares(dict(zip(tasks, counts.tolist(), strict=True)))
        return batches, None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Add the gradients of a micro-batch to its tasks' own; after the last one, combine them."""
        model.train()
        rows = list(dict.fromkeys(map(self.combination.row, self._shares)))
        total = torch.zeros((), device=self.args.device)
        with self.accelerator.no_sync(model=model):  # gradients are summed over processes task by task
            for task, part in inputs.items():
                if not (tokens := supervised(part)):
                    continue
                prepared = self._prepare_inputs(part)
                with self.compute_loss_context_manager():
                    mean: Any = self.compute_loss(model, prepared)
                    loss = mean * (tokens * self._shares[task])
                with self._gradients.receiving(self.combination.row(task)):
                    self.accelerator.backward(loss)
                total += loss.detach()
        if self.accelerator.sync_gradients:
            self._combine(rows)
        return total * self.accelerator.num_processes / len(rows)  # Trainer logs the mean over processes

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Those of all tasks' parts."""
        count = super().floating_point_ops
        return sum(int(count(part)) for part in inputs.values())

    def _combine(self, rows: Sequence[str]) -> None:
        """Set the gradient of every parameter to the combined one, which all processes share."""
        device, step = self.args.device, self.state.global_step

        def summed(value: Tensor) -> Tensor:
            return self.accelerator.reduce(value, "sum")

        self._gradients.combine(
            rows, lambda gram: broadcast(self.combination.coefficients(gram, step).to(device)), summed
        )


class Gradients:
    """Gradients of the same parameters by name, as they add up over the micro-batches of a step."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._rows: dict[str, list[Tensor | None]] = {}

    @contextmanager
    def receiving(self, row: str) -> Iterator[None]:
        """Add what backward passes in the block find to a row."""
        for parameter, gradient in zip(self.parameters, self._rows.get(row, itertools.repeat(None)), strict=False):
            parameter.grad = gradient
        yield
        self._rows[row] = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None

    def used(self) -> list[bool]:
        """Whether a parameter has a gradient in any row."""
        return [any(row[place] is not None for row in self._rows.values()) for place in range(len(self.parameters))]

    def taken(self, place: int, rows: Sequence[str]) -> Tensor:
        """The gradients of one parameter [rows, *shape], which are kept no longer; 0 where a row has none."""
        zeros = torch.zeros_like(self.parameters[place])
        found = [self._rows[row][place] if row in self._rows else None for row in rows]
        for own in self._rows.values():
            own[place] = None
        return torch.stack([zeros if gradient is None else gradient for gradient in found])

    def combine(
        self,
        rows: Sequence[str],
        coefficients: Callable[[Tensor], Tensor],
        summed: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        """Set the gradient of every parameter to a weighted sum of its rows, and forget the rows.

        Args:
            rows: their names, in order.
            coefficients: the weight of each row, given their Gram matrix [rows, rows], float64, on the CPU.
            summed: the sum of a tensor over all processes that share the work.
        """
        device = self.parameters[0].device
        used = summed(torch.tensor(self.used(), dtype=torch.int, device=device)).tolist()
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
        stacks = {}
        for place in (k for k, processes in enumerate(used) if processes):  # others have no gradient, as in the sum
            stacks[place] = summed(self.taken(place, rows))
            flat = stacks[place].to(torch.float64).flatten(1)
            gram += flat @ flat.T
        weights = coefficients(gram.cpu()).to(device)
        for place, stack in stacks.items():
            parameter = self.parameters[place]
            parameter.grad = torch.tensordot(weights.float(), stack.float(), 1).to(parameter.dtype)
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._rows.clear()


class ByTask:
    """Collates the examples of each task on their own: their padding, which some routers see, is their own, too."""

    def __init__(self, collate: Callable[[list[Example]], Mapping[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: Sequence[Example]) -> dict[str, Mapping[str, Any]]:
        """{task: the batch of its examples}."""
        tasks = dict.fromkeys(example.task for example in examples)
        return {task: self.collate([own for own in examples if own.task == task]) for task in tasks}


def supervised(batch: Mapping[str, Any]) -> int:
    """The tokens of a batch that its loss is the mean of: the model predicts each from those before it."""
    return int((batch["labels"][..., 1:] != IGNORED).sum())


def _weighting(combine: Combine) -> Callable[[Tensor], Tensor]:
    """TorchJD's weights of rows, given their Gram matrix."""
    try:
        from torchjd import aggregation
        from torchjd.linalg import QuadprogProjector

        makers: dict[Combine, Callable[[], Callable[[Tensor], Tensor]]] = {
            Combine.MEAN: aggregation.MeanWeighting,
            Combine.RANDOM: aggregation.RandomWeighting,
            Combine.PCGRAD: aggregation.PCGradWeighting,
            Combine.MGDA: aggregation.MGDAWeighting,
            Combine.IMTL_G: aggregation.IMTLGWeighting,
            Combine.CAGRAD: lambda: aggregation.CAGradWeighting(c=RADIUS),
            Combine.UPGRAD: lambda: aggregation.UPGradWeighting(projector=QuadprogProjector(reg_eps=REGULARIZATION)),
            Combine.DUALPROJ: lambda: aggregation.DualProjWeighting(
                projector=QuadprogProjector(reg_eps=REGULARIZATION)
            ),
        }
        return makers[combine]()
    except ImportError:
        raise ConfigError(
            f"training.combine: {combine} needs TorchJD and its solvers, which are not installed; run: pip install "
            "'task-interference[aggregators]'"
        ) from None


def _flag(name: str) -> str:
    """The variable by which accelerate says that a library divides the model."""
    return f"ACCELERATE_USE_{name.upper()}"


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(tasks[:20]) + (f" and {len(tasks) - 20} more" if len(tasks) > 20 else "")
