"""Series: what is found along one training by step, runs or lookaheads, in a directory or in memory.

Not here: when a training is measured (`interference.callback`).
"""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Generic, Protocol, TypeVar

from interference.errors import RunError
from interference.run import Run, load
from interference.run.schema import meta_of
from mixlora.common.errors import unwritable
from mixlora.common.files import expanded


class Artifact(Protocol):
    """What a series keeps: it can be saved to a directory that does not exist yet."""

    def save(self, out: Path) -> None:
        """Write it."""


Found = TypeVar("Found", bound=Artifact)


@dataclass(frozen=True)
class Kind(Generic[Found]):
    """What a series is of.

    Attributes:
        noun: in the plural.
        marker: the file by which one is recognised.
        load: reads one.
        meta_of: what its marker tells, whatever has become of its other files.
        marked: one with more keys in its meta.
    """

    noun: str
    marker: str
    load: Callable[[Path], Found]
    meta_of: Callable[[Path], Mapping[str, Any]]
    marked: Callable[[Found, Mapping[str, Any]], Found]


def _marked(run: Run, keys: Mapping[str, Any]) -> Run:
    run.meta |= keys
    return run


RUNS = Kind("runs", "run.json", load, meta_of, _marked)
"""Runs of a callback that measures."""


class Series(Generic[Found]):
    """Artifacts by step; the meta of each names its step and its series.

    A training that goes on from a checkpoint leaves those of later steps where they are until it has reached them.
    """

    def __init__(self, out: Path | str | None, kind: Kind[Found]) -> None:
        """Hold nothing yet.

        Args:
            out: Directory of the series; None keeps it in memory.
            kind: Of what it is.
        """
        self._out = None if out is None else expanded(out)
        self._kind = kind
        self._kept: dict[int, Found] = {}
        self._name = ""
        self._later: set[int] = set()

    def __contains__(self, step: int) -> bool:
        return step in self._kept if self._out is None else step in self._saved() and step not in self._later

    def begin(self, step: int, again: bool) -> None:
        """Prepare a series that continues after a step, or starts at 0.

        Args:
            step: Of the training.
            again: Replace what an interrupted start of the same series has measured.

        Raises:
            RunError: If the directory holds another series, or cannot be written.
        """
        self._kept = {known: run for known, run in self._kept.items() if known <= step and step}
        if self._out is None:
            self._name = self._name if step and self._name else token_hex(8)
            return
        if step == 0 and again:
            self._forget({known for known, folder in self._saved().items() if self._series_of(folder) == self._name})
        saved = self._saved()
        if step == 0 and saved:
            raise RunError(
                f"{self._out} already holds a series ({next(iter(saved.values())).name}); choose another out, delete "
                "the directory, or resume that training from a checkpoint"
            )
        self._continue(step, saved)
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            for left in self._out.glob(".step-*.tmp"):  # a killed training left them
                shutil.rmtree(left)
        except OSError as error:
            raise unwritable(
                f"{self._kind.noun} cannot be written to {self._out}", error, option="out", again="train again"
            ) from None

    def _continue(self, step: int, saved: Mapping[int, Path]) -> None:
        """Take the name of the series that is there, and look through what is later."""
        names = {known: self._series_of(folder) for known, folder in saved.items()}
        own = [name for _, name in sorted(names.items(), key=lambda item: (item[0] > step, abs(item[0] - step)))]
        self._name = next((name for name in own if name is not None), token_hex(8))
        self._later = {known for known in saved if known > step}
        if other := next((known for known in sorted(self._later) if names[known] != self._name), None):
            raise RunError(
                f"{self._out} holds step-{other}, which is not of this training's series; move it away, or choose "
                "another out"
            )

    def add(self, step: int, found: Found) -> None:
        """Keep what was found at a step, in place of those up to it that an earlier continuation has left.

        Args:
            step: Of the training.
            found: It, whose meta then names step and series.

        Raises:
            RunError: If it cannot be written.
        """
        found = self._kind.marked(found, {"step": step, "series": self._name})
        if self._out is None:
            self._kept[step] = found
        else:
            self._forget({known for known in self._later if known <= step})
            found.save(self._out / f"step-{step}")

    def all(self) -> dict[int, Found]:
        """All that was found, in order; Gram matrices on disk are read when they are needed.

        Returns:
            {step: it}, without those that a continued training has not reached again.

        Raises:
            RunError: If one is damaged.
        """
        if self._out is None:
            return dict(self._kept)
        return {step: self._kind.load(folder) for step, folder in self._saved().items() if step not in self._later}

    def _forget(self, steps: set[int]) -> None:
        saved = self._saved()
        for step in steps & set(saved):
            shutil.rmtree(saved[step])
        self._later -= steps

    def _saved(self) -> dict[int, Path]:
        if self._out is None or not self._out.is_dir():
            return {}
        named = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in self._out.iterdir()]
        return dict(
            sorted((int(name[1]), path) for name, path in named if name and (path / self._kind.marker).is_file())
        )

    def _series_of(self, folder: Path) -> str | None:
        """The name of the series that an artifact is of; None of one that no callback made."""
        meta = self._kind.meta_of(folder)
        return str(meta.get("series", "")) if "step" in meta else None
