"""AdamW's step: Gram matrices and lengths against autograd times the P of a real Trainer's optimizer."""

import numpy as np
import pytest
import torch

import interference
from interference import metrics
from tests.support.stepped import gradients_of, probes, scales_of, trained


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """A trained Trainer and its last checkpoint."""
    return trained(tmp_path_factory.mktemp("stepped"))


@pytest.fixture(scope="module")
def run(stepped):
    trainer, folder = stepped
    return interference.compute(trainer.model, probes(), step="adam", optimizer=folder / "optimizer.pt")


def steps(stepped, **scope):
    """Gradients and AdamW's steps of the units over the blocks of a scope, as whole vectors."""
    gradients, scales = gradients_of(stepped[0].model, **scope), scales_of(stepped[0], **scope)
    whole = torch.cat([gradients[name].double() for name in gradients], dim=1)
    return whole, whole * torch.cat([scales[name] for name in gradients])


def test_inner_products_and_lengths_are_those_of_the_steps(stepped, run):
    gradients, directions = steps(stepped)
    wanted = gradients @ directions.T
    scale = wanted.diagonal().sqrt()
    error = (torch.tensor(run.gram(space="adam")) - wanted).abs() / torch.outer(scale, scale)
    assert error.max() < 1e-5
    np.testing.assert_allclose(lengths(run), directions.norm(dim=1), rtol=1e-5)


def lengths(run):
    """[units]: |P g_u|."""
    return np.sqrt(run.theta(space="adam").squares)


def delta_of(gradients, directions, affected, stepped, tasks):
    """Delta_j L_i pair by pair, self pairs left out."""
    units = [directions[u] / directions[u].norm() for u in range(len(tasks))]
    pairs = [
        (u, v) for u, j in enumerate(tasks) for v, i in enumerate(tasks) if (i, j) == (affected, stepped) and u != v
    ]
    return np.mean([float(gradients[v] @ units[u]) for u, v in pairs])


@pytest.mark.parametrize("scope", [{}, {"layers": [1]}, {"modules": ["attention"]}])
def test_delta_and_interference_of_both_steps_are_read_from_one_run(stepped, run, scope):
    gradients, directions = steps(stepped, **scope)
    tasks = list(run.probes["task"])
    for space, along in (("parameters", gradients), ("adam", directions)):
        delta = np.array([[delta_of(gradients, along, i, j, tasks) for j in run.tasks] for i in run.tasks])
        np.testing.assert_allclose(run.matrix("delta", space=space, **scope), delta, rtol=1e-4)
        found = run.matrix("interference", space=space, **scope)
        np.testing.assert_allclose(found, delta / np.diagonal(delta)[:, None], rtol=1e-4)


def test_the_gradients_own_numbers_are_those_of_a_run_without_the_step(stepped, run):
    plain = interference.compute(stepped[0].model, probes())
    assert (plain.gram() == run.gram()).all() and "adam" not in plain.meta


@pytest.mark.slow
def test_a_side_and_the_mean_over_blocks_read_their_own_steps(stepped, run):
    each = []
    for name in run.blocks["name"]:
        gradients = gradients_of(stepped[0].model)[name].double()
        directions, tasks = gradients * scales_of(stepped[0])[name], list(run.probes["task"])
        each.append([[delta_of(gradients, directions, i, j, tasks) for j in run.tasks] for i in run.tasks])
    np.testing.assert_allclose(run.matrix("delta", space="adam", aggregate="mean"), np.mean(each, axis=0), rtol=1e-4)
    blocks = run.blocks["side"].eq("B").to_numpy()
    found = run.table("delta", space="adam", side="B", aggregate="mean", replicates=20)["value"].to_numpy()
    np.testing.assert_allclose(found.reshape(2, 2), np.array(each)[blocks].mean(axis=0), rtol=1e-4)
    parts = run.table("delta", by="layer", space="adam", replicates=20)
    assert len(parts) == 4 * len(run.layers) and parts["value"].notna().all()
    assert run["adam", 1].matrix("delta").equals(run.matrix("delta", layers=[1], space="adam"))


@pytest.mark.parametrize("granularity", ["group", "layer"])
def test_coarser_blocks_hold_the_sum(stepped, run, granularity):
    coarse = interference.compute(
        stepped[0].model, probes(), step="adam", optimizer=stepped[1], granularity=granularity
    )
    assert len(coarse.blocks) < len(run.blocks)
    np.testing.assert_allclose(coarse.gram(space="adam"), run.gram(space="adam"), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(lengths(coarse), lengths(run), rtol=1e-5)


def test_units_of_a_batch_step_along_their_mean(stepped):
    red = probes()["red"]
    batches = {"a": red, "b": red[::-1]}
    found = interference.compute(stepped[0].model, batches, unit="batch", step="adam", optimizer=stepped[1])
    gradients, _ = steps(stepped)
    scale = torch.cat(list(scales_of(stepped[0]).values()))
    means = torch.stack([gradients[:3].mean(0), gradients[3:5].mean(0)])
    np.testing.assert_allclose(found.gram(space="adam")[:2, :2], means @ (means * scale).T, rtol=1e-4)


def test_a_live_optimizer_is_its_saved_state(stepped, run):
    trainer, _ = stepped
    live = interference.compute(trainer.model, probes(), step="adam", optimizer=trainer.optimizer)
    assert (live.gram(space="adam") == run.gram(space="adam")).all()
    assert live.meta["adam"]["digest"] == run.meta["adam"]["digest"]
    assert run.meta["adam"] == {**live.meta["adam"], "source": str(stepped[1] / "optimizer.pt")}
    assert run.meta["adam"]["step"] == 12 and run.meta["adam"]["cold"] < 0.5


def test_without_an_optimizer_the_moments_are_the_mean_of_squared_gradients_every_task_alike(stepped):
    model = stepped[0].model
    found = interference.compute(model, probes(), step="adam")
    assert found.meta["adam"] == {"source": None}
    gradients = torch.cat(list(gradients_of(model).values()), dim=1).double()
    v = (gradients[:5].square().mean(0) + gradients[5:].square().mean(0)) / 2
    directions = gradients / (v.sqrt() + 1e-8)
    np.testing.assert_allclose(found.gram(space="adam"), gradients @ directions.T, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(lengths(found), directions.norm(dim=1), rtol=1e-4)


def test_a_run_with_the_step_is_kept_on_disk(run, tmp_path):
    run.save(tmp_path / "run")
    again = interference.load(tmp_path / "run")
    assert (again.gram(space="adam") == run.gram(space="adam")).all() and again.meta["adam"] == run.meta["adam"]
    one, other = (each.table("delta", space="adam", replicates=50) for each in (run, again))
    assert one.equals(other)
    assert interference.compare(run, again, "delta", space="adam", replicates=20)["difference"].eq(0).all()


def test_memory_does_not_change_the_steps(stepped, run):
    small = interference.compute(stepped[0].model, probes(), step="adam", optimizer=stepped[1], memory_budget=1)
    np.testing.assert_allclose(small.gram(space="adam"), run.gram(space="adam"), rtol=1e-4, atol=1e-6)
    assert (lengths(small) == lengths(run)).all()


def test_companions_are_of_the_space_in_which_the_step_is_the_gradient(stepped, run):
    gradients, _ = steps(stepped)
    scaled = gradients * torch.cat(list(scales_of(stepped[0]).values())).sqrt()
    wanted = metrics.cosine((scaled @ scaled.T).numpy(), list(run.probes["task"]))
    np.testing.assert_allclose(run.matrix("cosine", space="adam"), wanted, rtol=1e-4)
