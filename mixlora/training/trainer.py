"""Training steps: transformers' Trainer with the epochs of `order`, batches of `Collator`, and tasks for routers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from mixlora.checkpoints.loading import without_bars
from mixlora.common import processes
from mixlora.common.errors import ConfigError, TrainingError
from mixlora.common.progress import Progress
from mixlora.data.collation import Collator
from mixlora.data.examples import Example
from mixlora.training.config import EPOCHS, RecipeSection
from mixlora.training.folder import Folder, seal, written
from mixlora.training.order import Epochs


class TaskTrainer(Trainer):
    """Trainer that takes its examples from `Epochs` and stops if the loss is not finite.

    Raises:
        TrainingError: in `train`: a gradient is not finite (then no process has stepped or saved with it), or a
            checkpoint cannot be written.
    """

    def __init__(self, *args: Any, epochs: Epochs, **kwargs: Any) -> None:
        self.epochs = epochs
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.epochs

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> None:
        self.epochs.set_epoch(epoch)  # accelerate does not when processes resume within an epoch
        if self.state.global_step < self.state.max_steps:  # not so if only the final saving was interrupted
            super()._run_epoch(model, epoch, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        with without_bars():
            super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with written(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)
            seal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}", self.args.process_index)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own: Any = self.model
        if isinstance(own, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with without_bars():  # names on disk differ from those in memory: Trainer would load nothing
            saved = type(own).from_pretrained(resume_from_checkpoint, dtype="auto")
        own.load_state_dict(saved.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the state is written next, and marks a checkpoint as whole

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(norm):
            raise TrainingError(
                f"{Path(str(self.args.output_dir)).parent}: the loss is no longer a number at step "
                f"{self.state.global_step + 1}; lower training.learning_rate, or choose model.dtype: float32"
            )
        return norm


class Batches:
    """Collates examples; if routers look at tasks, adds the tasks' names."""

    def __init__(self, collator: Collator, mixed: bool, named: bool) -> None:
        self.collator = collator
        self.mixed = mixed
        self.named = named

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor | list[str]]:
        """The batch of these examples."""
        encoded = [self.collator.encode(example) for example in examples]
        batch: dict[str, Tensor | list[str]] = dict(self.collator.collate(encoded, mixed=self.mixed))
        if self.named:
            batch["tasks"] = [example.task for example in examples]
        return batch


class Snapshots(TrainerCallback):
    """Saves the weights alone after certain steps."""

    def __init__(self, steps: Sequence[int], save: Callable[[int], None]) -> None:
        self.steps = steps
        self.save = save

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save those before the first step."""
        if state.global_step == 0:
            self.on_step_end(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save those after a step."""
        if state.global_step in self.steps:
            self.save(state.global_step)


class Report(TrainerCallback):
    """Reports progress, and makes Trainer log the loss at the last step and at every checkpoint.

    So no logged mean spans a checkpoint, and a resumed training logs the same losses as an uninterrupted one.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report after each step."""
        control.should_log |= control.should_save or state.global_step >= state.max_steps
        self.progress("training", state.global_step, state.max_steps)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log after an epoch that ends with a checkpoint."""
        control.should_log |= control.should_save


def arguments(recipe: RecipeSection, folder: Folder, device: str, mixed: bool) -> TrainingArguments:
    """Trainer's arguments.

    Raises:
        ConfigError: if batches cannot be divided among the processes, an integration of `report_to` is not installed,
            or transformers refuses a value.
    """
    world_size = processes.count()
    micro = recipe.micro(world_size)
    together = micro * world_size
    if recipe.batch_size % together:
        raise ConfigError(
            f"training.batch_size {recipe.batch_size} is not a multiple of micro_batch_size {micro} x {world_size} "
            "processes; choose one that is, or another training.micro_batch_size"
        )
    installed = get_available_reporting_integrations()
    if missing := [name for name in recipe.report_to if name not in installed]:
        raise ConfigError(
            f"training.report_to: {missing[0]!r} is not installed here; install it, or choose from: "
            f"{', '.join(installed) or '(none)'}"
        )
    try:
        return TrainingArguments(
            output_dir=str(folder.checkpoints),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=recipe.batch_size // together,
            num_train_epochs=recipe.epochs or EPOCHS,
            max_steps=recipe.steps or -1,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.lr_scheduler_type,
            warmup_steps=recipe.warmup,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            bf16=recipe.bf16,
            gradient_checkpointing=recipe.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.gradient_checkpointing else None,
            seed=recipe.seed,
            data_seed=recipe.seed,
            dataloader_num_workers=recipe.workers,
            logging_steps=recipe.logging_steps,
            logging_nan_inf_filter=False,
            report_to=recipe.report_to or "none",
            save_strategy="epoch" if recipe.save_steps is None else "steps",
            save_steps=recipe.save_steps or 1,
            save_total_limit=recipe.keep,
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=device == "cpu",
            ddp_find_unused_parameters=mixed,
            disable_tqdm=True,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"training: {error}") from None
