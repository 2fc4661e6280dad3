"""Weights of losses: when they are advised, what they are by hand, and that a branch follows them."""

import sys

import numpy as np
import pytest
import torch
import yaml

import interference
from interference.advice import setup, weighting
from interference.advice.configurations import configurations
from interference.advice.trial import fresh
from mixlora.training.combining import Combination
from mixlora.training.config import TrainConfig
from tests.support import planted
from tests.support.reported import APART, axis, made

LOUD = {"loud": axis(1, size=3), "hurt": axis(-1, 2)}
"""<hurt, loud + hurt> = -3 + 2 = -1 in each of 8 blocks: half of hurt's own progress is undone."""


def test_they_are_advised_where_a_step_on_the_sum_raises_a_loss():
    """By hand: UPGrad projects loud to loud + 3/2 hurt and hurt to hurt + 1/3 loud, so weights are as 4/3 to 5/2."""
    found = weighting.weighting(made(LOUD, noise=0.02))
    assert found.weights == pytest.approx({"loud": 16 / 23, "hurt": 30 / 23}, abs=0.01)
    assert found.words.startswith("a step on the sum of the losses raises the loss of hurt (-0.5")
    assert found.words.endswith(" of its own progress)")


@pytest.mark.parametrize("means", [APART, {"a": axis(1), "b": axis(1, 2)}])
def test_nothing_is_weighed_where_no_loss_is_raised(means):
    found = weighting.weighting(made(means))
    assert found == weighting.Weighting({}, "a step on the sum of the losses raises no task's loss beyond noise")


def test_noise_raises_no_loss():
    """Tasks without a mean gradient: of 40 runs at most a few have a surely negative sum."""
    nothing = {task: np.zeros(8) for task in "abc"}
    found = [weighting.weighting(made(nothing, noise=1.0, seed=seed)).weights for seed in range(40)]
    assert sum(map(bool, found)) <= 4


def test_without_torchjd_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    found = weighting.weighting(made(LOUD, noise=0.02))
    said = "; for weights, upgrad needs TorchJD and its solvers, which are not installed; run: pip install "
    assert found.weights == {} and said in found.words


def test_advice_has_them_and_their_configuration(suite, tmp_path):
    run = made({**LOUD, "third": axis(5)}, noise=0.02, meta={"fingerprints": {"model": "a" * 32}})
    run.save(tmp_path / "run")
    found = interference.advise(tmp_path / "run")
    assert found.sentences[-1].startswith("Weigh the losses of the tasks (training.weights): loud 0.")
    assert set(found.weights) == {"loud", "hurt", "third"}
    planted_advice = interference.advise(suite.run, out=tmp_path / "out")
    weights = {task: 1.0 + k for k, task in enumerate(planted.ANGLES)}
    own_advice = interference.advice.Advice(**{**vars(planted_advice), "weights": weights})
    files, why = configurations(own_advice, interference.load(suite.run), tmp_path)
    own = TrainConfig.model_validate(yaml.safe_load(files["weights.yaml"]))
    assert why == "" and own.training.weights == weights and own.out.endswith("lora-weights")
    assert TrainConfig.model_validate(yaml.safe_load(files["group-1.yaml"])).training.weights == {}


# --- branches that follow a combination ---


@pytest.fixture(scope="module")
def job(suite):
    weights = {"east": 3.0, "west": 0.5}
    return setup.prepared(suite.asked(steps=6), planted.GROUPS, weights)


def gradient(job, combination, rows):
    """The gradient that a branch leaves, flat."""
    branches = fresh(job, 2000, ("lora", 1))
    model = branches.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) / 10 - 0.7)
    branches.combination = combination
    model.train()
    branches.backward(rows)
    return torch.cat([own.grad.flatten() for own in model.parameters() if own.requires_grad]).double()


def rows_of(job, *tasks):
    return [one for task in tasks for one in job.pools.streams[task].examples[:4]]


def test_equal_weights_are_the_plain_sum(job):
    recipe = job.trained.config.training.model_copy(update={"weights": {"east": 2.0, "west": 2.0}})
    rows = rows_of(job, "east", "west")
    plain, combined = (gradient(job, own, rows) for own in (None, Combination(recipe, ["east", "west"])))
    torch.testing.assert_close(combined, plain, rtol=1e-5, atol=1e-7)


def test_weights_weigh_the_tasks_gradients(job):
    """3 to 1/2, over the same number of tokens of each: (3 east + 1/2 west) / 3.5 of the tasks' own gradients."""
    (piece,) = (piece for piece in job.pieces if piece.cure == "weights")
    east, west = (gradient(job, None, rows_of(job, task)) for task in ("east", "west"))
    found = gradient(job, job.combination_of(piece), rows_of(job, "east", "west"))
    torch.testing.assert_close(found, (3 * east + 0.5 * west) / 3.5, rtol=1e-5, atol=1e-7)


def test_upgrad_combines_them_as_in_a_training(job):
    """Against the coefficients of the Gram of the tasks' own gradients."""
    (piece,) = (piece for piece in job.pieces if piece.cure == "upgrad")
    rows = torch.stack([gradient(job, None, rows_of(job, task)) for task in ("east", "west")])
    combination = job.combination_of(piece)
    expected = combination.coefficients(rows @ rows.T, 0) @ rows
    found = gradient(job, combination, rows_of(job, "east", "west"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (rows @ found > -1e-6).all()  # no task's loss rises


def test_the_weights_of_an_advice_are_an_arm_of_its_trial(job):
    names = [arm.name for arm in job.arms]
    assert names[:4] == ["together", "together, weights", "together, upgrad", "advised groups"]
    assert job.identity()["weights"] == {"east": 3.0, "west": 0.5}


def test_without_torchjd_there_is_no_such_arm(suite, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    names = [arm.name for arm in setup.prepared(suite.asked(steps=6), planted.GROUPS).arms]
    assert names[:2] == ["together", "advised groups"]
