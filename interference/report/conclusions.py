"""What a measured run says, in sentences: do the tasks interfere, which and where, is it real, what can be done."""

import math
from collections.abc import Sequence

import pandas as pd

from interference.advice.grouping import Grouping
from interference.blocks import Scope
from interference.report.scopes import BASE, PAPER, WHOLE, layer_of, part, words_of
from interference.report.summary import RunSummary, counts, rows
from interference.run import remarks
from interference.run.phrases import cell, counted, interval, number, sentence, several
from interference.statistics.significance import NOT_JUDGED, Verdict
from interference.statistics.uncertainty import LEAST_UNITS

ROUGH = 1.0
"""A split-half null wider than this makes the sizes of a row's cells rough; twice as wide, it fails."""


def answer(run: RunSummary) -> str:
    """Whether the tasks of a run interfere."""
    if len(run.signal) == 1:
        return f"{run.run.tasks[0]} is the only task here, so there is no pair of tasks that could interfere."
    return _verdict(run)


def overview(runs: Sequence[RunSummary]) -> str:
    """The answer for several runs in one sentence: how many pairs of tasks conflict in each."""
    each = [(len(clear(run, Verdict.CONFLICT)), len(run.pairs), run.label) for run in runs if len(run.signal) > 1]
    if not each:
        return "Every run has a single task, so there is no pair of tasks that could interfere."
    if not any(len(judged_pairs(run)) for run in runs):
        return "No run has a pair of tasks with a verdict: there is no signal, or a few examples carry the tasks."
    found = several([f"{conflicts} of {pairs} in {label}" for conflicts, pairs, label in each])
    first = "Tasks interfere" if any(conflicts for conflicts, _, _ in each) else "No interference shows"
    return f"{first}: pairs of tasks that conflict beyond noise are {found}."


def details(run: RunSummary, grouping: Grouping | None) -> list[str]:
    """Where in the model, how sure, and which tasks stand together."""
    if len(run.signal) == 1:
        return []
    found = [*_where(run), *_reality(run)]
    forced = stationary(run)
    if forced:
        found.append(
            sentence(
                f"{remarks.nearly_stationary(several(forced))}: the other cells of such a row must average below 0 "
                "whatever the tasks are; conflict is forced there, and the matrix shows only which tasks it falls on"
            )
        )
    if grouping is not None and len(grouping.split) > 1:
        found.append(grouping.words)
    return found


def notes(run: RunSummary) -> list[str]:
    """What a reader of one run's matrices must know."""
    found = []
    if tasks := remarks.unstable(run.pairs):
        why = remarks.nonpositive(several(tasks))
        found.append(sentence(f"{why}: means of ratios are unstable there, the ratio of means is not"))
    if told := remarks.opposed(run.tables[WHOLE][PAPER], reduce=PAPER.reduce):
        found.append(f"By the paper's mean of ratios, over all layers: {told}.")
    if told := remarks.opposed(run.tables[WHOLE][BASE]):
        found.append(f"By the ratio of means, over all layers: {told}.")
    if not remarks.has_null(run.run.gram(), run.run.probes):
        noun = "groups" if remarks.dependent(run.run.probes) else "units"
        found.append(f"There is no split-half null: it needs at least {LEAST_UNITS} {noun} of every task.")
    if run.empty:
        found.append(f"Every gradient is zero in {several([_place(scope) for scope in run.empty])}: nothing to show.")
    if sketch := remarks.sketched(run.run.meta):
        found.append(sentence(sketch))
    found += [sentence(clause) for clause in remarks.adam_step(run.run.meta)]
    if loss := remarks.other_loss(run.run.meta):
        found.append(sentence(loss))
    if other := run.run.meta.get("not_probed"):
        found.append(sentence(f"{remarks.also_trained(several(list(other)))} here"))
    return found


def stationary(run: RunSummary) -> list[str]:
    """Tasks for which the summed loss is nearly stationary; none where there is a single task."""
    return [] if len(run.signal) == 1 else remarks.stationary(run.signal)


