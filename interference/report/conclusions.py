"""What a measured run says, in sentences: do the tasks interfere, which and where, is it real, what can be done."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from interference.advice.grouping import Grouping
from interference.advice.tried import Trial
from interference.blocks import Scope
from interference.report.scopes import BASE, PAPER, WHOLE, layer_of, part, words_of
from interference.report.summary import RunSummary, counts, rows
from interference.run import remarks
from interference.run.phrases import cell, counted, interval, number, sentence, several
from interference.statistics.significance import LEAST, NOT_JUDGED, Verdict
from interference.statistics.uncertainty import LEAST_UNITS

ROUGH = 1.0
"""A split-half null wider than this makes the sizes of a row's cells rough; twice as wide, it fails."""
LEARNED = 0.05
"""A mean loss (nats per token) below which a task has little left to learn."""
FAR = 10
"""How many times the units there are may be said to suffice: what is farther off is a guess."""


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
    if not any(len(_judged(run)) for run in runs):
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


@dataclass(frozen=True)
class Suggestion:
    """What can be done: `what`, the part `of` it that is one run's, and `why`, without a full stop."""

    what: str
    of: str = ""
    why: str = ""

    @property
    def words(self) -> str:
        """The sentence about one run."""
        return f"{self.what}{self.of}{self.why}."


def advice(run: RunSummary, grouping: Grouping | None, alone: bool = True, trial: Trial | None = None) -> list[str]:
    """What can be done about one run, in sentences."""
    return [found.words for found in suggestions(run, grouping, alone, trial)]


