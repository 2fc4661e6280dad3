"""Texts to tokens, and which characters each token stands for. Special tokens between markers are encoded as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _CONTROL_TOKEN_END, _CONTROL_TOKEN_START

from mixlora.data.rendering import Span

MARKERS = (_CONTROL_TOKEN_START, _CONTROL_TOKEN_END)
"""Private characters between which a special token of a record stands; see transformers' mark_control_tokens."""


@dataclass(frozen=True)
class Tokens:
    """A text in tokens.

    Attributes:
        ids: the tokens.
        offsets: the characters of the text that each stands for.
    """

    ids: list[int]
    offsets: list[Span]

    def within(self, spans: Sequence[Span]) -> list[bool]:
        """Whether each token stands for a character of one of the spans, as transformers masks assistants' tokens."""
        return [any(begin < end and first < stop for begin, stop in spans) for first, end in self.offsets]


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> Tokens:
    """The tokens of a text.

    Args:
        tokenizer: a fast one.
        text: special tokens between `MARKERS` are encoded as text.
        special: let the tokenizer add its own special tokens, as its BOS.
    """
    if MARKERS[0] not in text:
        found = tokenizer(
            text,
            add_special_tokens=special,
            truncation=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return Tokens(list(found["input_ids"]), [(first, end) for first, end in found["offset_mapping"]])
    ids = list(tokenizer("", add_special_tokens=special)["input_ids"]) if special else []
    offsets: list[Span] = [(0, 0)] * len(ids)
    at = 0
    for number, piece in enumerate(_pieces(text)):
        made = _piece(tokenizer, piece, as_text=number % 2 == 1, first=number == 0)
        ids += made.ids
        offsets += [(at + first, at + end) for first, end in made.offsets]
        at += len(piece) + 1  # a marker follows
    return Tokens(ids, offsets)


def _pieces(text: str) -> list[str]:
    """What stands between markers, at odd places, and around them."""
    return text.replace(MARKERS[1], MARKERS[0]).split(MARKERS[0])


def _piece(tokenizer: PreTrainedTokenizerBase, piece: str, as_text: bool, first: bool) -> Tokens:
    """A piece's tokens; behind a newline, so that none is given the space that begins a text."""
    if not piece:
        return Tokens([], [])
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    if as_text:
        options["split_special_tokens"] = True
    newline = [] if first else tokenizer("\n", add_special_tokens=False)["input_ids"]
    found = tokenizer(piece if first else "\n" + piece, **options)
    if found["input_ids"][: len(newline)] != newline:
        found, newline, first = tokenizer(piece, **options), [], True
    by = 0 if first else 1
    kept = slice(len(newline), None)
    return Tokens(list(found["input_ids"][kept]), [(a - by, b - by) for a, b in found["offset_mapping"][kept]])


def unmarked_pieces(text: str, token: str) -> list[str]:
    """A text split at a token, except where that stands between markers."""
    found, at = [], 0
    for one in re.finditer(f"{MARKERS[0]}.*?{MARKERS[1]}|(?P<token>{re.escape(token)})", text, re.DOTALL):
        if one["token"] is not None:
            found.append(text[at : one.start()])
            at = one.end()
    return [*found, text[at:]]


def common_prefix_length(ids: Sequence[object], others: Sequence[object]) -> int:
    """How many leading tokens, or characters, two sequences have in common."""
    apart = (k for k, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other)
    return next(apart, min(len(ids), len(others)))
