"""AdamW's step of a run against torch's own AdamW: its Gram matrices, and what real steps do to the losses.

The optimizer is made as a Trainer makes it and loads the saved state itself, so that nothing is shared with how a run
reads it. Momentum is set to zero and weight decay left out; the second moments take the new gradient in, as they do in
training.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import Trainer

from interference.blocks import Space, Step
from interference.errors import MeasurementError, RunError
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Target
from interference.measurement.optimizers import file_of, moments_of
from interference.run import Run
from interference.run.grams import block_of
from interference.verification.products import Products, Rows, least_of, share, sides_of
from interference.verification.result import AdamVerification
from interference.verification.steps import SHARES, agreement, linear_until
from mixlora.checkpoints.pickled import map_values
from mixlora.common.files import expanded
from mixlora.common.progress import Progress

MATURE = 10**6
"""Steps of a state whose second moments need no correction for their start at zero."""


class Held:
    """torch's AdamW of the probed parameters, with second moments alone.

    Args:
        model: the model.
        targets: its probed modules.
        state: {id of a parameter: its state and group}.
    """

    def __init__(self, targets: Sequence[Target], state: Mapping[int, tuple[dict[str, Any], dict[str, Any]]]) -> None:
        self.weights = {tap.block.name: tap.weight for target in targets for tap in target.taps.values()}
        self._state = {name: state[id(weight)] for name, weight in self.weights.items()}
        keys = ("betas", "eps", "amsgrad")
        groups = [
            {"params": [weight], **{key: self._state[name][1][key] for key in keys if key in self._state[name][1]}}
            for name, weight in self.weights.items()
        ]
        self._optimizer = AdamW(groups, lr=1.0, weight_decay=0.0)

    def scales(self, name: str) -> Tensor:
        """[entries]: P of a block, by the formula."""
        state, group = self._state[name]
        squares = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"].cpu().double()
        unbiased = squares / (1 - group["betas"][1] ** float(state["step"]))
        return 1 / (unbiased.sqrt() + group["eps"]).flatten()

    def roots(self, gradients: Rows) -> dict[str, Tensor]:
        """{block: [units, entries]}: P^(1/2) g, whose inner products are <g_u, P g_v>."""
        return {name: rows.flatten(1).double() * self.scales(name).sqrt() for name, rows in gradients.items()}

    def squares(self, gradients: Rows) -> dict[str, NDArray[np.float64]]:
        """{block: [units]}: |P g|^2 in it."""
        return {
            name: (rows.flatten(1) * self.scales(name)).square().sum(dim=1).numpy() for name, rows in gradients.items()
        }

    @contextmanager
    def stepped(self, gradient: Rows, length: float, of_direction: float) -> Iterator[float]:
        """Inside, the parameters are one real step away; its length.

        Args:
            gradient: of one unit, or the mean of several.
            length: that the step would have if its gradient did not change the second moments.
            of_direction: |P g|.
        """
        kept = {name: (weight.detach().clone(), weight.grad) for name, weight in self.weights.items()}
        try:
            for (name, weight), group in zip(self.weights.items(), self._optimizer.param_groups, strict=True):
                self._reset(name, group, length / of_direction)
                weight.grad = gradient[name].view(weight.shape).to(weight)
            self._optimizer.step()
            apart = ((weight - kept[name][0]).double().square().sum() for name, weight in self.weights.items())
            yield math.sqrt(sum(map(float, apart)))
        finally:
            for name, weight in self.weights.items():
                weight.data.copy_(kept[name][0])
                weight.grad = kept[name][1]

    def _reset(self, name: str, group: dict[str, Any], rate: float) -> None:
        """Give a parameter its saved moments without momentum, and the rate that makes up for the missing momentum."""
        weight, (held, _), beta = self.weights[name], self._state[name], group["betas"][0]
        group["lr"] = rate * (1 - beta ** (float(held["step"]) + 1)) / (1 - beta)
        moments = {key: held[key].detach().clone().to(weight.device) for key in held if key != "step"}
        step, momentum = torch.tensor(float(held["step"])), torch.zeros_like(moments["exp_avg"])
        self._optimizer.state[weight] = {**moments, "step": step, "exp_avg": momentum}


def held(run: Run, model: nn.Module, targets: Sequence[Target], optimizer: Optimizer | Path | str | None) -> Held:
    """The AdamW that a run's step is checked against.

    Raises:
        RunError: if the run read a state that is not given, or that has changed.
        CheckpointError: if the state that is given is not AdamW's, or of another adapter.
    """
    adam = run.meta["adam"]
    if adam.get("source") is None:
        return Held(targets, _estimated(run, targets))
    moments = moments_of(Step.ADAM, optimizer, model, targets)
    if moments is None:
        raise RunError(
            f"the run measured AdamW's step by {adam['source']}; verify needs it: restore it, or pass optimizer="
        )
    if moments.digest != adam.get("digest"):
        raise RunError(
            f"the optimizer's state {moments.source} is not the one that the run was computed with; compute it again"
        )
    own = (
        optimizer if isinstance(optimizer, Optimizer) else _loaded(expanded(str(optimizer)), model, targets[0].adapter)
    )
    return Held(targets, {id(p): (own.state[p], group) for group in own.param_groups for p in group["params"]})


class AdamCheck:
    """Compares a run's step of AdamW with what torch does: of the chosen units, then of others.

    Args:
        run: the run.
        targets: its probed modules.
        optimizer: of `held`.
        chosen: places of the units whose losses are read.
        derived: their gradients.
    """

    def __init__(
        self, run: Run, targets: Sequence[Target], optimizer: Held, chosen: Sequence[int], derived: Rows
    ) -> None:
        self._run, self._adapter, self._optimizer, self._chosen = run, targets[0].adapter, optimizer, list(chosen)
        self._products = Products(run, targets, chosen, optimizer.roots(derived), steps=True)
        self._squares: dict[int, dict[str, NDArray[np.float64]]] = {}
        self._places: dict[str, list[int]] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}
        for k, place in enumerate(chosen):
            self._take(place, {name: rows[k : k + 1] for name, rows in derived.items()})

    def add(self, place: int, derived: Rows) -> None:
        """Take the gradient of the unit at a place of the run into account."""
        self._products.add(place, self._optimizer.roots(derived))
        self._take(place, derived)

    def _take(self, place: int, rows: Rows) -> None:
        self._squares[place] = self._products.summed(self._optimizer.squares(rows).items())
        task = self._run.probes["task"].iloc[place]
        self._places.setdefault(task, []).append(place)
        sums = self._sums.setdefault(task, {})
        for name, row in rows.items():
            sums[name] = sums[name] + row if name in sums else row

    def result(
        self, model: nn.Module, losses: Callable[[], NDArray[np.float64]], progress: Progress
    ) -> AdamVerification:
        """The errors, and real steps.

        Args:
            model: the model.
            losses: as in `real_steps`, of the chosen units.
            progress: called after every step size.

        Raises:
            MeasurementError: if no task's step moves a loss.
        """
        lengths = self._length_errors()
        errors = {name: max(error, lengths[name]) for name, error in self._products.errors().items()}
        worst = max(errors, key=lambda name: errors[name])
        with as_found(model), torch.no_grad():
            activate(model, self._adapter)
            model.eval()
            steps = self._steps(losses, progress)
        return AdamVerification(errors[worst], block_of(worst), steps, linear_until(steps))

    def _length_errors(self) -> dict[str, float]:
        """{name of a Gram matrix: the largest relative error of the length of a step}."""
        theta: Any = self._run.theta(space=Space.ADAM, aggregate="mean")
        sides, derived = sides_of(self._run, steps=True), list(self._squares.values())
        norms = {name: np.sqrt(np.concatenate([each[name] for each in derived])) for name in derived[0]}
        least, found = least_of(norms, sides), dict.fromkeys(sides, math.inf)
        for name, squares in zip(sides, theta.squares, strict=True):
            if name in norms and (squares >= 0).all() and np.isfinite(squares).all():
                off = np.abs(np.sqrt(squares[list(self._squares)].astype(np.float64)) - norms[name])
                found[name] = share(off, np.maximum(norms[name], least[sides[name]]))
        return found

    def _steps(self, losses: Callable[[], NDArray[np.float64]], progress: Progress) -> pd.DataFrame:
        """Real steps, each task's along the mean gradient of its units, as a batch of training would.

        Args:
            losses: of the chosen units, [units], as the model is.
            progress: called after every step size.
        """
        means = self._means()
        squares = [self._optimizer.squares(mean).values() for mean in means]
        lengths = [math.sqrt(sum(float(each.sum()) for each in own)) for own in squares]
        slopes = self._slopes(lengths)
        typical = math.sqrt(float(np.mean(slopes**2)))
        if typical == 0:
            raise MeasurementError("no task's step of AdamW moves a loss that is read; draw more units (--units)")
        before, rows = losses(), []
        for done, size in enumerate(SHARES):
            step = size * float(before.mean()) / typical
            predicted, real = np.zeros_like(slopes), np.zeros_like(slopes)
            for k in np.flatnonzero(lengths):
                with self._optimizer.stepped(means[k], step, lengths[k]) as length:
                    predicted[k], real[k] = length * slopes[k], before - losses()
            rows.append({"step": step, **agreement(predicted.ravel(), real.ravel()), "pairs": slopes.size})
            progress("steps of adam", done + 1, len(SHARES))
        return pd.DataFrame(rows)

    def _means(self) -> list[dict[str, Tensor]]:
        """The mean gradient of each task's units."""
        counts = [len(places) for places in self._places.values()]
        return [
            {name: row / count for name, row in sums.items()}
            for count, sums in zip(counts, self._sums.values(), strict=True)
        ]

    def _slopes(self, lengths: Sequence[float]) -> NDArray[np.float64]:
        """[tasks, chosen units]: by the run, how a loss falls along a task's mean step, of which this is the length."""
        gram = self._run.gram(space=Space.ADAM)
        inner = [gram[np.ix_(places, self._chosen)].mean(0, np.float64) for places in self._places.values()]
        return np.stack([row / (length or math.inf) for row, length in zip(inner, lengths, strict=True)])


