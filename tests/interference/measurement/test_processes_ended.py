"""What goes wrong in one of several processes ends all of them, at once and in one sentence."""

import json
import re
import time

import pytest

from interference import config
from interference.measurement.compute import compute_config
from tests.support.checkpoints import data, write_adapter
from tests.support.launching import SETTINGS, launched
from tests.support.mixtures import mixture

FAULTS = {
    "the disk is full as the first writes": (
        0,
        """
        def write(path, names, units, packed):
            next(packed), next(packed)
            raise OSError(28, "No space left on device")
        builder.write_packed = write
        """,
        "run.partial/gram.safetensors cannot be written: No space left on device; make room there",
    ),
    "a part of the second is gone": (
        1,
        """
        def gone(self, part, block):
            raise RunError(f"{self.path(part)} is gone")
        spool.DiskSpool.read = gone
        """,
        "run.partial/part-000001.safetensors is gone",
    ),
    "no room where the second's gradients wait": (
        1,
        """
        def full(*arguments):
            raise RunError("gradients need more than there is")
        resume._refuse_full = full
        """,
        "gradients need more than there is",
    ),
}
PROGRAM = """
import os, sys
from interference import cli
from interference.measurement import builder, resume, spool
from interference.errors import RunError

if os.environ["RANK"] == "{rank}":
    {fault}
sys.argv = ["interference", "compute", "{settings}"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_process_ends_all_in_one_sentence_and_loses_nothing(fault, tiny, tmp_path):
    rank, code, words = FAULTS[fault]
    settings = tiny.config(tmp_path / "run", **SETTINGS)
    (tmp_path / "c.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    program = PROGRAM.format(rank=rank, fault=code.strip().replace("\n    ", "\n"), settings=tmp_path / "c.yaml")
    (tmp_path / "program.py").write_text(program)
    ended = launched(2, tmp_path / "program.py")
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode != 0 and words in said, ended.stderr
    assert not (tmp_path / "run").exists()
    assert len(compute_config(settings).probes) == 12


KILLED = """
import os, signal
from interference import cli
from interference.measurement import spool

write, written = spool.DiskSpool.write, []

def dying(*arguments):
    write(*arguments)
    written.append(1)
    if os.environ["RANK"] == "{rank}" and len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

spool.DiskSpool.write = dying
import sys
sys.argv = ["interference", "compute", "{settings}", "--quiet"]
cli.main()
"""
READ_ONLY = """
import os, pathlib, sys
from interference import cli

make = pathlib.Path.mkdir

def refused(path, *arguments, **named):
    if os.environ["RANK"] == "1" and "spools" in str(path):
        raise OSError(30, "Read-only file system", str(path))
    return make(path, *arguments, **named)

pathlib.Path.mkdir = refused
sys.argv = ["interference", "compute", "{settings}", "--quiet"]
cli.main()
"""


def one_of_two(tmp_path, program, settings, **values):
    """How a program ends in two processes, and the sentences that it says."""
    (tmp_path / "c.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    (tmp_path / "program.py").write_text(program.format(settings=tmp_path / "c.yaml", **values))
    begun = time.monotonic()
    ended = launched(2, tmp_path / "program.py")
    assert ended.returncode != 0 and time.monotonic() - begun < 60
    assert not (tmp_path / "run").exists()
    return [line for line in ended.stderr.splitlines() if line.startswith(("error: ", "stopped: "))]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_stop_where_one_process_is_killed_and_the_same_command_continues(tiny, tmp_path, rank):
    settings = tiny.config(tmp_path / "run", **SETTINGS)
    (said,) = one_of_two(tmp_path, KILLED, settings, rank=rank)
    assert re.fullmatch(
        r"stopped: (SIGTERM arrived, perhaps because another process ended|another of the 2 processes ended or "
        r"cannot be reached \(.+\)); the same command continues",
        said,
    )
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run.partial").glob("part-*.safetensors")}
    assert len(kept) >= 2
    seen = []
    note = lambda *_: seen.append({path.name: path.stat().st_mtime_ns for path in tmp_path.glob("run.partial/part-*")})  # noqa: E731
    assert len(compute_config(settings, note).probes) == 12
    assert kept.items() <= seen[-1].items()


@pytest.mark.slow
def test_a_spool_directory_that_one_machine_cannot_write_ends_all(tiny, tmp_path):
    settings = tiny.config(tmp_path / "run", **SETTINGS, spool_dir=str(tmp_path / "spools"))
    (said,) = one_of_two(tmp_path, READ_ONLY, settings)
    assert said.startswith(f"error: {tmp_path / 'spools'}/run-")
    assert said.endswith("cannot be made: Read-only file system; choose a --spool-dir that every process "
                         "can write to")  # fmt: skip
    assert len(compute_config(settings).probes) == 12


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(FAULTS)[:2])
def test_a_mixture_ends_all_as_well(fault, tiny, tmp_path):
    """The first process's error is not taken for the selections that the others gather."""
    rank, code, words = FAULTS[fault]
    adapter = write_adapter(tmp_path / "mixture", mixture())
    values = data(tiny.base, adapter, tiny.tasks, tmp_path / "run", **SETTINGS)
    (tmp_path / "c.yaml").write_text(json.dumps(values))
    program = PROGRAM.format(rank=rank, fault=code.strip().replace("\n    ", "\n"), settings=tmp_path / "c.yaml")
    (tmp_path / "program.py").write_text(program)
    ended = launched(2, tmp_path / "program.py")
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode != 0 and words in said, ended.stderr
    assert "has no attribute" not in ended.stderr


@pytest.mark.slow
def test_a_model_over_all_gpus_is_for_one_process(tiny, tmp_path):
    values = tiny.data(tmp_path / "run")
    values["model"]["device"] = "split"
    settings = config.build(values, "test")
    (tmp_path / "c.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    ended = launched(2, "-m", "interference.cli", "compute", tmp_path / "c.yaml")
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert said.endswith("each of 2 processes holds a model of its own; leave device out, or start one process")
