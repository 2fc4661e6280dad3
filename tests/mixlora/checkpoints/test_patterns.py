"""Patterns of an adapter's configuration that would be matched for ever, and those that would not."""

import json
import time

import pytest
from transformers import AutoTokenizer

from mixlora.checkpoints import loading
from mixlora.common import limits
from mixlora.common.errors import CheckpointError, ConfigError
from mixlora.common.sections import BaseSection
from mixlora.training.methods import prepare
from tests.support.checkpoints import write_adapter, write_base
from tests.support.models import llama
from tests.support.trainings import made

ENDLESS = r"([\w.]+)+!"
SLOW = {
    "target_modules": (ENDLESS, f"target_modules {ENDLESS!r}"),
    "exclude_modules": (ENDLESS, f"exclude_modules {ENDLESS!r}"),
    "rank_pattern": ({ENDLESS: 2}, "rank_pattern (1)"),
    "alpha_pattern": ({ENDLESS: 2}, "alpha_pattern (1)"),
    "modules_to_save": ([ENDLESS], "modules_to_save (1)"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("patterns") / "base")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)


def changed(folder, **values):
    write_adapter(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(folder)


@pytest.mark.parametrize(("key", "value", "named"), [(key, *found) for key, found in SLOW.items()])
def test_a_pattern_without_end_is_refused(tmp_path, base, key, value, named):
    adapter, section = changed(tmp_path / "a", **{key: value}), BaseSection(base=str(base), device="cpu")
    for load in (loading.load_adapted, loading.empty_adapted):
        start = time.process_time()
        with pytest.raises(CheckpointError) as error:
            load(section, adapter)
        assert time.process_time() - start < 8
        words = str(error.value)
        assert words.startswith(f"{adapter} on {base}: matching ") and named in words
        assert words.endswith(
            "against the base's modules takes more than 0.3 s; write names of modules into its adapter_config.json"
        )


def test_layers_are_found_by_a_pattern_without_end(tmp_path, base):
    adapter = changed(tmp_path / "a", layers_to_transform=[0], layers_pattern=[ENDLESS])
    with pytest.raises(CheckpointError, match=r"layers_pattern \(1\) against the base's modules takes more than"):
        loading.load_adapted(BaseSection(base=str(base), device="cpu"), adapter)


def test_more_patterns_than_modules_are_refused(tmp_path, base):
    adapter = changed(tmp_path / "a", rank_pattern={f"x{k}": 2 for k in range(999)})
    with pytest.raises(CheckpointError, match=r"rank_pattern has 999 patterns for a base of \d+ modules; write names"):
        loading.load_adapted(BaseSection(base=str(base), device="cpu"), adapter)


def test_what_else_is_wrong_peft_says(tmp_path, base):
    with pytest.raises(CheckpointError, match=r"unterminated|missing \)"):
        loading.load_adapted(BaseSection(base=str(base), device="cpu"), changed(tmp_path / "a", target_modules="(x"))


@pytest.mark.parametrize(
    ("values", "words"),
    [({"rank_pattern": {"[[q": 2}}, None), ({"lora_bias": True}, "it has no weights for .*lora_B.bias")],
)
def test_libraries_do_not_warn_of_what_is_loaded_or_refused(tmp_path, base, recwarn, values, words):
    """Of signs that later versions of re will read otherwise, and of vectors, as if they were damaged matrices."""
    adapter = changed(tmp_path / "a", **values)
    with pytest.raises(CheckpointError, match=words or ""):
        loading.load_adapted(BaseSection(base=str(base), device="cpu"), adapter)
    assert [
        str(one.message) for one in recwarn if "nested set" in str(one.message) or "shape" in str(one.message)
    ] == []


def test_a_pattern_of_ones_own_is_refused_before_training(tmp_path, base):
    config = made(tmp_path / "out", adapter={"target_modules": ENDLESS})
    with pytest.raises(ConfigError, match=r"^adapter: matching target_modules '.*' against .* 0\.3 s; list names of"):
        prepare(llama(), AutoTokenizer.from_pretrained(base), config)
