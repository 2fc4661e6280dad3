"""What the commands read and write: tiny checkpoints, task files, configurations, and the content of results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.checkpoints import record, write_adapter, write_base, write_llava, write_pictures, write_task
from tests.support.killing import files
from tests.support.mixtures import mixture

COMMANDS = {"compute": "interference", "factors": "interference", "train": "mixlora", "evaluate": "mixlora"}
"""{command: its program}."""
TASKS = ("red", "blue")
_WHEN = {
    "run.json": ("seconds", "computed", "seal", "measured_again"),
    "factors.json": ("computed", "seal"),
}
"""Keys of a result that say when it was made, and how often it was continued."""


@dataclass(frozen=True)
class Job:
    """A command with its configuration.

    Attributes:
        command: "compute", "factors", "train" or "evaluate".
        values: nested values of the configuration.
        out: where the result will be.
    """

    command: str
    values: Mapping[str, Any]
    out: Path

    def arguments(self) -> list[str]:
        """What the command line says; the configuration is written beside the result."""
        file = self.out.with_name(f"{self.out.name}.{self.command}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.values))
        given = [COMMANDS[self.command], self.command, str(file), "--out", str(self.out), "--quiet"]
        return given + ["--perplexity", "3"] * (self.command == "factors")

    def elsewhere(self, out: Path) -> "Job":
        """The same job with another place for its result."""
        return Job(self.command, self.values, out)

    def result(self) -> dict[str, bytes]:
        """The files of the result by their names, without what says when it was made and what an earlier judge said."""
        found = files(self.out)
        found |= {name: _last_words(data) for name, data in found.items() if name.startswith("judgements")}
        for name, when in _WHEN.items():
            if name in found:
                meta = json.loads(found[name])
                found[name] = json.dumps({key: value for key, value in meta.items() if key not in when}).encode()
        return {name: data.replace(self.out.name.encode(), b"NAME") for name, data in found.items()}

    @property
    def finished(self) -> bool:
        """Whether the result is whole."""
        if self.command == "train":
            record = self.out / "training.json"
            return record.exists() and bool(json.loads(record.read_bytes()).get("finished"))
        return (
            self.out / {"compute": "run.json", "factors": "factors.json"}.get(self.command, "results.json")
        ).exists()

    def begun(self) -> int:
        """How many parts of the work are kept."""
        partial = self.out.with_name(self.out.name + ".partial")
        if self.command in ("compute", "factors"):
            return len(list(partial.glob("part-*.safetensors")))
        if self.command == "train":
            ended = self.out.glob("checkpoints/checkpoint-*/0.sums")
            return max((int(file.parent.name.partition("-")[2]) for file in ended), default=0)
        lines = [file.read_bytes().count(b"\n") for file in self.out.glob("[pj]*s/*")]
        return sum(lines)


def _last_words(judgements: bytes) -> bytes:
    """What was said last of each question."""
    said = {}
    for line in judgements.splitlines():
        own = json.loads(line)
        said[own["question_id"]] = [own["verdict"], own["text"]]
    return json.dumps(said, sort_keys=True).encode()


def make(folder: Path, kind: str = "lora") -> dict[str, dict[str, Any]]:
    """Write a checkpoint and its tasks; the configuration of each command.

    Args:
        folder: where to.
        kind: "lora" or "mixture" on a LLaMA, or "llava", a LoRA on a model with pictures.
    """
    folder.mkdir(parents=True)
    if kind == "llava":
        write_llava(folder)
        tasks = {task: _with_pictures(folder, task, seed) for seed, task in enumerate(TASKS)}
    else:
        write_base(folder / "base")
        write_adapter(folder / "adapter", mixture() if kind == "mixture" else None)
        tasks = {task: write_task(folder / f"{task}.jsonl", 8, seed) for seed, task in enumerate(TASKS)}
    return _configurations(folder, tasks, "mixlora" if kind == "mixture" else "lora")


def _with_pictures(folder: Path, task: str, seed: int) -> Path:
    names = [f"{task}-{k}.png" for k in range(8)]
    write_pictures(folder, names)
    return write_task(folder / f"{task}.jsonl", 8, seed, lambda k, _: record(k, seed, image=names[k]))


def _configurations(folder: Path, files_: Mapping[str, Path], method: str) -> dict[str, dict[str, Any]]:
    model = {"base": str(folder / "base"), "device": "cpu"}
    adapted = {**model, "adapter": str(folder / "adapter")}
    tasks = {name: {"file": str(file)} for name, file in files_.items()}
    probe = {"samples": 8, "layers": [0, 1], "batch_size": 1}
    recipe = {"steps": 8, "batch_size": 4, "learning_rate": 5e-3, "warmup": 1, "save_steps": 1, "order": "shuffled"}
    chosen = {"lora": {"r": 2, "alpha": 4}, "mixlora": {"r": 2, "num_factors": 4, "alpha": 4}}
    return {
        "compute": {"model": adapted, "tasks": tasks, "probe": probe},
        "factors": {"model": adapted, "tasks": tasks, "probe": probe},
        "train": {"method": method, "model": model, "tasks": tasks, **chosen, "training": recipe},
        "evaluate": {
            "model": adapted, "tasks": tasks, "draws": 100, "label": "it",
            "generation": {"batch_size": 1, "max_new_tokens": 4},
        },
    }  # fmt: skip
