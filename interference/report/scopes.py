"""What a report measures: scopes, choices of metric, and how many of them its budget of cells and time holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from interference.blocks import Scope, Side, Space
from interference.errors import ScopeError
from interference.run import Run
from interference.statistics.estimand import METRICS, REDUCE, Estimand, Reduce
from interference.statistics.layout import Pairs

CELLS = 60_000
"""Cells of all matrices of a report, about 70 bytes each on the page; four times as many with detail "full"."""
SECONDS = 60.0
"""Estimated time for the matrices of one run on one core; of a report, at most three times as much."""
FEW = 30
"""Matrices of one run with detail "small"."""


class Detail(StrEnum):
    """How much of a run a report shows where not everything fits."""

    SMALL = "small"
    FULL = "full"


@dataclass(frozen=True)
class Choice:
    """A metric with the options that it reads; None for what it does not read, or takes as it is by default."""

    metric: str
    pairs: str | None = None
    reduce: str | None = None

    @property
    def key(self) -> str:
        """Its name in a report: "interference/leave-one-out/ratio-of-means", "cosine"."""
        return "/".join(part for part in (self.metric, self.pairs, self.reduce) if part)

    @property
    def options(self) -> dict[str, str]:
        """The options as `Run.table` takes them."""
        given = {"pairs": self.pairs, "reduce": self.reduce}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def estimand(self) -> Estimand:
        """The choice as an estimand of one theta."""
        options: dict[str, Any] = dict(self.options)
        return Estimand(self.metric, **options)


WHOLE = Scope()
"""All layers, modules and sides as one theta."""
BASE = Choice("interference", Pairs.LEAVE_ONE_OUT.value, REDUCE.value)
"""What sentences, profiles and groups are about: the only reduction whose interval has the coverage it claims."""
PAPER = Choice("interference", Pairs.LEAVE_ONE_OUT.value, Reduce.MEAN_OF_RATIOS.value)
CORE = [BASE, PAPER, Choice("delta"), Choice("cosine")]


def part(layer: int | None = None, name: str | None = None, side: str | None = None) -> Scope:
    """The scope of one layer, of one module, group or component, and of one side; None for all.

    The side W stands for the weight-space view, and "adam" for AdamW's step.
    """
    space = {Side.W.value: Space.WEIGHT, Space.ADAM.value: Space.ADAM}.get(str(side), Space.PARAMETERS)
    side = side if space is Space.PARAMETERS else None
    return Scope(None if layer is None else [layer], None if name is None else [name], side, space)


def words_of(scope: Scope) -> dict[str, str]:
    """Layers, modules and side as a reader of the page chooses them: "all", "all", "both"; "5", "attention", "B"."""
    layers, modules = ("all" if given is None else ",".join(map(str, given)) for given in (scope.layers, scope.modules))
    named = {Space.WEIGHT: Side.W.value, Space.ADAM: Space.ADAM.value}
    side = named.get(Space(scope.space)) or scope.side or "both"
    return {"layers": layers, "modules": modules, "side": str(side)}


def key_of(scope: Scope) -> str:
    """A scope's name in a report: "all/all/both", "5/attention/B"."""
    return "/".join(words_of(scope).values())


def layer_of(scope: Scope) -> int | None:
    """The layer that a scope is about; None where it is about all."""
    return None if scope.layers is None else scope.layers[0]


@dataclass(frozen=True)
class Tier:
    """Matrices that are shown or left out together.

    Attributes:
        name: what they are, for a reader.
        scopes: rows of the grid.
        choices: its columns.
    """

    name: str
    scopes: Sequence[Scope]
    choices: Sequence[Choice]

    @property
    def size(self) -> int:
        """Matrices."""
        return len(self.scopes) * len(self.choices)


@dataclass(frozen=True)
class Contents:
    """What a page shows of one run: its matrices, {scope: its choices}, and sentences about what did not fit."""

    grid: dict[Scope, list[Choice]]
    left_out: list[str]


def choices_of(run: Run) -> list[Choice]:
    """Every choice that a run allows: interference by pairs and reduction, then the other metrics."""
    pairs = [rule for rule in Pairs if rule is not Pairs.UNI_PERCEIVER or _equally_many(run)]
    ratios = [Choice("interference", rule.value, reduce.value) for rule in pairs for reduce in Reduce]
    found = [*ratios, *(Choice(metric) for metric in METRICS if metric != "interference")]
    return [*CORE, *(choice for choice in found if choice not in CORE)]


