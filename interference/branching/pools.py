"""Pools: of every task the examples whose losses are read, and those that branches train on; they share nothing.

What may be trained on comes from the training whose recipe is followed, where it names the task, else from the
configuration. An example is left out if it is one of those held out, or is in a group with one, also through others.

Not here: batches of them (`branches`, `held_out`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import pandas as pd

from interference.branching.branches import Stream
from interference.branching.recipe import Recipe, asked_of, trial_of, validation_of
from interference.config import AnalysisConfig
from interference.errors import DataError, ScopeError
from interference.measurement import sample
from mixlora.checkpoints.prompting import load_collator
from mixlora.data.checking import as_error
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example
from mixlora.data.groups import IMAGE, Key, all_shared, connected
from mixlora.data.reading.problems import Noted, collecting
from mixlora.data.sampling import sample as sampled
from mixlora.data.sources import examples_of
from mixlora.training.config import TrainTask

_OWN = "the configuration"
_RIVALS = 4
"""Tasks of a validation, at least: each then has three rivals, of which ranks can be right or wrong."""


class _Source(TrainTask):
    """A task of a training, with the key of its records that names groups."""

    group: str = IMAGE


class _Found(NamedTuple):
    """What a task may be trained on.

    Attributes:
        examples: all of it.
        place: where it is from.
        skips: whether what cannot be used is left out.
    """

    examples: list[Example]
    place: str
    skips: bool


@dataclass(frozen=True)
class _Need:
    """What trainings take of a task.

    Attributes:
        share: examples in a step.
        count: examples in all, at most.
        lower: the keys that lower it.
    """

    share: int
    count: int
    lower: str


@dataclass(frozen=True)
class Pools:
    """The examples of a lookahead.

    Attributes:
        held_out: those whose losses are read, with their groups.
        collator: makes the batches that are trained on.
        streams: {task: those that are trained on}.
        told: {task: what a result records of them}.
    """

    held_out: sample.Sample
    collator: Collator
    streams: dict[str, Stream]
    told: dict[str, dict[str, Any]]

    @property
    def read(self) -> list[Encoded]:
        """The examples whose losses are read, in order."""
        return [unit.examples[0] for unit in self.held_out.units]

    def table(self) -> pd.DataFrame:
        """A row for every example whose loss is read: task, id, source, group, tokens."""
        units = self.held_out.units
        return pd.DataFrame(
            {
                "task": [unit.task for unit in units],
                "id": [one.id for one in self.read],
                "source": [one.source for one in self.read],
                "group": [unit.group for unit in units],
                "tokens": [one.supervised for one in self.read],
            }
        )


def draw(
    config: AnalysisConfig,
    recipe: Recipe,
    share: int,
    day: date | None = None,
    apart: Sequence[sample.EncodedUnit] = (),
) -> Pools:
    """The examples of every task of a lookahead: those that `compute` would probe are read.

    Args:
        config: names the tasks.
        recipe: whose tasks are trained on, and whose max_length holds for them.
        share: examples of a task in a step, at most.
        day: that a template takes for today where the configuration names none.
        apart: examples that are not trained on either, nor what shares a group with them.

    Raises:
        DataError: if a file or records cannot be used.
        ScopeError: if a task has too few examples.
    """
    asked = asked_of(config)
    if len(config.tasks) < 2:
        raise ScopeError("a lookahead is of pairs of tasks, but the configuration has one task; give it another")
    held_out = _read(config, asked.held_out, day)
    need = _Need(share, share * asked.steps[-1] * asked.seeds, "lookahead.held_out or lookahead.recipe.batch_size")
    return _beside(held_out, [*held_out.units, *apart], config, recipe, need, day)


def draw_apart(config: AnalysisConfig, recipe: Recipe, share: int, day: date | None = None) -> Pools:
    """The examples of every task of a validation: what is read shares nothing with what predictions are made from.

    Args:
        config: names the tasks.
        recipe: whose tasks are trained on, and whose max_length holds for them.
        share: examples of a task in a step.
        day: that a template takes for today where the configuration names none.

    Raises:
        DataError: if a file or records cannot be used.
        ScopeError: if a task has too few examples.
    """
    asked = validation_of(config)
    if len(config.tasks) < _RIVALS:
        raise ScopeError(
            f"a validation ranks the rivals of each task, which takes {_RIVALS} tasks, but the configuration has "
            f"{len(config.tasks)}; give it others"
        )
    probed = _probed(config, day)
    predicting = [*probed.units, *_read(config, asked_of(config).held_out, day).units]
    need = _Need(
        share,
        share * asked.horizons[-1] * asked.seeds,
        "validation.held_out, validation.share, probe.samples or lookahead.held_out",
    )
    return _read_apart(predicting, asked.held_out, probed.collator, config, recipe, need, day)


def draw_trial(
    config: AnalysisConfig, recipe: Recipe, share: int, steps: int, runs: Sequence[AnalysisConfig], day: date | None
) -> Pools:
    """The examples of every task of a trial: what is read shares nothing with what advice is made from.

    Args:
        config: names the tasks.
        recipe: whose tasks are trained on, and whose max_length holds for them.
        share: examples of each task in a step on all tasks.
        steps: of an arm, in all.
        runs: the configurations of the runs that advice is made from.
        day: that a template takes for today where the configuration names none.

    Raises:
        DataError: if a file or records cannot be used.
        ScopeError: if a task has too few examples.
    """
    asked, probed = trial_of(config), _probed(config, day)
    advising = [*probed.units, *(unit for run in runs for unit in _probed(run, day).units)]
    if config.lookahead is not None:
        advising += _read(config, config.lookahead.held_out, day).units
    if config.validation is not None:  # it has chosen the matrix by these
        advising += draw_apart(config, recipe, 1, day).held_out.units
    need = _Need(share, share * steps * asked.seeds, "trial.held_out, trial.share or probe.samples")
    return _read_apart(advising, asked.held_out, probed.collator, config, recipe, need, day)


def _probed(config: AnalysisConfig, day: date | None) -> sample.Sample:
    """The examples that `compute` probes."""
    return sample.encode(sample.read(config), sample.collator_of(config, day), config)


def _read_apart(
    taken: Sequence[sample.EncodedUnit],
    count: int,
    collator: Collator,
    config: AnalysisConfig,
    recipe: Recipe,
    need: _Need,
    day: date | None,
) -> Pools:
    """The pools of which `count` examples a task are read that share nothing with those taken.

    Raises:
        DataError: if a file or records cannot be used.
        ScopeError: if a task has too few examples.
    """
    problems = list[DataError]()
    own = {name: _of_configuration(config, name, problems) for name in config.tasks}
    if problems:
        raise as_error(problems)
    left = _apart(taken, {name: each.examples for name, each in own.items()}, config.kinds)
    drawn = {name: _enough(name, left[name], count, config.probe.seed) for name in left}
    whole = sample.Drawn(drawn, {name: Noted() for name in drawn})
    held_out = sample.encode(whole, collator, _reading(config, count))
    return _beside(held_out, [*held_out.units, *taken], config, recipe, need, day)


def _enough(name: str, examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Examples of a task that can be read, drawn by the seed.

    Raises:
        ScopeError: if there are fewer than two.
    """
    if len(examples) < 2:
        raise ScopeError(
            f"task {name!r} has {len(examples)} examples that share nothing with those that are probed, but 2 are "
            "needed to read its loss: give it more examples, or lower probe.samples or lookahead.held_out"
        )
    return sampled(examples, count, seed, name)


