"""The check of all data before work starts: what every example will be, and which of them cannot be used."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from PIL import Image

from mixlora.common.errors import ConfigError, DataError
from mixlora.data.collation import Collator
from mixlora.data.examples import Example
from mixlora.data.images import identity, is_encoded, open_image
from mixlora.data.reading.problems import collecting

_THREADS, _AHEAD = 8, 4
"""How many threads decode, if nothing is said, and how many examples each is ahead."""
_LISTED = 20


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        examples: those that can be used, in order.
        lengths: the tokens of each of them.
        bad: the positions, in what was checked, of those that cannot be used.
        truncated: how many of `examples` have an answer that the collator's `max_length` cuts short.
    """

    examples: list[Example]
    lengths: list[int]
    bad: list[int]
    truncated: int


def check(
    examples: Sequence[Example],
    collator: Collator,
    problems: list[DataError],
    decode: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """One pass over all examples, each encoded as for training; what is wrong with one is appended to `problems`.

    Args:
        examples: what is to be checked.
        collator: of the model that is to see them.
        problems: gets one error for each example that cannot be used, in order.
        decode: also decode every picture, not only read its header. No picture is kept.
        threads: how many pictures are decoded at once; as many as there are cores, but at most 8, if None.
        progress: told after each example how many are done, and how many there are.

    Raises:
        ConfigError: `threads` is below 1, or the chat template fits no example.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; give at least 1.")
    decoded = _decoded(examples, threads or min(_THREADS, os.cpu_count() or 1)) if decode else repeat(True)
    good, lengths, bad, truncated = [], [], [], 0
    for at, (example, is_fine) in enumerate(zip(examples, decoded, strict=False)):
        known = len(problems)
        with collecting(problems):
            encoded = collator.encode(example)
            if not is_fine:
                open_image(example)
            good.append(example)
            lengths.append(len(encoded.input_ids))
            truncated += encoded.truncated > 0
        bad += [at] * (len(problems) > known)
        if progress is not None:
            progress(at + 1, len(examples))
    return Checked(good, lengths, bad, truncated)


def as_error(problems: Sequence[DataError]) -> DataError:
    """One error for at least one problem: how many records are affected, the remedy, and the first twenty in full.

    A record that several tasks read has the same problem in each, which counts once.
    """
    listed = list(dict.fromkeys(map(str, problems)))
    affected = "1 record" if len(listed) == 1 else f"{len(listed)} records"
    lines = listed[:_LISTED] + [f"and {len(listed) - _LISTED} more"] * (len(listed) > _LISTED)
    return DataError("\n  ".join([f"{affected} cannot be used; correct or remove what is listed:", *lines]))


def _decoded(examples: Iterable[Example], threads: int) -> Iterator[bool]:
    """For each example in order whether it needs no further look: it has no picture, or a thread could decode it."""
    waiting: deque[tuple[Path | Image.Image | None, Future[bool]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for example in examples:
            waiting.append((example.image, _shared(example, waiting) or pool.submit(_can_decode, example)))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()


def _shared(example: Example, waiting: Iterable[tuple[Any, Future[bool]]]) -> Future[bool] | None:
    """The decoding of the same file for an example shortly before: questions about one picture stand together."""
    if not isinstance(example.image, Path):
        return None
    return next((job for image, job in waiting if isinstance(image, Path) and image == example.image), None)


def _can_decode(example: Example) -> bool:
    if not is_encoded(example.image):
        return example.image is None  # Pillow's own objects, which examples may share, are not for several threads
    try:
        open_image(example)
    except DataError:
        return False
    return True


def fingerprint(examples: Iterable[Example]) -> str:
    """A hash of what examples say and of which pictures they show, in their order."""
    found = hashlib.sha256()
    for example in examples:
        shown = identity(example.image)
        found.update(repr((example.task, example.id, example.turns, example.references, shown)).encode())
    return found.hexdigest()[:32]
