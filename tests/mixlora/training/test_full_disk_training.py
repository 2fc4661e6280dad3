"""Trainings that cannot write, and two in one place: one sentence, nothing lost, and the same weights at last."""

import errno
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from mixlora.common.errors import BusyError, TrainingError
from mixlora.training import run
from mixlora.training.folder import Folder, read_record, written
from tests.support import disks
from tests.support.killing import files
from tests.support.trainings import made

torch.set_num_threads(1)
CONTINUES = "the same command continues from the last checkpoint"
AGAIN = f"make room there, and {CONTINUES}"
ELSEWHERE = f"make it writable, and {CONTINUES}, or choose another --out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run.train(made(tmp_path_factory.mktemp("whole") / "out"))[0]


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """{file of a checkpoint: bytes}."""
    path = tmp_path_factory.mktemp("sizes") / "out"

    def interrupting(trainer):
        class Interrupting(TrainerCallback):
            def on_save(self, *_, **__):
                raise KeyboardInterrupt

        return Interrupting()

    with pytest.raises(KeyboardInterrupt):
        run.train(made(path), callbacks=[interrupting])
    return {file.name: file.stat().st_size for file in (path / "checkpoints" / "checkpoint-2").iterdir()}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("README.md", "File too large"),
        ("adapter_model.safetensors", "Error while serializing: I/O error: File too large (os error 27)"),
        ("optimizer.pt", "a file could not be written whole"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, whole, sizes, file, said):
    """The disk fills when the first step begins, after the record of the training, which may be the larger file."""
    out = tmp_path / "out"
    with pytest.raises(TrainingError) as told, ExitStack() as stack:

        class Filling(TrainerCallback):
            def on_train_begin(self, *_, **__):
                stack.enter_context(disks.full(sizes[file] - 100))

        run.train(made(out), callbacks=[lambda trainer: Filling()])
    assert str(told.value) == f"{out / 'checkpoints'} cannot be written: {said}; {AGAIN}"
    assert not read_record(out)["finished"]
    run.train(made(out))
    assert files(out) == files(whole)


def test_an_adapter_that_does_not_fit_at_the_end(tmp_path, whole, sizes, monkeypatch):
    out, save = tmp_path / "out", run._save

    def late(*arguments):
        with disks.full(sizes["adapter_model.safetensors"] - 100):
            save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=rf"{out} cannot be written: .*; {AGAIN}"):
        patch.setattr(run, "_save", late)
        run.train(made(out))
    taken = []
    run.train(made(out), lambda stage, done, total: taken.append(done) if stage == "training" else None)
    assert taken == [] and files(out) == files(whole)


@pytest.mark.parametrize(("name", "snapshots"), [("checkpoints", []), ("snapshots", [1])])
def test_a_file_in_the_place_of_a_folder(tmp_path, name, snapshots):
    out = tmp_path / "out"
    wanted = made(out, training={"steps": 2, "snapshots": snapshots})
    with pytest.raises(KeyboardInterrupt):
        run.train(wanted, callbacks=[interrupting])
    for folder in out.glob(f"{name}*"):
        folder.rmdir()
    (out / name).touch()
    with pytest.raises(TrainingError, match=rf"{out}.* cannot be written: .*; {ELSEWHERE}$"):
        run.train(wanted)
    (out / name).unlink()
    run.train(wanted)
    assert read_record(out)["finished"]


def interrupting(_):
    raise KeyboardInterrupt


def test_other_errors_of_torch_are_not_taken_for_a_full_disk(tmp_path):
    for error in (RuntimeError("CUDA error: device-side assert triggered"), torch.OutOfMemoryError("memory")):
        with pytest.raises(type(error), match=str(error)), written(tmp_path):
            raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), f"Disk quota exceeded; {AGAIN}"),
        (OSError(errno.EACCES, "Permission denied"), f"Permission denied; {ELSEWHERE}"),
        (SafetensorError("I/O error (os error 13)"), f"I/O error \\(os error 13\\); {ELSEWHERE}"),
        (RuntimeError("Parent directory x does not exist."), f"Parent directory x does not exist; {ELSEWHERE}"),
        (RuntimeError("[enforce fail at inline_container.cc:603]"), f"a file could not be written whole; {AGAIN}"),
    ],
)
def test_room_is_asked_for_only_where_there_is_none(tmp_path, error, said):
    with pytest.raises(TrainingError, match=rf"^{tmp_path} cannot be written: {said}$"), written(tmp_path):
        raise error


@pytest.mark.parametrize("method", ["lora", "specialist"])
def test_a_second_training_in_one_directory_is_refused(tmp_path, method):
    out = tmp_path / "out"
    wanted = made(out, method)
    with Folder(out, {}, None).alone(), pytest.raises(BusyError) as told:
        run.train(wanted)
    assert str(told.value) == f"another process is training {out}; wait for it, or choose another --out"
    assert not out.exists()


def test_one_that_has_ended_needs_no_lock_and_loses_what_a_kill_left(tmp_path, whole):
    whole = shutil.copytree(whole, tmp_path / "out")
    (whole / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    with Folder(whole, read_record(whole)["config"], None).alone():
        assert run.train(made(whole)) == [whole]
    assert not (whole / "checkpoints").exists()