def _reading(config: AnalysisConfig, count: int) -> AnalysisConfig:
    """The configuration with `count` examples of each task, each a unit."""
    probe = config.probe.model_copy(update={"samples": count, "unit_size": 1})
    return config.model_copy(update={"probe": probe})


def _read(config: AnalysisConfig, count: int, day: date | None) -> sample.Sample:
    """The first `count` examples of every task that a run would probe, as tokens."""
    reading = _reading(config, count)
    return sample.encode(sample.read(reading), sample.collator_of(reading, day), reading)


def _beside(
    held_out: sample.Sample,
    taken: Sequence[sample.EncodedUnit],
    config: AnalysisConfig,
    recipe: Recipe,
    need: _Need,
    day: date | None,
) -> Pools:
    """The pools of which `held_out` is read, and nothing of `taken` is trained on.

    Raises:
        DataError: if a file or records cannot be used.
        ScopeError: if a task has too few examples.
    """
    length = recipe.training.max_length
    collator = held_out.collator
    if length != config.probe.max_length:
        collator = load_collator(config.model, config.model.adapter, length, day)
    found = {name: _candidates(config, recipe, name, need.count + len(taken)) for name in config.tasks}
    apart = _apart(taken, {name: own.examples for name, own in found.items()}, config.kinds)
    streams, told = {}, {}
    for name, examples in apart.items():
        streams[name] = Stream(name, _encoded(examples, collator, found[name].skips))
        kept, left_out = len(streams[name].examples), len(found[name].examples) - len(examples)
        told[name] = {"from": found[name].place, "examples": kept, "left_out": left_out}
        _check_count(name, kept, left_out, need)
    return Pools(held_out, collator, streams, told)


