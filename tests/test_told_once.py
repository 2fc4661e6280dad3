"""Of several processes that torchrun starts, one tells how they end, as the last line before torchrun's own."""

import pytest

from tests.support.launching import launched


def said(ended):
    """What our processes say, without torchrun's own lines."""
    return [line for line in ended.stderr.splitlines() if line.startswith(("error: ", "stopped: "))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-m", "interference.cli", "compute", "bad.yaml"), "error: bad.yaml: unknown key 'probe.x'"),
        (("-m", "interference.cli", "show", "nowhere"), "error: there is no run at nowhere"),
        (
            ("-m", "interference.cli", "factors", "c.yaml"),
            "error: factors runs in one process, but was started in 2 (WORLD_SIZE); start it without torchrun or acc",
        ),
        (("-m", "mixlora.cli", "evaluate", "c.yaml"), "error: evaluate runs in one process, but was started in 2"),
        (("-m", "mixlora.cli", "train", "bad.yaml"), "error: bad.yaml: unknown key 'probe"),
    ],
)
def test_an_error_that_each_process_finds_is_told_once(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("probe: {x: 1}")
    ended = launched(2, *arguments)
    (sentence,) = said(ended)
    assert ended.returncode != 0 and sentence.startswith(words)
    assert ended.stdout == "" and "Traceback" not in ended.stderr.partition(sentence)[0]


PROGRAM = """
import os, sys, time
from mixlora.common import command
from mixlora.common.errors import ConfigError

def app():
    if os.environ["RANK"] == "1":
        raise ConfigError("this machine has no such file")
    time.sleep(60)

sys.argv = ["tool"]
command.run(app)
"""


def test_an_error_of_one_process_is_the_only_one(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = launched(3, tmp_path / "program.py")
    assert said(ended) == ["error: this machine has no such file"]
