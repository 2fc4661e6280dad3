"""Fingerprints: they change with every single value and key that a model reads, and with nothing else."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from mixlora.checkpoints.digests import digest, of_file, of_tensor
from mixlora.checkpoints.fingerprints import fingerprints, of_checkpoint, of_generation, summary
from tests.support.checkpoints import write_adapter, write_base
from tests.support.mixtures import mixture
from tests.support.models import llama, lora


def changed(before, after):
    return {part for part in before if before[part] != after[part]}


@pytest.fixture(scope="module")
def adapted():
    return lora(llama(), modules_to_save=["lm_head"])


def test_every_value_of_every_tensor_counts(adapted):
    before = fingerprints(adapted)
    for name, tensor in [*adapted.named_parameters(), *adapted.named_buffers()]:
        flat = tensor.data.view(-1)
        for place in (0, len(flat) // 2 + 1, -1):
            old = flat[place % len(flat)].clone()
            flat[place % len(flat)] += 1e-3
            own = ".default" in name or "lora_" in name
            assert changed(before, fingerprints(adapted)) == {"adapter weights" if own else "base weights"}, name
            flat[place % len(flat)] = old
    assert fingerprints(adapted) == before


def test_a_changed_key_of_a_configuration_is_named():
    before = fingerprints(lora(llama()))
    assert before["base weights"] == fingerprints(llama())["base weights"]
    assert before["base weights"] == fingerprints(lora(llama(), modules_to_save=["lm_head"]))["base weights"]
    other = lora(llama())
    other.config.rms_norm_eps = 1e-3
    assert changed(before, fingerprints(other)) == {"base"} and fingerprints(other)["base"]["rms_norm_eps"] == 1e-3
    other = lora(llama())
    other.peft_config["default"].use_rslora = True
    assert changed(before, fingerprints(other)) == {"adapter"}
    other = lora(llama())
    next(module for module in other.modules() if isinstance(module, BaseTunerLayer)).scaling["default"] *= 2
    assert changed(before, fingerprints(other)) == {"scaling"}
    first, second = fingerprints(mixture()), fingerprints(mixture(cfs_form="official"))
    assert first["adapter"]["default"]["cfs_form"] != second["adapter"]["default"]["cfs_form"]


def test_paths_versions_and_generation_do_not_count(tmp_path):
    places = []
    for name in ("one", "two"):
        base, adapter = write_base(tmp_path / name / "base"), write_adapter(tmp_path / name / "adapter")
        places.append((base, adapter))
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        model.config.use_cache = name == "one"
        model.config.transformers_version = name
        model.peft_config["default"].inference_mode = name == "one"
        places[-1] += (fingerprints(model),)
    assert places[0][2] == places[1][2]
    assert of_checkpoint(str(places[0][0])) == of_checkpoint(str(places[1][0]))
    (places[1][0] / "generation_config.json").write_text('{"temperature": 0.5}')
    (places[1][0] / "README.md").write_text("a card")
    assert of_checkpoint(str(places[0][0])) == of_checkpoint(str(places[1][0]))
    assert of_generation(str(places[0][0])) != of_generation(str(places[1][0]))
    (places[0][0] / "generation_config.json").write_text('{"temperature": 0.5}')
    assert of_generation(str(places[0][0])) == of_generation(str(places[1][0]))
    weights = places[1][0] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert of_checkpoint(str(places[0][0])) != of_checkpoint(str(places[1][0]))


@pytest.mark.parametrize("name", ["merges.txt", "qwen.tiktoken", "modeling_own.py", "vocab.json"])
def test_a_vocabulary_and_code_of_its_own_are_parts_of_a_checkpoint(tmp_path, name):
    (tmp_path / name).write_text("one")
    before = of_checkpoint(str(tmp_path))
    (tmp_path / name).write_text("two")
    assert of_checkpoint(str(tmp_path)) != before


def test_a_summary_is_of_all_parts_in_any_order():
    parts = {"a": "1", "b": {"x": 1, "y": [2]}}
    assert summary(parts) == summary(dict(reversed(parts.items()))) != summary({**parts, "b": {"x": 1, "y": [3]}})


def test_digests_of_files_and_tensors(tmp_path):
    (tmp_path / "file").write_bytes(b"ab" * 10)
    assert of_file(tmp_path / "file") == digest([b"ab" * 10]) == digest([b"ab"] * 10)
    values = torch.arange(6.0)
    assert of_tensor(values) == of_tensor(values.clone()) != of_tensor(values.view(2, 3))
    assert of_tensor(values) != of_tensor(values.double()) and of_tensor(torch.zeros(0)) != of_tensor(torch.zeros(1))
    assert of_tensor(torch.tensor([0.0])) != of_tensor(torch.tensor([-0.0]))


def test_a_hub_id_that_is_not_kept_is_its_own_digest():
    assert of_checkpoint("nobody/nothing-of-the-kind") == "nobody/nothing-of-the-kind"
