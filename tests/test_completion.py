"""Completion in a shell: commands, metrics, options with a few values, and tasks of the mini suite."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from interference.cli import options
from interference.figures.gallery import PLATES
from interference.statistics import estimand
from mixlora.data import mini

SCRIPTS = Path(sys.executable).parent
TRY = """
eval "$(_{upper}_COMPLETE=source_bash {name})"
try() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _{name}_completion "$1"; echo "${{COMPREPLY[@]}}"
}}
"""
"""What bash does when Tab is pressed behind some words."""
CASES = {
    "interference": [
        (["do"], ["doctor"]),
        (["show", "run", "--metric", "co"], ["cosine", "conflict_rate"]),
        (["compare", "a", "b", "--reduce", "me"], ["mean-of-ratios", "median-of-ratios"]),
        (["figure", "s"], ["selections"]),
    ],
    "mixlora": [
        (["ev"], ["evaluate"]),
        (["train", "--method", ""], ["lora", "mixlora", "specialist", "full"]),
        (["export", "out", "--task", "name_i"], ["name_ink", "name_in_french"]),
    ],
}


def environment(**more):
    return os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"} | more


@pytest.mark.parametrize("name", CASES)
def test_bash_completes(name):
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash")
    asked = "\n".join(f"try {name} " + " ".join(f"'{word}'" for word in words) for words, _ in CASES[name])
    script = TRY.format(upper=name.upper(), name=name) + asked
    done = subprocess.run(
        [bash, "--norc", "-c", script], capture_output=True, text=True, env=environment(), check=True, timeout=300
    )
    assert done.stderr == ""
    assert [line.split() for line in done.stdout.splitlines()] == [values for _, values in CASES[name]]


@pytest.mark.parametrize(("shell", "said"), [("zsh", "_arguments '*: :((\"curvature\"))'"), ("fish", "curvature")])
def test_other_shells_are_answered(shell, said):
    """As their scripts ask, which were tried by hand in zsh 5.9 and fish 3.6."""
    asked = {"_INTERFERENCE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asked["_TYPER_COMPLETE_ARGS"] = "interference show run --metric cu"
    done = subprocess.run(
        [SCRIPTS / "interference"], capture_output=True, text=True, env=environment(**asked), check=True, timeout=300
    )
    assert (done.stdout.strip(), done.stderr) == (said, "")


def test_what_is_offered_is_what_can_be_asked_for():
    assert tuple(PLATES) == options.FIGURES
    assert set(options.complete_pairs("")) == set(estimand.Pairs)
    assert set(options.complete_reduce("")) == set(estimand.Reduce)
    assert set(options.complete_side("router-")) == {"router-A", "router-B", "router-AB"}
    assert {"name_ink", "name_in_french"} <= {*mini.TASKS}
