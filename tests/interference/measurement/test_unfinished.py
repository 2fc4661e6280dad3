"""Where the gradients of unfinished work wait: one process at a time, room looked for first, removed at the end."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from interference import compute, load
from interference.errors import MeasurementError, RunError
from interference.measurement import checkpoint, sample
from interference.measurement import resume as unfinished_runs
from interference.measurement.compute import compute_config
from interference.measurement.resume import unfinished
from interference.measurement.spool import DiskSpool
from mixlora.common.directories import check_writable
from tests.support.models import batch, llama, lora

JOB = {"job": "a"}


def test_it_goes_when_all_is_done_or_the_input_is_wrong_and_stays_otherwise(tmp_path):
    out = tmp_path / "run"
    with unfinished(out, JOB) as spool:
        spool.write(0, {"b": torch.ones(1, 1)})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MeasurementError), unfinished(out, JOB):
        raise MeasurementError("wrong")
    assert list(tmp_path.iterdir()) == []
    for stop in (RunError("the disk is full"), KeyboardInterrupt(), RuntimeError("a bug")):
        with pytest.raises(type(stop)), unfinished(out, JOB) as spool:
            spool.write(0, {"b": torch.ones(1, 1)})
            raise stop
        assert (tmp_path / "run.partial" / "part-000000.safetensors").exists()


def test_gradients_wait_in_the_spool_directory_and_go(tmp_path):
    out, spools = tmp_path / "run", tmp_path / "spools"
    with unfinished(out, JOB, spools) as spool:
        spool.write(0, {"b": torch.ones(1, 1)})
        assert spool.folder.parent == spools and (tmp_path / "run.partial" / "identity").exists()
        with unfinished(tmp_path / "other" / "run", JOB, spools) as second:
            assert second.folder != spool.folder  # of the same name, elsewhere
    assert list(spools.iterdir()) == [] and not (tmp_path / "run.partial").exists()


def test_spooled_gradients_of_another_job_are_refused_even_if_the_partial_directory_is_gone(tmp_path):
    out, spools = tmp_path / "run", tmp_path / "spools"
    with pytest.raises(KeyboardInterrupt), unfinished(out, JOB, spools):
        raise KeyboardInterrupt
    shutil.rmtree(tmp_path / "run.partial")
    refused = pytest.raises(
        RunError, match=r"spools/run-\w+.partial holds unfinished work of another job \(job was 'a' and is now"
    )
    with refused, unfinished(out, {"job": "b"}, spools):
        pass


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path):
    out = tmp_path / "run"
    code = f"""
        from pathlib import Path
        from interference.errors import RunError
        from interference.measurement.resume import unfinished
        try:
            with unfinished(Path({str(out)!r}), dict(job="a")):
                print("in")
        except RunError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with unfinished(out, JOB) as spool:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert said == f"another process is computing {out}; wait for it, or choose another --out"
        spool.write(0, {"b": torch.ones(1, 1)})
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "in"


def test_a_second_process_is_told_before_it_loads_anything(tiny, tmp_path, monkeypatch):
    settings = tiny.config(tmp_path / "run", samples=4)
    monkeypatch.setattr(sample, "read", lambda config: pytest.fail("the data were read"))
    code = (
        "import sys; from pathlib import Path; from mixlora.common.locks import locked\n"
        f"with locked(Path({str(tmp_path / 'run.partial' / 'lock')!r}), 'it'):\n    print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout.readline() == "held\n"
        with pytest.raises(RunError) as told:
            compute_config(settings)
        one.communicate("\n")
    assert str(told.value) == f"another process is computing {tmp_path}/run; wait for it, or choose another --out"
    monkeypatch.undo()
    assert len(compute_config(settings).probes) == 8


def test_what_a_process_killed_at_once_leaves_is_no_foreign_directory(tmp_path):
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "lock").touch()
    (tmp_path / "run.partial" / ".identity.new").write_text("ha")
    with unfinished(tmp_path / "run", JOB):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**12))
    with pytest.raises(RunError) as told:
        compute_config(tiny.config(tmp_path / "run", spool_dir=str(tmp_path / "spools")))
    assert list((tmp_path / "spools").iterdir()) == [] and not (tmp_path / "run.partial").exists()
    folder = re.search(r" in (.*), where", str(told.value))[1]
    assert folder.startswith(str(tmp_path / "spools" / "run-"))
    assert str(told.value) == (
        f"gradients need 87 KiB, and Gram matrices 4.27 KiB, in {folder}, where 4 KiB are free; make room there, "
        "name another --spool-dir, probe fewer samples, layers or modules, or sketch them (probe.sketch)"
    )


