"""A whole evaluation: from its configuration to generated answers and their scores."""

import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import of_checkpoint, of_generation, of_processing
from mixlora.checkpoints.prompting import load_collator
from mixlora.common.errors import CheckpointError, ConfigError, DataError, RunError, plain, reason
from mixlora.common.files import TRAINING, file_name, is_folder
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.data import described
from mixlora.data.checking import as_error, check, fingerprint
from mixlora.data.collation import Collator
from mixlora.data.examples import Example
from mixlora.data.groups import Key, all_shared
from mixlora.data.reading.problems import Noted
from mixlora.data.sources import examples_of
from mixlora.evaluation.config import JUDGE, TASK, EvaluateConfig, EvaluateTask
from mixlora.evaluation.folder import Folder
from mixlora.evaluation.generation import Generator, generate
from mixlora.evaluation.grouping import dependent, labels
from mixlora.evaluation.judging.judge import judge_score, read_prompt
from mixlora.evaluation.judging.run import identity, judge_all
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring import mme
from mixlora.evaluation.scoring.intervals import Estimate
from mixlora.evaluation.scoring.metrics import Metric, Score, score
from mixlora.evaluation.tables import MEAN
from mixlora.tuner.config import MixLoraConfig, Routing

Asked = dict[str, tuple[EvaluateTask, list[Example]]]
"""{task: (its section of the configuration, its examples)}."""
FORMAT = 3
"""The number of the layout of an evaluation's directory."""


def evaluate(
    config: EvaluateConfig, progress: Progress = silent, tell: Callable[[str], object] = lambda clause: None
) -> Results:
    """Evaluate a model on tasks; its scores, which are saved to `out` with every answer.

    Existing answers of the same model to the same examples are not generated again: an interrupted evaluation
    continues, and computing another score of the same answers costs nothing.

    Args:
        config: the model, the tasks, how to generate and score answers; `out` is required.
        progress: called after examples.
        tell: told what a reader should know of the data before answers are generated, clause by clause.

    Raises:
        ConfigError: a value of the configuration cannot be used.
        DataError: some examples cannot be used; it describes the first twenty problems.
        CheckpointError: the model cannot be loaded, or `out` holds something else.
        RunError: `out` cannot be made, or another process works on it.
        TrainingError: memory ran out, or answers or scores cannot be written.
    """
    if config.out is None:
        raise ConfigError("the configuration names no directory for predictions and scores; give out: or --out")
    out = _absolute(config.out)
    config = EvaluateConfig.model_validate(resolved(config))
    if config.model.adapter is not None and TASK not in config.model.adapter:
        _refuse_missing(config.model.adapter)
    folder = Folder(out)
    with folder.alone():
        return _evaluated(config, folder, progress, tell)


def _absolute(out: str) -> Path:
    try:
        return Path(out).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a loop of links
        raise RunError(f"{out} cannot be written: {reason(error)}; choose another --out") from None


def _evaluated(config: EvaluateConfig, folder: Folder, progress: Progress, tell: Callable[[str], object]) -> Results:
    config.model.date = config.model.date or folder.day
    collator = load_collator(config.model, _any_adapter(config), config.generation.max_prompt_length)
    config.model.date = collator.template.written_day
    asked, noted, marked = _read(config, collator, progress)
    data = {
        "template": collator.template.json(),
        "tasks": {task: described.of_task(own, 0, noted[task], marked[task]) for task, (_, own) in asked.items()},
    }
    for clause in described.sentences(data):
        tell(clause)
    _refuse_unscorable(config, asked)
    adapters = _adapters(config, asked)
    _refuse_undefined(asked, adapters)
    shared = _shared(asked)
    groups = {task: labels(examples, shared[task]) for task, (_, examples) in asked.items()}
    folder.claim(_identity(config, collator), _identities(asked, adapters))
    found = _answered(config, asked, adapters, groups, collator, folder, progress)
    results = Results(config.label or folder.path.name, model=config.model.model_dump(mode="json"))
    judge = _judged(results, config, asked, found, folder, progress)
    for task, own in _scores(config, asked, found).items():
        results.add(task, own)
    results.tasks = {task: results.tasks[task] for task in asked}
    results.add_totals(_totals(config, asked, found))
    results.dependent = dependent(shared)
    results.meta = {
        "config": resolved(config),
        "data": data,
        "labels": {task: how.labels for task, (how, _) in asked.items() if how.labels is not None},
        "answers": {task: folder.checksum(task) for task in asked},
        "judge": judge,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "task-interference")},
    }
    results.save(folder.path)
    return results


