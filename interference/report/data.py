"""ReportData: every number and sentence of a report, as plain values. Nothing is drawn here, nothing written."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from interference.advice.grouping import RESAMPLES, STABLE, Grouping, group
from interference.advice.tried import Trial
from interference.blocks import Scope
from interference.errors import ScopeError
from interference.prediction import Lookahead
from interference.report import conclusions, suggestions
from interference.report.findings import changes, depth
from interference.report.findings.changes import Compared
from interference.report.findings.dependence import dependences
from interference.report.findings.drivers import drivers
from interference.report.findings.excerpts import Excerpts
from interference.report.findings.horizon import horizons
from interference.report.findings.predicts import Judged, validations
from interference.report.findings.trying import trials
from interference.report.scopes import BASE, WHOLE, Choice, Detail, contents, key_of, words_of
from interference.report.summary import RunSummary, cells, counts, summarise
from interference.run import Run
from interference.run.comparison import other_examples
from interference.run.phrases import sentence, several
from interference.run.remarks import examples as examples_reached
from interference.run.remarks import reached
from mixlora.common.enums import member
from mixlora.common.progress import Progress, silent

CONVENTIONS = [
    "Rows are the affected task i, whose loss is read; columns the stepped task j, whose gradient is followed. Every "
    "ordered pair of two tasks counts as one.",
    "Delta_j L_i is the first-order fall of the loss of a unit of i (mean cross-entropy over its supervised tokens, "
    "nats per token) when a unit of j takes a gradient step of length 1, averaged over pairs of units; positive helps. "
    "Self pairs are left out.",
    "I_ij is Delta_j L_i relative to Delta_i L_i, the effect of i's own step: 1 helps i as much as its own step, 0 has "
    "no effect, below 0 undoes i's progress.",
    "Sentences, layers and groups are about the ratio of means with pairs leave-one-out; of the three reductions only "
    "its intervals have the coverage they claim. The paper's Eq. 3 is the mean of ratios.",
    "Intervals are 95% bootstrap intervals over the units of both tasks, or over whole groups where units have them.",
    "Verdicts are about Delta_j L_i, whatever metric is shown. Conflict (below 0) and synergy (above 0): the interval "
    "excludes 0, and Benjamini-Hochberg holds the false discovery rate at 5%. No signal: the affected task's own "
    "Delta_i L_i is not above 0 beyond its interval. Carried: a few units have nearly all of the affected task's "
    "gradient, so Delta has no interval in its row. Unclear: all other cells.",
    "A cell says 'at odds' in place of its verdict where the value shown has the other sign, or an interval that "
    "contains 0.",
    "The split-half null is I of one half of a task's units against its other half, which should be 1. Its interval "
    "contains 95% of 200 random splits and shows how far noise alone moves a cell, with half the units.",
    "Balance is the sum over tasks j of <mean g_i, mean g_j>, relative to |mean g_i|^2: near 0 the summed loss is "
    "stationary for task i, and its other cells must average below 0.",
    "A difference is the second run minus the first, both resampled on the same units.",
    "A unit's share of a cell is its term of Delta_j L_i relative to the sum: the shares of one side sum to 1.",
    "The distance of two tasks in a group tree is 1 minus the mean of I_ij and I_ji, clipped to [-1, 1]; linkage is by "
    f"average. Groups are only advised if {RESAMPLES} resamples of the matrix find the same ones: their mean adjusted "
    f"Rand index is at least {STABLE}.",
]


SAID = 4
"""Differences that the headline tells; all are among `differences`."""


@dataclass(frozen=True)
class ReportData:
    """A report as plain values: str, int, float, None, list, dict; numbers that do not exist are None.

    Attributes:
        title: title of the page.
        made: when, ISO 8601 in UTC.
        versions: of this package and of what computed the runs.
        headline: sentences, the first is the answer.
        advice: what can be done.
        conventions: how to read the numbers.
        left_out: what did not fit or could not be had, with numbers.
        tasks: of all runs, by first appearance: rows and columns of every matrix.
        scopes: key, layers, modules, side.
        choices: key, metric, pairs, reduce.
        runs: what each run says; `cells` is {scope key: {choice key: columns over all pairs of tasks, row by row}}.
        differences: pairs of runs, the second minus the first, on the same examples.
        trajectory: cells of runs that are checkpoints of one training.
        dependence: what is assumed and found of units that are not independent, once for all runs of which it is the
            same; see `findings.dependence`.
        horizons: of each run that has a lookahead, how its I ranks what real steps did: label, tasks, words, recipe,
            points (steps, Spearman within rows and overall, verdicts) and matrices (steps, rows of cells).
        validations: of each run that a validation judges: label, step, horizons, recipe, and truths (kind, words, and
            by horizon: counts, ceiling, and rows of name and cells).
        trials: of each run whose advice was tried: label, tasks, how (sentences), and rows of arm, groups, adapters,
            parameters, cells (loss, right, against_random, against_together) and losses by task.
        reached: what reached the model, once for all runs that say the same: labels, sentences (said), and an example a
            task: task, id, tokens, supervised, cut, pieces [text, whether it is supervised].
    """

    title: str
    made: str
    versions: dict[str, str]
    headline: list[str]
    advice: list[str]
    conventions: list[str]
    left_out: list[str]
    tasks: list[str]
    scopes: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    trajectory: list[dict[str, Any]]
    reached: list[dict[str, Any]]
    dependence: list[dict[str, Any]]
    horizons: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    trials: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as one dict."""
        return asdict(self)

    def to_json(self) -> str:
        """Everything as JSON, numbers to six significant digits."""
        return json.dumps(_rounded(self.to_dict()), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def report(
    runs: Mapping[str, Run],
    detail: Detail | str | None = None,
    *,
    replicates: int = 1000,
    examples: bool = True,
    sources: Mapping[str, str] | None = None,
    ahead: Mapping[str, Lookahead] | None = None,
    judged: Mapping[str, Judged] | None = None,
    tried: Mapping[str, Trial] | None = None,
    progress: Progress = silent,
) -> ReportData:
    """The report of some runs.

    Args:
        runs: {label: run}, shown and compared in this order, except that checkpoints of one training, known by the
            steps in their labels or meta, come in the order of these, within the places that they take together.
        detail: "small" and "full" measure fewer and more scopes and choices than is usual for the runs' size.
        replicates: resamples of every interval.
        examples: read the data again that the runs name, to show the examples behind the clearest cells.
        sources: {label: where the run lies}.
        ahead: {label: the lookahead from the run's checkpoint}, where there is one.
        judged: {label: the validation that judges the run, and its step there}, where there is one.
        tried: {label: the trial of the run's advice}, where there is one.
        progress: called with what is being done.

    Raises:
        ConfigError: if `detail` is none of its values, or `replicates` is below 2.
        ScopeError: if there is no run, or a task has a single unit.
        MeasurementError: if every gradient of a run is zero.
    """
    if not runs:
        raise ScopeError("there is no run to report on; name at least one")
    chosen = None if detail is None else member(Detail, detail, "detail")
    summaries, left_out = _summaries(depth.in_step_order(runs), chosen, replicates, progress)
    groupings = [group(run.tables[WHOLE][BASE], run.draws) for run in summaries]
    details = [conclusions.details(run, grouping) for run, grouping in zip(summaries, groupings, strict=True)]
    compared, unlike = _compared(summaries, replicates, progress)
    tasks = list(dict.fromkeys(task for run in summaries for task in run.run.tasks))
    excerpts = Excerpts() if examples else None
    room, sources = depth.ROWS // len(runs), sources or {}
    shown = [
        _run(run, grouping, tasks, sources.get(run.label), excerpts, room, left_out)
        for run, grouping in zip(summaries, groupings, strict=True)
    ]
    trajectory, cut = depth.trajectory(summaries)
    if cut:
        left_out.add("", f"Along the training, the {cut} pairs of tasks with the smallest values are not shown")
    data = ReportData(
        title="Task interference: " + several([run.label for run in summaries]),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(summaries),
        headline=[*_headline(summaries, details), *(found.words for found in compared[:SAID]), *unlike[:SAID]],
        advice=_advice(summaries, groupings, tried or {}),
        conventions=[*CONVENTIONS, f"Every interval comes from {replicates} resamples."],
        left_out=left_out.all(),
        tasks=tasks,
        scopes=[{"key": key_of(scope), **words_of(scope)} for scope in _scopes(summaries)],
        choices=[{"key": choice.key, **vars(choice)} for choice in _choices(summaries)],
        runs=shown,
        differences=[_difference(found, tasks) for found in compared],
        trajectory=trajectory,
        reached=_reached(summaries),
        dependence=dependences(summaries),
        horizons=horizons(summaries, ahead or {}),
        validations=validations(summaries, judged or {}),
        trials=trials(summaries, tried or {}),
    )
    for run, said in zip(data.runs, details, strict=True):
        run["notes"] = [*(said if len(runs) > 1 else []), *run["notes"]]
        if run["grouping"] is not None and (withdrawn := _withdrawn((tried or {}).get(run["label"]))):
            run["grouping"]["words"] += f" {withdrawn}"
    return ReportData(**{name: _plain(value) for name, value in vars(data).items()})


def _withdrawn(trial: Trial | None) -> str:
    """Why a trial takes the advised groups back; "" where it does not."""
    outcome = None if trial is None else trial.outcome
    return "" if outcome is None or outcome.helps else outcome.words


def _summaries(
    runs: Mapping[str, Run], detail: Detail | None, replicates: int, progress: Progress
) -> tuple[list[RunSummary], "_Sentences"]:
    """The summaries of the runs, and sentences on what the page leaves out of them."""
    pages = {label: contents(run, detail, replicates, len(runs)) for label, run in runs.items()}
    left_out = _Sentences(len(runs))
    for label, page in pages.items():
        for said in page.left_out:
            more = "; detail full has more" if "matrices" in said and detail is not Detail.FULL else ""
            left_out.add(label, f"Not measured: {said}{more}")
    return [summarise(label, run, pages[label], replicates, progress) for label, run in runs.items()], left_out


def _unlike(first: RunSummary, second: RunSummary, told: str) -> str:
    """That two runs have no paired difference, and why, which is `told` where their tasks are the same."""
    named = f"{first.label} and {second.label}"
    if set(first.run.tasks) == set(second.run.tasks):
        return f"{named} have no paired difference: {told}."
    return (
        f"{named} were measured on different tasks, so their difference has no paired interval: compute both with "
        "the same tasks, samples and seed to compare them."
    )


def _compared(summaries: Sequence[RunSummary], replicates: int, progress: Progress) -> tuple[list[Compared], list[str]]:
    """The differences of runs on the same examples, and sentences on those that are not."""
    pairs, found, unlike = changes.partners(summaries), [], []
    for done, (a, b) in enumerate(pairs[: changes.MOST]):
        first, second = summaries[a], summaries[b]
        if told := other_examples(first.run, second.run):
            unlike.append(_unlike(first, second, told))
        else:
            try:
                found.append(changes.difference(summaries, (a, b), replicates, min(len(pairs), changes.MOST)))
            except ScopeError as error:  # their groups leave nothing that is independent in both
                unlike.append(f"{first.label} and {second.label} have no paired difference: {error}.")
        progress("differences", done + 1, min(len(pairs), changes.MOST))
    return found, unlike


def _run(
    run: RunSummary,
    grouping: Grouping | None,
    tasks: Sequence[str],
    source: str | None,
    excerpts: Excerpts | None,
    room: int,
    left_out: "_Sentences",
) -> dict[str, Any]:
    """One run of the report."""
    profile, cut = depth.profile(run, room)
    if cut:
        left_out.add(run.label, f"Along the layers, the {cut} pairs of tasks with the smallest values are not shown")
    config = run.run.meta.get("config") or {}
    base = {scope: found[BASE] for scope, found in run.tables.items() if BASE in found}
    names = ["effective", "squared_norm", "unit_noise", "snr", "reliability", "balance"]
    return {
        "label": run.label,
        "source": source or str(config.get("out") or ""),
        "kind": run.kind,
        "blocks": len(run.run.blocks),
        "units": run.signal["units"].to_dict(),
        "loss": run.signal["loss"].to_dict(),
        "cells": {
            key_of(scope): {choice.key: cells(table, tasks) for choice, table in found.items()}
            for scope, found in run.tables.items()
        },
        "counts": {key_of(scope): counts(table) for scope, table in base.items()},
        "null": run.null.rename(columns={"mean": "value"}).reset_index().to_dict("records"),
        "signal": run.signal[names].reset_index().to_dict("records"),
        "profile": profile,
        "grouping": None if grouping is None else asdict(grouping),
        "drivers": _drivers(run, excerpts, left_out),
        "notes": conclusions.notes(run),
    }


def _reached(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """What reached the model in each run that tells it; runs of the same data and template stand together."""
    found: list[dict[str, Any]] = []
    for run in runs:
        said = [sentence(clause) for clause in reached(run.run.meta)]
        own = {"said": said, "examples": examples_reached(run.run.meta)}
        same = next((other for other in found if {**other, "labels": 0} == {**own, "labels": 0}), None)
        if same is not None:
            same["labels"].append(run.label)
        elif any(own.values()):
            found.append({"labels": [run.label], **own})
    return found


def _drivers(run: RunSummary, excerpts: Excerpts | None, left_out: "_Sentences") -> list[dict[str, Any]]:
    """The clearest cells with the examples behind them."""
    found: list[dict[str, Any]] = []
    missing = total = 0
    for driver in drivers(run):
        shown = []
        for side, row, share in driver.units:
            said = {"prompt": "", "answer": "", "thumbnail": None} if excerpts is None else excerpts.of(run.run, row)
            missing, total = missing + (not said["answer"]), total + 1
            shown.append({"side": side, **said, "source": str(run.run.probes["source"].iloc[row]), "share": share})
        found.append({"affected": driver.affected, "stepped": driver.stepped, "value": driver.value, "examples": shown})
    if missing and excerpts is None:
        left_out.add(run.label, f"The texts and pictures of {total} examples behind the clearest cells, as requested")
    elif missing:
        left_out.add(
            run.label,
            f"The texts and pictures of {missing} of {total} examples behind the clearest cells: their data are not "
            "where the run says, or have changed since",
        )
    return found


def _headline(runs: Sequence[RunSummary], details: Sequence[Sequence[str]]) -> list[str]:
    """Of one run, the answer and its details; of several, one answer, then each run's: details are among its notes."""
    if len(runs) == 1:
        return [conclusions.answer(runs[0]), *details[0]]
    return [conclusions.overview(runs), *(f"{run.label}: {conclusions.answer(run)}" for run in runs)]


def _advice(runs: Sequence[RunSummary], groupings: Sequence[Grouping | None], tried: Mapping[str, Trial]) -> list[str]:
    said = suggestions.advice_of_all(runs, groupings, tried)
    for first, second in ((runs[a], runs[b]) for a, b in changes.partners(runs)[: changes.MOST]):
        if not other_examples(first.run, second.run) and (warning := changes.unequal_loss(first, second)):
            said.append(f"{first.label} and {second.label}: {warning}.")
    return said


class _Sentences:
    """Sentences about runs; one that is true of all of them, or of a single one, names none."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._of: dict[str, list[str]] = {}

    def add(self, label: str, sentence: str) -> None:
        """Take in a sentence, without its full stop, about the run of that label; "" for the report itself."""
        self._of.setdefault(sentence, []).append(label)

    def all(self) -> list[str]:
        """The sentences, with the runs that they are about where those are not all."""
        return [
            f"{sentence}." if len(labels) == self._runs or labels == [""] else f"{several(labels)}: {sentence}."
            for sentence, labels in self._of.items()
        ]


def _versions(runs: Sequence[RunSummary]) -> dict[str, str]:
    """Of this package, and of what computed the runs: several where they differ."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, number in (run.run.meta.get("versions") or {}).items():
            found.setdefault(str(name), []).append(str(number))
    return {"task-interference": version("task-interference")} | {
        name: ", ".join(dict.fromkeys(numbers)) for name, numbers in found.items()
    }


def _scopes(runs: Sequence[RunSummary]) -> list[Scope]:
    return list(dict.fromkeys(scope for run in runs for scope in run.tables))


def _choices(runs: Sequence[RunSummary]) -> list[Choice]:
    found = [choice for run in runs for choices in run.tables.values() for choice in choices]
    return list(dict.fromkeys([BASE, *found]))


def _difference(found: Compared, tasks: Sequence[str]) -> dict[str, Any]:
    tables = {
        key_of(scope): {choice.key: cells(table, tasks, changes.COLUMNS) for choice, table in choices.items()}
        for scope, choices in found.tables.items()
    }
    return {"first": found.first, "second": found.second, "cells": tables, "words": found.words}


def _plain(value: Any) -> Any:
    """The value with numpy's numbers as Python's, and None for numbers that do not exist."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: Any) -> Any:
    """The value with every fraction to six significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
