"""Examples to tensors: tokens, which of them are supervised, and batches.

Not here: how a conversation is written as a prompt (`templates`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.labels import IGNORED
from mixlora.data.examples import Example
from mixlora.data.images import image_size, open_image
from mixlora.data.templates import PromptTemplate, Span


@dataclass(frozen=True)
class Encoded:
    """One example as tokens; its picture becomes tensors only in a batch.

    Attributes:
        input_ids: the tokens, with one image placeholder for each of the model's image features.
        labels: the token itself where it is supervised, else -100; as long as `input_ids`.
        example: the example that was encoded.
        truncated: how many supervised tokens `max_length` cut off.
    """

    input_ids: list[int]
    labels: list[int]
    example: Example
    truncated: int = 0

    @property
    def id(self) -> str:
        """The example's id."""
        return self.example.id

    @property
    def source(self) -> str:
        """The place of the example's record."""
        return self.example.source

    @property
    def image(self) -> Path | Image.Image | None:
        """The example's picture, or the path of it."""
        return self.example.image

    @property
    def has_image(self) -> bool:
        """Whether the example has a picture; unless `mixed`, a batch has only such examples or none."""
        return self.example.image is not None

    @property
    def supervised(self) -> int:
        """The number of supervised tokens."""
        return sum(label != IGNORED for label in self.labels)


