"""Remarks: what a reader of a matrix needs wherever it is shown: thresholds, and clauses without capital and full stop.

Names in a clause are listed by whoever shows it: a terminal lists them otherwise than a page.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interference.statistics import uncertainty
from interference.statistics.estimand import METRICS, REDUCE, Reduce
from interference.statistics.layout import held_repeatedly, kept_apart
from interference.statistics.significance import LEAST
from mixlora.data import described

UNSTABLE = 0.05
"""A share of units with an own Delta at or below 0, beyond which means of ratios are unstable."""
NAMED = 3
"""Copies, units of each, pairs of tasks with groups in common, and tasks with few groups that are named."""
PLAIN_LOSS = "mean cross-entropy over supervised tokens of an example, nats per token"
"""How a run's meta names the loss that is measured unless the model, its trainer or the caller has another."""
STATIONARY = 0.25
"""A balance nearer 0 than this calls the summed loss stationary for a task."""
HARDLY = 0.05
"""A share of the squared length of AdamW's steps in hardly trained entries beyond which a remark says so."""
ZERO = "A's gradient is zero as long as B is at its initial zero"
"""Why blocks have zero gradients."""
AT_ODDS = "at-odds"
"""What stands in place of a verdict that the value shown does not bear out."""
_HALF = {False: "has", True: "have"}
_WHY = {
    Reduce.MEAN_OF_RATIOS: "units whose own Delta is near 0 dominate a mean of ratios; read the ratio of means",
    Reduce.MEDIAN_OF_RATIOS: "a median of ratios weighs all units alike, however small their own Delta; read the ratio "
    "of means",
}
_AVERAGED = "blocks whose own Delta is near 0 dominate a mean of blocks' values, but not the sum of blocks"


def unstable(table: pd.DataFrame) -> list[str]:
    """The affected tasks with too many units whose own Delta is at or below 0: means of ratios are unstable there."""
    cells = table[(table["nonpositive"] > UNSTABLE) & (table["affected"] != table["stepped"])]
    return list(dict.fromkeys(cells["affected"]))


def nonpositive(names: str) -> str:
    """That the ratios of `unstable` tasks have denominators at or below 0."""
    return f"more than {UNSTABLE:.0%} of the units of {names} have an own Delta at or below 0"


def stationary(signal: pd.DataFrame) -> list[str]:
    """The tasks of `Run.signal` for which the summed loss is nearly stationary, so that conflict is forced."""
    return list(signal.index[signal["balance"].abs() < STATIONARY])


def nearly_stationary(names: str) -> str:
    """That the summed loss is, for tasks of `stationary`."""
    return f"the summed loss is nearly stationary for {names}"


def also_trained(names: str) -> str:
    """That the adapter has other parameters than those of a run's blocks, its meta's "not_probed"."""
    return f"the adapter also trains {names}, which is not part of theta"


def plain_loss(meta: Mapping[str, Any]) -> bool:
    """Whether a run measured the mean cross-entropy over supervised tokens."""
    return str(meta.get("loss") or PLAIN_LOSS).startswith(PLAIN_LOSS)


def other_loss(meta: Mapping[str, Any]) -> str | None:
    """Which loss a run measured, by its meta; None where it is the plain one."""
    loss = meta.get("loss") or PLAIN_LOSS
    return None if loss == PLAIN_LOSS else f"the loss that was measured: {loss}"


def has_null(gram: np.ndarray, probes: pd.DataFrame) -> bool:
    """Whether every task of a run has enough units, or groups of them, for a split-half null.

    Args:
        gram: of the run.
        probes: the run's.
    """
    return uncertainty.can_split(gram, list(probes["task"]), list(probes["group"]) if "group" in probes else None)


def dependent(probes: pd.DataFrame) -> bool:
    """Whether some units of `Run.probes` are known to share a group."""
    return "group" in probes and bool(probes["group"].duplicated().any())


def dependence(probes: pd.DataFrame) -> str | None:
    """What the units of `Run.probes` share, or that nothing is known of it; None where no two share a group."""
    if "group" not in probes:
        return (
            "the run has no groups, so its units were treated as independent: where examples share pictures or "
            "documents, intervals are too narrow; compute it again"
        )
    if not dependent(probes):
        return None
    own = probes.drop_duplicates(["task", "group"])
    counts = probes["task"].value_counts(sort=False)
    groups = own["task"].value_counts(sort=False)
    few = f"{len(probes)} units form {probes['group'].nunique()} groups"
    least = str((groups / counts).idxmin())
    tasks = f"; {least} has the fewest for its size: {groups[least]} groups for {counts[least]} units"
    shared = own.groupby("group")["task"].nunique()
    several = int((shared > 1).sum())
    both = f", {several} of them in more than one task" if several else ""
    return f"{few}{both}{tasks if len(own) < len(probes) else ''}; intervals and verdicts are based on groups"


