"""What a plan says of a lookahead is what the lookahead then does."""

import json

import pytest

from interference.branching import branches as library
from interference.branching.held_out import HeldOut
from interference.measurement import checkpoint
from interference.prediction import lookahead
from interference.prediction.cost import Cost, cost
from mixlora.tuner.model import base_model_of
from tests.support.starts import RECIPE


@pytest.mark.parametrize("micro", [None, 3])
def test_passes_are_those_that_are_taken(start, tmp_path, monkeypatch, micro):
    settings = start.config(recipe={**RECIPE, "batch_size": 9, "micro_batch_size": micro})
    told, calls = cost(settings), {"train": 0, "eval": 0}
    readings, own = [], HeldOut.losses
    monkeypatch.setattr(HeldOut, "losses", lambda self, model: readings.append(1) or own(self, model))
    load = checkpoint.load_model

    def watched(config):
        model = load(config)

        def count(module, *_):
            calls["train" if module.training else "eval"] += 1

        base_model_of(model).register_forward_pre_hook(count)
        return model

    monkeypatch.setattr(checkpoint, "load_model", watched)
    lookahead.lookahead(settings, tmp_path / "out")
    assert told == Cost(4, 5, 1 if micro is None else 3, micro or 9, 13, 20, 5)
    assert calls["train"] == told.branches * told.steps * told.passes
    assert len(readings) == told.readings
    assert calls["eval"] - told.readings * told.forwards in (0, 1, 2)  # one or two looks at which loss it is
    assert told.seconds is None


def test_times_are_measured(start, monkeypatch):
    taken, own = [], library.Branches.along
    monkeypatch.setattr(library.Branches, "along", lambda self, *given: taken.append(given[0]) or own(self, *given))
    told = cost(start.config(), timed=True)
    assert told.step_seconds > 0 < told.reading_seconds and 1 <= len(taken) <= 2
    assert told.seconds == pytest.approx(20 * told.step_seconds + 13 * told.reading_seconds)


def test_processes_share_the_time(start, interference, tmp_path):
    told = cost(start.config().model_copy(update={"processes": 9}), timed=True)
    assert told.processes == 4  # as many as there are branches
    assert told.seconds == pytest.approx((20 * told.step_seconds + 13 * told.reading_seconds) / 4)
    (tmp_path / "c.yaml").write_text(json.dumps(start.data() | {"processes": 2}))
    assert "s, in 2 processes at once)" in " ".join(interference("plan", tmp_path / "c.yaml").out.split())


def test_the_command(interference, start, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(start.data()))
    said = interference("plan", tmp_path / "c.yaml")
    assert said.code == 0, said.err
    assert (
        "lookahead: 4 branches of 5 steps, each 1 forward and backward pass of 8 examples; 13 readings of 20"
        in said.out
    )
    assert "held-out examples, each 5 forward passes" in " ".join(said.out.split())
    assert "lookahead's time: " in said.out and "(a step takes " in said.out
    found = json.loads(interference("plan", tmp_path / "c.yaml", "--no-time", "--json").out)
    assert found["lookahead"] == {
        "branches": 4, "steps": 5, "passes": 1, "rows": 8, "readings": 13, "examples": 20, "forwards": 5,
        "processes": 1, "step_seconds": None, "reading_seconds": None, "seconds": None,
    }  # fmt: skip
    values = start.data() | {"lookahead": None}
    (tmp_path / "d.yaml").write_text(json.dumps(values))
    assert "lookahead" not in json.loads(interference("plan", tmp_path / "d.yaml", "--no-time", "--json").out)


def test_what_the_lookahead_refuses_the_plan_refuses(refused, start, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(start.data(recipe={})))
    assert refused("plan", tmp_path / "c.yaml", "--no-time").startswith("there is no recipe to follow: ")