def tiers(run: Run) -> list[Tier]:
    """The matrices of a run, the most telling first; no matrix is in two tiers."""
    layers, sides = _layers(run), _sides(run)
    groups, modules = _groups(run), _modules(run)
    others = [choice for choice in choices_of(run) if choice not in CORE]
    within = [(name, side) for name in (None, *groups) for side in (None, *sides) if name or side]
    depth, parts, each, figure, crossed = _distinct(
        run,
        [part(layer) for layer in layers],
        [*(part(name=name) for name in groups), *(part(side=side) for side in sides)],
        [part(name=name) for name in modules],
        [part(layer, name, side) for layer in layers for name, side in within],
        [part(None, name, side) for name in [*groups, *modules] for side in sides],
    )
    broad, narrow = [*parts, *depth, *each], [*figure, *crossed]
    steps = [part(side=Space.ADAM.value)] if run.meta.get("adam") else []
    found = [
        Tier("the main metrics over all layers", [WHOLE], CORE),
        Tier("the main metrics of AdamW's step over all layers", steps, CORE),
        Tier("each layer", depth, [BASE]),
        Tier("every metric, pairs and reduction over all layers", [WHOLE], others),
        Tier("each group and each side over all layers", parts, [BASE]),
        Tier("each module over all layers", each, [BASE]),
        Tier("groups and sides within layers", figure, [BASE]),
        Tier("sides of each module over all layers", crossed, [BASE]),
        Tier("the main metrics of groups, sides, layers and modules", broad, CORE[1:]),
        Tier("means of ratios of groups and sides within layers and of sides of modules", narrow, [PAPER]),
        Tier("Delta and cosine of groups and sides within layers and of sides of modules", narrow, CORE[2:]),
        Tier("every metric, pairs and reduction of parts", [*broad, *narrow], others),
    ]
    return [tier for tier in found if tier.size]


def contents(run: Run, detail: Detail | None, replicates: int, runs: int = 1) -> Contents:
    """The tiers of a run that fit its share of the report's budget; the first always does, layers are thinned evenly.

    Args:
        run: a run.
        detail: "small" holds few matrices, "full" is bounded by cells alone; None is in between.
        replicates: resamples of a matrix.
        runs: how many the report is about.
    """
    cells = CELLS * (4 if detail is Detail.FULL else 1) // runs
    each, time = len(run.tasks) ** 2, seconds_of(run, replicates)
    total = float("inf") if detail is Detail.FULL else SECONDS * min(runs, 3) / runs
    room = int(min(cells / each, total / time, FEW if detail is Detail.SMALL else float("inf")))
    grid: dict[Scope, list[Choice]] = {}
    left_out = []
    if not _equally_many(run):
        left_out.append(f"pairs {Pairs.UNI_PERCEIVER.value!r}: they need equally many units of every task")
    for place, tier in enumerate(tiers(run)):
        scopes = tier.scopes if place == 0 or tier.size <= room else []
        if not scopes and tier.name == "each layer" and room > 1:
            scopes = _spread(tier.scopes, room)
        for scope in scopes:
            grid.setdefault(scope, []).extend(tier.choices)
        room -= len(scopes) * len(tier.choices)
        if missing := tier.size - len(scopes) * len(tier.choices):
            left_out.append(f"{tier.name}: {missing} of {tier.size} matrices ({missing * each:,} cells)")
    return Contents(grid, left_out)


def seconds_of(run: Run, replicates: int) -> float:
    """About how long one matrix with its intervals takes on one core, as measured on 600 to 2000 units."""
    return (0.1 + 4.5e-7 * len(run.probes) ** 2) * replicates / 1000


def _spread(scopes: Sequence[Scope], count: int) -> list[Scope]:
    """`count` of the scopes at even distances, the first and the last among them."""
    return [scopes[round(k * (len(scopes) - 1) / (count - 1))] for k in range(count)]


def _distinct(run: Run, *families: Sequence[Scope]) -> list[list[Scope]]:
    """Of every family, the scopes in which the run has blocks that are not just those of the whole or of one before."""
    known = {tuple(run.scope()["name"])}
    found: list[list[Scope]] = []
    for family in families:
        found.append([])
        for scope in family:
            try:
                names = tuple(run.scope(**scope.options)["name"])
            except ScopeError:
                continue
            if names not in known:
                known.add(names)
                found[-1].append(scope)
    return found


def _equally_many(run: Run) -> bool:
    return run.probes["task"].value_counts().nunique() == 1


def _layers(run: Run) -> list[int]:
    """Layers, where there are several."""
    layers = sorted({int(layer) for layer in run.blocks["layer"].dropna()})
    return layers if len(layers) > 1 else []


def _sides(run: Run) -> list[str]:
    return [str(side) for side in dict.fromkeys(run.blocks["side"])]


def _groups(run: Run) -> list[str]:
    """Groups, and components where there are several."""
    components = list(dict.fromkeys(run.blocks["component"].astype(str)))
    groups = [name for name in dict.fromkeys(run.blocks["group"].astype(str)) if name != "all"]
    return [*groups, *(name for name in components if len(components) > 1 and name not in groups)]


def _modules(run: Run) -> list[str]:
    return [name for name in dict.fromkeys(run.blocks["module"].astype(str)) if name not in ("all", *_groups(run))]
