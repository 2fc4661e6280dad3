"""Previews: examples as they reach the model, the supervised tokens marked. No model is loaded."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlora.common.errors import DataError, plain
from mixlora.common.labels import IGNORED
from mixlora.common.sections import TaskSection
from mixlora.data import described
from mixlora.data.checking import as_error
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example, Form, LossOn
from mixlora.data.images import image_size
from mixlora.data.reading.problems import Noted, collecting
from mixlora.data.sources import examples_of
from mixlora.data.templates import ChatTemplate
from mixlora.data.tokens import common_prefix_length

KEPT = 2000
"""Characters that are kept of an example's text where it is shown beside other things."""
_BEGIN, _END = "\x1b[1;32m", "\x1b[0m"
"""What a terminal prints supervised tokens by: bold green."""

_NEWLINE = "↵"

Piece = tuple[str, bool]
"""Text of neighbouring tokens, and whether they are supervised."""


@dataclass(frozen=True)
class Preview:
    """An example as it reaches the model.

    Attributes:
        encoded: its tokens.
        pieces: their text, pictures' placeholders collapsed.
        template: what writes its model's conversations.
        sizes: width and height of its pictures, in pixels.
        cut: how many supervised tokens `max_length` cut off.
    """

    encoded: Encoded
    pieces: tuple[Piece, ...]
    template: ChatTemplate
    sizes: tuple[tuple[int, int], ...]
    cut: int

    def json(self) -> str:
        """One line for a script: input_ids and supervised are of the same length."""
        encoded = self.encoded
        values = {
            "task": encoded.example.task,
            "id": encoded.id,
            "text": "".join(text for text, _ in self.pieces),
            "input_ids": encoded.input_ids,
            "supervised": [int(label != IGNORED) for label in encoded.labels],
            "template": self.template.source,
            "truncated": self.cut,
            "source": encoded.source,
            "form": encoded.example.form.value,
            "loss_on": str(encoded.example.loss_on),
            "images": [list(size) for size in self.sizes],
        }
        return json.dumps(values, ensure_ascii=False)

    def lines(self, colour: bool) -> Iterator[str]:
        """What a terminal shows: supervised tokens in colour, or in [brackets]; nothing in it steers the terminal."""
        encoded, example = self.encoded, self.encoded.example
        yield plain(f"task {example.task!r}, example {encoded.id!r} ({encoded.source})")
        cut = f", {self.cut} more cut off by max_length" if self.cut else ""
        yield f"  {len(encoded.input_ids)} tokens, {encoded.supervised} of them supervised{cut}"
        on = LossOn.EVERYTHING if example.form is Form.TEXT else example.loss_on
        yield f"  form: {example.form.value}; loss_on: {on}"
        if self.encoded.marked:
            yield "  special tokens of the record are read as text"
        if self.sizes:
            shown = ", ".join(f"{width} x {height}" for width, height in self.sizes)
            yield f"  pictures: {shown} pixels"
        marks = (_BEGIN, _END) if colour else ("[", "]")
        yield from _marked(self.pieces, *marks).split("\n")


def preview(encoded: Encoded, collator: Collator) -> Preview:
    """The preview of an example that a collator encoded."""
    example = encoded.example
    sizes = tuple(image_size(example, number) for number in range(len(example.images)))
    return Preview(encoded, tuple(pieces_of(encoded, collator)), collator.template, sizes, collator.cut(encoded))


