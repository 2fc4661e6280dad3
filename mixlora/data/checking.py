"""The check of all data before work starts: which examples can be used, and a fingerprint of them."""

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
"""The default number of threads that decode, and how many examples each works ahead."""
_LISTED = 20


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        examples: the usable examples, in order.
        lengths: the tokens of each of `examples`.
        bad: the positions of the unusable ones among all that were checked.
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
    """Encode every example as for training, and append an error to `problems` for each that cannot be used.

    Args:
        examples: what to check.
        collator: of the model that will see them.
        problems: collects one error for each unusable example, in order.
        decode: also decode every picture instead of only reading its header. No picture is kept.
        threads: how many pictures to decode at once; the number of cores, at most 8, if None.
        progress: called after each example with the number done and the total.

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
    """Whether each example, in order, needs no further check: it has no picture, or a thread has decoded it."""
    waiting: deque[tuple[Path | Image.Image | None, Future[bool]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for example in examples:
            waiting.append((example.image, _shared(example, waiting) or pool.submit(_can_decode, example)))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()


def _shared(example: Example, waiting: Iterable[tuple[Any, Future[bool]]]) -> Future[bool] | None:
    """The running decoding of the same file for a recent example: questions about one picture follow each other."""
    if not isinstance(example.image, Path):
        return None
    return next((job for image, job in waiting if isinstance(image, Path) and image == example.image), None)


def _can_decode(example: Example) -> bool:
    if not is_encoded(example.image):
        return example.image is None  # Pillow's objects, which examples may share, are not thread-safe
    try:
        open_image(example)
    except DataError:
        return False
    return True


def fingerprint(examples: Iterable[Example]) -> str:
    """A hash of the examples' texts and of which pictures they show, in order."""
    found = hashlib.sha256()
    for example in examples:
        shown = identity(example.image)
        found.update(repr((example.task, example.id, example.turns, example.references, shown)).encode())
    return found.hexdigest()[:32]
