"""The check of all data before work starts: which examples can be used, and a fingerprint of them."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixlora.common.errors import ConfigError, DataError, plain
from mixlora.data.examples import Example, Picture
from mixlora.data.groups import IMAGE, all_shared
from mixlora.data.images import is_encoded, open_image
from mixlora.data.reading.problems import Noted, collecting

if TYPE_CHECKING:
    from mixlora.data.collation import Collator

_THREADS, _AHEAD = 8, 4
"""The default number of threads that decode, and how many examples each works ahead."""
_LISTED = 20
"""Problems that are listed."""
_SEPARATE = 3
"""More problems than these, alike but for their places, share a line."""


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        examples: the usable examples, in order.
        lengths: the tokens of each of `examples`.
        bad: the positions of the unusable ones among all that were checked.
        cut: {task: how many of its `examples` have an answer that the collator's `max_length` cuts short}.
        marked: {task: how many contain special tokens of the model, which are read as text}.
    """

    examples: list[Example]
    lengths: list[int]
    bad: list[int]
    cut: Counter[str]
    marked: Counter[str]


def check(
    examples: Sequence[Example],
    collator: "Collator",
    problems: list[DataError],
    decode: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    skipping: Mapping[str, Noted] | None = None,
    new_tokens: int | None = None,
) -> Checked:
    """Encode every example, and append an error to `problems` for each that cannot be used.

    Args:
        examples: what is to be checked.
        collator: collator of the model that is to see them.
        problems: gets one error for each example that cannot be used, in order.
        decode: also decode every picture, not only read its header. No picture is kept.
        threads: how many pictures are decoded at once; as many as there are cores, but at most 8, if None.
        progress: told after each example how many are done, and how many there are.
        skipping: {task: where its unusable examples are counted}; of other tasks they are problems.
        new_tokens: None to encode whole examples, as for training. A number to encode their prompts, behind which the
            model may generate so many tokens.

    Raises:
        ConfigError: `threads` is below 1, or the chat template fits no example.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; give at least 1.")
    decoded = _decoded(examples, threads or min(_THREADS, os.cpu_count() or 1)) if decode else repeat(True)
    good, lengths, bad, cut, marked = [], [], [], Counter[str](), Counter[str]()
    for at, (example, is_fine) in enumerate(zip(examples, decoded, strict=False)):
        own: list[DataError] = []
        with collecting(own):
            encoded = collator.encode(example) if new_tokens is None else collator.encode_prompt(example, new_tokens)
            if not is_fine:
                for number in range(len(example.images)):
                    open_image(example, number)
            good.append(example)
            lengths.append(len(encoded.input_ids))
            cut[example.task] += encoded.truncated
            marked[example.task] += encoded.marked
        bad += [at] * bool(own)
        if own and skipping is not None and example.task in skipping:
            skipping[example.task].skip(own)
        else:
            problems += own
        if progress is not None:
            progress(at + 1, len(examples))
    return Checked(good, lengths, bad, cut, marked)


def as_error(problems: Sequence[DataError]) -> DataError:
    """One error for at least one problem: the only one, or how many records are affected and the first twenty.

    A record that several tasks read has the same problem in each, which counts once. More than three problems that
    differ in nothing but their places share a line.
    """
    listed = list(dict.fromkeys(map(plain, problems)))
    if len(listed) == 1:
        return DataError(listed[0])
    lines = _by_kind(listed[:_LISTED]) + [f"and {len(listed) - _LISTED} more"] * (len(listed) > _LISTED)
    error = DataError("\n  ".join([f"{len(listed)} records cannot be used; correct or remove these:", *lines]))
    error.lines = True
    return error


def _by_kind(problems: Iterable[str]) -> list[str]:
    """The problems, each "place: what"; those with the same `what` in one line, if there are many."""
    places: dict[str, list[str]] = {}
    for problem in problems:
        place, _, what = problem.partition(": ")
        places.setdefault(what, []).append(place)
    lines = []
    for what, at in places.items():
        together = len(at) > _SEPARATE and bool(what)
        lines += [f"{at[0]}: {what} Also at {', '.join(at[1:])}."] if together else [_line(place, what) for place in at]
    return lines


def _line(place: str, what: str) -> str:
    return f"{place}: {what}" if what else place


def _decoded(examples: Iterable[Example], threads: int) -> Iterator[bool]:
    """For each example in order whether it needs no further look: it has no picture, or a thread could decode it."""
    waiting: deque[tuple[tuple[Picture, ...], Future[bool]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for example in examples:
            waiting.append((example.images, _shared(example, waiting) or pool.submit(_can_decode, example)))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()


def _shared(example: Example, waiting: Iterable[tuple[Any, Future[bool]]]) -> Future[bool] | None:
    """The decoding of the same files for an example shortly before: questions about one picture stand together."""
    if not example.images or not all(isinstance(image, Path) for image in example.images):
        return None
    return next((job for images, job in waiting if images == example.images), None)


def _can_decode(example: Example) -> bool:
    if not all(map(is_encoded, example.images)):
        return False  # Pillow's own objects, which examples may share, are not for several threads
    try:
        for number in range(len(example.images)):
            open_image(example, number)
    except DataError:
        return False
    return True


def fingerprint(examples: Iterable[Example]) -> str:
    """A hash of the examples' texts and of the content of the pictures that they show, in order.

    Raises:
        DataError: a picture cannot be read.
    """
    found, examples = hashlib.sha256(), list(examples)
    pictures = all_shared((example, IMAGE) for example in examples)
    for example, keys in zip(examples, pictures, strict=True):
        shown = [picture for _, picture in keys]
        found.update(repr((replace(example, images=()), shown)).encode())
    return found.hexdigest()[:32]
