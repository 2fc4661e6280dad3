"""Where lookaheads begin: a tiny checkpoint with tasks of forty records, and configurations of branches from it."""

from dataclasses import dataclass

from interference import config
from interference.prediction.lookahead import prepared
from tests.support.checkpoints import data, write_adapter, write_base, write_task

RECIPE = {"learning_rate": 1e-2, "batch_size": 8}
ASKED = {"recipe": RECIPE, "steps": [1, 2, 5], "seeds": 2, "held_out": 10}


@dataclass(frozen=True)
class Start:
    """Where branches begin: paths of a base, an adapter and task files."""

    base: object
    adapter: object
    tasks: dict

    def data(self, out=None, **asked):
        """The nested values of a configuration; `asked` replaces keys of `lookahead`."""
        return {**data(self.base, self.adapter, self.tasks, out), "lookahead": {**ASKED, **asked}}

    def config(self, out=None, **asked):
        return config.build(self.data(out, **asked), "test")

    def job(self, **asked):
        return prepared(self.config(**asked))


def made(folder) -> Start:
    """A start in a folder, whose two tasks are red and blue."""
    tasks = {name: write_task(folder / f"{name}.jsonl", 40, k) for k, name in enumerate(["red", "blue"])}
    return Start(write_base(folder / "base"), write_adapter(folder / "adapter"), tasks)
