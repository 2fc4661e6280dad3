"""Bases and adapters from strangers: bounded before they are read, never waited for, never executed."""

import json
import os
import pickle
import sys

import pytest
import torch
from transformers import dynamic_module_utils

from mixlora.checkpoints import loading
from mixlora.common.errors import CheckpointError
from mixlora.common.sections import BaseSection
from tests.support.checkpoints import write_adapter, write_base


class Trap:
    """Its unpickling would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("strangers") / "base")


def section(base, **more):
    return BaseSection(base=str(base), device="cpu", **more)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_base_that_is_a_malicious_pickle_does_nothing(tmp_path, base, zipped):
    trap, own = tmp_path / "trap", tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_bytes((base / "config.json").read_bytes())
    if zipped:
        torch.save({"model.norm.weight": Trap(trap)}, own / "pytorch_model.bin")
    else:
        (own / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Trap(trap)}))
    with pytest.raises(CheckpointError) as error:
        loading.load_base(section(own))
    assert not trap.exists() and "\n" not in str(error.value)
    assert f"the weights of {own} contain objects other than tensors; nothing of it is executed" in str(error.value)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("kind", ["config", "tokenizer"])
def test_code_that_a_base_brings_is_run_only_where_it_is_trusted(tmp_path, base, monkeypatch, kind, trusted):
    trap, own = tmp_path / "trap", tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for path in base.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    (own / "evil.py").write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    name = {"config": "config.json", "tokenizer": "tokenizer_config.json"}[kind]
    found = json.loads((own / name).read_text())
    if kind == "config":
        found |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    else:
        found |= {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (own / name).write_text(json.dumps(found))
    try:
        loading.load_base(section(own, trust_remote_code=trusted))
        loading.load_processor(section(own, trust_remote_code=trusted))
    except CheckpointError as error:
        assert str(own) in str(error)
    assert trap.exists() == trusted


def test_an_adapter_cannot_have_a_module_imported(tmp_path, base, monkeypatch):
    write_adapter(tmp_path / "a")
    (tmp_path / "stranger.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trap')!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"megatron_config": {"x": 1}, "megatron_core": "stranger"})
    )
    for load in (loading.load_adapted, loading.empty_adapted):
        with pytest.raises(CheckpointError, match="asks PEFT to import megatron_core; remove it"):
            load(section(base), str(tmp_path / "a"))
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_is_a_pipe_is_not_waited_for(tmp_path, base, name):
    write_adapter(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    os.mkfifo(tmp_path / "a" / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        loading.load_adapted(section(base), str(tmp_path / "a"))


def test_an_adapter_configuration_is_bounded(tmp_path):
    (tmp_path / "adapter_config.json").write_text("[" * 10**5)
    with pytest.raises(CheckpointError, match="it is nested deeper than 64 levels"):
        loading.adapter_config(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json can be read"):
        loading.adapter_config(str(tmp_path))
