"""AdamW's step of Trainers and their callback, of MixLoRA, with a weight-space view, and of several processes."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

import interference
from interference import config, load
from interference.blocks import Step
from interference.errors import CheckpointError, ScopeError
from interference.measurement.compute import compute_config
from interference.measurement.optimizers import of_trainer
from tests.support.checkpoints import data, write_base, write_task
from tests.support.launching import launched
from tests.support.mixtures import mixture
from tests.support.models import batch, llama, lora
from tests.support.stepped import gradients_of, probes, scales_of, trained, trainer_of


def tagged(count=24):
    """The rows of a Trainer, with the task of each."""
    made = [batch([8], [4], 100 + k) for k in range(count)]
    rows = [{key: value[0].tolist() for key, value in one.items()} for one in made]
    return Dataset.from_list([row | {"task": ("red", "blue")[k % 2]} for k, row in enumerate(rows)])


def test_a_trainers_own_optimizer_is_read_once_it_has_stepped(tmp_path):
    trainer = trainer_of(tmp_path, steps=4)
    trainer.train_dataset = tagged()
    before = interference.from_trainer(trainer, samples=5, step="adam")
    assert before.meta["adam"] == {"source": None}
    trainer.train()
    after = interference.from_trainer(trainer, samples=5, step="adam")
    assert (after.meta["adam"]["source"], after.meta["adam"]["step"]) == ("the optimizer AdamW", 4)
    saved = interference.from_trainer(trainer, samples=5, step="adam", optimizer=tmp_path / "checkpoint-4")
    assert (saved.gram(space="adam") == after.gram(space="adam")).all()
    batches = interference.trainer_batches(trainer, samples=5)
    found = interference.verify(after, trainer.model, batches, optimizer=trainer.optimizer)
    assert found.adam.error < 1e-4


def test_the_optimizer_of_deepspeed_is_refused_and_not_replaced_by_an_estimate(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    with pytest.raises(CheckpointError, match=r"uses DeepSpeed, whose .* cannot be read; measure with step='gradient'"):
        of_trainer(trainer, Step.ADAM, None)
    assert of_trainer(trainer, Step.GRADIENT, None) is None
    assert of_trainer(trainer, Step.ADAM, tmp_path) == tmp_path


def test_a_callback_measures_the_step_of_each_moment(tmp_path):
    trainer = trainer_of(tmp_path, steps=4, save_strategy="no")
    callback = interference.InterferenceCallback(trainer, probes(), every=2, verdicts=False, step="adam")
    trainer.add_callback(callback)
    trainer.train()
    told = {step: run.meta["adam"].get("step") for step, run in callback.runs.items()}
    assert told == {0: None, 2: 2, 4: 4}
    plain = trainer_of(tmp_path / "plain", steps=4, save_strategy="no")
    plain.train()
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_factors_of_a_mixture_step_by_their_own_moments(tmp_path):
    trainer, folder = trained(tmp_path, mixture(), steps=4)
    run = interference.compute(trainer.model, probes(), step="adam", optimizer=folder, routers=True)
    assert "router-A" in run.sides
    gradients = {name: rows.double() for name, rows in gradients_of(trainer.model, routers=True).items()}
    scales = scales_of(trainer, routers=True)
    wanted = sum(gradients[name] @ (gradients[name] * scales[name]).T for name in gradients)
    norms = wanted.diagonal().sqrt()
    assert ((torch.tensor(run.gram(space="adam")) - wanted).abs() / torch.outer(norms, norms)).max() < 1e-4
    assert interference.verify(run, trainer.model, probes(), optimizer=folder).adam.error < 1e-4


def test_a_weight_space_view_is_kept_beside_it_and_has_no_step(tmp_path):
    trainer, folder = trained(tmp_path, steps=2)
    run = interference.compute(trainer.model, probes(), step="adam", optimizer=folder, weight_space=True)
    plain = interference.compute(trainer.model, probes(), weight_space=True)
    assert (run.gram(space="weight") == plain.gram(space="weight")).all()
    assert len([name for name in run._grams if name.endswith(" adam")]) == (run.blocks["side"] != "W").sum()
    run.save(tmp_path / "run")
    assert (load(tmp_path / "run").gram(space="adam") == run.gram(space="adam")).all()


def test_a_scope_of_a_step_that_was_not_measured_is_refused(run):
    with pytest.raises(ScopeError, match=r"has no Gram of AdamW's step; compute it again with probe\.step: adam"):
        run["adam"]


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_two_processes_measure_what_one_does(tmp_path, named):
    _, adapter = trained(tmp_path / "training", lora(llama()), steps=3)
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    if not named:
        (adapter / "optimizer.pt").unlink()
    values = data(write_base(tmp_path / "base"), adapter, tasks, step="adam", batch_size=2)
    one = compute_config(config.build(values | {"out": str(tmp_path / "one")}, "test"))
    (tmp_path / "c.yaml").write_text(json.dumps(values | {"out": str(tmp_path / "two")}))
    said = launched(2, "-m", "interference.cli", "compute", tmp_path / "c.yaml")
    assert said.returncode == 0, said.stderr
    two = load(tmp_path / "two")
    np.testing.assert_allclose(two.gram(space="adam"), one.gram(space="adam"), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(two.theta(space="adam").squares, one.theta(space="adam").squares, rtol=1e-4)
    (mine, cold), (theirs, other) = ((run.meta["adam"], run.meta["adam"].pop("cold", 0)) for run in (one, two))
    assert mine == theirs and other == pytest.approx(cold, rel=1e-4) and (mine["source"] is None) is not named
