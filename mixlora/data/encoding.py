"""An example as tokens, and which of them are supervised: those that the trainer of its form computes its loss on.

Tokens and labels are those of TRL's SFTTrainer: of messages with `assistant_only_loss` (loss_on: answers) or without
(everything), of a prompt and its completion with `completion_only_loss` or without, of a text all. Of LLaVA v1's
template they are those of LLaVA's own trainer.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import mark_control_tokens

from mixlora.common.errors import ConfigError, DataError
from mixlora.data.examples import Example, Form, LossOn
from mixlora.data.rendering import Renderer, Span, special_tokens
from mixlora.data.templates import ChatTemplate
from mixlora.data.tokens import MARKERS, Tokens, beginning, common_prefix_length, tokenize

Expand = Callable[[Example, str, Sequence[Span]], tuple[str, list[Span]]]
"""Writes the placeholders of an example's pictures as often as the model has features of them; moves spans along."""


@dataclass(frozen=True)
class Sequenced:
    """An example in tokens.

    Attributes:
        text: what was tokenized, with one placeholder a picture and markers around a record's own special tokens.
        ids: the tokens, placeholders expanded.
        supervised: whether each is supervised.
        suffix: the answer, of a processor that is given it apart from the text.
        is_whole: whether these are all tokens; else more than are kept.
        goes_on: whether tokens are supervised behind these.
    """

    text: str
    ids: list[int]
    supervised: list[bool]
    suffix: str | None = None
    is_whole: bool = True
    goes_on: bool = False


