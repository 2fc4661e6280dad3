"""probe.sample_groups and paired: what a configuration draws, keeps in its run, and refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from interference import config
from interference.errors import ConfigError, DataError, RunError
from interference.measurement import sample
from interference.measurement.compute import compute_config
from interference.report.findings.excerpts import Excerpts
from interference.verification.verify import verify_config
from tests.support.checkpoints import data, write_task


def documents(tiny, tmp_path, **probe):
    """Two tasks of eight documents with three examples each; the first six documents are in both."""
    files = {
        name: write_task(tmp_path / f"{name}.jsonl", 24, seed, lambda k, own, at=at: own | {"doc": f"d{at + k // 3}"})
        for seed, (name, at) in enumerate([("red", 0), ("blue", 2)])
    }
    values = data(tiny.base, tiny.adapter, files, tmp_path / "run", **{"samples": 6, "sample_groups": True} | probe)
    for task in values["tasks"].values():
        task["group"] = "doc"
    return values


@pytest.mark.parametrize(("paired", "overlap"), [(True, 1.0), (False, 0.0)])
def test_a_run_of_paired_tasks_shares_its_groups_and_one_of_tasks_apart_none(tiny, tmp_path, paired, overlap):
    samples = 6 if paired else 4  # ten documents: four each are possible without a common one
    run = compute_config(config.build(documents(tiny, tmp_path, paired=paired, samples=samples), "test"))
    assert run.probes.groupby("task")["group"].nunique().tolist() == [samples, samples]
    assert run.overlap().to_numpy().tolist() == [[1, overlap], [overlap, 1]]
    assert (run.meta["config"]["probe"]["sample_groups"], run.meta["config"]["probe"]["paired"]) == (True, paired)
    assert verify_config(run).passed
    again = compute_config(config.build({**run.meta["config"], "out": str(tmp_path / "again")}, "test"))
    assert again.probes.equals(run.probes) and np.array_equal(again.gram(), run.gram())


def test_a_sample_of_groups_has_more_of_them(tiny, tmp_path):
    counts = {}
    for sampled in (True, False):
        settings = config.build(documents(tiny, tmp_path, sample_groups=sampled, samples=8), "test")
        found = sample.read(settings).examples
        counts[sampled] = [len({example.group for example in own}) for own in found.values()]
    assert counts[True] == [8, 8] and max(counts[False]) < 8


def test_units_of_several_examples_are_of_one_group_each(tiny, tmp_path):
    values = documents(tiny, tmp_path, samples=24, unit_size=3)
    run = compute_config(config.build(values, "test"))
    assert run.probes.groupby("task")["group"].nunique().tolist() == [8, 8]  # a unit a document
    excerpts = Excerpts()
    for task in values["tasks"]:
        units = excerpts._units(run, task)
        assert list(units) == [tuple(row) for row in run.probes[run.probes.task == task][["ids", "source"]].to_numpy()]


def test_the_preview_shows_what_is_drawn(interference, tiny, tmp_path):
    values = documents(tiny, tmp_path, paired=True)
    (tmp_path / "c.yaml").write_text(json.dumps(values))
    said = interference("preview", tmp_path / "c.yaml", "-n", "6", "--json")
    shown = [(one["task"], one["id"]) for one in map(json.loads, said.out.splitlines())]
    drawn = sample.read(config.build(values, "test")).examples
    assert shown == [(task, example.id) for task, own in drawn.items() for example in own]


def test_other_draws_are_other_jobs(tiny, tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_config(config.build(documents(tiny, tmp_path), "test"), stop)
    for change in ({"paired": True}, {"paired": False}, {"sample_groups": False}):
        with pytest.raises(RunError, match="holds unfinished work of another job"):
            compute_config(config.build(documents(tiny, tmp_path, **change), "test"))
    compute_config(config.build(documents(tiny, tmp_path), "test"))


@pytest.mark.parametrize("paired", [True, False])
def test_pictures_of_two_tasks_are_drawn_together_or_apart_by_their_content(tiny_llava, tmp_path, paired):
    for k in range(16):  # sixteen names, eight pictures, each in both tasks
        Image.new("RGB", (20, 18), (30 * (k % 8), 90, 30)).save(tmp_path / f"{k}.png")
    files = {
        name: write_task(tmp_path / f"{name}.jsonl", 8, seed, lambda k, own, at=at: own | {"image": f"{at + k}.png"})
        for seed, (name, at) in enumerate([("seen", 0), ("again", 8)])
    }
    probe = {"samples": 4, "sample_groups": True, "paired": paired}
    run = compute_config(
        config.build(data(tiny_llava / "base", tiny_llava / "adapter", files, tmp_path / "run", **probe), "test")
    )
    assert run.overlap().loc["seen", "again"] == (1.0 if paired else 0.0)


def changed(values, task=None, **probe):
    values["probe"] |= probe
    values["tasks"]["red"] |= task or {}
    return values


def test_not_paired_is_what_examples_drawn_one_by_one_are(tiny, tmp_path):
    plain = changed(documents(tiny, tmp_path), None, sample_groups=False)
    said = changed(documents(tiny, tmp_path), {"paired": False}, sample_groups=False, paired=False)
    one, other = (sample.read(config.build(values, "test")).examples for values in (plain, said))
    assert {task: [example.id for example in examples] for task, examples in one.items()} == {
        task: [example.id for example in examples] for task, examples in other.items()
    }


@pytest.mark.parametrize(
    ("task", "probe", "message"),
    [
        (
            None,
            {"sample_groups": False, "paired": True},
            "test: paired is true, but groups are only drawn with probe.sample_groups: true; set it, or drop paired",
        ),
        (
            {"paired": True, "group": "none"},
            {},
            "test: task 'red' has paired, but its group is none; name a group, or drop paired",
        ),
        (
            {"group": "none"},
            {"paired": True},
            "test: paired is true for 'red', but that takes two tasks with groups; give a second task one, or drop",
        ),
        (
            {"paired": True},
            {},
            "test: paired is true for 'red', but that takes two tasks with groups; give a second task one, or drop",
        ),
    ],
)
def test_paired_without_groups_is_refused(tiny, tmp_path, task, probe, message):
    with pytest.raises(ConfigError) as told:
        config.build(changed(documents(tiny, tmp_path), task, **probe), "test")
    assert str(told.value).startswith(message)


def test_pairs_without_a_common_group_are_refused(tiny, tmp_path):
    values = documents(tiny, tmp_path, paired=True)
    write_task(tmp_path / "blue.jsonl", 24, 1, lambda k, own: own | {"doc": f"other{k // 3}"})
    with pytest.raises(DataError, match="paired is true, but 'red' and 'blue' have no group in common in their files"):
        compute_config(config.build(values, "test"))
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(("paired", "shared"), [(True, 40), (False, 0)])
def test_tasks_of_the_mini_suite_are_drawn_from_more_pictures_than_are_measured(paired, shared):
    tasks = {name: {"mini": "heldout"} for name in ("read_word", "name_ink")}
    probe = {"samples": 40, "sample_groups": True, "paired": paired}
    values = {"model": {"base": "mini", "adapter": "none"}, "tasks": tasks, "probe": probe}
    found = sample.read(config.build(values, "test")).examples
    words, inks = ({example.id for example in found[name]} for name in tasks)
    assert len(words) == len(inks) == 40 and len(words & inks) == shared
