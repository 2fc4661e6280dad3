"""Groups of answers: which pictures and keys make them, where they are kept, what is said of them."""

import json

import pytest
import torch

from mixlora.common.errors import CheckpointError, ConfigError, DataError
from mixlora.common.sealed import sealed
from mixlora.data.checking import fingerprint
from mixlora.data.examples import Example
from mixlora.data.groups import shared_by
from mixlora.evaluation import predictions, printing, results
from mixlora.evaluation.comparison import compare
from mixlora.evaluation.grouping import dependent, labels
from mixlora.evaluation.scoring.metrics import score
from tests.support.evaluations import answer, copied, files, lines, made, mme_folder, ran, refusal
from tests.support.records import QA, save_picture

torch.set_num_threads(1)

RIGHT = ["yes", "yes", "yes", "no", "no", "no"]
"""What is said to six questions whose answer is yes, three about each of two pictures."""


def shown(*images, id="1", group=None):
    return Example(id, "t", QA, images, "f.jsonl:1", group=group)


def labelled(examples, group):
    return labels(examples, [shared_by(one, group) for one in examples])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six questions about two pictures, one of them in three files, and an evaluation `whole` of them."""
    folder = tmp_path_factory.mktemp("grouped")
    for name, color in (("a", "red"), ("b", "red"), ("c", "red"), ("d", "blue")):
        save_picture(folder / f"{name}.png", color=color)
    rows = [
        {"id": str(k), "prompt": f"Is {k} there?", "target": "yes", "image_path": f"{name}.png", "album": k // 2}
        for k, name in enumerate("abcddd")
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran(folder / "whole", tasks_of(folder))
    answer(folder / "whole", "asked", RIGHT)
    ran(folder / "whole", tasks_of(folder))
    return folder


def tasks_of(folder, **more):
    return {"asked": {"file": str(folder / "asked.jsonl"), "score": "pope", **more}}


def without_groups(folder):
    """Make an evaluation look as an earlier version has left it."""
    file = folder / "predictions" / "asked.jsonl"
    rows = [{key: value for key, value in row.items() if key not in ("group", "seal")} for row in lines(file)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = json.loads((folder / "results.json").read_text())
    del record["dependent"], record["tasks"]["asked"]["groups"], record["meta"]["answers"], record["meta"]["judge"]
    (folder / "results.json").write_text(json.dumps(sealed(record)))
    identity = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(identity | {"format": 1}))
    return folder


def width(entry, name="accuracy"):
    return entry["scores"][name]["high"] - entry["scores"][name]["low"]


def test_labels_are_of_pictures_by_content_also_through_others(tmp_path):
    red, blue = save_picture(tmp_path / "red.png"), save_picture(tmp_path / "blue.png", color=(0, 0, 255))
    again, lone = save_picture(tmp_path / "again.png"), save_picture(tmp_path / "lone.png", color=(0, 255, 0))
    examples = [shown(red, id="a"), shown(again, blue, id="b"), shown(blue, id="c"), shown(lone, id="d"), shown(id="e")]
    found = labelled(examples, "image")
    assert found["a"] == found["b"] == found["c"] != found["d"]
    assert len(found["a"]) == len(found["d"]) == 32 and found["e"] is None
    assert labelled(examples, "none") == dict.fromkeys("abcde")
    kept = [shown(group="x", id="a"), shown(group="y", id="b"), shown(group="x", id="c")]
    assert labelled(kept, "album") == {"a": "x", "b": "y", "c": "x"}


def test_kept_answers_stay_those_of_examples_with_another_group():
    assert fingerprint([shown(group="x")]) == fingerprint([shown()]) != fingerprint([shown(id="2")])


def test_tasks_that_share_groups():
    keys = {"a": ["1", None], "b": ["2"], "c": ["1", "3"], "d": ["3"], "e": [None]}
    shared = {task: [[] if key is None else [("image", key)] for key in own] for task, own in keys.items()}
    assert dependent(shared) == [["a", "c", "d"]]
    assert dependent({"a": [[("image", "1")]], "b": [[("key album", "1")]]}) == []
    shown = {"a": "12", "b": "23", "c": "3"}  # several pictures in one example
    several = {task: [[("image", key) for key in keys]] for task, keys in shown.items()}
    assert dependent(several) == [["a", "b", "c"]]  # whose labels are 1, 2 and 3


def test_questions_about_one_picture_are_one_group(place):
    entry = results.load(place / "whole").tasks["asked"]
    kept = predictions.read(place / "whole" / "predictions" / "asked.jsonl")
    assert (entry["n"], entry["groups"]) == (6, 2)
    assert len({one.group for one in kept[:3]}) == len({one.group for one in kept[3:]}) == 1
    assert kept[0].group != kept[3].group
    again = score(kept, "pope", None, 100, 0)  # of the file alone
    assert again.groups == 2
    for name, value in again.values.items():
        assert entry["scores"][name] == pytest.approx(vars(value), nan_ok=True)
    assert json.loads((place / "whole" / "results.json").read_text())["tasks"]["asked"]["groups"] == 2


def test_another_group_generates_nothing_and_changes_the_intervals_alone(place, tmp_path, no_model):
    out = copied(place / "whole", tmp_path / "out")
    grouped = results.load(out).tasks["asked"]
    alone = ran(out, tasks_of(place, group="none")).tasks["asked"]
    assert "group" not in lines(out / "predictions" / "asked.jsonl")[0]
    assert (alone["groups"], width(alone) < width(grouped)) == (6, True)
    assert alone["scores"]["accuracy"]["value"] == grouped["scores"]["accuracy"]["value"] == 0.5
    album = ran(out, tasks_of(place, group="album")).tasks["asked"]
    assert [row["group"] for row in lines(out / "predictions" / "asked.jsonl")] == list("001122")
    assert (album["groups"], width(alone) < width(album) <= width(grouped)) == (3, True)
    ran(out, tasks_of(place))
    assert files(out)["predictions/asked.jsonl"] == files(place / "whole")["predictions/asked.jsonl"]


def test_what_is_printed_says_how_many_groups_there_are(place, tmp_path, no_model):
    head, _, row = printing.scores(results.load(place / "whole")).splitlines()[:3]
    assert head.split()[-5:] == ["examples", "groups", "no", "answer", "found"] and row.split()[-2:] == ["6", "2"]
    told = printing.differences(compare(place / "whole", place / "whole")).splitlines()
    assert told[0].split()[-3:] == ["examples", "groups", "differ"] and told[2].split()[-3:] == ["6", "2", "0"]
    out = copied(place / "whole", tmp_path / "out")
    assert "groups" not in printing.scores(ran(out, tasks_of(place, group="none")))


def test_a_difference_is_of_groups_that_either_side_has(place, tmp_path, no_model):
    other = copied(place / "whole", tmp_path / "other")
    answer(other, "asked", ["yes", "no", "no", "yes", "yes", "no"])
    ran(other, tasks_of(place))
    grouped = compare(place / "whole", other).differences["asked"]
    assert (grouped.n, grouped.groups, grouped.differing) == (6, 2, 4)
    found = compare(place / "whole", without_groups(copied(other, tmp_path / "old")))
    assert (found.differences["asked"], found.ungrouped) == (grouped, [])
    ran(other, tasks_of(place, group="album"))  # pictures on one side, and an album of both on the other
    assert compare(place / "whole", other).differences["asked"].groups == 1


def test_results_of_an_earlier_version_are_of_independent_answers_and_say_so(place, tmp_path, no_model):
    old = without_groups(copied(place / "whole", tmp_path / "old"))
    said = (
        "Intervals of asked treat all answers as independent, since results of an earlier version name no groups; "
        "evaluate again into another --out."
    )
    found = results.load(old)
    assert (found.tasks["asked"]["groups"], found.dependent) == (None, [])
    assert printing.scores(found).splitlines()[-1] == said
    both = compare(old, old)
    assert (both.ungrouped, both.differences["asked"].groups) == (["asked"], 6)
    assert printing.differences(both).splitlines()[-2:] == [
        said,
        "Whether answers of whole are those that were scored was not checked, since results of an earlier version name "
        "no checksums; evaluate again into another --out.",
    ]
    assert both.unchecked == ["whole"] and compare(place / "whole", place / "whole").unchecked == []
    assert printing.table([old], "text").splitlines()[-1] == said
    assert said not in printing.table([place / "whole"], "text")
    before = files(old)
    assert refusal(CheckpointError, old, tasks_of(place)) == (
        f"{old} has answers from another version (format 1, not 3), which cannot be completed; evaluate again into "
        "another --out"
    )
    assert files(old) == before


def test_tasks_about_the_same_pictures_are_dependent(place, tmp_path):
    tasks = tasks_of(place)["asked"]
    found = ran(tmp_path / "out", {"one": tasks, "two": tasks, "three": tasks | {"group": "album"}})
    assert found.dependent == results.load(tmp_path / "out").dependent == [["one", "two"]]
    assert compare(tmp_path / "out", tmp_path / "out").dependent == [["one", "two"]]


def test_mme_has_groups_of_pictures(tmp_path):
    root = mme_folder(tmp_path / "MME")  # all its pictures are the same
    found = ran(tmp_path / "out", {"mme": {"mme": str(root)}})
    assert [(entry["n"], entry["groups"]) for entry in found.tasks.values()] == [(4, 1), (4, 1)]
    found = ran(tmp_path / "out", {"mme": {"mme": str(root), "group": "none"}})
    assert [(entry["n"], entry["groups"]) for entry in found.tasks.values()] == [(4, 2), (4, 2)]


def test_the_mini_suite_has_groups_of_pictures(tmp_path):
    """Its questions of a task are each about a picture of their own."""
    entry = ran(tmp_path / "out", {"read_word": {"mini": "heldout", "samples": 4}}).tasks["read_word"]
    assert (entry["n"], entry["groups"]) == (4, 4)


def test_groups_that_cannot_be(place, tmp_path, no_model):
    for key, source in (("mini", {"mini": "heldout"}), ("mme", {"mme": str(place)})):
        with pytest.raises(ConfigError, match=f"group is 'album', but {key} has no records; write image or none"):
            made(tmp_path / "out", {"t": source | {"group": "album"}})
    said = refusal(DataError, tmp_path / "out", tasks_of(place, group="page"))
    assert "asked.jsonl:1: no value of 'page', which `group` names; it has id, prompt, target" in said
