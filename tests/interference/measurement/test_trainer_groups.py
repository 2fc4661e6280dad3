"""Groups of a trainer's rows: by pictures, by a column, by labels; in one measurement and along a training."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Trainer

import interference
from interference.errors import ScopeError
from interference.measurement.grouping import groups_of
from interference.measurement.rows import Row, Source
from tests.interference.measurement.test_trainer import plain, records, rows_of_tokens, tuned
from tests.support.models import llama, lora
from tests.support.watching import PROBES, arguments, examples


def of_documents():
    """Six rows, in turn of red and blue: red has documents a, b and b, blue a, c and d."""
    return [row | {"doc": doc} for row, doc in zip(rows_of_tokens(), "aabcbd", strict=True)]


def numbered(labels):
    return list(pd.factorize(np.array(labels))[0])


def by_row(run, labels):
    """The label of every unit, whose id is its row's number."""
    return numbered([labels[int(row)] for row in run.probes["ids"]])


def test_a_column_groups_the_rows_of_all_tasks_of_a_trainer(tmp_path):
    trainer = plain(tmp_path, dataset=Dataset.from_list(of_documents()))
    run = interference.from_trainer(trainer, groups="doc")
    assert run.groups == by_row(run, "aabcbd") and run.meta["trainer"]["groups"] == "doc"
    assert run.overlap().loc["red", "blue"] == 0.5 and run.overlap().loc["blue", "red"] == pytest.approx(1 / 3)
    alone = interference.from_trainer(trainer, groups="none")
    assert alone.groups == list(range(6)) and np.array_equal(alone.gram(), run.gram())
    assert interference.from_trainer(trainer).groups == list(range(6))  # no row has a picture
    same = np.isclose(run.matrix("delta"), alone.matrix("delta"), rtol=1e-10, atol=0)
    assert same.tolist() == [[False, False], [False, True]]  # pairs of one document are left out; blue has none itself


