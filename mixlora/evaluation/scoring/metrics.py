"""Metrics: scores of predictions with intervals, and differences of two models' scores."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from mixlora.common.enums import member
from mixlora.common.errors import ConfigError, DataError
from mixlora.data.groups import connected
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.scoring import vqa
from mixlora.evaluation.scoring.intervals import Array, Dice, Estimate, Sample, Share, differences, estimates
from mixlora.evaluation.scoring.parsing import ENTAILMENT, TRUE_FALSE, YES_NO, Finder, as_label, mentions, tidy


class Metric(StrEnum):
    """How predictions are scored.

    exact: the prediction is the target or a reference, except for case, spaces, quotes around it and one final period.
    contained: the target or a reference occurs in the prediction as whole words.
    classification: the first label that the prediction mentions is the target's.
    vqa: soft agreement with several people's answers, see `vqa.accuracy`; with the target if there are none.
    pope: yes or no, with precision, recall and F1 of yes, and the share of answers that are yes.
    vsr: true or false, or yes or no.
    entailment: entailment, neutral or contradiction, or yes, maybe or no.
    mme: yes or no, two questions an image; 100 * (share of questions right + share of images with both right).
    """

    EXACT = "exact"
    CONTAINED = "contained"
    CLASSIFICATION = "classification"
    VQA = "vqa"
    POPE = "pope"
    VSR = "vsr"
    ENTAILMENT = "entailment"
    MME = "mme"


@dataclass(frozen=True)
class Score:
    """The score of a task.

    Attributes:
        metric: a `Metric`, or a judge's.
        n: the number of examples.
        groups: the number of groups that intervals treat as independent; n if every example is a group of its own.
        unparsed: the number of predictions without an answer of the expected kind; they count as wrong.
        main: the name of the value to report.
        values: statistics by name. Shares are between 0 and 1, the score of MME between 0 and 200; NaN if a statistic
            is undefined, such as precision if no answer was yes.
    """

    metric: str
    n: int
    groups: int
    unparsed: int
    main: str
    values: dict[str, Estimate]


@dataclass(frozen=True)
class Difference:
    """The difference of two models' scores on the same examples.

    Attributes:
        metric: a `Metric`, or a judge's.
        n: the number of examples.
        groups: the number of groups that intervals treat as independent; n if every example is a group of its own.
        differing: the number of examples on which the two sides got different credit.
        main: the name of the value to report.
        values: second minus first, by name.
    """

    metric: str
    n: int
    groups: int
    differing: int
    main: str
    values: dict[str, Estimate]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of predictions under a metric.

    Attributes:
        columns: [units, columns], what is summed over units; the first column is 1.
        shares: the statistics of the columns' sums, the main one first.
        credit: [examples], how right each prediction is.
        unit: [examples], each example's row of `columns`.
        unparsed: the number of predictions without an answer of the expected kind.
    """

    columns: Array
    shares: dict[str, Share]
    credit: Array
    unit: NDArray[np.int64]
    unparsed: int

    def grouped(self, shared: Sequence[Sequence[Hashable]]) -> NDArray[np.int64]:
        """The number of each unit's group [units]: those that share something are one, also through others.

        Args:
            shared: what each example shares with others [examples].
        """
        own: list[list[Hashable]] = [[] for _ in self.columns]
        for unit, keys in zip(self.unit, shared, strict=True):
            own[unit] += keys
        return np.array(connected(own))


