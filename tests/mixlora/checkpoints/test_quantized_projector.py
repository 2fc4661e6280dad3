"""A projector in a quantized base stays whole, and one that is quantized takes no values."""

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
from tests.support.needed import needed

bnb = needed("bitsandbytes")


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
