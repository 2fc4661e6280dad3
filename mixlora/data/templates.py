"""Conversations to prompts: chat templates, and which characters of a rendered prompt are supervised.

Not here: tokens (`collation`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mixlora.common.errors import ConfigError, DataError
from mixlora.data.examples import Example, Turn

LLAVA_V1 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The conversation format of LLaVA and Vicuna v1, which MixLoRA was trained with."""

_PROBE = (Turn("user", "PROBE-OF-A-QUESTION"), Turn("assistant", "PROBE-OF-AN-ANSWER"))


@dataclass(frozen=True)
class Span:
    """The place of one assistant turn in a rendered prompt, in characters.

    Attributes:
        start: where the generation prompt ends and the model has to write.
        answer_start: where the turn's text starts; often `start`, or a space later.
        answer_end: where the turn's text ends.
        end: the end of the token that ends the turn.
    """

    start: int
    answer_start: int
    answer_end: int
    end: int

    def shifted(self, by: int) -> "Span":
        """The same span after `by` characters were inserted before it."""
        return Span(self.start + by, self.answer_start + by, self.answer_end + by, self.end + by)


class PromptTemplate:
    """Renders conversations by a model's chat template, or by LLaVA v1's if it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, image_token: str | None):
        self.tokenizer = tokenizer
        self.is_fallback = chat_template is None
        self.chat_template = LLAVA_V1 if chat_template is None else chat_template
        self.image_token = image_token
        self.special_tokens = special_tokens(tokenizer, image_token)
        self._special = re.compile(
            "|".join(map(re.escape, sorted(self.special_tokens, key=len, reverse=True))) or r"(?!)"
        )
        self._listed = self._find_content_style()

    def render(self, turns: Sequence[Turn], with_image: bool = False, answering: bool = False) -> str:
        """The text of `turns`: an image's placeholder in the first user turn, a generation prompt if `answering`."""
        return self._render(turns, with_image, answering, self._listed)

    def conversation(self, example: Example) -> tuple[str, list[Span]]:
        """The rendered example and the spans of its assistant turns.

        A turn's span is exactly what a model has to generate: from the end of the generation prompt to the token that
        ends the turn. If the template writes no such token, the tokenizer's eos is added.

        Raises:
            DataError: a text holds a special token, or the template refuses or changes the conversation.
            ConfigError: the template's generation prompt is not how it renders the answer that follows.
        """
        self._refuse_special_tokens(example)
        with_image = example.image is not None
        answers = [k for k, turn in enumerate(example.turns) if turn.role == "assistant"]
        try:
            full = self.render(example.turns, with_image)
            prompts = [self.render(example.turns[:k], with_image, answering=True) for k in answers]
            parts = [self.render(example.turns[: k + 1], with_image) for k in answers[:-1]]
        except (TemplateError, ValueError) as error:  # ValueError: no turn precedes the first answer
            raise DataError(
                f"{example.source}: the chat template refuses this conversation ({error}); "
                "change its turns or pass another chat_template."
            ) from error
        self._check_kept(example, full)
        turns = [example.turns[k] for k in answers]
        located = zip(turns, prompts, [*parts, full], strict=True)
        return self._with_ends(full, [self._span(example, full, *answer) for answer in located])

    def _render(self, turns: Sequence[Turn], with_image: bool, answering: bool, listed: bool) -> str:
        messages = []
        for turn in turns:
            show = with_image and turn.role == "user"
            with_image = with_image and not show
            content: Any = turn.text
            if listed:
                content = [{"type": "image"}] * show + [{"type": "text", "text": turn.text}]
            elif show:
                content = f"{self.image_token}\n{turn.text}"
            messages.append({"role": turn.role, "content": content})
        return str(
            self.tokenizer.apply_chat_template(
                messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=answering
            )
        )

    def _find_content_style(self) -> bool:
        """Whether messages' content is a list of parts (True) or a string, found by rendering one of each."""
        with_image = self.image_token is not None
        reason = ""
        for listed in (True, False) if with_image else (False, True):
            try:
                text = self._render(_PROBE, with_image, False, listed)
            except (TemplateError, TypeError) as error:
                reason = f" ({error})"
                continue
            shown = all(text.count(turn.text) == 1 for turn in _PROBE)
            if shown and (not with_image or text.count(str(self.image_token)) == 1):
                return listed
        raise ConfigError(
            "The chat template does not render a user turn and an assistant turn"
            + (f" with one {self.image_token} placeholder" if with_image else "")
            + f"{reason}; pass a chat_template that does."
        )

    def _span(self, example: Example, full: str, turn: Turn, prompt: str, part: str) -> Span:
        """The span of `turn` in `full`: after `prompt`, up to where `full` differs from `part`, which ends with it."""
        if not (full.startswith(prompt) and part.startswith(prompt)):
            raise ConfigError(
                f"{example.source}: the chat template's generation prompt, which ends in {prompt[-30:]!r}, is not "
                "how it renders the turn with its answer, so a model trained on it would never see its own prompt; "
                "pass another chat_template."
            )
        start, answer = len(prompt), turn.text.strip()
        at, at_in_part = (_find(answer, text, start) for text in (full, part))
        if at < 0 or at_in_part < 0:
            raise DataError(_changed(example, turn))
        answer_end = at + len(answer)
        ending = part[at_in_part + len(answer) :]
        tail = _common_start(full[answer_end:], ending)
        special = self._special.search(tail)
        written = len(ending.rstrip()) if tail == ending else 0
        return Span(start, at, answer_end, answer_end + (special.end() if special else written))

    def _with_ends(self, full: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """`full` with the eos token after every answer that has no end token, and the spans in that text."""
        closed: list[Span] = []
        added = 0
        for span in spans:
            here = span.shifted(added)
            if span.end == span.answer_end:
                eos, rest = self._eos(), full[here.end :]
                full = full[: here.end] + eos + (rest if rest.strip() else "")
                here = replace(here, end=here.end + len(eos))
                added += len(eos)
            closed.append(here)
        return full, closed

    def _eos(self) -> str:
        if not self.tokenizer.eos_token:
            raise ConfigError(
                "Neither the chat template nor the tokenizer (eos_token is not set) says how an answer ends, "
                "so no model could learn to stop; set tokenizer.eos_token."
            )
        return str(self.tokenizer.eos_token)

    def _check_kept(self, example: Example, full: str) -> None:
        for turn in example.turns:
            if turn.text.strip() not in full:
                raise DataError(_changed(example, turn))

    def _refuse_special_tokens(self, example: Example) -> None:
        for turn in example.turns:
            if found := self._special.search(turn.text):
                raise DataError(
                    f"{example.source}: the {turn.role} turn holds {found.group()!r}, a special token of this model, "
                    "which would break the conversation's structure; write it in another way or drop the record."
                )


def special_tokens(tokenizer: PreTrainedTokenizerBase, image_token: str | None) -> frozenset[str]:
    """The strings that a tokenizer reads as control tokens, including the image placeholder."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | set(tokenizer.all_special_tokens) | ({image_token} if image_token else set()))


def _find(answer: str, text: str, start: int) -> int:
    """The index of `answer` in `text` from `start` on: right after white space, or else its first occurrence."""
    at = start + len(text[start:]) - len(text[start:].lstrip())
    return at if text.startswith(answer, at) else text.find(answer, start)


def _common_start(one: str, other: str) -> str:
    return next(
        (one[:at] for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(one, other, key=len)
    )


def _changed(example: Example, turn: Turn) -> str:
    return (
        f"{example.source}: the chat template drops or changes the {turn.role} turn {turn.text[:60]!r}; "
        "change the record or pass another chat_template."
    )
