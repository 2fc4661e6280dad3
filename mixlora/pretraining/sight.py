"""Stage zero of the base: its vision tower learns to see, by predicting facts of pictures with temporary heads.

A tower trained this way needs a fraction of the pictures that it would need with a language model on top.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixlora.common.labels import IGNORED
from mixlora.data.mini.draw import FONTS, INKS, PLAIN_INKS, SHAPES
from mixlora.data.mini.pictures import DIGITS, EASY_VQA_COLOURS, LETTERS, SIGNS, WORDS

LONGEST_WORD = 6
FACTS: dict[str, tuple[str, ...]] = {
    "digit": DIGITS,
    "shape": SHAPES,
    "colour": tuple(EASY_VQA_COLOURS),
    "word": (*WORDS, *SIGNS, *INKS),
    "ink": (*INKS, *PLAIN_INKS),
    "board": tuple(INKS),
    "style": tuple(FONTS),
    "first": SHAPES,
    "second": SHAPES,
    "first_ink": ("red", "green", "blue", "yellow"),
    "second_ink": ("red", "green", "blue", "yellow"),
    "relation": ("left", "above"),
    **{f"letter_{place}": (*LETTERS, " ") for place in range(LONGEST_WORD)},
}
"""The facts that the tower predicts, and their possible values."""


def labels(facts: Sequence[Mapping[str, str]]) -> Tensor:
    """The facts of pictures as numbers [pictures, len(FACTS)], IGNORED where a picture does not have one."""
    return torch.tensor([[_label(name, values, known) for name, values in FACTS.items()] for known in facts])


def _label(name: str, values: tuple[str, ...], known: Mapping[str, str]) -> int:
    text = known.get("word", known.get("letter"))
    if name.startswith("letter_"):
        return IGNORED if text is None else values.index(text.ljust(LONGEST_WORD)[int(name[-1])])
    return values.index(known[name]) if name in known else IGNORED


class Heads(nn.Module):
    """One head for each fact: patches averaged with the head's own attention, then one linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(FACTS), width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.ModuleList(nn.Linear(width, len(values)) for values in FACTS.values())

    def forward(self, patches: Tensor) -> list[Tensor]:
        """Logits of every fact, each [batch, values], from patches [batch, patches, width]."""
        patches = self.norm(patches)
        attention = torch.softmax(patches @ self.queries.T, dim=1)  # [batch, patches, facts]
        pooled = attention.transpose(1, 2) @ patches  # [batch, facts, width]
        return [output(pooled[:, number]) for number, output in enumerate(self.outputs)]

    def loss(self, patches: Tensor, told: Tensor) -> Tensor:
        """Mean over the batch of the sum of the known facts' cross-entropies (nats a picture)."""
        logits = self(patches)
        losses = [
            F.cross_entropy(one, told[:, i], ignore_index=IGNORED, reduction="sum") for i, one in enumerate(logits)
        ]
        return torch.stack(losses).sum() / len(told)

    @torch.no_grad()
    def accuracies(self, patches: Tensor, told: Tensor) -> dict[str, float]:
        """{fact: share of right predictions}, over the pictures that have the fact."""
        right = {}
        for number, (name, logits) in enumerate(zip(FACTS, self(patches), strict=True)):
            mask = told[:, number] != IGNORED
            if mask.any():
                right[name] = (logits.argmax(1) == told[:, number])[mask].float().mean().item()
        return right


def moved(pictures: Tensor, generator: torch.Generator, reach: int = 1) -> Tensor:
    """Pictures [batch, 3, height, width] all shifted by up to `reach` pixels, each made slightly brighter or darker."""
    dx, dy = (int(n) for n in torch.randint(0, 2 * reach + 1, (2,), generator=generator))
    height, width = pictures.shape[-2:]
    shifted = F.pad(pictures, (reach,) * 4, mode="replicate")[..., dy : dy + height, dx : dx + width]
    return shifted + 0.05 * torch.randn(len(pictures), 1, 1, 1, generator=generator)
