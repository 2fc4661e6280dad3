"""Two evaluations beside each other: what is compared, what is left out, what cannot be."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from mixlora.common.errors import DataError
from mixlora.evaluation import predictions, printing, results
from mixlora.evaluation.comparison import compare
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring.metrics import difference
from tests.support.evaluations import FOLLOW, answer, copied, follow_file, lines, mme_folder, put, ran, settle

torch.set_num_threads(1)

SAID = {"follow": ["two", "three", "x", "four", "six", "x"], "yes": ["yes", "no", "no", "no", "yes", "x"]}
OTHER = {"follow": ["two", "x", "four", "five", "six", "x"], "yes": ["no", "no", "no", "no", "no", "no"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two evaluations of the same tasks, `first` and `second`, that differ in their answers."""
    folder = tmp_path_factory.mktemp("compared")
    follow_file(folder / "follow.jsonl")
    follow_file(folder / "yes.jsonl", [(str(k), "yes" if k % 2 else "no") for k in range(6)])
    ran(folder / "first", tasks_of(folder), seed=2)
    copied(folder / "first", folder / "second")
    for name, said in (("first", SAID), ("second", OTHER)):
        for task, texts in said.items():
            answer(folder / name, task, texts)
        ran(folder / name, tasks_of(folder), seed=2)
    return folder


def tasks_of(folder, **more):
    return {
        "follow": {"file": str(folder / "follow.jsonl")} | more,
        "yes": {"file": str(folder / "yes.jsonl"), "score": "pope"},
    }


def both(place, task):
    return [predictions.read(place / name / "predictions" / f"{task}.jsonl") for name in ("first", "second")]


def test_differences_are_those_of_the_predictions(place):
    found = compare(place / "first", place / "second")
    assert (found.first, found.second, found.left_out) == ("first", "second", [])
    assert list(found.differences) == ["follow", "yes"]
    for task, metric in (("follow", "exact"), ("yes", "pope")):
        own, expected = found.differences[task], difference(*both(place, task), metric, None, 100, 2)
        assert asdict(own).keys() == asdict(expected).keys()
        assert (own.metric, own.n, own.differing, own.main) == (metric, 6, expected.differing, "accuracy")
        for name, value in expected.values.items():
            assert list(vars(own.values[name]).values()) == pytest.approx(list(vars(value).values()), nan_ok=True)
    assert found.differences["follow"].values["accuracy"].value == pytest.approx(1 / 6)
    assert found.differences["follow"].differing == 3


def test_an_evaluation_and_itself_differ_by_nothing(place):
    found = compare(place / "first", place / "first")
    for own in found.differences.values():
        assert own.differing == 0 and all(value.value == 0 for value in own.values.values())


def test_scores_that_are_not_defined_are_said_to_be_so(place):
    entry = results.load(place / "second").tasks["yes"]  # never answered yes: no precision
    assert math.isnan(entry["scores"]["precision"]["value"])
    kept = json.loads((place / "second" / "results.json").read_text())["tasks"]["yes"]["scores"]["precision"]
    told = json.loads(printing.to_json(results.load(place / "second")))["tasks"]["yes"]["scores"]["precision"]
    assert kept == told == {"value": None, "low": None, "high": None}
    found = compare(place / "first", place / "second")
    told = json.loads(printing.differences_json(found))["differences"]["yes"]["values"]
    assert told["precision"]["value"] is None and told["accuracy"]["value"] is not None
    for text in (printing.scores(results.load(place / "second")), printing.differences(found)):
        row = next(line for line in text.splitlines() if line.split()[:1] == ["precision"])
        assert row.split() == ["precision", "-", "not", "defined"]


def test_what_only_one_has_or_is_scored_otherwise_is_left_out(place, tmp_path):
    out = copied(place / "second", tmp_path / "out")
    ran(copied(place / "first", tmp_path / "first"), tasks_of(place), label="a")
    shared = tasks_of(place, score="contained")
    found = ran(out, shared)
    assert found.tasks["follow"]["metric"] == "contained"
    found = compare(tmp_path / "first", out)
    assert (list(found.differences), found.left_out) == (["yes"], ["follow"])
    assert printing.differences(found).endswith("\nleft out, not in both or scored otherwise: follow")
    ran(out, {"yes": shared["yes"]})
    assert compare(tmp_path / "first", out).left_out == ["follow"]


