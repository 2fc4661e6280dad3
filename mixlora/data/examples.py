"""What an example of a task is.

Not here: how files are read (`reading`), how an example becomes tensors (`collation`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class Example:
    """A conversation, with at most one image, whose assistant turns are supervised.

    Attributes:
        id: the record's own id, or its position in its file; unique within a task.
        task: the task's name.
        turns: the conversation in order; the last turn is the assistant's. Text holds no image placeholder.
        image: a path (opened when the example is collated) or a picture; it precedes the first user turn's text.
        source: the place of the record, for messages and for the run: "file.jsonl:12".
        references: every accepted answer that the record lists, repetitions included (VQA's ten); () if it lists none.
    """

    id: str
    task: str
    turns: tuple[Turn, ...]
    image: Path | Image.Image | None
    source: str
    references: tuple[str, ...] = ()
