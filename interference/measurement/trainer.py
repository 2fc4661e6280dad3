"""Trainers: the rows, the collator and the loss of a transformers Trainer (also TRL's SFTTrainer) are what is measured.

Not here: measuring along a training (`interference.callback`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.utils import model_has_dtensor
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from interference.blocks import Component, Granularity, Step
from interference.config import MEMORY_BUDGET
from interference.errors import CheckpointError, ScopeError
from interference.gradients.state import own_randomness, set_aside, without_autocast
from interference.measurement.collated import refuse_packed
from interference.measurement.compute import measured
from interference.measurement.grouping import Groups, groups_of
from interference.measurement.labels import workload
from interference.measurement.optimizers import of_trainer
from interference.measurement.rows import Row, drawn
from interference.measurement.spec import Spec
from interference.measurement.trainer_loss import objective_of, refuse_processes
from interference.measurement.units import Batch, Part, Unit, Workload
from interference.run import Run
from mixlora.common.labels import IGNORED
from mixlora.common.progress import Progress, silent
from mixlora.data.groups import IMAGE

By = str | Mapping[str, Any]
"""A column whose values are the tasks, or {task: its dataset}."""


def from_trainer(
    trainer: Trainer,
    by: By = "task",
    samples: int = 100,
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    adapter: str | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    *,
    split: Literal["train", "eval"] = "train",
    batch_size: int | None = None,
    components: Sequence[Component | str] = (Component.LANGUAGE,),
    granularity: Granularity | str = Granularity.MODULE,
    weight_space: bool = False,
    routers: bool = False,
    memory_budget: int = MEMORY_BUDGET,
    spool_dir: Path | str | None = None,
    sketch: int | None = None,
    step: Step | str = Step.GRADIENT,
    optimizer: Optimizer | Path | str | None = None,
    groups: Groups = IMAGE,
    progress: Progress = silent,
) -> Run:
    """Measure a Trainer's model on its own data, with its own collator and its own loss.

    The gradient of an example is that of `trainer.training_step` on it alone, without dropout, in the precision of the
    model's own weights and before clipping. A loss that is the mean cross-entropy over supervised tokens is measured in
    batches; any other (label smoothing, `compute_loss_func`, a `compute_loss` of the trainer's class, a loss function
    of the model) by `trainer.compute_loss`, one example per backward pass. The run's meta names the loss.

    Trainer, model, datasets and random generators are left as they were.

    Args:
        trainer: A Trainer whose model has a LoRA or MixLoRA adapter, before, during or after its training.
        by: The column of the dataset whose values are the tasks, or {task: dataset}. Each dataset is prepared as the
            trainer prepares its own. A `trainer.eval_dataset` that is a dict of prepared datasets can be given as well.
        samples: Rows of a task, drawn with the seed; all if there are fewer.
        layers: Transformer blocks, from 0; None for all.
        modules: Module names ("q_proj") or "attention", "mlp"; None for all.
        adapter: The probed adapter; None for the active one.
        out: Also save the run to this directory.
        seed: Seed of the draw, the sketches and later bootstraps.
        split: Whether a column's rows are those of the "train" or the "eval" dataset.
        batch_size: Examples in one forward pass; None for `per_device_train_batch_size`.
        components: Parts of the model: "language", "vision", "projector".
        granularity: "module", "group" or "layer": how far blocks are summed before they are kept.
        weight_space: Also keep the Gram of the weight-space view.
        routers: Also measure MixLoRA's routers.
        memory_budget: Bytes that gradients may take in memory; the others wait on disk.
        spool_dir: Directory of the gradients on disk; None for the system's temporary directory.
        sketch: Keep this number of random sums instead of every block's gradient.
        step: "gradient", or "adam" to measure also the step that AdamW takes from a gradient (`space="adam"`).
        optimizer: Whose second moments AdamW's step divides by: an optimizer, or the path of its saved state. None for
            the trainer's own; before its first step they are estimated from the gradients.
        groups: Which rows are not independent, within a task and between two: those with the same picture ("image",
            by its content), those with one value of a column of this name, or those with one label of {task: a label
            for every row of it, in the dataset's order}; "none" if all are independent.
        progress: Called as the work goes on.

    Returns:
        The run, in memory. Its probes name rows by their number in the prepared dataset.

    Raises:
        ScopeError: If the rows cannot be drawn or told apart by task, or one holds several packed examples. Also if a
            row lacks what `groups` names, or its labels do not fit the rows.
        CheckpointError: If the model has no adapter that can be probed, or no process holds all of its weights.
        MeasurementError: As in `interference.compute`, and if several processes would measure.

    Example:
        >>> import interference, torch, transformers
        >>> from peft import LoraConfig, get_peft_model
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size))
        >>> model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        >>> rows = [{"input_ids": [1, k + 2, 3], "labels": [1, k + 2, 3], "task": "ab"[k % 2]} for k in range(8)]
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> arguments = transformers.TrainingArguments(folder.name, use_cpu=True, report_to="none")
        >>> trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        >>> interference.from_trainer(trainer, by="task", samples=3)
        Run(6 units: a 3, b 3; 2 blocks)
    """
    spec = Spec.checked(
        layers=layers, modules=modules, adapter=adapter, components=components, routers=routers, unit="example",
        granularity=granularity, weight_space=weight_space, sketch=sketch, seed=seed, memory_budget=memory_budget,
        step=step,
    )  # fmt: skip
    refuse_shards(trainer)
    refuse_processes(trainer, "from_trainer measures in one process")
    with handed_over(trainer, spec.seed) as model:
        rows = drawn(trainer, by, samples, spec.seed, split, None if isinstance(groups, str) else groups)
        shared, size = groups_of(rows, groups), batch_size or trainer.args.per_device_train_batch_size
        work = _workload(trainer, rows, shared, size)
        told = {"by": by if isinstance(by, str) else sorted(map(str, by)), "samples": samples, "split": split}
        told["groups"] = groups if isinstance(groups, str) else "labels"
        return measured(
            model, spec, work, partial(objective_of, trainer), out, spool_dir, progress,
            of_trainer(trainer, spec.step, optimizer), trainer={"class": type(trainer).__name__, **told},
        )  # fmt: skip


def trainer_batches(
    trainer: Trainer, by: By = "task", samples: int = 100, seed: int = 0, split: Literal["train", "eval"] = "train"
) -> dict[str, list[Batch]]:
    """The examples that `from_trainer` measures, each collated alone by the trainer's own collator, by task.

    They are what `interference.verify` needs of such a run.

    Args:
        trainer: As given to `from_trainer`, like the others.
        by: The column of the tasks, or their datasets.
        samples: Rows of a task.
        seed: Seed of the draw.
        split: "train" or "eval".

    Returns:
        {task: batches of one example}, as `interference.compute` takes them.

    Raises:
        ScopeError: As `from_trainer`.

    Example:
        >>> def again(run, trainer):
        ...     batches = interference.trainer_batches(trainer, by="task", samples=100)
        ...     return interference.verify(run, trainer.model, batches, loss=trainer.compute_loss)
    """
    with handed_over(trainer, seed):
        return _by_task(trainer, drawn(trainer, by, samples, seed, split))


def grouped_batches(
    trainer: Trainer, by: str, samples: int, seed: int, groups: Groups
) -> tuple[dict[str, list[Batch]], dict[str, list[int]]]:
    """What `trainer_batches` gives of the training data, and the groups of the batches.

    Args:
        trainer: As given to `from_trainer`, like the others.
        by: The column of the tasks.
        samples: Rows of a task.
        seed: Seed of the draw.
        groups: Which rows are not independent.

    Returns:
        {task: batches of one example}, and {task: the group of each of its batches}.

    Raises:
        ScopeError: As `from_trainer`.
    """
    with handed_over(trainer, seed):
        rows = drawn(trainer, by, samples, seed, "train", None if isinstance(groups, str) else groups)
        labels: dict[str, list[int]] = {}
        for row, group in zip(rows, groups_of(rows, groups), strict=True):
            labels.setdefault(row.task, []).append(group)
        return _by_task(trainer, rows), labels


def _by_task(trainer: Trainer, rows: Sequence[Row]) -> dict[str, list[Batch]]:
    found: dict[str, list[Batch]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(alone(trainer, row))
    return found


def measure_batches(trainer: Trainer, model: nn.Module, batches: Mapping[str, Iterable[Batch]], **options: Any) -> Run:
    """The run of `interference.compute` over batches, by the trainer's loss.

    Args:
        trainer: Whose loss is measured.
        model: Its model; see `handed_over`.
        batches: {task: collated batches}.
        **options: Of `interference.compute`.

    Returns:
        The run.

    Raises:
        ScopeError: If labels do not fit the batches.
    """
    where = {"spool_dir": options.pop("spool_dir", None), "progress": options.pop("progress", silent)}
    out, unit, groups = options.pop("out", None), options.pop("unit", "example"), options.pop("groups", None)
    defaults, optimizer = {"granularity": Granularity.MODULE, "sketch": None, "seed": 0}, options.pop("optimizer", None)
    spec = Spec.checked(unit=unit, **defaults | options)
    work, optimizer = workload(model, batches, unit, groups), of_trainer(trainer, spec.step, optimizer)
    return measured(model, spec, work, partial(objective_of, trainer), out, optimizer=optimizer, **where)


@contextmanager
def handed_over(trainer: Trainer, seed: int) -> Iterator[nn.Module]:
    """The trainer's model, unwrapped and without autocast; trainer and random generators are restored on leaving."""
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    with ExitStack() as stack:
        stack.enter_context(set_aside(trainer))
        stack.enter_context(own_randomness(seed))
        stack.enter_context(without_autocast(model))
        yield model