def _check_count(name: str, count: int, left_out: int, need: _Need) -> None:
    """Raise a ScopeError if a task has fewer examples to train on than a step takes."""
    if count < need.share:
        raise ScopeError(
            f"task {name!r} has {count} examples to train on, but a step takes {need.share}; {left_out} others are "
            f"held out or share a group with one that is: give it more examples, or lower {need.lower}"
        )


def _candidates(config: AnalysisConfig, recipe: Recipe, name: str, count: int) -> _Found:
    """At most `count` examples that a task may be trained on."""
    problems = list[DataError]()
    found = _of_training(recipe, name, config.tasks[name].group, problems)
    if found is None and not problems:
        found = _of_configuration(config, name, problems)
    if found is None or problems:
        raise as_error(problems)
    return found._replace(examples=sampled(found.examples, count, config.probe.seed, name))


def _of_configuration(config: AnalysisConfig, name: str, problems: list[DataError]) -> _Found:
    """All examples that the configuration has of a task."""
    task = config.tasks[name]
    found = examples_of(name, task, None, config.probe.seed, problems)
    return _Found(found.get(name, []), _OWN, task.on_error == "skip")


def _of_training(recipe: Recipe, name: str, group: str, problems: list[DataError]) -> _Found | None:
    """The examples of a task in the training that is followed; None if it has no such task.

    Raises:
        DataError: if a file of the training cannot be used.
    """
    for entry, task in recipe.tasks.items():
        if task.by is None and task.mme is None and entry != name:
            continue
        source = _Source.model_validate({**task.model_dump(), "group": group})
        try:
            found = examples_of(entry, source, task.samples, recipe.training.seed, problems)
        except DataError as error:
            raise DataError(f"{str(error).rstrip('.')}; it is of {recipe.place}, which branches follow") from None
        if name in found:
            return _Found(found[name], recipe.place, task.on_error == "skip")
    return None


def _apart(
    taken: Sequence[sample.EncodedUnit], candidates: Mapping[str, Sequence[Example]], kinds: Mapping[str, str]
) -> dict[str, list[Example]]:
    """The candidates of every task that are not in a group with an example that is taken."""
    read = [(one.example, kinds[unit.task]) for unit in taken for one in unit.examples]
    others = [(example, kinds[name]) for name, examples in candidates.items() for example in examples]
    groups = connected(_keys([*read, *others]))
    held = set(groups[: len(read)])
    following = iter(groups[len(read) :])
    return {name: [each for each in examples if next(following) not in held] for name, examples in candidates.items()}


def _keys(asked: Sequence[tuple[Example, str]]) -> Iterator[list[Key]]:
    """What each example shares with others: its group's keys, and its whole content."""
    shared = all_shared(pair for example, kind in asked for pair in ((example, kind), (example, IMAGE)))
    for example, _ in asked:
        keys, pictures = next(shared), next(shared)
        said = [(turn.role, turn.text) for turn in example.turns]
        yield [*keys, ("content", repr((said, pictures)))]


def _encoded(examples: Sequence[Example], collator: Collator, skip: bool) -> list[Encoded]:
    """The examples as tokens, without those that cannot be used where the task skips them.

    Raises:
        DataError: if some cannot be encoded; it describes the first twenty problems.
    """
    found, problems = list[Encoded](), list[DataError]()
    for example in examples:
        with collecting(problems):
            found.append(collator.encode(example))
    if problems and not skip:
        raise as_error(problems)
    return found