def test_a_gram_file_that_will_be_written_again_is_room(tmp_path, monkeypatch):
    usage, here = namedtuple("usage", "total used free"), shutil.disk_usage
    out, spools = tmp_path / "run", tmp_path / "spools"

    def tight(path):
        return usage(0, 0, 100) if "spools" not in str(path) else here(path)

    with pytest.raises(RunError, match="killed"), unfinished(out, JOB, spools, stored=1000):
        (tmp_path / "run.partial" / "gram.safetensors").write_bytes(bytes(950))
        (tmp_path / "run.partial" / "result").mkdir()
        (tmp_path / "run.partial" / "result" / "gram.safetensors").write_bytes(bytes(950))
        raise RunError("killed")
    monkeypatch.setattr(shutil, "disk_usage", tight)
    monkeypatch.setattr(unfinished_runs, "_apart", lambda place, folder: True)
    with (
        pytest.raises(RunError, match=r"the Gram matrices need 1\.04 KiB"),
        unfinished(out, JOB, spools, stored=1060),
    ):
        pass
    with unfinished(out, JOB, spools, stored=1000):
        assert not (tmp_path / "run.partial" / "result").exists()


def test_a_name_that_no_directory_beside_it_could_have_is_told(tiny, refused, tmp_path):
    for length in (250, 300):
        said = refused("compute", *tiny.arguments(tmp_path / ("n" * length)), "--samples", "4", "--quiet")
        assert said.endswith("File name too long; choose another --out"), said


def test_a_working_directory_whose_name_is_no_text_is_told(tiny, tmp_path, monkeypatch):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9j\xe0"))
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(RunError, match="is not UTF-8, which safetensors needs; choose another --out"):
        compute_config(tiny.config("run", samples=4))
    assert list(odd.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "dangling", "mount"])
def test_a_place_to_which_nothing_can_be_moved_is_refused_at_once(tiny, tmp_path, monkeypatch, kind):
    out = tmp_path / "out"
    if kind == "mount":
        out.mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    else:
        out.symlink_to(tmp_path / "there")
        if kind == "link":
            (tmp_path / "there").mkdir()
    for job in (
        lambda: compute_config(tiny.config(out)),
        lambda: compute(lora(llama()), {"red": [batch([4, 5], [1, 2])]}, out=out),
    ):
        with pytest.raises(RunError) as told:
            job()
        assert str(told.value) == f"{out} is a link or the root of a disk; name a directory within it with --out"


