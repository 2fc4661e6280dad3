"""From a configuration to a run: order, batches, units, resuming; nothing is left behind by what fails."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from interference import compare, config, load
from interference.errors import InterferenceError, RunError, ScopeError
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.measurement import checkpoint, sample
from interference.measurement.compute import compute_config, resolved
from interference.verification import reference
from mixlora.common.errors import DataError
from tests.support import killing
from tests.support.checkpoints import data, write_pictures, write_task

FILES = ["blocks.parquet", "gram.safetensors", "probes.parquet", "run.json"]


def grams(run):
    return {name: run.grams([name])[0] for name in run.blocks["name"]}


def same(a, b):
    pd.testing.assert_frame_equal(a.probes, b.probes)
    pd.testing.assert_frame_equal(a.blocks, b.blocks)
    left, right = grams(a), grams(b)
    assert left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def sample_of(settings):
    return sample.encode(sample.read(settings), sample.collator_of(settings), settings)


def test_gram_and_order_are_those_of_the_sample(tiny, tmp_path):
    settings = tiny.config(tmp_path / "run", batch_size=3)
    run, encoded = compute_config(settings), sample_of(settings)
    assert run.probes["ids"].tolist() == [unit.unit.ids for unit in encoded.units]
    assert run.probes["task"].tolist() == ["red"] * 6 + ["blue"] * 6
    assert len({unit.length for unit in encoded.units}) > 3  # so that sorting by length moves them
    model = checkpoint.load_model(settings.model)
    rows = []
    for place in range(12):
        ((one, _),) = sample.padded_batches(encoded, [place], settings.probe.batch_size, torch.device("cpu"))
        found = reference.gradients(model, one, layers=[1])
        rows.append(torch.cat([gradient.flatten() for gradient in found.values()]).double().numpy())
        assert run.probes["tokens"][place] == encoded.units[place].examples[0].supervised
        assert run.probes["loss"][place] == pytest.approx(model(**one).loss.item(), rel=1e-5)
    whole = np.array(rows)
    np.testing.assert_allclose(run.gram(), whole @ whole.T, rtol=1e-4, atol=1e-6 * (whole**2).sum(1).max())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12])
def test_the_batch_size_does_not_matter(tiny, run, tmp_path, batch_size):
    other = compute_config(tiny.config(tmp_path / "run", layers=[0, 2], batch_size=batch_size))
    assert other.probes.drop(columns="loss").equals(run.probes.drop(columns="loss"))
    np.testing.assert_allclose(other.gram(), run.gram(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("token_mean", [False, True])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_units_of_several_examples_are_means(tiny, run, tmp_path, token_mean, batch_size):
    probe = {"unit_size": 3, "layers": [0, 2], "token_mean": token_mean, "batch_size": batch_size}
    units = compute_config(tiny.config(tmp_path / "run", **probe))
    weights = run.probes["tokens"].to_numpy(float) if token_mean else np.ones(12)
    mean = np.zeros((4, 12))
    mean[np.arange(12) // 3, range(12)] = weights
    mean /= mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(units.gram(), mean @ run.gram() @ mean.T, rtol=1e-4, atol=1e-5)
    assert units.probes["ids"][0] == " + ".join(run.probes["ids"][:3])
    assert units.probes["tokens"].tolist() == run.probes["tokens"].to_numpy().reshape(4, 3).sum(1).tolist()


def test_the_run_says_how_it_came_about(tiny, run_dir):
    meta = json.loads((run_dir / "run.json").read_text())
    assert meta["schema"] == 2 and meta["seed"] == 0 and meta["config"]["probe"]["layers"] == [0, 2]
    assert meta["config"]["tasks"]["red"]["file"] == str(tiny.tasks["red"].resolve())
    assert meta["config"]["probe"]["max_length"] is None and meta["config"]["model"]["dtype"] == "float32"
    assert set(meta["versions"]) == {"torch", "transformers", "peft"}
    assert len(meta["fingerprints"]["model"]) == len(meta["data"]["fingerprint"]) == 32
    assert meta["adapter"] == "default" and meta["not_probed"] == []


def test_the_run_is_rerun_from_its_directory_in_another_place(tiny, run, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = compute_config(config.load(run_dir, options={"out": "again"}))
    same(again, run)
    assert load("again").meta["config"] == run.meta["config"] | {"out": "again"}


def test_the_built_in_base_is_not_taken_for_a_folder(tiny, tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    values = tiny.data()
    found = resolved(config.build(values | {"model": {"base": "mini", "adapter": "mini"}}, "test"))
    assert found["model"]["base"] == "mini" and found["model"]["adapter"] == str(tmp_path / "mini")


def test_every_unit_has_a_digest_of_its_examples(tiny, run, tmp_path):
    assert run.probes["content"].str.fullmatch("[0-9a-f]{32}").all() and run.probes["content"].nunique() == 12
    moved = {name: Path(shutil.copy(file, tmp_path)) for name, file in tiny.tasks.items()}
    values = data(tiny.base, tiny.adapter, moved, tmp_path / "run", layers=[1], batch_size=2)
    same_examples = compute_config(config.build(values, "test"))
    assert same_examples.probes["content"].equals(run.probes["content"])
    write_task(moved["red"], 8, change=lambda k, row: row | ({"response": "w1"} if k == 2 else {}))
    changed = compute_config(config.build(values | {"out": str(tmp_path / "changed")}, "test"))
    assert (changed.probes["content"] != run.probes["content"]).sum() == 1
    compare(same_examples, run, replicates=50)
    with pytest.raises(ScopeError, match="1 of the runs' 12 units have the same names and other content, the first is"):
        compare(same_examples, changed, replicates=50)


def test_another_picture_of_the_same_name_is_other_content(tiny_llava, tmp_path):
    write_pictures(tmp_path, ["p0.png", "p1.png", "p2.png"])
    seen = write_task(tmp_path / "s.jsonl", 4, change=lambda k, v: v | ({"image": f"p{k}.png"} if k < 3 else {}))
    values = data(tiny_llava / "base", tiny_llava / "adapter", {"a": seen, "b": seen})
    settings = config.build(values, "test")
    before = [unit.unit for unit in sample_of(settings).units]
    Image.new("RGB", (20, 18), (1, 2, 3)).save(tmp_path / "p0.png")
    after = [unit.unit for unit in sample_of(settings).units]
    other = [(a.task, a.ids) for a, b in zip(before, after, strict=True) if a.content != b.content]
    assert other == [("a", "r0"), ("b", "r0")]


def test_pictures_are_measured_apart_and_in_order(tiny_llava, tmp_path):
    write_pictures(tmp_path, ["p0.png", "p1.png", "p2.png"])
    seen = write_task(
        tmp_path / "seen.jsonl", 6, change=lambda k, v: v | ({"image": f"p{k // 2}.png"} if k % 2 else {})
    )
    values = data(tiny_llava / "base", tiny_llava / "adapter", {"seen": seen, "read": write_task(tmp_path / "r.jsonl")})
    settings = config.build(values | {"out": str(tmp_path / "run")}, "test")
    run = compute_config(settings)
    with_image = {f"r{k}" for k in (1, 3, 5)}
    encoded = sample_of(settings)
    assert run.probes["ids"].tolist()[:3] == [u.unit.ids for u in encoded.units[:3]]
    assert set(run.probes["ids"][:3]) == with_image and set(run.probes["ids"][3:6]) == {"r0", "r2", "r4"}
    model = checkpoint.load_model(settings.model)
    ((one, _),) = sample.padded_batches(encoded, [0], settings.probe.batch_size, torch.device("cpu"))
    assert one["pixel_values"].shape == (1, 3, 16, 16)
    targets = find_targets(model, "default", [1])
    assert sum((g**2).sum().item() for g in reference.of_targets(model, one, targets).values()) == pytest.approx(
        run.gram()[0, 0], rel=1e-4
    )


# --- resuming ---


def counting(monkeypatch):
    forwards = []
    own = Probe.gradients
    monkeypatch.setattr(Probe, "gradients", lambda self, batch: forwards.append(1) or own(self, batch))
    return forwards


def stopping_after(units):
    def stop(stage, done, total):
        if done >= units:
            raise KeyboardInterrupt

    return stop


def interrupt(settings, units=3):
    with pytest.raises(KeyboardInterrupt):
        compute_config(settings, stopping_after(units))
    out = Path(settings.out)
    assert not out.exists()
    return out.with_name(out.name + ".partial")


def test_a_stopped_run_continues_and_is_the_same_to_the_bit(tiny, tmp_path, monkeypatch):
    whole = compute_config(tiny.config(tmp_path / "whole", batch_size=3))
    forwards = counting(monkeypatch)
    settings = tiny.config(tmp_path / "run", batch_size=3)
    partial = interrupt(settings, 6)
    assert len(forwards) == 2 and len(list(partial.glob("part-*.safetensors"))) == 2
    continued = compute_config(settings)
    assert len(forwards) == 4  # of four parts, two were kept
    same(continued, whole)
    same(load(tmp_path / "run"), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


@pytest.mark.parametrize("change", [{"weight_space": True}, {"layers": [2]}, {"token_mean": True}, {"seed": 1}])
def test_another_configuration_loses_nothing_of_an_unfinished_run(tiny, tmp_path, change):
    partial = interrupt(tiny.config(tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in partial.iterdir()}
    ((key, value),) = change.items()
    words = f"run.partial holds unfinished work of another job (config.probe.{key} was "
    with pytest.raises(RunError, match=rf"{re.escape(words)}.* and is now {re.escape(repr(value))}\); fin"):
        compute_config(tiny.config(tmp_path / "run", **change))
    assert {path.name: path.read_bytes() for path in partial.iterdir()} == before


def test_a_changed_example_is_measured_anew(tiny, tmp_path, monkeypatch):
    own = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    settings = config.build(data(tiny.base, tiny.adapter, own, tmp_path / "run"), "test")
    interrupt(settings, 12)
    text = own["red"].read_text().splitlines()
    values = json.loads(text[2])
    own["red"].write_text("\n".join([*text[:2], json.dumps(values | {"response": "w9"}), *text[3:]]))
    forwards = counting(monkeypatch)
    found = compute_config(settings)
    assert found.meta["measured_again"] == len(forwards) in (1, 2, 3)
    monkeypatch.undo()
    same(found, compute_config(config.build(data(tiny.base, tiny.adapter, own, tmp_path / "other"), "test")))


def dies(values):
    """A measurement whose process dies when five parts are kept."""
    compute_config(config.build(values, "x"), lambda stage, done, total: killing.die() if done == 5 else None)


@pytest.mark.slow
def test_a_killed_run_continues(tiny, tmp_path):
    out = tmp_path / "run"
    settings = tiny.config(out, batch_size=1)
    assert killing.ended(killing.start(dies, settings.model_dump(mode="json"))) == -9
    assert not out.exists() and len(list(tmp_path.glob("run.partial/part-*.safetensors"))) == 5
    done = []
    continued = compute_config(settings, lambda stage, count, total: done.append((stage, count, total)))
    assert done[:2] == [("gradients", 1, 12), ("gradients", 2, 12)]
    same(continued, compute_config(tiny.config(tmp_path / "whole", batch_size=1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


def test_a_foreign_directory_beside_out_is_not_removed(tiny, tmp_path):
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"run.partial contains other files; choose"):
        compute_config(tiny.config(tmp_path / "run"))
    assert (tmp_path / "run.partial" / "thesis.tex").read_text() == "years of work"


# --- failures leave nothing ---


@pytest.mark.parametrize("cut", [False, True])
def test_a_broken_picture_is_named_and_nothing_is_left(tiny_llava, tmp_path, cut):
    write_pictures(tmp_path, [f"p{k}.png" for k in range(4)])
    whole = (tmp_path / "p3.png").read_bytes()
    (tmp_path / "p3.png").write_bytes(whole[: len(whole) - 30] if cut else b"no picture")
    file = write_task(tmp_path / "seen.jsonl", 4, change=lambda k, values: values | {"image": f"p{k}.png"})
    values = data(tiny_llava / "base", tiny_llava / "adapter", {"seen": file}, tmp_path / "run")
    with pytest.raises(DataError, match=r"seen.jsonl:4: the image .*p3.png cannot be used"):
        compute_config(config.build(values, "test"))
    assert not list(tmp_path.glob("run*"))


def test_too_few_units_of_a_kind_are_told_before_the_model_is_loaded(tiny_llava, tmp_path, monkeypatch):
    write_pictures(tmp_path, ["p.png"])
    file = write_task(tmp_path / "t.jsonl", 4, change=lambda k, v: v | ({"image": "p.png"} if k == 0 else {}))
    values = data(tiny_llava / "base", tiny_llava / "adapter", {"mixed": file}, tmp_path / "run", unit_size=2)
    monkeypatch.setattr(checkpoint, "load_model", lambda config: pytest.fail("the model was loaded"))
    with pytest.raises(InterferenceError, match="task 'mixed' has 1 units of 2 examples that all have an image or all"):
        compute_config(config.build(values, "test"))


def test_a_configuration_without_out_is_told(tiny):
    with pytest.raises(InterferenceError, match="names no directory for the run; give out: or --out"):
        compute_config(tiny.config())
