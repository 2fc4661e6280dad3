"""What every method learns of the six tasks of the mini suite: far more than chance, on examples it has not seen."""

import pytest

from interference.cli import demo
from mixlora.common import settings
from mixlora.data import mini
from mixlora.evaluation.config import EvaluateConfig
from mixlora.evaluation.run import evaluate
from mixlora.training import config
from mixlora.training.run import train
from tests.support.paths import CONFIGS

RECIPE = CONFIGS / "mini.yaml"
STEPS = {"lora": 60, "mixlora": 60, "specialist": 15, "full": 60}


def test_the_demo_trains_by_the_recipe_that_is_shipped():
    shipped = config.load(RECIPE)
    assert settings.build(config.TrainConfig, {**demo.TRAINING, "method": "lora"}, "the demo") == shipped


@pytest.mark.slow
@pytest.mark.parametrize("method", STEPS)
def test_every_seen_task_is_learned(tmp_path, method):
    changes = [f"training.steps={STEPS[method]}", "training.snapshots=[]"]
    if method == "full":
        changes.append("training.learning_rate=1e-3")
    train(config.load(RECIPE, changes, {"method": method, "out": str(tmp_path / "run")}))
    model = {"base": "mini", "adapter": str(tmp_path / "run")}
    if method == "full":
        model = {"base": str(tmp_path / "run")}
    elif method == "specialist":
        model["adapter"] += "/{task}"
    values = {
        "model": model,
        "tasks": {task: {"mini": "heldout", "samples": 100} for task in mini.TASKS},
        "generation": {"batch_size": 64, "max_new_tokens": 12},
        "out": str(tmp_path / "results"),
    }
    found = evaluate(settings.build(EvaluateConfig, values, "the test"))
    for name, task in mini.TASKS.items():
        score = found.tasks[name]["scores"]["accuracy"]
        assert score["low"] > task.chance and score["value"] > min(2.5 * task.chance, 0.6), f"{name}: {score}"
