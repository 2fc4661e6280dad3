"""verify on AdamW's step: torch's own AdamW with the saved state bears Delta out, and a wrong state fails."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import get_peft_model

import interference as package
from interference import config
from interference.errors import CheckpointError, RunError
from interference.measurement import optimizers
from interference.measurement.adam import Moments
from interference.measurement.compute import compute_config
from interference.verification import adam
from tests.support.checkpoints import data, write_base, write_task
from tests.support.models import batch, llama, lora, opt
from tests.support.stepped import probes, trained


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """A Trainer after 40 steps, and its last checkpoint."""
    return trained(tmp_path_factory.mktemp("stepped"), steps=40)


def compute(stepped, **options):
    return package.compute(stepped[0].model, probes(), **{"step": "adam", "optimizer": stepped[1], **options})


@pytest.fixture(scope="module")
def run(stepped):
    return compute(stepped)


def verify(run, stepped, units=4, **options):
    return package.verify(run, stepped[0].model, probes(), units=units, **{"optimizer": stepped[1], **options})


def test_real_steps_of_torchs_adamw_bear_delta_out(stepped, run):
    found = verify(run, stepped)
    assert found.passed and found.adam.error < 1e-4 and found.adam.linear_until > 0
    small = found.adam.steps.iloc[:3]
    assert small["slope"].between(0.95, 1.05).all() and (small["correlation"] > 0.99).all()
    assert (found.adam.steps["pairs"] == 2 * 8).all()
    rows = found.summary()
    assert rows["space"].tolist() == ["parameters"] * 9 + ["adam"] * 9 and rows["passed"].all()


def test_a_live_optimizer_is_taken_and_left_as_it_was(stepped, run):
    trainer, _ = stepped
    before = {k: v.clone() for k, v in _tensors(trainer.optimizer)}
    weights = [parameter.clone() for parameter in trainer.model.parameters()]
    first = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    first.grad = torch.ones_like(first)
    required = [parameter.requires_grad for parameter in trainer.model.parameters()]
    found = verify(run, stepped, optimizer=trainer.optimizer)
    assert found.passed
    assert all(torch.equal(before[k], v) for k, v in _tensors(trainer.optimizer))
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))
    assert required == [parameter.requires_grad for parameter in trainer.model.parameters()]
    assert torch.equal(first.grad, torch.ones_like(first))
    first.grad = None
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def _tensors(optimizer):
    for parameter, state in optimizer.state.items():
        yield from (((id(parameter), key), value) for key, value in state.items())


@pytest.mark.parametrize("options", [{"layers": [1]}, {"granularity": "layer"}, {"unit": "batch"}, {"optimizer": None}])
def test_scopes_units_and_estimates_are_verified(stepped, options):
    if "unit" in options:
        batches = {"red": probes()["red"], "blue": [*probes()["blue"], batch([9, 8], [3, 3], 9)]}
        made = package.compute(stepped[0].model, batches, step="adam", optimizer=stepped[1], **options)
        found = package.verify(made, stepped[0].model, batches, units=4, optimizer=stepped[1])
    else:
        made = compute(stepped, **options)
        found = verify(made, stepped, **({"optimizer": None} if "optimizer" in options else {}))
    assert found.error < 1e-4 and found.adam.error < 1e-4 and (found.adam.steps["correlation"].iloc[:3] > 0.95).all()


def test_estimated_moments_are_kept_in_the_run(stepped, tmp_path):
    made = compute(stepped, optimizer=None, granularity="layer")
    made.save(tmp_path / "run")
    again = package.load(tmp_path / "run")
    assert again.moments.keys() == made.moments.keys() and len(again.moments) == 42
    assert all((again.moments[name] == made.moments[name]).all() for name in made.moments)
    assert verify(again, stepped, optimizer=None).adam.error < 1e-4
    (tmp_path / "run" / "moments.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"moments\.safetensors is damaged"):
        package.load(tmp_path / "run")
    less = package.Run(made.probes, made.blocks, made._grams, made.meta, None, {})
    with pytest.raises(RunError, match=r"the run lacks the second moments of block language\.0\.q_proj\.A"):
        verify(less, stepped, optimizer=None)


def _next_layer(name):
    component, layer, *rest = name.split(".")
    return ".".join([component, str((int(layer) + 1) % 3), *rest])


WRONG = {
    "moments of another layer": lambda name, found: found[_next_layer(name)],
    "no correction for the start": lambda name, found: replace(found[name], step=10**6),
    "another eps": lambda name, found: replace(found[name], eps=1e-3),
    "another rate": lambda name, found: replace(found[name], betas=(0.9, 0.99)),
    "one parameter's doubled": lambda name, found: replace(
        found[name], squares=found[name].squares * (2 if name == "language.1.q_proj.B" else 1)
    ),
    "entries in another order": lambda name, found: replace(found[name], squares=found[name].squares.flip(0, 1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_run_that_misread_the_state_fails(stepped, monkeypatch, name):
    """What `compute` makes of the state is wrong, and the state's digest, by which a change is told, is right."""
    read = optimizers._moments

    def wrong(source, entries, targets):
        right = read(source, entries, targets)
        made = Moments({block: WRONG[name](block, right.found) for block in right.found}, source)
        made.__dict__["digest"] = right.digest
        return made

    with monkeypatch.context() as patch:
        patch.setattr(optimizers, "_moments", wrong)
        made = compute(stepped)
    found = verify(made, stepped, units=2)
    assert not found.passed and found.adam.error > 1e-3 and found.error < 1e-4


