"""LLaVA v1's LoRA and projector in a Hugging Face LLaVA: the same values, the same computation."""

import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file

from mixlora.checkpoints.conversion import import_checkpoint
from mixlora.checkpoints.projector import load_projector
from mixlora.common.errors import MixLoraError
from tests.support.released import LAYERS, SHAPES, STEM, D, llava, lora_tensors, projector_tensors, refused, write_lora

Q = f"{STEM}layers.1.self_attn.q_proj."


def test_a_llava_lora_is_loaded_by_peft_with_its_own_values(tmp_path):
    tensors = lora_tensors()
    write_lora(tmp_path / "in", tensors, use_rslora=True)
    done = import_checkpoint(tmp_path / "in", tmp_path / "out")
    model = PeftModel.from_pretrained(llava(), tmp_path / "out")
    load_projector(model, tmp_path / "out")
    assert (done.modules, done.projector_hidden_act) == (LAYERS * 7, "gelu")
    parameters = dict(model.named_parameters())
    adapted = {name for name in parameters if "lora_" in name}
    assert len(adapted) == 2 * 7 * LAYERS
    for key, tensor in tensors.items():
        name = key.replace("model.layers.", "model.language_model.layers.").replace(".weight", ".default.weight")
        assert torch.equal(parameters[name], tensor)
    assert model.peft_config["default"].lora_alpha == 16 and model.peft_config["default"].use_rslora


def test_a_lora_of_some_layers_names_them(tmp_path):
    write_lora(tmp_path / "in", lora_tensors([1]), projector=False, layers_to_transform=[1])
    assert import_checkpoint(tmp_path / "in", tmp_path / "out").projector_hidden_act is None
    assert not (tmp_path / "out" / "projector.safetensors").exists()
    pattern = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    matched = {name for name, _ in llava().named_modules() if re.fullmatch(pattern, name)}
    assert matched == {f"model.language_model.layers.1.{name}" for name in SHAPES}


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        ({}, {"use_dora": True}, ["use_dora is True", "adapter_config.json"]),
        ({}, {"rank_pattern": {"q_proj": 8}}, ["rank_pattern is {'q_proj': 8}"]),
        ({}, {"r": 0}, ["r is 0", "a whole number from 1"]),
        ({}, {"r": 3}, [".lora_A.weight", "(2, 12)", "(3, any)"]),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(2, D)}, {}, ["base_model.model.lm_head.lora_A.weight"]),
        ({f"{Q}lora_A.weight": torch.zeros(2)}, {}, [f"{Q}lora_A.weight", "(2,)"]),
    ],
)
def test_a_lora_that_cannot_be_converted_is_refused(tmp_path, change, config, words):
    write_lora(tmp_path / "in", lora_tensors() | change, **config)
    refused(tmp_path / "in", tmp_path / "out", *words)


def test_a_lora_of_a_hugging_face_llava_is_not_taken_for_llava_v1s(tmp_path):
    tensors = {key.replace(".model.layers", ".model.language_model.layers"): t for key, t in lora_tensors().items()}
    write_lora(tmp_path / "in", tensors, projector=False)
    refused(tmp_path / "in", tmp_path / "out", "has no LoRA factors", f"{STEM}layers.0.mlp.up_proj.lora_A.weight")


@pytest.mark.parametrize("stem", ["model.", "", STEM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_projector_computes_the_same_in_a_hugging_face_llava(tmp_path, layers, dtype, stem):
    old = projector_tensors(layers, stem, dtype)
    torch.save(old, tmp_path / "mm_projector.bin")
    source = tmp_path if stem else tmp_path / "mm_projector.bin"  # a directory, or the file
    done = import_checkpoint(source, tmp_path / "out")
    model = llava(done.projector_hidden_act)
    load_projector(model, tmp_path / "out" / "projector.safetensors")
    features = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    first, *rest = (torch.nn.functional.linear for _ in range(layers))
    ends = [""] if layers == 1 else ["0.", "2."]
    weights = [[old[f"{stem}mm_projector.{end}{name}"].float() for name in ("weight", "bias")] for end in ends]
    expected = first(features, *weights[0])
    for linear, pair in zip(rest, weights[1:], strict=True):
        expected = linear(torch.nn.functional.gelu(expected), *pair)
    torch.testing.assert_close(
        model.model.multi_modal_projector(features), expected, rtol=0, atol=0 if layers == 1 else 1e-6
    )
    with safe_open(tmp_path / "out" / "projector.safetensors", "pt") as file:
        assert file.metadata()["projector_hidden_act"] == ("linear" if layers == 1 else "gelu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.mm_projector.4.weight": torch.zeros(D, D)}, ["model.mm_projector.4.weight", "one or two Linears"]),
        ({"model.mm_projector.2.bias": torch.zeros(9)}, ["model.mm_projector.2.bias", "(9,)", "(8,)"]),
        ({"model.mm_projector.2.weight": None}, ["lacks model.mm_projector.2.weight"]),
    ],
)
def test_an_unusual_projector_is_refused(tmp_path, change, words):
    tensors = {key: t for key, t in (projector_tensors(2) | change).items() if t is not None}
    torch.save(tensors, tmp_path / "mm_projector.bin")
    refused(tmp_path, tmp_path / "out", *words)


def test_a_projector_that_does_not_fit_the_base_is_not_loaded(tmp_path):
    torch.save(projector_tensors(1), tmp_path / "mm_projector.bin")
    import_checkpoint(tmp_path, tmp_path / "out")
    model = llava("gelu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MixLoraError, match=r"the base has projector_hidden_act='gelu', but .* needs 'linear'"):
        load_projector(model, tmp_path / "out")
    with pytest.raises(MixLoraError, match="the base has projector_hidden_act=None"):
        load_projector(torch.nn.Linear(2, 2), tmp_path / "out")
    model.config.projector_hidden_act = "linear"
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(7, D)
    with pytest.raises(MixLoraError, match=r"linear_1.weight has shape \(8, 7\) in the base and \(8, 6\)"):
        load_projector(model, tmp_path / "out")
    model.model.multi_modal_projector.linear_2.bias = None
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(6, D)
    with pytest.raises(MixLoraError, match=r"the base has no model.multi_modal_projector.linear_2.bias"):
        load_projector(model, tmp_path / "out")
    assert torch.equal(
        before["model.multi_modal_projector.linear_2.weight"], model.model.multi_modal_projector.linear_2.weight
    )
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for path, words in ((tmp_path / "other.safetensors", "import-official"), (tmp_path / "none", "No such file")):
        with pytest.raises(MixLoraError, match=words):
            load_projector(model, path)
