"""Texts to tokens, and which characters each token stands for. Special tokens between markers are encoded as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _CONTROL_TOKEN_END, _CONTROL_TOKEN_START

from mixlora.data.rendering import Span

MARKERS = (_CONTROL_TOKEN_START, _CONTROL_TOKEN_END)
"""Private characters between which a special token of a record stands; see transformers' mark_control_tokens."""

_LONG, _SPARE = 16, 100
"""Characters of the beginning of a long text for each token of it, and tokens beyond those that are wanted."""


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


def beginning(
    tokenizer: PreTrainedTokenizerBase, text: str, count: int | None, special: bool = False
) -> tuple[Tokens, int]:
    """At least the first `count` tokens of a text, without reading much more of it, and how many characters they cover.

    A long text is cut before a white space, with `_SPARE` tokens behind the `count`, another white space among them:
    these are then the tokens of the whole, since no tokenizer joins words across it so far. The spare ones may differ.

    Args:
        tokenizer: a fast one.
        text: as in `tokenize`.
        count: None for all.
        special: as in `tokenize`.
    """
    most = len(text) if count is None or _is_global(tokenizer) else _LONG * (count + _SPARE)
    while count is not None and most < len(text):
        cut = _last_space(text, most)
        found = tokenize(tokenizer, text[:cut], special)
        if len(found.ids) > count + _SPARE and any(map(str.isspace, text[found.offsets[count - 1][1] : cut])):
            return found, cut
        most *= 4
    return tokenize(tokenizer, text, special), len(text)


def _is_global(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token may depend on all of a text: one of a unigram model that does not split it first."""
    backend = tokenizer.backend_tokenizer
    return backend.pre_tokenizer is None and type(backend.model).__name__ == "Unigram"


def _last_space(text: str, most: int) -> int:
    """Where the last white space is in the beginning of a text that is outside of markers; 0 for nowhere."""
    opened, closed = (text.rfind(marker, 0, most) for marker in MARKERS)
    end = opened if opened > closed else most
    return next((at for at in range(end - 1, -1, -1) if text[at].isspace()), 0)


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
