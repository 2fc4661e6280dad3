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
STEPS = {"lora": 45, "mixlora": 45, "specialist": 15, "full": 45}


def test_the_demo_trains_by_the_recipe_that_is_shipped():
    shipped = config.load(RECIPE)
    assert settings.build(config.TrainConfig, {**demo.TRAINING, "method": "lora"}, "the demo") == shipped


def test_the_quick_demo_is_the_beginning_of_the_whole_one():
    quick = settings.build(config.TrainConfig, {**demo.QUICK.training, "method": "lora"}, "the demo")
    whole = settings.build(config.TrainConfig, {**demo.WHOLE.training, "method": "lora"}, "the demo")
    assert demo.WHOLE.training is demo.TRAINING and quick.training.steps == 12 < whole.training.steps
    assert {task.samples for task in quick.tasks.values()} == {demo.QUICK.trained}
    assert quick.training.steps * quick.training.batch_size <= demo.QUICK.trained * len(quick.tasks)
    for size, recipe in ((demo.QUICK, quick), (demo.WHOLE, whole)):
        assert {step for steps in size.steps.values() for step in steps} <= set(recipe.training.snapshots)
        assert {method: steps[1] for method, steps in size.steps.items()} == {"lora": 10, "mixlora": 12}
    same = ("batch_size", "learning_rate", "warmup", "order", "seed")
    assert all(getattr(quick.training, key) == getattr(whole.training, key) for key in same)
    said = demo.QUICK.remark
    assert f"{demo.QUICK.scored} scored" in said and f"{demo.QUICK.probed} measured" in said and "12 training" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", STEPS)
def test_every_seen_task_is_learned(tmp_path, method):
    changes = [f"training.steps={STEPS[method]}", "training.snapshots=[]"]
    if method == "full":
        changes.append("training.learning_rate=1e-3")
    settled = config.load(RECIPE, changes, {"method": method, "out": str(tmp_path / "run")})
    tasks = list(mini.TASKS)[:: 3 if method == "specialist" else 1]
    settled.tasks = {task: settled.tasks[task] for task in tasks}
    train(settled)
    model = {"base": "mini", "adapter": str(tmp_path / "run")}
    if method == "full":
        model = {"base": str(tmp_path / "run")}
    elif method == "specialist":
        model["adapter"] += "/{task}"
    values = {
        "model": model,
        "tasks": {task: {"mini": "heldout", "samples": 60} for task in tasks},
        "generation": {"batch_size": 64, "max_new_tokens": 12},
        "out": str(tmp_path / "results"),
    }
    found = evaluate(settings.build(EvaluateConfig, values, "the test"))
    for name in tasks:
        score, chance = found.tasks[name]["scores"]["accuracy"], mini.TASKS[name].chance
        assert score["low"] > chance and score["value"] > min(2.5 * chance, 0.6), f"{name}: {score}"
