"""Directories of evaluations from strangers: compared and continued, or refused in a sentence; no pipe is read."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlora.common.sealed import checksum, sealed
from mixlora.evaluation.comparison import compare
from mixlora.evaluation.config import JudgeSection
from mixlora.evaluation.folder import Folder
from mixlora.evaluation.judging.verdicts import question_key, verdicts
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring.metrics import score
from tests.support.mutations import attempt, changed, damaged, fuzz, values, written

JUDGE = JudgeSection(model="judge")
ANSWERS = {
    "red": [Prediction(str(k), "red", "What?", said, "Red") for k, said in enumerate(("Red", "Blue", "red."))],
    "people": [Prediction("a", "people", "What?", "Red", "Red", ("Red", "red", "Blue"))],
    "judged": [Prediction("7", "judged", "What?", "Red", "Red")],
}
METRICS = {"red": "classification", "people": "vqa", "judged": "judge"}
JUDGED_BY = ["5f", "probability", "float32"]
"""What its verdicts depend on besides the texts."""
IDENTITY = {"format": 1, "base": "5f", "generation": {"num_beams": 1}}
"""What the answers to all tasks depend on; the answers to each depend on `OWN` besides."""
OWN = {"examples": "46", "adapter": None}


def lines(records, correct=True) -> bytes:
    """A file of records, with their checksums unless they are to keep those that they have."""
    whole = [sealed(record) if correct and isinstance(record, dict) else record for record in records]
    return b"".join(written(record) + b"\n" for record in whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{file of an evaluation's directory: its bytes}."""
    config = {"draws": 100, "seed": 1, "judge": JUDGE.model_dump(), "tasks": {}}
    predictions = {f"predictions/{task}.jsonl": lines(one.to_record() for one in own) for task, own in ANSWERS.items()}
    answers = {task: checksum(predictions[f"predictions/{task}.jsonl"]) for task in ANSWERS}
    meta = {"config": config, "labels": {"red": ["Red", "Blue"]}, "answers": answers, "judge": JUDGED_BY}
    made = Results("a", {"base": "mini"}, meta=meta)
    for task, metric in METRICS.items():
        labels = ["Red", "Blue"] if metric == "classification" else None
        made.add(task, score(ANSWERS[task], "exact" if metric == "judge" else metric, labels, 100))
        made.tasks[task]["metric"] = metric
    folder = tmp_path_factory.mktemp("evaluation")
    made.save(folder)
    said = [
        {"question_id": one.question_id, "verdict": True, "asked": question_key(JUDGED_BY, one)}
        for one in ANSWERS["judged"]
    ]
    return {
        "results.json": (folder / "results.json").read_bytes(),
        "evaluation.json": written(IDENTITY | {"tasks": dict.fromkeys(ANSWERS, OWN)}),
        "judgements/judged.jsonl": lines(said),
        "predictions/red.jsonl.partial": predictions["predictions/red.jsonl"],
        **predictions,
    }


def put(folder, files):
    """A directory of these files; one without bytes is a pipe."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path) if data is None else path.write_bytes(data)
    return folder


def broken(whole):
    """The files of a directory of which one or two are damaged, changed, missing, exchanged, or pipes."""
    names = st.sampled_from(sorted(whole))

    @st.composite
    def drawn(draw):
        found = dict(whole)
        for _ in range(draw(st.integers(1, 2))):
            name = draw(names)
            deed = draw(
                st.sampled_from(["damage", "change", "change", "change", "exchange", "remove", "pipe", "other"])
            )
            if deed == "change" and name.endswith(".json"):
                found[name] = written(draw(changed(json.loads(whole[name]))))
            elif deed == "change":
                own = [json.loads(line) for line in whole[name].splitlines()]
                found[name] = lines([draw(changed(own[0])), *own[1:]], correct=draw(st.booleans()))
            elif deed == "damage":
                found[name] = draw(damaged(whole[name]))
            elif deed == "exchange":
                found[name] = whole[draw(names)]
            elif deed == "remove":
                found.pop(name, None)
            else:
                found[name] = None if deed == "pipe" else written(draw(values))
        return found

    return drawn()


def go_on(folder):
    """What a second evaluation does with the directory, but for generation."""
    place = Folder(folder)
    with place.alone():
        place.claim(IDENTITY, dict.fromkeys(ANSWERS, OWN))
        for task, own in ANSWERS.items():
            kept = place.complete(task, [one.question_id for one in own])
            known = place.partial(task)
            if kept is None:
                place.append(task, [one for one in own if one.question_id not in known])
                place.finish(task, own)
        verdicts(place.judgements("judged"), JUDGED_BY, ANSWERS["judged"])


def test_whole_ones_are_compared_and_continued(tmp_path, whole):
    one, other = put(tmp_path / "one", whole), put(tmp_path / "other", whole)
    assert attempt(lambda: go_on(one)) is None
    assert list(compare(one, other).differences) == list(ANSWERS)


@fuzz(300)
@given(st.data())
def test_broken_evaluations(tmp_path_factory, whole, data):
    top = tmp_path_factory.getbasetemp()
    good, bad = put(top / "good", whole), put(top / "bad", data.draw(broken(whole)))
    before = {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()}
    attempt(lambda: compare(bad, good))
    attempt(lambda: compare(good, bad))
    assert before == {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()}
    attempt(lambda: go_on(bad))
