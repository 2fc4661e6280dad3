"""Generation: a model's answers to examples. An answer depends neither on its batch nor on interruptions.

Where a MixLoRA's pooling is "all", padding would steer its routers: each example is routed as if it were alone.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper

from mixlora.common.errors import TrainingError
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example
from mixlora.evaluation.config import GenerationSection
from mixlora.tuner.model import routed

Answered = tuple[Example, str]


@dataclass(frozen=True)
class Generator:
    """Generates answers.

    Attributes:
        model: a causal language model or LLaVA-type one, with or without an adapter, in evaluation mode.
        collator: collator of the model.
        how: the settings of generation.
        named: whether to pass the examples' tasks to generate, for routers that look at tasks.
    """

    model: Any
    collator: Collator
    how: GenerationSection
    named: bool = False

    def batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The examples in batches of similar length; in a batch all have a picture or none has.

        The longest come first, so that a batch that does not fit into memory fails at once.
        """
        encoded = sorted(
            (self._encoded(example) for example in examples),
            key=lambda item: (item.has_image, -len(item.input_ids), item.id),
        )
        found: list[list[Encoded]] = []
        for item in encoded:
            if not found or len(found[-1]) == self.how.batch_size or found[-1][0].has_image != item.has_image:
                found.append([])
            found[-1].append(item)
        return [[item.example for item in batch] for batch in found]

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """The answer to each example of one batch, without special tokens or surrounding spaces.

        Raises:
            TrainingError: memory ran out.
        """
        batch = self.collator.collate([self._encoded(one) for one in examples], padding="left")
        width = batch["input_ids"].shape[1]
        given: dict[str, Any] = {"tasks": [example.task for example in examples]} if self.named else {}
        if self.how.do_sample:
            given["logits_processor"] = [Draw(self.how, examples)]
        try:
            inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items() if name != "labels"}
            with torch.no_grad(), routed(self.model, alone=True):
                out = self.model.generate(**inputs, **given, **self._options())
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"memory ran out with {len(examples)} prompts of {width} tokens and {self.how.max_new_tokens} new ones "
                f"at most: {self._remedy(len(examples))}"
            ) from None
        return [text.strip() for text in self.collator.processor.batch_decode(out[:, width:], skip_special_tokens=True)]

    def _encoded(self, example: Example) -> Encoded:
        return self.collator.encode_prompt(example, self.how.max_new_tokens)

    def _remedy(self, rows: int) -> str:
        if rows == 1:
            return "load the model smaller, with model.dtype or model.quantization, into another --out"
        return "lower generation.batch_size, and the same command continues"

    def _options(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.how.max_new_tokens,
            "do_sample": False,  # `Draw` does the drawing
            "num_beams": self.how.num_beams,
            "pad_token_id": self.collator.pad_id,
        }


class Draw(LogitsProcessor):
    """Adds Gumbel noise to scores, so that their maximum is a draw from softmax(scores / temperature) cut to `top_p`.

    Every example has its own random generator, so that its answer depends neither on its batch nor on torch's global
    generator, which is not used.
    """

    def __init__(self, how: GenerationSection, examples: Sequence[Example]) -> None:
        self._temperature = how.temperature
        self._cut = None if how.top_p is None else TopPLogitsWarper(how.top_p)
        self._random = [torch.Generator().manual_seed(_seed(how.seed, example)) for example in examples]

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        """The scores [batch, vocabulary] with noise."""
        scores = scores.float() / self._temperature
        if self._cut is not None:
            scores = self._cut(input_ids, scores)
        waits = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=own) for own in self._random])
        noisy: Tensor = scores - waits.clamp(min=torch.finfo(torch.float32).tiny).log().to(scores.device)
        return noisy


def generate(
    generator: Generator, examples: Sequence[Example], done: Callable[[Example], str | None]
) -> Iterator[list[Answered]]:
    """The answers to all examples, batch by batch; a batch whose answers are all known is skipped.

    Args:
        generator: generates the answers.
        examples: of one task.
        done: returns the known answer to an example, or None.
    """
    for batch in generator.batches(examples):
        known = [done(example) for example in batch]
        texts = [text for text in known if text is not None]
        yield list(zip(batch, texts if len(texts) == len(batch) else generator.answers(batch), strict=True))


def _seed(seed: int, example: Example) -> int:
    """The seed of an example's own generator."""
    named = repr((seed, example.task, example.id))
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:7])
