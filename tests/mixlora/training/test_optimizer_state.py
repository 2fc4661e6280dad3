"""The optimizer's state is kept where it is asked for, and is that of the adapter beside it."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from interference import config
from interference.measurement.compute import compute_config
from interference.verification.verify import verify_config
from mixlora.common.errors import ConfigError
from mixlora.training.run import refuse_shards, train
from tests.support.models import llama, lora
from tests.support.trainings import made, trained


def test_the_state_is_kept_beside_the_adapter_and_its_snapshots(tmp_path):
    recipe = {"steps": 2, "snapshots": [0, 1], "optimizer_state": True, "save_steps": None}
    (folder,) = train(made(tmp_path / "lora", training=recipe))
    steps = {}
    for place in (folder, folder / "snapshots" / "step-1"):
        state = torch.load(place / "optimizer.pt", weights_only=True)
        shapes = sorted(tuple(one["exp_avg_sq"].shape) for one in state["state"].values())
        assert shapes == sorted(tuple(value.shape) for value in load_file(place / "adapter_model.safetensors").values())
        steps[place.name] = {float(one["step"]) for one in state["state"].values()}
    assert steps == {"lora": {2.0}, "step-1": {1.0}}
    assert not (folder / "snapshots" / "step-0" / "optimizer.pt").exists()


def test_without_being_asked_nothing_is_kept(tmp_path):
    assert not (trained(tmp_path / "lora", "lora") / "optimizer.pt").exists()


def test_a_training_without_the_key_continues_with_it(tmp_path):
    (folder,) = train(made(tmp_path / "lora", training={"steps": 1, "save_steps": None}))
    assert train(made(tmp_path / "lora", training={"steps": 1, "save_steps": None, "optimizer_state": True})) == [
        folder
    ]


def test_a_state_that_no_process_has_whole_is_refused(tmp_path, monkeypatch):
    trainer = Trainer(lora(llama()), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    refuse_shards(trainer, True)
    for engine in ("fsdp", "deepspeed"):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, f"is_{engine}_enabled", True)
            refuse_shards(trainer, False)
            with pytest.raises(ConfigError, match=r"under .* no process has the whole state; leave it out"):
                refuse_shards(trainer, True)


def test_a_whole_model_has_no_adapter_to_keep_the_state_beside(tmp_path):
    words = "optimizer_state keeps a state beside an adapter, but method full trains none; leave it out"
    with pytest.raises(ConfigError, match=words):
        made(tmp_path, "full", training={"optimizer_state": True})


@pytest.mark.slow
def test_what_a_mixture_kept_is_measured_and_verified(tmp_path):
    recipe = {"steps": 3, "optimizer_state": True, "save_steps": None}
    (folder,) = train(made(tmp_path / "mixed", "mixlora", training=recipe))
    asked = {
        "model": {"base": "mini", "adapter": str(folder), "device": "cpu"},
        "tasks": {name: {"mini": "heldout"} for name in ("read_word", "name_ink")},
        "probe": {"samples": 4, "layers": [3], "step": "adam"},
        "out": str(tmp_path / "run"),
    }
    run = compute_config(config.build(asked, "test"))
    assert (run.meta["adam"]["source"], run.meta["adam"]["step"]) == (str(folder / "optimizer.pt"), 3)
    assert verify_config(run).adam.error < 1e-3
