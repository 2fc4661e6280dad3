"""The suites: what is trained on which examples, and after how many steps losses are read.

- mini: the mini suite as it is, LoRA of rank 8. Interference passes there: tasks have questions of their own.
- mini-mixlora: the same with MixLoRA.
- conflict: ten of the mini suite's tasks under one instruction, LoRA of rank 1. Tasks that show the same pictures want
  different answers to the same prompt, so that interference stays.
- text: SmolLM2-135M names countries, languages, scripts and currencies in six languages under one prompt, LoRA of
  rank 2. What is right for one language is wrong for another, the more so the less the languages are related.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.study import pictures, terms
from tests.support import smollm2

MINI = ("next_number", "name_shape", "name_ink", "name_in_french", "read_word", "font_style")
STEPS = [0, 2, 5, 10, 20, 40]
"""Checkpoints of every probed training."""


@dataclass(frozen=True)
class Suite:
    """A training whose checkpoints are judged, and the trainings that judge them.

    Attributes:
        tasks: makes the tasks' sources in a folder: {task: of the training}, {task: of what is read and probed}.
        base: makes or names the base model.
        method: what is trained: its name and the section of that name.
        training: the recipe, without steps and snapshots.
        horizons: after how many steps losses are read.
        probe: how runs are measured.
        held_out: examples of each task whose losses are read.
        share: examples of each task in a step.
        ahead: steps of lookaheads.
    """

    tasks: Callable[[Path], tuple[dict[str, Any], dict[str, Any]]]
    base: Callable[[], str]
    method: tuple[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    horizons: list[int]
    probe: Mapping[str, Any]
    held_out: int
    share: int
    ahead: list[int] = field(default_factory=lambda: [1, 2, 5, 10])

    def configurations(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of `mixlora train` and of `interference validate`, after the data is written.

        Args:
            folder: of the study of this suite.
        """
        trained, read = self.tasks(folder)
        name, section = self.method
        base, last = self.base(), max(STEPS)
        training = {**self.training, "steps": last, "snapshots": STEPS, "seed": 0, "optimizer_state": True}
        train = {"method": name, "model": {"base": base}, "tasks": trained, "adapter": {"dropout": 0}, name: section}
        validation = {"horizons": self.horizons, "seeds": 3, "held_out": self.held_out, "share": self.share}
        validate = {
            "model": {"base": base, "adapter": str(folder / "trained")},
            "tasks": read,
            "probe": {**self.probe, "step": "adam"},
            "lookahead": {"steps": self.ahead, "seeds": 2, "held_out": self.held_out},
            "validation": validation,
            "out": str(folder / "run"),
        }
        return {**train, "training": training, "out": str(folder / "trained")}, validate

    def trial(self, folder: Path, step: int) -> dict[str, Any]:
        """Of `interference advise --train`, by the run of a checkpoint of the validation.

        Args:
            folder: of the study of this suite.
            step: of the checkpoint.
        """
        _, validate = self.configurations(folder)
        adapter = folder / "trained" / "snapshots" / f"step-{step}"
        trial = {"steps": max(STEPS), "seeds": 3, "share": self.share, "held_out": self.held_out}
        model = {**validate["model"], "adapter": str(adapter)}
        return {**validate, "model": model, "trial": trial, "out": str(run_of(folder, step))}


def run_of(folder: Path, step: int) -> Path:
    """Where the run of a checkpoint is.

    Args:
        folder: of the study of a suite.
        step: of the checkpoint.
    """
    return folder / "run-validation" / "runs" / f"step-{step}"


def _mini(_: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mini suite's six tasks."""
    return {task: {"mini": "train", "samples": 800} for task in MINI}, {task: {"mini": "heldout"} for task in MINI}


_AS_IT_IS: Mapping[str, Any] = {
    "tasks": _mini,
    "base": lambda: "mini",
    "training": {"batch_size": 48, "learning_rate": 5e-3, "warmup": 10, "order": "shuffled"},
    "horizons": [5, 10, 20, 40],
    "probe": {"samples": 60, "batch_size": 60},
    "held_out": 60,
    "share": 8,
}

SUITES: Mapping[str, Suite] = {
    "mini": Suite(method=("lora", {"r": 8, "alpha": 16}), **_AS_IT_IS),
    "mini-mixlora": Suite(method=("mixlora", {"r": 8, "num_factors": 16, "alpha": 16}), **_AS_IT_IS),
    "conflict": Suite(
        tasks=pictures.write,
        base=lambda: "mini",
        method=("lora", {"r": 1, "alpha": 2}),
        training={"batch_size": 40, "learning_rate": 5e-3, "warmup": 5, "order": "shuffled"},
        horizons=[5, 10, 20, 40],
        probe={"samples": 60, "batch_size": 60},
        held_out=60,
        share=4,
    ),
    "text": Suite(
        tasks=terms.write,
        base=lambda: str(smollm2.saved()),
        method=("lora", {"r": 2, "alpha": 4}),
        training={"batch_size": 48, "learning_rate": 2e-3, "warmup": 3, "order": "shuffled"},
        horizons=[5, 10, 20],
        probe={"samples": 40, "batch_size": 40},
        held_out=30,
        share=8,
        ahead=[1, 5],
    ),
}