def copied(gram: np.ndarray, probes: pd.DataFrame) -> str | None:
    """That examples come more than once, and which, by a run's Gram and its probes; None where none does."""
    copies = held_repeatedly(gram)
    if not copies:
        return None
    names = [f"{task} {ids}" for task, ids in zip(probes["task"], probes["ids"], strict=True)]
    shown = [" = ".join(names[row] for row in rows[:NAMED]) + (" = ..." if rows[NAMED:] else "") for rows in copies]
    more = f", and {len(copies) - NAMED} more" if copies[NAMED:] else ""
    count = sum(map(len, copies))
    return (
        f"{count} units are copies of {len(copies)} examples, by their gradients; the copies of one example form one "
        f"group{_apart(gram, probes)}: {'; '.join(shown[:NAMED])}{more}"
    )


def _apart(gram: np.ndarray, probes: pd.DataFrame) -> str:
    """Which copies are no group."""
    labels = list(probes["group"]) if "group" in probes else range(len(probes))
    units = kept_apart(gram, list(probes["task"]), labels)
    if not units:
        return ""
    tasks = ", ".join(dict.fromkeys(probes["task"].iloc[units]))
    return f", but for {len(units)} units of {tasks}, which would leave a task a single group"


def too_few(gram: np.ndarray, probes: pd.DataFrame) -> dict[str, int]:
    """The tasks with too few units, or groups of them, for an interval of own Delta: {task: how many it has}.

    Args:
        gram: of the scope.
        probes: the run's.
    """
    return uncertainty.too_few(gram, list(probes["task"]), list(probes["group"]) if "group" in probes else None)


def few(counts: Mapping[str, int], probes: pd.DataFrame) -> str | None:
    """That the tasks of `too_few` have no signal for want of groups; None where there is no such task."""
    if not counts:
        return None
    units = probes["task"].value_counts()
    each = [f"{task} has {count} {'units' if count == units[task] else 'groups'}" for task, count in counts.items()]
    more = f" (and {len(each) - NAMED} more)" if each[NAMED:] else ""
    return (
        f"{', '.join(each[:NAMED])}{more}, and an interval of own Delta takes {LEAST}: no signal means there "
        "that none can be told, not that there is none; probe more that are independent"
    )


def reduced_by(reduce: str | None) -> str:
    """How units become one I, in a word, where a reduction is named or, by None, is not."""
    return reduce or REDUCE.value


def shown_verdicts(table: pd.DataFrame) -> pd.Series:
    """The verdict to show beside each value of a table: AT_ODDS where the value does not bear its verdict out."""
    return table["verdict"].where(table["at_odds"] == "", AT_ODDS) if "at_odds" in table else table["verdict"]


def carried(
    carriers: Mapping[str, Sequence[Sequence[int]]], probes: pd.DataFrame, meta: Mapping[str, Any]
) -> list[str]:
    """Which tasks a few examples carry, and which examples, by `Run.carriers` and a run's own; one clause per task."""
    ids, found = list(probes["ids"]), []
    for task, groups in carriers.items():
        named = [
            ", ".join(str(ids[row]) for row in rows[:NAMED]) + (", ..." if rows[NAMED:] else "") for rows in groups
        ]
        more = f"; and {len(groups) - NAMED} more" if groups[NAMED:] else ""
        found.append(
            f"{task} is {carried_words(groups, meta)} ({'; '.join(named[:NAMED])}{more}), which "
            f"{_HALF[len(groups) > 1]} half of the squared gradient norms of its {int((probes['task'] == task).sum())} "
            "units: its row has no verdicts and no intervals of Delta, as other examples may say otherwise; look at "
            "these, and probe more"
        )
    return found


def scarce(table: pd.DataFrame, carriers: Collection[str] = ()) -> str | None:
    """That own Delta of tasks has no interval because few units lead it; None where there is no such task."""
    own = table[(table["affected"] == table["stepped"]) & table["low"].isna() & table["value"].notna()]
    tasks = [task for task in own["affected"] if task not in carriers]
    if not tasks:
        return None
    return (
        f"own Delta of {', '.join(tasks)} has no interval, because few units dominate it (see effective) and no "
        "interval would cover it; verdicts and the intervals of other cells hold"
    )


def carried_words(carriers: Sequence[Sequence[int]], meta: Mapping[str, Any]) -> str:
    """What a cell says in place of a verdict where a few examples, units or groups of them carry the affected task."""
    single = "example" if _unit(meta) == "one example" else "unit"
    noun = "group" if any(len(rows) > 1 for rows in carriers) else single
    return f"carried by {len(carriers)} {noun}{'' if len(carriers) == 1 else 's'}"


