"""What the tests of `mixlora` share: its command line, in-process."""

import sys

import pytest

from mixlora import cli


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
