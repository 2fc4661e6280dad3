"""EvaluateConfig: the configuration of `mixlora evaluate`. No model is loaded here."""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mixlora.common import settings
from mixlora.common.errors import ConfigError
from mixlora.common.files import exists, file_name, is_folder, read_json
from mixlora.common.sections import MINI, SPLIT, BaseSection, TaskGroupSection
from mixlora.common.settings import Number, Place, Section
from mixlora.data.groups import IMAGE, NONE
from mixlora.evaluation.scoring.metrics import Metric

RECORD = "results.json"
"""The file of an evaluation's scores and configuration."""
JUDGE = "judge"
"""The name of the score that a judge gives."""
TASK = "{task}"
"""In an adapter's path, it stands for the task's name: each task is evaluated with its own adapter."""
Draws = Annotated[int, Field(ge=100, le=10**6)]
"""Bootstrap draws of an interval."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed of draws."""
PRESETS: dict[str, dict[str, Any]] = {"paper": {"do_sample": True, "temperature": 0.2, "max_new_tokens": 1024}}
"""What a preset of `generation` sets."""


class EvaluatedSection(BaseSection):
    """The model to evaluate. If `base` is missing, the base that the adapter's own configuration names is used.

    Attributes:
        adapter: path or hub id of a PEFT adapter; {task} in it is a task's name.
    """

    adapter: Place | None = None


class EvaluateTask(TaskGroupSection):
    """A task to evaluate on.

    Attributes:
        samples: examples drawn from it by the seed; all if None, or 800 of a task of the mini suite.
        score: "exact", "contained", "classification", "vqa", "pope", "vsr", "entailment", "mme" or "judge"; None for
            "mme" if the task is MME's folder, else for "exact".
        labels: the answers that classification chooses from; the targets if None.
        definition: a description of the task, for a MixLoRA that routes by task and was not trained on it.
        group: what answers that are not independent share: "image" (a picture, by its content), a key of the file's
            records, or "none". Intervals resample whole groups.
    """

    samples: int | None = Field(None, ge=1)
    score: str | None = None
    labels: list[str] | None = None
    definition: str | None = None
    group: str = Field(IMAGE, min_length=1)

    @property
    def metric(self) -> str:
        """The name of the score, defaults applied."""
        return str(self.score or (Metric.MME if self.mme is not None else Metric.EXACT))

    @field_validator("score")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in (*Metric, JUDGE):
            raise ValueError(f"must be one of {', '.join((*Metric, JUDGE))}")
        return value

    @model_validator(mode="after")
    def _labelled(self) -> "EvaluateTask":
        if self.labels is not None and self.metric != Metric.CLASSIFICATION:
            raise ValueError(f"labels are for score: classification, not {self.metric}")
        if self.mme is not None and self.samples is not None:
            raise ValueError("samples would separate an image's two questions; leave it out with mme")
        return self

    @model_validator(mode="after")
    def _group_of_file(self) -> "EvaluateTask":
        if self.file is None and self.group not in (IMAGE, NONE):
            source = "mini" if self.mini is not None else "mme"
            raise ValueError(f"group is {self.group!r}, but {source} has no records; write image or none")
        return self


class GenerationSection(Section):
    """How answers are generated; names are those of transformers' GenerationConfig. The model's own sets the rest.

    Attributes:
        preset: "paper" for the paper's settings, wherever a key is not given: tokens drawn at temperature 0.2, at most
            1,024 of them.
        batch_size: conversations generated together; answers do not depend on it.
        max_new_tokens: the most tokens of an answer.
        max_prompt_length: the most tokens of a prompt; None for those that the model was made for.
        do_sample: draw tokens (the paper: temperature 0.2) instead of taking the most probable.
        temperature: of drawn tokens.
        top_p: draw only among the most probable tokens, up to this cumulative probability.
        num_beams: of a beam search.
        seed: seed of drawn tokens.
    """

    preset: Literal["paper"] | None = None
    batch_size: int = Field(16, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    max_prompt_length: int | None = Field(None, ge=1)
    do_sample: bool = False
    temperature: Number = Field(0.2, gt=0)
    top_p: Number | None = Field(None, gt=0, le=1)
    num_beams: int = Field(1, ge=1)
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, given: Any) -> Any:
        preset = PRESETS.get(str(given.get("preset")), {}) if isinstance(given, Mapping) else {}
        return {**preset, **given} if preset else given

    @model_validator(mode="after")
    def _one_way(self) -> "GenerationSection":
        if self.do_sample and self.num_beams > 1:
            raise ValueError("do_sample draws one answer, and num_beams searches for the likeliest; choose one of them")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        unused = {"preset", "batch_size", "max_prompt_length"}
        drawn = set() if self.do_sample else {"temperature", "top_p", "seed"}
        return self.model_dump(mode="json", exclude=unused | drawn)


