"""The sections that configurations share: the base model, and a task. Each command's `config` adds its own."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mixlora.common.files import exists
from mixlora.common.settings import Place, Section

MINI = "mini"
"""The base that ships with this package."""
SPLIT = "split"
"""The value of `device` that spreads a base's layers over all GPUs, and the CPU if they cannot hold it."""


class BaseSection(Section):
    """Which base model, and how it is loaded.

    Attributes:
        base: path or hub id of the base model; "mini" is the small LLaVA that ships with this package.
        projector: projector.safetensors of `mixlora import-official`, loaded into the base.
        dtype: of the base's weights; "auto" keeps the checkpoint's own.
        quantization: store the base's Linear weights, except a projector's and the output layer's, in "4bit" (NF4) or
            "8bit"; needs bitsandbytes.
        device: "auto" is a GPU if there is one, "split" spreads the layers over all of them.
        attention: attention implementation of transformers.
        chat_template: a Jinja template in place of the model's own.
        trust_remote_code: run the code in a hub repository.
    """

    base: Place
    projector: Place | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    quantization: Literal["4bit", "8bit"] | None = None
    device: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    chat_template: str | None = None
    trust_remote_code: bool = False


class TaskSection(Section):
    """Where a task's examples come from: a file, or the mini suite.

    Attributes:
        file: a .jsonl or .json file, a parquet file, or a directory that `save_to_disk` of `datasets` wrote.
        images: the folder that image names are relative to; None for the file's own. No image may leave it, unless
            `outside`.
        outside: also take images outside that folder: named by an absolute path or with "..", or behind a link.
        where: take only records with these values, {field: value}.
        split: the split of a dataset directory that has several.
        fields: the file's own names of `id`, `prompt`, `response`, `image` and `references`, as in {prompt: question}.
        mini: "train" or "heldout": that split of the mini suite's task of this name.
    """

    sources: ClassVar[tuple[str, ...]] = ("file", "mini")
    """Keys that each name a source; exactly one of them is given."""
    of_file: ClassVar[tuple[str, ...]] = ("images", "outside", "where", "split", "fields")
    """Keys that say how a file is read."""

    file: Place | None = None
    images: Place | None = None
    outside: bool = False
    where: dict[str, Any] = Field(default_factory=dict)
    split: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    mini: Literal["train", "heldout"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "TaskSection":
        if sum(getattr(self, key) is not None for key in self.sources) != 1:
            raise ValueError("give either file: PATH or mini: heldout")
        if self.mini is not None and (beside := self.given_of_file):
            raise ValueError(f"{beside[0]} is for a file; leave it out with mini")
        return self

    @property
    def given_of_file(self) -> list[str]:
        """The keys that say how a file is read and that were given."""
        return [key for key in self.of_file if getattr(self, key)]


class TaskGroupSection(TaskSection):
    """One task, or several from one source.

    Attributes:
        by: make one task of each value of this field of the file's records, named by the value.
        mme: the folder of the benchmark MME, in place of a file: each of its subtasks is a task.
    """

    sources: ClassVar[tuple[str, ...]] = (*TaskSection.sources, "mme")
    of_file: ClassVar[tuple[str, ...]] = (*TaskSection.of_file, "by")

    by: str | None = None
    mme: Place | None = None


def resolved(config: Section) -> dict[str, Any]:
    """A configuration with every default filled in and absolute paths: it reruns the job from any directory.

    Args:
        config: has the sections `model` and `tasks`.
    """
    data = config.model_dump(mode="json")
    named = [(data["model"], key) for key in ("base", "adapter", "projector")]
    named += [(task, key) for task in data["tasks"].values() for key in ("file", "images", "mme")]
    named += [(data["judge"], "model")] if data.get("judge") else []
    for values, key in named:
        if isinstance(name := values.get(key), str) and (key, name) != ("base", MINI):
            values[key] = _absolute(name)
    return data


def _absolute(name: str) -> str:
    """The absolute path, if it or the folder before its {pattern} exists; otherwise the name (a hub id) unchanged."""
    before, brace, _ = name.partition("{")
    there = exists(Path(name)) or (brace and exists(Path(f"{before}_").parent))
    return str(Path(name).resolve()) if there else name
