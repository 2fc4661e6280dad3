"""Examples to batches: tokens, labels and pictures, as the model's own processor gives them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.labels import IGNORED
from mixlora.data.encoding import Encoder, Sequenced
from mixlora.data.examples import Example
from mixlora.data.images import Square, image_size, open_image, squared
from mixlora.data.processing import Seen, as_tensor, is_of_rows, processed, takes_suffix
from mixlora.data.rendering import Span
from mixlora.data.templates import ChatTemplate, own_template, template_of
from mixlora.data.tokens import MARKERS, unmarked_pieces


@dataclass(frozen=True)
class Encoded:
    """One example as tokens; its pictures become tensors only in a batch.

    Attributes:
        input_ids: the tokens, pictures' placeholders expanded to as many as the model has features of them.
        labels: the token itself where it is supervised, else -100; as long as `input_ids`.
        example: what it was made of.
        truncated: whether `max_length` cut off supervised tokens.
        text: what the tokens stand for, one placeholder a picture, nothing cut off.
        suffix: the answer, of a processor that is given it apart from the text.
    """

    input_ids: list[int]
    labels: list[int]
    example: Example
    truncated: bool = False
    text: str = field(default="", repr=False)
    suffix: str | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """The example's id."""
        return self.example.id

    @property
    def source(self) -> str:
        """Where the example's record stands."""
        return self.example.source

    @property
    def has_image(self) -> bool:
        """Whether it has a picture: a batch that is not `mixed` holds either only such examples or none."""
        return bool(self.example.images)

    @property
    def marked(self) -> bool:
        """Whether its record holds special tokens of the model, which are read as text."""
        return MARKERS[0] in self.text

    @property
    def supervised(self) -> int:
        """The number of supervised tokens."""
        return sum(label != IGNORED for label in self.labels)


