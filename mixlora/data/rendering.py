"""Conversations to text, and which characters of it an assistant wrote. Nothing here knows tokens.

Where a template has a variant with generation markers, these say what the assistant writes. Otherwise the text up to
an answer, with the generation prompt, and the text up to its end must both begin the whole, which then says as much;
a template that renders an earlier turn differently from the last is refused.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    mark_control_tokens,
    render_jinja_template,
)

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.limits import restart
from mixlora.data.examples import Example, Turn, with_values
from mixlora.data.templates import REFUSALS, ChatTemplate, bounded

Result = TypeVar("Result")

Span = tuple[int, int]
"""Characters of a text, from the first to behind the last."""

_PROBE = Example(
    "probe", "", (Turn("user", "PROBE-OF-A-QUESTION"), Turn("assistant", "PROBE-OF-AN-ANSWER")), (), "a trial of ours"
)
_LONGEST, _TIMES = 2**20, 64
"""Characters of a text, and how often what it is made of: a template that writes more than both is refused."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: a placeholder stands for each picture; between private markers stand special tokens that the record
            itself holds, which are text.
        answers: what the assistant writes, one span a turn or generation block, the token that ends it included.
    """

    text: str
    answers: tuple[Span, ...] = ()


class Renderer:
    """Writes the conversations of one model.

    Args:
        tokenizer: the model's, whose special tokens the template may name.
        template: the model's.
        image_token: the placeholder of a picture; None for a language model.

    Raises:
        ConfigError: the template does not render a question and an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, image_token: str | None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_token = image_token
        self.special = special_tokens(tokenizer, image_token)
        self.listed = bounded(self._find_content_style, template.source)

    def whole(self, example: Example) -> Rendered:
        """A conversation as a trainer writes it that computes its loss on every token.

        Raises:
            DataError: the template refuses the conversation, or drops something of it.
            ConfigError: it takes for ever, or writes a text without measure.
        """
        return Rendered(self._bounded(lambda: self._whole(example), example))

    def answered(self, example: Example) -> Rendered:
        """A conversation as a trainer writes it that computes its loss on answers.

        Raises:
            DataError: as `whole`, or what is an answer cannot be told.
        """
        return self._bounded(lambda: self._answered(example), example)

    def prompt(self, example: Example, turns: Sequence[Turn], training: bool) -> str:
        """The first turns of an example and the generation prompt, by the template or its variant for training."""
        return self._bounded(lambda: self._render(example, turns, training, answering=True)[0], example)

    def _bounded(self, render: Callable[[], Result], example: Example) -> Result:
        return bounded(render, self.template.source, example.source)

    def _whole(self, example: Example) -> str:
        text, _ = self._render(example, example.turns, training=False)
        self._check_kept(example, text)
        return text

    def _answered(self, example: Example) -> Rendered:
        if self.template.training is None:
            text = self._whole(example)
            return Rendered(text, tuple(self._by_prefixes(example, text)))
        text, answers = self._render(example, example.turns, training=True)
        self._check_kept(example, text)
        return Rendered(text, tuple(answers))

    def _by_prefixes(self, example: Example, whole: str) -> Iterator[Span]:
        for k, turn in enumerate(example.turns):
            if turn.role != "assistant":
                continue
            before, _ = self._render(example, example.turns[:k], training=False, answering=True)
            until, _ = self._render(example, example.turns[: k + 1], training=False)
            if not (whole.startswith(until) and until.startswith(before)):
                raise DataError(
                    f"{example.source}: the chat template ({self.template.source}) has no generation markers and "
                    f"writes turn {k + 1} alone differently than within the conversation, so the supervised tokens "
                    "cannot be found; give model.chat_template one with {% generation %} markers, or the "
                    "task loss_on: everything"
                )
            yield len(before), len(until)

    def _render(
        self, example: Example, turns: Sequence[Turn], training: bool, answering: bool = False
    ) -> tuple[str, list[Span]]:
        """The turns as the template writes them, and what of the text the assistant does, if that is for `training`.

        Arguments of tool calls stand as the record has them; they are values where the template takes nothing else.
        """
        restart()  # of a conversation of many turns, many parts are rendered
        try:
            return self._by_template(example, turns, training, answering)
        except (MemoryError, ConfigError):
            raise
        except REFUSALS as error:
            if (others := [with_values(turn) for turn in turns]) != list(turns):
                with suppress(*REFUSALS):
                    return self._by_template(example, others, training, answering)
            raise DataError(
                f"{example.source}: the chat template ({self.template.source}) rejects this conversation: "
                f"{_words(error)}; change its turns, or give another model.chat_template"
            ) from None

    def _by_template(
        self, example: Example, turns: Sequence[Turn], training: bool, answering: bool
    ) -> tuple[str, list[Span]]:
        known: Any = self.tokenizer.special_tokens_map
        with self.template.on_its_day(training) as jinja:
            rendered: Any = render_jinja_template(
                conversations=[[self._message(turn, self.listed) for turn in turns]],
                tools=mark_control_tokens([dict(tool) for tool in example.tools], self.special) or None,
                chat_template=jinja,
                return_assistant_tokens_mask=training,
                add_generation_prompt=answering,
                **known,
            )
        (text, *_), spans = rendered
        if len(text) > _LONGEST and len(text) > _TIMES * len(repr((turns, example.tools))):
            raise ConfigError(
                f"the chat template ({self.template.source}) makes {len(text)} characters of one conversation "
                f"({example.source}); give another model.chat_template"
            )
        return str(text), [(start, end) for start, end in spans[0]] if training else []

    def _message(self, turn: Turn, listed: bool) -> dict[str, Any]:
        """A turn as a template reads it."""
        if turn.places and self.template.is_llava_v1:
            turn = replace(turn, text=turn.text.strip(), places=(0,) * len(turn.places))
        pieces = [mark_control_tokens(piece, self.special) for piece in _pieces(turn)]
        content: Any
        if listed:
            content = [{"type": "image"} if piece is None else {"type": "text", "text": piece} for piece in pieces]
        else:
            token = str(self.image_token)
            shown = [token if piece is None else piece for piece in pieces]
            content = "".join(f"{token}\n" if at == 0 and piece is token else piece for at, piece in enumerate(shown))
        more = mark_control_tokens(dict(turn.more), self.special)
        return {"role": turn.role, "content": content, **more}

    def _find_content_style(self) -> bool:
        """Whether a message's content is a list of parts (True) or a string, found by rendering one of each."""
        seeing = self.image_token is not None
        question, answer = _PROBE.turns
        turns = (Turn("user", question.text, (0,) if seeing else ()), answer)
        reason = ""
        for listed in (True, False) if seeing else (False, True):
            self.listed = listed
            try:
                text, _ = self._render(_PROBE, turns, training=False)
            except DataError as error:
                reason = f" ({_words(error.__context__ or error)})"
                continue
            shown = all(text.count(turn.text) == 1 for turn in turns)
            if shown and (not seeing or text.count(str(self.image_token)) == 1):
                return listed
        raise ConfigError(
            f"the chat template ({self.template.source}) does not render a user turn and an assistant turn"
            + (f" with one {self.image_token} placeholder" if seeing else "")
            + f"{reason}; give another model.chat_template"
        )

    def _check_kept(self, example: Example, text: str) -> None:
        """Raise a DataError where the template leaves out what the record says."""
        for k, turn in enumerate(example.turns, 1):
            for piece in _pieces(turn):
                said = (piece or "").rpartition("</think>" if turn.role == "assistant" else "\0")[2].strip()
                if str(mark_control_tokens(said, self.special)) not in text:
                    raise DataError(
                        f"{example.source}: the chat template ({self.template.source}) drops or changes turn {k} "
                        f"({turn.role}): {said[:60]!r}; change the record, or give another model.chat_template"
                    )
            if (turn.role == "tool" or turn.more.get("tool_calls")) and not self.template.calls_tools:
                raise DataError(
                    f"{example.source}: turn {k} is a tool call or a tool's answer, which the chat template "
                    f"({self.template.source}) does not write; give another model.chat_template"
                )
            if any(key in turn.more for key in _REASONING) and not any(
                key in str(self.template.text) for key in _REASONING
            ):
                raise DataError(
                    f"{example.source}: turn {k} has reasoning, which the chat template ({self.template.source}) does "
                    "not write; remove it, write it into the content, or give another model.chat_template"
                )
        for tool in example.tools:
            name = str(tool.get("function", tool).get("name", ""))
            if name not in text:
                raise DataError(
                    f"{example.source}: the record has tools, which the chat template ({self.template.source}) does "
                    f"not write ({name!r:.60} is missing); give another model.chat_template, or ignore: [tools]"
                )


def _words(error: BaseException) -> str:
    """What an error says, on one line."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"


def special_tokens(tokenizer: PreTrainedTokenizerBase, image_token: str | None) -> re.Pattern[str]:
    """A pattern of what a tokenizer reads as control tokens, the placeholder of a picture among them."""
    found = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= {*tokenizer.all_special_tokens, *([image_token] if image_token else [])}
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or r"(?!)")


def _pieces(turn: Turn) -> list[str | None]:
    """The text of a turn in pieces, None where a picture stands."""
    found: list[str | None] = []
    at = 0
    for place in turn.places:
        found += [turn.text[at:place], None]
        at = place
    return [piece for piece in (*found, turn.text[at:]) if piece != ""] or [""]
