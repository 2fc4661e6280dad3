"""What `mixlora train` leaves is measured as it is: adapters with a trained projector, and their snapshots."""

import pytest

from interference import config, load
from interference.measurement import compute
from interference.verification.verify import verify_config
from tests.support.trainings import TASKS, trained


def measured(out, adapter):
    asked = {
        "model": {"base": "mini", "adapter": str(adapter), "device": "cpu"},
        "tasks": {name: {"mini": "heldout"} for name in TASKS},
        "probe": {"samples": 6},
        "out": str(out),
    }
    return compute.compute_config(config.build(asked, "the test"))


@pytest.mark.parametrize("method", ["lora", "mixlora"])
def test_gradients_beside_a_trained_projector_are_those_of_autograd(tmp_path, method):
    path = trained(tmp_path / "out", method, train_projector=True)
    for name, checkpoint in (("end", path), ("step", path / "snapshots" / "step-1")):
        run = measured(tmp_path / name, checkpoint)
        assert len(run.blocks) == 2 * 4 * 7 and len(run.probes) == 12
    found = verify_config(load(tmp_path / "end"), 1)
    assert found.error < 1e-4
