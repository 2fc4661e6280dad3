"""The planted suite with a training, a run of one of its snapshots, and what a trial of its advice is asked for."""

from dataclasses import dataclass
from pathlib import Path

from interference import config
from interference.measurement.compute import compute_config
from mixlora.common import settings
from mixlora.training.config import TrainConfig
from mixlora.training.run import train
from tests.support import planted


@dataclass(frozen=True)
class Suite:
    """Directories of the suite."""

    folder: Path
    base: Path
    tasks: dict

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def trained(self, out, **sections) -> TrainConfig:
        """The training on all tasks, with values of the recipe replaced."""
        recipe = {
            "steps": 12, "batch_size": 12, "learning_rate": 5e-2, "warmup": 0, "lr_scheduler_type": "constant",
            "order": "shuffled", "snapshots": [0, 6, 12],
        }  # fmt: skip
        values = {
            "method": "lora",
            "model": {"base": str(self.base)},
            "tasks": self.tasks,
            "adapter": {"dropout": 0, "target_modules": ["proj"]},
            "lora": {"r": 2, "alpha": 4},
            "out": str(out),
        }
        recipe |= sections.pop("training", {})
        return settings.build(TrainConfig, {**values, "training": recipe, **sections}, "the test")

    def asked(self, adapter="lora", **trial):
        """The configuration of a trial."""
        own = {"steps": 36, "seeds": 2, "held_out": 4, "random": 2}
        values = {
            "model": {"base": str(self.base), "adapter": str(self.folder / adapter)},
            "tasks": self.tasks,
            "probe": {"samples": 10},
            "trial": own | trial,
        }
        return config.build(values, "the test")


def made(folder: Path) -> Suite:
    """The suite in a folder: its training, and runs of two snapshots, `run` and `earlier`."""
    base, files = planted.write(folder)
    found = Suite(folder, base, {task: {"file": str(file)} for task, file in files.items()})
    train(found.trained(folder / "lora"))
    for step, name in ((6, "run"), (0, "earlier")):
        asked = found.asked(f"lora/snapshots/step-{step}")
        compute_config(asked.model_copy(update={"out": str(folder / name)}))
    return found
