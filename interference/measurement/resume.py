"""Unfinished work: the directory next to a run or factors in which their parts wait; one process at a time works on it.

    OUT.partial/identity   what the result depends on: model, configuration, loss, processing
    OUT.partial/lock       held by the process that works on it
    OUT.partial/part-N     gradients or selections of some examples; if a spool directory is given, in a folder there
    OUT.partial/spools     all folders that have held parts
    OUT.partial/secret     a random text, also in those folders: only what has it was made here, and may be deleted
    OUT.partial/gram...    a run's Gram matrices, as they are made
    OUT.partial/result     the run or factors, until they are whole
    OUT.partial/settled    marks a whole result that is about to be moved

It survives an interruption, a kill and a full disk; the same command then continues. It is deleted when the result is
saved, or when the input turns out to be wrong.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from secrets import token_hex
from typing import Any

from interference.errors import InterferenceError, RunError, WriteError
from interference.measurement.spool import DiskSpool
from mixlora.common.directories import is_occupied
from mixlora.common.errors import is_full, unwritable
from mixlora.common.files import amount, exists, is_file
from mixlora.common.identity import differences
from mixlora.common.locks import locked
from mixlora.common.writing import remove_left, whole_file

_IDENTITY = "identity"
_GRAM = "gram.safetensors"
_RESULT = "result"
_SPOOLS = "spools"
_SETTLED = "settled"
_LOCK = "lock"
_SECRET = "secret"
_OWN = {_LOCK, f".{_IDENTITY}.new"}
"""Files of a process that was killed before it wrote its identity."""
_NAMES = "|".join([r"part-\d+\.safetensors", _GRAM, _RESULT, _SPOOLS, _SETTLED, _SECRET, _IDENTITY])
_MADE = re.compile(rf"\.?({_NAMES})(\.\w+){{0,2}}")
"""Names of what work leaves in its directories, under temporary names, too."""
_LAST = {_SECRET: 1, _SETTLED: 2}
"""What is removed last, so that the same command removes what a kill in the middle of it leaves."""


@contextmanager
def unfinished(
    out: Path,
    identity: Mapping[str, Any],
    spool_dir: Path | None = None,
    need: int = 0,
    stored: int = 0,
    first: bool = True,
) -> Iterator[DiskSpool]:
    """The spool of a job, which continues what an interrupted call of the same job left.

    Changing `spool_dir` restarts the job.

    Args:
        out: where the run or factors will be.
        identity: of the job: nested values that JSON has.
        spool_dir: where the parts wait; None for the directory of unfinished work.
        need: bytes that the parts will take; 0 if they are few.
        stored: bytes that the Gram matrices will take in the directory of unfinished work.
        first: whether this process manages the directory for all that share the work.

    Raises:
        RunError: if another process works on it, it holds another job, it cannot be written, or the result's place is
            taken by now.
        WriteError: if the disk is too full.
    """
    folder = partial_folder(out)
    place = folder if spool_dir is None else spool_dir.absolute() / f"{out.name}-{_digest(str(out))}.partial"
    if place.resolve().is_relative_to(out.resolve()):
        raise RunError(f"the spool directory {place} is also the directory of the run; choose another --spool-dir")
    with ExitStack() as stack:
        new = [each for each in dict.fromkeys([place, folder]) if not exists(each)]
        if first:
            _make(folder, "--out")
            stack.enter_context(locked(folder / _LOCK, f"computing {out}"))
        try:
            if first and _is_taken(out):
                raise RunError(
                    f"{out} is taken: another process wrote it while this one prepared; choose another --out, or "
                    "delete it first"
                )
            for each in dict.fromkeys([folder, place]) if first else ():
                _make(each, "--out" if each == folder else "--spool-dir")
                _mark(each, json.dumps(identity))
            if first:
                result = folder / _RESULT
                shutil.rmtree(result, ignore_errors=True)  # its process was killed before it was whole
                remove_left(result)
                remove_left(out)  # a process was killed while it looked whether `out` can be written
                _share_secret(folder, place)
            spool = DiskSpool(place)
            _refuse_full(place, need, folder if first else place, stored if first else 0)
            former = _with_former(folder, place) if first else []
        except RunError:
            _remove(*new)  # nothing is measured yet, and the next call may have another configuration
            raise
        try:
            yield spool
        except RunError:
            raise  # the disk is full or gone: keep what is measured
        except InterferenceError:
            _remove(place, *former, folder)
            raise
        _remove(place, *former, folder)


def partial_folder(out: Path) -> Path:
    """The directory of the unfinished work on a result."""
    return out.with_name(out.name + ".partial")


def day_of(out: Path) -> date | None:
    """The day that the unfinished work on a result takes for today; None where there is none, or it writes no date."""
    try:
        identity = json.loads(_noted(partial_folder(out) / _IDENTITY) or "")
        return date.fromisoformat(identity["config"]["model"]["date"])
    except (RunError, ValueError, LookupError, TypeError):  # other work, of an earlier version, unreadable: told later
        return None


def gram_file(out: Path) -> Path:
    """Where the Gram matrices of an unfinished run are written."""
    return partial_folder(out) / _GRAM


def settle(save: Callable[[Path], None], out: Path) -> None:
    """Save a result among the unfinished work and move it to its place, so that a kill leaves no other files.

    Args:
        save: writes the result to a directory.
        out: the result's place.

    Raises:
        RunError: if the result cannot be written, or its place is taken by now.
    """
    waiting = partial_folder(out) / _RESULT
    save(waiting)
    _note(partial_folder(out) / _SETTLED, "")
    _move(waiting, out)


def clear(out: Path, marker: str) -> None:
    """Move a whole result that a killed process did not move, and remove what it left.

    Args:
        out: the result's place.
        marker: a file that every such result has.

    Raises:
        RunError: if the result cannot be moved to its place, or another process is moving it.
    """
    folder = partial_folder(out)
    settled = is_file(folder / _SETTLED) and is_file(folder / _SECRET)
    if not settled and not (is_file(out / marker) and _is_bare(folder)):
        return
    with locked(folder / _LOCK, f"computing {out}"):
        waiting = folder / _RESULT
        if is_file(waiting / marker):
            _move(waiting, out)
        if is_file(out / marker):
            _remove(*_former(folder), folder)


def _is_bare(folder: Path) -> bool:
    """Whether a folder is there that holds nothing but marks, as a kill while it was removed leaves it."""
    try:
        return {path.name for path in folder.iterdir()} <= {_SETTLED, _LOCK}
    except OSError:
        return False


def _move(waiting: Path, out: Path) -> None:
    """Move a whole result to its place.

    Raises:
        RunError: if its place is taken, or cannot be written.
    """
    try:
        waiting.rename(out)
    except OSError as error:
        failed = f"{waiting} is a finished result, but cannot be moved to {out}"
        if is_full(error.errno):
            raise unwritable(failed, error) from None
        if _is_taken(out):
            raise RunError(
                f"{out} is taken: something was written there while {waiting} was computed, which is a whole result; "
                f"rename one of the two, or delete {waiting.parent}"
            ) from None
        raise RunError(f"{failed}: {error.strerror or error}; move it yourself") from None


def _is_taken(out: Path) -> bool:
    """Whether something is at a result's place."""
    try:
        return is_occupied(out)
    except OSError:
        return False


