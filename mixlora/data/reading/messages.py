"""Lists of messages to turns: roles and their aliases, parts, tool calls, and which turns are context only."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mixlora.data.examples import Role, Turn
from mixlora.data.reading.values import Record, as_text, is_missing, of_json, shown

ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
}
"""Names of roles in records, in small letters."""
_CALL = "function_call"
"""The role of an assistant's turn that calls a tool, in ShareGPT's files."""
_KEYS = (("role", "content"), ("from", "value"), ("role", "value"), ("from", "content"))
_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTEXT = ("weight", "train", "loss", "trainable", "training")
"""Keys that keep an assistant's message out of the loss where they are 0 or false."""
_FLAGS = ("mask", "masked", "prefix")
"""Of the keys below, those that mean nothing where they are false."""
_WEIGHING = ("train_detail", "mask", "masked", "loss_mask", "loss_weight")
_REFUSED = (
    *("video", "videos", "audio", "audios", "images", "image", "label", "documents", "thought", "prefix"),
    *_WEIGHING,
)
"""Keys of a message that say what is trained on, and are not read."""
_PICTURE_KEYS = ("image", "path", "bytes", "base64", "url", "image_url")
_READ = {
    *("role", "from", "content", "value", "tool_calls", _CALL, "tool_call_id", "name"),
    *_REASONING,
    *_CONTEXT,
    *_REFUSED,
}


class Messages(NamedTuple):
    """What a list of messages says.

    Attributes:
        turns: one a message.
        pictures: those that their parts hold, in order; None for one that the record itself names.
        unread: keys that are of no known meaning, and are not read.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Any, ...]
    unread: frozenset[str]


def read_messages(value: Any, name: str, record: Record) -> Messages:
    """The turns of a list of messages.

    Args:
        value: the list, or the same as JSON in a string.
        name: its key, for messages.
        record: which holds it.

    Raises:
        DataError: it is no such list, or a message cannot be used.
    """
    messages = of_json(value, name, record)
    if not isinstance(messages, list) or not messages:
        raise record.error(f"{name} is {shown(value)}; write a list of messages.")
    turns: list[Turn] = []
    pictures: list[Any] = []
    unread: set[str] = set()
    for number, message in enumerate(messages, 1):
        turn, own = _turn(message, number, record)
        turns.append(turn)
        pictures += own
        other = message.keys() - _READ - record.ignored
        unread |= {f"{name}[].{key}" for key in other if not is_missing(message[key])}
    return Messages(tuple(turns), tuple(pictures), frozenset(unread))


def _turn(message: Any, number: int, record: Record) -> tuple[Turn, list[Any]]:
    what = f"message {number}"
    keys = next((pair for pair in _KEYS if isinstance(message, Mapping) and pair[0] in message), None)
    if keys is None:
        raise record.error(f"{what} is {shown(message)}; write {{role, content}} or {{from, value}}.")
    message = {key: own for key, own in message.items() if not is_missing(own) and key not in record.ignored}
    role_key = keys[0]
    text_key = next((key for key in ("content", "value") if key in message), None)
    named = str(message.get(role_key)).strip()
    role = "assistant" if named.lower() == _CALL else ROLES.get(named.lower())
    if role is None:
        raise record.error(f"{what} has the role {named!r:.60}; roles are {', '.join((*ROLES, _CALL))}.")
    calls = _calls(message, named, text_key, what, record)
    if text_key is None and not calls:
        raise record.error(f"{what} is {shown(message)}, which says nothing; give it content.")
    content: Any = "" if text_key is None or named.lower() == _CALL else message[text_key]
    text, places, pictures = _content(content, what, record)
    supervised = _is_supervised(message, what, record)
    more = {"tool_calls": calls} if calls else {}
    more |= {key: message[key] for key in ("tool_call_id", "name", *_REASONING) if key in message}
    for key in _REFUSED:
        if key in message and message[key] not in ("", []) and not (key in _FLAGS and message[key] is False):
            raise record.error(
                f"{what} has {key} {shown(message[key])}, which is not supported there; remove it, or set ignore: "
                f"[{key}]."
            )
    return Turn(role, text, places, supervised, more), pictures


def _calls(message: Mapping[str, Any], named: str, text_key: str | None, what: str, record: Record) -> list[Any]:
    """The tool calls of a message as they stand; arguments may be written as JSON in a string."""
    calls = of_json(message.get("tool_calls", []), f"tool_calls of {what}", record)
    if named.lower() == _CALL and text_key is not None:
        called = of_json(message[text_key], what, record)
        calls = [{"type": "function", "function": call} for call in (called if isinstance(called, list) else [called])]
    if "function_call" in message:
        calls = [{"type": "function", "function": of_json(message["function_call"], what, record)}]
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise record.error(f"the tool calls of {what} are {shown(calls)}; write a list of {{function}}.")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise record.error(f"{what} calls {shown(call)}; write {{function: {{name, arguments}}}}.")
    return calls


def _is_supervised(message: Mapping[str, Any], what: str, record: Record) -> bool:
    for key in _CONTEXT:
        if key not in message:
            continue
        value = message[key]
        if isinstance(value, bool | int | float) and value in (0, 1):
            if not value:
                return False
            continue
        raise record.error(f"{key} of {what} is {shown(value)}; write 1 (in the loss) or 0 (context).")
    return True


def _content(content: Any, what: str, record: Record) -> tuple[str, tuple[int, ...], list[Any]]:
    """A message's text, where in it pictures stand, and the pictures that its parts hold."""
    if not isinstance(content, list):
        return as_text(content, what, record), (), []
    text, places, pictures = "", [], []
    for part in content:
        _refuse_weights(part, what, record)
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind is None and isinstance(part, str):
            text += as_text(part, what, record)
        elif kind == "text" or (kind is None and isinstance(part, Mapping) and isinstance(part.get("text"), str)):
            text += as_text(part.get("text"), what, record)
        elif kind in ("image", "image_url"):
            places.append(len(text))
            pictures.append(_picture(part))
        else:
            raise record.error(
                f'{what} has a part {shown(part)}; parts are {{"type": "text", "text": ...}} and {{"type": "image"}}.'
            )
    return text, tuple(places), pictures


def _refuse_weights(part: Any, what: str, record: Record) -> None:
    for key in (*_CONTEXT, *_WEIGHING):
        if isinstance(part, Mapping) and key in part and key not in record.ignored:
            raise record.error(
                f"{what} has a part with {key} {shown(part[key])}; only whole messages can be left out of the loss; "
                f"write it there, or set ignore: [{key}]."
            )


def _picture(part: Mapping[str, Any]) -> Any:
    """What a part says of its picture; None where the record itself names it."""
    given = next((part[key] for key in _PICTURE_KEYS if not is_missing(part.get(key)) and part[key] != ""), None)
    if isinstance(given, Mapping) and "url" in given:
        given = given["url"]
    if isinstance(given, str) and given == part.get("base64") and not given.startswith("data:"):
        return f"data:;base64,{given}"
    return {"bytes": given} if isinstance(given, bytes) else given
