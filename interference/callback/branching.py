"""LookaheadCallback: branches from where a Trainer's training stands, every n steps, and keeps a series of lookaheads.

Not here: when it branches (`along`), and the branches themselves (`prediction.trainers`).
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer

from interference.branching.readings import Readings
from interference.branching.trainers import TrainerBranches, batch_size, optimizer_of, refuse_unbranched
from interference.callback.along import Along, check_batches
from interference.config import ascending, whole_seed
from interference.errors import ConfigError, RunError, ScopeError
from interference.measurement.checkpoint import provenance
from interference.measurement.labels import Labels, check_labels
from interference.measurement.rows import Row, drawn
from interference.measurement.series import Kind
from interference.measurement.trainer import By, alone, handed_over
from interference.measurement.units import Batch
from interference.prediction import Lookahead, horizons
from interference.statistics.significance import Verdict
from mixlora.checkpoints.fingerprints import fingerprints

CONVENTIONS = {
    "axes": "rows are the affected task i, columns the stepped task j",
    "delta": "mean over seeds and examples of i of the loss where the training stands minus the loss after j's branch",
    "interference": "delta of i along j over delta of i along i",
    "optimizer": "the trainer's own with its state, at the learning rate that it had, which stays constant",
    "mode": "the training's own in steps, evaluation in the losses that are read",
}


def _meta_of(folder: Path) -> dict[str, Any]:
    try:
        return horizons.meta_of(folder)
    except RunError:
        return {}


def _marked(found: Lookahead, keys: Mapping[str, Any]) -> Lookahead:
    return replace(found, meta={**found.meta, **keys})


LOOKAHEADS = Kind("lookaheads", horizons.MARKER, horizons.load, _meta_of, _marked)
"""Lookaheads of a callback that branches."""


class LookaheadCallback(Along[Lookahead]):
    """Looks ahead along a training: real steps along single tasks from where it stands, and back.

    Every `every` optimizer steps it takes, for each task, steps on that task's rows alone, as the Trainer (also TRL's
    SFTTrainer) would. Collator, `training_step`, clipping and optimizer are the trainer's own; the optimizer has its
    present state and learning rate. After each number of `steps` it reads all tasks' held-out losses. Then it goes
    back. Each time saves a lookahead to `out/step-<N>`, as `interference lookahead` saves it, and adds an entry to the
    Trainer's log:

        lookahead/<affected>/<stepped>  interference after the largest number of steps

    The log omits values that are not finite, and every value of a task whose own branch lowers its loss by nothing that
    can be told from noise. The lookahead has them all.

    The callback does not change the training: weights, the optimizer's state, random numbers, gradients and the
    Trainer's own log entries are those of a training without it. The learning rate stays constant along a branch; the
    scheduler is not stepped. Where every rate is 0, as before the first step of a warm-up or after the last of a decay,
    no branch would move, and there is no lookahead.

    Losses are the trainer's own, in evaluation mode and in the precision of the model's weights; see
    `InterferenceCallback`. No row that branches train on may be one that is read, by its tokens and pictures. Whether
    the training itself has seen what is read depends on your data: give examples that were held out of it.

    Each time costs tasks x seeds x `steps[-1]` training steps, and tasks x seeds x `len(steps)` + 1 readings of all
    held-out examples. It takes memory for a copy of the trained weights and of the optimizer's state.

    One process trains. Parameters in shards, DeepSpeed, paged optimizers and those that step within the backward pass
    raise an error before the first step, as does a directory that holds a series. A resumed training continues the
    series. Later errors (a branch that diverges, a full disk) end the training.

    Args:
        trainer: The Trainer that the callback is added to.
        branches: What branches train on: the name of a column of the trainer's `train_dataset` whose values are the
            tasks, or {task: its dataset}, prepared as the trainer prepares its own. As many rows as branches take are
            drawn with the seed.
        held_out: {task: collated batches} whose losses are read, as for `interference.compute`; each a list or another
            iterable that yields the same batches every time.
        steps: Numbers of optimizer steps after which losses are read, ascending.
        every: Optimizer steps from one lookahead to the next.
        out: Directory of the lookaheads; None keeps them in memory.
        seeds: Branches along each task, at least 2, each with an order of rows and dropout of its own.
        first: Look ahead before the first step.
        last: Look ahead after the last step.
        seed: Of the first branch along a task, of the draw of rows and of the bootstraps.
        groups: {task: a label for every held-out example}: those with one label are not independent. None if all are.

    Raises:
        ConfigError: If `every`, `steps`, `seeds` or `seed` cannot be used.
        ScopeError: If there is one task alone, the tasks of both are not the same, `held_out` can be read only once, or
            `groups` does not fit it.

    Example:
        >>> import interference, tempfile, torch, transformers
        >>> from peft import LoraConfig, get_peft_model
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size))
        >>> model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        >>> rows = [{"input_ids": (ids := torch.randint(32, (9,))), "labels": ids} for _ in range(16)]
        >>> options = {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        >>> folder = tempfile.TemporaryDirectory()
        >>> arguments = transformers.TrainingArguments(folder.name, use_cpu=True, **options)
        >>> trainer = transformers.Trainer(model, arguments, train_dataset=rows[:8])
        >>> held_out = {task: [trainer.data_collator(rows[k : k + 4])] for task, k in (("a", 8), ("b", 12))}
        >>> callback = interference.LookaheadCallback(trainer, {"a": rows[:4], "b": rows[4:8]}, held_out, every=1)
        >>> trainer.add_callback(callback)
        >>> trainer.remove_callback(transformers.PrinterCallback)  # which would print every entry of the log
        >>> _ = trainer.train()
        >>> list(callback.lookaheads)  # after step 2 the rate has decayed to 0
        [0, 1]
        >>> callback.lookaheads[1].matrix("delta").shape
        (2, 2)
    """

    def __init__(
        self,
        trainer: Trainer,
        branches: By,
        held_out: Mapping[str, Iterable[Batch]],
        steps: Sequence[int] = (1, 5),
        every: int = 50,
        out: Path | str | None = None,
        *,
        seeds: int = 3,
        first: bool = True,
        last: bool = True,
        seed: int = 0,
        groups: Labels | None = None,
    ) -> None:
        super().__init__(trainer, every, out, LOOKAHEADS, first, last)
        check_batches(held_out)
        if len(held_out) < 2:
            raise ScopeError("a lookahead is of pairs of tasks, but held_out has one task; give it another")
        if groups is not None:
            check_labels(groups, held_out, "example")
        if seeds < 2:
            raise ConfigError(f"seeds is {seeds}, but must be at least 2: intervals are over seeds, too")
        self.branches = branches
        self.held_out = held_out
        self.steps = _numbers(steps)
        self.seeds = list(range(whole_seed(seed), seed + seeds))
        self.seed = seed
        self.groups = groups
        self._made: TrainerBranches | None = None

    @property
    def lookaheads(self) -> dict[int, Lookahead]:
        """The lookaheads by step, in order; those in `out` are read on each access."""
        return self._series.all()

    def _refuse(self) -> None:
        refuse_unbranched(self.trainer)
        self._made = None  # of an earlier training, whose batches may have been larger

    def _check(self) -> None:
        self._prepared()

    def _find(self) -> Lookahead | None:
        began, made = time.perf_counter(), self._prepared()
        if not any(float(group["lr"]) for group in optimizer_of(self.trainer).param_groups):
            return None
        before = made.before().numpy()
        losses = [
            np.stack([made.along(task, seed, self.steps).numpy() for task in self.held_out]) for seed in self.seeds
        ]
        meta = {**self._meta(made), "seconds": round(time.perf_counter() - began, 2)}
        return Lookahead(made.readings.table().assign(loss=before), np.stack(losses), meta)

    def _told(self, found: Lookahead, step: int) -> dict[str, float]:
        table = found.table("interference", self.steps[-1])
        table = table[(table["affected"] != table["stepped"]) & (table["verdict"] != Verdict.NO_SIGNAL)]
        cells = zip(table["affected"], table["stepped"], table["value"], strict=True)
        return {f"lookahead/{i}/{j}": float(value) for i, j, value in cells if math.isfinite(value)}

    def _prepared(self) -> TrainerBranches:
        """What branches train on and what is read, drawn and checked the first time."""
        if self._made is None:
            need = batch_size(self.trainer) * self.steps[-1] * len(self.seeds)
            with handed_over(self.trainer, self.seed):
                rows: dict[str, list[Row]] = {}
                for row in drawn(self.trainer, self.branches, max(need, 2), self.seed, "train"):
                    rows.setdefault(row.task, []).append(row)
                if rows.keys() != self.held_out.keys():
                    raise ScopeError(
                        f"branches has the tasks {', '.join(rows)}, but held_out has {', '.join(self.held_out)}; give "
                        "both the same"
                    )
                readings = Readings(self.trainer, self.held_out, self.groups, self.seed)
                readings.table()  # every task has two groups
                self._refuse_shared(rows, readings)
            self._made = TrainerBranches(self.trainer, rows, readings)
        return self._made

    def _refuse_shared(self, rows: Mapping[str, Sequence[Row]], readings: Readings) -> None:
        """Raise a ScopeError if something that is trained on is also read."""
        for own in rows.values():
            for row in own:
                if (place := readings.place_of(alone(self.trainer, row))) is not None:
                    raise ScopeError(
                        f"{row.source} is what branches train on, but is also read ({place}); hold examples out that "
                        "no branch trains on"
                    )

    def _meta(self, made: TrainerBranches) -> dict[str, Any]:
        """What a lookahead records of how it came about."""
        model = made.readings.model
        told = {
            task: {"from": own[0].source_of.name, "examples": len(own), "left_out": 0}
            for task, own in made.rows.items()
        }
        return {
            "adapter": getattr(model, "active_adapter", None),
            "seed": self.seed,
            "steps": self.steps,
            "seeds": self.seeds,
            "recipe": self._recipe(),
            "trained_on": told,
            "loss": made.readings.objective.words,
            "conventions": CONVENTIONS,
            **provenance(fingerprints(model)),
        }

    def _recipe(self) -> dict[str, Any]:
        """How the trainer steps where it stands."""
        trainer, optimizer = self.trainer, optimizer_of(self.trainer)
        group = optimizer.param_groups[0]
        return {
            "learning_rate": float(group["lr"]),
            "batch_size": batch_size(trainer),
            "weight_decay": float(group.get("weight_decay", 0.0)),
            "max_grad_norm": float(trainer.args.max_grad_norm or 0.0),
            "optimizer": f"{type(optimizer).__name__} with the state that it had",
            "of": f"{type(trainer).__name__} at step {trainer.state.global_step}",
        }


def _numbers(steps: Sequence[int]) -> list[int]:
    """Numbers of steps.

    Raises:
        ConfigError: If they are not ascending, or not whole numbers from 1 on.
    """
    if not steps or any(isinstance(each, bool) or not isinstance(each, int) for each in steps):
        raise ConfigError(f"steps is {steps!r:.60}, but must be whole numbers of optimizer steps, as (1, 5)")
    try:
        return ascending(list(steps), "a branch of 0 steps is where the training stands")
    except ValueError as error:
        raise ConfigError(f"steps is {steps!r:.60}: {error}") from None
