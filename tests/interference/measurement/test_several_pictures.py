"""Examples of two pictures each, through the command line's path: in batches, alone, and by autograd."""

import json

import numpy as np
import pytest
import torch

import interference
from interference import config
from interference.errors import MeasurementError
from interference.gradients.examples import single
from interference.measurement import checkpoint, sample
from interference.measurement.compute import compute_config
from interference.run.remarks import PLAIN_LOSS
from interference.verification.verify import verify_config
from tests.support import evaluations
from tests.support.records import save_picture

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.png", "green")):
        save_picture(folder / name, color=colour)
    for task, names in (("two", ["a.png", "b.png"]), ("others", ["c.png", "a.png"])):
        lines = []
        for k in range(4):
            asked, said = "Which is first? " * (1 + k % 3), "red " * (k + 1)
            lines.append({"images": names[:: 1 - 2 * (k % 2)], "prompt": asked, "response": said})
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluations.saved(folder / "adapter")
    return {
        "model": {"base": "mini", "adapter": str(folder / "adapter"), "device": "cpu"},
        "tasks": {
            name: {"file": str(folder / f"{name}.jsonl"), "images": str(folder), "group": "none"}
            for name in ("two", "others")
        },
        "probe": {"samples": 4, "layers": [0], "modules": ["q_proj"]},
    }


@pytest.mark.slow
def test_they_are_measured_in_batches_as_alone_and_verified(values, tmp_path):
    runs = {}
    for size in (8, 1):
        probe = values["probe"] | {"batch_size": size}
        runs[size] = compute_config(
            config.build(values | {"probe": probe, "out": str(tmp_path / str(size))}, "test")
        ).gram()
    assert np.abs(runs[8] - runs[1]).max() < 1e-5 * np.abs(runs[1]).max()
    found = verify_config(compute_config(config.build(values | {"out": str(tmp_path / "run")}, "test")), units=4)
    assert found.passed and found.error < 1e-4


def test_a_batch_whose_pictures_cannot_be_told_apart_is_measured(values, tmp_path):
    settings = config.build(values | {"out": str(tmp_path / "run")}, "test")
    expected = compute_config(settings)
    encoded = sample.encode(sample.read(settings), sample.collator_of(settings), settings)
    model = checkpoint.load_model(settings.model)
    batches = {}
    for place, task in enumerate(values["tasks"]):
        places = range(4 * place, 4 * place + 4)
        batches[task] = [batch for batch, _ in sample.padded_batches(encoded, places, 4, model.device)]
    with pytest.raises(MeasurementError, match=r"^pixel_values of shape \(8, 3, 48, 48\) cannot be split into"):
        single(batches["two"][0], 0)
    found = interference.compute(model, batches, layers=[0], modules=["q_proj"])
    assert found.meta["loss"] == expected.meta["loss"] == PLAIN_LOSS
    np.testing.assert_allclose(found.gram(), expected.gram(), rtol=1e-4, atol=1e-5 * np.abs(expected.gram()).max())
