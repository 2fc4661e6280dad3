"""Does it predict? Each prediction of a run's checkpoint beside what trainings did, where a validation tells."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interference.prediction import Validation, holding
from interference.report.summary import RunSummary
from interference.run.phrases import counted, sentence

Judged = tuple[Validation, int]
"""A validation, and the step of a run among its checkpoints."""


def validations(summaries: Sequence[RunSummary], judged: Mapping[str, Judged]) -> list[dict[str, Any]]:
    """What a report shows of the validations of its runs."""
    return [_shown(run.label, *judged[run.label]) for run in summaries if run.label in judged]


def _shown(label: str, found: Validation, step: int) -> dict[str, Any]:
    known = found.outcomes
    return {
        "label": label,
        "step": step,
        "horizons": known.horizons,
        "recipe": _followed(found, step),
        "truths": [_truth(found, step, str(kind)) for kind in known.kinds],
    }


def _followed(found: Validation, step: int) -> str:
    """The trainings and the predictions, in two sentences."""
    known = found.outcomes
    trainings, seeds = (
        counted(len(known.meta["sets"]) * len(known.seeds), "training"),
        counted(len(known.seeds), "seed"),
    )
    return (
        f"Truth: {trainings} ({seeds}) with {known.meta['share']} examples of each task in a step. Predictions: of the "
        f"checkpoint at step {step}, with other seeds. What is read was neither probed nor trained on by them."
    )


def _truth(found: Validation, step: int, kind: str) -> dict[str, Any]:
    """The answer, the ceiling and the scores by one kind of truth."""
    ceilings, table = found.ceilings(), found.table(parts=False)
    ceilings = ceilings[ceilings["truth"] == kind]
    table = table[(table["truth"] == kind) & (table["step"] == step)]
    truth = found.truth(kind)
    apart = truth[truth["affected"] != truth["stepped"]]
    return {
        "kind": kind,
        "words": sentence(holding.answer(holding.held(found, step, kind))),
        "counts": [_counts(apart[apart["horizon"] == horizon]) for horizon in found.outcomes.horizons],
        "agreement": [_cell(row) for row in ceilings.to_dict("records")],
        "ceiling": [None if pd.isna(value) else float(value) for value in ceilings["ceiling"]],
        "rows": [
            {"name": str(name), "cells": [_cell(row) for row in own.to_dict("records")]}
            for name, own in table.groupby("prediction", sort=False)
        ],
    }


def _counts(cells: pd.DataFrame) -> dict[str, int]:
    """How many pairs of tasks hurt, and how many helped."""
    return {"hurt": int((cells["verdict"] == "conflict").sum()), "helped": int((cells["verdict"] == "synergy").sum())}


def _cell(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: None if pd.isna(row[name]) else float(row[name]) for name in ("value", "low", "high")}