def packed(run, change):
    """The run with changed matrices of AdamW's step."""
    grams = {
        name: change(run._grams[name].copy()) if name.endswith(" adam") else run._grams[name] for name in run._grams
    }
    return package.Run(run.probes, run.blocks, grams, run.meta)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values * np.float32(1.01),
        lambda values: np.concatenate([values[:-9], values[-9:] * np.float32(1.01)]),
        lambda values: np.concatenate([values[:-9][::-1], values[-9:]]),
        lambda values: np.full_like(values, np.nan),
    ],
    ids=["scaled", "other lengths", "reversed", "not a number"],
)
def test_wrong_matrices_of_the_step_fail_and_the_gradients_own_do_not(run, stepped, change):
    found = verify(packed(run, change), stepped, units=2)
    assert not found.passed and found.gram_error < 1e-4 and found.adam.error > 1e-3


def test_a_state_that_is_too_young_fails_and_says_so(tmp_path, interference):
    """After one step from B = 0 the second moments of A are 0: torch's next step is far from P g."""
    fresh = get_peft_model(llama(), lora(llama()).peft_config["default"])
    _, folder = trained(tmp_path / "training", fresh, steps=1)
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    base = write_base(tmp_path / "base")
    asked = data(base, folder, tasks, tmp_path / "run", step="adam")
    made = compute_config(config.build(asked, "test"))
    assert made.meta["adam"]["cold"] > 0.9
    said = interference("verify", tmp_path / "run")
    assert said.code == 1
    told = " ".join(said.out.split())
    assert "FAILED" in told and "its Delta matches real steps at no step size tried" in told
    assert (
        "AdamW adds a gradient to its second moments before it divides" in told and "measure a later checkpoint" in told
    )
    shown = " ".join(interference("show", tmp_path / "run").out.split())
    assert "of the squared length of AdamW's steps lies in entries that have hardly been trained" in shown


def test_the_command_verifies_the_state_beside_the_adapter(tmp_path, interference, stepped):
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 8, seed) for seed, name in enumerate(["red", "blue"])}
    adapter = tmp_path / "adapter"
    shutil.copytree(stepped[1], adapter)
    asked = data(write_base(tmp_path / "base"), adapter, tasks, tmp_path / "run", step="adam", layers=None, samples=8)
    compute_config(config.build(asked, "test"))
    rows = json.loads(interference("verify", tmp_path / "run", "--json", "--units", "6").out)
    assert [row["space"] for row in rows] == ["parameters"] * 9 + ["adam"] * 9
    assert rows[-1]["gram_error"] < 1e-4
    state = torch.load(adapter / "optimizer.pt", weights_only=True)
    for one in state["state"].values():
        one["exp_avg_sq"].mul_(2)
    torch.save(state, adapter / "optimizer.pt")
    said = interference("verify", tmp_path / "run")
    assert said.code == 2 and "is not the one that the run was computed with; compute it again" in said.err
    (adapter / "optimizer.pt").unlink()
    said = interference("verify", tmp_path / "run")
    assert said.code == 2 and "verify needs it: restore it" in said.err


def test_a_state_of_another_adapter_is_refused(run, stepped, tmp_path):
    _, other = trained(tmp_path, lora(llama(), ["q_proj"]), steps=1)
    with pytest.raises(CheckpointError, match="it is of another adapter or not a Trainer's"):
        verify(run, stepped, optimizer=other)
    with pytest.raises(
        RunError, match=r"the run measured AdamW's step by .*; verify needs it: restore it, or pass optimizer="
    ):
        verify(run, stepped, optimizer=None)


def test_groups_of_a_trainer_are_made_by_the_trainer_itself(tmp_path):
    """Biases, which do not decay, come after all factors in the state; the check maps them without `optimizers`."""
    trainer, folder = trained(tmp_path, lora(opt(), ["q_proj", "fc1"], bias="lora_only"), steps=3)
    made = adam._loaded(folder, trainer.model, "default")
    live = trainer.optimizer.optimizer
    for parameter in live.state:
        assert torch.equal(made.state[parameter]["exp_avg_sq"], live.state[parameter]["exp_avg_sq"])
