"""Trainings that are killed, at any moment, end by the same call with the weights of those that were not."""

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import multiprocessing
from transformers import TrainerCallback

from mixlora.common.errors import CheckpointError
from mixlora.data import mini
from mixlora.training import folder, run, trainer
from tests.support.evaluations import files
from tests.support.killing import PRELOAD
from tests.support.trainings import TASKS, made

torch.set_num_threads(1)  # the same in the process that is killed: sums are taken in the same order
PROCESSES = multiprocessing.get_context("forkserver")
EPOCHS = {"steps": None, "epochs": 2}  # of three steps each
RANDOM = {"r": 2, "num_factors": 4, "alpha": 4, "routing": "random"}
TRAININGS = {
    "lora": {"training": EPOCHS | {"order": "length", "micro_batch_size": 4}},
    "random": {"method": "mixlora", "training": EPOCHS, "mixlora": RANDOM},
    "combined": {"training": EPOCHS | {"combine": "random", "order": "balanced", "micro_batch_size": 4}},
    "full": {"method": "full", "training": EPOCHS | {"learning_rate": 1e-4}},
    "projector": {"method": "mixlora", "training": EPOCHS, "adapter": {"train_projector": True}},
}


class Killer(TrainerCallback):
    """Kills the process at a step, before or after the checkpoint that belongs to it."""

    def __init__(self, step, saved=False):
        self.step = step
        self.saved = saved

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step and not self.saved:
            die()

    def on_save(self, args, state, control, **_):
        if state.global_step == self.step and self.saved:
            file = Path(args.output_dir) / f"checkpoint-{self.step}" / "trainer_state.json"
            file.write_text(file.read_text()[:-40])
            die()


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(own, path):
    own.save_model(str(path))
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    die()


def work(config, moment, step):
    """Train until the moment."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    callbacks = []
    if moment in ("step", "specialist", "state"):
        callbacks = [lambda own: Killer(step if _task(own) != "read_word" else -1, moment == "state")]
    elif moment == "weights":
        save = trainer.TaskTrainer._save_optimizer_and_scheduler
        trainer.TaskTrainer._save_optimizer_and_scheduler = lambda own, path: (
            die() if own.state.global_step == step else save(own, path)
        )
    elif moment == "record":
        Path.replace = die
    elif moment == "snapshot":
        run.PeftModel.save_pretrained = _dying(PeftModel.save_pretrained, f".step-{step}.new")
    elif moment == "end":
        run.Folder.close = die
    elif moment == "final":
        run._save = lambda own, path, *_: half_written(own, path)
    run.train(config, callbacks=callbacks)


def _task(own):
    return Path(own.args.output_dir).parent.name


def _dying(save, name):
    def dying(self, path, **options):
        save(self, path, **options)
        if Path(path).name == name:
            die()

    return dying


def kill(config, moment, step=None):
    PROCESSES.set_forkserver_preload(PRELOAD)
    process = PROCESSES.Process(target=work, args=(config, moment, step))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def weights(path):
    found = [file for name in ("adapter_model", "model") for file in path.glob(f"{name}.safetensors")]
    return load_file(found[0])


def assert_same(path, other):
    one, two = weights(path), weights(other)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def config_of(out, name, **training):
    options = dict(TRAININGS[name])
    adapter = {"dropout": 0.1} | options.pop("adapter", {})
    return made(out, adapter=adapter, training=options.pop("training") | training, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nobody killed, made where it is asked for."""
    made_ones = {}

    def of(name):
        if name not in made_ones:
            made_ones[name] = run.train(config_of(tmp_path_factory.mktemp("whole") / name, name))[0]
        return made_ones[name]

    return of


def steps_saved(path):
    return sorted(int(own.name.partition("-")[2]) for own in (path / "checkpoints").iterdir())


