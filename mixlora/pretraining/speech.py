"""Stage one of the base: its projector and language model learn to talk about what the finished vision tower sees.

The tower is frozen, so its features of each picture are computed once; a conversation has several exchanges about one
picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mixlora.common.labels import IGNORED
from mixlora.pretraining.architecture import SPECIAL
from mixlora.pretraining.diet import Exchange

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor


@dataclass(frozen=True)
class Line:
    """A conversation as tokens, and their labels (IGNORED where not supervised)."""

    tokens: list[int]
    labels: list[int]


class Scribe:
    """Tokenizes conversations as the processor's chat template renders them, but faster: it caches tokens of parts."""

    def __init__(self, processor: "LlavaProcessor", patches: int) -> None:
        self.tokenizer = processor.tokenizer
        self.opening = self.tokens(f"{SPECIAL['bos']}USER: {SPECIAL['image'] * patches}\n")
        self.parts: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def part(self, text: str) -> list[int]:
        """The same, cached."""
        if text not in self.parts:
            self.parts[text] = self.tokens(text)
        return self.parts[text]

    def line(self, exchanges: Sequence[Exchange]) -> Line:
        """The tokens of a conversation about one picture; answers and end tokens are supervised."""
        tokens = list(self.opening)
        labels = [IGNORED] * len(tokens)
        for turn, (question, answer) in enumerate(exchanges):
            asked = self.part(f"{'' if turn == 0 else 'USER: '}{question} ASSISTANT:")
            said = self.part(f" {answer}{SPECIAL['eos']}")
            tokens += asked + said
            labels += [IGNORED] * len(asked) + said
        return Line(tokens, labels)


def patches(model: "LlavaForConditionalGeneration", pixels: Tensor) -> Tensor:
    """The vision tower's features [batch, patches, width] of pixels [batch, 3, size, size]."""
    return model.model.vision_tower(pixels).last_hidden_state[:, 1:]


def answer_loss(model: "LlavaForConditionalGeneration", seen: Tensor, lines: Sequence[Line]) -> Tensor:
    """Mean cross-entropy of the supervised tokens (nats a token); logits are computed only for those.

    Args:
        model: its projector, language model and head are used.
        seen: features of the lines' pictures, [batch, patches, width].
        lines: one conversation for each picture.
    """
    length = max(len(line.tokens) for line in lines)
    tokens = torch.zeros(len(lines), length, dtype=torch.long)
    labels = torch.full((len(lines), length), IGNORED)
    for row, line in enumerate(lines):
        tokens[row, : len(line.tokens)] = torch.tensor(line.tokens)
        labels[row, : len(line.labels)] = torch.tensor(line.labels)
    embedded = model.get_input_embeddings()(tokens)
    start = lines[0].tokens.index(model.config.image_token_index)
    pictures = model.model.multi_modal_projector(seen)
    embedded = torch.cat([embedded[:, :start], pictures, embedded[:, start + pictures.shape[1] :]], dim=1)
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    supervised = labels[:, 1:] != IGNORED
    return F.cross_entropy(model.lm_head(hidden[:, :-1][supervised]), labels[:, 1:][supervised])
