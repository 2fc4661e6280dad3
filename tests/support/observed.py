"""What tests of factors share: a base, adapters and three tasks to observe."""

from pathlib import Path

from interference import config
from mixlora.data.examples import Example, Turn
from tests.support.checkpoints import data, write_adapter, write_base, write_task
from tests.support.mixtures import mixture

TASKS = {"red": 0, "blue": 1, "green": 2}


def written(here: Path) -> Path:
    """The folder, in it a base, a LoRA, a MixLoRA in all of whose modules, and three tasks."""
    write_base(here / "base")
    write_adapter(here / "lora")
    write_adapter(here / "mixture", mixture(target_modules=["q_proj", "up_proj"]))
    for name, seed in TASKS.items():
        write_task(here / f"{name}.jsonl", seed=seed)
    return here


def asked(folder, adapter="mixture", tasks=TASKS, **probe):
    files = {name: folder / f"{name}.jsonl" for name in tasks}
    values = data(folder / "base", folder / adapter, files, **{"layers": [0, 2], **probe})
    return config.build(values, "the test")


def words():
    """Tasks a and b of four examples, whose prompts are of 1 to 6 words."""
    return {
        task: [
            example(task, k, " ".join(f"w{(7 * k + n + 20 * place) % 40}" for n in range(1 + (k + place) % 6)))
            for k in range(4)
        ]
        for place, task in enumerate("ab")
    }


def example(task, k, text):
    return Example(f"{task}{k}", task, (Turn("user", text), Turn("assistant", "w1")), (), f"{task} {k}")
