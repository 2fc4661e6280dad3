"""An evaluation from its configuration to scores: answers are generated, kept, and scored."""

import gc
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from mixlora import checkpoint
from mixlora.config import MixLoraConfig, Routing
from mixlora.data.checking import check, fingerprint, report
from mixlora.data.collation import Collator
from mixlora.data.examples import Example
from mixlora.data.sources import examples_of
from mixlora.errors import CheckpointError, ConfigError, DataError
from mixlora.evaluation import mme
from mixlora.evaluation.config import JUDGE, TASK, EvaluateConfig, EvaluateTask
from mixlora.evaluation.folder import Folder
from mixlora.evaluation.generation import Generator, generate
from mixlora.evaluation.judge import Judgement, judged
from mixlora.evaluation.judging import judge_all
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring import Metric, score
from mixlora.files import file_name
from mixlora.progress import Progress, silent
from mixlora.sections import resolved
from mixlora.training.config import RECORD as TRAINING

Asked = dict[str, tuple[EvaluateTask, list[Example]]]
"""{task: how it is scored, its examples}."""


def evaluate(config: EvaluateConfig, progress: Progress = silent) -> Results:
    """The scores of a model on tasks, saved to `out` with every answer.

    Answers that are there already, of the same model to the same examples, are not generated again: an interrupted
    evaluation goes on, and another score of the same answers costs nothing.

    Args:
        config: which model, which tasks, how answers are generated and scored; `out` is needed.
        progress: told of examples.

    Raises:
        ConfigError: a value of the configuration cannot be used.
        DataError: examples cannot be used; the first twenty problems in words.
        CheckpointError: the model cannot be loaded, or `out` holds something else.
        TrainingError: memory ran out.
    """
    if config.out is None:
        raise ConfigError("the configuration names no directory for predictions and scores; give out: or --out")
    collator = Collator(checkpoint.load_processor(config.model), chat_template=config.model.chat_template)
    asked = _read(config, collator, progress)
    folder = Folder(Path(config.out), _identity(config, asked))
    found = _answered(config, asked, collator, folder, progress)
    results = Results(config.label or Path(config.out).name, model=config.model.model_dump(mode="json"))
    to_judge = {task: found[task] for task, (how, _) in asked.items() if how.metric == JUDGE}
    said: dict[str, list[Judgement]] = {}
    if config.judge is not None and to_judge:
        said = judge_all(config.judge, to_judge, {task: folder.judgements(task) for task in to_judge}, progress)
    for task, (how, _) in asked.items():
        own = score(found[task], how.metric, how.labels, config.draws, config.seed) if task not in said else None
        results.add(task, own or judged(said[task], config.draws, config.seed))
    subtasks = {task: found[task] for task, (how, _) in asked.items() if how.metric == Metric.MME}
    if subtasks:
        results.add_totals(mme.totals(subtasks, config.draws, config.seed))
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "task-interference")}
    results.meta = {"config": resolved(config), "versions": versions}
    results.save(Path(config.out))
    return results


def _read(config: EvaluateConfig, collator: Collator, progress: Progress) -> Asked:
    """All tasks' examples, each checked."""
    problems: list[DataError] = []
    asked: Asked = {}
    for name, task in config.tasks.items():
        for own, examples in examples_of(name, task, task.samples, config.seed, problems).items():
            if own in asked:
                raise ConfigError(f"tasks: {own!r} is there twice; give every task a name of its own")
            asked[own] = (task, examples)
    everything = [example for _, examples in asked.values() for example in examples]
    check(everything, collator, problems, progress=lambda done, total: progress("data", done, total))
    if problems:
        raise report(problems)
    return asked


def _identity(config: EvaluateConfig, asked: Asked) -> dict[str, Any]:
    """What answers depend on."""
    adapters = {task: _weights(path) for task, path in _adapters(config, asked).items() if path is not None}
    return {
        "format": 1,
        "model": resolved(config)["model"],
        "adapters": adapters,
        "generation": config.generation.model_dump(mode="json"),
        "examples": fingerprint(example for _, examples in asked.values() for example in examples),
    }


def _weights(adapter: str) -> str:
    """A hash of an adapter's files; its name where it is not on disk."""
    found = hashlib.sha256(adapter.encode())
    for file in sorted(Path(adapter).glob("adapter_*")):
        found.update(file.read_bytes())
    return found.hexdigest()[:32]


def _adapters(config: EvaluateConfig, asked: Asked) -> dict[str, str | None]:
    """The adapter that answers each task."""
    own = config.model.adapter
    return {task: None if own is None else own.replace(TASK, file_name(task)) for task in asked}


def _answered(
    config: EvaluateConfig, asked: Asked, collator: Collator, folder: Folder, progress: Progress
) -> dict[str, list[Prediction]]:
    """The predictions of every task; no model is loaded where all are there."""
    found, todo = {}, {}
    for task, (_, examples) in asked.items():
        kept = folder.complete(task, [example.id for example in examples])
        if kept is None:
            todo[task] = examples
        else:
            found[task] = kept
    for adapter, tasks in _by_adapter(_adapters(config, asked), todo).items():
        generator = _generator(config, adapter, collator, {task: asked[task][0] for task in tasks})
        for task in tasks:
            found[task] = _answer(generator, task, todo[task], folder, progress)
        del generator
        gc.collect()
    return found


def _by_adapter(
    adapters: Mapping[str, str | None], tasks: Sequence[str] | Mapping[str, Any]
) -> dict[str | None, list[str]]:
    found: dict[str | None, list[str]] = {}
    for task in tasks:
        found.setdefault(adapters[task], []).append(task)
    return found


def _generator(
    config: EvaluateConfig, adapter: str | None, collator: Collator, tasks: Mapping[str, EvaluateTask]
) -> Generator:
    if adapter is None:
        return Generator(checkpoint.load_base(config.model), collator, config.generation)
    _refuse_model(Path(adapter))
    model: Any = checkpoint.load_adapted(config.model, adapter)
    own = model.peft_config["default"]
    named = isinstance(own, MixLoraConfig) and own.routing is Routing.TASK
    if named and (new := {task: how.definition for task, how in tasks.items() if how.definition}):
        model.base_model.encode_tasks(collator.tokenizer, new)
    return Generator(model, collator, config.generation, named)


def _refuse_model(path: Path) -> None:
    """A whole model where an adapter is wanted."""
    if (path / "config.json").exists() and not (path / "adapter_config.json").exists():
        by = " (it was trained with method full)" if (path / TRAINING).exists() else ""
        raise CheckpointError(f"{path} is a whole model{by}, no adapter; give it as model.base, without adapter")


def _answer(
    generator: Generator, task: str, examples: Sequence[Example], folder: Folder, progress: Progress
) -> list[Prediction]:
    known = folder.partial(task)
    found: dict[str, Prediction] = {}
    texts = {example.id: known[example.id].predict for example in examples if example.id in known}
    for batch in generate(generator, examples, lambda example: texts.get(example.id)):
        own = [_prediction(task, example, text) for example, text in batch]
        if any(one.question_id not in known for one in own):
            folder.append(task, [one for one in own if one.question_id not in known])
        found |= {one.question_id: one for one in own}
        progress(task, len(found), len(examples))
    ordered = [found[example.id] for example in examples]
    folder.finish(task, ordered)
    return ordered


def _prediction(task: str, example: Example, text: str) -> Prediction:
    asked = "\n".join(turn.text for turn in example.turns[:-1] if turn.role == "user")
    image = None if example.image is None or isinstance(example.image, Image.Image) else str(example.image)
    return Prediction(example.id, task, asked, text, example.turns[-1].text, example.references, image)