def _judged(
    results: Results,
    config: EvaluateConfig,
    asked: Asked,
    found: Mapping[str, Sequence[Prediction]],
    folder: Folder,
    progress: Progress,
) -> list[str] | None:
    """Add the scores of the tasks that a judge scores; the identity of the judge, None if there are no such tasks."""
    own = {task: found[task] for task, (how, _) in asked.items() if how.metric == JUDGE}
    if config.judge is None or not own:
        return None
    judge = identity(config.judge)
    said = judge_all(config.judge, judge, own, {task: folder.judgements(task) for task in own}, progress)
    for task, words in said.items():
        results.add(task, judge_score(words, config.draws, config.seed, [one.group for one in own[task]]))
    return judge


def _read(
    config: EvaluateConfig, collator: Collator, progress: Progress
) -> tuple[Asked, dict[str, Noted], Counter[str]]:
    """All tasks' examples, each checked; what of their data is not used, and how many have special tokens as text."""
    problems: list[DataError] = []
    asked: Asked = {}
    noting: dict[str, Noted] = {}
    skipping: dict[str, Noted] = {}
    for name, task in config.tasks.items():
        noted = Noted()
        found = examples_of(name, task, task.samples, config.seed, problems, noted)
        noting |= dict.fromkeys(found, noted)
        skipping |= dict.fromkeys(found, noted) if task.on_error == "skip" else {}
        for own, examples in found.items():
            if own == MEAN:
                raise ConfigError(f"tasks: a task is called {MEAN!r}, which tables call their mean; rename it")
            if own in asked:
                raise ConfigError(f"tasks: {own!r} appears twice; give every task a name of its own")
            asked[own] = (task, examples)
    everything = [example for _, examples in asked.values() for example in examples]
    checked = check(
        everything,
        collator,
        problems,
        progress=lambda done, total: progress("data", done, total),
        skipping=skipping,
        new_tokens=config.generation.max_new_tokens,
    )
    if problems:
        raise as_error(problems)
    usable = set(map(id, checked.examples))
    asked = {task: (how, [one for one in found if id(one) in usable]) for task, (how, found) in asked.items()}
    if lost := [task for task, (_, found) in asked.items() if not found]:
        raise DataError(f"task {lost[0]!r} has no usable record; correct its data, or leave it out")
    return asked, noting, checked.marked


def _shared(asked: Asked) -> dict[str, list[list[Key]]]:
    """What each example shares with others, by task."""
    each = all_shared((example, how.group) for how, examples in asked.values() for example in examples)
    return {task: [next(each) for _ in examples] for task, (_, examples) in asked.items()}


def _refuse_unscorable(config: EvaluateConfig, asked: Asked) -> None:
    """Refuse targets that do not suit their score, and a judge's prompt, now and not after hours of generation."""
    read_prompt(config.judge.prompt if config.judge else None)
    silent_model = {
        task: [_prediction(task, one, "", None) for one in examples] for task, (_, examples) in asked.items()
    }
    once = config.model_copy(update={"draws": 1})
    _scores(once, asked, silent_model)
    _totals(once, asked, silent_model)


def _scores(config: EvaluateConfig, asked: Asked, found: Mapping[str, Sequence[Prediction]]) -> dict[str, Score]:
    """The score of each task, except those that a judge scores."""
    return {
        task: score(found[task], how.metric, how.labels, config.draws, config.seed)
        for task, (how, _) in asked.items()
        if how.metric != JUDGE
    }


def _totals(config: EvaluateConfig, asked: Asked, found: Mapping[str, Sequence[Prediction]]) -> dict[str, Estimate]:
    """MME's totals."""
    subtasks = {task: found[task] for task, (how, _) in asked.items() if how.metric == Metric.MME}
    return mme.totals(subtasks, config.draws, config.seed)


def _identity(config: EvaluateConfig, collator: Collator) -> dict[str, Any]:
    """What the answers to all tasks depend on, except paths and devices."""
    model, base = config.model, loading.base_of(config.model)
    return {
        "format": FORMAT,
        "base": of_checkpoint(base),
        "generation config": of_generation(base),
        "projector": model.projector and of_checkpoint(model.projector),
        "model": model.model_dump(mode="json", exclude={"base", "adapter", "projector", "device", "chat_template"}),
        **of_processing(collator),
        "generation": config.generation.identity,
    }


