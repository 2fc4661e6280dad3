"""The directory of a training: which training it belongs to, what an interrupted one resumes from, how it is finished.

out/training.json         the configuration that reruns it, what it was trained on, losses, and "finished"
out/checkpoints/          to resume from
out/snapshots/step-N/     weights along the way, for measurements
out/logs/                 TensorBoard's, if it is reported to
out/                      the trained adapter, or the whole model
out/.lock                 held by the process that works in the directory
"""

import errno
import itertools
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mixlora.checkpoints.digests import of_file
from mixlora.common.errors import CheckpointError, TrainingError, unwritable
from mixlora.common.files import SNAPSHOTS, TRAINING, exists, read_json
from mixlora.common.identity import differences
from mixlora.common.locks import LOCK, locked
from mixlora.common.settings import leaves
from mixlora.common.writing import growing, write_json, write_remedy
from mixlora.training.config import Method

FORMAT = 1
_BEGUN = growing(Path(TRAINING)).name
OWN = {"checkpoints", SNAPSHOTS, "logs", TRAINING, _BEGUN, LOCK}
"""Names that a training uses in its directory, which no specialist's directory may have."""
_FREE = {
    "out",
    "model.device",
    *(f"training.{key}" for key in ("micro_batch_size", "gradient_checkpointing", "workers", "check_images")),
    *(f"training.{key}" for key in ("logging_steps", "report_to", "save_steps", "keep")),
    "training.optimizer_state",
}
"""Keys that change how a training is computed and reported: it continues with another value. The result differs by
rounding alone, or where `micro_batch_size` changes, also by which elements dropout drops. Where routers look at padding
it changes the result, and `open` compares it. `optimizer_state` adds a file to what is saved from then on."""

_ADDED = {"training.combine": "sum"}
"""Keys that directories of earlier versions do not have, and what was trained there."""

_SUMS = ".sums"
"""The suffix of the files of a checkpoint that hold digests of the others."""

_UNFINISHED = ("inline_container", "PytorchStreamWriter", "iostream error")
"""Words in torch.save's errors if it could not finish a file."""
_UNOPENED = ("Parent directory", "cannot be opened")
"""Words in torch.save's errors if it could not create a file."""


class Folder:
    """A training's directory: free, or of the same training.

    Args:
        path: the directory.
        config: the resolved configuration.
        data: fingerprint of the examples; None if not known yet, then the data is not compared.
        within: the enclosing directory, if that is claimed too.

    Raises:
        CheckpointError: it holds another training or other files.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], data: str | None, within: "Folder | None" = None) -> None:
        self.path = path
        self.config = config
        self.data = data
        self.within = within
        self.record = self._found()
        self.model: dict[str, Any] | None = (self.record or {}).get("model")

    @property
    def finished(self) -> bool:
        """Whether the training in the directory has finished."""
        return bool(self.record and self.record.get("finished"))

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """The directory of TensorBoard's logs."""
        return self.path / "logs"

    def snapshot(self, step: int) -> Path:
        """The directory of the weights after `step` steps."""
        return self.path / SNAPSHOTS / f"step-{step}"

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; None if there is none.

        Raises:
            CheckpointError: one cannot be read.
        """
        found = [path for path in self.checkpoints.glob("checkpoint-*") if _is_whole(path)]
        return max(found, key=_step, default=None)

    def alone(self) -> AbstractContextManager[None]:
        """Hold the directory's lock: inside the block no other process trains there.

        Raises:
            RunError: another process trains there, or the lock cannot be written.
        """
        return locked(self.path / LOCK, f"training {self.path}")

    def open(self, model: Mapping[str, Any]) -> list[Path]:
        """Claim the directory, remove checkpoints that a killed process did not finish, and set damaged ones aside.

        Args:
            model: fingerprints of the model before its first step, and what else its steps depend on.

        Returns:
            Where the damaged checkpoints are now, for a reader.

        Raises:
            CheckpointError: the training there began with another model, a checkpoint cannot be read, or the directory
                cannot be written.
            WriteError: the disk is full.
        """
        if self.within is not None:
            self.within.open(model)
        if changed := differences(self.model or model, model):
            raise CheckpointError(
                f"{self.path} is from another training ({changed}); choose another --out, or delete it"
            )
        self.model = dict(model)
        unusable = [path for path in self.checkpoints.glob("checkpoint-*") if not _is_whole(path)]
        damaged = []
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in unusable:
                if _is_ended(path):
                    damaged.append(path.rename(_aside(path)))
                else:
                    shutil.rmtree(path)
            if self.record is None:
                self._write({"finished": False})
        except OSError as error:
            raise unwritable(f"{self.path} cannot be written", error, CheckpointError) from None
        return damaged

    def close(self, known: Mapping[str, Any]) -> None:
        """Record that the training has finished, with what is known of it, and remove its checkpoints.

        Raises:
            TrainingError: the record cannot be written.
        """
        with written(self.path):
            self._write({"finished": True, **known})
        self.tidy()

    def tidy(self) -> None:
        """Remove the checkpoints of a finished training, if any are left."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _write(self, known: Mapping[str, Any]) -> None:
        self.record = {"format": FORMAT, "config": self.config, "data": self.data, "model": self.model, **known}
        write_json(self.path / TRAINING, self.record)

    def _found(self) -> dict[str, Any] | None:
        """The record of the same training; None if the directory is free."""
        if not exists(self.path) or (self.path.is_dir() and all(_is_begun(file) for file in self.path.iterdir())):
            return None
        record = read_record(self.path)
        if record is None:
            raise CheckpointError(f"{self.path} exists, but is not a training; choose another --out")
        if (key := _difference(record["config"], self.config)) is not None:
            name, before, now = key
            raise CheckpointError(
                f"{self.path} is from a different training ({name} was {before} and is now {now}); choose another "
                "--out, or delete it"
            )
        if self.data is not None and record["data"] != self.data:
            raise CheckpointError(
                f"{self.path} is from a training on other examples: a data file has changed; choose another --out, or "
                "delete it"
            )
        return record


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of the training in a directory; None if there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        record = read_json(path / TRAINING)
        newer = record["format"] > FORMAT
        if not newer:
            dict(record["config"]), dict(record.get("model") or {}), record["data"], record["finished"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path / TRAINING} cannot be read: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError):
        raise CheckpointError(f"{path / TRAINING} is damaged; restore it, or train again elsewhere") from None
    if newer:
        raise CheckpointError(
            f"{path} was written by a newer version (format {record['format']!r:.20}); update task-interference"
        )
    return dict(record)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Explain errors of writing files of a training's directory in the block.

    Raises:
        TrainingError: a file cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _UNFINISHED + _UNOPENED):
            raise
        remedy = write_remedy(_number(error), "the same command continues from the last checkpoint")
        raise TrainingError(f"{path} cannot be written: {_words(error)}; {remedy}") from None