def test_a_column_groups_the_rows_of_sfttrainer_and_of_datasets_by_task(tmp_path):
    rows = [row | {"doc": k // 3} for k, row in enumerate(records("messages"))]
    trainer = tuned(tmp_path, dataset=Dataset.from_list(rows))
    run = interference.from_trainer(trainer, groups="doc")
    assert run.groups == by_row(run, [k // 3 for k in range(8)])
    own = {task: Dataset.from_list([row for row in rows if row["task"] == task]) for task in ("red", "blue")}
    given = interference.from_trainer(trainer, by=own, groups="doc")
    of_task = {task: dataset["doc"] for task, dataset in own.items()}
    expected = [of_task[task][int(k)] for task, k in zip(given.probes.task, given.probes.ids, strict=True)]
    assert given.groups == numbered(expected)


def test_labels_are_one_a_row_of_a_task_whatever_is_drawn(tmp_path):
    trainer = plain(tmp_path, dataset=Dataset.from_list(of_documents()))
    labels = {"red": ["a", "b", "b"], "blue": ["a", "c", "d"]}
    run = interference.from_trainer(trainer, groups=labels)
    assert run.groups == interference.from_trainer(trainer, groups="doc").groups
    assert run.meta["trainer"]["groups"] == "labels"
    few = interference.from_trainer(trainer, samples=2, groups={"red": [1, 2, 3], "blue": [1, 2, 3]})
    place = {str(k): k // 2 for k in range(6)}
    assert few.groups == numbered([place[row] for row in few.probes["ids"]])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            "page",
            r"train_dataset, row \d \(task 'red'\): no value of 'page', which groups names; it has input_ids, .*doc",
        ),
        ("input_ids", "input_ids, which groups names, is a list; use a column of text or numbers"),
        ({"red": [1, 2, 3]}, "groups has no task 'blue': give its rows labels, or leave groups out altogether"),
        ({"red": [1, 2, 3], "blue": [1, 2, 3], "green": [1]}, "groups has a task 'green', which has no rows; leave it"),
        (
            {"red": [1, 2], "blue": [1, 2, 3]},
            "groups of task 'red' has 2 labels, but its dataset has 3 rows; give a label for every row of the task, in",
        ),
        (
            {"red": [1, 1, 1], "blue": [1, 2, 3]},
            "groups of task 'red' puts all its 3 rows into 1 group, but",
        ),
        ({"red": "abc", "blue": [1, 2, 3]}, "groups of task 'red' is a str, but must be a list: a label for every"),
        (["a"], r"groups is a list, but must be a dict \{task: a label for every row\}"),
        (
            "same",
            "the 3 rows of task 'red' that were drawn form 1 group, because they share values of 'same', but",
        ),
    ],
)
def test_groups_that_do_not_fit_the_rows_are_refused(tmp_path, groups, message):
    rows = [row | {"same": 1} for row in of_documents()]
    with pytest.raises(ScopeError, match=message):
        interference.from_trainer(plain(tmp_path, dataset=Dataset.from_list(rows)), groups=groups)


def test_a_row_without_a_value_is_refused(tmp_path):
    rows = of_documents()
    rows[4]["doc"] = None
    with pytest.raises(ScopeError, match=r"row 4 \(task 'red'\): no value of 'doc', which groups names"):
        interference.from_trainer(plain(tmp_path, dataset=Dataset.from_list(rows)), groups="doc")


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def grouped(shown, **more):
    """The groups of rows of one task that show these pictures."""
    made = [{"image": picture} | more for picture in shown]
    source = Source("rows", made, list, lambda place: 0, (made,))
    return groups_of([Row("red", str(k), source) for k in range(len(made))], "image")


def test_pictures_are_told_apart_by_their_content(tmp_path):
    red, blue = png((200, 0, 0)), png((0, 0, 200))
    for name, held in (("a", red), ("b", red), ("c", blue)):
        (tmp_path / name).write_bytes(held)
    files = [str(tmp_path / name) for name in "abc"]
    assert grouped(files) == [0, 0, 1]
    assert grouped([red, red, blue]) == grouped([{"bytes": red, "path": "x"}, {"bytes": red}, {"bytes": blue}])
    assert grouped([{"bytes": None, "path": files[0]}, {"bytes": red}, {"bytes": blue}]) == [0, 0, 1]
    opened = [Image.new("RGB", (4, 4), colour) for colour in ("red", "red", "blue")]
    assert grouped(opened) == [0, 0, 1]
    assert grouped([[opened[0], opened[2]], [opened[1]], [opened[2]], None, None]) == [
        0,
        0,
        0,
        1,
        2,
    ]  # through the first
    pixels = [torch.zeros(3, 2, 2), np.zeros((3, 2, 2)), np.ones((3, 2, 2)).tolist()]
    assert grouped(pixels) == [0, 0, 1]
    with pytest.raises(
        ScopeError, match=r"rows, row 0 .*: its picture is an object, which cannot be compared with others"
    ):
        grouped([object(), red])
    with pytest.raises(ScopeError, match="the 2 rows of task 'red' that were drawn form 1 group, because they share"):
        grouped([red, red])


def test_pictures_within_messages_count():
    picture, other = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    made = [
        {"messages": [{"role": "user", "content": [{"type": "image", "image": own}, {"type": "text", "text": "?"}]}]}
        for own in (picture, other, picture)
    ]
    source = Source("rows", made, list, lambda place: 0, (made,))
    assert groups_of([Row("red", str(k), source) for k in range(3)], "image") == [0, 1, 0]


def test_a_dataset_of_pictures_is_grouped_by_them_unless_told_otherwise(tmp_path):
    rows = [row | {"images": [{"bytes": png((40 * (k // 2), 0, 0))}]} for k, row in enumerate(rows_of_tokens())]
    trainer = plain(tmp_path, dataset=Dataset.from_list(rows))
    run = interference.from_trainer(trainer)
    assert run.groups == by_row(run, [0, 0, 1, 1, 2, 2]) and run.overlap().to_numpy().tolist() == [[1, 1], [1, 1]]
    assert interference.from_trainer(trainer, groups="none").groups == list(range(6))


def test_a_callback_measures_by_groups(tmp_path):
    trainer = plain(tmp_path, dataset=Dataset.from_list(of_documents()), max_steps=2)
    callback = interference.InterferenceCallback(trainer, "task", every=1, verdicts=False, groups="doc")
    trainer.add_callback(callback)
    trainer.train()
    assert list(callback.runs) == [0, 1, 2]
    expected = interference.from_trainer(trainer, groups="doc")
    assert all(run.groups == expected.groups for run in callback.runs.values())
    assert np.allclose(callback.runs[2].gram(), expected.gram(), atol=1e-5)


def test_a_callback_of_batches_takes_labels_and_refuses_others_where_it_is_made(tmp_path):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path, max_steps=1), train_dataset=examples())
    units = {task: sum(len(one["labels"]) for one in given) for task, given in PROBES.items()}
    labels = {task: [f"g{k // 2}" for k in range(count)] for task, count in units.items()}
    callback = interference.InterferenceCallback(trainer, PROBES, first=False, verdicts=False, groups=labels)
    trainer.add_callback(callback)
    trainer.train()
    (run,) = callback.runs.values()
    assert run.groups == numbered([label for task in PROBES for label in labels[task]])
    task = next(iter(PROBES))
    for groups, message in (
        (labels | {task: ["a", "b"] * units[task]}, f"groups of task {task!r} has {2 * units[task]} labels, but its"),
        ("doc", "groups is a str, but must be a dict"),
    ):
        with pytest.raises(ScopeError, match=message):
            interference.InterferenceCallback(trainer, PROBES, groups=groups)


def test_a_callback_that_starts_later_refuses_a_missing_column_before_the_first_step(tmp_path):
    trainer = plain(tmp_path, dataset=Dataset.from_list(of_documents()), max_steps=2)
    trainer.add_callback(interference.InterferenceCallback(trainer, "task", first=False, groups="page"))
    with pytest.raises(ScopeError, match="no value of 'page', which groups names"):
        trainer.train()
    assert trainer.state.global_step == 0
