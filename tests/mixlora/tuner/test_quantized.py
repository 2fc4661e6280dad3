"""Above a base of 4-bit weights, the adapter is as above the same weights dequantised; projectors are not quantized."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from mixlora.checkpoints import loading
from mixlora.checkpoints.projector import load_projector
from mixlora.common.errors import CheckpointError
from mixlora.common.sections import BaseSection
from mixlora.data import mini
from tests.support.adapted import PROJECTIONS, adapt, batch, gradients, layers, llama, loss_of, selections
from tests.support.needed import needed

bnb = needed("bitsandbytes")
INPUTS = batch([9, 7, 12], [3, 2, 4])


def quantised():
    """A llama whose projections hold nf4 weights, and one with what these stand for, in float32."""
    low, plain = (llama(hidden_size=64, intermediate_size=64) for _ in range(2))
    for name, linear in plain.named_modules():
        if not isinstance(linear, nn.Linear) or name.rpartition(".")[2] not in PROJECTIONS:
            continue
        new = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
        new.weight = bnb.nn.Params4bit(linear.weight.detach().clone(), requires_grad=False, quant_type="nf4")
        new = new.to("cpu")
        low.set_submodule(name, new)
        linear.weight.data = bnb.functional.dequantize_4bit(new.weight.data, new.weight.quant_state)
    return low, plain


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_a_4_bit_base_gives_the_gradients_of_its_dequantised_weights(preset):
    found = []
    for base in quantised():
        torch.manual_seed(0)
        model = adapt(base, preset=preset)
        loss = loss_of(model, INPUTS)
        loss.backward()
        found.append((loss.item(), gradients(model), selections(model)))
        assert len(layers(model)) == 21
    (low, low_gradients, chosen), (plain, plain_gradients, expected) = found
    assert abs(low - plain) < 1e-3 * plain
    assert all(torch.equal(selection, expected[name]) for name, selection in chosen.items())
    assert low_gradients.keys() == plain_gradients.keys()
    assert len(low_gradients) == 21 * (5 if preset == "paper" else 2)
    for name, gradient in low_gradients.items():
        other = plain_gradients[name]
        assert gradient.isfinite().all() and other.norm() > 0
        assert (gradient - other).norm() < 1e-2 * other.norm(), name


def test_the_weights_are_indeed_4_bit_and_stay_so_under_the_adapter():
    low, _ = quantised()
    model = adapt(low)
    layer = layers(model)["base_model.model.model.layers.0.mlp.up_proj"]
    assert layer.get_base_layer().weight.dtype == torch.uint8
    assert layer.get_base_layer().weight.numel() == 64 * 64 // 2
    assert layer.mixlora_A["default"].dtype == torch.float32
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(**INPUTS).logits, quantised()[0](**INPUTS).logits)


def projector_file(path):
    """A projector for the mini base, of values that it has not; the file and the values."""
    base = mini.load_base()[0]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(parameter.shape, generator=generator)
        for name, parameter in base.named_parameters()
        if "multi_modal_projector" in name
    }
    assert len(tensors) == 4
    save_file(tensors, path, {"projector_hidden_act": base.config.projector_hidden_act})
    return path, tensors


def whole_linears(model):
    """Paths of the Linear modules that are not quantized."""
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    named = model.named_modules()
    return {name for name, module in named if isinstance(module, nn.Linear) and not isinstance(module, kinds)}


def by_transformers(bits):
    """The mini base with what transformers quantizes by itself."""
    known = BitsAndBytesConfig(**{f"load_in_{bits}": True})
    return AutoModelForImageTextToText.from_pretrained(mini.base_path(), quantization_config=known, device_map="cpu")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_projector_arrives_in_a_quantized_base(tmp_path, bits):
    path, values = projector_file(tmp_path / "projector.safetensors")
    section = BaseSection(base="mini", device="cpu", quantization=bits, projector=str(path))
    model = loading.load_base(section)
    found = dict(model.named_parameters())
    for name, tensor in values.items():
        assert torch.equal(found[name], tensor), name
    projector = {f"model.multi_modal_projector.linear_{number}" for number in (1, 2)}
    assert whole_linears(model) == whole_linears(by_transformers(bits)) | projector
    assert "lm_head" in whole_linears(model)


@pytest.mark.parametrize(("bits", "dtype"), [("4bit", "uint8"), ("8bit", "int8")])
def test_a_projector_that_is_quantized_takes_no_values(tmp_path, bits, dtype):
    path, _ = projector_file(tmp_path / "projector.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_projector(by_transformers(bits), path)
    name = str(error.value).partition(" ")[0]
    assert name.startswith("model.multi_modal_projector.linear_") and name.endswith(".weight")
    assert str(error.value) == (
        f"{name} is quantized in the base (torch.{dtype}) and cannot take the values of {path}; load the base with its "
        "multi_modal_projector among llm_int8_skip_modules"
    )
