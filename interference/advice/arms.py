"""Arms: the ways to train the tasks that a trial compares, each at the same steps and examples in all. No model.

An arm trains one adapter or several, each on some of the tasks; together they are all tasks. The adapter of m of n
tasks takes m / n of the steps. Every step of every arm has as many examples, spread evenly over its adapter's tasks. So
arms take as many steps and examples in all, and every task is seen as often in each.

Not here: the trainings themselves (`trial`), and what came of them (`tried`).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from interference.errors import ConfigError
from mixlora.training.config import Method, TrainConfig

WEIGHTS, UPGRAD = "weights", "upgrad"
"""Cures: the advised `training.weights`, and `training.combine: upgrad`."""
TOGETHER, ADVISED, SPECIALISTS, MIXLORA = "together", "advised groups", "specialists", "mixlora"
WEIGHED = f"{TOGETHER}, {WEIGHTS}"
"""The arm of all tasks together with the advised weights of their losses."""
RANDOM = "random groups"
"""What the names of the arms of random groups begin with."""
Split = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Piece:
    """One adapter of an arm.

    Attributes:
        method: "lora" or "mixlora".
        size: how many times as many ranks a LoRA has as the probed one, or factors as that one has ranks.
        tasks: that it is trained on, in the order of all tasks.
        cure: "weights" or "upgrad": how the gradients of a step's tasks become one; "" for their plain sum.
    """

    method: str
    size: int
    tasks: tuple[str, ...]
    cure: str = ""


@dataclass(frozen=True)
class Arm:
    """A way to train all tasks: one adapter or several.

    Attributes:
        name: as tables have it.
        pieces: its adapters.
    """

    name: str
    pieces: tuple[Piece, ...]


def arms(
    tasks: Sequence[str], groups: Sequence[Sequence[str]], count: int, seed: int, cures: Sequence[str] = ()
) -> list[Arm]:
    """All arms of a trial.

    Args:
        tasks: all of them.
        groups: the advised groups; none where no split is advised.
        count: random splits, at most.
        seed: by which they are drawn.
        cures: other ways to train all tasks together.

    Returns:
        All tasks together, plainly and with each cure; the advised groups and random ones, where a split is advised;
        specialists; and, with as many trained parameters as the advised groups (else as the specialists), a LoRA and a
        MixLoRA on all tasks.
    """
    size = len(groups) or len(tasks)
    advised = split_of(groups, tasks)
    found = [Arm(TOGETHER, (Piece(Method.LORA, 1, tuple(tasks)),))]
    found += [Arm(f"{TOGETHER}, {cure}", (Piece(Method.LORA, 1, tuple(tasks), cure),)) for cure in cures]
    if groups:
        found.append(_split(ADVISED, advised))
        others = enumerate(others_of(advised, count, seed), 1)
        found += [_split(f"{RANDOM} {k}", split) for k, split in others]
    if len(groups) < len(tasks):
        found.append(_split(SPECIALISTS, tuple((task,) for task in tasks)))
    found.append(Arm(f"together, {size} times the rank", (Piece(Method.LORA, size, tuple(tasks)),)))
    return [*found, Arm(MIXLORA, (Piece(Method.MIXLORA, size, tuple(tasks)),))]


def _split(name: str, split: Split) -> Arm:
    return Arm(name, tuple(Piece(Method.LORA, 1, group) for group in split))


def split_of(groups: Sequence[Sequence[str]], tasks: Sequence[str]) -> Split:
    """Groups in one order: tasks within them, and groups by their first task, as `tasks` has them.

    Args:
        groups: of tasks.
        tasks: all of them.
    """
    place = {task: k for k, task in enumerate(tasks)}
    return tuple(sorted((tuple(sorted(group, key=place.__getitem__)) for group in groups), key=lambda g: place[g[0]]))


def possible(split: Split) -> int:
    """How many splits there are into groups of these sizes.

    Args:
        split: groups of tasks.
    """
    sizes = Counter(map(len, split))
    orders = math.prod(math.factorial(size) ** count * math.factorial(count) for size, count in sizes.items())
    return math.factorial(sum(map(len, split))) // orders


def others_of(split: Split, count: int, seed: int) -> list[Split]:
    """Distinct splits into groups of the same sizes, drawn at random; never the given one.

    Args:
        split: groups of tasks, in the order of `split_of`.
        count: how many; all that there are, where these are fewer.
        seed: of the draw.
    """
    tasks, rng = [task for group in split for task in group], np.random.default_rng(seed)
    ends = np.cumsum([len(group) for group in split])[:-1]
    found: list[Split] = []
    while len(found) < min(count, possible(split) - 1):
        parts = np.split(rng.permutation(len(tasks)), ends)
        drawn = split_of([[tasks[k] for k in part] for part in parts], tasks)
        if drawn not in (split_of(split, tasks), *found):
            found.append(drawn)
    return found


def spread(sizes: Sequence[int], tasks: int) -> int:
    """What `trial.share` must be a multiple of, so that a step divides evenly among the tasks of every group.

    Args:
        sizes: of the groups.
        tasks: in all.
    """
    return reduce(math.lcm, (size // math.gcd(size, tasks) for size in sizes), 1)


def config_of(piece: Piece, trained: TrainConfig) -> TrainConfig:
    """The training of an adapter, its tasks aside: the probed one's, with another rank or as a MixLoRA.

    The scale alpha / r stays; a MixLoRA has its own where its section names alpha.

    Args:
        piece: the adapter.
        trained: the configuration of the probed training.

    Raises:
        ConfigError: if the values do not fit each other.
    """
    lora = trained.lora
    if piece.method == Method.MIXLORA:
        alpha = trained.mixlora.alpha or lora.alpha
        own = {"r": lora.r, "num_factors": piece.size * lora.r, "alpha": alpha}
        return trained.model_copy(update={"method": "mixlora", "mixlora": trained.mixlora.model_copy(update=own)})
    scaled = math.sqrt(piece.size) if lora.rslora else piece.size
    own = {"r": piece.size * lora.r, "alpha": max(round(scaled * lora.alpha), 1)}
    return trained.model_copy(update={"lora": lora.model_copy(update=own)})


def check_steps(steps: int, share: int, groups: Sequence[Sequence[str]], tasks: Sequence[str]) -> None:
    """Raise a ConfigError if steps or examples do not divide evenly.

    Args:
        steps: of every arm.
        share: examples of each task in a step on all tasks.
        groups: the advised ones.
        tasks: all of them.
    """
    count = len(tasks)
    if steps % count:
        raise ConfigError(
            f"trial.steps is {steps}, but must be a multiple of the {count} tasks: a specialist takes steps / {count}; "
            f"write {steps + -steps % count}"
        )
    unit = spread([len(group) for group in groups], count)
    if share % unit:
        sizes = " and ".join(sorted({str(len(group)) for group in groups}))
        raise ConfigError(
            f"trial.share is {share}, but must be a multiple of {unit}: a step of {count} x share examples divides "
            f"among groups of {sizes} tasks; write {share + -share % unit}"
        )
