"""Above a base of 4-bit weights, the adapter is as above the same weights dequantised."""

import pytest
import torch
from torch import nn

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
