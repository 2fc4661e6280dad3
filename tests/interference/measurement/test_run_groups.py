"""Groups of a run: from pictures, a key of records, or labels in a notebook; stored, read, and refused in words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, RandomSampler

import interference
from interference import config, load
from interference.cli.printing import remarks, show
from interference.errors import ConfigError, DataError, RunError, ScopeError
from interference.measurement.compute import compute_config
from interference.run import compare
from interference.run.remarks import dependence
from interference.statistics import uncertainty
from interference.verification.verify import verify_config
from tests.support.checkpoints import data, write_task
from tests.support.models import batch, llama, lora

BATCHES = {
    "red": [batch([12, 7, 9], [3, 1, 5], seed=2), batch([8, 8], [2, 4], seed=3)],
    "blue": [batch([6, 11], [2, 6], seed=4), batch([9], [3], seed=5)],
}
LABELS = {"red": ["x", "x", 1, ("y", 2), "x"], "blue": [1, "z", "z"]}


@pytest.fixture(scope="module")
def model():
    return lora(llama())


def documents(tiny, tmp_path, **probe):
    """A configuration of two tasks whose records name documents: d0 to d3 in red, d2 to d4 in blue."""
    files = {
        name: write_task(
            tmp_path / f"{name}.jsonl", 8, seed, lambda k, values, first=first: values | {"doc": f"d{first + k % 4}"}
        )
        for seed, (name, first) in enumerate([("red", 0), ("blue", 2)])
    }
    values = data(tiny.base, tiny.adapter, files, tmp_path / "run", samples=8, **probe)
    for task in values["tasks"].values():
        task["group"] = "doc"
    return values


def by_document(run, values):
    """The document of every unit, read from the files again."""
    found = {}
    for name, task in values["tasks"].items():
        with Path(task["file"]).open() as file:
            found |= {(name, line["id"]): line["doc"] for line in map(json.loads, file)}
    return [
        [found[task, one] for one in ids.split(" + ")]
        for task, ids in zip(run.probes.task, run.probes.ids, strict=True)
    ]


def test_labels_of_a_notebook_call_become_one_number_a_group(model, tmp_path):
    run = interference.compute(model, BATCHES, groups=LABELS, out=tmp_path / "run")
    assert list(run.probes["group"]) == run.groups == [0, 0, 1, 2, 0, 1, 3, 3]
    read = load(tmp_path / "run")
    assert read.groups == run.groups
    expected = uncertainty.table(run.gram(), list(run.probes["task"]), "delta", groups=run.groups, replicates=50)
    np.testing.assert_array_equal(read.table("delta", replicates=50)["low"], expected.low.ravel())
    alone = interference.compute(model, BATCHES)
    assert "group" not in alone.probes and alone.groups is None
    assert (alone.matrix("delta") != run.matrix("delta")).to_numpy().all()
    assert alone.table("delta", groups=LABELS["red"] + LABELS["blue"], replicates=50).equals(
        run.table("delta", replicates=50)
    )


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor,
        np.array,
        pd.Series,
        lambda labels: [torch.tensor(label) for label in labels],
        lambda labels: [str(label) for label in labels],
        lambda labels: [float(label) for label in labels],
    ],
)
def test_labels_are_told_apart_by_what_they_say_whatever_holds_them(model, given):
    numbers = {"red": [7, 7, 1, 2, 7], "blue": [1, 3, 3]}
    wanted = interference.compute(model, BATCHES, groups=numbers).groups
    assert (
        interference.compute(model, BATCHES, groups={"red": given(numbers["red"]), "blue": numbers["blue"]}).groups
        == wanted
    )
    assert wanted == [0, 0, 1, 2, 0, 1, 3, 3]


def collated(rows):
    return batch([9] * len(rows), [3] * len(rows), seed=rows[0])


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": RandomSampler(range(6))}])
def test_labels_of_a_loader_that_shuffles_are_refused(model, options):
    loader = DataLoader(range(6), batch_size=2, collate_fn=collated, **options)
    with pytest.raises(
        ScopeError, match="the batches of task 'red' come from a DataLoader that shuffles, so `groups` cannot"
    ):
        interference.compute(
            model, {"red": loader, "blue": BATCHES["blue"]}, groups={"red": [0, 0, 1, 1, 2, 2], "blue": [3, 4, 5]}
        )


def test_labels_of_a_loader_in_order_are_counted_before_anything_is_measured(model):
    loader = DataLoader(range(6), batch_size=2, collate_fn=collated)
    groups = {"red": [0, 0, 1, 1, 2, 2], "blue": [3, 4, 5]}
    found = interference.compute(model, {"red": loader, "blue": BATCHES["blue"]}, groups=groups)
    assert found.groups == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    asked = []
    with pytest.raises(ScopeError, match="groups of task 'red' has 5 labels, but its batches have 6 units"):
        interference.compute(
            model,
            {"red": loader, "blue": BATCHES["blue"]},
            groups=groups | {"red": [0, 0, 1, 1, 2]},
            progress=lambda *said: asked.append(said),
        )
    assert asked == []
    whole = DataLoader(BATCHES["red"], batch_size=None)  # of batches
    assert interference.compute(model, {"red": whole, "blue": BATCHES["blue"]}, groups=LABELS).groups == [
        0,
        0,
        1,
        2,
        0,
        1,
        3,
        3,
    ]


def test_batches_that_come_only_once_and_batch_units_take_labels(model):
    once = {task: iter(given) for task, given in BATCHES.items()}
    assert interference.compute(model, once, groups=LABELS).groups == [0, 0, 1, 2, 0, 1, 3, 3]
    of_batches = {"red": ["p", "q"], "blue": ["q", "r"]}
    assert interference.compute(model, BATCHES, unit="batch", groups=of_batches).groups == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["x"] * 8, r"groups is a list, but must be a dict \{task: a label for every unit\}"),
        ({"red": LABELS["red"]}, "groups has no task 'blue': give its units labels, or leave groups out altogether"),
        (LABELS | {"green": [1, 2]}, "groups has a task 'green', which has no batches; leave it out"),
        (LABELS | {"red": "abcde"}, "groups of task 'red' is a str, but must be a list: a label for every unit"),
        (LABELS | {"red": [[1], 2, 3, 4, 5]}, r"groups of task 'red' has the label \[1\], a list; use text or numbers"),
        (
            LABELS | {"red": ["a", float("nan"), "b", "c", "d"]},
            "groups of task 'red' has no label at position 1: nan is a missing value; give one of its own",
        ),
        (
            LABELS | {"red": ["a", "b", " ", "c", "d"]},
            "groups of task 'red' has no label at position 2: ' ' is a missing",
        ),
        (
            LABELS | {"red": [object(), 2, 3, 4, 5]},
            "groups of task 'red' has the label <object .*, an object; use text",
        ),
        (
            LABELS | {"red": [1] * 5},
            "groups of task 'red' puts all its 5 units into 1 group, but at least 2 are needed",
        ),
        (
            LABELS | {"red": [1, 2, 3, 4]},
            "groups of task 'red' has 4 labels, but its batches have 5 units; give a label",
        ),
        (LABELS | {"blue": [1, 2, 3, 4]}, "groups of task 'blue' has 4 labels, but its batches have 3 units; give a"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_anything_is_measured(model, groups, message):
    asked = []
    with pytest.raises(ScopeError, match=message):
        interference.compute(model, BATCHES, groups=groups, progress=lambda *said: asked.append(said))
    assert asked == []


@pytest.mark.parametrize(
    ("count", "message"), [(4, "has 4 labels, but its batches have more"), (6, "has 6 labels, but its batches have 5")]
)
def test_labels_that_do_not_fit_batches_that_come_only_once_are_refused(model, count, message):
    once = {task: iter(given) for task, given in BATCHES.items()}
    with pytest.raises(ScopeError, match=f"groups of task 'red' {message}"):
        interference.compute(model, once, groups=LABELS | {"red": list(range(count))})


def test_a_key_of_the_records_groups_units_of_all_tasks(tiny, tmp_path):
    values = documents(tiny, tmp_path)
    run = compute_config(config.build(values, "test"))
    documents_of = [own[0] for own in by_document(run, values)]
    assert run.groups == list(pd.factorize(np.array(documents_of))[0])
    assert not any("doc" in line for line in remarks(run, run.table(replicates=20), run.signal()))
    assert run.meta["config"]["tasks"]["red"]["group"] == "doc"
    assert dependence(run.probes) == (
        "16 units form 6 groups, 2 of them in more than one task; red has the fewest for its size: 4 groups for 8 units"
        "; intervals and verdicts are based on groups"
    )


def test_units_of_several_examples_share_a_group_through_any_of_them(tiny, tmp_path):
    values = documents(tiny, tmp_path, unit_size=2)
    for k, name in enumerate(values["tasks"]):
        names = [f"{k}-{document}" for document in (0, 0, 1, 2, 3, 4, 5, 5)]  # of 4 units a task
        write_task(tmp_path / f"{name}.jsonl", 8, k, lambda n, own, names=names: own | {"doc": names[n]})
    run = compute_config(config.build(values, "test"))
    shared = by_document(run, values)
    for first, one in zip(run.groups, shared, strict=True):
        for second, other in zip(run.groups, shared, strict=True):
            assert first == second or not set(one) & set(other)
    assert len(shared) == 8 and 4 <= len(set(run.groups)) < 8


@pytest.mark.parametrize("group", ["image", "none"])
def test_pictures_group_by_content_unless_examples_are_independent(tiny_llava, tmp_path, group):
    for k in range(8):  # eight names, four pictures
        Image.new("RGB", (20, 18), (60 * (k % 4), 90, 30)).save(tmp_path / f"{k}.png")
    file = write_task(tmp_path / "seen.jsonl", 8, 0, lambda k, values: values | {"image": f"{k}.png"})
    again = write_task(tmp_path / "again.jsonl", 8, 1, lambda k, values: values | {"image": f"{k % 2}.png"})
    read = write_task(tmp_path / "read.jsonl", 8, 2)
    tasks = {"seen": file, "again": again, "read": read}
    values = data(tiny_llava / "base", tiny_llava / "adapter", tasks, tmp_path / "run", samples=8)
    if group == "none":
        for task in values["tasks"].values():
            task["group"] = group
    run = compute_config(config.build(values, "test"))
    places = {(task, f"r{k}"): k % 4 if task == "seen" else k % 2 for task in ("seen", "again") for k in range(8)}
    pictures = [
        places.get((task, name), f"{task} {name}") for task, name in zip(run.probes.task, run.probes.ids, strict=True)
    ]
    expected = list(pd.factorize(pd.Series(pictures, dtype=object))[0]) if group == "image" else list(range(24))
    assert run.groups == expected


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda k, values: values | ({} if k == 3 else {"doc": k}),
            DataError,
            "red.jsonl:4: no value of 'doc', which `group` names; it has id, prompt, response; name a key that every",
        ),
        (
            lambda k, values: values | {"doc": "same"},
            ScopeError,
            "the 8 units of task 'red' form 1 group, because they share values of 'doc', but at least 2 groups are "
            "needed: give it examples with other values of 'doc', or write group: none if they are independent",
        ),
    ],
)
def test_a_key_that_cannot_group_is_refused_in_words(tiny, tmp_path, change, kind, message):
    values = documents(tiny, tmp_path)
    write_task(tmp_path / "red.jsonl", 8, 0, change)
    with pytest.raises(kind, match=message):
        compute_config(config.build(values, "test"))
    assert not (tmp_path / "run").exists()


def test_a_key_needs_records():
    values = data("mini", "adapter", {})
    values["tasks"] = {"stroop": {"mini": "heldout", "group": "word"}}
    with pytest.raises(ConfigError, match="group is 'word', but mini has no records; write image or none"):
        config.build(values, "test")


def test_a_run_without_groups_says_that_its_units_were_taken_as_independent(model, tmp_path):
    run = interference.compute(model, BATCHES, out=tmp_path / "run")
    said = remarks(load(tmp_path / "run"), run.table(replicates=20), run.signal())
    assert any("its units were treated as independent" in line for line in said)
    known = interference.compute(model, BATCHES, groups={"red": range(5), "blue": [5, 6, 7]})
    assert dependence(known.probes) is None
    assert known.table("delta", replicates=20).equals(run.table("delta", replicates=20))


def test_runs_are_compared_by_the_groups_that_either_knows(model):
    known, unknown = (interference.compute(model, BATCHES, groups=labels) for labels in (LABELS, None))
    by_groups = compare(known, known, "delta", replicates=50)
    for a, b in ((known, unknown), (unknown, known)):
        assert compare(a, b, "delta", replicates=50).equals(by_groups)


@pytest.mark.parametrize("group", [0.5, None, "x"])
def test_a_damaged_group_is_told(model, tmp_path, group):
    run = interference.compute(model, BATCHES, groups=LABELS)
    run.probes["group"] = [group, *run.groups[1:]] if group != "x" else "x"
    run.save(tmp_path / "run")
    with pytest.raises(RunError, match=r"probes\.parquet is damaged: a group is not a whole number"):
        load(tmp_path / "run")


def test_copies_of_an_example_are_noted_with_their_ids(tiny, tmp_path):
    values = documents(tiny, tmp_path)
    write_task(tmp_path / "blue.jsonl", 8, 0, lambda k, own: own | {"doc": f"b{k}"})  # the examples of red
    run = compute_config(config.build(values, "test"))
    names = [f"{task} {ids}" for task, ids in zip(run.probes.task, run.probes.ids, strict=True)]
    assert [[names[row].split()[1] for row in rows] for rows in run.copies()] == [
        [ids] * 2 for ids in run.probes.ids[:8]
    ]
    first = run.probes.ids[0]
    said = [line for line in remarks(run, run.table(replicates=20), run.signal()) if "copies" in line]
    assert len(said) == 1
    assert said[0].startswith(
        "16 units are copies of 8 examples, by their gradients; the copies of one example form one"
    )
    assert f"group: red {first} = blue {first}; " in said[0] and said[0].endswith(", and 5 more")


def test_the_overlap_of_tasks_is_the_share_of_their_groups_in_common(model):
    run = interference.compute(model, BATCHES, groups=LABELS)
    found = run.overlap()
    assert found.loc["red"].tolist() == [1, 1 / 3] and found.loc["blue"].tolist() == [1 / 2, 1]
    assert interference.compute(model, BATCHES).overlap().to_numpy().tolist() == [[1, 0], [0, 1]]
    console = Console(record=True, width=200)
    show(run, "delta", console)
    said = console.export_text()
    assert "groups in common" in said
    assert (
        "8 units form 4 groups, 1 of them in more than one task; red has the fewest for its size: 3 groups for 5 units"
        in said
    )


@pytest.mark.parametrize("label", ["d9", "d1"])
def test_unfinished_work_and_runs_of_other_groups_are_told(tiny, tmp_path, label):
    """What is measured of an example does not depend on its label, but what is concluded from the run does."""
    values, told = documents(tiny, tmp_path, batch_size=1), pytest.raises(RunError)
    settings, before = config.build(values, "test"), (tmp_path / "red.jsonl").read_text()

    def stop(stage, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_config(settings, stop)
    write_task(tmp_path / "red.jsonl", 8, 0, lambda k, own: own | {"doc": label if k == 0 else f"d{k % 4}"})
    run, whole = compute_config(settings), compute_config(settings.model_copy(update={"out": str(tmp_path / "whole")}))
    assert run.groups == whole.groups and np.array_equal(run.gram(), whole.gram()) and run.meta["measured_again"] == 0
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "red.jsonl").write_text(before)
    run = compute_config(settings)
    assert verify_config(run).passed
    write_task(tmp_path / "red.jsonl", 8, 0, lambda k, own: own | {"doc": label if k == 0 else f"d{k % 4}"})
    with told as refused:
        verify_config(run)
    assert str(refused.value).startswith("the groups of examples have changed since the run was computed (other labels")
