"""Work that may never end: what ends it, in which words, and that nothing of it is left."""

import hashlib
import re
import resource
import signal
import threading
import time
from contextlib import suppress

import pytest

from mixlora.common import limits
from mixlora.common.errors import ConfigError
from mixlora.common.limits import limited, restart


def refusal(what):
    return ConfigError(f"the work {what}; do less")


def _forever():
    while True:
        pass


def _despite_errors():
    while True:
        try:
            _forever()
        except Exception:
            continue


@pytest.mark.parametrize(
    "work", [_forever, _despite_errors, lambda: re.fullmatch("(a+)+$", "a" * 60 + "b"), lambda: 7 ** (10**9)]
)
def test_work_without_end_ends(monkeypatch, work):
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"^the work takes more than 0\.2 s; do less$"):
        limited(work, refusal)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("work", [lambda: "a" * 10**13, lambda: [0] * 10**12, lambda: f"{1:{10**13}}"])
def test_work_without_measure_ends(work):
    with pytest.raises(ConfigError, match=r"^the work needs more than 2 GiB of memory; do less$"):
        limited(work, refusal)


@pytest.mark.parametrize("work", [lambda: 3, lambda: 1 / 0, _forever, lambda: "a" * 10**13])
def test_nothing_is_left(monkeypatch, work):
    monkeypatch.setattr(limits, "SECONDS", 0.1)
    mine = signal.signal(signal.SIGPROF, handler := lambda *_: None)
    signal.setitimer(signal.ITIMER_PROF, 1000, 5)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with suppress(ConfigError, ZeroDivisionError):
            assert limited(work, refusal) == 3
        assert signal.getsignal(signal.SIGPROF) is handler
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 900
        assert resource.getrlimit(resource.RLIMIT_AS) == memory
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, mine or signal.SIG_DFL)


def _busy(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_work_of_many_parts_has_the_time_for_each(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)

    def parts():
        for _ in range(4):
            restart()
            _busy(0.15)
        return "done"

    assert limited(parts, refusal) == "done"
    restart()
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


def test_another_thread_works_without_limit(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.1)
    found = []
    thread = threading.Thread(target=lambda: found.append(limited(lambda: _busy(0.3) or "done", refusal)))
    thread.start()
    thread.join()
    assert found == ["done"]


def test_other_threads_use_up_none_of_its_time(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    ends = threading.Event()
    content = bytes(2**24)

    def hashes():  # without Python's lock, as torch's threads
        while not ends.is_set():
            hashlib.sha256(content).digest()

    def waits():
        start = time.process_time()
        while time.process_time() - start < 1:
            time.sleep(0.02)
        return "done"

    thread = threading.Thread(target=hashes)
    thread.start()
    try:
        assert limited(waits, refusal) == "done"
    finally:
        ends.set()
        thread.join()


def test_a_busy_machine_does_not_prolong_work_without_end(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 100)
    monkeypatch.setattr(limits, "WALL", 0.5)
    with pytest.raises(ConfigError, match=r"^the work takes more than 0\.5 s; do less$"):
        limited(_forever, refusal)


def test_a_process_that_was_stopped_goes_on(monkeypatch):
    monkeypatch.setattr(limits, "WALL", 0.2)
    assert limited(lambda: time.sleep(0.5) or _busy(0.15) or "done", refusal) == "done"