def opposed(
    table: pd.DataFrame, metric: str = "interference", reduce: str | None = None, aggregate: str | None = None
) -> str | None:
    """That cells have no verdict because their value does not bear it out, and why; None where there is no such cell.

    Args:
        table: of `Run.table`.
        metric: metric of the table.
        reduce: how units became I; None for the default.
        aggregate: how blocks became one matrix; None for their sum.
    """
    against, across = ((table["at_odds"] == how).sum() for how in ("sign", "interval"))
    if not against + across:
        return None
    name = "I" if metric == "interference" else metric
    even = f"{METRICS[metric].even:g}"
    side = "has the other sign than Delta" if even == "0" else f"lies on the other side of {even} than Delta says"
    parts = {
        f"in {_cells(against)} {name} {side}": against,
        f"in {_cells(across)} the interval of {name} contains {even}, but that of Delta excludes 0": across,
    }
    where = ", and ".join(part for part, count in parts.items() if count)
    said = f"{where}: no verdict is shown there, because verdicts are about Delta"
    why = _AVERAGED if aggregate == "mean" else _WHY.get(Reduce(reduced_by(reduce)))
    return f"{said}; {why}" if metric == "interference" and why else said


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def other_units(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """That the units of two runs are of other sizes, by their meta; None where they are not, or it is not known."""
    sizes = [_unit(meta) for meta in (first, second)]
    if sizes[0] == sizes[1]:
        return None
    return f"a unit is {sizes[0]} in one run and {sizes[1]} in the other; compute both with the same unit size"


def other_data(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """That the data of two runs whose units keep no content differ; None where they do not, or it is not known.

    Their fingerprints also depend on how text became tokens, and tell only where that was the same.
    """
    data = [_mapping(meta.get("data")) for meta in (first, second)]
    known = [one.get("fingerprint") for one in data]
    if None in known or known[0] == known[1] or _processing(first) != _processing(second):
        return None
    return (
        "the runs' examples have the same names and other content (another data fingerprint): they changed in between; "
        "compute both on the same"
    )


def _processing(meta: Mapping[str, Any]) -> list[Any]:
    """What a run tells of how its text became tokens: template, day, length, and the base, whose tokenizer it is."""
    template = _mapping(_mapping(meta.get("data")).get("template"))
    length = _mapping(_mapping(meta.get("config")).get("probe")).get("max_length")
    base = _mapping(meta.get("fingerprints")).get("base weights")
    return [template.get("text"), template.get("training"), template.get("day"), length, base]


def _unit(meta: Mapping[str, Any]) -> str:
    config = meta.get("config")
    if not isinstance(config, Mapping):
        return f"one {meta.get('unit') or 'example'}"
    probe = config.get("probe")
    size = probe.get("unit_size", 1) if isinstance(probe, Mapping) else 1
    return "one example" if size == 1 else f"the mean of {size} examples"


def other_blocks(first: Collection[str], second: Collection[str]) -> str | None:
    """That two runs measured different blocks, by their names; None where they are the same."""
    shared = len({*first} & {*second})
    if shared == len(first) == len(second):
        return None
    return (
        f"the runs measured different blocks ({len(first)} and {len(second)}, {shared} of them the same), so the "
        "parameters compared differ; name layers and modules that both have, or compute both alike"
    )


def reached(meta: Mapping[str, Any]) -> list[str]:
    """What of a run's data reached the model, by its meta: template; what is skipped, cut, not read."""
    return described.sentences(_mapping(meta.get("data")))


def examples(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One example per task as it reached the model, by a run's meta; none of an earlier version's.

    Each has task, id, tokens, supervised, cut, and pieces: [text, whether it is supervised].
    """
    found = []
    for task, own in _mapping(_mapping(meta.get("data")).get("examples")).items():
        pieces = own.get("pieces") if isinstance(own, Mapping) else None
        if not isinstance(pieces, list) or not all(isinstance(piece, list) and len(piece) == 2 for piece in pieces):
            continue
        shown = [[str(text), bool(mark)] for text, mark in pieces]
        counts = {key: own.get(key) if type(own.get(key)) is int else 0 for key in ("tokens", "supervised", "cut")}
        found.append({"task": str(task), "id": str(own.get("id", "")), "pieces": shown, **counts})
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def adam_step(meta: Mapping[str, Any]) -> list[str]:
    """That a run also has AdamW's step, what it divides by and leaves out, and where it is not reliable."""
    adam = meta.get("adam")
    if not isinstance(adam, Mapping):
        return []
    source, step, cold = (adam.get(key) for key in ("source", "step", "cold"))
    what = (
        "second moments estimated as the mean of the units' squared gradients, with equal weight for each task, as no "
        "optimizer's state was given: a training's own may differ"
        if source is None
        else f"the second moments in {source} after {step} steps"
    )
    found = [
        f"the run also has AdamW's step (space adam), which divides by the root of {what}; momentum, "
        "weight decay and clipping are left out"
    ]
    if isinstance(cold, int | float) and cold > HARDLY:
        found.append(
            f"{cold:.0%} of the squared length of AdamW's steps lies in entries that have hardly been trained, with "
            "second moments below a thousandth of the squared gradients here: AdamW's next step is far shorter there; "
            "measure a later checkpoint"
        )
    return found


def sketched(meta: Mapping[str, Any]) -> str | None:
    """That a run's gradients are sketches, and how much inner products err; None where they are whole."""
    size, error = meta.get("sketch"), meta.get("sketch_error")
    if not size:
        return None
    much = "" if error is None else f" by up to {error:.1%} of the product of the norms (standard error)"
    return (
        f"gradients are sketches of {size} sums per block: an inner product errs{much}, which intervals do not include"
    )
