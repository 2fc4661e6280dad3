"""Unfinished work: the directory beside a run's or factors' place where their parts wait, one process's at a time.

    OUT.partial/identity   of which configuration and checkpoint it is
    OUT.partial/lock       held by the process that works on it
    OUT.partial/part-N     gradients or selections of some examples; with a spool directory, they lie in a folder there
    OUT.partial/spools     the folders in which they have lain
    OUT.partial/gram...    a run's Gram matrices, as they are made
    OUT.partial/result     the run or factors, until they are whole
    OUT.partial/settled    that they are whole and about to be moved

It outlives an interruption, a kill and a full disk, and the same command continues; it goes when the result is saved,
or when the input turns out to be wrong.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from interference.errors import InterferenceError, RunError
from interference.measurement.spool import DiskSpool
from mixlora.common.files import amount, exists, is_file
from mixlora.common.locks import locked
from mixlora.common.writing import remove_left, whole_file

_IDENTITY = "identity"
_GRAM = "gram.safetensors"
_RESULT = "result"
_SPOOLS = "spools"
_SETTLED = "settled"
_LOCK = "lock"
_OWN = {_LOCK, f".{_IDENTITY}.new"}  # what a process that was killed at once has left


@contextmanager
def unfinished(
    out: Path, identity: str, spool_dir: Path | None = None, need: int = 0, stored: int = 0, first: bool = True
) -> Iterator[DiskSpool]:
    """The spool of a job: continued if it is of the same one. In another `spool_dir` than before it begins anew.

    Args:
        out: where the run or factors will be.
        identity: of the job.
        spool_dir: where the parts wait; None for beside `out`.
        need: bytes that they will take there, if that is much.
        stored: bytes that the Gram matrices will take beside `out`.
        first: whether this process, of those that share the work, keeps the directory.

    Raises:
        RunError: if another process works on it, it is of another job, it cannot be written, or there is no room.
    """
    folder = beside(out)
    place = folder if spool_dir is None else spool_dir.absolute() / f"{out.name}-{_digest(str(out))}.partial"
    if place.resolve().is_relative_to(out.resolve()):
        raise RunError(f"gradients would wait in {place}, where the run is to be; choose another --spool-dir")
    with ExitStack() as stack:
        new = [each for each in dict.fromkeys([place, folder]) if not exists(each)]
        if first:
            _make(folder, "--out")
            stack.enter_context(locked(folder / _LOCK, f"computing {out}"))
        try:
            for each in dict.fromkeys([folder, place]) if first else ():
                _make(each, "--out" if each == folder else "--spool-dir")
                _mark(each, identity)
            if first:
                result = folder / _RESULT
                shutil.rmtree(result, ignore_errors=True)  # of a process that was killed before it could be moved
                remove_left(result)
            spool = DiskSpool(place)
            _refuse_full(place, need, folder if first else place, stored if first else 0)
            former = _former(folder, place) if first else []
        except RunError:
            _remove(*new)  # nothing is measured yet, and the next try may be of another configuration
            raise
        try:
            yield spool
        except RunError:
            raise  # a full disk, or one that is gone: what is measured is not lost
        except InterferenceError:
            _remove(place, *former, folder)
            raise
        _remove(place, *former, folder)


def beside(out: Path) -> Path:
    """The directory of unfinished work."""
    return out.with_name(out.name + ".partial")


def gram_file(out: Path) -> Path:
    """Where the Gram matrices of an unfinished run are written."""
    return beside(out) / _GRAM


def settle(save: Callable[[Path], None], out: Path) -> None:
    """Save a result beside its place and move it there, so that whatever a kill leaves goes with the unfinished work.

    Args:
        save: writes the result to the directory that it is given.
        out: its place.

    Raises:
        RunError: if it cannot be written, or something has come to lie at its place.
    """
    waiting = beside(out) / _RESULT
    save(waiting)
    _note(beside(out) / _SETTLED, "")
    try:
        waiting.rename(out)
    except OSError as error:
        raise RunError(f"{waiting} cannot be moved to {out}: {error.strerror or error}; move it yourself") from None


def clear(out: Path, marker: str) -> None:
    """Remove what a process has left that was killed right after it moved a result, known by a file, to its place."""
    folder = beside(out)
    if is_file(folder / _SETTLED) and is_file(out / marker):
        waited = map(Path, (_noted(folder / _SPOOLS) or "").splitlines())
        _remove(*(path for path in waited if (path / _IDENTITY).is_file()), folder)


def refuse_busy(out: Path) -> None:
    """Raise a RunError if another process works on the same, before anything costly is done for it."""
    if is_file(beside(out) / _LOCK):
        with locked(beside(out) / _LOCK, f"computing {out}"):
            pass


def _make(folder: Path, option: str) -> None:
    """Make the folder.

    Raises:
        RunError: if it cannot be made, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}; choose another {option}") from None
    if _IDENTITY not in held and held - _OWN:
        raise RunError(f"{folder}, where gradients would wait, holds something else; choose another {option}")


def _mark(folder: Path, identity: str) -> None:
    """Write whose the folder is.

    Raises:
        RunError: if it is another job's, or cannot be written.
    """
    if (known := _noted(folder / _IDENTITY)) is not None and known != identity:
        raise RunError(
            f"{folder} holds unfinished work on another configuration or checkpoint; finish that, delete the "
            "directory, or choose another --out"
        )
    _note(folder / _IDENTITY, identity)


def _former(folder: Path, place: Path) -> list[Path]:
    """Where gradients of this job waited before another `spool_dir` was named, so that they go, too, in the end."""
    lines = (_noted(folder / _SPOOLS) or "").splitlines()
    waited = [path for path in map(Path, lines) if path not in (folder, place)]
    _note(folder / _SPOOLS, "".join(f"{path}\n" for path in [*waited, place]))
    return [path for path in waited if (path / _IDENTITY).is_file()]


def _noted(path: Path) -> str | None:
    """What a note says; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}; delete {path.parent}") from None


def _note(path: Path, text: str) -> None:
    try:
        with whole_file(path) as new:
            new.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise RunError(f"{path.parent} cannot be written: {error.strerror or error}; choose another --out") from None


def _refuse_full(place: Path, need: int, folder: Path, stored: int) -> None:
    """Raise a RunError if the gradients do not fit where they wait, or the Gram matrices beside the run."""
    apart = _apart(place, folder)
    gram = _size(folder / _GRAM)  # of a call before, which is written again
    free = shutil.disk_usage(place).free + sum(map(_size, place.glob("part-*.safetensors"))) + (0 if apart else gram)
    if need + (0 if apart else stored) > free:
        also = "" if apart or not stored else f", and Gram matrices {amount(stored)},"
        raise RunError(
            f"gradients need {amount(need)}{also} in {place}, where {amount(free)} are free; name another "
            "--spool-dir, probe fewer samples, layers or modules, or sketch them (probe.sketch)"
        )
    if apart and stored > (free := shutil.disk_usage(folder).free + gram):
        raise RunError(
            f"the Gram matrices need {amount(stored)} in {folder}, where {amount(free)} are free; choose another "
            "--out, probe fewer samples, or sum blocks (probe.granularity)"
        )


def _apart(place: Path, folder: Path) -> bool:
    """Whether they lie on different disks."""
    return place.stat().st_dev != folder.stat().st_dev


def _size(path: Path) -> int:
    """Bytes of a file; 0 if it is not there: another process may have moved it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=4).hexdigest()
