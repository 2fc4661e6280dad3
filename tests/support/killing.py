"""Killing: jobs in processes of their own that end by SIGKILL, again and again, at random moments."""

import io
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

KILLS = 8
PRELOAD = [
    *("mixlora.training.run", "mixlora.evaluation.run", "mixlora.evaluation.judging.run", "mixlora.data.mini"),
    *("interference.factors.observer", "interference.measurement.compute", "interference.cli", "mixlora.cli"),
    *("interference.prediction.validate", "interference.advice.job", "interference.advice.trial", "matplotlib.figure"),
    *("transformers.models.llama.modeling_llama", "transformers.models.llava.modeling_llava"),
    *("transformers.models.clip", "trl.chat_template_utils", "torchjd.aggregation"),
]
"""What processes begin with, imported once: only the first list that a test run gives counts."""
_SEAL = re.compile(rb'("seal": )"[0-9a-f]{32}"')
CHANGES = ("open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree")
"""What Python tells before it changes a file or folder."""


def kill_until_done(work, whole, values, place, changes, done):
    """Do `work(whole)` undisturbed, and `work(values)` by processes that are killed, until `done()`.

    Each dies before a change of a file, or in the middle of it where a file grows, every fourth a moment later; the
    last is left alone.

    Args:
        work: what is done.
        whole: of an uninterrupted one.
        values: of the one that is killed.
        place: where its files are.
        changes: before which of them a process dies at the latest.
        done: whether nothing is left to do.
    """
    assert ended(start(work, whole)) == 0
    generator, kills, attempts = random.Random(0), 0, 0
    while attempts < KILLS and not done():
        delay = generator.uniform(0, 0.2) if attempts % 4 == 3 else 0
        attempts += 1
        code = ended(start(dying, work, values, str(place), generator.randint(1, changes), delay))
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    assert ended(start(work, values)) == 0
    assert kills > 2 and done()


def start(work, *values, log=os.devnull):
    """The process in which `work` begins; what it says on standard error goes to the file `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_quietly, args=(work, values, str(log)))
    process.start()
    return process


def ended(process):
    """The exit code of a process, when it has ended; one that never does is killed."""
    try:
        process.join(120)
        assert not process.is_alive(), "the process hangs"
        return process.exitcode
    finally:
        process.kill()
        process.join()


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a directory, by its path, with its bytes; its own path is left out of them, and what seals that."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _SEAL.sub(rb'\1"SEAL"', data.replace(os.fsencode(folder), b"OUT")) for name, data in found.items()}


def _quietly(work, values, log):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), sys.stderr.fileno())
    work(*values)


def dying(work, values, place, change, delay):
    """Do the work, and die before or within the change of that number below a place, or some seconds later."""
    changes = itertools.count(1)

    def last(path):
        return str(path).startswith(place) and next(changes) == change

    def end():
        threading.Thread(target=die, args=(delay,), daemon=True).start() if delay else die()

    def watch(event, arguments):
        if event in CHANGES and (event != "open" or _writes(arguments[2])) and last(arguments[0]):
            end()

    sys.addaudithook(watch)
    _tear(last, end)
    work(values)


def _writes(flags):
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _tear(last, end):
    """Let what is added to a file be half written where it is the last change: Python tells nobody of writes."""
    opened = io.open  # by which paths open

    def watched(*arguments, **options):
        file = opened(*arguments, **options)
        write = file.write

        def torn(data):
            if last(file.name):
                write(data[: len(data) // 2])
                file.flush()
                end()
                data = data[len(data) // 2 :]
            write(data)

        if file.mode.startswith("a"):
            file.write = torn
        return file

    io.open = watched


def die(delay=0.0):
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)