def refuse_shards(trainer: Trainer) -> None:
    """Raise a CheckpointError if no process of a training holds whole parameters."""
    plugin: Any = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    kind = (
        "FSDP" if trainer.is_fsdp_enabled
        else "DeepSpeed ZeRO-3" if plugin is not None and plugin.zero_stage == 3
        else "a sharded model (DTensor)" if model_has_dtensor(trainer.model)
        else None
    )  # fmt: skip
    if kind is not None:
        raise CheckpointError(
            f"the training uses {kind}, where no process has the whole parameters to measure; train with "
            "DistributedDataParallel or measure saved checkpoints with interference.compute"
        )


@dataclass(frozen=True)
class _Collated:
    """The batches of some rows, collated when they are iterated; `single`: one row at a time."""

    trainer: Trainer
    rows: Sequence[Row]
    single: bool = False

    def __iter__(self) -> Iterator[tuple[Batch, list[int]]]:
        """Yield them together if the collator keeps them apart, else one by one, as a padding-free collator needs."""
        if len(self.rows) > 1 and not self.single:
            batch = _prepared(self.trainer, self.rows)
            if len(batch["labels"]) == len(self.rows):
                refuse_packed(batch, self.rows[0].source)
                for k, row in enumerate(self.rows):
                    _check_supervised(batch["labels"][k], row)
                yield batch, list(range(len(self.rows)))
                return
        for k, row in enumerate(self.rows):
            yield alone(self.trainer, row), [k]

    def alone(self) -> "_Collated":
        """The same, one row at a time."""
        return replace(self, single=True)