class Collator:
    """Examples to the batches of one model, as `Trainer`'s `data_collator` or step by step.

    The tokens of every assistant turn's text are supervised, and so is the token that ends the turn. A turn starts
    where the generation prompt ends: a token that holds both the space before an answer and its first letters is
    supervised. A BOS token is written once, where transformers' own `apply_chat_template` would write it.

    Args:
        processor: the tokenizer of a language model, or the processor (a ProcessorMixin) of a LLaVA-type one.
        max_length: the tokens kept of an example, counted from its start; None keeps all.
        chat_template: a Jinja template in place of the processor's; LLaVA v1's is the fallback if neither exists.

    Raises:
        ConfigError: the tokenizer has no offsets, or the template renders no conversation.
    """

    def __init__(self, processor: Any, max_length: int | None = None, chat_template: str | None = None):
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length is {max_length}; give a number of tokens above 0, or None to keep all.")
        self.processor = processor
        self.max_length = max_length
        is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
        self.tokenizer = processor if is_tokenizer else processor.tokenizer
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} cannot tell which characters a token stands for; "
                "load a tokenizer that has a tokenizer.json (use_fast=True)."
            )
        self._image_token: str | None = None if is_tokenizer else getattr(processor, "image_token", None)
        if self._image_token and len(self.tokenizer.encode(self._image_token, add_special_tokens=False)) != 1:
            raise ConfigError(
                f"The tokenizer splits the processor's image token {self._image_token!r}; "
                "add it to the tokenizer as a special token."
            )
        template = chat_template or getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        if isinstance(template, dict):
            if "default" not in template:
                raise ConfigError(f"The processor has the chat templates {', '.join(template)}; pass one of them.")
            template = template["default"]
        self.template = PromptTemplate(self.tokenizer, template, self._image_token)
        self._prefix_ids = self._find_prefix_ids() if self.template.is_fallback or not is_tokenizer else []
        self._expansions: dict[tuple[int, int], str] = {}

    def __call__(self, examples: Iterable[Example]) -> dict[str, Tensor]:
        """The batch of `examples`: encoded, then collated."""
        return self.collate([self.encode(example) for example in examples])

    def encode(self, example: Example) -> Encoded:
        """The example's tokens and labels.

        Raises:
            DataError: it cannot be rendered, its answer has no token, or `max_length` leaves nothing supervised.
        """
        text, spans = self._rendered(example)
        input_ids, offsets = self._tokenize(text)
        for span in spans:
            if not any(begin < span.answer_end and end > span.answer_start for begin, end in offsets):
                raise DataError(
                    f"{example.source}: the answer has no token in this model's vocabulary; drop the record."
                )
        marks = supervised_tokens(offsets, spans)
        labels = [token if mark else IGNORED for token, mark in zip(input_ids, marks, strict=True)]
        prefix = self._prefix(text)
        input_ids, labels = prefix + input_ids, [IGNORED] * len(prefix) + labels
        whole = Encoded(input_ids, labels, example)
        return whole if self.max_length is None else self._truncate(whole, self.max_length)

    def encode_prompt(self, example: Example) -> Encoded:
        """The tokens before the last answer, as a model sees them that generates it; nothing is supervised."""
        text, spans = self._rendered(example)
        text = text[: spans[-1].start]
        input_ids = self._prefix(text) + self._tokenize(text)[0]
        if self.max_length is not None and len(input_ids) > self.max_length:
            raise DataError(
                f"{example.source}: the prompt of example {example.id!r} alone has {len(input_ids)} tokens, more than "
                f"max_length {self.max_length}; raise max_length or drop the record."
            )
        return Encoded(input_ids, [IGNORED] * len(input_ids), example)

    def collate(
        self, encoded: Sequence[Encoded], padding: Literal["right", "left"] = "right", *, mixed: bool = False
    ) -> dict[str, Tensor]:
        """The batch of `encoded`: input_ids, attention_mask and labels [batch, seq], and the image processor's tensors.

        Args:
            encoded: the rows.
            padding: the side on which short rows are padded.
            mixed: allow rows without an image among rows with one; there are then fewer pictures than rows, in the
                rows' order, which transformers' LLaVA models accept.

        Raises:
            DataError: the batch is empty, mixes examples with and without image though not `mixed`, or an image
                cannot be decoded.
        """
        if not encoded:
            raise DataError("A batch of no examples was asked for; give at least one.")
        with_image = [item for item in encoded if item.has_image]
        if not mixed and 0 < len(with_image) < len(encoded):
            without = next(item for item in encoded if not item.has_image)
            raise DataError(
                f"A batch mixes examples with an image ({with_image[0].source}) and without one ({without.source}); "
                "batch them apart (Encoded.has_image)."
            )
        length = max(len(item.input_ids) for item in encoded)
        pad = self.pad_id

        def padded(rows: Iterable[list[int]], value: int) -> Tensor:
            fills = ((row, [value] * (length - len(row))) for row in rows)
            return torch.tensor([row + fill if padding == "right" else fill + row for row, fill in fills])

        batch = {
            "input_ids": padded((item.input_ids for item in encoded), pad),
            "attention_mask": padded(([1] * len(item.input_ids) for item in encoded), 0),
            "labels": padded((item.labels for item in encoded), IGNORED),
        }
        if with_image:
            images = [open_image(item.example) for item in with_image]
            batch |= dict(self.processor.image_processor(images=images, return_tensors="pt"))
        return batch

    def _rendered(self, example: Example) -> tuple[str, list[Span]]:
        """The example's text, with one placeholder for each image feature, and the spans of its answers."""
        if example.image is not None and self._image_token is None:
            raise DataError(
                f"{example.source}: the record has an image, but {type(self.processor).__name__} has no image token; "
                "use a vision-language model or records without images."
            )
        text, spans = self.template.conversation(example)
        if example.image is None or self._image_token is None:
            return text, spans
        if text.count(self._image_token) != 1:
            raise DataError(
                f"{example.source}: the chat template wrote {text.count(self._image_token)} placeholders "
                f"{self._image_token} for one image; give the conversation a user turn, or another chat_template."
            )
        at, expansion = text.index(self._image_token), self._expansion(image_size(example))
        by = len(expansion) - len(self._image_token)
        text = text.replace(self._image_token, expansion)
        return text, [span.shifted(by if span.start > at else 0) for span in spans]

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of `text` and the characters each stands for."""
        tokens = self.tokenizer(
            text,
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(tokens["input_ids"]), list(tokens["offset_mapping"])

    def _expansion(self, size: tuple[int, int]) -> str:
        """What the processor writes for the placeholder of an image of `size`; cached."""
        if size not in self._expansions:
            found = self.processor(
                text=[self._image_token], images=[Image.new("RGB", size)], return_text_replacement_offsets=True
            ).get("text_replacement_offsets")
            if not found or len(found[0]) != 1:
                raise ConfigError(
                    f"{type(self.processor).__name__} does not say how it expands {self._image_token}; "
                    "use a processor of transformers' LLaVA kind."
                )
            self._expansions[size] = found[0][0]["replacement"]
        return self._expansions[size]

    def _find_prefix_ids(self) -> list[int]:
        """The tokens that the tokenizer itself puts before a text: its BOS, or none."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        for at in range(len(full) - len(plain) + 1):
            if full[at : at + len(plain)] == plain:
                return list(full[:at])
        return []

    def _prefix(self, text: str) -> list[int]:
        bos = self.tokenizer.bos_token
        return [] if bos and text.startswith(bos) else self._prefix_ids

    @property
    def pad_id(self) -> int:
        """The padding token, or the eos: the attention mask marks padding, whatever the token."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        return 0

    def _truncate(self, whole: Encoded, max_length: int) -> Encoded:
        if len(whole.input_ids) <= max_length:
            return whole
        labels = whole.labels[:max_length]
        kept = Encoded(whole.input_ids[:max_length], labels, whole.example)
        if not kept.supervised:
            first = next(at for at, label in enumerate(whole.labels) if label != IGNORED)
            raise DataError(
                f"{whole.source}: max_length {max_length} cuts off the whole answer of example {whole.id!r}, which has "
                f"{len(whole.input_ids)} tokens, {first} of them before it; raise max_length or drop the record."
            )
        return Encoded(kept.input_ids, labels, whole.example, truncated=whole.supervised - kept.supervised)


def supervised_tokens(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """Whether each token stands for characters of a span.

    Some tokenizers omit the space before a word from the offsets of its token, or give a separate space no offsets: a
    token therefore begins where the one before it ended. A token without characters (a prepended space) belongs to what
    follows it.
    """
    marks, before, at = [], 0, 0
    for own_begin, end in offsets:
        begin, before = min(own_begin, before), max(before, end)
        while at < len(spans) and begin >= spans[at].end:
            at += 1
        if at == len(spans):
            marks.append(False)
            continue
        start = spans[at].start
        marks.append(end > start or begin == end == start)
    return marks
