"""A tiny checkpoint and task files on disk, a run of them, and the command `interference` in this process."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from interference import config, load
from interference.cli import commands
from interference.measurement.compute import compute_config
from tests.support import advised, starts
from tests.support.checkpoints import data, write_adapter, write_base, write_llava, write_task

torch.set_num_threads(1)


@dataclass(frozen=True)
class Checkpoint:
    """Paths of a base, its adapter and two task files."""

    base: Path
    adapter: Path
    tasks: dict[str, Path]

    def data(self, out=None, **probe):
        return data(self.base, self.adapter, self.tasks, out, **probe)

    def config(self, out=None, **probe):
        return config.build(self.data(out, **probe), "test")

    def arguments(self, out=None):
        tasks = [part for name, file in self.tasks.items() for part in ("--task", f"{name}={file}")]
        given = ["--base", str(self.base), "--adapter", str(self.adapter), *tasks]
        return given if out is None else [*given, "--out", str(out)]


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny")
    tasks = {name: write_task(folder / f"{name}.jsonl", seed=k) for k, name in enumerate(["red", "blue"])}
    return Checkpoint(write_base(folder / "base"), write_adapter(folder / "adapter"), tasks)


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> starts.Start:
    """Where lookaheads begin."""
    return starts.made(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="session")
def suite(tmp_path_factory) -> advised.Suite:
    """The planted suite with a training and runs of it, that no test changes."""
    return advised.made(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def run_dir(tiny, tmp_path_factory) -> Path:
    """A run of the tiny checkpoint over two layers, that no test changes."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    compute_config(tiny.config(out, layers=[0, 2]))
    return out


@pytest.fixture(scope="session")
def run(run_dir):
    return load(run_dir)


@pytest.fixture
def interference(monkeypatch, capsys):
    """The command `interference`, in this process."""

    def call(*arguments) -> Said:
        monkeypatch.setattr(sys, "argv", ["interference", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            commands.main()
            sys.exit(0)
        code = ended.value.code or 0
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def refused(interference):
    """A command that must end with 2, one sentence on stderr or a list, and nothing at `out`; what it says."""

    def call(*arguments, out=None) -> str:
        said = interference(*arguments)
        assert (said.code, said.out) == (2, ""), (said.code, said.err[-2000:])
        first, *listed = said.err.splitlines()
        assert first.startswith("error: ") and said.err.endswith("\n"), said.err
        assert all(line.startswith("  ") for line in listed) and bool(listed) == first.endswith(" these:"), said.err
        for path in [] if out is None else [out, out.with_name(out.name + ".partial")]:
            assert not path.exists(), path
        return said.err.removeprefix("error: ").strip()

    return call
