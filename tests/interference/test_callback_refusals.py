"""InterferenceCallback where it cannot measure, and where several processes train."""

import os
from pathlib import Path

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer

import interference
from interference import InterferenceCallback
from interference.errors import CheckpointError, ConfigError, RunError, ScopeError
from interference.measurement.trainer import refuse_shards
from tests.support.models import batch, llama, lora
from tests.support.watching import (
    MODELS,
    PROBES,
    arguments,
    callback_of,
    examples,
    measuring,
    trained,
    weights,
)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": [7]}, ScopeError, "layer 7"),
        ({"layers": [7], "first": True}, ScopeError, "layer 7"),
        ({"modules": ["z_proj"]}, ScopeError, "z_proj"),
        ({"batches": {**PROBES, "lone": [batch([9], [2])]}}, ScopeError, "task 'lone' has 1 units; at least 2"),
        ({"batches": {**PROBES, "bare": [{"input_ids": torch.ones(2, 4).long()}]}}, ScopeError, "has no labels"),
        ({"batches": {}}, ScopeError, "no task was given"),
        ({"unit": "token"}, ScopeError, "unit 'token' is not one of"),
        ({"adapter": "other"}, CheckpointError, "adapter 'other' is not loaded"),
    ],
)
def test_a_wrong_probe_set_is_refused_before_the_first_step(tmp_path, options, error, words):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path), train_dataset=examples())
    callback = measuring(trainer, **{"first": False} | options)
    trainer.add_callback(callback)
    with pytest.raises(error, match=words):
        trainer.train()
    assert trainer.state.global_step == 0 and callback.runs == {}


def test_a_model_without_an_adapter_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(CheckpointError, match="no LoRA or MixLoRA adapter"):
        trained(tmp_path, llama(), [{"first": False}])


def test_settings_are_refused_where_they_are_made(tmp_path):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path), train_dataset=examples())
    with pytest.raises(ConfigError, match="every is 0, but must be at least 1"):
        InterferenceCallback(trainer, PROBES, every=0)
    with pytest.raises(ScopeError, match=r"task 'blue': a list_iterator gives its batches only once.*give a list"):
        InterferenceCallback(trainer, {**PROBES, "blue": iter(PROBES["blue"])})
    with pytest.raises(ScopeError, match="batches is a list, but must be a dict"):
        InterferenceCallback(trainer, PROBES["red"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'granularty'"):
        InterferenceCallback(trainer, PROBES, granularty="layer")


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"runs cannot be written to .*file"):
        trained(tmp_path, lora(llama()), [{"out": tmp_path / "file"}])


def test_sharded_trainings_are_refused(tmp_path, monkeypatch):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path), train_dataset=examples())
    callback = measuring(trainer)
    for stage, name in ((3, "DeepSpeed ZeRO-3"), (2, None)):
        monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
        state = trainer.accelerator.state  # shared by every Accelerator: put back by monkeypatch
        monkeypatch.setitem(state.__dict__, "deepspeed_plugins", DeepSpeedPlugin(zero_stage=stage))
        monkeypatch.setitem(state.__dict__, "distributed_type", DistributedType.DEEPSPEED)
        if name is None:
            assert refuse_shards(trainer) is None  # every process holds all parameters
        else:
            with pytest.raises(CheckpointError, match=f"the training uses {name}, where no process has the whole"):
                callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(CheckpointError, match=r"uses FSDP.*train with DistributedDataParallel or measure saved"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


@pytest.mark.slow
def test_a_training_that_starts_again_with_smaller_batches_starts_its_series_again(tmp_path):
    model, full = lora(llama()), []

    def out_of_memory(module, inputs, named):
        if module.training and len(named["input_ids"]) > 4:
            full.append(sorted(path.name for path in (tmp_path / "runs").iterdir()))
            raise RuntimeError("CUDA out of memory.")

    model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    options = {"per_device_train_batch_size": 5, "auto_find_batch_size": True}
    trainer = trained(tmp_path, model, [{"out": tmp_path / "runs"}], **options)
    assert full == [["step-0"]] and list(callback_of(trainer).runs) == [0, 2, 4]
    with pytest.raises(RunError, match="already holds a series"):
        trainer.train()


def meet(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # or accelerate takes every core for either
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)


def work(rank, folder):
    folder = Path(folder)
    meet(rank, folder)
    torch.set_num_threads(1)
    for name, watched in (("alone", []), ("watched", [{"out": folder / "runs"}])):
        options = {"ddp_backend": "gloo", "gradient_accumulation_steps": 2}
        trainer = trained(folder / name, MODELS["random"](), watched, **options)
        torch.save(weights(trainer.model), folder / f"{name}{rank}.pt")
        logged = [entry["step"] for entry in trainer.state.log_history if "loss/red" in entry]
        torch.save(logged, folder / f"{name}{rank}.log")
    said = []
    for options in ({"layers": [7]}, {"out": folder / "runs"}):
        try:
            trained(folder / "refused", lora(llama()), [options], ddp_backend="gloo")
        except interference.errors.InterferenceError as error:
            said.append(f"{type(error).__name__}: {error}")
    torch.save(said, folder / f"said{rank}")
    trainer = Trainer(model=lora(llama()), args=arguments(folder, ddp_backend="gloo"), train_dataset=examples())
    fully_shard(trainer.model, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(CheckpointError, match=r"uses a sharded model \(DTensor\), where no process has the whole"):
        measuring(trainer).on_train_begin(trainer.args, trainer.state, trainer.control)
    distributed.barrier()
    os._exit(0)  # taking a gloo group down can wait forever for one that has gone


@pytest.mark.slow
def test_of_two_processes_one_measures(tmp_path):
    multiprocessing.set_forkserver_preload([__name__])  # imported once for both
    multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method="forkserver")
    alone, watched = ([torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)] for name in ("alone", "watched"))
    start = weights(MODELS["random"]())
    for name, value in alone[0].items():
        assert torch.equal(value, watched[0][name]) and torch.equal(value, watched[1][name]), name
    assert any(not torch.equal(value, start[name]) for name, value in alone[0].items())
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["step-0", "step-2", "step-4"]
    assert [torch.load(tmp_path / f"watched{rank}.log") for rank in (0, 1)] == [[0, 2, 4]] * 2
    main, other = (torch.load(tmp_path / f"said{rank}") for rank in (0, 1))
    assert main[0].startswith("ScopeError: layer 7") and main[1].startswith("RunError:")
    assert [line.partition(": ")[2] for line in main] == [line.partition("main process: ")[2] for line in other]