def score(
    predictions: Sequence[Prediction],
    metric: Metric | str,
    labels: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Score:
    """The score of the predictions of one task, with 95% intervals.

    Units of the intervals are examples, or images for MME; units of one group are resampled together. Intervals are
    Wilson's, of the effective number of units; for VQA and MME, whose credit can be partial, and wherever a group has
    several units, they are at least as wide as a bootstrap's.

    Args:
        predictions: of one task.
        metric: how to score them.
        labels: of a classification; all targets if None.
        draws: resamples.
        seed: seed of the resamples.

    Raises:
        DataError: there is no prediction, or the metric cannot use a target.
        ConfigError: the metric is unknown or has no labels but gets some, or `draws` is below 1.
    """
    metric = _known(metric)
    found = outcomes(predictions, metric, labels)
    groups = found.grouped([shared(one) for one in predictions])
    values = estimates(Sample(found.columns, groups), found.shares, draws, seed)
    return Score(metric, len(predictions), number(groups), found.unparsed, next(iter(values)), values)


def difference(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    metric: Metric | str,
    labels: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Difference:
    """The second model's score minus the first's on the same examples, which are resampled together.

    Examples are matched by question_id, in any order; those of one group on either side are resampled together. Two
    models that agree throughout differ by 0, with an interval of what more examples could still show. Arguments are as
    in `score`.

    Raises:
        DataError: as in `score`, or the two sides have different examples.
    """
    metric = _known(metric)
    first, second = matched(first, second)
    one, other = outcomes(first, metric, labels), outcomes(second, metric, labels)
    if not np.array_equal(one.unit, other.unit):
        raise DataError("The two sides pair questions to images in different ways; score the same files of MME.")
    groups = one.grouped([shared(*pair) for pair in zip(first, second, strict=True)])
    values = differences(Sample(np.hstack([one.columns, other.columns]), groups), one.shares, draws, seed)
    differing = int((one.credit != other.credit).sum())
    return Difference(metric, len(first), number(groups), differing, next(iter(values)), values)


def shared(*answers: Prediction) -> list[Hashable]:
    """What answers to one example, of one model or of each of two, share with others: (which model's, group)."""
    return [(side, one.group) for side, one in enumerate(answers) if one.group is not None]


def number(groups: NDArray[np.int64]) -> int:
    """How many groups there are, by the group of each unit."""
    return len(np.unique(groups))


def outcomes(predictions: Sequence[Prediction], metric: Metric, labels: Sequence[str] | None = None) -> Outcomes:
    """The outcomes of predictions under a metric; arguments and errors as in `score`."""
    if not predictions:
        raise DataError("There are no predictions to score; give at least one.")
    if labels is not None and metric is not Metric.CLASSIFICATION:
        raise ConfigError(f"labels are given, but the metric {metric} has none; leave them out, or use classification.")
    if metric is Metric.CLASSIFICATION:
        return _by_label(predictions, labels)
    return _OUTCOMES[metric](predictions)


def _known(metric: Metric | str) -> Metric:
    return member(Metric, metric, "metric", message="The metric {value!r:.200} is unknown; choose from {members}.")


def matched(first: Sequence[Prediction], second: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Both sides in the order of the first, by question_id.

    Raises:
        DataError: they have different examples, or different right answers.
    """
    sides = [{one.question_id: one for one in side} for side in (first, second)]
    for which, side, found in zip(("first", "second"), (first, second), sides, strict=True):
        if len(found) < len(side):
            raise DataError(f"The {which} side has several predictions with one question_id; give one task at a time.")
    for name, own, other in (("first", sides[0], sides[1]), ("second", sides[1], sides[0])):
        if alone := [key for key in own if key not in other]:
            raise DataError(
                f"{len(alone)} examples, the first of them {alone[0]:.200}, have a prediction only on the {name} side; "
                "compare two models on the same examples."
            )
    for key, one in sides[0].items():
        if (one.target, one.references) != (sides[1][key].target, sides[1][key].references):
            raise DataError(
                f"{one.place} has the target {one.target!r:.200} on the first side and "
                f"{sides[1][key].target!r:.200}, or other references, on the second; compare predictions for the "
                "same data."
            )
    return list(sides[0].values()), [sides[1][key] for key in sides[0]]


def _accuracy(credit: Array, unparsed: int) -> Outcomes:
    columns = np.stack([np.ones_like(credit), credit], axis=1)
    return Outcomes(columns, {"accuracy": Share(1, 0)}, credit, np.arange(len(credit)), unparsed)


def _answers(one: Prediction) -> tuple[str, ...]:
    """The right answers: the target and the references, without blank ones."""
    answers = tuple(answer for answer in (one.target, *one.references) if tidy(answer))
    if not answers:
        raise DataError(f"{one.place} has an empty target and no references; give the right answers.")
    return answers


def _by_text(predictions: Sequence[Prediction], right: Callable[[Prediction], float]) -> Outcomes:
    """Outcomes by text alone: anything that is not blank is an answer."""
    said = np.array([bool(tidy(one.predict)) for one in predictions])
    return _accuracy(np.array([right(one) for one in predictions], dtype=np.float64) * said, int((~said).sum()))


def _exact(one: Prediction) -> float:
    return tidy(one.predict) in [tidy(answer) for answer in _answers(one)]


def _contained(one: Prediction) -> float:
    return any(mentions(one.predict, tidy(answer)) for answer in _answers(one))


def _agreement(one: Prediction) -> float:
    _answers(one)
    return vqa.accuracy(one.predict, one.references or (one.target,))


def _by_label(predictions: Sequence[Prediction], labels: Sequence[str] | None) -> Outcomes:
    names = {as_label(label): label for label in (labels if labels is not None else [p.target for p in predictions])}
    if "" in names:
        raise DataError(f"The label {names['']!r:.200} has no word in it; give labels that a text can mention.")
    if strange := [one for one in predictions if as_label(one.target) not in names]:
        raise DataError(
            f"{strange[0].place} has the target {strange[0].target!r:.200}, which is not among the {len(names)} "
            "labels; add it."
        )
    finder = Finder({label: label for label in names})
    return _judged([as_label(one.target) for one in predictions], [finder.find(one.predict) for one in predictions])


def _judged(truths: Sequence[str], said: Sequence[str | None]) -> Outcomes:
    credit = np.array([own == truth for own, truth in zip(said, truths, strict=True)], dtype=np.float64)
    return _accuracy(credit, said.count(None))


def _found(predictions: Sequence[Prediction], finder: Finder, none: str) -> tuple[list[str], list[str | None]]:
    """The answers in the targets, each of which must have one, and in the predictions."""
    truths = []
    for one in predictions:
        truth = finder.find(one.target)
        if truth is None:
            raise DataError(f"{one.place} has the target {one.target!r:.200}, which is {none}; use another metric.")
        truths.append(truth)
    return truths, [finder.find(one.predict) for one in predictions]


def _by_finder(predictions: Sequence[Prediction], finder: Finder, none: str) -> Outcomes:
    return _judged(*_found(predictions, finder, none))


def _pope(predictions: Sequence[Prediction]) -> Outcomes:
    truths, said = _found(predictions, YES_NO, "neither yes nor no")
    truth, yes = np.array([own == "yes" for own in truths]), np.array([own == "yes" for own in said])
    judged = _judged(truths, said)
    columns = np.column_stack([judged.columns, yes, truth, yes & truth, yes | truth])
    shares = {
        "accuracy": Share(1, 0),
        "precision": Share(4, 2),
        "recall": Share(4, 3),
        "f1": Dice(4, 5),
        "yes_rate": Share(2, 0),
    }
    return replace(judged, columns=columns, shares=shares)


def _mme(predictions: Sequence[Prediction]) -> Outcomes:
    """Units are images; the columns are 1, the share of questions right, whether both are, and the mean of the two."""
    own = _by_finder(predictions, YES_NO, "neither yes nor no")
    images: dict[str, list[int]] = {}
    for index, one in enumerate(predictions):
        if one.image_path is None:
            raise DataError(
                f"{one.place} has no image_path, which MME needs to pair an image's two questions; give it."
            )
        images.setdefault(one.image_path, []).append(index)
    for image, indices in images.items():
        if len(indices) != 2:
            raise DataError(f"The image {image} of MME has {len(indices)} predictions, but must have 2; score all.")
    pairs = np.array(list(images.values()))
    share, both = own.credit[pairs].mean(axis=1), own.credit[pairs].min(axis=1)
    columns = np.stack([np.ones_like(share), share, both, (share + both) / 2], axis=1)
    shares = {"score": Share(3, 0, scale=200), "accuracy": Share(1, 0), "accuracy_plus": Share(2, 0)}
    unit = np.empty(len(predictions), dtype=np.int64)
    unit[pairs] = np.arange(len(pairs))[:, None]
    return replace(own, columns=columns, shares=shares, unit=unit)


_OUTCOMES: dict[Metric, Callable[[Sequence[Prediction]], Outcomes]] = {
    Metric.EXACT: lambda predictions: _by_text(predictions, _exact),
    Metric.CONTAINED: lambda predictions: _by_text(predictions, _contained),
    Metric.VQA: lambda predictions: _by_text(predictions, _agreement),
    Metric.POPE: _pope,
    Metric.VSR: lambda predictions: _by_finder(predictions, TRUE_FALSE, "neither true nor false"),
    Metric.ENTAILMENT: lambda predictions: _by_finder(
        predictions, ENTAILMENT, "neither entailment nor neutral nor contradiction"
    ),
    Metric.MME: _mme,
}