def _workload(trainer: Trainer, rows: Sequence[Row], groups: Sequence[int], batch_size: int) -> Workload:
    """Parts of rows of similar length; the longest come first. A part that is one row is measured as it is trained."""
    order = sorted(range(len(rows)), key=lambda k: (-rows[k].length, k))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    units = [Unit(row.task, row.id, row.source, group) for row, group in zip(rows, groups, strict=True)]
    parts = [Part([units[k] for k in chunk], _Collated(trainer, [rows[k] for k in chunk])) for chunk in chunks]
    return Workload(parts, list(dict.fromkeys(row.task for row in rows)), np.array(order, dtype=np.intp), len(rows))


def alone(trainer: Trainer, row: Row) -> dict[str, Any]:
    """A row as a batch of its own, as the trainer's collator and its own preparation make it."""
    batch = _prepared(trainer, [row])
    refuse_packed(batch, row.source)
    if len(batch["labels"]) != 1:
        raise ScopeError(f"{row.source}: the trainer's collator makes {len(batch['labels'])} rows from one example")
    _check_supervised(batch["labels"][0], row)
    return batch


def _prepared(trainer: Trainer, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as the trainer's collator and its own preparation hand them to the loss."""
    collated = dict(rows[0].source_of.collate([row.item() for row in rows]))
    batch = dict(trainer._prepare_inputs(collated))
    if not isinstance(batch.get("labels"), Tensor):
        raise ScopeError(
            f"{rows[0].source}: the trainer's collator gives no labels, only {', '.join(map(str, batch))}; "
            "from_trainer measures losses of labelled tokens (Trainer, SFTTrainer)"
        )
    return {"tasks": [row.task for row in rows], **batch}


def _check_supervised(labels: Tensor, row: Row) -> None:
    if not bool((labels[1:] != IGNORED).any()):
        raise ScopeError(
            f"{row.source}: no token is supervised (every label is -100 or its first token), so the trainer learns "
            "nothing from it; leave the row out of the dataset"
        )
