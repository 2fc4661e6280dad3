"""MME's totals by hand."""

from dataclasses import replace

import numpy as np
import pytest

from mixlora.common.errors import DataError
from mixlora.evaluation.scoring.metrics import score
from mixlora.evaluation.scoring.mme import COGNITION, PERCEPTION, totals
from tests.support.answers import coded


def test_there_are_ten_and_four():
    assert (len(PERCEPTION), len(COGNITION), len({*PERCEPTION, *COGNITION})) == (10, 4, 14)


def test_sums_by_hand():
    # both right, one right, none right: accuracy 3 of 6, both 1 of 3: 50 + 33.33; the other subtask: 75 + 50
    three, two = coded("tntffm", image=True), coded("tntm", image=True)
    assert score(three, "mme").values["score"].value == pytest.approx(250 / 3)
    found = totals({"existence": three, "OCR": two, "code_reasoning": two})
    both = "perception + cognition (3 of 14 subtasks)"
    assert list(found) == ["perception (2 of 10 subtasks)", "cognition (1 of 4 subtasks)", both]
    assert found[both].value == pytest.approx(250 / 3 + 250)
    assert found["perception (2 of 10 subtasks)"].value == pytest.approx(250 / 3 + 125)
    assert found["cognition (1 of 4 subtasks)"].value == pytest.approx(125)


def test_all_subtasks_right():
    right = coded("tn" * 20, image=True)
    found = totals(dict.fromkeys((*PERCEPTION, *COGNITION), right))
    assert found["perception"].value == found["perception"].high == 2000
    assert found["cognition"].value == 800 and found["perception + cognition"].value == 2800
    short = 200 - score(right, "mme").values["score"].low  # of one subtask
    assert found["perception"].low == pytest.approx(2000 - np.sqrt(10) * short)
    assert found["cognition"].low == pytest.approx(800 - 2 * short)
    assert found["perception + cognition"].low == pytest.approx(2800 - np.sqrt(14) * short)


def test_a_part_alone_has_no_sum_of_both():
    assert list(totals({"code_reasoning": coded("tn", image=True)})) == ["cognition (1 of 4 subtasks)"]


def test_subtasks_vary_independently():
    """The interval of a sum of four equal subtasks is twice that of one."""
    half = coded("tnff" * 100, image=True)  # every second image: 200 or 0
    one = totals({"code_reasoning": half})["cognition (1 of 4 subtasks)"]
    four = totals(dict.fromkeys(COGNITION, half))["cognition"]
    assert four.value == pytest.approx(4 * one.value)
    assert (four.high - four.low) / (one.high - one.low) == pytest.approx(2, rel=0.06)
    assert one.high - one.low == pytest.approx(2 * 1.96 * 100 / np.sqrt(200), rel=0.06)


def test_the_order_of_subtasks_does_not_matter():
    parts = {"OCR": coded("tntm", image=True), "count": coded("tntnff", image=True)}
    assert totals(parts) == totals(dict(reversed(parts.items())))


def test_an_unknown_subtask():
    with pytest.raises(DataError, match="MME has no subtask 'ocr'; its subtasks are existence, count"):
        totals({"ocr": coded("tn", image=True)})


def shown(one, prefix=""):
    """The same answers with a group for each picture."""
    return [replace(answer, group=f"{prefix}{answer.image_path}") for answer in one]


def test_groups_of_a_picture_each_change_nothing():
    parts = {"OCR": coded("tntm" * 5, image=True), "count": coded("tntnff" * 5, image=True)}
    assert totals({name: shown(own, name) for name, own in parts.items()}) == totals(parts)
    assert score(shown(parts["OCR"]), "mme") == score(parts["OCR"], "mme")


def test_subtasks_about_the_same_pictures_vary_together():
    """The interval of four equal subtasks is four times that of one, not twice."""
    half = coded("tnff" * 100, image=True)
    one = totals({"code_reasoning": shown(half)})["cognition (1 of 4 subtasks)"]
    four = totals(dict.fromkeys(COGNITION, shown(half)))["cognition"]
    assert four.value == pytest.approx(4 * one.value)
    assert (four.high - four.low) / (one.high - one.low) == pytest.approx(4, rel=0.06)
    two = {name: shown(half, at // 2) for at, name in enumerate(COGNITION)}  # of two pairs
    pairs = totals(two)["cognition"]
    assert (pairs.high - pairs.low) / (one.high - one.low) == pytest.approx(np.sqrt(8), rel=0.06)


def test_a_subtask_with_a_picture_twice():
    """Every second picture is right in both questions; each appears twice, so n is half of what it seems."""
    twice = coded("tnff" * 100, image=True)
    copies = [replace(one, group=f"{k // 8}-{k // 2 % 2}") for k, one in enumerate(twice)]
    alone, found = score(twice, "mme"), score(copies, "mme")
    assert (alone.groups, found.groups) == (200, 100)
    widths = [own.values["score"].high - own.values["score"].low for own in (alone, found)]
    assert np.sqrt(2) - 0.03 < widths[1] / widths[0] < 1.6  # and the wider of two intervals is taken