def _number(error: Exception) -> int | None:
    """The errno of an error of writing, if known; torch's own errors do not carry it."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, RuntimeError):
        return errno.ENOSPC if any(words in str(error) for words in _UNFINISHED) else None
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _words(error: Exception) -> str:
    """The reason in an error of writing."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _UNFINISHED):
        return "a file could not be written whole"
    return getattr(error, "strerror", None) or str(error).rstrip(".")


def seal(checkpoint: Path, rank: int) -> None:
    """Write digests of the files that a process wrote into a checkpoint; without them it still counts as whole.

    Args:
        checkpoint: its directory.
        rank: of the process. The first one answers for all files but the other processes' own.
    """
    own = f"rng_state_{rank}.pth"
    files = [path for path in checkpoint.iterdir() if not _is_temporary(path.name) and path.suffix != _SUMS]
    files = [path for path in files if path.is_file()]
    of_all = [path for path in files if path.name == own or not path.name.startswith("rng_state_")]
    written = of_all if rank == 0 else [checkpoint / own]
    write_json(checkpoint / f"{rank}{_SUMS}", {path.name: of_file(path) for path in written})


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is as it was written, to the end: a file that is absent or has another digest is damage.

    Raises:
        CheckpointError: a file cannot be read, which a moment later may be possible.
    """
    try:
        sums = [read_json(file) for file in path.glob(f"*{_SUMS}")]
        files = [(name, sum) for held in sums for name, sum in held.items() if not _is_temporary(name)]
        return _is_ended(path) and all(of_file(path / name) == sum for name, sum in files)
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} cannot be read: {error.strerror or error}; make it readable, and the same command "
        "continues; or delete it"
    )


def _aside(path: Path) -> Path:
    """A free place beside a damaged checkpoint, where nothing takes it for one."""
    names = (f"damaged-{path.name}{f'.{number}' if number else ''}" for number in itertools.count())
    return next(path.with_name(name) for name in names if not exists(path.with_name(name)))


def _is_temporary(name: str) -> bool:
    """Whether a file has the name that another process of the job gives it until it is whole."""
    return name.startswith(".")


def _is_ended(path: Path) -> bool:
    """Whether Trainer finished writing a checkpoint: it writes the state last.

    Raises:
        CheckpointError: the state cannot be read.
    """
    try:
        return bool(read_json(path / "trainer_state.json")["global_step"] == _step(path))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from None


def _is_begun(path: Path) -> bool:
    """Whether a file is what a training leaves if it is killed at once: an unfinished record, or a lock."""
    return path.name in (_BEGUN, LOCK)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key that makes two configurations different trainings, and its two values."""
    old, new = (_ADDED | dict(leaves(config)) for config in (before, now))
    unread = {"lora", "mixlora"} - {"lora" if now["method"] == Method.SPECIALIST else now["method"]}
    keys = [key for key in [*new, *old] if key not in _FREE and key.partition(".")[0] not in unread]
    return next(((key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)), None)


def record_summary(path: Path) -> str:
    """A finished training's record in one line."""
    record = read_record(path) or {}
    losses = [loss for _, loss in record.get("losses", ())]
    ends = dict.fromkeys(f"{loss:.3g}" for loss in (losses[:1] + losses[-1:]))
    course = f", loss {' to '.join(ends)} ({TRAINING})" if losses else ""
    never = [task for task, seen in record.get("examples_seen", {}).items() if not seen]
    missed = f"; never seen in so few steps: {', '.join(never)}" if never else ""
    return f"trained: {path}, {record.get('steps', 0)} steps{course}{missed}"
