"""Where gradients wait: whole files or none, and what is said when they cannot be written or read."""

import subprocess
import sys
import textwrap

import pytest
import torch

from interference.errors import RunError
from interference.measurement.spool import DiskSpool, MemorySpool


def test_disk_spool_remembers_metadata_and_leaves_no_temporary_file(tmp_path):
    spool = DiskSpool(tmp_path)
    spool.write(0, {"b": torch.ones(1, 1)}, {"batch": "abc"})
    assert spool.metadata(0) == {"batch": "abc"}
    assert spool.metadata(1) is None
    assert [path.name for path in tmp_path.iterdir()] == ["part-000000.safetensors"]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5], lambda raw: b"", lambda raw: b"\xff" * len(raw)])
def test_a_damaged_part_counts_as_absent_and_is_named_when_it_is_read(tmp_path, damage):
    spool = DiskSpool(tmp_path)
    spool.write(3, {"b": torch.ones(4, 4)}, {"batch": "abc"})
    spool.path(3).write_bytes(damage(spool.path(3).read_bytes()))
    assert spool.metadata(3) is None
    with pytest.raises(RunError, match=r"part-000003.safetensors is gone or damaged \(.*the same command measures it"):
        spool.read(3, "b")


def test_a_part_with_any_other_byte_counts_as_absent(tmp_path):
    """Its losses and tokens are in the header, beside the digests of its rows."""
    written = {"batches": "abc", "losses": "[1.25, 2.5]", "tokens": "[3, 4]"}
    spool = DiskSpool(tmp_path)
    spool.write(0, {"b": torch.ones(2, 2), "c": torch.ones(2, 1)}, written)
    whole = spool.path(0).read_bytes()
    for place in range(len(whole)):
        other = bytearray(whole)
        other[place] ^= 1 << place % 8
        spool.path(0).write_bytes(other)
        assert DiskSpool(tmp_path).metadata(0) is None, (place, bytes(other))
        with pytest.raises(RunError, match="gone or damaged"):
            DiskSpool(tmp_path).rows(0)


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path):
    code = f"""
        import resource, signal, torch
        from interference.errors import RunError
        from interference.measurement.spool import DiskSpool
        from pathlib import Path
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        spool = DiskSpool(Path({str(tmp_path)!r}))
        spool.write(0, {{"b": torch.ones(10, 10)}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            spool.write(1, {{"b": torch.ones(1000, 10)}})
        except RunError as error:
            print(error)
        assert spool.read(0, "b").sum() == 100
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert said.stdout.startswith(f"what is measured cannot be written to {tmp_path}: ")
    assert said.stdout.strip().endswith("make room there, and start again")
    assert [path.name for path in tmp_path.iterdir()] == ["part-000000.safetensors"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError) as told:
        DiskSpool(tmp_path / "file" / "spool")
    assert str(told.value) == (
        f"{tmp_path}/file/spool cannot be made: Not a directory; choose a --spool-dir that every process can write to"
    )


def test_memory_beyond_the_limit_waits_where_it_is_told_and_goes(tmp_path):
    with MemorySpool(100, tmp_path) as spool:
        spool.write(0, {"b": torch.ones(1, 20)})
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        spool.write(1, {"b": torch.ones(1, 20)})
        (folder,) = tmp_path.iterdir()
        assert [path.name for path in folder.iterdir()] == ["part-000001.safetensors"]
        assert spool.read(0, "b").sum() == spool.read(1, "b").sum() == 20
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_made_and_one_that_cannot_be_is_told_before_anything_is_measured(tmp_path):
    with MemorySpool(1, tmp_path / "new" / "place") as spool:
        spool.write(0, {"b": torch.ones(1, 20)})
    assert list((tmp_path / "new" / "place").iterdir()) == []
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match=r"nothing can be written to .*/file: File exists; choose another spool_dir"),
        MemorySpool(1, tmp_path / "file"),
    ):
        pass
