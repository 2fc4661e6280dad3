"""Recipe: by which training a branch goes on, from the configuration or from the record beside the adapter.

Not here: the examples (`pools`) and the steps themselves (`branches`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from interference.config import AnalysisConfig, BranchSection, LookaheadConfig, TrialConfig, ValidateConfig
from interference.errors import ConfigError
from mixlora.checkpoints import loading
from mixlora.common.files import SNAPSHOTS, TRAINING, is_file, read_json
from mixlora.training import config as training
from mixlora.training.config import Method, RecipeSection, TrainConfig, TrainTask

_CHECKPOINTS = "checkpoints"
"""The folder of a training that goes on, whose checkpoints are adapters, too."""


@dataclass(frozen=True)
class Recipe:
    """How a branch is trained, and on what.

    Attributes:
        training: the recipe; what says when a training ends or is saved is not read.
        tasks: the tasks of the training, by which examples are found; none where only values were given.
        place: what names the training, in messages.
    """

    training: RecipeSection
    tasks: Mapping[str, TrainTask] = field(default_factory=dict)
    place: str = "lookahead.recipe"

    @property
    def micro(self) -> int:
        """Examples in one forward pass."""
        return self.training.micro(1)

    def json(self) -> dict[str, Any]:
        """The values that a branch follows, as a result records them."""
        return self.training.model_dump(mode="json", include=set(BranchSection.model_fields))


def processes_of(config: AnalysisConfig) -> int:
    """The number of processes that a configuration asks for.

    Raises:
        ConfigError: if they would share a GPU.
    """
    kind = loading.kind_of(config.model.device)
    if config.processes > 1 and kind != "cpu":
        raise ConfigError(
            f"processes is {config.processes}, but they would share one {kind} device; drop it, or set "
            "model.device: cpu"
        )
    return config.processes


def asked_of(config: AnalysisConfig) -> LookaheadConfig:
    """What a configuration asks of a lookahead, or the defaults."""
    return config.lookahead or LookaheadConfig.model_validate({})


def validation_of(config: AnalysisConfig) -> ValidateConfig:
    """What a configuration asks of a validation, or the defaults."""
    return config.validation or ValidateConfig.model_validate({})


def trial_of(config: AnalysisConfig) -> TrialConfig:
    """What a configuration asks of a trial, or the defaults."""
    return config.trial or TrialConfig.model_validate({})


def recipe_of(config: AnalysisConfig) -> Recipe:
    """The recipe that a configuration names, or else that of the training that made its adapter.

    Raises:
        ConfigError: if there is none, or it cannot be read.
    """
    asked = asked_of(config)
    given = asked.recipe.model_dump(exclude_none=True)
    place = asked.training or home_of(config.model.adapter)
    if place is not None:
        found = training.load(Path(place))
        return Recipe(_replaced(found.training, given), found.tasks, place)
    if not given:
        raise ConfigError(
            f"there is no recipe to follow: {config.model.adapter} is not of a `mixlora train`, whose {TRAINING} would "
            "tell; give lookahead.training (such a configuration) or lookahead.recipe (its values, as {learning_rate: "
            "1e-4, batch_size: 16})"
        )
    return Recipe(_replaced(RecipeSection.model_validate({}), given))


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        config: its configuration.
        home: its directory.
        steps: how many it took.
    """

    config: TrainConfig
    home: Path
    steps: int

    @property
    def recipe(self) -> Recipe:
        """Its recipe, with nothing replaced."""
        return Recipe(self.config.training, self.config.tasks, str(self.home))


def trained_by(config: AnalysisConfig) -> Trained:
    """The training that made an adapter.

    Raises:
        ConfigError: if no training is known, or it trained no adapter on all tasks.
    """
    place = home_of(config.model.adapter)
    if place is None:
        raise ConfigError(
            f"{config.model.adapter} is not of a `mixlora train`, whose {TRAINING} would tell how to train on other "
            "tasks; give model.adapter such a directory"
        )
    found = training.load(Path(place))
    if found.method not in (Method.LORA, Method.MIXLORA):
        raise ConfigError(
            f"{place} is a training of method {found.method}, but a validation or trial needs one adapter for all "
            "tasks; give model.adapter the directory of a lora or mixlora"
        )
    if found.training.combines:
        raise ConfigError(
            f"{place} was trained with training.combine or training.weights, which the trainings of a validation or "
            "trial do not follow; give model.adapter a training without them"
        )
    steps = read_json(Path(place) / TRAINING).get("steps")
    if not isinstance(steps, int):
        raise ConfigError(f"{place} is a training that has not ended; finish it first (the same command continues)")
    return Trained(found, Path(place), steps)


def _replaced(found: RecipeSection, given: Mapping[str, Any]) -> RecipeSection:
    """The recipe with some values replaced.

    Raises:
        ConfigError: if the values do not fit each other.
    """
    try:
        return RecipeSection.model_validate({**found.model_dump(), **given})
    except ValueError as error:
        said = str(error).partition("Value error, ")[2].partition(" [type=")[0]
        raise ConfigError(f"lookahead.recipe: {said}") from None


def home_of(adapter: str) -> str | None:
    """The directory of the training that made an adapter, a snapshot or a checkpoint of it; None if none is known."""
    path = Path(adapter)
    home = path.parent.parent if path.parent.name in (SNAPSHOTS, _CHECKPOINTS) else path
    return str(home) if is_file(home / TRAINING) else None
