"""Workers: further processes that train pieces of a job beside this one, each with a model of its own.

A piece is losses that one process can read without the others: along a branch, after a training. Every process takes
the next piece that is left, and writes its losses where finished ones wait. They are the same in whichever process.
Workers end with this process, however that ends, and are not interrupted by Ctrl-C themselves.

Not here: how pieces are trained (`branches`), and where their losses wait (`finished`).
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Empty, Queue, SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interference.branching.finished import Finished
from interference.errors import RunError
from mixlora.common.errors import EndedError, ToolError
from mixlora.common.progress import Progress

_BEGIN = "import sys; from interference.branching import workers; workers.work(int(sys.argv[1]))"
"""What a worker runs. The module in which a user's script begins is not run again, as `multiprocessing` would."""
_PAUSE = 0.5
"""Seconds after which this process, when it has nothing left to train, looks whether it was interrupted."""


class Piece(NamedTuple):
    """Losses that are to be read.

    Attributes:
        number: of the piece, in the job.
        asked: what says what is trained.
        content: what its losses depend on beside the job.
        steps: optimizer steps that it takes.
    """

    number: int
    asked: tuple[Any, ...]
    content: tuple[Any, ...]
    steps: int


class Source(Protocol):
    """What trains pieces; it can be pickled."""

    def opened(self, stepped: Callable[[], None]) -> Callable[..., Tensor]:
        """What returns the losses of a piece, given what it asks; `stepped` is called after every step."""


def losses_of(
    pieces: Sequence[Piece], finished: Finished, here: Source, there: Source, processes: int, progress: Progress
) -> list[NDArray[np.float64]]:
    """The losses of pieces, in order: those that are not finished yet are trained, by several processes at once.

    Args:
        pieces: of a job.
        finished: where losses wait.
        here: trains pieces in this process.
        there: trains them in a worker.
        processes: at most, this one included. Each computes with its share of the threads of this one.
        progress: called after every step.

    Raises:
        EndedError: if a worker was killed.
        InterferenceError: as training a piece raises it, here or in a worker.
    """
    board = _Board(progress, sum(piece.steps for piece in pieces))
    for piece in pieces:
        if not finished.has(piece.number, *piece.content):
            board.todo.put(piece)
        elif piece.steps:
            board.step(piece.steps)
    train = here.opened(board.step)
    processes = min(processes, len(pieces))  # as many threads where an interrupted job continues
    with shared_threads(processes) as threads:
        with _workers(min(processes, board.todo.qsize()) - 1, (there, finished, threads), board):
            for piece in board.taken():
                _finish(piece, finished, train)
                board.todo.task_done()
            board.wait()
        return [_finish(piece, finished, train) for piece in pieces]


def _finish(piece: Piece, finished: Finished, train: Callable[..., Tensor]) -> NDArray[np.float64]:
    """The losses of a piece, which is trained now if it is not finished."""
    return finished.losses(piece.number, partial(train, *piece.asked), *piece.content)


class _Board:
    """What is left to do, and how far it is.

    Attributes:
        todo: pieces that nobody has taken.
        news: what workers say: steps that they have taken, or an error.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self.todo = Queue[Piece]()
        self.news = SimpleQueue[int | BaseException]()
        self._progress = progress
        self._total = total
        self._done = 0

    def taken(self) -> Iterator[Piece]:
        """The pieces that are left, taken one by one."""
        with suppress(Empty):
            while True:
                yield self.todo.get_nowait()

    def step(self, steps: int = 1) -> None:
        """Count steps, and hear what workers say; their errors are raised."""
        with suppress(Empty):
            while True:
                steps += self._heard(self.news.get_nowait())
        self._told(steps)

    def wait(self) -> None:
        """Wait until workers have finished what they have taken; their errors are raised."""
        while self.todo.unfinished_tasks:
            with suppress(Empty):
                self._told(self._heard(self.news.get(timeout=_PAUSE)))

    def _heard(self, said: int | BaseException) -> int:
        if isinstance(said, BaseException):
            raise said
        return said

    def _told(self, steps: int) -> None:
        self._done += steps
        self._progress("steps", self._done, self._total)


@contextmanager
def shared_threads(processes: int) -> Iterator[int]:
    """Inside, torch computes with the share of its threads that one of several processes has, at least one."""
    known = torch.get_num_threads()
    count = max(known // processes, 1)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(known)


@contextmanager
def _workers(count: int, given: tuple[Source, Finished, int], board: _Board) -> Iterator[None]:
    """Inside, workers train pieces that are left; afterwards they have ended."""
    with ExitStack() as stack:
        sent = _pickled(given) if count > 0 else b""
        for _ in range(count):
            stack.callback(_Worker(sent, board).end)
        yield


def _pickled(given: object) -> bytes:
    """What workers are given.

    Raises:
        RunError: if a part of it, as a processor of remote code, cannot be given to another process.
    """
    try:
        return pickle.dumps(given)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise RunError(f"what is trained cannot be given to other processes ({error}); drop processes") from None


class _Worker:
    """A further process, and the thread of this one that gives it pieces."""

    def __init__(self, sent: bytes, board: _Board) -> None:
        self._log = TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._near, far = Pipe()
        path = os.pathsep.join(each or os.curdir for each in sys.path)
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, str(far.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=[far.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C reaches this process alone
            )
        self._thread = Thread(target=self._serve, args=(sent, board), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._thread.join()
        self._near.close()
        self._log.close()

    def _serve(self, sent: bytes, board: _Board) -> None:
        """Give it what it needs, then a piece whenever it has none."""
        try:
            self._near.send_bytes(sent)
            self._listen(board)
            for piece in board.taken():
                self._near.send(piece)
                self._listen(board)
                board.todo.task_done()
                board.news.put(0)
        except (EOFError, OSError):
            board.news.put(self._ended())
        except Exception as error:  # one that cannot be read here
            board.news.put(error)

    def _listen(self, board: _Board) -> None:
        """Pass on what it says until it is ready for a piece."""
        while (said := self._near.recv()) is not None:
            board.news.put(said)

    def _ended(self) -> EndedError:
        """That it ended without a word of its own."""
        code = self._process.wait()
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "it said nothing")
        how = f"exit code {code}: {last}"
        if code < 0:
            how = f"{signal.Signals(-code).name}, which may say that memory ran out"
        return EndedError(
            f"a process that trained beside this one ended ({how}); the same command continues, and processes: 1 takes "
            "less memory"
        )


def work(number: int) -> None:
    """Train pieces in a worker, until it is ended.

    Args:
        number: of the file descriptor over which its pieces come.
    """
    Thread(target=_follow, daemon=True).start()
    connection = Connection(number)
    try:
        source, finished, threads = pickle.loads(connection.recv_bytes())
        torch.set_num_threads(threads)
        train = source.opened(partial(connection.send, 1))
        while True:
            connection.send(None)
            _finish(connection.recv(), finished, train)
    except BaseException as error:
        _tell(connection, error)


def _follow() -> None:
    """End this process with the one that started it, which holds the other end of standard input."""
    with suppress(OSError):
        os.read(0, 1)
    os._exit(1)


def _tell(connection: Connection, error: BaseException) -> None:
    """Tell an error; of one that is not of our own also where it came from."""
    if not isinstance(error, ToolError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # as those of libraries that take other arguments than they keep
        error = RuntimeError(f"{type(error).__name__}: {error}")
    connection.send(error)