def silent(run: RunSummary) -> list[str]:
    """Tasks without signal."""
    return list(dict.fromkeys(run.pairs.loc[run.pairs["verdict"] == Verdict.NO_SIGNAL.value, "affected"]))


def short_of_groups(run: RunSummary) -> list[str]:
    """Tasks without signal because they have too few groups to tell one."""
    return [task for task in unheard if task in run.few] if (unheard := silent(run)) else []


def without_signal(run: RunSummary) -> list[str]:
    """Tasks without signal though they have enough groups."""
    few = short_of_groups(run)
    return [task for task in silent(run) if task not in few]


def _too_few(run: RunSummary) -> str:
    """Why the tasks of `_few` have no signal."""
    return remarks.few({task: run.few[task] for task in short_of_groups(run)}, run.run.probes) or ""


def failed_null(run: RunSummary) -> list[str]:
    """Tasks with signal whose split-half null misses 1, reaches 0 or is very wide: their rows tell nothing of sizes."""
    null = run.null.drop(index=silent(run), errors="ignore")
    narrow = null["high"] - null["low"] <= 2 * ROUGH
    held = (null["low"] > 0) & (null["low"] <= 1) & (null["high"] >= 1) & narrow
    return list(null.index[~held])


def rough_null(run: RunSummary) -> list[str]:
    """Tasks with signal whose split-half null holds 1 but is wide."""
    null = run.null.drop(index=[*silent(run), *failed_null(run)], errors="ignore")
    return list(null.index[null["high"] - null["low"] > ROUGH])


def clear(run: RunSummary, verdict: Verdict) -> pd.DataFrame:
    """The cells of a verdict, the most extreme first."""
    cells = run.pairs[run.pairs["verdict"] == verdict.value]
    return cells.sort_values("value", ascending=verdict is Verdict.CONFLICT, kind="stable")


def _verdict(run: RunSummary) -> str:
    conflicts, synergies = clear(run, Verdict.CONFLICT), clear(run, Verdict.SYNERGY)
    count = f"{counted(len(run.pairs), 'pair')} of tasks"
    if len(silent(run)) == len(run.signal):
        return f"This probe is too small to tell whether the tasks interfere: {_unheard(run)}."
    judged = judged_pairs(run)
    if judged.empty:
        return f"No pair of tasks has a verdict: {_unjudged(run)}."
    if len(judged) < len(run.pairs):
        count = f"{counted(len(judged), 'pair')} of tasks that have a verdict"
    if conflicts.empty and synergies.empty:
        if failed := failed_null(run):
            return (
                f"None of the {count} conflicts or helps beyond noise, but the probe is too small to tell: "
                f"half of a task's units against its other half does not give 1 for {several(failed)}."
            )
        seen = _reach(run)
        limit = "" if math.isnan(seen) else f"; an I closer to 0 than about {number(seen)} would not show here"
        return f"None of the {count} conflicts or helps beyond noise{limit}."
    if conflicts.empty:
        best = cell(rows(synergies)[0])
        return f"No conflict beyond noise in {count}; {len(synergies)} help beyond noise, most: {best}."
    helped = "none helps" if synergies.empty else f"{len(synergies)} {'helps' if len(synergies) == 1 else 'help'}"
    verb = "conflicts" if len(conflicts) == 1 else "conflict"
    worst = cell(rows(conflicts)[0])
    said = f"{len(conflicts)} of {count} {verb} beyond noise and {helped}; worst: {worst}"
    return f"{said}; best: {cell(rows(synergies)[0])}." if len(synergies) else f"{said}."


def _unheard(run: RunSummary) -> str:
    """Why no task has a signal."""
    if not short_of_groups(run):
        return f"none of the {counted(len(run.signal), 'task')} has a gradient that rises above its own noise"
    quiet = without_signal(run)
    return (f"no gradient of {several(quiet)} rises above its own noise; " if quiet else "") + _too_few(run)


