"""Adapters on disk: what is written, what a new process makes of it, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from mixlora.common.errors import AdapterError, ConfigError
from tests.support.adapted import adapt, batch, layers, llama, llava, perturb
from tests.support.paths import ROOT

BASES = {"llama": llama, "llava": llava}
IN_A_NEW_PROCESS = """
import sys, torch
from peft import PeftModel
import mixlora.tuner.model  # noqa
from tests.support.adapted import batch, llama, llava
for name, base in {"llama": llama, "llava": llava}.items():
    model = PeftModel.from_pretrained(base(), f"{sys.argv[1]}/{name}").eval()
    with torch.no_grad():
        torch.save(model(**batch([9, 7, 12], [3, 2, 4], image=name == "llava")).logits, f"{sys.argv[1]}/{name}.pt")
"""


def logits(model, image=False):
    with torch.no_grad():
        return model.eval()(**batch([9, 7, 12], [3, 2, 4], image=image)).logits


@pytest.mark.slow
def test_a_new_process_computes_the_same_bits(tmp_path):
    expected = {}
    for name, base in BASES.items():
        options = {"modules_to_save": ["multi_modal_projector"]} if name == "llava" else {"preset": "official"}
        model = adapt(base(), **options)
        for parameter in (p for n, p in model.named_parameters() if "modules_to_save" in n):
            parameter.data.mul_(1.5)
        model.save_pretrained(tmp_path / name)
        expected[name] = logits(model, image=name == "llava")
        assert (expected[name] - logits(base(), image=name == "llava")).abs().max() > 0.1
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path)]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=120)
    for name in BASES:
        assert torch.equal(torch.load(tmp_path / f"{name}.pt"), expected[name]), name


@pytest.mark.parametrize("conditional", [True, False])
def test_the_file_names_factors_and_routers_and_holds_nothing_else(tmp_path, conditional):
    model = adapt(llama(), conditional=conditional, target_modules=["q_proj", "down_proj"])
    model.save_pretrained(tmp_path)
    found = {key: tuple(value.shape) for key, value in load_file(tmp_path / "adapter_model.safetensors").items()}
    expected = {}
    for layer in range(3):
        for name, d_in, d_out in (("self_attn.q_proj", 32, 32), ("mlp.down_proj", 48, 32)):
            stem = f"base_model.model.model.layers.{layer}.{name}."
            expected[f"{stem}mixlora_A"], expected[f"{stem}mixlora_B"] = (6, d_in), (6, d_out)
            expected[f"{stem}mixlora_router.independent_A.weight"] = (6, d_in)
            expected[f"{stem}mixlora_router.independent_B.weight"] = (6, d_in)
            if conditional:
                expected[f"{stem}mixlora_router.conditional.weight"] = (2, d_in, 6)
    assert found == expected


def test_random_routing_saves_no_router(tmp_path):
    adapt(llama(), routing="random").save_pretrained(tmp_path)
    assert {key.rpartition(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {
        "mixlora_A",
        "mixlora_B",
    }


@pytest.mark.parametrize("name", ["default", "other", "mixlora_A", "A"])
def test_an_adapter_may_be_loaded_under_any_name(tmp_path, name):
    model = adapt(llama())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, adapter_name=name)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("low", [False, True])
def test_an_adapter_may_be_loaded_to_be_trained_on(tmp_path, low):
    model = adapt(llama())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True, low_cpu_mem_usage=low)
    trained = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 21 * 5
    assert torch.equal(logits(loaded), logits(model))


def test_a_loaded_projector_is_the_saved_one_and_switches_with_its_adapter(tmp_path):
    model = adapt(llava(), modules_to_save=["multi_modal_projector"])
    saved = {n: p for n, p in model.named_parameters() if "modules_to_save" in n}
    assert len(saved) == 4 and all(p.requires_grad for p in saved.values())
    with torch.no_grad():
        for parameter in saved.values():
            parameter.mul_(3)
    expected = logits(model, image=True)
    model.save_pretrained(tmp_path)
    keys = [k for k in load_file(tmp_path / "adapter_model.safetensors") if "multi_modal_projector" in k]
    assert len(keys) == 4 and all("mixlora" not in k for k in keys)
    loaded = PeftModel.from_pretrained(llava(), tmp_path)
    assert torch.equal(logits(loaded, image=True), expected)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded, image=True), logits(llava(), image=True))


def changed(tmp_path, change):
    """An adapter on disk whose tensors were changed."""
    adapt(llama()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return tmp_path


def test_an_adapter_of_a_wider_base_is_refused_with_both_shapes(tmp_path):
    adapt(llama(hidden_size=64)).save_pretrained(tmp_path)
    with pytest.raises(AdapterError) as refused:
        PeftModel.from_pretrained(llama(), tmp_path)
    said = str(refused.value)
    assert said.startswith("the adapter does not fit the base: base_model.model.model.layers.0.")
    assert "mixlora_B" in said and said.endswith("has shape (6, 64), but the model has (6, 32)")


def test_the_first_misfit_is_named(tmp_path):
    key = "base_model.model.model.layers.1.mlp.up_proj.mixlora_router.conditional.weight"
    path = changed(tmp_path, lambda tensors: tensors.update({key: torch.zeros(2, 32, 5)}))
    with pytest.raises(AdapterError) as refused:
        PeftModel.from_pretrained(llama(), path)
    said = str(refused.value)
    assert "layers.1.mlp.up_proj.mixlora_router" in said and "conditional.weight" in said
    assert "has shape (2, 32, 5), but the model has (2, 32, 6)" in said


@pytest.mark.parametrize("part", ["mixlora_A", "mixlora_B", "mixlora_router.independent_B.weight"])
def test_missing_weights_are_refused_by_name(tmp_path, part):
    path = changed(tmp_path, lambda tensors: tensors.pop(f"base_model.model.model.layers.2.mlp.up_proj.{part}"))
    with pytest.raises(AdapterError) as refused:
        PeftModel.from_pretrained(llama(), path)
    said = str(refused.value)
    assert said.startswith("the adapter does not fit the base: it has no weights for ")
    assert f"layers.2.mlp.up_proj.{part.partition('.')[0]}" in said and part.partition(".")[2] in said


def test_weights_of_layers_the_base_lacks_are_refused_by_name(tmp_path):
    adapt(llama(num_hidden_layers=4)).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"the base has no place for .*layers\.3\..*mixlora_"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_an_adapter_of_a_newer_format_is_refused_by_the_model(tmp_path):
    adapt(llama()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ConfigError, match=r"the adapter has format 2, but this version reads up to 1"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_adapters_are_saved_and_loaded_each_for_itself(tmp_path):
    model = adapt(llama())
    model.add_adapter("second", adapt(llama(), preset="official", r=3).peft_config["default"])
    perturb(model, 4, "second")
    expected = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = logits(model)
    assert (expected["default"] - expected["second"]).abs().max() > 0.1
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    loaded.load_adapter(tmp_path / "second", "second")
    for name in ("second", "default"):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), expected[name]), name
    assert next(iter(layers(loaded).values())).configs["second"].r == 3