def test_labels_are_those_of_the_classification(place, tmp_path):
    """Of "x or two", x is what is said first, if it is a label; targets alone would not know it."""
    rows = [
        {"unique_id": f"{kind} {k}", "prompt": "?", "target": target, "kind": kind}
        for kind in "ab"
        for k, (_, target) in enumerate(FOLLOW)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"file": str(tmp_path / "t.jsonl"), "by": "kind", "score": "classification"}
    labels = [target for _, target in FOLLOW] + ["x"]
    for name, texts in (("first", ["x or two"] * 6), ("second", ["two or x"] * 6)):
        ran(tmp_path / name, {"all": task | {"labels": labels}})
        answer(tmp_path / name, "a", texts)
        settle(tmp_path / name)
    found = compare(tmp_path / "first", tmp_path / "second")
    assert list(found.differences) == ["a", "b"]
    assert found.differences["a"].values["accuracy"].value == pytest.approx(1 / 6)
    ran(tmp_path / "second", {"all": task})
    with pytest.raises(DataError, match="have no task in common with the same score"):
        compare(tmp_path / "first", tmp_path / "second")


def test_examples_must_be_the_same(place, tmp_path):
    file = follow_file(tmp_path / "follow.jsonl", [*FOLLOW[:4], ("nine", "ten")])
    ran(tmp_path / "fewer", {"follow": {"file": str(file)}})
    with pytest.raises(DataError) as error:
        compare(place / "first", tmp_path / "fewer")
    assert str(error.value) == (
        "Task follow: 2 examples, the first of them five, have a prediction only on the first side; compare two "
        "models on the same examples."
    )
    with pytest.raises(
        DataError, match=r"^.*first and .*fewer2 have no task in common with the same score; evaluate both with"
    ):
        ran(tmp_path / "fewer2", {"other": {"file": str(file)}})
        compare(place / "first", tmp_path / "fewer2")


def test_answers_that_are_not_those_that_were_scored_are_refused(place, tmp_path):
    """Changed with a correct checksum of the line, as another evaluation would have, or left out."""
    out = copied(place / "first", tmp_path / "out")
    file = out / "predictions" / "follow.jsonl"
    rows = lines(file)
    for changed in ([rows[0] | {"predict": "nine"}, *rows[1:]], rows[:-1], rows[::-1]):
        put(file, changed)
        for pair in ((out, place / "second"), (place / "second", out)):
            with pytest.raises(DataError) as error:
                compare(*pair)
            assert str(error.value) == f"{file} holds other answers than results.json scores; run the evaluation again."
    put(file, rows)
    again, before = compare(out, place / "second"), compare(place / "first", place / "second")
    assert again.differences["follow"] == before.differences["follow"]
    file.write_text(file.read_text().replace('"predict": "', '"predict": "no ', 1))
    with pytest.raises(DataError, match=r"^follow\.jsonl:1: the line is damaged: its checksum is another; delete "):
        compare(out, place / "second")


def test_what_holds_no_evaluation_is_refused(place, tmp_path):
    with pytest.raises(DataError, match=r"none has no results\.json; give a directory that an evaluation wrote"):
        compare(place / "first", tmp_path / "none")
    found = Results("by hand")
    found.tasks["follow"] = results.load(place / "first").tasks["follow"]
    found.save(tmp_path / "hand")  # scores alone
    with pytest.raises(
        DataError, match=r"The predictions .*hand/predictions/follow\.jsonl cannot be read: No such file"
    ):
        compare(tmp_path / "hand", place / "first")


def test_mme_is_compared_picture_by_picture(tmp_path):
    tasks = {"mme": {"mme": str(mme_folder(tmp_path / "MME", ["count", "OCR"]))}}
    said = {"first": ["Yes", "No", "No", "No"], "second": ["Yes", "No", "Yes", "No"]}
    for name, texts in said.items():
        ran(tmp_path / name, tasks)
        for task in ("count", "OCR"):
            answer(tmp_path / name, task, texts if task == "count" else said["first"])
        ran(tmp_path / name, tasks)
    found = compare(tmp_path / "first", tmp_path / "second")
    values = {task: {key: value.value for key, value in own.values.items()} for task, own in found.differences.items()}
    assert values == {
        "OCR": {"score": 0, "accuracy": 0, "accuracy_plus": 0},
        "count": {"score": 75, "accuracy": 0.25, "accuracy_plus": 0.5},  # 200 of 200 against 75 + 50
    }
    row = next(line for line in printing.differences(found).splitlines() if line.startswith("count"))
    assert row.split()[:4] == ["count", "mme", "score", "+75.0"]