def refuse_busy(out: Path) -> None:
    """Raise a RunError if another process works on the same result, before costly work starts."""
    if is_file(partial_folder(out) / _LOCK):
        with locked(partial_folder(out) / _LOCK, f"computing {out}"):
            pass


def _make(folder: Path, option: str) -> None:
    """Create the folder.

    Raises:
        RunError: if it cannot be created, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise unwritable(f"{folder} cannot be written", error, option=option) from None
    if _IDENTITY not in held and held - _OWN:
        raise RunError(f"the spool directory {folder} contains other files; choose another {option}")


def _mark(folder: Path, identity: str) -> None:
    """Write the identity of the folder's job.

    Raises:
        RunError: if the folder holds another job, or cannot be written.
    """
    if (known := _noted(folder / _IDENTITY)) is not None and known != identity:
        raise RunError(
            f"{folder} holds unfinished work of another job{_other(known, identity)}; finish that, delete the "
            "directory, or choose another --out"
        )
    _note(folder / _IDENTITY, identity)


def _other(known: str, identity: str) -> str:
    """What differs between two identities, in brackets; "" if one cannot be read, as those of earlier versions."""
    try:
        return f" ({differences(dict(json.loads(known)), json.loads(identity))})"
    except (ValueError, TypeError):
        return ""


def _with_former(folder: Path, place: Path) -> list[Path]:
    """Note where parts wait; the folders of earlier spool directories, which end with the job, too."""
    former = [path for path in _former(folder) if path not in (folder, place)]
    _note(folder / _SPOOLS, "".join(f"{path}\n" for path in [*former, place]))
    return former


def _former(folder: Path) -> list[Path]:
    """The noted folders that have held parts of this job, as the secret in them proves."""
    secret = _noted(folder / _SECRET)
    waited = [Path(line) for line in (_noted(folder / _SPOOLS) or "").splitlines()]
    return [path for path in waited if secret and is_file(path / _SECRET) and _noted(path / _SECRET) == secret]


def _share_secret(folder: Path, place: Path) -> None:
    """Write the job's secret into both of its directories."""
    secret = _noted(folder / _SECRET) or token_hex(16)
    for each in dict.fromkeys([folder, place]):
        _note(each / _SECRET, secret)


def _noted(path: Path) -> str | None:
    """The text of a note; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}; delete {path.parent}") from None


def _note(path: Path, text: str) -> None:
    try:
        with whole_file(path) as new:
            new.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise unwritable(f"{path.parent} cannot be written", error) from None


def _refuse_full(place: Path, need: int, folder: Path, stored: int) -> None:
    """Raise a WriteError if a disk is too small for the gradients in `place` or the Gram matrices in `folder`."""
    apart = _apart(place, folder)
    gram = _size(folder / _GRAM)  # an earlier call's, which will be overwritten
    free = shutil.disk_usage(place).free + sum(map(_size, place.glob("part-*.safetensors"))) + (0 if apart else gram)
    if need + (0 if apart else stored) > free:
        also = "" if apart or not stored else f", and Gram matrices {amount(stored)},"
        raise WriteError(
            f"gradients need {amount(need)}{also} in {place}, where {amount(free)} are free; make room there, name "
            "another --spool-dir, probe fewer samples, layers or modules, or sketch them (probe.sketch)"
        )
    if apart and stored > (free := shutil.disk_usage(folder).free + gram):
        raise WriteError(
            f"the Gram matrices need {amount(stored)} in {folder}, where {amount(free)} are free; make room there, "
            "choose another --out, probe fewer samples, or sum blocks (probe.granularity)"
        )


def _apart(place: Path, folder: Path) -> bool:
    """Whether two folders lie on different disks."""
    return place.stat().st_dev != folder.stat().st_dev


def _size(path: Path) -> int:
    """Bytes of a file; 0 if it is missing, as another process may have moved it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(*folders: Path) -> None:
    """Remove what work has left in folders, and the folders themselves where they hold nothing else."""
    for folder in folders:
        with suppress(OSError):
            for path in sorted(folder.iterdir(), key=lambda path: _LAST.get(path.name, 0)):
                if path.name == _LOCK or _MADE.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            folder.rmdir()


def _digest(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=4).hexdigest()
