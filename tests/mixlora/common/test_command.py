"""What both commands do alike: errors to sentences and exit codes, and options to keys of a configuration."""

import os
import signal
import sys
import time

import pytest

from mixlora.common import command
from mixlora.common.errors import ConfigError, DataError, TrainingError


def raising(error):
    def app():
        raise error

    return app


def ended(app, capsys):
    """Exit code and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        command.run(app)
    return caught.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def plain_call(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool"])
    monkeypatch.delenv("RANK", raising=False)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("r is 0"), 2, "error: r is 0\n"),
        (TrainingError("the loss is nan"), 1, "error: the loss is nan\n"),
        (
            KeyError("x"),
            1,
            "error: KeyError: 'x'; run again with --debug (before the command) for the traceback\n",
        ),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code(capsys, error, code, said):
    assert ended(raising(error), capsys) == (code, said)


@pytest.fixture
def fresh_signals():
    """Ctrl-C as a new process finds it, whatever libraries of earlier tests have made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("fresh_signals")
def test_ctrl_c_is_no_error_even_where_a_library_makes_one_of_it(capsys):
    def swallowing():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            raise ValueError("invalid bounding box") from None

    for app in (swallowing, raising(KeyboardInterrupt())):
        assert ended(app, capsys) == (130, "interrupted: run the same command again\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("lines", "said"), [(True, "two:\n  a?[31m\n  b"), (False, "two:?  a?[31m?  b")])
def test_a_message_steers_no_terminal_and_may_have_lines(capsys, lines, said):
    error = DataError("two:\n  a\x1b[31m\n  b")
    error.lines = lines
    found = ended(raising(error), capsys)[1]
    assert found.replace("\N{REPLACEMENT CHARACTER}", "?") == f"error: {said}\n"


@pytest.mark.parametrize(("shared", "rank", "tells"), [(True, "1", False), (True, "0", True), (False, "1", True)])
def test_an_error_of_all_processes_is_told_by_the_first(capsys, monkeypatch, shared, rank, tells):
    monkeypatch.setenv("RANK", rank)
    error = ConfigError("r is 0")
    error.shared = shared
    assert ended(raising(error), capsys) == (2, "error: r is 0\n" if tells else "")


@pytest.mark.parametrize("error", [ConfigError("r is 0"), KeyError("x")])
def test_debug_raises(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["tool", "--debug", "show"])
    with pytest.raises(type(error)):
        command.run(raising(error))


def test_options_that_were_given():
    assert command.given({"a": None, "b": {}, "c": 0, "d": [], "e": ""}) == {"c": 0, "d": [], "e": ""}


def test_tasks_by_name():
    assert command.tasks(["a=x.json", "b=c=d"]) == {"a": {"file": "x.json"}, "b": {"file": "c=d"}}
    for text in ("a", "=x", "a="):
        with pytest.raises(ConfigError, match=f"^--task '{text}' is not of the form NAME=FILE$"):
            command.tasks([text])
    with pytest.raises(ConfigError, match=r"^--task names 'a' twice; give every task a name of its own$"):
        command.tasks(["a=x", "a=y"])


def test_no_reader_takes_being_told_to_stop_for_bad_input(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def app():
        for _ in range(3):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except Exception:  # as readers of pictures and templates do
                continue

    words = "SIGTERM arrived, perhaps because another process ended; the same command continues"
    try:
        assert ended(app, capsys) == (1, f"stopped: {words}\n")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # it reports its error undisturbed
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("WORLD_SIZE", "two", 1),
        ("WORLD_SIZE", "", 1),
        ("WORLD_SIZE", "0", 1),
        ("RANK", "1.5", 0),
        ("LOCAL_RANK", "x", -1),
    ],
)
def test_an_environment_that_numbers_no_processes_is_a_sentence(capsys, monkeypatch, name, value, least):
    monkeypatch.setenv(name, value)
    assert ended(lambda: None, capsys) == (
        2,
        f"error: the environment variable {name} is {value!r}, but must be a whole number of at least {least}; let "
        "torchrun or accelerate set it, or unset it\n",
    )
    monkeypatch.setattr(sys, "argv", ["tool", "--help"])
    command.run(lambda: None)
