"""Which loss a Trainer has: the mean cross-entropy over supervised tokens, or one of its own, and in which words.

Not here: the rows and the collator of a Trainer (`trainer`).
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from interference.errors import MeasurementError
from interference.measurement.objective import Objective, agrees, first_batch, name_of, of_model, own_function
from interference.measurement.units import Batch, Workload, one_by_one
from interference.run.remarks import PLAIN_LOSS


def objective_of(trainer: Trainer, model: nn.Module, adapter: str, work: Workload) -> tuple[Objective, Workload]:
    """The trainer's loss, and the work, whose rows are collated one by one if that loss is its own.

    Args:
        trainer: Whose loss it is.
        model: Its model.
        adapter: The adapter that is active meanwhile.
        work: What will be measured.

    Returns:
        Both.
    """
    reasons = _reasons(trainer, model)
    own = Objective(partial(_loss, trainer), _words(trainer, reasons))
    if not reasons:
        first, work = first_batch(work)
        if first is None or _is_plain(trainer, model, adapter, first):
            return Objective(None, PLAIN_LOSS + _unfollowed(trainer)), work
    refuse_processes(trainer, f"{own.words} is measured in one process")
    return own, replace(work, parts=map(one_by_one, work.parts))


def _is_plain(trainer: Trainer, model: nn.Module, adapter: str, batch: Batch) -> bool:
    """Whether a trainer's loss, as whose settings nothing else is known, is the mean cross-entropy of an example."""
    if trainer.accelerator.num_processes == 1:
        return agrees(model, adapter, batch, partial(_loss, trainer))
    return _of_trl(trainer) or of_model(model, adapter, batch).loss is None  # TRL's loss waits for all processes


def _loss(trainer: Trainer, model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The loss of the trainer on a batch of one example, which is also the whole of its step."""
    count = trainer._get_num_items_in_batch([batch], batch["labels"].device) if trainer.args.n_gpu <= 1 else None
    found: Any = trainer.compute_loss(model, batch, num_items_in_batch=count)
    return found


def _reasons(trainer: Trainer, model: nn.Module) -> list[str]:
    """Why the trainer's loss is not the mean cross-entropy over supervised tokens, as its settings tell."""
    args, found = trainer.args, list[str]()
    if trainer.label_smoother is not None:
        found.append(f"label smoothing {args.label_smoothing_factor:g}")
    if trainer.compute_loss_func is not None:
        found.append(f"compute_loss_func {name_of(trainer.compute_loss_func)}")
    if _of_trl(trainer):
        if (kind := getattr(args, "loss_type", "nll")) not in ("nll", None):
            found.append(f"loss_type {kind}")
        if getattr(trainer, "aux_loss_enabled", False):
            found.append("the auxiliary loss of its routers")
    elif not _of_transformers(trainer):
        found.append("a compute_loss of its own")
    elif function := own_function(model):
        found.append(f"the model's loss function {function}")
    return found


def _words(trainer: Trainer, reasons: Sequence[str]) -> str:
    why = f" with {' and '.join(reasons)}" if reasons else ""
    return f"{type(trainer).__name__}.compute_loss{why}, one example per backward pass{_unfollowed(trainer)}"


def _unfollowed(trainer: Trainer) -> str:
    """That a training step of the trainer's own class may do more than follow the loss."""
    home = type(trainer).training_step.__module__.partition(".")[0]
    return "" if home in ("transformers", "trl") else "; its own training_step is not followed"


def _of_transformers(trainer: Trainer) -> bool:
    return type(trainer).compute_loss is Trainer.compute_loss and "compute_loss" not in vars(trainer)


def _of_trl(trainer: Trainer) -> bool:
    """Whether the loss is that of TRL's SFTTrainer."""
    trl: Any = sys.modules.get("trl.trainer.sft_trainer")
    if trl is None or not isinstance(trainer, trl.SFTTrainer) or "compute_loss" in vars(trainer):
        return False
    return bool(type(trainer).compute_loss is trl.SFTTrainer.compute_loss)


def refuse_processes(trainer: Trainer, what: str) -> None:
    """Raise a MeasurementError if several processes train."""
    if trainer.accelerator.num_processes > 1:
        raise MeasurementError(f"{what}, but {trainer.accelerator.num_processes} train; start one process")
