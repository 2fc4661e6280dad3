"""Factors on disk: kept, continued, refused where they are damaged or of something else."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interference import config
from interference.errors import CheckpointError, ConfigError, RunError, ScopeError
from interference.factors import factors, observer
from interference.measurement import checkpoint, resume, sample
from interference.run import record
from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import fingerprints
from mixlora.common.locks import locked
from mixlora.data.collation import Collator
from tests.support.checkpoints import tokenizer
from tests.support.disks import no_room
from tests.support.models import llama
from tests.support.observed import asked, words


def test_what_was_saved_is_loaded(folder, found):
    given, out = found
    again = factors.load(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "examples.parquet",
        "factors.json",
        "selections.safetensors",
        "untrained.safetensors",
    ]
    pd.testing.assert_frame_equal(again.examples, given.examples)
    pd.testing.assert_frame_equal(again.selections.blocks, given.selections.blocks)
    assert again.selections.tasks == given.selections.tasks and again.selections.mixture
    assert again.selections.values.keys() == given.selections.values.keys()
    for name, value in given.selections.values.items():
        np.testing.assert_array_equal(again.selections.values[name], value)
    assert repr(again) == "Factors(MIXLORA; 18 examples: red 6, blue 6, green 6; 8 blocks)"
    meta = json.loads((out / "factors.json").read_text())
    assert meta["schema"] == 3 and meta["adapter_kind"] == "MIXLORA" and meta["config"]["out"] is None
    model = checkpoint.load_model(asked(folder).model)
    assert meta["fingerprints"] == checkpoint.recorded(fingerprints(model))
    assert config.build(meta["config"], "factors.json").probe.layers == [0, 2]


def test_numbers_are_of_the_kind_that_the_adapter_writes(folder, found, tmp_path):
    out = tmp_path / "lora"
    given = observer.compute_config(asked(folder, "lora"), out)
    again = factors.load(out).selections
    assert {value.dtype for value in again.values.values()} == {np.dtype(np.float32)}
    for name, value in given.selections.values.items():
        np.testing.assert_array_equal(again.values[name], value)
    as_mixture = spoilt(out, tmp_path / "mixture", lambda meta: meta.update(adapter_kind="MIXLORA"))
    assert refused(as_mixture).endswith("has the type float32, not whole numbers")
    as_lora = spoilt(found[1], tmp_path / "other", lambda meta: meta.update(adapter_kind="LORA"))
    assert refused(as_lora).endswith("has the type int32, not real numbers")


def test_two_processes_do_not_compute_the_same_factors(folder, tmp_path):
    out = tmp_path / "out"
    words = re.escape(f"another process is computing {out}; wait for it, or choose another --out")
    (tmp_path / "out.partial").mkdir()
    with locked(tmp_path / "out.partial" / "lock", f"computing {out}"), pytest.raises(RunError, match=words):
        observer.compute_config(asked(folder), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]


def test_a_kill_right_after_the_factors_are_moved_leaves_nothing_for_ever(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "_remove", lambda *folders: (_ for _ in ()).throw(KeyboardInterrupt))
        observer.kept_or_computed(asked(folder), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
    found = observer.kept_or_computed(asked(folder), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and len(found.examples) == len(
        factors.load(out).examples
    )


def test_what_waits_is_taken_for_the_same_checkpoint_and_examples_alone(folder, tmp_path):
    out, stages = tmp_path / "out", []

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observer.kept_or_computed(asked(folder), out, stop)
    words = r"out\.partial holds unfinished work of another job \(factors of\.adapter weights has changed, .*, \d+ more"
    with pytest.raises(RunError, match=words):
        observer.kept_or_computed(asked(folder, "lora"), out)
    part = next((tmp_path / "out.partial").glob("part-*"))
    written = part.stat().st_mtime_ns
    found = observer.kept_or_computed(
        asked(folder), out, lambda *said: stages.append(part.exists() and part.stat().st_mtime_ns)
    )
    assert stages[0] == written and [path.name for path in tmp_path.iterdir()] == ["out"]
    whole = observer.compute_config(asked(folder), tmp_path / "whole")
    for name, value in whole.selections.values.items():
        np.testing.assert_array_equal(found.selections.values[name], value)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_told(folder, seed):
    config = asked(folder)
    model, processor = checkpoint.load_model(config.model), loading.load_processor(config.model)
    with pytest.raises(ConfigError, match=rf"^seed is {seed}, but must be a whole number from 0 to 4294967295$"):
        observer.compute(model, Collator(processor), sample.read(config).examples, seed=seed)


def spoilt(out, to, change):
    """A copy of the factors, its factors.json changed."""
    shutil.copytree(out, to)
    meta = json.loads((to / "factors.json").read_text())
    change(meta)
    meta.pop("seal")
    record.write_meta(to / "factors.json", meta)
    return to


def refused(path) -> str:
    with pytest.raises(RunError) as told:
        factors.load(path)
    return str(told.value)


def test_what_is_no_factors_is_refused_in_words(found, tmp_path):
    out = found[1]
    assert refused(tmp_path / "none") == f"there are no factors at {tmp_path / 'none'}"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == f"{tmp_path / 'empty'} has no factors: it lacks factors.json"
    newer = spoilt(out, tmp_path / "newer", lambda meta: meta.update(schema=4))
    assert refused(newer) == f"{newer} has schema 4, but this version reads schema 3; update task-interference"
    for name, change in {
        "kind": lambda meta: meta.update(adapter_kind="IA3"),
        "blocks": lambda meta: meta.pop("blocks"),
        "sums": lambda meta: meta["checksums"].update({"../other": "0"}),
    }.items():
        assert "factors.json is damaged" in refused(spoilt(out, tmp_path / name, change))
    few = spoilt(out, tmp_path / "few", lambda meta: [block.update(factors=2) for block in meta["blocks"]])
    assert "names a factor that is not among 2" in refused(few)
    other = spoilt(out, tmp_path / "other", lambda meta: meta["blocks"][0].update(name="language.9.q_proj.A"))
    assert "it lacks block language.9.q_proj.A" in refused(other)
    cut = tmp_path / "cut"
    shutil.copytree(out, cut)
    whole = (cut / "selections.safetensors").read_bytes()
    (cut / "selections.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "selections.safetensors is damaged: its checksum differs" in refused(cut)
    (cut / "factors.json").write_text("[]")
    assert "factors.json is damaged" in refused(cut)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta.update(seed=2**32), "its seed is 4294967296; compute the factors again"),
        (lambda meta: meta.update(seed="3"), "its 'seed' is '3'; compute the factors again"),
        (lambda meta: meta.update(schema=0), None),
        (lambda meta: meta["blocks"][0].pop("factors"), "its blocks cannot be read ("),
        (lambda meta: meta["blocks"][0].update(layer=0.5), "its blocks cannot be read ("),
        (lambda meta: meta["blocks"][0].update(name=None), "a block has no name; compute the factors again"),
        (lambda meta: meta["blocks"][0].update(module=3), "a block has no name; compute the factors again"),
        (lambda meta: meta["blocks"].append(meta["blocks"][0]), "a block appears twice or has no factors; comp"),
        (lambda meta: meta["blocks"][0].update(factors=0), "a block appears twice or has no factors; compute the"),
    ],
)
def test_damage_to_the_record_is_told(found, tmp_path, change, words):
    wrong = spoilt(found[1], tmp_path / "wrong", change)
    if words is None:
        assert refused(wrong) == f"{wrong} has schema 0, but this version reads schema 3; update task-interference"
    else:
        assert refused(wrong).startswith(f"{wrong / 'factors.json'} is damaged: {words}")


def test_damage_to_the_examples_is_told(found, tmp_path):
    def without_task(folder):
        examples = pd.read_parquet(folder / "examples.parquet").assign(task=None)
        examples.to_parquet(folder / "examples.parquet")

    def fewer(folder):
        pd.read_parquet(folder / "examples.parquet")[:-1].to_parquet(folder / "examples.parquet")

    for name, change, told in (
        ("task", without_task, "examples.parquet is damaged: a task is missing"),
        ("fewer", fewer, "does not have 17 examples"),
    ):
        folder = tmp_path / name
        shutil.copytree(found[1], folder)
        change(folder)
        assert "examples.parquet is damaged: its checksum differs" in refused(folder)
        files = ("examples.parquet", "selections.safetensors", "untrained.safetensors")
        sums = {file: record.checksum(folder / file) for file in files}
        assert told in refused(
            spoilt(folder, tmp_path / f"{name}-told", lambda meta, now=sums: meta.update(checksums=now))
        )


def test_factors_of_before_are_read_and_say_what_they_lack(found, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(found[1], old)
    (old / "untrained.safetensors").unlink()
    pd.read_parquet(old / "examples.parquet").drop(columns="group").to_parquet(old / "examples.parquet", index=False)
    sums = {file: record.checksum(old / file) for file in ("examples.parquet", "selections.safetensors")}

    def before(meta):
        meta.update(schema=1, checksums=sums)
        del meta["untrained"], meta["copies"]

    given = factors.load(spoilt(old, tmp_path / "first", before))
    assert given.selections.groups is None and given.untrained is None
    groups, control = factors.remarks(given)
    assert groups == (
        "these factors have no groups, so their examples were treated as independent: where they share pictures or "
        "documents, chance and intervals are wrong; compute them again"
    )
    assert control == (
        "these factors have no untrained adapter, so the clusters do not show what training learned; to add it, run "
        "`interference factors` again with another --out"
    )
    for key, value in (("untrained", {"text": 3}), ("untrained", [1]), ("copies", "two")):
        wrong = spoilt(found[1], tmp_path / f"{key}-{value}"[:12], lambda meta, new={key: value}: meta.update(new))
        assert refused(wrong) == f"{wrong / 'factors.json'} is damaged; compute the factors again"
        shutil.rmtree(wrong)


def test_groups_and_the_untrained_adapter_are_kept(found):
    again = factors.load(found[1])
    np.testing.assert_array_equal(again.selections.groups, found[0].selections.groups)
    assert again.untrained.groups is again.selections.groups and again.untrained.tasks == found[0].untrained.tasks
    for name, value in found[0].untrained.values.items():
        np.testing.assert_array_equal(again.untrained.values[name], value)
    assert factors.origin(again) == "an untrained adapter of the same configuration, seed 0"


def test_factors_of_a_notebook_are_not_taken_for_those_of_a_configuration(folder, found, tmp_path):
    settings, out = asked(folder), found[1]
    assert observer.kept_or_computed(settings, out).examples.equals(found[0].examples)
    for name, change in {
        "none": lambda meta: meta.update(config=None),
        "gone": lambda meta: meta.pop("config"),
    }.items():
        other = spoilt(out, tmp_path / name, change)
        with pytest.raises(RunError, match="already holds factors; choose another --out or delete it first"):
            observer.kept_or_computed(settings, other)


def test_factors_of_a_version_without_a_key_are_kept(folder, found, tmp_path):
    """A key that did not exist when factors were stored has its default; what a lookahead does changes no factors."""
    other = spoilt(found[1], tmp_path / "older", lambda meta: meta["config"].pop("lookahead"))
    settings = asked(folder)
    ahead = config.LookaheadConfig(steps=[7])
    for each in (settings, settings.model_copy(update={"lookahead": ahead})):
        assert observer.kept_or_computed(each, other).meta["computed"] == found[0].meta["computed"]
    probe = settings.probe.model_copy(update={"batch_size": 7})
    with pytest.raises(RunError, match="already holds factors; choose another --out or delete it first"):
        observer.kept_or_computed(settings.model_copy(update={"probe": probe}), other)


def test_a_lookahead_that_is_asked_for_continues_the_same_factors(folder, tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observer.compute_config(asked(folder), tmp_path / "out", stop)
    kept = (tmp_path / "out.partial" / "identity").read_text()
    assert "lookahead" not in kept
    settings = asked(folder).model_copy(update={"lookahead": config.LookaheadConfig(steps=[7])})
    observer.compute_config(settings, tmp_path / "out")


@pytest.mark.parametrize("kind", ["adapter", "task"])
def test_factors_of_what_has_changed_since_are_refused(folder, found, tmp_path, kind):
    settings, out = asked(folder), tmp_path / "factors"
    shutil.copytree(found[1], out)
    changed = {
        "adapter": Path(settings.model.adapter) / "adapter_model.safetensors",
        "task": Path(next(iter(settings.tasks.values())).file),
    }[kind]
    before = changed.read_bytes()
    os.utime(changed)  # a file that is only touched is the same
    assert observer.kept_or_computed(settings, out).meta["inputs"]
    changed.write_bytes(before.replace(b"w1", b"w2") if kind == "task" else before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(RunError) as told:
            observer.kept_or_computed(settings, out)
    finally:
        changed.write_bytes(before)
    key = {"adapter": "model.adapter", "task": f"tasks.{next(iter(settings.tasks))}"}[kind]
    assert str(told.value) == (
        f"{out} was computed from other inputs ({key} has changed); delete it, or choose another --out"
    )


def test_factors_by_another_template_in_the_same_file_are_refused(folder, tmp_path):
    settings, out, template = asked(folder), tmp_path / "factors", tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}")
    settings.model.chat_template = str(template)
    first = observer.kept_or_computed(settings, out)
    assert observer.kept_or_computed(settings, out).meta == first.meta
    template.write_text(template.read_text().replace("' '", "' w9 '"))
    with pytest.raises(RunError) as told:
        observer.kept_or_computed(settings, out)
    assert str(told.value) == (
        f"{out} was computed from other inputs (the chat template has changed); delete it, or choose another --out"
    )


def test_factors_may_lie_in_the_home_directory(found, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    given, _ = found
    given.save("~/factors")
    assert (tmp_path / "home" / "factors" / "factors.json").is_file() and not (tmp_path / "~").exists()
    pd.testing.assert_frame_equal(factors.load("~/factors").examples, given.examples)


def test_nothing_is_overwritten_and_nothing_is_left_behind(folder, found, tmp_path, monkeypatch):
    given, out = found
    with pytest.raises(RunError, match="already holds factors; choose another --out or delete it first"):
        given.save(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and contains no factors"):
        observer.compute_config(asked(folder), tmp_path / "other")
    (tmp_path / "free").mkdir()
    monkeypatch.setattr(factors, "save_file", no_room)
    with pytest.raises(RunError, match="No space left on device"):
        given.save(tmp_path / "free")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert list((tmp_path / "free").iterdir()) == []


def test_wrong_questions_are_refused_before_the_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_model", None)
    with pytest.raises(ScopeError, match="there is only task 'red'; give at least 2"):
        observer.compute_config(asked(folder, tasks=["red"]), tmp_path / "out")
    with pytest.raises(Exception, match="more tokens than max_length 3; raise max_length or drop the record"):
        observer.compute_config(asked(folder, max_length=3), tmp_path / "out")
    with pytest.raises(CheckpointError, match="no LoRA or MixLoRA adapter"):
        observer.compute(llama(), Collator(tokenizer()), words())
    assert not (tmp_path / "out").exists()
