"""A training from its configuration to the adapter or model on disk."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from mixlora import checkpoint
from mixlora.config import Routing
from mixlora.data.checking import fingerprint
from mixlora.data.collation import Collator
from mixlora.errors import ConfigError, TrainingError
from mixlora.files import file_name
from mixlora.progress import Progress, silent
from mixlora.sections import resolved
from mixlora.training.config import Method, TrainConfig
from mixlora.training.corpus import Examples, gather
from mixlora.training.folder import Folder
from mixlora.training.methods import prepare
from mixlora.training.order import Epochs
from mixlora.training.trainer import Batches, Finite, Report, Snapshots, TaskTrainer, arguments

MakeCallback = Callable[[Trainer], TrainerCallback]
"""Makes a callback for a Trainer, as `interference.InterferenceCallback` wants to be made."""


def train(config: TrainConfig, progress: Progress = silent, callbacks: Sequence[MakeCallback] = ()) -> list[Path]:
    """The directories of what was trained: one, or one a task for specialists.

    All data is looked through first. A training that was interrupted goes on from its last checkpoint and ends with the
    weights of an uninterrupted one; one that has ended is left as it is.

    Args:
        config: what is trained, on what, and how; `out` is needed.
        progress: told of examples and steps.
        callbacks: makers of further callbacks.

    Raises:
        ConfigError: a value of the configuration cannot be used.
        DataError: examples cannot be used; the first twenty problems in words.
        CheckpointError: the base cannot be loaded, or `out` holds something else.
        TrainingError: memory ran out, or the loss is not a number any more.
    """
    if config.out is None:
        raise ConfigError("the configuration names no directory for what is trained; give out: or --out")
    if config.model.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"model.device is {config.model.device!r}, but training takes auto, cpu or cuda; choose a GPU by "
            "CUDA_VISIBLE_DEVICES"
        )
    processor = checkpoint.load_processor(config.model)
    collator = Collator(processor, config.training.max_length, config.model.chat_template)
    recipe = config.training
    examples = gather(config.tasks, collator, recipe.seed, recipe.check_images and _is_main(), progress)
    folder = Folder(Path(config.out), resolved(config), fingerprint(examples.examples))
    if config.method != Method.SPECIALIST:
        return [_train_one(config, folder, examples, collator, progress, callbacks)]
    if _is_main():
        folder.open()
    done = []
    for task in dict.fromkeys(examples.corpus.tasks):
        own = examples.only(task)
        specialist = Folder(
            folder.path / file_name(task), {**resolved(config), "task": task}, fingerprint(own.examples)
        )
        said = _of_task(progress, task)
        done.append(_train_one(config, specialist, own, collator, said, callbacks))
    if _is_main():
        folder.close({"specialists": {task: file_name(task) for task in dict.fromkeys(examples.corpus.tasks)}})
    return done


def _train_one(
    config: TrainConfig,
    folder: Folder,
    examples: Examples,
    collator: Collator,
    progress: Progress,
    callbacks: Sequence[MakeCallback],
) -> Path:
    if folder.finished:
        return folder.path
    recipe = config.training
    epochs = Epochs(examples.corpus, recipe.order, recipe.batch_size, recipe.seed)
    device = checkpoint.device_of(config.model.device)
    settings = arguments(recipe, folder, device.type, examples.mixed)
    base = checkpoint.load_base(config.model, device=_placed(config, device, settings.local_process_index))
    set_seed(recipe.seed)
    model = prepare(base, collator.tokenizer, config)
    if settings.process_index == 0:
        folder.open()
    finite = Finite()
    named = config.method == Method.MIXLORA and config.mixlora.routing == Routing.TASK
    trainer = TaskTrainer(
        model=model,
        args=settings,
        train_dataset=examples,
        data_collator=Batches(collator, examples.mixed, named),
        epochs=epochs,
        callbacks=[Report(progress), finite],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Snapshots(recipe.snapshots, lambda step: _snapshot(trainer, folder.snapshot(step))))
    for make in callbacks:
        trainer.add_callback(make(trainer))
    last = folder.last_checkpoint()
    with _told(config, max(examples.corpus.lengths)):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if finite.broken is not None:
        raise TrainingError(
            f"{folder.path}: the loss is not a number at step {finite.broken}; lower training.learning_rate, or "
            "choose model.dtype: float32"
        )
    _save(trainer, folder.path)
    if config.method == Method.FULL and trainer.is_world_process_zero():
        collator.processor.save_pretrained(folder.path)
    if trainer.is_world_process_zero():
        folder.close(_known(trainer, examples))
    trainer.accelerator.wait_for_everyone()
    return folder.path


def _placed(config: TrainConfig, device: torch.device, process: int) -> torch.device:
    """Where the base is loaded: quantized weights on the process's GPU, others where Trainer finds and moves them."""
    if config.model.quantization is None or device.type == "cpu":
        return torch.device("cpu")
    return torch.device(device.type, process)


def _save(trainer: Trainer, path: Path) -> None:
    trainer.save_model(str(path))
    if trainer.is_world_process_zero():
        (path / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing here reads


def _snapshot(trainer: Trainer, path: Path) -> None:
    """Weights along the way, whole or absent."""
    if path.exists():
        return
    growing = path.with_name(f".{path.name}.new")
    if trainer.is_world_process_zero():
        shutil.rmtree(growing, ignore_errors=True)
    _save(trainer, growing)
    if trainer.is_world_process_zero():
        growing.replace(path)


def _known(trainer: Any, examples: Examples) -> dict[str, Any]:
    """What a training's record says of it."""
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    counted = [parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad]
    tasks = examples.corpus.tasks
    return {
        "steps": trainer.state.global_step,
        "losses": losses,
        "trained_parameters": sum(counted),
        "examples": {task: tasks.count(task) for task in dict.fromkeys(tasks)},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "task-interference")},
    }


@contextlib.contextmanager
def _told(config: TrainConfig, longest: int) -> Iterator[None]:
    """Memory that runs out, in words."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        recipe = config.training
        checkpointing = "" if recipe.gradient_checkpointing else ", set training.gradient_checkpointing: true"
        raise TrainingError(
            f"memory ran out with {recipe.micro} examples of up to {longest} tokens in a forward pass: lower "
            f"training.micro_batch_size (batch_size may stay {recipe.batch_size}) or training.max_length"
            f"{checkpointing}; the same command then continues"
        ) from None


def _of_task(progress: Progress, task: str) -> Progress:
    return lambda stage, done, total: progress(f"{task}: {stage}", done, total)


def _is_main() -> bool:
    """Whether this is the first of several processes, before they know of each other."""
    return os.environ.get("RANK", "0") == "0"