class Collator:
    """Examples to the batches of one model, as `Trainer`'s `data_collator` or step by step.

    Args:
        processor: the tokenizer of a language model, or the processor (a ProcessorMixin) of one that sees.
        max_length: the tokens kept of an example, counted from its start; None keeps all, and refuses more than
            `longest`.
        template: the model's chat template; None for the processor's own, or none.
        square: pad pictures to a square of this colour first; None leaves them as they are.
        positions: tokens that the model has positions for; None for any number.
        longest: tokens that the model was made for; None for any number.

    Raises:
        ConfigError: the tokenizer has no offsets, or the template renders no conversation.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        template: ChatTemplate | None = None,
        square: Square | None = None,
        positions: int | None = None,
        longest: int | None = None,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length is {max_length}; give a number of tokens above 0, or None to keep all.")
        self.processor = processor
        self.max_length = max_length
        self.square = square
        self.positions = positions
        self.longest = positions or longest
        self.is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
        self.tokenizer = processor if self.is_tokenizer else processor.tokenizer
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} cannot tell which characters a token stands for; "
                "load a tokenizer that has a tokenizer.json (use_fast=True)."
            )
        self._image_token = None if self.is_tokenizer else self._placeholder()
        self.template = template or template_of(processor, own_template(processor), "the processor's own")
        written_by = type(processor).__name__ if takes_suffix(processor) else None
        self.encoder = Encoder(
            self.tokenizer, self.template, self._image_token, self._expanded, written_by, max_length, self.longest
        )
        self._expansions: dict[tuple[int, int], str] = {}

    @property
    def lists_content(self) -> bool:
        """Whether the chat template reads a message as a list of parts, not as a string."""
        return self.encoder.renderer is not None and self.encoder.renderer.listed

    def __call__(self, examples: Iterable[Example]) -> dict[str, Tensor]:
        """The batch of `examples`: encoded, then collated."""
        return self.collate([self.encode(example) for example in examples])

    def encode(self, example: Example) -> Encoded:
        """The example's tokens and labels.

        Raises:
            DataError: it cannot be rendered, nothing of it is supervised, or it is longer than the model's positions.
        """
        self._check_pictures(example)
        found = self.encoder.encode(example)
        labels = [token if mark else IGNORED for token, mark in zip(found.ids, found.supervised, strict=True)]
        whole = Encoded(found.ids, labels, example, text=found.text, suffix=found.suffix)
        self._check_marked(whole)
        kept = whole if self.max_length is None else self._truncate(whole, self.max_length, found)
        self._check_length(kept)
        return kept

    def cut(self, encoded: Encoded) -> int:
        """How many supervised tokens of an example `max_length` cut off."""
        if not encoded.truncated:
            return 0
        self.encoder.bound = None
        try:
            return sum(self.encoder.encode(encoded.example).supervised[len(encoded.input_ids) :])
        finally:
            self.encoder.bound = self.max_length

    def encode_prompt(self, example: Example, new_tokens: int = 0) -> Encoded:
        """The tokens before the last answer, as a model that is to generate it sees them; nothing is supervised.

        Args:
            example: the whole of it.
            new_tokens: the most tokens that the model is to generate.

        Raises:
            DataError: it cannot be rendered, is longer than `max_length`, or with the new tokens longer than the
                model's positions.
        """
        self._check_pictures(example)
        found: Sequenced = self.encoder.prompt(example)
        if self.max_length is not None and len(found.ids) > self.max_length:
            key = "generation.max_prompt_length" if new_tokens else "max_length"
            raise DataError(
                f"{example.source}: the prompt of example {example.id!r} alone has more tokens than {key} "
                f"{self.max_length}; raise {key} or drop the record."
            )
        prompt = Encoded(found.ids, [IGNORED] * len(found.ids), example, text=found.text)
        self._check_marked(prompt)
        self._check_length(prompt, new_tokens)
        return prompt

    def collate(
        self, encoded: Sequence[Encoded], padding: Literal["right", "left"] = "right", *, mixed: bool = False
    ) -> dict[str, Tensor]:
        """The batch of `encoded`: input_ids, attention_mask and labels [batch, seq], and all else the processor gives.

        Args:
            encoded: the rows.
            padding: the side that short rows are filled on.
            mixed: let some rows have pictures and others none; the pictures are then fewer than the rows, in their
                order, which models of transformers' LLaVA kind accept.

        Raises:
            DataError: the batch is empty, mixes examples with and without picture though not `mixed`, or a picture
                cannot be decoded.
        """
        if not encoded:
            raise DataError("The batch is empty; give at least one example.")
        with_image = [item for item in encoded if item.has_image]
        if not mixed and 0 < len(with_image) < len(encoded):
            without = next(item for item in encoded if not item.has_image)
            raise DataError(
                f"A batch mixes examples with an image ({with_image[0].source}) and without one ({without.source}); "
                "batch them separately (Encoded.has_image)."
            )
        length = max(len(item.input_ids) for item in encoded)

        def padded(rows: Iterable[Sequence[int]], value: int) -> Tensor:
            return torch.stack([_filled(torch.tensor(list(row)), length, value, padding) for row in rows])

        batch = {
            "input_ids": padded((item.input_ids for item in encoded), self.pad_id),
            "attention_mask": padded(([1] * len(item.input_ids) for item in encoded), 0),
            "labels": padded((item.labels for item in encoded), IGNORED),
        }
        return batch if self._image_token is None else batch | self._seen(encoded, length, padding)

    def _seen(self, encoded: Sequence[Encoded], length: int, padding: Literal["right", "left"]) -> dict[str, Tensor]:
        """What the processor gives beside tokens and mask: pictures, and rows of another kind beside the tokens'."""
        found = processed(
            self.processor, [Seen(item.text, item.suffix, self._pictures(item.example)) for item in encoded]
        )
        rows = found["input_ids"]
        for item, ids in zip(encoded, rows, strict=True):
            if list(ids)[: len(item.input_ids)] != item.input_ids:
                raise ConfigError(
                    f"{item.source}: {type(self.processor).__name__} splits this example into other tokens than its "
                    "tokenizer; this kind of processor cannot be used"
                )
        kept: dict[str, Tensor] = {}
        for key, values in found.items():
            if key in ("input_ids", "attention_mask", "labels"):
                continue
            if is_of_rows(values, rows):
                own = [torch.as_tensor(row)[: len(item.input_ids)] for row, item in zip(values, encoded, strict=True)]
                kept[key] = torch.stack([_filled(row, length, 0, padding) for row in own])
            else:
                kept[key] = as_tensor(values)
        return kept

    def _pictures(self, example: Example) -> list[Image.Image]:
        found = [open_image(example, number) for number in range(len(example.images))]
        return found if self.square is None else [squared(picture, self.square) for picture in found]

    def _expanded(self, example: Example, text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """The text, each placeholder as often as its picture has features, and the spans in it."""
        if not example.images:
            return text, list(spans)
        token = str(self._image_token)
        pieces = unmarked_pieces(text, token)
        if len(pieces) != len(example.images) + 1:
            raise DataError(
                f"{example.source}: the chat template wrote {len(pieces) - 1} placeholders {token} for "
                f"{len(example.images)} images; give the conversation a user turn, or another chat_template."
            )
        sizes = [self._size(example, k) for k in range(len(example.images))]
        found, moved, at = pieces[0], list(spans), len(pieces[0])
        for size, piece in zip(sizes, pieces[1:], strict=True):
            expansion = self._expansion(size)
            by, here = len(expansion) - len(token), len(found)
            moved = [(a + by * (a > here), b + by * (b > here)) for a, b in moved]
            found += expansion + piece
            at += len(token) + len(piece)
        return found, moved

    def _size(self, example: Example, number: int) -> tuple[int, int]:
        width, height = image_size(example, number)
        return (width, height) if self.square is None else (max(width, height),) * 2

    def _expansion(self, size: tuple[int, int]) -> str:
        """What the processor writes in place of the placeholder of an image of `size`, asked once a size."""
        if size not in self._expansions:
            found = self.processor(
                text=[self._image_token], images=[[Image.new("RGB", size)]], return_text_replacement_offsets=True
            ).get("text_replacement_offsets")
            if not found or len(found[0]) != 1:
                raise ConfigError(
                    f"{type(self.processor).__name__} does not say how it expands {self._image_token}; "
                    "use a processor of transformers' LLaVA kind."
                )
            self._expansions[size] = found[0][0]["replacement"]
        return self._expansions[size]

    def _placeholder(self) -> str | None:
        """The processor's placeholder of a picture, which is one token; None if it has none."""
        found: str | None = getattr(self.processor, "image_token", None)
        if found is not None and len(self.tokenizer(found, add_special_tokens=False)["input_ids"]) != 1:
            raise ConfigError(
                f"the tokenizer splits the processor's image token {found!r}; add it as a special token, or load the "
                "tokenizer that belongs to the processor"
            )
        return found

    def _check_pictures(self, example: Example) -> None:
        if example.images and self._image_token is None:
            raise DataError(
                f"{example.source}: the record has an image, but {type(self.processor).__name__} has no image token; "
                "use a vision-language model or records without images."
            )

    def _check_length(self, encoded: Encoded, new_tokens: int | None = None) -> None:
        """Raise a DataError where an example, or a prompt and the new tokens behind it, is longer than the model can.

        Where its positions are computed, it can be of any length, but was made for no more than `longest`. A user who
        sets max_length says how long examples are to be.
        """
        length, which = len(encoded.input_ids), f"{encoded.source}: example {encoded.id!r}"
        if self.positions is None:
            if self.longest is not None and self.max_length is None and length > self.longest:
                key = "generation.max_prompt_length" if new_tokens else "max_length (the tokens kept of an example)"
                raise DataError(
                    f"{which} has more tokens than the {self.longest} that the model was made for; set {key}, or drop "
                    "the record"
                )
            return
        if length + (new_tokens or 0) <= self.positions:
            return
        if new_tokens:
            raise DataError(
                f"{which} has a prompt of {length} tokens, but the model has positions for {self.positions}, including "
                f"up to {new_tokens} new ones; lower generation.max_new_tokens, or drop the record"
            )
        raise DataError(
            f"{which} has more tokens than the {self.positions} that the model has positions for; set max_length to "
            f"{self.positions} or less, or drop the record"
        )

    def _check_marked(self, encoded: Encoded) -> None:
        """Raise a DataError where a record has pictures and writes their placeholder, which some processors count."""
        if not encoded.example.images or f"{MARKERS[0]}{self._image_token}" not in encoded.text:
            return
        try:
            self.collate([encoded])
        except ValueError as error:
            raise DataError(
                f"{encoded.source}: the record's text contains {self._image_token}, which "
                f"{type(self.processor).__name__} "
                f"cannot read as text ({error}); remove it"
            ) from None

    @property
    def pad_id(self) -> int:
        """The padding token, or the eos: the attention mask, not the token, says what is padding."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        return 0

    def _truncate(self, whole: Encoded, max_length: int, found: Sequenced) -> Encoded:
        if len(whole.input_ids) <= max_length:
            return whole
        labels = whole.labels[:max_length]
        kept = replace(whole, input_ids=whole.input_ids[:max_length], labels=labels)
        if not kept.supervised:
            before = next((at for at, label in enumerate(whole.labels) if label != IGNORED), max_length)
            counts = f"{len(whole.input_ids)} tokens, {before}" if found.is_whole else f"at least {max_length}"
            raise DataError(
                f"{whole.source}: max_length {max_length} cuts off the whole answer of example {whole.id!r}, which has "
                f"{counts} {'of them ' if found.is_whole else 'tokens '}before it; raise max_length or drop the record."
            )
        return replace(kept, truncated=found.goes_on or whole.supervised > kept.supervised)


def _filled(row: Tensor, length: int, value: int, padding: Literal["right", "left"]) -> Tensor:
    fill = length - len(row)
    return F.pad(row, (0, fill) if padding == "right" else (fill, 0), value=value)