class Steps:
    """The steps that a training takes."""

    def __init__(self):
        self.taken = []

    def __call__(self, stage, done, total):
        if stage.endswith("training"):
            self.taken.append(done)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(tmp_path, whole, name):
    config, steps = config_of(tmp_path / "out", name), Steps()
    kill(config, "step", 5)
    assert steps_saved(tmp_path / "out") == [2, 4]
    assert not json.loads((tmp_path / "out" / "training.json").read_text())["finished"]
    run.train(config, steps)
    assert steps.taken == [5, 6]
    assert_same(tmp_path / "out", whole(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "step", "save_steps", "taken"),
    [
        ("step", 2, 2, [1, 2, 3, 4, 5, 6]),  # before any checkpoint
        ("step", 4, 3, [4, 5, 6]),  # from a checkpoint at the end of an epoch
        ("step", 6, None, [4, 5, 6]),  # a checkpoint an epoch
        ("weights", 4, 2, [3, 4, 5, 6]),  # its weights are written, its state is not
        ("state", 4, 2, [3, 4, 5, 6]),  # its state is half written
        ("final", None, 4, []),  # the adapter is half written
        ("end", None, 4, []),  # all is written, but that it is finished
    ],
)
def test_it_goes_on_from_the_last_whole_checkpoint(tmp_path, whole, moment, step, save_steps, taken):
    config, steps = config_of(tmp_path / "out", "lora", save_steps=save_steps), Steps()
    kill(config, moment, step)
    run.train(config, steps)
    assert steps.taken == taken
    assert_same(tmp_path / "out", whole("lora"))
    assert folder.read_record(tmp_path / "out")["finished"] and not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.slow
def test_one_that_ends_within_an_epoch_takes_no_step_too_many(tmp_path):
    training = {"steps": 4, "save_steps": 2}
    whole = run.train(made(tmp_path / "whole", training=training))[0]
    config, steps = made(tmp_path / "out", training=training), Steps()
    kill(config, "final")
    assert steps_saved(tmp_path / "out") == [2, 4]
    run.train(config, steps)
    assert steps.taken == []
    assert_same(tmp_path / "out", whole)


@pytest.mark.slow
def test_one_killed_before_its_record_was_written_starts(tmp_path, whole):
    config = config_of(tmp_path / "out", "lora")
    kill(config, "record")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {".lock", ".training.json.new"}
    run.train(config)
    assert_same(tmp_path / "out", whole("lora"))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.slow
def test_a_snapshot_is_whole_or_absent(tmp_path):
    config = made(tmp_path / "out", training={"snapshots": [0, 3]})
    kill(config, "snapshot", 3)
    assert sorted(file.name for file in (tmp_path / "out" / "snapshots").iterdir()) == [".step-3.new", "step-0"]
    run.train(config)
    assert sorted(file.name for file in (tmp_path / "out" / "snapshots").iterdir()) == ["step-0", "step-3"]
    whole = run.train(made(tmp_path / "whole", training={"snapshots": [3]}))[0]
    assert_same(tmp_path / "out" / "snapshots" / "step-3", whole / "snapshots" / "step-3")


@pytest.mark.slow
def test_specialists_go_on_with_the_one_that_was_interrupted(tmp_path):
    training = {"batch_size": 4}
    whole = run.train(made(tmp_path / "whole", "specialist", training=training))
    config, steps = made(tmp_path / "out", "specialist", training=training), Steps()
    kill(config, "specialist", 3)
    first = tmp_path / "out" / "read_word" / "adapter_model.safetensors"
    before = first.stat().st_mtime_ns
    assert not folder.read_record(tmp_path / "out")["finished"]
    found = run.train(config, steps)
    assert steps.taken == [3, 4] and first.stat().st_mtime_ns == before
    assert list(folder.read_record(tmp_path / "out")["specialists"]) == list(TASKS)
    for own, other in zip(found, whole, strict=True):
        assert_same(own, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("optimizer.pt", lambda content: content[:-20]),
        ("optimizer.pt", lambda content: content[:-9] + b"\0" * 9),
        ("scheduler.pt", lambda content: content[:-9] + b"\0" * 9),
        ("rng_state.pth", lambda content: content[:-20]),
        ("adapter_model.safetensors", lambda content: content[:-20]),
    ],
)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before_it(tmp_path, whole, file, damage):
    config, steps, told = config_of(tmp_path / "out", "lora"), Steps(), []
    kill(config, "step", 5)
    damaged = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    content = damage((damaged / file).read_bytes())
    (damaged / file).write_bytes(content)
    run.train(config, steps, tell=told.append)
    assert steps.taken == [3, 4, 5, 6]
    aside = damaged.with_name("damaged-checkpoint-4")
    assert f"a checkpoint is damaged and was renamed to {aside}: the training continues from an earlier one" in told
    assert_same(tmp_path / "out", whole("lora"))