class Encoder:
    """Examples to tokens, for one model.

    Args:
        tokenizer: a fast one.
        template: the model's chat template.
        image_token: the placeholder of a picture; None for a language model.
        expand: see `Expand`.
        written_by: the name of a processor that writes a prompt and its answer itself; None of any other.
        max_length: tokens that are kept of an example; None for all. A text of many more is not tokenized whole.
        longest: tokens that the model was made for, which bound a text where there is no `max_length`.

    Raises:
        ConfigError: the template renders no conversation, or there is no eos token to end a text with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        image_token: str | None,
        expand: Expand,
        written_by: str | None = None,
        max_length: int | None = None,
        longest: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.expand = expand
        self.written_by = written_by
        self.max_length = max_length
        self.bound = longest if max_length is None else max_length
        self.special = special_tokens(tokenizer, image_token)
        self.image_token = image_token
        self._of_pictures = re.compile(re.escape(image_token) if image_token else r"(?!)")
        self.renderer = None if template.is_raw or written_by else Renderer(tokenizer, template, image_token)
        self._bos = self._own_beginning()
        self._sees = image_token is not None

    def encode(self, example: Example) -> Sequenced:
        """The example's tokens, and which of them are supervised.

        Raises:
            DataError: it cannot be written so, or nothing of it is supervised.
        """
        found = self._encode(example)
        if not found.goes_on and not any(found.supervised):
            raise DataError(f"{example.source}: loss_on: {example.loss_on} leaves no token to learn; drop the record")
        return found

    def prompt(self, example: Example) -> Sequenced:
        """What a model sees that is to generate the example's last answer; nothing of it is supervised."""
        if self.written_by is not None:
            return self._suffixed(example, answered=False)
        if self.renderer is None or example.form in (Form.PLAIN, Form.TEXT):
            text, begins = self._text(example, 0), True
        else:
            last = max(k for k, turn in enumerate(example.turns) if turn.role == "assistant")
            text, begins = self.renderer.prompt(example, example.turns[:last], training=False), None
        self._check_prompt(example, text)
        found = self._written(example, text, begins=begins)
        return Sequenced(found.text, found.tokens.ids, [False] * len(found.tokens.ids), is_whole=found.is_whole)

    def _encode(self, example: Example) -> Sequenced:
        form = example.form
        if self.written_by is not None:
            return self._suffixed(example)
        if form is Form.TEXT:
            return self._all(self._written(example, self._ended(self._text(example, 0)), begins=True))
        if form is Form.PLAIN or (form is Form.QUESTION and self.renderer is None):
            return self._completion(example, *self._plain(example), begins=True)
        if self.renderer is None:
            raise DataError(
                f"{example.source}: the record holds {form.value}, but the model has no chat template; set "
                "model.chat_template (a file, llava-v1, or a name that TRL knows, such as qwen3), or give prompt and "
                "completion as text"
            )
        if form is Form.COMPLETION:
            before = self.renderer.prompt(example, example.turns[: example.prompt_turns], training=False)
            return self._completion(example, before, self.renderer.whole(example).text)
        if example.loss_on is LossOn.EVERYTHING:
            return self._all(self._written(example, self.renderer.whole(example).text))
        rendered = self.renderer.answered(example)
        chosen = self._chosen(example, rendered.answers)
        if chosen:
            self._check_before(example, rendered.text[: chosen[0][0]])
        found = self._written(example, rendered.text, chosen)
        supervised, goes_on = found.tokens.within(found.spans), any(end > found.read for _, end in found.spans)
        return Sequenced(found.text, found.tokens.ids, supervised, is_whole=found.is_whole, goes_on=goes_on)

    def _chosen(self, example: Example, answers: Sequence[Span]) -> Sequence[Span]:
        """The spans of the answers that are supervised."""
        turns = [turn for turn in example.turns if turn.role == "assistant"]
        if example.loss_on is LossOn.ANSWERS and all(turn.supervised for turn in turns):
            return answers
        if len(answers) != len(turns):
            raise DataError(
                f"{example.source}: the chat template ({self.template.source}) marks {len(answers)} answers in "
                f"{len(turns)} assistant turns, so they cannot be matched; supervise all turns "
                "(loss_on: answers, no weight: 0), or give another model.chat_template"
            )
        wanted = [turn.supervised for turn in turns]
        if example.loss_on is LossOn.LAST_ANSWER:
            wanted[:-1] = [False] * (len(wanted) - 1)
        return [span for span, is_wanted in zip(answers, wanted, strict=True) if is_wanted]

    def _completion(self, example: Example, prompt: str, whole: str, begins: bool | None = None) -> Sequenced:
        """The tokens of a prompt and its completion, supervised from where they differ from the prompt's own."""
        if example.loss_on is not LossOn.EVERYTHING and whole.startswith(prompt):
            self._check_before(example, prompt)
        found = self._written(example, whole, begins=begins)
        if example.loss_on is LossOn.EVERYTHING:
            return self._all(found)
        alone = self._written(example, prompt, begins=begins).tokens.ids
        shared = common_prefix_length(alone, found.tokens.ids)
        supervised = [k >= shared for k in range(len(found.tokens.ids))]
        return Sequenced(found.text, found.tokens.ids, supervised, is_whole=found.is_whole, goes_on=not found.is_whole)

    def _check_before(self, example: Example, text: str) -> None:
        """Raise a DataError where what precedes the answer is much longer than what is kept."""
        if self._is_beyond(text):
            raise DataError(
                f"{example.source}: max_length {self.max_length} cuts off the whole answer of example {example.id!r}, "
                f"which has more than {self.max_length} tokens before it; raise max_length or drop the record."
            )

    def _check_prompt(self, example: Example, text: str) -> None:
        if self._is_beyond(text):
            raise DataError(
                f"{example.source}: the prompt of example {example.id!r} alone has more tokens than max_length "
                f"{self.max_length}; raise max_length or drop the record."
            )

    def _is_beyond(self, text: str) -> bool:
        """Whether the beginning of a long text alone has more tokens than are kept, so that no more need be read."""
        if self.max_length is None:
            return False
        return beginning(self.tokenizer, text, self.max_length)[1] < len(text)

    def _suffixed(self, example: Example, answered: bool = True) -> Sequenced:
        """A prompt and its answer as PaliGemma's processor writes them: the pictures, BOS, the prompt, a newline."""
        if example.form not in (Form.QUESTION, Form.PLAIN) or len(example.turns) != 2:
            raise DataError(
                f"{example.source}: the record holds {example.form.value}, but {self.written_by} takes one prompt and "
                "its answer; give prompt and response"
            )
        if not example.images:
            raise DataError(f"{example.source}: the record has no image, but {self.written_by} needs one")
        if example.loss_on is LossOn.EVERYTHING:
            raise DataError(
                f"{example.source}: loss_on is everything, but {self.written_by} supervises only the answer, because "
                f"every token of a prompt sees all of it; set loss_on: answers"
            )
        prompt, answer = (self._text(example, number) for number in range(2))
        if MARKERS[0] in prompt + answer:
            raise DataError(
                f"{example.source}: the record contains a special token of the model, which {self.written_by} cannot "
                "read as text; remove it"
            )
        (self._check_before if answered else self._check_prompt)(example, prompt)
        at = prompt.rfind(str(self.image_token)) + len(str(self.image_token))
        written = f"{prompt[:at]}{self.tokenizer.bos_token}{prompt[at:]}\n"
        before = tokenize(self.tokenizer, self.expand(example, written, ())[0]).ids
        after = tokenize(self.tokenizer, self._ended(answer)).ids if answered else []
        supervised = [False] * len(before) + [True] * len(after)
        return Sequenced(prompt, before + after, supervised, answer if answered else None)

    def _plain(self, example: Example) -> tuple[str, str]:
        if len(example.turns) != 2:
            raise DataError(
                f"{example.source}: the record has {len(example.turns)} turns, but without a chat template only a "
                "prompt and its answer can be written; name model.chat_template"
            )
        prompt = self._text(example, 0)
        return prompt, prompt + self._ended(self._text(example, 1))

    def _all(self, found: "_Written") -> Sequenced:
        ids, is_whole = found.tokens.ids, found.is_whole
        return Sequenced(found.text, ids, [True] * len(ids), is_whole=is_whole, goes_on=not is_whole)

    def _text(self, example: Example, number: int) -> str:
        """The text of a turn as it stands, a placeholder where each picture is.

        Special tokens in a text, or in a prompt and its completion, are the tokens, as their trainer reads them: such
        records are often conversations that were rendered before. The placeholder of a picture is text in any form.
        """
        as_text = self._of_pictures if example.form in (Form.PLAIN, Form.TEXT) else self.special
        turn = example.turns[number]
        pieces, at = [], 0
        for place in (*turn.places, len(turn.text)):
            pieces.append(str(mark_control_tokens(self._cut(turn.text[at:place]), as_text)))
            at = place
        return str(self.image_token).join(pieces) if len(pieces) > 1 else pieces[0]

    def _cut(self, text: str) -> str:
        """A text without the eos token that it may end with: it is written again, as a token."""
        return text.removesuffix(self.tokenizer.eos_token or "\0")

    def _ended(self, text: str) -> str:
        if not self.tokenizer.eos_token:
            raise ConfigError("the tokenizer has no eos_token, so a model cannot learn to stop; set one")
        return text + str(self.tokenizer.eos_token)

    def _written(
        self, example: Example, text: str, spans: Sequence[Span] = (), begins: bool | None = None
    ) -> "_Written":
        """A text in tokens, its pictures' placeholders expanded.

        Args:
            example: whose text it is.
            text: as it is rendered.
            spans: of characters in it.
            begins: whether the tokenizer adds its own special tokens; None for whether the template wants them. TRL
                leaves them out for models with pictures.
        """
        begins = self.template.is_llava_v1 if begins is None else begins and not self._sees
        if begins and self._sees:
            text = self._bos + text
            spans = [(start + len(self._bos), end + len(self._bos)) for start, end in spans]
        whole, moved = self.expand(example, text, spans)
        tokens, read = beginning(self.tokenizer, whole, self.bound, special=begins and not self._sees)
        return _Written(text, tokens, moved, read, read == len(whole))

    def _own_beginning(self) -> str:
        """What the tokenizer itself puts before a text: its BOS, or nothing."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        before: list[int] = next((full[:at] for at in range(len(full)) if full[at : at + len(plain)] == plain), [])
        return "".join(self.tokenizer.convert_ids_to_tokens(before))


@dataclass(frozen=True)
class _Written:
    """A text in tokens: as it was before pictures' placeholders were expanded, and where spans are after it.

    Attributes:
        text: the whole of it.
        tokens: of its beginning.
        spans: of characters.
        read: how many characters have tokens.
        is_whole: whether all have.
    """

    text: str
    tokens: Tokens
    spans: list[Span]
    read: int
    is_whole: bool
