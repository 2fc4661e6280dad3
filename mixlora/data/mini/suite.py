"""Examples of the suite's tasks: a picture, a question about it, and the answer."""

from itertools import islice
from random import Random
from typing import get_args

from mixlora.common.errors import DataError
from mixlora.data.examples import Example, Turn
from mixlora.data.mini.pictures import SOURCES, Picture, Split
from mixlora.data.mini.tasks import TASKS, UNSEEN, Task


def find(task: str) -> Task:
    """The task of that name.

    Raises:
        DataError: there is none.
    """
    known = {**TASKS, **UNSEEN}
    if task not in known:
        raise DataError(f"The mini suite has no task {task!r}; it has {', '.join(known)}.")
    return known[task]


def examples(task: str, split: Split, count: int, seed: int = 0) -> list[Example]:
    """The first `count` examples of a task's split in the order of the seed, or all of them if there are fewer.

    The same arguments give the same examples. Tasks that share a source of pictures (`name_ink` and `read_word`,
    `next_number` and `name_in_french`) show the same pictures under the same ids.

    Raises:
        DataError: there is no such task or split, or the package easy-vqa is needed but not installed.
    """
    wanted = find(task)
    if split not in get_args(Split):
        raise DataError(f"The mini suite has no split {split!r}; it has {', '.join(get_args(Split))}.")
    pictures = islice(SOURCES[wanted.source](split, seed), count)
    return [_example(wanted, picture, seed) for picture in pictures]


def _example(task: Task, picture: Picture, seed: int) -> Example:
    question, answer = task.ask(Random(f"{task.name}/{picture.id}/{seed}"), picture.facts)
    turns = (Turn("user", question, places=(0,)), Turn("assistant", answer))
    return Example(picture.id, task.name, turns, (picture.image,), f"mini/{task.name}/{picture.id}")
