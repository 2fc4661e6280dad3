"""The file that an evaluation leaves."""

import json
import math

import pytest

from mixlora.common.errors import DataError, TrainingError
from mixlora.common.sealed import sealed
from mixlora.evaluation.results import Results, load
from mixlora.evaluation.scoring.metrics import score
from mixlora.evaluation.scoring.mme import totals
from tests.support.answers import coded, predictions


def made():
    results = Results("LoRA", model={"base": "b"}, meta={"seed": 0})
    results.add("pope_adv", score(coded("nnm"), "pope"))
    results.add("ink", score(predictions(("red", "red"), ("", "red")), "exact"))
    results.add_totals(totals({"OCR": coded("tn", image=True)}))
    return results


def test_saved_and_loaded(tmp_path):
    made().save(tmp_path / "new" / "folder")
    found = load(tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["results.json"]
    precision = found.tasks["pope_adv"]["scores"]["precision"]
    assert all(math.isnan(precision[end]) for end in ("value", "low", "high"))
    assert found.tasks["ink"] | {"scores": None} == {
        "metric": "exact",
        "n": 2,
        "groups": 2,
        "unparsed": 1,
        "main": "accuracy",
        "scores": None,
    }
    assert found.tasks["ink"]["scores"] == made().tasks["ink"]["scores"]
    assert (found.label, found.model, found.meta) == ("LoRA", {"base": "b"}, {"seed": 0})
    assert found.totals == made().totals


def test_saving_again_replaces(tmp_path):
    made().save(tmp_path)
    Results("other").save(tmp_path)
    assert load(tmp_path) == Results("other")
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_a_failed_save_leaves_the_old_file(tmp_path):
    made().save(tmp_path)
    with pytest.raises(TypeError):
        Results("x", meta={"path": tmp_path}).save(tmp_path)
    assert load(tmp_path).label == "LoRA"
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError) as told:
        made().save(tmp_path / "file")
    assert str(told.value) == (
        f"the results cannot be written to {tmp_path / 'file'}: File exists; make it writable, and the same command "
        "continues, or choose another --out"
    )


def refusal(folder):
    with pytest.raises(DataError) as error:
        load(folder)
    return str(error.value)


def test_nothing_there(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} has no results.json; give a directory that an evaluation wrote."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record | {"format": 3}, "has format 3, later than 2; read it with a newer version."),
        (lambda record: {}, "is damaged: it names no format; run the evaluation again."),
        (lambda record: [], "is damaged: it names no format"),
        (lambda record: record | {"tasks": 3}, "is damaged: tasks is missing"),
        (lambda record: record | {"totals": {"perception": {"value": 1}}}, "is damaged: a score in it lacks a part"),
        (lambda record: record | {"tasks": {"ink": {"scores": {}}}}, "is damaged: a score in it lacks a part"),
        (lambda record: {key: record[key] for key in record if key != "label"}, "lacks a part (KeyError('label'))"),
        (
            lambda record: record | {"totals": {"x": {"value": 10**400, "low": 0, "high": 1}}},
            "int too large",
        ),
        (lambda record: record | {"tasks": {"ink": record["tasks"]["ink"] | {"n": 1e999}}}, "cannot convert float inf"),
        (lambda record: record | {"tasks": {"ink": record["tasks"]["ink"] | {"main": "x" * 10**4}}}, "KeyError('xxx"),
        (lambda record: record | {"format": 10**4000}, "has format 1000"),
    ],
)
def test_damaged_files(tmp_path, change, words):
    made().save(tmp_path)
    file = tmp_path / "results.json"
    record = change(json.loads(file.read_text()))
    file.write_text(json.dumps(sealed(record) if record else record))
    assert words in refusal(tmp_path) and len(refusal(tmp_path)) < 1000


def test_a_score_that_is_another_than_was_written_is_refused(tmp_path):
    made().save(tmp_path)
    file = tmp_path / "results.json"
    whole = json.loads(file.read_text())
    other = json.loads(json.dumps(whole))
    other["tasks"]["ink"]["n"] += 1
    for record in (other, {key: value for key, value in whole.items() if key != "seal"}):
        file.write_text(json.dumps(record))
        assert refusal(tmp_path) == (
            f"{file} is damaged: its checksum differs from the recorded one; run the evaluation again."
        )
    del whole["seal"]
    file.write_text(json.dumps(whole | {"format": 1}))
    assert load(tmp_path).tasks.keys() == made().tasks.keys()  # of before seals


def test_a_torn_file(tmp_path):
    made().save(tmp_path)
    file = tmp_path / "results.json"
    file.write_bytes(file.read_bytes()[:100])
    assert "is damaged: " in refusal(tmp_path)
    file.write_bytes(b"\xff\xfe")
    assert "is damaged: " in refusal(tmp_path)
