"""Blocks: the smallest pieces of theta (layer x module x side), their names, and scopes, which pick among them.

Pure bookkeeping: which modules of a model the blocks come from is in `targets`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

import pandas as pd

from interference.errors import ScopeError
from mixlora.common.enums import NONE_OF, member


class Side(StrEnum):
    """Which part of an adapted module a block holds: a factor of the low-rank product, or a router of MixLoRA.

    W is the product itself (the weight-space view).
    """

    A = "A"
    B = "B"
    W = "W"
    ROUTER_A = "router-A"
    ROUTER_B = "router-B"
    ROUTER_AB = "router-AB"


ROUTERS = (Side.ROUTER_A, Side.ROUTER_B, Side.ROUTER_AB)


class Component(StrEnum):
    """Which part of a model a module belongs to; PROJECTOR is everything between tower and language model."""

    LANGUAGE = "language"
    VISION = "vision"
    PROJECTOR = "projector"


class Granularity(StrEnum):
    """How far blocks are summed before their Gram matrices are stored."""

    MODULE = "module"
    GROUP = "group"
    LAYER = "layer"


class Space(StrEnum):
    """Where inner products are taken.

    Over the factors A and B, over the weight that their product changes, or between gradients and steps of AdamW.
    """

    PARAMETERS = "parameters"
    WEIGHT = "weight"
    ADAM = "adam"


class Step(StrEnum):
    """Which step of a task is measured: along its gradient, or also the one that AdamW takes from it."""

    GRADIENT = "gradient"
    ADAM = "adam"


@dataclass(frozen=True)
class Block:
    """One piece of theta.

    Attributes:
        component: part of the model.
        layer: index of the transformer block, from 0; None outside the stack of layers.
        module: name of the adapted module ("q_proj"), or of its group or layer where blocks were summed.
        group: "attention" or "mlp".
        side: A, B, W or a router.
        size: number of gradient entries.
    """

    component: Component
    layer: int | None
    module: str
    group: str
    side: Side
    size: int

    @property
    def name(self) -> str:
        """A name unique in a run: "language.5.q_proj.A"."""
        layer = [] if self.layer is None else [str(self.layer)]
        return ".".join([self.component, *layer, self.module, self.side])


@dataclass(frozen=True)
class Scope:
    """Blocks that are treated as one theta. It can be the key of a dictionary.

    Attributes:
        layers: transformer block indices, from 0; None for all.
        modules: module names, groups ("attention", "mlp") or components ("projector"); None for all.
        side: "A", "B" or a router's; None for all that were probed.
        space: "parameters" for blocks A and B, "adam" for AdamW's step on them, "weight" for the blocks of the
            weight-space view, which have no side.

    Raises:
        ScopeError: if layers or modules is not a list.
    """

    layers: Sequence[int] | None = None
    modules: Sequence[str] | None = None
    side: Side | str | None = None
    space: Space | str = Space.PARAMETERS

    def __post_init__(self) -> None:
        for name in ("layers", "modules"):
            given = getattr(self, name)
            if isinstance(given, int | str):
                raise ScopeError(f"{name} is {given!r}, but must be a list, as [{given!r}]")
            object.__setattr__(self, name, None if given is None else tuple(given))

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The scope that keyword arguments name, and the other arguments."""
        named = {name: value for name, value in options.items() if name in cls.__dataclass_fields__}
        return cls(**named), {name: value for name, value in options.items() if name not in named}

    @property
    def options(self) -> dict[str, Any]:
        """The scope as keyword arguments: what the methods of `Run` take, and `split` takes back."""
        return dict(vars(self))


def coarsen(block: Block, granularity: Granularity) -> Block:
    """The block that `block` is summed into at this granularity; its size is still that of the one block."""
    if granularity is Granularity.MODULE:
        return block
    coarse = block.group if granularity is Granularity.GROUP else "all"
    group = block.group if granularity is Granularity.GROUP else "all"
    return Block(block.component, block.layer, coarse, group, block.side, block.size)


def to_frame(blocks: Iterable[Block]) -> pd.DataFrame:
    """One row per block, in order; column `name` is the key of its Gram matrix."""
    rows = [
        {"name": block.name, **asdict(block), "component": str(block.component), "side": str(block.side)}
        for block in blocks
    ]
    frame = pd.DataFrame(rows, columns=["name", "component", "layer", "module", "group", "side", "size"])
    return frame.astype({"layer": "Int64", "component": str, "side": str})


def select(blocks: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """The rows of a scope.

    Args:
        blocks: frame of `to_frame`.
        scope: which of them.

    Raises:
        ScopeError: if a layer, module or side is not there; the message lists what is.
    """
    layers, modules, side = scope.layers, scope.modules, scope.side
    space = member(Space, scope.space, "space", ScopeError, NONE_OF)
    frame = blocks[(blocks["side"] == Side.W) == (space is Space.WEIGHT)]
    if frame.empty:
        raise ScopeError("this run has no weight-space Gram; compute it again with probe.weight_space: true")
    if layers is not None:
        check_layers(layers, frame["layer"].dropna().astype(int))
        frame = frame[frame["layer"].isin(layers).fillna(False).astype(bool)]
    if modules is not None:
        known = check_modules(modules, frame)
        frame = frame[known.isin(modules).any(axis=1)]
    if space is Space.WEIGHT and side not in (None, Side.W):
        raise ScopeError(f"side is {str(side)!r}, but the weight space has no sides; leave side out, or space")
    if side is not None and space is not Space.WEIGHT:
        frame = frame[frame["side"] == member(Side, side, "side", ScopeError, NONE_OF)]
    if frame.empty:
        named = [None if given is None else list(given) for given in (layers, modules)]
        raise ScopeError(f"no block matches layers={named[0]}, modules={named[1]}, side={side}; widen the scope")
    return frame


def check_layers(layers: Sequence[int], known: Iterable[int]) -> None:
    """Raise a ScopeError that lists the known layers if one of `layers` is not among them."""
    there = sorted(set(known))
    for layer in layers:
        if layer not in there:
            raise ScopeError(f"layer {layer} is not among the adapted layers: {_spans(there)} (counted from 0)")


def check_modules(modules: Sequence[str], frame: pd.DataFrame) -> pd.DataFrame:
    """The columns in which a module may be named; a ScopeError that lists the names if one is in none of them."""
    columns = frame[["module", "group", "component"]].astype(str)
    there = sorted(set(columns.to_numpy().ravel()))
    for module in modules:
        if module not in there:
            summed = (frame["module"] == frame["group"]).all()  # see `coarsen`
            why = "; the run summed its modules (probe.granularity)" if summed else ""
            raise ScopeError(f"module {module!r} is not among those here: {', '.join(there)}{why}")
    return columns


def _spans(numbers: Sequence[int]) -> str:
    """Sorted integers as "0-3, 7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "none"
