"""A whole training: from its configuration to the adapter or model on disk."""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME

from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import fingerprints, of_processing
from mixlora.checkpoints.prompting import load_collator, recorded_day, with_template
from mixlora.common import processes
from mixlora.common.errors import ConfigError, TrainingError
from mixlora.common.files import file_name, without_dots
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.common.writing import growing, whole_directory
from mixlora.data.checking import fingerprint
from mixlora.data.collation import Collator
from mixlora.training.combining import Combination, CombiningTrainer
from mixlora.training.config import EPOCHS, Method, RecipeSection, TrainConfig
from mixlora.training.corpus import Corpus, gather
from mixlora.training.folder import OWN, Folder, written
from mixlora.training.methods import adapter_config, prepare
from mixlora.training.order import Epochs
from mixlora.training.trainer import Batches, Report, Snapshots, TaskTrainer, arguments
from mixlora.tuner.config import Pooling, Routing

MakeCallback = Callable[[Trainer], TrainerCallback]
"""Makes a callback for a Trainer, as `interference.InterferenceCallback` needs."""


def train(
    config: TrainConfig,
    progress: Progress = silent,
    callbacks: Sequence[MakeCallback] = (),
    tell: Callable[[str], object] = lambda clause: None,
) -> list[Path]:
    """The directories of what was trained: one, or one a task for specialists.

    All data is checked first. An interrupted training resumes from its last checkpoint and ends with the weights of an
    uninterrupted one; a finished one is left unchanged.

    Args:
        config: what to train, on what, and how; `out` is required.
        progress: called after examples and steps.
        callbacks: makers of further callbacks.
        tell: told what a reader should know of the data before training starts, clause by clause.

    Raises:
        ConfigError: a value of the configuration cannot be used.
        DataError: some examples cannot be used; it describes the first twenty problems.
        CheckpointError: the base cannot be loaded, or `out` holds something else.
        RunError: `out` cannot be made, or another process trains there.
        TrainingError: memory ran out, `out` cannot be written, or the loss is not a number any more.
    """
    if config.out is None:
        raise ConfigError("the configuration names no directory for what is trained; give out: or --out")
    if config.model.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"model.device is {config.model.device!r}, but training takes auto, cpu or cuda; choose a GPU by "
            "CUDA_VISIBLE_DEVICES"
        )
    if config.method != Method.FULL:
        adapter_config(config)  # check its options before hours of other work
    out = without_dots(Path(config.out))
    config = TrainConfig.model_validate(resolved(config))  # an adapter stores the path of its base
    config.model.date = config.model.date or recorded_day(out)
    is_main = processes.meet(loading.kind_of(config.model.device))
    device = loading.device_of(config.model.device)  # the process's own GPU: `meet` has assigned one
    with contextlib.ExitStack() as stack:
        with processes.together():
            begun = Folder(out, resolved(config), None)  # refuse another training's directory before reading data
            if is_main and not begun.finished:
                stack.enter_context(begun.alone())
        return _train(config, out, device, is_main, progress, callbacks, tell)


def _train(
    config: TrainConfig,
    out: Path,
    device: torch.device,
    is_main: bool,
    progress: Progress,
    callbacks: Sequence[MakeCallback],
    tell: Callable[[str], object],
) -> list[Path]:
    report = progress if is_main else silent
    tell = tell if is_main else _unheard
    with processes.together():
        recipe = config.training
        collator = load_collator(config.model, max_length=recipe.max_length)
        config.model.date = collator.template.written_day
        corpus = gather(config.tasks, collator, recipe.seed, recipe.check_images and is_main, report)
        for clause in corpus.told:
            tell(clause)
        folder = Folder(out, resolved(config), fingerprint(corpus.examples))
        specialists = config.method == Method.SPECIALIST
        jobs = _specialists(config, folder, corpus) if specialists else {"": Job(folder, corpus, recipe)}
    done = [
        _train_one(config, job, collator, device, _of_task(report, task), callbacks, tell) for task, job in jobs.items()
    ]
    if specialists and is_main and not folder.finished:
        folder.close({"specialists": {task: job.folder.path.name for task, job in jobs.items()}})
    return done


