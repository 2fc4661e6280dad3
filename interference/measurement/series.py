"""Series: the runs of one training by step, in a directory or in memory.

Not here: when a training is measured (`interference.callback`).
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

from interference.errors import RunError
from interference.run import Run, load
from interference.run.schema import meta_of
from mixlora.common.errors import unwritable
from mixlora.common.files import expanded


class Series:
    """Runs by step; a run's meta names its step and its series.

    A training that goes on from a checkpoint leaves the runs of later steps where they are until it has reached them.
    """

    def __init__(self, out: Path | str | None) -> None:
        """Hold no run yet.

        Args:
            out: Directory of the runs; None keeps them in memory.
        """
        self._out = None if out is None else expanded(out)
        self._kept: dict[int, Run] = {}
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
            self._forget({known for known, folder in self._saved().items() if _series_of(folder) == self._name})
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
                f"runs cannot be written to {self._out}", error, option="out", again="train again"
            ) from None

    def _continue(self, step: int, saved: Mapping[int, Path]) -> None:
        """Take the name of the series that is there, and look through its later runs."""
        names = {known: _series_of(folder) for known, folder in saved.items()}
        own = [name for _, name in sorted(names.items(), key=lambda item: (item[0] > step, abs(item[0] - step)))]
        self._name = next((name for name in own if name is not None), token_hex(8))
        self._later = {known for known in saved if known > step}
        if other := next((known for known in sorted(self._later) if names[known] != self._name), None):
            raise RunError(
                f"{self._out} holds step-{other}, which is not of this training's series; move it away, or choose "
                "another out"
            )

    def add(self, step: int, run: Run) -> None:
        """Keep the run of a step, in place of those up to it that an earlier continuation has left.

        Args:
            step: Of the training.
            run: Its measurement, whose meta then names step and series.

        Raises:
            RunError: If it cannot be written.
        """
        run.meta |= {"step": step, "series": self._name}
        if self._out is None:
            self._kept[step] = run
        else:
            self._forget({known for known in self._later if known <= step})
            run.save(self._out / f"step-{step}")

    def runs(self) -> dict[int, Run]:
        """All runs, in order; Gram matrices on disk are read when they are needed.

        Returns:
            {step: run}, without those that a continued training has not reached again.

        Raises:
            RunError: If a run is damaged.
        """
        if self._out is None:
            return dict(self._kept)
        return {step: load(folder) for step, folder in self._saved().items() if step not in self._later}

    def _forget(self, steps: set[int]) -> None:
        saved = self._saved()
        for step in steps & set(saved):
            shutil.rmtree(saved[step])
        self._later -= steps

    def _saved(self) -> dict[int, Path]:
        if self._out is None or not self._out.is_dir():
            return {}
        named = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in self._out.iterdir()]
        return dict(sorted((int(name[1]), path) for name, path in named if name and (path / "run.json").is_file()))


def _series_of(folder: Path) -> str | None:
    """The name of the series that a run is of; None of a run that no callback made."""
    meta = meta_of(folder)
    return str(meta.get("series", "")) if "step" in meta else None
