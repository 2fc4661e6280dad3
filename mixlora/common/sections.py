"""The sections that configurations share: the base model, and a task. Each command's `config` adds its own."""

import datetime
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mixlora.common.files import exists
from mixlora.common.settings import Number, Place, Section

MINI = "mini"
"""The base that ships with this package."""
SPLIT = "split"
"""The value of `device` that spreads a base's layers over all GPUs, and the CPU if they cannot hold it."""
NAMED_TEMPLATES = ("raw", "llava-v1")
"""Values of `chat_template` that are never a file: no template, and LLaVA v1's."""
HELDOUT = "heldout"
"""The part of a task that training leaves out."""


class ImageSection(Section):
    """How pictures are prepared.

    Attributes:
        pad: "square" pads them to a square of the processor's mean colour, as LLaVA 1.5 is trained on; None does what
            the base's image_aspect_ratio says.
    """

    pad: Literal["square"] | None = None


class BaseSection(Section):
    """Which base model, and how it is loaded.

    Attributes:
        base: path or hub id of the base model; "mini" is the small LLaVA that ships with this package.
        projector: projector.safetensors of `mixlora import-official`, loaded into the base.
        dtype: dtype of the base's weights; "auto" keeps the checkpoint's own.
        quantization: store the base's Linear weights, except a projector's and the output layer's, in "4bit" (NF4) or
            "8bit"; needs bitsandbytes.
        device: "auto" is a GPU if there is one, "split" spreads the layers over all of them.
        attention: attention implementation of transformers.
        chat_template: what writes conversations, in place of the adapter's or base's own: a Jinja file, `raw` (text as
            it stands), `llava-v1`, or a name that TRL knows, as `qwen3`.
        date: the day, as 2026-11-29, that a chat template takes for today where it writes the date; None for today.
        image: how pictures are prepared before the processor sees them.
        trust_remote_code: run code that a hub repository brings.
    """

    base: Place
    projector: Place | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    quantization: Literal["4bit", "8bit"] | None = None
    device: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    chat_template: Place | None = None
    date: str | None = None
    image: ImageSection = Field(default_factory=ImageSection)
    trust_remote_code: bool = False

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> str | None:
        try:  # YAML reads 2026-11-29 as a date
            return None if value is None else datetime.date.fromisoformat(str(value)).isoformat()
        except ValueError:
            raise ValueError("is not a date; write year, month and day, as in 2026-11-29") from None

    @property
    def day(self) -> datetime.date | None:
        """The day of `date`."""
        return None if self.date is None else datetime.date.fromisoformat(self.date)


class TaskSection(Section):
    """Where a task's examples come from: a file, or the mini suite.

    Attributes:
        file: a file of records (JSON, JSON lines, CSV, TSV, parquet, arrow, or one of them compressed), several by a
            pattern as "data/train-*.parquet", a folder of such files or of `save_to_disk`, or a data set's hub id.
        images: the folder that image names are relative to; None for the file's own. No image may leave it, unless
            `outside`.
        outside: also take images outside that folder: named by an absolute path or with "..", or behind a link.
        where: take only records with these values, {field: value}.
        without: a file of ids, one a line: the examples of these ids are left out.
        holdout: the share of the examples that is held out, chosen by a hash of their ids, so that it is the same for
            every command. The id of a record without one is its position, so that the file must then keep its order.
        part: with `holdout`, whether to take the examples that are left to "train" on, or those that are "heldout".
        split: the split of a folder or data set that has several, or the list of a JSON object that holds several.
        fields: the file's own names of `id`, `prompt`, `response`, `image` and `references`, as in {prompt: question}.
        loss_on: which tokens are supervised: those of all "answers", of the "last-answer", or "everything".
        ignore: keys of records that are not to be read.
        on_error: "refuse" records that cannot be used, the first twenty at once, or "skip" and count them.
        mini: "train" or "heldout": that split of the mini suite's task of this name.
    """

    sources: ClassVar[tuple[str, ...]] = ("file", "mini")
    """Keys that each name a source; exactly one of them is given."""
    of_file: ClassVar[tuple[str, ...]] = (
        "images",
        "outside",
        "where",
        "without",
        "holdout",
        "split",
        "fields",
        "ignore",
    )
    """Keys that say how a file is read."""

    file: Place | None = None
    images: Place | None = None
    outside: bool = False
    where: dict[str, Any] = Field(default_factory=dict)
    without: Place | None = None
    holdout: Number | None = Field(None, gt=0, lt=1)
    part: Literal["train", "heldout"] = "train"
    split: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    loss_on: Literal["answers", "last-answer", "everything"] = "answers"
    ignore: list[str] = Field(default_factory=list)
    on_error: Literal["refuse", "skip"] = "refuse"
    mini: Literal["train", "heldout"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "TaskSection":
        if sum(getattr(self, key) is not None for key in self.sources) != 1:
            raise ValueError("give either file: PATH or mini: heldout")
        if self.mini is not None and (beside := self.given_of_file):
            raise ValueError(f"{beside[0]} is for a file; leave it out with mini")
        if self.part == HELDOUT and self.holdout is None:
            raise ValueError("part: heldout needs holdout, the share of examples that training leaves out, as 0.1")
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
    named += [(task, key) for task in data["tasks"].values() for key in ("file", "images", "without", "mme")]
    of_sections = (("judge", "model"), ("judge", "prompt"), ("lookahead", "training"))
    named += [(data[key], name) for key, name in of_sections if data.get(key)]
    for values, key in named:
        if isinstance(name := values.get(key), str) and (key, name) != ("base", MINI):
            values[key] = _absolute(name)
    data["model"]["chat_template"] = _template(data["model"].get("chat_template"))
    return data


def _template(named: str | None) -> str | None:
    """What names a chat template, its path absolute where it is a file."""
    is_file = named is not None and named not in NAMED_TEMPLATES and "{" not in named and exists(Path(named))
    return str(Path(str(named)).resolve()) if is_file else named


def _absolute(name: str) -> str:
    """The absolute path, if it or the folder before its {pattern} or * does; otherwise the name (a hub id) as it is."""
    before = re.split(r"[{*?\[]", name, maxsplit=1)[0]
    there = exists(Path(name)) or (before != name and exists(Path(f"{before}_").parent))
    return str(Path(name).resolve()) if there else name