def _unheard(clause: str) -> None:
    """What all processes but the first tell."""


class Job:
    """One training: its directory, corpus and epochs, known before a model is loaded.

    Raises:
        ConfigError: a batch has more examples than the corpus, a snapshot is beyond the last step, or the tasks'
            gradients cannot be combined.
    """

    def __init__(self, folder: Folder, corpus: Corpus, recipe: RecipeSection) -> None:
        self.folder = folder
        self.corpus = corpus
        self.epochs = Epochs(corpus, recipe.order, recipe.batch_size, recipe.seed)
        self.combination = Combination(recipe, corpus.tasks) if recipe.combines else None
        last = recipe.steps or math.ceil((recipe.epochs or EPOCHS) * (len(self.epochs) // recipe.batch_size))
        if beyond := [step for step in recipe.snapshots if step > last]:
            raise ConfigError(f"training.snapshots asks for step {beyond[0]}, but the last one is {last}; leave it out")


def _specialists(config: TrainConfig, folder: Folder, corpus: Corpus) -> dict[str, Job]:
    """The training of each task, in its own directory."""
    jobs = {}
    for task in dict.fromkeys(corpus.tasks):
        own, name = corpus.only(task), file_name(task)
        if name in OWN:
            raise ConfigError(
                f"task {task!r}: its specialist would be {folder.path / name}, which the training needs for its "
                "own files; give the task another name"
            )
        place = Folder(folder.path / name, folder.config, fingerprint(own.examples), within=folder)
        try:
            jobs[task] = Job(place, own, config.training)
        except ConfigError as error:
            raise ConfigError(f"task {task!r}: {error}") from None
    return jobs


def _train_one(
    config: TrainConfig,
    job: Job,
    collator: Collator,
    device: torch.device,
    progress: Progress,
    callbacks: Sequence[MakeCallback],
    tell: Callable[[str], object],
) -> Path:
    if job.folder.finished:
        if processes.rank() == 0:
            job.folder.tidy()  # a killed process may have left checkpoints
            tell(f"{job.folder.path} was trained before: whether the base has changed since was not checked")
        return job.folder.path
    trainer = _trainer(config, job, collator, device, progress, tell)
    for make in callbacks:
        trainer.add_callback(make(trainer))
    last = job.folder.last_checkpoint()
    with processes.noticing(), _explained_memory_error(config, max(job.corpus.lengths)):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    named = config.model.chat_template is not None
    with written(job.folder.path):
        _save(trainer, job.folder.path, collator, named, config.training.optimizer_state)
    if trainer.is_world_process_zero():
        job.folder.close(_known(trainer, job))
    with processes.noticing():
        trainer.accelerator.wait_for_everyone()
    return job.folder.path


def _trainer(
    config: TrainConfig,
    job: Job,
    collator: Collator,
    device: torch.device,
    progress: Progress,
    tell: Callable[[str], object],
) -> TaskTrainer:
    """The Trainer with a fresh model; it claims the directory after everything that the configuration can make fail."""
    recipe, folder, mixed = config.training, job.folder, job.corpus.mixed
    settings = arguments(recipe, folder, device.type, mixed)
    base = loading.load_base(config.model, device=_placed(config, device, settings.local_process_index))
    set_seed(recipe.seed)
    model = prepare(base, collator.tokenizer, config)
    with processes.together():
        if settings.process_index == 0:
            for path in folder.open({**fingerprints(model), **of_processing(collator), **_pooled(config)}):
                tell(f"a checkpoint is damaged and was renamed to {path}: the training continues from an earlier one")
    named = config.method == Method.MIXLORA and config.mixlora.routing == Routing.TASK
    make = partial(CombiningTrainer, combination=job.combination) if job.combination else TaskTrainer
    with written(folder.path):
        trainer = make(
            model=model,
            args=settings,
            train_dataset=job.corpus,
            data_collator=Batches(collator, mixed, named),
            epochs=job.epochs,
            callbacks=[Report(progress)],
        )
    refuse_shards(trainer, recipe.optimizer_state)
    trainer.remove_callback(PrinterCallback)
    template_named = config.model.chat_template is not None
    save = partial(_snapshot, trainer, folder, collator, template_named, recipe.optimizer_state)
    trainer.add_callback(Snapshots(recipe.snapshots, save))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(folder.logs)
    set_seed(recipe.seed + settings.process_index)  # each process drops out and draws differently
    return trainer


def refuse_shards(trainer: Trainer, state: bool) -> None:
    """Raise a ConfigError where the optimizer's state is to be kept and no process has it whole."""
    kind = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed" if trainer.is_deepspeed_enabled else None
    if state and kind is not None:
        raise ConfigError(
            f"training.optimizer_state is true, but under {kind} no process has the whole state; leave it out"
        )


def _pooled(config: TrainConfig) -> dict[str, Any]:
    """The examples of a forward pass, where routers look at their padding: another number changes the result."""
    pads = config.method == Method.MIXLORA and config.mixlora.pooling == Pooling.ALL
    return {"training.micro_batch_size": config.training.micro(processes.count())} if pads else {}


def _placed(config: TrainConfig, device: torch.device, process: int) -> torch.device:
    """The device to load the base on: the process's GPU if quantized, else the CPU, from where Trainer moves it."""
    if config.model.quantization is None or device.type == "cpu":
        return torch.device("cpu")
    return torch.device(device.type, process)


def _save(trainer: Trainer, path: Path, collator: Collator, named: bool, state: bool) -> None:
    """The adapter, or the whole model, so that it can be loaded as a base.

    Beside a whole model is its processor; beside an adapter, too, where the configuration named the chat template
    (`named`), so that what measures the adapter later finds the one that it was trained with. `state` also saves the
    optimizer's there, once it has taken a step.
    """
    trainer.save_model(str(path))
    if trainer.is_world_process_zero():
        (path / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing here reads
        if named or not isinstance(trainer.model, PeftModel):
            with_template(collator).save_pretrained(path)
        held: Any = trainer.optimizer
        if state and isinstance(trainer.model, PeftModel) and held is not None and held.state:
            torch.save(held.state_dict(), path / OPTIMIZER_NAME)


def _snapshot(trainer: Trainer, folder: Folder, collator: Collator, named: bool, state: bool, step: int) -> None:
    """Weights along the way, whole or absent."""
    path = folder.snapshot(step)
    if path.exists():
        return
    first, new = trainer.is_world_process_zero(), growing(path)  # all processes write their shares into one folder
    if first:
        shutil.rmtree(new, ignore_errors=True)
    with written(path), whole_directory(path, new) if first else contextlib.nullcontext():
        _save(trainer, new, collator, named, state)


def _known(trainer: Any, job: Job) -> dict[str, Any]:
    """What the record of a finished training holds."""
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    counted = [parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad]
    tasks = job.corpus.tasks
    return {
        "steps": trainer.state.global_step,
        "losses": losses,
        "trained_parameters": sum(counted),
        "noted": job.corpus.noted,
        "examples": {task: tasks.count(task) for task in dict.fromkeys(tasks)},
        "examples_seen": job.epochs.taken(trainer.state.global_step),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "task-interference")},
    }


@contextlib.contextmanager
def _explained_memory_error(config: TrainConfig, longest: int) -> Iterator[None]:
    """Replace an out-of-memory error in the block by one that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        recipe = config.training
        rows = recipe.micro(processes.count())
        checkpointing = "" if recipe.gradient_checkpointing else ", set training.gradient_checkpointing: true"
        continued = "with another --out" if _pooled(config) else "and the same command continues"
        raise TrainingError(
            f"memory ran out with {rows} examples of up to {longest} tokens in a forward pass: lower "
            f"training.micro_batch_size (batch_size may stay {recipe.batch_size}){checkpointing}, {continued}; or "
            "lower training.max_length, with another --out"
        ) from None


def _of_task(progress: Progress, task: str) -> Progress:
    return (lambda stage, done, total: progress(f"{task}: {stage}", done, total)) if task else progress