def advice_of_all(
    runs: Sequence[RunSummary], groupings: Sequence[Grouping | None], tried: Mapping[str, Trial] | None = None
) -> list[str]:
    """What can be done about several runs: each thing once, with what it is about in which run."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for run, grouping in zip(runs, groupings, strict=True):
        for one in suggestions(run, grouping, len(runs) == 1, (tried or {}).get(run.label)):
            found.setdefault((one.what, one.why), {}).setdefault(one.of, []).append(run.label)
    said = []
    for (what, why), parts in found.items():
        everywhere = len(parts) == 1 and len(next(iter(parts.values()))) == len(runs)
        each = [of if everywhere else f"{of} ({several(labels)})".lstrip() for of, labels in parts.items()]
        gap = "" if not what or what.endswith(" ") or everywhere else " "
        said.append(f"{what}{gap}{'; '.join(each)}{why}.")
    return said


def suggestions(
    run: RunSummary, grouping: Grouping | None, alone: bool = True, trial: Trial | None = None
) -> list[Suggestion]:
    """What can be done about one run, the most useful first; `alone`: the report has no other run.

    Where its advice was tried, what came of the trial stands in place of the bare advice against conflict.
    """
    if len(run.signal) == 1:
        return [Suggestion("Measure at least two tasks: interference is between tasks")]
    against = _against_conflict(run, grouping, alone) if trial is None else _tried(trial)
    found = [*against, *_against_silence(run), *_against_noise(run)]
    if forced := stationary(run):
        found.append(
            Suggestion(
                "Measure an earlier checkpoint, or several along the training: here conflict is forced for ",
                several(forced),
                " because the summed loss is nearly stationary",
            )
        )
    if zero := run.run.zero_blocks():
        found.append(
            Suggestion(
                "",
                f"{len(zero)} of {counted(len(run.run.blocks), 'block')}",
                f" have zero gradients and add nothing ({remarks.ZERO}): measure after a few steps of training to see "
                "them",
            )
        )
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


def _few(run: RunSummary) -> list[str]:
    """Tasks without signal because they have too few groups to tell one."""
    return [task for task in unheard if task in run.few] if (unheard := silent(run)) else []


def _quiet(run: RunSummary) -> list[str]:
    """Tasks without signal though they have enough groups."""
    few = _few(run)
    return [task for task in silent(run) if task not in few]


def _too_few(run: RunSummary) -> str:
    """Why the tasks of `_few` have no signal."""
    return remarks.few({task: run.few[task] for task in _few(run)}, run.run.probes) or ""


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
    judged = _judged(run)
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
    if not _few(run):
        return f"none of the {counted(len(run.signal), 'task')} has a gradient that rises above its own noise"
    quiet = _quiet(run)
    return (f"no gradient of {several(quiet)} rises above its own noise; " if quiet else "") + _too_few(run)


def _judged(run: RunSummary) -> pd.DataFrame:
    """The pairs of tasks that have a verdict."""
    return run.pairs[~run.pairs["verdict"].isin([*NOT_JUDGED, remarks.AT_ODDS])]


def _unjudged(run: RunSummary) -> str:
    """Why no pair has a verdict, where some task has a signal."""
    carried = list(dict.fromkeys(run.pairs.loc[run.pairs["verdict"] == Verdict.CARRIED.value, "affected"]))
    why = [f"a few examples carry {several(carried)}"] if carried else []
    if (run.pairs["verdict"] == remarks.AT_ODDS).any():
        why.append("values of I do not bear out what is found of Delta")
    if quiet := _quiet(run):
        why.append(f"no gradient of {several(quiet)} rises above its own noise")
    return ", and ".join(why) + (f"; {_too_few(run)}" if _few(run) else "")


def _reach(run: RunSummary) -> float:
    """The median half-width of the intervals of rows with signal: about the least I that would be seen, or NaN."""
    judged = _judged(run)
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
        if quiet := _quiet(run):
            found.append(f"{several(quiet)} cannot be judged: no gradient there rises above its own noise.")
        if _few(run):
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


def _against_conflict(run: RunSummary, grouping: Grouping | None, alone: bool) -> list[Suggestion]:
    conflicts = clear(run, Verdict.CONFLICT)
    if conflicts.empty:
        return []
    if grouping is not None and len(grouping.split) > 1:
        groups = "; ".join(several(names) for names in grouping.split)
        return [Suggestion("Split the tasks, with one adapter for each group: ", groups)]
    hurting = conflicts["stepped"].value_counts()
    others = counted(len(run.signal) - 1, "other task")
    first = Suggestion(
        "A step of ",
        f"{hurting.index[0]} hurts {hurting.iloc[0]} of {others}",
        ": lower its share of the training, or train it separately",
    )
    if alone and run.kind == "LoRA":
        mixlora = (
            "A MixLoRA of the same tasks gives each example its own factors; measure one, and compare it with this run"
        )
        return [first, Suggestion(mixlora)]
    return [first]


def _tried(trial: Trial) -> list[Suggestion]:
    """What came of the advice by training."""
    said = (trial.words, trial.weights_withdrawn, trial.best)
    return [Suggestion(words.rstrip(".")) for words in said if words]


def _against_silence(run: RunSummary) -> list[Suggestion]:
    """Tasks that cannot be judged: learned already, or too noisy."""
    loss = run.signal["loss"]
    learned = [task for task in _quiet(run) if loss[task] < LEARNED]
    noisy = [task for task in _quiet(run) if loss[task] >= LEARNED]
    found = []
    if few := _few(run):
        found.append(Suggestion("Probe more of ", several(few), f": {LEAST} independent groups are the least"))
    if learned:
        known = f": no signal and a loss below {LEARNED} nats per token, so already learned, or known before training"
        why = f"{known}; an earlier checkpoint shows which"
        found.append(Suggestion("", several(learned), why))
    if noisy:
        why = f": no signal; probe more {_noun(run)} (now {_units(run, noisy)} per task)"
        found.append(Suggestion("", several(noisy), f"{why}, and check that those of a task ask for one thing"))
    return found


def _against_noise(run: RunSummary) -> list[Suggestion]:
    """More units, where sizes are rough or nothing is clear."""
    found = []
    wide = [*failed_null(run), *rough_null(run)]
    if wide:
        width = (run.null["high"] - run.null["low"])[wide]
        counts = _independent(run)
        wanted = (counts[wide] * (width / ROUGH) ** 2).max()
        enough = f"; about {_rounded(wanted)} would do" if wanted <= FAR * counts.max() else ""
        why = ": noise alone moves the cells of such a row by half of the task's own step or more"
        found.append(
            Suggestion(
                f"Probe more {_noun(run)} of ", f"{several(wide)} (now {_units(run, wide)} per task{enough})", why
            )
        )
    judged = _judged(run)["verdict"]
    if len(judged) and not judged.isin([Verdict.CONFLICT.value, Verdict.SYNERGY.value]).any() and not wide:
        more = f"four times as many {_noun(run)} per task"
        found.append(Suggestion(f"No pair is clear: {more} would halve every interval"))
    return found


def _independent(run: RunSummary) -> "pd.Series[int]":
    """What intervals are of, by task: groups, where some of its units share one, else units."""
    probes = run.run.probes
    return probes.groupby("task", sort=False)["group"].nunique() if "group" in probes else run.signal["units"]


def _noun(run: RunSummary) -> str:
    """What more of narrows an interval."""
    return "groups" if (_independent(run) < run.signal["units"]).any() else "examples"


def _units(run: RunSummary, tasks: list[str]) -> str:
    counts, noun = _independent(run)[tasks], "groups" if _noun(run) == "groups" else "units"
    return f"{counts.min()} {noun}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()} {noun}"


def _rounded(count: float) -> int:
    """Up to two significant digits."""
    unit = 10 ** max(int(math.log10(max(count, 1))) - 1, 0)
    return math.ceil(count / unit) * unit
