"""Examples as their processor or tokenizer gives them, one at a time: what a run's batches are checked against.

Nothing here uses the rendering, encoding or collation of `mixlora.data`, whose mistakes it is to find. It makes the
calls that trainers make: `apply_chat_template` with TRL's training template and its mask of assistants' tokens, or the
tokenizer on prompt, completion and eos.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interference.errors import MeasurementError
from mixlora.common.labels import IGNORED
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example, Form, LossOn, Turn, with_values
from mixlora.data.images import open_image, squared
from mixlora.data.processing import takes_suffix
from mixlora.data.templates import REFUSALS
from mixlora.data.tokens import common_prefix_length


def example_batch(collator: Collator, encoded: Encoded) -> dict[str, Tensor]:
    """An example alone, in a batch that its processor or tokenizer makes.

    Args:
        collator: names the processor, the template and the length that examples are cut to; it encodes nothing here.
        encoded: the example as it was measured. Its labels are taken over where the processor cannot tell them: of a
            template without generation markers, and where only some of the answers are supervised. Of a record that
            writes special tokens as text, which trainers' calls would read as special, all is taken over.

    Raises:
        MeasurementError: it was measured as other tokens, or with other tokens supervised.
    """
    as_tokens = encoded.example.form in (Form.PLAIN, Form.TEXT)
    if not as_tokens and any(collator.encoder.special.search(turn.text) for turn in encoded.example.turns):
        return collator.collate([encoded])
    single = _Single(collator, encoded.example)
    found = single.batch()
    labels = found.pop("labels", None)
    rows = len(found["input_ids"][0])
    if collator.max_length is not None:
        found = {
            key: value[:, : collator.max_length] if value.shape[:2] == (1, rows) else value
            for key, value in found.items()
        }
    _check(encoded, "tokens", found["input_ids"][0].tolist(), encoded.input_ids, single)
    if labels is not None:
        known = labels[0].tolist()[: len(encoded.labels)]
        _check(encoded, "supervised tokens", known, encoded.labels, single)
    return {**found, "labels": torch.tensor([encoded.labels])}


def _check(encoded: Encoded, what: str, expected: Sequence[int], measured: Sequence[int], single: "_Single") -> None:
    if list(expected) == list(measured):
        return
    place = common_prefix_length(expected, measured)
    raise MeasurementError(
        f"{encoded.source}: example {encoded.id!r} was measured with other {what} than {single.name} gives, from token "
        f"{place} on; the run is not of the gradients of its trainer, do not use it"
    )


class _Single:
    """One example, and the calls that make its batch."""

    def __init__(self, collator: Collator, example: Example) -> None:
        self.collator = collator
        self.example = example
        self.template = collator.template
        self.tokenizer = collator.tokenizer
        self.processor = None if collator.is_tokenizer else collator.processor
        self.name = f"its {'tokenizer' if collator.is_tokenizer else 'processor'}"
        pictures = [open_image(example, number) for number in range(len(example.images))]
        square = collator.square
        self.pictures = pictures if square is None else [squared(picture, square) for picture in pictures]

    def batch(self) -> dict[str, Tensor]:
        """The tensors, with `labels` where they can be told; arguments of tool calls are values where they have to."""
        turns = tuple(map(with_values, self.example.turns))
        try:
            return self._batch()
        except REFUSALS:
            if turns == self.example.turns:
                raise
            self.example = replace(self.example, turns=turns)
            return self._batch()

    def _batch(self) -> dict[str, Tensor]:
        example = self.example
        if self.processor is not None and takes_suffix(self.processor):
            prompt, answer = (self._flat(turn) for turn in example.turns)
            found = self.processor(text=[prompt], images=[self.pictures], suffix=[answer], return_tensors="pt")
            return _tensors(found)
        if self.template.is_raw or example.form in (Form.PLAIN, Form.TEXT):
            return self._as_text()
        if self.processor is None or not self.collator.lists_content:
            return self._by_template_of_strings()
        return self._by_template_of_parts()

    def _by_template_of_parts(self) -> dict[str, Tensor]:
        """By a template whose messages are lists of parts, pictures among them."""
        assert self.processor is not None
        example, kept = self.example, {"add_special_tokens": False}
        messages = [self._parts(turn) for turn in example.turns]
        options = {**self._options(self._marks), "processor_kwargs": kept, "return_tensors": "pt"}
        batch = _tensors(self._applied(self.processor, messages, **options))
        masks = batch.pop("assistant_masks", None)
        prompt = None
        if example.form is Form.COMPLETION:
            before = messages[: example.prompt_turns]
            asked = self._applied(self.processor, before, add_generation_prompt=True, **options)
            prompt = torch.as_tensor(asked["input_ids"])[0].tolist()
        return self._labelled(batch, masks, prompt)

    @property
    def _marks(self) -> bool:
        """Whether the template's generation markers say what is supervised."""
        example = self.example
        plain = example.loss_on is LossOn.ANSWERS and example.form is not Form.COMPLETION
        return plain and self.template.training is not None and all(turn.supervised for turn in example.turns)

    def _applied(self, to: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
        """What a tokenizer or processor makes of messages, by the template that a trainer would give it."""
        training = self.template.training is not None and self.example.form is not Form.COMPLETION
        training = training and self.example.loss_on is not LossOn.EVERYTHING
        with self.template.on_its_day(training) as jinja:
            return to.apply_chat_template(messages, chat_template=jinja, **options)

    def _options(self, marked: bool) -> dict[str, Any]:
        return {
            "tools": [dict(tool) for tool in self.example.tools] or None,
            "tokenize": True,
            "return_dict": True,
            "return_assistant_tokens_mask": marked,
        }

    def _labelled(self, batch: dict[str, Tensor], masks: Tensor | None, prompt: list[int] | None) -> dict[str, Tensor]:
        """The batch with its labels, where they can be told."""
        ids = batch["input_ids"]
        if self.example.loss_on is LossOn.EVERYTHING:
            return {**batch, "labels": ids}
        if masks is not None:
            return {**batch, "labels": ids.masked_fill(~masks.bool(), IGNORED)}
        if prompt is None:
            return batch
        whole = ids[0].tolist()
        shared = common_prefix_length(prompt, whole)
        return {**batch, "labels": torch.tensor([[IGNORED] * shared + whole[shared:]])}

    def _by_template_of_strings(self) -> dict[str, Tensor]:
        """By a template whose messages are strings; pictures' placeholders are written out by the processor."""
        messages = [{"role": turn.role, "content": self._flat(turn), **turn.more} for turn in self.example.turns]
        if self.pictures:
            return self._pictured(messages)
        found = self._tokens_of(messages, self._marks)
        masks = found.pop("assistant_masks", None)
        prompt = None
        if self.example.form is Form.COMPLETION:
            before = messages[: self.example.prompt_turns]
            prompt = self._tokens_of(before, False, add_generation_prompt=True)["input_ids"][0].tolist()
        return self._labelled(found, masks, prompt)

    def _tokens_of(self, messages: list[dict[str, Any]], marked: bool, **more: Any) -> dict[str, Tensor]:
        options = {**self._options(marked), "return_tensors": "pt", **more}
        found = _tensors(self._applied(self.tokenizer, messages, **options))
        bos = self.tokenizer.bos_token_id
        if not self.template.is_llava_v1 or bos is None or self.tokenizer("")["input_ids"][:1] != [bos]:
            return found
        first = {"input_ids": bos, "attention_mask": 1}
        return {key: torch.cat([torch.tensor([[first.get(key, 0)]]), row], dim=1) for key, row in found.items()}

    def _pictured(self, messages: list[dict[str, Any]]) -> dict[str, Tensor]:
        """With pictures, labels are those of the text around the placeholders."""
        assert self.processor is not None
        options = self._options(self._marks)
        written = {**options, "tokenize": False, "return_dict": False, "return_assistant_tokens_mask": False}
        text = self._applied(self.tokenizer, messages, **written)
        begins = {"add_special_tokens": self.template.is_llava_v1}
        found = _tensors(self.processor(text=[text], images=[self.pictures], text_kwargs=begins, return_tensors="pt"))
        if not self._marks:
            return self._labelled(found, None, None)
        row = _tensors(self._applied(self.tokenizer, messages, **options, return_tensors="pt"))
        image = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        plain, around = found["input_ids"][0] != image, row["input_ids"][0] != image
        kept = row["input_ids"].masked_fill(~row["assistant_masks"].bool(), IGNORED)[0, around]
        labels = torch.full_like(found["input_ids"], IGNORED)
        labels[0, plain] = F.pad(kept, (int(plain.sum()) - len(kept), 0), value=IGNORED)  # BOS is not the template's
        return {**found, "labels": labels}

    def _as_text(self) -> dict[str, Tensor]:
        """A text, or a prompt with its completion, and the eos token: what TRL's SFTTrainer gives its tokenizer."""
        texts = [self._flat(turn).removesuffix(self.tokenizer.eos_token) for turn in self.example.turns]
        whole = "".join(texts) + self.tokenizer.eos_token
        batch, before = self._tokenized(whole), self._tokenized(texts[0])["input_ids"][0].tolist()
        if self.example.form is Form.TEXT:
            return {**batch, "labels": batch["input_ids"]}
        return self._labelled(batch, None, before)

    def _tokenized(self, text: str) -> dict[str, Tensor]:
        if self.processor is None:
            return _tensors(self.tokenizer(text, return_tensors="pt"))
        images = [self.pictures] if self.pictures and str(self.processor.image_token) in text else None
        options = {"text_kwargs": {"add_special_tokens": False}, "return_tensors": "pt"}
        return _tensors(self.processor(text=[text], images=images, **options))

    def _parts(self, turn: Turn) -> dict[str, Any]:
        """A turn as a processor's template reads it, with its pictures."""
        first = sum(len(other.places) for other in self.example.turns[: self.example.turns.index(turn)])
        parts: list[dict[str, Any]] = []
        at = 0
        for number, place in enumerate(turn.places):
            parts += _words(turn.text[at:place])
            parts.append({"type": "image", "image": self.pictures[first + number]})
            at = place
        parts += _words(turn.text[at:])
        return {"role": turn.role, "content": parts or [{"type": "text", "text": ""}], **turn.more}

    def _flat(self, turn: Turn) -> str:
        """A turn as a string, placeholders where pictures stand: first, where the trainer is LLaVA's."""
        if not turn.places:
            return turn.text
        assert self.processor is not None
        token = str(self.processor.image_token)
        if self.template.is_llava_v1 and self._conversing:
            return f"{token}\n" * len(turn.places) + turn.text.strip()
        written, at = "", 0
        for place in turn.places:
            written += turn.text[at:place] + token + ("\n" if place == 0 and self._conversing else "")
            at = place
        return written + turn.text[at:]

    @property
    def _conversing(self) -> bool:
        """Whether a chat template writes the example."""
        return not self.template.is_raw and self.example.form not in (Form.PLAIN, Form.TEXT)


def _words(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value if isinstance(value, Tensor) else torch.as_tensor(value) for key, value in found.items()}
