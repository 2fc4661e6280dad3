"""What can be done about a measured run, in sentences: the advice that was tried, or what its cells suggest.

Not here: what a run says (`conclusions`), and the advice that commands write (`interference.advice`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from interference.advice.grouping import Grouping
from interference.advice.tried import Trial
from interference.report.conclusions import (
    ROUGH,
    clear,
    failed_null,
    judged_pairs,
    rough_null,
    short_of_groups,
    stationary,
    without_signal,
)
from interference.report.summary import RunSummary
from interference.run import remarks
from interference.run.phrases import counted, several
from interference.statistics.significance import LEAST, Verdict

LEARNED = 0.05
"""A mean loss (nats per token) below which a task has little left to learn."""
FAR = 10
"""How many times the units there are may be said to suffice: what is farther off is a guess."""


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
    learned = [task for task in without_signal(run) if loss[task] < LEARNED]
    noisy = [task for task in without_signal(run) if loss[task] >= LEARNED]
    found = []
    if few := short_of_groups(run):
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
    judged = judged_pairs(run)["verdict"]
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
