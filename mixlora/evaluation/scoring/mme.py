"""MME (Fu et al., 2023): its subtasks, and their sums: perception, cognition, and both together."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from mixlora.common.errors import DataError
from mixlora.data.groups import connected
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.scoring.intervals import Array, Estimate, Sample, Share, around, percentiles, summed, wilson
from mixlora.evaluation.scoring.metrics import Metric, Outcomes, outcomes, shared

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
"""The subtasks of perception, with at most 200 points each."""
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""The subtasks of cognition, with at most 200 points each."""
GROUPS = {
    "perception": PERCEPTION,
    "cognition": COGNITION,
    "perception + cognition": (*PERCEPTION, *COGNITION),
}
"""The sums, and the subtasks of each."""


def totals(subtasks: Mapping[str, Sequence[Prediction]], draws: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """The sums of the subtasks' scores: perception with at most 2000 points, cognition with at most 800, and both.

    Images are resampled within each subtask, independently; groups of images together if they span subtasks. The name
    of a sum shows missing subtasks, as in "perception (7 of 10 subtasks)". A sum without subtasks is omitted, and that
    of both where either is.

    Raises:
        DataError: MME has no such subtask, or predictions cannot be scored.
    """
    if unknown := set(subtasks) - {*PERCEPTION, *COGNITION}:
        known = ", ".join((*PERCEPTION, *COGNITION))
        raise DataError(f"MME has no subtask {min(unknown)!r}; its subtasks are {known}.")
    found: dict[str, Estimate] = {}
    for group, members in GROUPS.items():
        present = [name for name in members if name in subtasks]
        parts = [part for part in (PERCEPTION, COGNITION) if {*part} <= {*members}]
        if all({*part} & {*present} for part in parts):
            name = group if len(present) == len(members) else f"{group} ({len(present)} of {len(members)} subtasks)"
            found[name] = _total({name: subtasks[name] for name in present}, draws, seed)
    return found


def _total(subtasks: Mapping[str, Sequence[Prediction]], draws: int, seed: int) -> Estimate:
    judged = {name: outcomes(predictions, Metric.MME) for name, predictions in subtasks.items()}
    keys = {name: [shared(one) for one in predictions] for name, predictions in subtasks.items()}
    parts, sums, share = [], np.zeros(draws), next(iter(judged.values())).shares["score"]
    for name, own in judged.items():
        sample = Sample(own.columns, own.grouped(keys[name]))
        resampled = share.of(sample.resampled(draws, [seed, (*PERCEPTION, *COGNITION).index(name)]))
        parts.append(around(float(share.of(sample.sums())), percentiles(resampled), wilson(sample, share)))
        sums += resampled
    groups = [{key for one in own for key in one} for own in keys.values()]
    if sum(map(len, groups)) > len(set().union(*groups)):
        sums = _together(list(judged.values()), list(keys.values()), share, draws, seed)
    return summed(parts, sums)


def _together(
    judged: Sequence[Outcomes], keys: Sequence[Sequence[Sequence[Hashable]]], share: Share, draws: int, seed: int
) -> Array:
    """The sum of all subtasks' scores in resamples of groups that span subtasks [draws]."""
    width, starts = judged[0].columns.shape[1], np.cumsum([0, *(len(own.columns) for own in judged)])
    columns = np.zeros((starts[-1], width * len(judged)))
    units: list[list[Hashable]] = [[] for _ in columns]
    places = [slice(at * width, (at + 1) * width) for at in range(len(judged))]
    for own, own_keys, start, place in zip(judged, keys, starts, places, strict=False):
        columns[start : start + len(own.columns), place] = own.columns
        for unit, key in zip(own.unit, own_keys, strict=True):
            units[start + unit] += key
    sums = Sample(columns, np.array(connected(units))).resampled(draws, seed)
    scores: Array = np.sum([share.of(sums[:, place]) for place in places], axis=0)
    return scores