def previews(
    tasks: Mapping[str, tuple[TaskSection, int | None]],
    collator: Collator,
    seed: int,
    count: int,
    draw: Callable[[Mapping[str, list[Example]]], Mapping[str, list[Example]]] | None = None,
) -> tuple[list[Preview], list[str]]:
    """Previews of the first `count` sampled examples of each task, and what a reader should know of the data.

    Args:
        tasks: {name: section, how many examples are sampled (all if None)}.
        collator: collator of the model that the examples are for.
        seed: seed of the sample.
        count: examples shown of each task.
        draw: draws samples of all tasks together, where `tasks` are not sampled one by one.

    Raises:
        DataError: some records cannot be used; it describes the first twenty problems.
    """
    problems: list[DataError] = []
    found: list[Preview] = []
    records: dict[str, Any] = {}
    read: dict[str, list[Example]] = {}
    sections: dict[str, tuple[TaskSection, Noted]] = {}
    for name, (section, samples) in tasks.items():
        noted = Noted()
        several = examples_of(name, section, samples, seed, problems, noted)
        read, sections = {**read, **several}, {**sections, **dict.fromkeys(several, (section, noted))}
    for task, examples in (draw(read) if draw and not problems else read).items():
        section, noted = sections[task]
        own: list[DataError] = []
        skips = section.on_error == "skip"
        first = _first(examples if skips else examples[:count], count, collator, own)
        if skips:
            noted.skip(own)
        else:
            problems += own
        found += [preview(encoded, collator) for encoded in first]
        records[task] = described.of_task(examples, 0, noted)  # each preview says what is cut of it
    if problems:
        raise as_error(problems)
    return found, described.sentences({"template": collator.template.json(), "tasks": records})


def show(found: Sequence[Preview], echo: Callable[[str], object], colour: bool, as_json: bool = False) -> None:
    """Print previews line by line with `echo`."""
    for number, one in enumerate(found):
        for line in [one.json()] if as_json else [*([""] if number else []), *one.lines(colour)]:
            echo(line)


def wants_colour(is_terminal: bool) -> bool:
    """Whether marks are colours; NO_COLOR in the environment says no."""
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def pieces_of(encoded: Encoded, collator: Collator) -> list[Piece]:
    """The text of an example's tokens in pieces, each supervised or not, pictures as "<image> x 576"."""
    ids, labels = encoded.input_ids, encoded.labels
    marks = [label != IGNORED for label in labels]
    ends = [k for k in range(1, len(ids)) if marks[k] != marks[k - 1]] + [len(ids)]
    whole = _text(collator, ids)
    found: list[Piece] = []
    at = 0
    for end in ends:
        stop = common_prefix_length(whole, _text(collator, ids[:end]))
        found.append((_collapsed(whole[at:stop], collator), marks[end - 1]))
        at = max(at, stop)
    return [piece for piece in found if piece[0]]


def shortened(pieces: Sequence[Piece], limit: int = KEPT) -> list[Piece]:
    """The pieces with a note in place of the middle where they have more than `limit` characters."""
    total = sum(len(text) for text, _ in pieces)
    if total <= limit:
        return list(pieces)
    begin, end = limit // 2, total - limit // 2
    head, tail = _between(pieces, 0, begin), _between(pieces, end, total)
    return [*head, (f" [… {end - begin:,} characters are not shown …] ", False), *tail]


def _between(pieces: Sequence[Piece], begin: int, end: int) -> list[Piece]:
    """The pieces from one character to another."""
    found, at = [], 0
    for text, mark in pieces:
        if kept := text[max(begin - at, 0) : max(end - at, 0)]:
            found.append((kept, mark))
        at += len(text)
    return found


def _first(examples: Sequence[Example], count: int, collator: Collator, own: list[DataError]) -> list[Encoded]:
    """The first `count` that can be encoded; the problems of others before them go to `own`."""
    found: list[Encoded] = []
    for example in examples:
        if len(found) == count:
            break
        with collecting(own):
            found.append(collator.encode(example))
    return found


def _text(collator: Collator, ids: Sequence[int]) -> str:
    return str(collator.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _collapsed(text: str, collator: Collator) -> str:
    token = collator.encoder.image_token
    if not token:
        return text
    one = re.escape(token)
    return re.sub(rf"{one}(?: ?{one})+", lambda run: f"{token} x {run[0].count(token)}", text)


def _marked(pieces: Sequence[Piece], begin: str, end: str) -> str:
    """The text with supervised pieces between marks, their line breaks as an arrow, and nothing that steers."""
    found = []
    for text, mark in pieces:
        lines = [plain(line.expandtabs(4)) for line in text.split("\n")]
        if mark:
            ended = [*(f"{line}{_NEWLINE}" for line in lines[:-1]), lines[-1]]
            lines = [f"{begin}{line}{end}" if line else line for line in ended]
        found.append("\n".join(lines))
    return "".join(found)
