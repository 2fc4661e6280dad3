"""Along: when a callback acts in a training, and the series of what it finds.

Not here: what is found (`measuring`, `branching`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from interference.errors import ConfigError, MeasurementError, ScopeError
from interference.measurement.series import Found, Kind, Series
from interference.measurement.units import Batch, check_by_task
from mixlora.common.errors import type_of

T = TypeVar("T")


class Along(TrainerCallback, ABC, Generic[Found]):
    """Finds something every n optimizer steps, before the first step and after the last, and logs it.

    Args:
        trainer: The Trainer that the callback is added to.
        every: Optimizer steps from one time to the next.
        out: Directory of the series; None keeps it in memory.
        kind: Of what is found.
        first: Also before the first step.
        last: Also after the last step.

    Raises:
        ConfigError: If `every` is below 1.
    """

    def __init__(
        self, trainer: Trainer, every: int, out: Path | str | None, kind: Kind[Found], first: bool, last: bool
    ) -> None:
        if every < 1:
            raise ConfigError(f"every is {every}, but must be at least 1 optimizer step")
        self.trainer = trainer
        self.every = every
        self.first = first
        self.last = last
        self._series = Series(out, kind)
        self._unfinished = False

    @abstractmethod
    def _refuse(self) -> None:
        """Raise an error of our own if the trainer is not one that can be followed; on every process."""

    @abstractmethod
    def _check(self) -> None:
        """Raise an error of our own if what was given does not fit the model."""

    @abstractmethod
    def _find(self) -> Found | None:
        """What is found where the training stands; None if nothing can be found there."""

    @abstractmethod
    def _told(self, found: Found, step: int) -> dict[str, float]:
        """The entry of the log for it."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check that the training can be followed; act, if it starts at step 0.

        Args:
            args: The Trainer's arguments.
            state: Where the training is.
            control: What the Trainer is to do next.

        Raises:
            CheckpointError: If no process holds whole parameters.
            RunError: If `out` already holds a series, or cannot be written.
            MeasurementError: If a loss or gradient is not finite.
            ScopeError: If what was given does not fit the model.
        """
        self._refuse()
        self._together(lambda: self._begin(state.global_step))
        if self.first and state.global_step == 0:
            self._act(state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Act every `every` steps.

        Args:
            args: The Trainer's arguments.
            state: Where the training is.
            control: What the Trainer is to do next.
        """
        if state.global_step % self.every == 0:
            self._act(state, control)
        self._end(state, control)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Act, if the evaluation ends the training.

        Args:
            args: The Trainer's arguments.
            state: Where the training is.
            control: What the Trainer is to do next.
        """
        self._end(state, control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Act, if the training ends with the epoch.

        Args:
            args: The Trainer's arguments.
            state: Where the training is.
            control: What the Trainer is to do next.
        """
        self._end(state, control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Act after the last step, unless the Trainer has loaded the weights of an earlier, better checkpoint.

        Args:
            args: The Trainer's arguments.
            state: Where the training is.
            control: What the Trainer is to do next.
        """
        if self.last and not (args.load_best_model_at_end and state.best_model_checkpoint is not None):
            self._act(state, control)
        self._unfinished = False

    def _end(self, state: TrainerState, control: TrainerControl) -> None:
        if self.last and control.should_training_stop and self.trainer.is_in_train:  # not in a later evaluate()
            self._act(state, control)

    def _begin(self, step: int) -> None:
        again = self._unfinished and self.trainer.args.auto_find_batch_size  # with smaller batches
        self._series.begin(step, again)
        self._unfinished = True
        if step or not self.first:  # report what is wrong now, not at the first time
            self._check()

    def _act(self, state: TrainerState, control: TrainerControl) -> None:
        """Find and log what there is at the step, unless the series has it."""
        logs = self._together(lambda: self._logs_of(state.global_step))
        if logs:
            wanted = control.should_log
            # Trainer.log itself: an override (TRL's) would empty its running means into this entry
            Trainer.log(self.trainer, logs)
            control.should_log = wanted  # every entry clears it, but the Trainer's own entry is still due

    def _logs_of(self, step: int) -> dict[str, float]:
        found = None if step in self._series else self._find()
        if found is None:
            return {}
        self._series.add(step, found)
        return self._told(found, step)

    def _together(self, job: Callable[[], T]) -> T:
        """What a job returns on the main process; the others wait for it, and fail if it fails."""
        said: list[Any] = [None, None]
        try:
            if self.trainer.accelerator.is_main_process:
                said[0] = job()
        except Exception as error:
            said[1] = str(error)
            raise
        finally:
            broadcast_object_list(said)
        if said[1] is not None:
            raise MeasurementError(f"the measurement failed on the main process: {said[1]}")
        return said[0]


def check_batches(batches: Mapping[str, Iterable[Batch]]) -> None:
    """Raise a ScopeError if batches are not given by task, or can be read only once."""
    check_by_task(batches)
    for task, given in batches.items():
        if isinstance(given, Iterator):  # not iter(given): that of a DataLoader draws a random number
            raise ScopeError(
                f"task {task!r}: {type_of(given)} gives its batches only once, but every measurement needs "
                "them; give a list"
            )
