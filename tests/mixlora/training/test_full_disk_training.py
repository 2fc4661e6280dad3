"""Trainings that cannot write, and two in one place: one sentence, nothing lost, and the same weights at last."""

import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from trainings import made

from mixlora.errors import CheckpointError, TrainingError
from mixlora.training import run
from mixlora.training.folder import Folder, read_record, written
from tests.mixlora.killing import files

torch.set_num_threads(1)
AGAIN = "make room there, and the same command continues from the last checkpoint"


@contextmanager
def disk(size):
    """Inside, a file that grows beyond so many bytes is refused by the system."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run.train(made(tmp_path_factory.mktemp("whole") / "out"))[0]


@pytest.mark.parametrize(
    ("size", "said"),
    [  # the model card, the weights, the optimizer's state
        (3_000, "File too large"),
        (100_000, "Error while serializing: I/O error: File too large (os error 27)"),
        (250_000, "a file could not be written whole"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, whole, size, said):
    out = tmp_path / "out"
    with disk(size), pytest.raises(TrainingError) as told:
        run.train(made(out))
    assert str(told.value) == f"{out / 'checkpoints'} cannot be written: {said}; {AGAIN}"
    assert not read_record(out)["finished"]
    run.train(made(out))
    assert files(out) == files(whole)


def test_an_adapter_that_does_not_fit_at_the_end(tmp_path, whole, monkeypatch):
    out, save = tmp_path / "out", run._save

    def late(*arguments):
        with disk(100_000):
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
    with pytest.raises(TrainingError, match=rf"{out}.* cannot be written: .*; {AGAIN}"):
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


@pytest.mark.parametrize("method", ["lora", "specialist"])
def test_a_second_training_in_one_directory_is_refused(tmp_path, method):
    out = tmp_path / "out"
    wanted = made(out, method)
    with Folder(out, {}, None).alone(), pytest.raises(CheckpointError) as told:
        run.train(wanted)
    assert str(told.value) == f"another process is training {out}; wait for it, or choose another --out"
    assert not out.exists()


def test_one_that_has_ended_needs_no_lock_and_loses_what_a_kill_left(tmp_path, whole):
    (whole / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    with Folder(whole, read_record(whole)["config"], None).alone():
        assert run.train(made(whole)) == [whole]
    assert not (whole / "checkpoints").exists()
