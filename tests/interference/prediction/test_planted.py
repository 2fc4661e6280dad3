"""A validation of a suite whose answer is known: what trainings do, and that the matrix predicts it."""

import numpy as np
import pytest

from interference import config
from interference.prediction.validate import validate
from mixlora.common import settings
from mixlora.training.config import TrainConfig
from mixlora.training.run import train
from tests.support import planted

pytestmark = pytest.mark.slow
TASKS = list(planted.ANGLES)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    base, files = planted.write(folder)
    trained = {
        "method": "lora",
        "model": {"base": str(base)},
        "tasks": {task: {"file": str(file)} for task, file in files.items()},
        "adapter": {"dropout": 0, "target_modules": ["proj"]},
        "lora": {"r": 2, "alpha": 4},
        "training": {
            "steps": 12, "batch_size": 12, "learning_rate": 2e-2, "warmup": 0, "lr_scheduler_type": "constant",
            "order": "shuffled", "snapshots": [0, 6, 12],
        },
        "out": str(folder / "lora"),
    }  # fmt: skip
    train(settings.build(TrainConfig, trained, "the test"))
    asked = {
        "model": {"base": str(base), "adapter": str(folder / "lora")},
        "tasks": trained["tasks"],
        "probe": {"samples": 10},
        "lookahead": {"steps": [1, 5], "seeds": 2, "held_out": 10},
        "validation": {"truth": ["pairs", "leave-one-out"], "horizons": [5, 40], "seeds": 2, "held_out": 10},
        "out": str(folder / "run"),
    }
    return validate(config.build(asked, "the test"))


def told(found, score):
    """{(prediction, horizon): its score} for pairs, at the second checkpoint."""
    table = found.table(score)
    return table[(table["truth"] == "pairs") & (table["step"] == 6)].set_index(["prediction", "horizon"])["value"]


def test_trainings_do_what_the_construction_says(found):
    """T of trainings that have converged is minus an eighth of the targets' squared distance."""
    off = ~np.eye(len(TASKS), dtype=bool)
    table = found.truth("pairs", 40)
    trained = table["value"].to_numpy().reshape(off.shape)
    assert np.corrcoef(trained[off], planted.truth()[off])[0, 1] > 0.99
    names = table["affected"].astype(str).to_numpy().reshape(off.shape)
    groups = np.array([[{a, b} <= planted.GROUPS[0] or {a, b} <= planted.GROUPS[1] for b in TASKS] for a in TASKS])
    assert (names == np.array(TASKS)[:, None]).all() and trained[groups & off].min() > trained[~groups].max()


def test_without_one_task_of_the_other_group_a_task_is_better_off(found):
    """Leave-one-out, by its signs: a task of one's own group helps, one of the other hurts."""
    gains = found.outcomes.truth("leave-one-out", 40).mean(axis=0)
    for i, task in enumerate(TASKS):
        own = next(group for group in planted.GROUPS if task in group)
        assert all((gains[i, j] > 0) == (other in own) for j, other in enumerate(TASKS) if j != i)


def test_the_matrix_predicts_it(found):
    for score in ("spearman_within", "kendall_within", "spearman_overall"):
        values = told(found, score)
        assert values["interference", 40] >= 0.9 and values["cosine", 40] >= 0.9
        assert abs(values["smallness", 40]) < 0.2  # all gradients are equally long at first: it knows nothing


def test_the_interval_of_what_predicts_is_above_0(found):
    table = found.table().query("truth == 'pairs' and horizon == 40 and prediction == 'interference' and step == 6")
    (row,) = table.to_dict("records")
    assert 0.5 < row["low"] <= row["value"] <= row["high"] <= 1
