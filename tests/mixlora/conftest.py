"""The command `mixlora` in this process, and a base that must not be loaded."""

import sys

import pytest

from mixlora import cli
from mixlora.checkpoints import loading


@pytest.fixture
def mixlora(monkeypatch, capsys):
    """Exit code, stdout and stderr of a command."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mixlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            sys.exit(0)
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def no_model(monkeypatch):
    """No model may be loaded."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_base", load)
