"""Small trainings on the mini base: their configurations, and what one leaves."""

from mixlora.common import settings
from mixlora.training import config
from mixlora.training.run import train

TASKS = {name: {"mini": "train", "samples": 12} for name in ("read_word", "name_ink")}
RECIPE = {"steps": 4, "batch_size": 8, "learning_rate": 5e-3, "warmup": 1, "order": "shuffled", "save_steps": 2}


def values(out, method="lora", **sections):
    """Nested values of a training; `sections` go over the usual ones, `training` key by key."""
    made = {
        "method": method,
        "model": {"base": "mini", "device": "cpu"},
        "tasks": TASKS,
        "adapter": {"dropout": 0.1},
        "lora": {"r": 4, "alpha": 8},
        "mixlora": {"r": 2, "num_factors": 4, "alpha": 4},
        "training": RECIPE | sections.pop("training", {}),
        "out": str(out),
    }
    return made | sections


def made(out, method="lora", **sections):
    return config.load(None, (), values(out, method, **sections))


def trained(out, method, **adapter):
    """Where a training of two steps without dropout leaves its adapter, with a snapshot of the first."""
    recipe = {"steps": 2, "batch_size": 8, "learning_rate": 5e-3, "snapshots": [1]}
    nested = values(out, method, adapter={"dropout": 0} | adapter) | {"training": recipe}
    return train(settings.build(config.TrainConfig, nested, "the test"))[0]