def judged_pairs(run: RunSummary) -> pd.DataFrame:
    """The pairs of tasks that have a verdict."""
    return run.pairs[~run.pairs["verdict"].isin([*NOT_JUDGED, remarks.AT_ODDS])]


def _unjudged(run: RunSummary) -> str:
    """Why no pair has a verdict, where some task has a signal."""
    carried = list(dict.fromkeys(run.pairs.loc[run.pairs["verdict"] == Verdict.CARRIED.value, "affected"]))
    why = [f"a few examples carry {several(carried)}"] if carried else []
    if (run.pairs["verdict"] == remarks.AT_ODDS).any():
        why.append("values of I do not bear out what is found of Delta")
    if quiet := without_signal(run):
        why.append(f"no gradient of {several(quiet)} rises above its own noise")
    return ", and ".join(why) + (f"; {_too_few(run)}" if short_of_groups(run) else "")


def _reach(run: RunSummary) -> float:
    """The median half-width of the intervals of rows with signal: about the least I that would be seen, or NaN."""
    judged = judged_pairs(run)
    return float(((judged["high"] - judged["low"]) / 2).median())


def _where(run: RunSummary) -> list[str]:
    """Where in the model the conflicts are, for every way of cutting it that was measured."""
    conflicts = {
        scope: counts(choices[BASE])[Verdict.CONFLICT.value] for scope, choices in run.tables.items() if BASE in choices
    }
    families = [
        [scope for scope in conflicts if scope == part(layer_of(scope)) != WHOLE],
        [part(name=name) for name in dict.fromkeys(run.run.blocks["group"])],
        [part(side=name) for name in dict.fromkeys(run.run.blocks["side"])],
    ]
    said = []
    for family in families:
        known = [scope for scope in family if scope in conflicts]
        if len(known) > 1 and any(conflicts[scope] for scope in known):
            most = sorted(known, key=lambda scope: -conflicts[scope])[:3]
            first = "most: " if len(most) < len(known) else ""
            said.append(first + ", ".join(f"{conflicts[scope]} in {_place(scope)}" for scope in most))
    return [f"Pairs that conflict when only one part of the model is measured: {'; '.join(said)}."] if said else []


def _place(scope: Scope) -> str:
    """A scope in words."""
    layers, side = [f"layer {layer}" for layer in scope.layers or ()], words_of(scope)["side"]
    return ", ".join([*layers, *(scope.modules or ()), *([] if side == "both" else [f"side {side}"])]) or "all layers"


def _reality(run: RunSummary) -> list[str]:
    """What noise alone does here."""
    found = []
    if len(silent(run)) < len(run.signal):
        if quiet := without_signal(run):
            found.append(f"{several(quiet)} cannot be judged: no gradient there rises above its own noise.")
        if short_of_groups(run):
            found.append(sentence(_too_few(run)))
    found += [f"{line}." for line in remarks.carried(run.run.carriers(), run.run.probes, run.run.meta)]
    if again := remarks.copied(run.run.gram(), run.run.probes):
        found.append(sentence(again))
    if run.null.empty:
        return found
    failed = failed_null(run)
    judged = run.null.drop(index=silent(run), errors="ignore")
    if failed:
        told = several([
            f"{row.Index} {number(row.mean)} {interval(row.low, row.high)}" for row in rows(judged.loc[failed])
        ])  # fmt: skip
        found.append(
            f"The probe is too small to tell how strong interference is on {several(failed)}: half of a task's units "
            f"against its other half should give 1, but gives {told}."
        )
    elif len(judged):
        widest = max(rows(judged), key=lambda row: row.high - row.low)
        width = widest.high - widest.low
        rough = width > ROUGH
        found.append(
            f"The check against noise holds{', but is wide' if rough else ''}: half of each task's units against its "
            f"other half gives 1 within its scatter. The scatter is widest for {widest.Index}, "
            f"{interval(widest.low, widest.high)}: {number(width)} from end to end"
            + ("; sizes in such a row are rough, but verdicts keep their meaning." if rough else ".")
        )
    return found