def _estimated(run: Run, targets: Sequence[Target]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """States with the second moments that a run estimated and keeps."""
    found = {}
    for tap in (tap for target in targets for tap in target.taps.values()):
        kept = run.moments.get(tap.block.name)
        if kept is None or kept.size != tap.weight.numel():
            raise RunError(f"the run lacks the second moments of block {tap.block.name}; compute it again")
        squares = torch.tensor(kept).view(tap.weight.shape)
        state = {"step": torch.tensor(float(MATURE)), "exp_avg": torch.zeros_like(squares), "exp_avg_sq": squares}
        found[id(tap.weight)] = (state, {"betas": (0.9, 0.999), "eps": 1e-8})
    return found


def _loaded(path: Path, model: Any, adapter: str) -> Optimizer:
    """The optimizer that a Trainer makes for an adapter, with a saved state that it loads itself."""
    state = map_values(file_of(path))
    with as_found(model):
        if isinstance(model, PeftModel):  # else it is as its training left it
            tuner: Any = model.base_model
            tuner._mark_only_adapters_as_trainable(tuner.model)
            model.set_adapter(adapter)
        if len(state["param_groups"]) == 1:
            made: Optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
        else:
            trainer: Any = Trainer.__new__(Trainer)  # whole, it would claim a device and a directory for this process
            trainer.model, trainer.optimizer, trainer.optimizer_cls_and_kwargs = model, None, (AdamW, {})
            trainer.args = SimpleNamespace(weight_decay=0.0)
            made = trainer.create_optimizer()
        made.load_state_dict(state)
    return made
