"""Unfinished runs: the directory beside a run's place in which its gradients wait, one process's at a time.

    OUT.partial/identity   of which configuration and checkpoint it is
    OUT.partial/lock       held by the process that works on it
    OUT.partial/part-N     gradients of some units; with a spool directory, they lie in a folder there
    OUT.partial/run        the run, until it is whole

It outlives an interruption, a kill and a full disk, and the same command continues; it goes when the run is saved, or
when the input turns out to be wrong.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from interference.errors import InterferenceError, RunError, amount
from interference.run import Run, check_free
from interference.spool import DiskSpool
from mixlora.errors import CheckpointError, MixLoraError
from mixlora.locks import locked

_IDENTITY = "identity"
_OWN = {"lock", "identity.tmp"}  # what a process that was killed at once has left


@contextmanager
def unfinished(
    out: Path, identity: str, spool_dir: Path | None = None, need: int = 0, first: bool = True
) -> Iterator[DiskSpool]:
    """The spool of a run: continued if it is of the same job.

    Args:
        out: where the run will be.
        identity: of the job.
        spool_dir: where gradients wait; None for beside `out`.
        need: bytes that they will take there.
        first: whether this process, of those that share the work, keeps the directory.

    Raises:
        RunError: if another process works on it, it is of another job, it cannot be written, or there is no room.
    """
    folder = beside(out)
    new = first and not folder.exists()
    place = folder if spool_dir is None else spool_dir / f"{out.name}-{_digest(str(out))}.partial"
    with ExitStack() as stack:
        if first:
            _make(folder, "--out")
            stack.enter_context(_locked(folder, out))
        try:
            for each in dict.fromkeys([folder, place]) if first else ():
                _make(each, "--out" if each == folder else "--spool-dir")
                _mark(each, identity)
            spool = DiskSpool(place)
            _refuse_full(place, need)
        except RunError:
            if new:  # nothing is measured yet, and the next try may be of another configuration
                _remove(*(each for each in (place, folder) if not any(each.glob("part-*"))))
            raise
        try:
            yield spool
        except RunError:
            raise  # a full disk, or one that is gone: what is measured is not lost
        except (InterferenceError, MixLoraError):
            _remove(place, folder)
            raise
        _remove(place, folder)


def beside(out: Path) -> Path:
    """The directory of an unfinished run."""
    return out.with_name(out.name + ".partial")


def settle(run: Run, out: Path) -> None:
    """Save a run beside its place and move it there, so that whatever a kill leaves goes with the unfinished run.

    Raises:
        RunError: if it cannot be written, or something has come to lie at its place.
    """
    waiting = beside(out) / "run"
    shutil.rmtree(waiting, ignore_errors=True)  # of a process that was killed before it could be moved
    run.save(waiting)
    check_free(out)
    waiting.rename(out)


def _make(folder: Path, option: str) -> None:
    """Make the folder.

    Raises:
        RunError: if it cannot be made, or holds what is no unfinished run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}; choose another {option}") from None
    if _IDENTITY not in held and held - _OWN:
        raise RunError(f"{folder}, where gradients would wait, is not of an unfinished run; choose another {option}")


def _mark(folder: Path, identity: str) -> None:
    """Write whose the folder is.

    Raises:
        RunError: if it is another job's, or cannot be written.
    """
    mark = folder / _IDENTITY
    if mark.exists() and mark.read_text(encoding="utf-8") != identity:
        raise RunError(
            f"{folder} is of an unfinished run of another configuration or checkpoint; finish that one, delete the "
            "directory, or choose another --out"
        )
    try:
        temporary = mark.with_suffix(".tmp")
        temporary.write_text(identity, encoding="utf-8")
        temporary.rename(mark)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from None


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        RunError: if another process holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "lock", f"computing {out}"))
        except CheckpointError as error:
            raise RunError(str(error)) from None
        yield


def _refuse_full(folder: Path, need: int) -> None:
    held = sum(path.stat().st_size for path in folder.glob("part-*"))
    free = shutil.disk_usage(folder).free
    if need - held > free:
        raise RunError(
            f"gradients need {amount(need)} in {folder}, where {amount(free + held)} are free; name another "
            "--spool-dir, probe fewer samples, layers or modules, or sketch them (probe.sketch)"
        )


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
