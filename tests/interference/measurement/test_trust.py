"""A run that a stranger gave holds a configuration, and no leave to run the code that its base brings."""

import json
import shutil
import sys

import pytest
from transformers import dynamic_module_utils

from interference import config, load
from interference.errors import InterferenceError
from interference.measurement.compute import compute_config
from interference.verification.verify import verify_config
from mixlora.common.errors import MixLoraError


@pytest.fixture
def given(tiny, tmp_path, monkeypatch):
    """A run that says to trust its base, whose tokenizer brings code, and what that code makes where it runs."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    base, out, trap = tmp_path / "base", tmp_path / "run", tmp_path / "trap"
    shutil.copytree(tiny.base, base)
    values = tiny.data(out)
    values["model"] |= {"base": str(base), "trust_remote_code": True}
    compute_config(config.build(values, "test"))
    (base / "evil.py").write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    found = json.loads((base / "tokenizer_config.json").read_text())
    found |= {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (base / "tokenizer_config.json").write_text(json.dumps(found))
    return out, trap


def test_the_run_itself_says_what_it_was_made_with(given):
    assert load(given[0]).meta["config"]["model"]["trust_remote_code"] is True


@pytest.mark.parametrize("asked", [False, True])
def test_verify_trusts_only_whoever_calls_it(given, asked):
    out, trap = given
    with pytest.raises((InterferenceError, MixLoraError)) if asked else _any():
        verify_config(load(out), trust_remote_code=asked)
    assert trap.exists() == asked


@pytest.mark.parametrize("command", ["compute", "plan", "factors"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_rerun_trusts_only_whoever_calls_it(given, interference, tmp_path, command, asked):
    out, trap = given
    where = [] if command == "plan" else ["--out", tmp_path / "again"]
    trust = ["--set", "model.trust_remote_code=true"] if asked else []
    more = ["--perplexity", "3", "--quiet"] if command == "factors" else []
    interference(command, out, *where, *trust, *more)
    assert trap.exists() == asked


def test_the_command_asks_for_it_by_a_flag(given, interference):
    out, trap = given
    interference("verify", out, "--quiet")
    assert not trap.exists()
    interference("verify", out, "--quiet", "--trust-remote-code")
    assert trap.exists()


def _any():
    """Whatever comes of a tokenizer without its code: a sentence, or another class that reads its file."""
    from contextlib import suppress

    return suppress(InterferenceError, MixLoraError)
