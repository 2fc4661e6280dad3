"""MME (Fu et al., 2023): its subtasks, and their two sums, perception and cognition."""

from collections.abc import Mapping, Sequence

import numpy as np

from mixlora.common.errors import DataError
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.scoring.intervals import Estimate, Sample, around, percentiles, summed, wilson
from mixlora.evaluation.scoring.metrics import Metric, outcomes

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
"""The subtasks of perception, with at most 200 points each."""
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""The subtasks of cognition, with at most 200 points each."""
GROUPS = {"perception": PERCEPTION, "cognition": COGNITION}


def totals(subtasks: Mapping[str, Sequence[Prediction]], draws: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """The sums of the subtasks' scores: perception with at most 2000 points, cognition with at most 800.

    Images are resampled within each subtask, independently. The name of a sum shows missing subtasks, as in
    "perception (7 of 10 subtasks)"; a sum without subtasks is omitted.

    Raises:
        DataError: MME has no such subtask, or predictions cannot be scored.
    """
    if unknown := set(subtasks) - {*PERCEPTION, *COGNITION}:
        known = ", ".join((*PERCEPTION, *COGNITION))
        raise DataError(f"MME has no subtask {min(unknown)!r}; its subtasks are {known}.")
    found = {}
    for group, members in GROUPS.items():
        present = [name for name in members if name in subtasks]
        if present:
            name = group if len(present) == len(members) else f"{group} ({len(present)} of {len(members)} subtasks)"
            found[name] = _total({name: subtasks[name] for name in present}, draws, seed)
    return found


def _total(subtasks: Mapping[str, Sequence[Prediction]], draws: int, seed: int) -> Estimate:
    parts, sums = [], np.zeros(draws)
    for name, predictions in subtasks.items():
        judged = outcomes(predictions, Metric.MME)
        sample, share = Sample(judged.columns), judged.shares["score"]
        resampled = share.of(sample.resampled(draws, [seed, (*PERCEPTION, *COGNITION).index(name)]))
        parts.append(around(float(share.of(sample.sums())), percentiles(resampled), wilson(sample, share)))
        sums += resampled
    return summed(parts, sums)