class JudgeSection(Section):
    """The language model that judges whether an answer is right.

    Attributes:
        model: path or hub id of a causal language model.
        by: "probability" of Yes against No, or "generation" of Yes or No.
        prompt: a text file of the question to it, with {question}, {target} and {prediction}; None for our own words.
        dtype: dtype of its weights.
        device: "auto" is a GPU if there is one.
        batch_size: answers judged together; verdicts do not depend on it.
    """

    model: Place
    by: Literal["probability", "generation"] = "probability"
    prompt: Place | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    device: str = "auto"
    batch_size: int = Field(8, ge=1)

    @field_validator("device")
    @classmethod
    def _on_one(cls, value: str) -> str:
        if value == SPLIT:
            raise ValueError("a judge runs on one device; give auto, cpu or cuda:0")
        return value


class EvaluateConfig(Section):
    """Everything `mixlora evaluate` needs.

    Attributes:
        out: the directory of predictions and scores.
        label: the model's name in tables; the name of `out` if None.
        draws: bootstrap draws of an interval.
        seed: seed of the sampled examples and of the draws.
    """

    model: EvaluatedSection
    tasks: dict[str, EvaluateTask] = Field(min_length=1)
    generation: GenerationSection = Field(default_factory=lambda: GenerationSection.model_validate({}))
    judge: JudgeSection | None = None
    label: str | None = None
    draws: Draws = 1000
    seed: Seed = 0
    out: Place | None = None

    @model_validator(mode="after")
    def _judged(self) -> "EvaluateConfig":
        judged = [name for name, task in self.tasks.items() if task.metric == JUDGE]
        if judged and self.judge is None:
            raise ValueError(f"task {judged[0]!r} has score: judge, but there is no judge; give judge: {{model: PATH}}")
        return self


class ScoredSection(Section):
    """The part of a stored configuration that scores depend on, besides the answers."""

    model_config = ConfigDict(extra="ignore")
    draws: Draws = 1000
    seed: Seed = 0
    judge: JudgeSection | None = None


class MetaSection(Section):
    """The part of the results' metadata that a comparison needs.

    Attributes:
        labels: {task: the answers that classification chooses from}.
        answers: {task: the checksum of its predictions}; None in results of earlier versions.
        judge: what verdicts depend on besides the texts; None without a judge, and in results of earlier versions.
        config: the configuration.
    """

    model_config = ConfigDict(extra="ignore")
    labels: dict[str, list[str]] = Field(default_factory=dict)
    answers: dict[str, str] | None = None
    judge: list[str] | None = None
    config: ScoredSection = Field(default_factory=ScoredSection)


def load(path: Path | None, settings_: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> EvaluateConfig:
    """The configuration of a YAML file (or of finished results), overridden by settings and options.

    Raises:
        ConfigError: if the file is missing, is not YAML, or has a key or value that cannot be used.
    """
    data = _read(path) if path else {}
    whole = settings.overridden(data, settings_, options or {})
    model, place = whole.get("model"), str(path) if path else "the options"
    if isinstance(model, dict) and model.get("base") is None and isinstance(model.get("adapter"), str):
        # with a placeholder for the base, so that other mistakes are reported first
        known = settings.build(EvaluateConfig, whole | {"model": model | {"base": MINI}}, place)
        model["base"] = _own_base(model["adapter"], next(iter(known.tasks)))
    return settings.build(EvaluateConfig, whole, place)


def _read(path: Path) -> dict[str, Any]:
    """The values of a YAML file, or of finished results."""
    return _of_results(path) if is_folder(path) else settings.read(path, EvaluateConfig, RECORD)


def _of_results(path: Path) -> dict[str, Any]:
    """The configuration that finished results were made with."""
    try:
        config = settings.without_trust(read_json(path / RECORD)["meta"]["config"])
        return {key: value for key, value in config.items() if key != "out"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} is a directory, but has no {RECORD} of an evaluation; name a YAML file, or a directory with one"
        ) from None


def _own_base(adapter: str, task: str) -> str:
    """The base that a local adapter names: the task's own adapter, or the first existing one of all tasks.

    Raises:
        ConfigError: it names no base, or does not exist.
    """
    path = Path(adapter.replace(TASK, file_name(task))) / "adapter_config.json"
    pattern = Path("*".join(glob.escape(part) for part in adapter.split(TASK))) / path.name
    try:
        if not exists(path):  # an entry can hold several tasks, whose names only its file knows
            path = Path(min(glob.glob(str(pattern)), default=path))  # noqa: PTH207 - Path.glob wants a relative one
        found = read_json(path)["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        found = None
    if not isinstance(found, str) or not found:
        raise ConfigError(f"no base model is named in {path}; check the adapter's path, or give model.base (--base)")
    return found
