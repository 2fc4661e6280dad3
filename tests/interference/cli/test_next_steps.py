"""What each command says to do next: on standard error, as a shell reads it, and only where it is wanted."""

import shutil

import pytest

from mixlora.common import command
from tests.support.checkpoints import ARGUMENTS


@pytest.fixture
def spaced(run_dir, tmp_path):
    """A run in a directory that a shell reads as two words."""
    return shutil.copytree(run_dir, tmp_path / "a run")


def next_lines(said):
    """The steps named at the end of standard error."""
    assert said.code == 0, said.err
    return [line for line in said.err.splitlines() if line.startswith(("next: ", "  or: "))]


def test_after_looking_comes_the_page(interference, spaced, run_dir):
    assert next_lines(interference("show", spaced)) == [f"next: interference report '{spaced}'"]
    both = next_lines(interference("compare", run_dir, spaced, "--metric", "delta"))
    assert both == [f"next: interference report {run_dir} '{spaced}'"]
    assert next_lines(interference("verify", run_dir, "--units", 1)) == [f"next: interference report {run_dir}"]


def test_before_a_run_comes_its_cost_then_the_run(interference, tiny, run_dir):
    assert next_lines(interference("preview", *tiny.arguments(), "-n", 1)) == [
        "next: interference plan, with the same options"
    ]
    assert next_lines(interference("preview", run_dir, "-n", 1)) == [f"next: interference plan {run_dir}"]
    assert next_lines(interference("plan", run_dir, "--no-time")) == [f"next: interference compute {run_dir}"]
    assert next_lines(interference("plan", "--pilot", run_dir)) == ["next: interference compute, with as many samples"]


def test_after_factors_come_their_figures(interference, tiny, tmp_path):
    out = tmp_path / "factors"
    arguments = [one for one in ARGUMENTS if one not in ("--quiet", "-q")]
    said = interference("factors", *tiny.arguments(out), *arguments, "--perplexity", "3")
    assert next_lines(said) == [f"next: interference figure selections {out}"]


@pytest.mark.parametrize("silence", ["--quiet", "--json"])
def test_scripts_are_told_nothing(interference, run_dir, silence):
    for call in (["show", run_dir], ["compare", run_dir, run_dir], ["plan", run_dir, "--no-time"]):
        said = interference(*call, silence)
        assert (said.code, said.err) == (0, "") and said.out


def test_no_step_is_named_where_a_check_failed(interference, run_dir, monkeypatch):
    from interference.verification.result import Verification

    monkeypatch.setattr(Verification, "passed", False)
    said = interference("verify", run_dir, "--units", 1, "--json")
    assert (said.code, said.err.count("next: ")) == (1, 0)


def test_of_several_processes_the_first_speaks(capsys, monkeypatch):
    for rank, told in (("0", "next: a\n  or: b\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        command.next_steps("a", "b")
        assert capsys.readouterr().err == told


def test_steps_come_after_what_was_printed_and_steer_no_terminal(capfd):
    print("done")
    command.next_steps(command.call("interference", "show", "a\x1b[31m b", "c"))
    said = capfd.readouterr()
    assert said.out == "done\n" and said.err == "next: interference show 'a\N{REPLACEMENT CHARACTER}[31m b' c\n"


def test_a_closed_standard_error_is_no_error(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    command.next_steps("a")