@pytest.fixture
def ended(tmp_path):
    """The directory of a training with a checkpoint."""
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 4}')
    (checkpoint / "optimizer.pt").write_bytes(b"moments")
    folder.seal(checkpoint, 0)
    record = {"format": 1, "config": {"method": "lora"}, "data": None, "model": {"a": "b"}, "finished": False}
    (tmp_path / "out" / "training.json").write_text(json.dumps(record))
    return folder.Folder(tmp_path / "out", {"method": "lora"}, None)


@pytest.mark.parametrize("reader", ["of_file", "read_json"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_kept(ended, monkeypatch, reader, number):
    before = files(ended.path)

    def failing(path):
        raise OSError(number, os.strerror(number), str(path))

    for call in (lambda: ended.open({"a": "b"}), ended.last_checkpoint):
        with monkeypatch.context() as patched:
            patched.setattr(folder, reader, failing)
            with pytest.raises(CheckpointError) as error:
                call()
        assert str(error.value) == (
            f"the checkpoint {ended.checkpoints / 'checkpoint-4'} cannot be read: {os.strerror(number)}; make it "
            "readable, and the same command continues; or delete it"
        )
        assert files(ended.path) == before
    assert ended.open({"a": "b"}) == [] and ended.last_checkpoint() == ended.checkpoints / "checkpoint-4"


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"m0ments")])
def test_a_damaged_checkpoint_is_set_aside_not_deleted(ended, damage):
    checkpoint = ended.checkpoints / "checkpoint-4"
    (ended.checkpoints / "damaged-checkpoint-4").mkdir()  # of an earlier time
    damage(checkpoint / "optimizer.pt")
    before = files(checkpoint)
    moved = ended.checkpoints / "damaged-checkpoint-4.1"
    assert ended.open({"a": "b"}) == [moved] and files(moved) == before
    assert ended.open({"a": "b"}) == [] and ended.last_checkpoint() is None


def test_a_checkpoint_of_an_earlier_version_has_no_digests_and_counts(tmp_path, whole):
    config, steps = config_of(tmp_path / "out", "lora"), Steps()
    kill(config, "step", 5)
    for sums in (tmp_path / "out" / "checkpoints").glob("*/*.sums"):
        sums.unlink()
    run.train(config, steps)
    assert steps.taken == [5, 6]
    assert_same(tmp_path / "out", whole("lora"))


def test_temporary_files_of_other_processes_are_in_no_digests(tmp_path):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"global_step": 4}')
    for rank in (0, 1):
        (checkpoint / f"rng_state_{rank}.pth").write_bytes(b"state")
    (checkpoint / ".1.sums.new").write_text("{")  # the other process is about to rename it
    folder.seal(checkpoint, 0)
    assert sorted(json.loads((checkpoint / "0.sums").read_text())) == ["rng_state_0.pth", "trainer_state.json"]
    (checkpoint / ".1.sums.new").unlink()
    folder.seal(checkpoint, 1)
    assert folder._is_whole(checkpoint)
    sums = json.loads((checkpoint / "0.sums").read_text())
    (checkpoint / "0.sums").write_text(json.dumps(sums | {".1.sums.new": "0" * 32}))
    assert folder._is_whole(checkpoint)


def times(factor):
    def change(base):
        weights = load_file(base / "model.safetensors")
        name = next(name for name in weights if "q_proj" in name)
        save_file({**weights, name: factor * weights[name]}, base / "model.safetensors", {"format": "pt"})

    return change


def added_word(base):
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict(sorted(tokenizer["model"]["vocab"].items(), key=lambda item: -item[1]))
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_norm(base):
    settings = json.loads((base / "config.json").read_text())
    settings["text_config"]["rms_norm_eps"] = 0.01
    (base / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (times(1.7), r"\(base weights has changed\)"),
        (times(1.0001), r"\(base weights has changed\)"),
        (other_norm, r"\(base\.text_config\.rms_norm_eps was 1e-0\d and is now 0\.01\)"),
        (added_word, r"\(tokenizer has changed\)"),
    ],
)
def test_a_training_of_another_base_is_refused_and_keeps_its_checkpoints(tmp_path, change, words):
    base = tmp_path / "base"
    shutil.copytree(mini.base_path(), base)
    config = config_of(tmp_path / "out", "lora")
    config.model.base = str(base)
    kill(config, "step", 5)
    change(base)
    with pytest.raises(CheckpointError, match=rf"out is from another training {words}; choose another --out"):
        run.train(config)
    assert steps_saved(tmp_path / "out") == [2, 4]
