"""What changes between a kill and its continuation: another job is refused by name, and damage is measured again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interference import config
from interference.errors import RunError
from interference.gradients.probe import Probe
from interference.measurement import checkpoint
from interference.measurement.compute import compute_config
from tests.support.checkpoints import data, tokenizer, write_adapter, write_base, write_task
from tests.support.mixtures import mixture


@pytest.fixture
def job(tmp_path):
    """The configuration of a compute on a checkpoint of its own."""

    def made(adapted=None, **probe):
        base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", adapted)
        tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
        return config.build(data(base, adapter, tasks, tmp_path / "run", batch_size=2, **probe), "test")

    return made


def interrupted(settings, units=6):
    def stop(stage, done, total):
        if done >= units:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_config(settings, stop)
    return sorted(Path(settings.out + ".partial").glob("part-*"))


def changed_json(file, key, value):
    def change(place):
        path = place / file
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def changed_tensor(file, name, change):
    def applied(place):
        tensors = load_file(place / file)
        found = next(key for key in tensors if name in key)
        change(tensors[found].view(-1))
        save_file(tensors, place / file, {"format": "pt"})

    return applied


def one_more(values):
    values[1] += 1e-3  # a value that a sample of every 64th would leave out


ADAPTER, BASE = "adapter/adapter_config.json", "base/config.json"
CHANGES = {
    "lora_alpha": (changed_json(ADAPTER, "lora_alpha", 16), "model.adapter.default.lora_alpha was 8 and is now 16"),
    "use_rslora": (changed_json(ADAPTER, "use_rslora", True), "model.adapter.default.use_rslora was False and is now "),
    "rms_norm_eps": (changed_json(BASE, "rms_norm_eps", 0.1), "model.base.rms_norm_eps was 1e-06 and is now 0.1"),
    "hidden_act": (changed_json(BASE, "hidden_act", "gelu"), "model.base.hidden_act was 'silu' and is now 'gelu'"),
    "one value of the base": (
        changed_tensor("base/model.safetensors", "up_proj", one_more),
        "(model.base weights has changed)",
    ),
    "the base times 1.7": (
        changed_tensor("base/model.safetensors", "q_proj", lambda values: values.mul_(1.7)),
        "(model.base weights has changed)",
    ),
    "the adapter": (
        changed_tensor("adapter/adapter_model.safetensors", "lora_B", one_more),
        "(model.adapter weights has changed)",
    ),
    "chat template": (
        lambda place: (place / "base/chat_template.jinja").write_text(
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        ),
        "(processing.chat template has changed)",
    ),
}
OF_MIXTURES = {
    "pooling": (
        changed_json(ADAPTER, "pooling", "all"),
        "model.adapter.default.pooling was 'prompt' and is now 'all'",
    ),
    "cfs_form": (
        changed_json(ADAPTER, "cfs_form", "official"),
        "model.adapter.default.cfs_form was 'exact' and is now ",
    ),
}


@pytest.mark.parametrize("kind", [*CHANGES, *OF_MIXTURES])
def test_a_changed_model_is_another_job_which_is_named(job, tmp_path, kind):
    settings = job(mixture() if kind in OF_MIXTURES else None)
    kept = [part.read_bytes() for part in interrupted(settings)]
    change, words = {**CHANGES, **OF_MIXTURES}[kind]
    change(tmp_path)
    with pytest.raises(RunError) as told:
        compute_config(settings)
    assert "run.partial holds unfinished work of another job (" in str(told.value) and words in str(told.value)
    parts = sorted(Path(settings.out + ".partial").glob("part-*"))
    assert [part.read_bytes() for part in parts] == kept  # nothing is lost


def test_a_checkpoint_that_moved_is_the_same_job(job, tmp_path, monkeypatch):
    settings = job()
    interrupted(settings)
    for name in ("base", "adapter"):
        (tmp_path / name).rename(tmp_path / f"{name} elsewhere")
        setattr(settings.model, name, str(tmp_path / f"{name} elsewhere"))
    forwards, own = [], Probe.gradients
    monkeypatch.setattr(Probe, "gradients", lambda self, batch: forwards.append(1) or own(self, batch))
    assert compute_config(settings).meta["measured_again"] == 0 and len(forwards) == 3  # of six


def test_examples_that_change_their_task_are_measured_again_where_routers_look_at_tasks(job, tmp_path):
    words = {"red": "w1 w2", "blue": "w9 w8 w7"}
    adapted = mixture(routing="task", task_definitions=words)
    adapted.base_model.encode_tasks(tokenizer())
    settings = job(adapted)
    interrupted(settings)
    red, blue = (tmp_path / f"{name}.jsonl" for name in ("red", "blue"))
    before = red.read_bytes(), blue.read_bytes()
    red.write_bytes(before[1])
    blue.write_bytes(before[0])
    run = compute_config(settings)
    whole = compute_config(settings.model_copy(update={"out": str(tmp_path / "whole")}))
    assert np.array_equal(run.gram(), whole.gram()) and run.meta["measured_again"] == 3


def test_another_version_of_a_library_is_another_job(job, monkeypatch):
    settings = job()
    interrupted(settings)
    monkeypatch.setattr(checkpoint, "version", lambda name: "99.0")
    with pytest.raises(RunError, match=r"another job \(versions.torch was '.*' and is now '99.0', "):
        compute_config(settings)


def zeroed(part):
    tensors, metadata = load_file(part), None
    size = int.from_bytes(part.read_bytes()[:8], "little")
    metadata = json.loads(part.read_bytes()[8 : 8 + size])["__metadata__"]
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, part, metadata)


def flipped(part):
    content = bytearray(part.read_bytes())
    content[-3] ^= 4
    part.write_bytes(content)


def cut(part):
    part.write_bytes(part.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [zeroed, flipped, cut])
def test_a_damaged_part_is_measured_again_and_that_is_told(job, tmp_path, damage):
    settings = job()
    parts = interrupted(settings)
    damage(parts[1])
    run = compute_config(settings)
    whole = compute_config(settings.model_copy(update={"out": str(tmp_path / "whole")}))
    assert np.array_equal(run.gram(), whole.gram())
    assert (run.meta["measured_again"], whole.meta["measured_again"]) == (1, 0)


def test_a_part_that_is_damaged_while_it_waits_ends_the_job_and_the_next_one_measures_it(job, monkeypatch):
    settings = job()
    parts = interrupted(settings, 12)

    def spoiling(stage, done, total):
        if (stage, done) == ("gradients", total):
            zeroed(parts[0])

    with pytest.raises(
        RunError, match=r"part-000000.safetensors is gone or damaged \(the rows of .* are not what was measured"
    ):
        compute_config(settings, spoiling)
    assert compute_config(settings).meta["measured_again"] == 1
