"""The study: what its suites ask for can be read, what is read was not trained on, and its ideas are what they say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interference import config as analysis
from interference.prediction import load_validation
from interference.run import Run
from mixlora.training import config as training
from tests.study import pictures, published, terms
from tests.study.ideas import IDEAS, SHRINKAGE, inner, natural, pull
from tests.study.suites import STEPS, SUITES
from tests.support import runs, validated

SIZE, UNITS, TASKS = 7, 8, ("a", "b", "c", "d")


@pytest.fixture
def measured():
    """A run of four tasks over one block, and its gradients [units, size]."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=SIZE) + rng.normal(size=(UNITS, SIZE)) for _ in TASKS])
    frame = runs.made().blocks.iloc[:1]
    names = [task for task in TASKS for _ in range(UNITS)]
    ids = [f"{k}" for k in range(len(names))]
    probes = pd.DataFrame({"task": names, "loss": 1.0, "tokens": 1, "ids": ids, "source": ids})
    packed = {frame["name"].iloc[0]: runs.pack((rows @ rows.T).astype(np.float32))}
    return Run(probes, frame, packed, {"seed": 0}), rows


@pytest.fixture
def few(monkeypatch):
    """Files of a few examples."""
    for suite in (pictures, terms):
        monkeypatch.setattr(suite, "COUNTS", {"train": 6, "heldout": 4})


def rows(source):
    """The records of a task's source."""
    return [json.loads(line) for line in Path(source["file"]).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", SUITES)
def test_configurations_can_be_read(name, tmp_path, few, monkeypatch):
    monkeypatch.setattr("tests.support.smollm2.saved", lambda: tmp_path / "base")
    train, validate = SUITES[name].configurations(tmp_path)
    assert training.TrainConfig.model_validate(train).training.snapshots == STEPS
    read = analysis.AnalysisConfig.model_validate(validate)
    assert list(read.tasks) == list(train["tasks"])
    assert max(read.validation.horizons) <= train["training"]["steps"]


@pytest.mark.parametrize("suite", [pictures, terms])
def test_what_is_read_is_not_trained_on(suite, tmp_path, few):
    ids = [{row["id"] for task in sources for row in rows(sources[task])} for sources in suite.write(tmp_path)]
    assert all(len(own) >= 4 for own in ids)
    assert not ids[0] & ids[1]


def test_tasks_of_one_prompt_want_different_answers(tmp_path, few):
    asked = list(zip(*(rows(source) for source in terms.write(tmp_path)[0].values()), strict=True))
    assert all(len({row["prompt"] for row in one}) == 1 for one in asked)
    assert np.mean([len({row["completion"] for row in one}) for one in asked]) > 2


def test_natural_is_a_natural_gradient_step(measured):
    run, rows = measured
    owner = np.repeat(np.arange(len(TASKS)), UNITS)

    def step(*tasks):
        used = rows[np.isin(owner, tasks)]
        curvature = used.T @ used / len(used)
        ridge = SHRINKAGE * np.trace(curvature) / len(used)
        return np.linalg.solve(curvature + ridge * np.eye(SIZE), used.mean(axis=0))

    means = [rows[owner == k].mean(axis=0) for k in range(len(TASKS))]
    wanted = [[means[i] @ (step(i, j) - step(i)) for j in range(len(TASKS))] for i in range(len(TASKS))]
    np.testing.assert_allclose(natural(run), wanted, atol=1e-5)


def test_pull_is_minus_the_squared_distance_of_mean_gradients(measured):
    """Of a task's own gradient, by pairs of different units: noise does not lengthen it."""
    run, rows = measured
    of = rows.reshape(len(TASKS), UNITS, SIZE)
    own = [np.mean([a @ b for k, a in enumerate(each) for m, b in enumerate(each) if k != m]) for each in of]
    wanted = [
        [2 * (a.mean(axis=0) @ b.mean(axis=0)) - own[i] - own[j] for j, b in enumerate(of)] for i, a in enumerate(of)
    ]
    off = ~np.eye(len(TASKS), dtype=bool)
    np.testing.assert_allclose(pull(run).to_numpy()[off], np.array(wanted)[off], atol=1e-5)
    np.testing.assert_allclose(np.diagonal(inner(run)), own, atol=1e-5)


@pytest.mark.parametrize("name", IDEAS)
def test_every_idea_is_a_matrix_of_the_tasks(name, measured):
    found = IDEAS[name](measured[0])
    assert list(found.index) == list(found.columns) == list(TASKS)
    assert np.isfinite(found.to_numpy()).all()


def test_tables_have_every_score(tmp_path):
    run = runs.grouped(names=("a", "b"))
    place = validated.write(tmp_path, run, {5: np.zeros((2, 2))})
    found = published.tables(load_validation(place))
    assert set(found["scores"]["score"]) == set(found["ceilings"]["score"])
    assert len(found["truth"]) == 4