def _identities(asked: Asked, adapters: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """What the answers to each task depend on in addition."""
    contents = {adapter: adapter and of_checkpoint(adapter) for adapter in set(adapters.values())}
    return {
        task: {"examples": fingerprint(examples), "adapter": contents[adapters[task]], "definition": how.definition}
        for task, (how, examples) in asked.items()
    }


def _any_adapter(config: EvaluateConfig) -> str | None:
    """The adapter whose tokenizer and template count: the only one, or the first task's."""
    own = config.model.adapter
    return None if own is None else own.replace(TASK, file_name(next(iter(config.tasks))))


def _adapters(config: EvaluateConfig, asked: Asked) -> dict[str, str | None]:
    """The adapter for each task.

    Raises:
        CheckpointError: one of them does not exist.
    """
    own = config.model.adapter
    found = {task: None if own is None else own.replace(TASK, file_name(task)) for task in asked}
    for adapter in {adapter: None for adapter in found.values() if adapter is not None}:
        _refuse_missing(adapter)
    return found


def _refuse_missing(adapter: str) -> None:
    """Refuse a path that holds no adapter, a whole model, or several adapters."""
    path = Path(adapter)
    if is_folder(path) and not (path / "adapter_config.json").exists():
        if (path / "config.json").exists():
            by = " (it was trained with method full)" if (path / TRAINING).exists() else ""
            raise CheckpointError(
                f"{path} is a whole model{by}, not an adapter; give it as model.base, without adapter"
            )
        if (path / TRAINING).exists() and not any(path.glob("*/adapter_config.json")):
            raise CheckpointError(f"{path} is from an unfinished training; run its command again to finish it")
        if any(path.glob("*/adapter_config.json")):
            raise CheckpointError(f"{path} has an adapter for each task; give '{path}/{TASK}' as adapter")
    loading.adapter_config(adapter)


def _refuse_undefined(asked: Asked, adapters: Mapping[str, str | None]) -> None:
    """Refuse tasks without a definition that a MixLoRA with routing by task does not know."""
    for task, adapter in adapters.items():
        if adapter is None or asked[task][0].definition:
            continue
        own: Any = loading.adapter_config(adapter)
        if _routes_by_task(own) and task not in (own.task_definitions or {}):
            raise ConfigError(
                f"{adapter} routes by task and was not trained on {task!r}; give its definition in words: "
                f"tasks.{task}.definition"
            )


def _routes_by_task(config: Any) -> bool:
    return isinstance(config, MixLoraConfig) and config.routing is Routing.TASK


def _answered(
    config: EvaluateConfig,
    asked: Asked,
    adapters: Mapping[str, str | None],
    groups: Mapping[str, Mapping[str, str | None]],
    collator: Collator,
    folder: Folder,
    progress: Progress,
) -> dict[str, list[Prediction]]:
    """The predictions of every task; a model is loaded only if some are missing.

    Of kept predictions only the answers are used; those of other groups or places are written again with these.
    """
    found: dict[str, list[Prediction]] = {}
    begun: dict[str, dict[str, Prediction]] = {}
    todo: dict[str | None, list[str]] = {}
    for task, (_, examples) in asked.items():
        kept = folder.complete(task, [example.id for example in examples])
        if kept is None:
            todo.setdefault(adapters[task], []).append(task)
            begun[task] = folder.partial(task)
        else:
            known = {one.question_id: one.predict for one in kept}
            found[task] = [_prediction(task, one, known[one.id], groups[task][one.id]) for one in examples]
            if found[task] != kept:
                folder.finish(task, found[task])
    for adapter, tasks in todo.items():
        generator = _generator(config, adapter, collator, {task: asked[task][0] for task in tasks})
        for task in tasks:
            found[task] = _answer(generator, task, asked[task][1], begun[task], groups[task], folder, progress)
        del generator
        gc.collect()
    return found


def _generator(
    config: EvaluateConfig, adapter: str | None, collator: Collator, tasks: Mapping[str, EvaluateTask]
) -> Generator:
    if adapter is None:
        return Generator(loading.load_base(config.model), collator, config.generation)
    model: Any = loading.load_adapted(config.model, adapter)
    named = _routes_by_task(model.peft_config["default"])
    if named and (new := {task: how.definition for task, how in tasks.items() if how.definition}):
        model.base_model.encode_tasks(collator.tokenizer, new)
    return Generator(model, collator, config.generation, named)


def _answer(
    generator: Generator,
    task: str,
    examples: Sequence[Example],
    known: Mapping[str, Prediction],
    groups: Mapping[str, str | None],
    folder: Folder,
    progress: Progress,
) -> list[Prediction]:
    found: dict[str, Prediction] = {}
    texts = {example.id: known[example.id].predict for example in examples if example.id in known}
    for batch in generate(generator, examples, lambda example: texts.get(example.id)):
        own = [_prediction(task, example, text, groups[example.id]) for example, text in batch]
        if any(one.question_id not in known for one in own):
            folder.append(task, [one for one in own if one.question_id not in known])
        found |= {one.question_id: one for one in own}
        progress(plain(task), len(found), len(examples))
    ordered = [found[example.id] for example in examples]
    folder.finish(task, ordered)
    return ordered


def _prediction(task: str, example: Example, text: str, group: str | None) -> Prediction:
    asked = "\n".join(turn.text for turn in example.turns[:-1] if turn.role == "user")
    image = next((str(image) for image in example.images if isinstance(image, Path)), None)
    return Prediction(example.id, task, asked, text, example.turns[-1].text, example.references, image, group)
