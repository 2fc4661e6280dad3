"""Generation: a model's answers to examples, batch after batch, the same whether or not it was interrupted."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example
from mixlora.errors import TrainingError
from mixlora.evaluation.config import GenerationSection

Answered = tuple[Example, str]


@dataclass(frozen=True)
class Generator:
    """Generates answers.

    Attributes:
        model: a causal language model or LLaVA-type one, with or without an adapter, in evaluation mode.
        collator: of the model.
        how: what generate is told.
        named: whether generate is told the examples' tasks, which routers by task look at.
    """

    model: Any
    collator: Collator
    how: GenerationSection
    named: bool = False

    def batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The examples in batches of similar length that all have a picture or all have none.

        The longest come first, so that what does not fit into memory fails at once.
        """
        encoded = sorted(
            (self.collator.encode_prompt(example) for example in examples),
            key=lambda item: (item.has_image, -len(item.input_ids), item.id),
        )
        found: list[list[Encoded]] = []
        for item in encoded:
            if not found or len(found[-1]) == self.how.batch_size or found[-1][0].has_image != item.has_image:
                found.append([])
            found[-1].append(item)
        return [[item.example for item in batch] for batch in found]

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """The answer to each example of one batch, without special tokens and surrounding spaces.

        Raises:
            TrainingError: memory ran out.
        """
        prompts = [self.collator.encode_prompt(example) for example in examples]
        batch: dict[str, Any] = dict(self.collator.collate(prompts, padding="left"))
        del batch["labels"]
        width = batch["input_ids"].shape[1]
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        if self.named:
            inputs["tasks"] = [example.task for example in examples]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(_seed(self.how.seed, examples))
            try:
                out = self.model.generate(**inputs, **self._options())
            except torch.OutOfMemoryError:
                raise TrainingError(
                    f"memory ran out with {len(examples)} prompts of {width} tokens and {self.how.max_new_tokens} new "
                    "ones: lower generation.batch_size or generation.max_new_tokens; the same command then continues"
                ) from None
        return [text.strip() for text in self.collator.processor.batch_decode(out[:, width:], skip_special_tokens=True)]

    def _options(self) -> dict[str, Any]:
        how = self.how
        drawn = {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0} if how.do_sample else {}
        return {
            "max_new_tokens": how.max_new_tokens,
            "do_sample": how.do_sample,
            "num_beams": how.num_beams,
            "pad_token_id": self.collator.pad_id,
            **drawn,
        }


def generate(
    generator: Generator, examples: Sequence[Example], done: Callable[[Example], str | None]
) -> Iterator[list[Answered]]:
    """The answers to all examples, batch by batch; a batch whose answers are all known is not generated again.

    Args:
        generator: of the answers.
        examples: of one task.
        done: the known answer to an example, or None.
    """
    for batch in generator.batches(examples):
        known = [done(example) for example in batch]
        texts = [text for text in known if text is not None]
        yield list(zip(batch, texts if len(texts) == len(batch) else generator.answers(batch), strict=True))


def _seed(seed: int, examples: Sequence[Example]) -> int:
    """Of a batch: what is drawn in it does not depend on the batches before it."""
    named = repr((seed, [(example.task, example.id) for example in examples]))
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:7])