def test_a_notebooks_run_is_refused_before_it_is_measured(tmp_path):
    (tmp_path / "file").touch()
    seen = []
    for out in (tmp_path / "file" / "run", tmp_path / "file" / "more" / "run"):
        with pytest.raises(RunError, match=r"^nothing can be written to .*: Not a directory; choose another --out$"):
            compute(
                lora(llama()),
                {"red": [batch([4, 5], [1, 2])]},
                out=out,
                progress=lambda *said: seen.append(said),
            )
    assert seen == [] and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_is_looked_at_and_left_as_it_was(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_left_that_was_killed_while_it_looked_is_removed(tiny, tmp_path):
    """Of this run alone: another's temporary directory stays."""
    for name in (".run.0123abcd.tmp", ".run.2.0123abcd.tmp"):
        (tmp_path / name).mkdir()
    compute_config(tiny.config(tmp_path / "run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.2.0123abcd.tmp", "run"]


def test_a_spool_directory_that_cannot_be_made_is_told(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        RunError, match=r"file/run-\w+.partial cannot be written: Not a directory; choose another --spool"
    ):
        compute_config(tiny.config(tmp_path / "run", spool_dir=str(tmp_path / "file")))


def test_what_is_refused_before_anything_is_measured_is_not_in_the_way_of_the_next_try(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="choose another --spool-dir"):
        compute_config(tiny.config(tmp_path / "run", spool_dir=str(tmp_path / "file")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert compute_config(tiny.config(tmp_path / "run", samples=4)).probes.shape[0] == 8


def test_gradients_may_wait_elsewhere_when_a_run_continues(tiny, tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_config(tiny.config(tmp_path / "run", spool_dir=str(tmp_path / "one")), stop)
    found = compute_config(tiny.config(tmp_path / "run", spool_dir=str(tmp_path / "other")))
    assert len(found.probes) == 12 and not (tmp_path / "run.partial").exists()
    assert [*(tmp_path / "one").iterdir(), *(tmp_path / "other").iterdir()] == []  # nothing waits for ever


def test_a_stranger_s_word_deletes_nothing(tiny, tmp_path):
    """What comes beside a run from elsewhere may name any folder as one that held parts."""
    mine, partial = tmp_path / "mine", tmp_path / "theirs.partial"
    mine.mkdir()
    (mine / "identity").write_text("my own")
    (mine / "book.txt").write_text("mine, too")
    compute_config(tiny.config(tmp_path / "theirs"))
    for theirs, own in ((None, None), ("theirs", None), ("theirs", "theirs")):
        partial.mkdir(exist_ok=True)
        (partial / "settled").touch()
        (partial / "spools").write_text(f"{mine}\n")
        (partial / "notes.txt").write_text("of the user")
        for folder, secret in ((partial, theirs), (mine, own)):
            if secret:
                (folder / "secret").write_text(secret)
        with pytest.raises(RunError, match="theirs already holds a run; choose another --out"):
            compute_config(tiny.config(tmp_path / "theirs"))
        assert (mine / "book.txt").read_text() == "mine, too" and (partial / "notes.txt").read_text() == "of the user"
        assert (mine / "identity").exists() or own


def test_a_whole_result_that_could_not_be_moved_is_kept_until_it_can_be(tiny, tmp_path):
    """Of two computes with one place, the later finds its place taken when all is done."""
    out = tmp_path / "run"
    settings = tiny.config(out)
    compute_config(tiny.config(tmp_path / "other", seed=1))

    def taken(stage, done, total):
        if (stage, done) == ("gram", total):
            (tmp_path / "other").rename(out)

    waiting = tmp_path / "run.partial" / "result"
    told = (
        f"{out} is taken: something was written there while {waiting} was computed, which is a whole result; rename "
        f"one of the two, or delete {waiting.parent}"
    )
    with pytest.raises(RunError, match=f"^{re.escape(told)}$"):
        compute_config(settings, taken)
    kept = {path.name: path.read_bytes() for path in waiting.iterdir()}
    for _ in range(3):
        with pytest.raises(RunError, match=f"^{re.escape(told)}$"):
            compute_config(settings)
        assert {path.name: path.read_bytes() for path in waiting.iterdir()} == kept
    out.rename(tmp_path / "other")
    with pytest.raises(RunError, match="already holds a run"):
        compute_config(settings)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    assert not (tmp_path / "run.partial").exists() and load(out).meta["seed"] == 0


def test_a_place_that_is_taken_while_a_job_prepares_is_told_before_it_measures(tiny, tmp_path, monkeypatch):
    """Of two computes with one place, the later loads its model while the former finishes."""
    out, load_model = tmp_path / "run", checkpoint.load_model
    compute_config(tiny.config(tmp_path / "other", seed=1))

    def loaded(config):
        (tmp_path / "other").rename(out)
        return load_model(config)

    monkeypatch.setattr(checkpoint, "load_model", loaded)
    told = f"{out} is taken: another process wrote it while this one prepared; choose another --out, or delete it first"
    with pytest.raises(RunError, match=f"^{re.escape(told)}$"):
        compute_config(tiny.config(out), lambda stage, *_: pytest.fail(stage))
    assert load(out).meta["seed"] == 1 and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_path_with_dots_leaves_no_empty_folder(tiny, tmp_path):
    compute_config(tiny.config(tmp_path / "a" / ".." / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_mounted_is_told_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    """As a bind mount of the same disk, of which only /proc tells."""
    out, own = tmp_path / "a place", Path.read_text
    out.mkdir()
    line = f"36 35 98:0 /mnt1 {str(out).replace(' ', chr(92) + '040')} rw,noatime master:1 - ext3 /dev/root rw\n"
    monkeypatch.setattr(
        Path, "read_text", lambda path, *a, **k: line if str(path) == "/proc/self/mountinfo" else own(path, *a, **k)
    )
    with pytest.raises(
        RunError, match="a place is a link or the root of a disk; name a directory within it with --out"
    ):
        compute_config(tiny.config(out))


def test_a_directory_of_others_is_refused_and_left_alone(tmp_path):
    out, spools = tmp_path / "run", tmp_path / "spools"
    with unfinished(out, JOB, spools) as spool:
        place = spool.folder
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="contains other files"), unfinished(out, JOB, spools):
        pass
    assert (place / "mine.txt").read_text() == "mine" and not (tmp_path / "run.partial").exists()


def test_gradients_do_not_wait_where_the_run_will_be(tmp_path):
    for spools in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with (
            pytest.raises(RunError, match="is also the directory of the run; choose another --spool-dir"),
            unfinished(tmp_path / "run", JOB, spools),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_identity_that_is_no_text_is_of_another_run(tmp_path):
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "identity").write_bytes(b"\xff\xfe")
    with (
        pytest.raises(RunError, match=r"holds unfinished work of another job; finish that, delete"),
        unfinished(tmp_path / "run", JOB),
    ):
        pass


def test_parts_of_another_checkpoint_are_measured_again(tiny, tmp_path):
    """A process on another machine keeps its own parts, and no identity beside them."""
    config = tiny.config(tmp_path / "run", spool_dir=str(tmp_path / "spools"))

    def stop(stage, done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_config(config, stop)
    (place,) = (tmp_path / "spools").iterdir()
    spool = DiskSpool(place)
    for number in range(len(list(place.glob("part-*")))):
        rows = {name: 2 * values for name, values in spool.rows(number).items()}
        spool.write(number, rows, {**spool.metadata(number), "batches": "of another job"})
    (tmp_path / "whole").mkdir()
    whole = compute_config(tiny.config(tmp_path / "whole" / "run"))
    assert np.array_equal(compute_config(config).gram(), whole.gram())


def test_less_memory_is_no_other_job(tiny, tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_config(tiny.config(tmp_path / "run"), stop)
    found = compute_config(tiny.config(tmp_path / "run", memory_budget=4096))
    assert found.meta["config"]["probe"]["memory_budget"] == 4096


@pytest.mark.parametrize("spools", [None, "spools"])
def test_a_kill_right_after_the_run_is_moved_leaves_nothing_for_ever(tiny, tmp_path, monkeypatch, spools):
    config = tiny.config(tmp_path / "run", spool_dir=spools and str(tmp_path / spools))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(unfinished_runs, "_remove", lambda *folders: (_ for _ in ()).throw(KeyboardInterrupt))
        compute_config(config)
    assert (tmp_path / "run.partial").exists() and len(load(tmp_path / "run").probes) == 12
    with pytest.raises(RunError, match="already holds a run"):
        compute_config(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(filter(None, ["run", spools]))
    assert not any((tmp_path / "spools").glob("*"))
