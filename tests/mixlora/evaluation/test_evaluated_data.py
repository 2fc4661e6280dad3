"""What is evaluated on: data and scores that do not suit are told first, MME's folder, files of several tasks."""

import json

import pytest
import torch

from mixlora.common.errors import ConfigError, DataError
from mixlora.evaluation import results
from tests.support.evaluations import answer, follow_file, lines, mme_folder, ran, refusal

torch.set_num_threads(1)


def test_data_errors_are_listed_before_a_model_is_loaded(tmp_path, no_model):
    rows = [
        {"unique_id": str(k), "prompt": f"What is {k}?", "target": "x", "image_path": "none.png"} for k in range(25)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refusal(DataError, tmp_path / "out", {"t": {"file": str(tmp_path / "t.jsonl")}})
    assert said.startswith("25 records cannot be used; correct or remove these:\n  t.jsonl:1: the image 'none")
    assert said.count("t.jsonl:") == 20 and said.endswith(" t.jsonl:19, t.jsonl:20.\n  and 5 more")
    assert not (tmp_path / "out").exists()


def test_prompts_longer_than_the_model_was_made_for_are_refused_unless_it_is_asked_for_them(tmp_path):
    """The mini base was made for 512 tokens, and its positions are rotary."""
    pairs = [("one", "two"), ("one " * 600, "three")]
    tasks = {"t": {"file": str(follow_file(tmp_path / "t.jsonl", pairs))}}
    said = refusal(DataError, tmp_path / "out", tasks)
    assert " has more tokens than the 512 that the model was made for; set generation.max_prompt_length, or" in said
    how = {"max_new_tokens": 2, "batch_size": 1}
    said = refusal(DataError, tmp_path / "out", tasks, generation=how | {"max_prompt_length": 540})
    assert " alone has more tokens than generation.max_prompt_length 540; raise generation.max_prompt_length or" in said
    found = ran(tmp_path / "out", tasks, generation=how | {"max_prompt_length": 700})
    assert found.tasks["t"]["n"] == 2
    again = ran(tmp_path / "out", tasks, generation=how | {"max_prompt_length": 800})  # no answer depends on it
    assert again.tasks == found.tasks


SCORES = {
    "pope": (
        "pope",
        {},
        "Example one of task t has the target 'two', which is neither yes nor no; use another metric.",
    ),
    "labels": (
        "classification",
        {"labels": ["two"]},
        "Example two of task t has the target 'three', which is not among the 1 lab",
    ),
    "mme": ("mme", {}, "Example one of task t has the target 'two', which is neither yes nor no; use another metric."),
}


@pytest.mark.parametrize("name", SCORES)
def test_targets_that_do_not_suit_their_score_are_told_before_a_model_is_loaded(tmp_path, no_model, name):
    metric, more, said = SCORES[name]
    task = {"file": str(follow_file(tmp_path / "t.jsonl")), "score": metric} | more
    assert refusal(DataError, tmp_path / "out", {"t": task}).startswith(said)
    assert not (tmp_path / "out").exists()


def test_a_task_that_is_there_twice_is_refused(tmp_path, no_model):
    file = follow_file(tmp_path / "f.jsonl", kind="b")
    said = refusal(ConfigError, tmp_path / "out", {"b": {"file": str(file)}, "all": {"file": str(file), "by": "kind"}})
    assert said == "tasks: 'b' appears twice; give every task a name of its own"


def test_mme_is_scored_by_pictures(tmp_path):
    root, out = mme_folder(tmp_path / "MME"), tmp_path / "out"
    tasks = {"mme": {"mme": str(root)}}
    first = ran(out, tasks)
    assert list(first.tasks) == ["count", "existence"]
    rows = lines(out / "predictions" / "existence.jsonl")
    assert [row["question_id"] for row in rows] == [f"existence/{k}.png/{n}" for k in (0, 1) for n in (1, 2)]
    assert [row["image_path"] for row in rows] == [str(root / "existence" / f"{k}.png") for k in (0, 0, 1, 1)]
    answer(out, "existence", ["Yes", "no.", "Yes, it is", "Yes"])  # one picture wholly right, three answers of four
    answer(out, "count", ["No", "No", "blue", "No"])
    found = ran(out, tasks)
    values = {name: {key: own["value"] for key, own in entry["scores"].items()} for name, entry in found.tasks.items()}
    assert values == {
        "existence": {"score": 125.0, "accuracy": 0.75, "accuracy_plus": 0.5},
        "count": {"score": 50.0, "accuracy": 0.5, "accuracy_plus": 0.0},
    }
    assert {name: total["value"] for name, total in found.totals.items()} == {"perception (2 of 10 subtasks)": 175.0}
    assert (found.tasks["count"]["unparsed"], found.tasks["existence"]["unparsed"]) == (1, 0)
    assert results.load(out).totals == found.totals


def test_one_file_of_several_tasks(tmp_path):
    rows = [
        {"unique_id": f"{k}", "prompt": "Which number follows two?", "target": target, "kind": kind}
        for k, (target, kind) in enumerate([("three", "x"), ("four", "y"), ("three", "x"), ("three", "y")])
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = ["three", "four", "five"]
    task = {"file": str(tmp_path / "t.jsonl"), "by": "kind", "score": "classification", "labels": labels}
    ran(tmp_path / "out", {"all": task})
    answer(tmp_path / "out", "x", ["five or three", "three"])  # five is no target, but a label
    found = ran(tmp_path / "out", {"all": task})
    assert found.tasks["x"]["scores"]["accuracy"]["value"] == 0.5
    assert found.meta["labels"] == {"x": labels, "y": labels}
