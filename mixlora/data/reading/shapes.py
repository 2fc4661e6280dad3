"""The shapes in which records hold a conversation, a prompt with its completion, or a text, each by its keys.

`records` makes examples of what is found here. A key that carries meaning and is read by no part of a shape is
refused, so that nothing is dropped without a word.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlora.data.examples import Form, Turn
from mixlora.data.reading.messages import read_messages
from mixlora.data.reading.pictures import PICTURE_KEYS
from mixlora.data.reading.values import Record, as_text, is_missing, of_json, shown

SHAPES = (
    "{messages: [{role, content}]}, {conversations: [{from, value}]}, {prompt, completion}, {prompt, response}, "
    "{instruction, input, output}, {query, response}, {texts: [{user, assistant}]}, {text}, {prompt, target, "
    "image_path}"
)
"""What records are understood in, for messages."""

_MESSAGE_LISTS = ("messages", "conversations", "conversation")
_MOVING = ("video", "videos", "audio", "audios")
"""Keys of what is neither text nor a picture."""
MEANINGFUL = frozenset(
    {
        *(*_MESSAGE_LISTS, "texts", "text", "prompt", "completion", "response", "target", "answers", "references"),
        *("instruction", "input", "output", "query", "system", "history", "tools", "functions", *PICTURE_KEYS),
        *(*_MOVING, "chosen", "rejected", "documents", "chat_template_kwargs", "weight", "train", "loss"),
        *("reasoning_content", "thinking", "reasoning", "suffix", "segments"),
        *("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "loss_weight"),
    }
)
"""Keys that say what is trained on: each is read, or the record is refused."""


@dataclass(frozen=True)
class Content:
    """What a record says.

    Attributes:
        turns: the conversation.
        form: how a trainer writes it.
        used: keys of the record that were read.
        pictures: those that parts of messages hold, in order; None for one that the record itself names.
        prompt_turns: of prompt and completion as messages, how many turns are the prompt.
        tools: schemas of functions.
        references: accepted answers.
        unread: keys within messages that are of no known meaning, and are not read.
    """

    turns: tuple[Turn, ...]
    form: Form
    used: frozenset[str]
    pictures: tuple[Any, ...] = ()
    prompt_turns: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()
    references: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()


def read_content(record: Record) -> Content:
    """What a record says, by the shape that its keys tell.

    Raises:
        DataError: it is of no known shape, or of two at once, or something in it cannot be used.
    """
    given = {key for key, value in record.values.items() if not is_missing(value)}
    found = [(name, read) for name, keys, read in _SHAPES if keys <= given]
    if not found:
        _refuse_missing(given, record)
        raise record.error(
            f"the record has an unknown shape, with the keys {record.keys}; supported are {SHAPES}; "
            "map other names with `fields`."
        )
    if name := next((key for key in _MOVING if key in given), None):
        raise record.error(f"{name} is {shown(record.values[name])}; videos and sounds are not read: drop the record.")
    content = found[0][1](record)
    for key in sorted((given & MEANINGFUL) - content.used - {*PICTURE_KEYS}):
        raise record.error(
            f"{key} is {shown(record.values[key])}, which is not read together with {', '.join(sorted(content.used))}; "
            f"set ignore: [{key}] to train without it."
        )
    return content


def _refuse_missing(given: Collection[str], record: Record) -> None:
    """Name what is missing, where a record has all keys of a shape and no value for one."""
    for _, keys, _ in _SHAPES:
        if keys <= set(record.values):
            name = min(keys - set(given))
            raise record.error(f"{name} is missing ({shown(record.values[name])}); fill it or drop the record.")


def _conversation(record: Record) -> Content:
    """Messages, under any of their names, with a system prompt and tools beside them."""
    name = next(key for key in _MESSAGE_LISTS if not is_missing(record.values.get(key)))
    found = read_messages(record.values[name], name, record)
    before, used = _system(record)
    if before and found.turns[0].role == "system":
        raise record.error("it has a system message and a field system; set ignore: [system], or remove one.")
    tools, of_tools = _tools(record)
    return Content(
        (*before, *found.turns),
        Form.MESSAGES,
        frozenset({name, *used, *of_tools}),
        found.pictures,
        tools=tools,
        unread=found.unread,
    )


def _completion(record: Record) -> Content:
    """A prompt and its completion: both text, or both messages."""
    prompt, completion = record.values["prompt"], record.values["completion"]
    used = frozenset({"prompt", "completion"})
    if isinstance(record.values.get("label"), bool):
        raise record.error(
            "label marks completions as wanted or not, which is not supported; drop the unwanted "
            "ones, and set ignore: [label]."
        )
    for name, value in (("prompt", prompt), ("completion", completion)):
        if isinstance(value, list) and not all(isinstance(one, Mapping) for one in value):
            raise record.error(f"{name} is {shown(value)}; write a text, or a list of messages.")
    if isinstance(prompt, list) or isinstance(completion, list):
        before = read_messages(prompt, "prompt", record)
        after = read_messages(completion, "completion", record)
        system, of_system = _system(record)
        tools, of_tools = _tools(record)
        turns = (*system, *before.turns, *after.turns)
        return Content(
            turns,
            Form.COMPLETION,
            used | of_system | of_tools,
            (*before.pictures, *after.pictures),
            len(turns) - len(after.turns),
            tools,
            unread=before.unread | after.unread,
        )
    turns = (
        Turn("user", as_text(prompt, "prompt", record)),
        Turn("assistant", as_text(completion, "completion", record)),
    )
    return Content(turns, Form.PLAIN, used)


def _question(question: str, answers: Sequence[str], also: str | None = None) -> Callable[[Record], Content]:
    """A reader of a question and its answer under these names; `also` is joined to the question by a newline."""

    def read(record: Record) -> Content:
        values = record.values
        given = [name for name in answers if not is_missing(values.get(name))]
        references, of_references = _references(record, given)
        used = {question, *given[:1], *of_references}
        asked = as_text(values[question], question, record)
        if also is not None and not is_missing(values.get(also)):
            used.add(also)
            more = as_text(values[also], also, record)
            asked = f"{asked}\n{more}" if more else asked
        answer = values[given[0]] if given else None
        if references and (answer is None or isinstance(answer, list)):
            answer = _most_frequent(references)
        system, of_system = _system(record)
        history, of_history = _history(record)
        last = (Turn("user", asked), Turn("assistant", as_text(answer, given[0] if given else "the answer", record)))
        turns = (*system, *history, *last)
        form = Form.QUESTION if len(turns) == 2 else Form.MESSAGES
        tools, of_tools = _tools(record)
        used |= of_system | of_history | of_tools
        return Content(turns, form, frozenset(used), tools=tools, references=references)

    return read


def _pairs(record: Record) -> Content:
    """A list of {user, assistant}."""
    turns: list[Turn] = []
    given = record.values["texts"]
    if not isinstance(given, list) or not given:
        raise record.error(f"texts is {shown(given)}; write a list of {{user, assistant}}.")
    for number, pair in enumerate(given, 1):
        if not isinstance(pair, Mapping) or not {"user", "assistant"} <= set(pair):
            raise record.error(f"entry {number} of texts is {shown(pair)}; write {{user, assistant}}.")
        turns.append(Turn("user", as_text(pair["user"], f"entry {number}", record)))
        turns.append(Turn("assistant", as_text(pair["assistant"], f"entry {number}", record)))
    system, used = _system(record)
    return Content((*system, *turns), Form.MESSAGES, frozenset({"texts", *used}))


def _text(record: Record) -> Content:
    return Content((Turn("assistant", as_text(record.values["text"], "text", record)),), Form.TEXT, frozenset({"text"}))


_SHAPES: Sequence[tuple[str, frozenset[str], Callable[[Record], Content]]] = (
    *((name, frozenset({name}), _conversation) for name in _MESSAGE_LISTS),
    ("prompt/completion", frozenset({"prompt", "completion"}), _completion),
    ("alpaca", frozenset({"instruction", "output"}), _question("instruction", ("output",), also="input")),
    ("query/response", frozenset({"query", "response"}), _question("query", ("response",))),
    *(
        ("prompt/response", frozenset({"prompt", answer}), _question("prompt", ("response", "target")))
        for answer in ("response", "target", "references", "answers")
    ),
    ("texts", frozenset({"texts"}), _pairs),
    ("text", frozenset({"text"}), _text),
)
"""Name, keys that tell it, and reader of every shape; the first that fits is taken."""


def _system(record: Record) -> tuple[tuple[Turn, ...], frozenset[str]]:
    if is_missing(value := record.values.get("system")):
        return (), frozenset()
    text = as_text(value, "system", record)
    return ((Turn("system", text),) if text else ()), frozenset({"system"})


def _history(record: Record) -> tuple[tuple[Turn, ...], frozenset[str]]:
    """Earlier questions and answers, each a pair."""
    if is_missing(value := record.values.get("history")):
        return (), frozenset()
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise record.error(f"history is {shown(value)}; write a list of [question, answer].")
    pairs = [[as_text(text, "history", record) for text in pair] for pair in value]
    turns = [turn for asked, said in pairs for turn in (Turn("user", asked), Turn("assistant", said))]
    return tuple(turns), frozenset({"history"})


def _tools(record: Record) -> tuple[tuple[Mapping[str, Any], ...], frozenset[str]]:
    name = next((key for key in ("tools", "functions") if not is_missing(record.values.get(key))), None)
    if name is None:
        return (), frozenset()
    value = of_json(record.values[name], name, record)
    if value == []:
        return (), frozenset({name})
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise record.error(f"{name} is {shown(value)}; write a list of the tools' JSON schemas.")
    return tuple(value), frozenset({name})


def _references(record: Record, given: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The accepted answers that a record lists, as often as it lists each; () if it lists none.

    They are its answer itself, if that is a list, or its field `references`, or, without a `response`, its `answers`.
    """
    values = record.values
    lists = [name for name in given if isinstance(values[name], list)]
    others = ["references"] + ["answers"] * ("response" not in given)
    name = next((name for name in [*lists, *others] if not is_missing(values.get(name))), None)
    if name is None:
        return (), frozenset()
    if not isinstance(values[name], list) or not values[name]:
        raise record.error(f"{name} is {shown(values[name])}; write a list of at least one answer.")
    answers = [item.get("answer") if isinstance(item, Mapping) else item for item in values[name]]
    texts = tuple(as_text(answer, f"answer {at} of {name}", record) for at, answer in enumerate(answers, 1))
    return texts, frozenset({name})


def _most_frequent(answers: Sequence[str]) -> str:
    """The answer that is given most often, the first of them on ties; one without text only where none has any."""
    return Counter([answer for answer in answers if answer.strip()] or answers).most_common(1)[0][0]
