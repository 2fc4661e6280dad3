"""What an example of a task is. How it is read from files is in `reading`, how it becomes tensors in `collation`."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mixlora.common.files import parse_json

Role = Literal["system", "user", "assistant", "tool"]
Picture = Path | Image.Image


class Form(StrEnum):
    """How a trainer writes an example."""

    MESSAGES = "messages"  # by the chat template
    QUESTION = "prompt/response"  # by the chat template; as text where the model has none
    COMPLETION = "prompt/completion of messages"  # by the chat template, the completion supervised
    PLAIN = "prompt/completion"  # as text, whatever template there is
    TEXT = "text"  # as it stands


class LossOn(StrEnum):
    """Which tokens a trainer computes its loss on."""

    ANSWERS = "answers"  # of every assistant turn, or of the completion
    LAST_ANSWER = "last-answer"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: whose it is.
        text: its text, without placeholders of pictures.
        places: where in the text pictures stand, in characters, one entry per picture.
        supervised: whether a trainer computes a loss on it, if it is an assistant's.
        more: what else the template may read: tool_calls, tool_call_id, name, reasoning_content.
    """

    role: Role
    text: str
    places: tuple[int, ...] = ()
    supervised: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)


def with_values(turn: Turn) -> Turn:
    """The turn, arguments of its tool calls that are JSON in a string as values, which some templates ask for."""
    if "tool_calls" not in turn.more:
        return turn
    calls = []
    for call in turn.more["tool_calls"]:
        function = dict(call.get("function", call))
        if isinstance(function.get("arguments"), str):
            with suppress(ValueError):  # some are plain text, which the template writes as it stands
                function["arguments"] = parse_json(function["arguments"])
        calls.append({**call, "function": function} if "function" in call else function)
    return replace(turn, more={**turn.more, "tool_calls": calls})


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, a prompt with its completion, or a text.

    Attributes:
        id: the record's own id, or its position in its file; unique within a task.
        task: the task's name.
        turns: the conversation in order; of a prompt and its completion a user's and an assistant's turn, of a text
            an assistant's alone.
        images: paths (opened when the example is collated) or pictures, in the order of the turns' places.
        source: where the record stands, for messages and for the run: "file.jsonl:12".
        references: every accepted answer that the record lists, as often as it does (VQA's ten); () if it lists none.
        form: how a trainer writes it.
        prompt_turns: of `Form.COMPLETION`, how many turns are the prompt.
        tools: JSON schemas of the functions that the assistant may call.
        loss_on: which tokens are supervised; all of a text.
        group: the value of the record's key that a task's `group` names; None where it names none.
    """

    id: str
    task: str
    turns: tuple[Turn, ...]
    images: tuple[Picture, ...]
    source: str
    references: tuple[str, ...] = ()
    form: Form = Form.MESSAGES
    prompt_turns: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()
    loss_on: LossOn = LossOn.ANSWERS
    group: str | None = field(default=None, repr=False)  # no fingerprint of examples depends on it

    @property
    def has_image(self) -> bool:
        """Whether it has a picture."""
        return bool(self.images)


def pictures_first(turns: tuple[Turn, ...], count: int = 1) -> tuple[Turn, ...]:
    """The turns, with `count` pictures put at the beginning of the first user turn."""
    first = next((turn for turn in turns if turn.role == "user"), None)
    return tuple(replace(turn, places=(0,) * count + turn.places) if turn is first else turn for turn in turns)
