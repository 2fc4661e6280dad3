"""InterferenceCallback where the Trainer reports to TensorBoard or Weights & Biases: scalars and the matrix drawn."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from interference.figures import canvas, matrices
from interference.run import Run
from tests.support.watching import MODELS, callback_of, trained, weights

PICTURE = "train/interference/matrix"


def drawn(run, step):
    """The pixels of the run's matrix."""
    content = canvas.rendered(matrices.heatmap(run, title=f"step {step}"), "png", dots=100)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_tensorboard_gets_the_matrix_of_each_measurement_and_the_training_stays_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    alone = trained(tmp_path, MODELS["lora"]())
    trainer = trained(tmp_path, MODELS["lora"](), [{"every": 2}], report_to=["tensorboard"])
    assert all(torch.equal(p, weights(alone.model)[name]) for name, p in weights(trainer.model).items())
    read = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0, "scalars": 0})
    read.Reload()
    runs = callback_of(trainer).runs
    assert read.Tags()["images"] == [PICTURE]
    shown = read.Images(PICTURE)
    assert [event.step for event in shown] == [0, 2, 4] == list(runs)
    for event, run in zip(shown, runs.values(), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        np.testing.assert_array_equal(pixels, drawn(run, event.step))
    assert (np.asarray(drawn(runs[0], 0)) != drawn(runs[4], 4)).any()
    for entry in (entry for entry in trainer.state.log_history if "loss/red" in entry):
        for name, value in entry.items():
            if name not in ("step", "epoch"):
                written = {event.step: event.value for event in read.Scalars(f"train/{name}")}
                assert written[entry["step"]] == pytest.approx(value, rel=1e-6), name
    assert [event.step for event in read.Scalars("train/interference/no_signal")] == [0, 2, 4]


def test_no_picture_where_nothing_takes_it_or_verdicts_are_off(tmp_path, monkeypatch):
    for name in ("tensorboard", "torch.utils.tensorboard", "wandb", "interference.figures"):
        monkeypatch.setitem(sys.modules, name, None)  # to import one is an error
    trainer = trained(tmp_path, MODELS["lora"](), [{"every": 4}])
    assert list(callback_of(trainer).runs) == [0, 4]
    monkeypatch.undo()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = trained(tmp_path, MODELS["lora"](), [{"every": 4, "verdicts": False}], report_to=["tensorboard"])
    read = EventAccumulator(str(tmp_path / "logs"))
    read.Reload()
    assert read.Tags()["images"] == []
    cells = read.Scalars("train/interference/red/blue")
    assert [event.step for event in cells] == [0, 4]
    for event in cells:
        wanted = callback_of(trainer).runs[event.step].matrix("interference").loc["red", "blue"]
        assert event.value == pytest.approx(wanted, rel=1e-6)


def test_a_picture_that_fails_is_warned_of_and_the_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    monkeypatch.setitem(sys.modules, "interference.figures", None)  # to import it is an error
    with pytest.warns(UserWarning, match="the matrix of step 4 was not drawn for the trackers: import of interference"):
        trainer = trained(tmp_path, MODELS["lora"](), [{"every": 4}], report_to=["tensorboard"])
    assert list(callback_of(trainer).runs) == [0, 4] and trainer.state.global_step == 4
    assert [entry["step"] for entry in trainer.state.log_history if "loss/red" in entry] == [0, 4]


def test_a_measurement_is_bootstrapped_once_for_log_and_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    made, table = [], Run.table
    monkeypatch.setattr(Run, "table", lambda run, *args, **options: made.append(args) or table(run, *args, **options))
    trained(tmp_path, MODELS["lora"](), [{"every": 4}], report_to=["tensorboard"])
    assert made == [("interference",)] * 2


def test_more_tasks_than_can_be_read_are_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    monkeypatch.setattr("interference.callback.measuring.MOST_DRAWN", 1)
    trained(tmp_path, MODELS["lora"](), [{"every": 4}], report_to=["tensorboard"])
    read = EventAccumulator(str(tmp_path / "logs"))
    read.Reload()
    assert read.Tags()["images"] == [] and "train/interference/no_signal" in read.Tags()["scalars"]


@pytest.mark.slow
def test_wandb_gets_the_matrix_of_each_measurement_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install -c constraints.txt wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    trainer = trained(tmp_path, MODELS["lora"](), [{"every": 2}], report_to=["wandb"])
    try:
        files = sorted(tmp_path.glob(f"wandb/offline-run-*/files/media/images/{PICTURE}_*.png"), key=by_number)
        runs = callback_of(trainer).runs
        assert len(files) == len(runs) == 3
        for file, (step, run) in zip(files, runs.items(), strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")), drawn(run, step))
        last = [entry for entry in trainer.state.log_history if "loss/red" in entry][-1]
        for name in ("loss/red", "signal/blue", "interference/no_signal"):
            assert wandb.run.summary[f"train/{name}"] == pytest.approx(last[name], rel=1e-6)
        assert wandb.run.summary["train/global_step"] == 4
    finally:
        wandb.finish()


def by_number(path):
    return int(path.name.split("_")[1])
