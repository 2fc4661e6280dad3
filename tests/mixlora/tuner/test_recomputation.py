"""Gradient checkpointing gives the gradients of a plain backward, and leaves nothing behind."""

import pytest
import torch
from torch.testing import assert_close

from tests.support.adapted import adapt, batch, gradients, layers, llama, llava, loss_of, padded_left


def trained(base, rows, reentrant=None, **options):
    """Gradients of a loss over several forwards, with blocks run again or not."""
    model = adapt(base(), **options).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant, "preserve_rng_state": False})
        model.enable_input_require_grads()
    torch.manual_seed(5)
    total = sum(loss_of(model, inputs) for inputs in rows)
    calls = []
    for layer in layers(model).values():
        layer.register_forward_hook(lambda *_: calls.append(1))
    total.backward()
    return model, gradients(model), len(calls)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("routing", ["instance", "random"])
@pytest.mark.parametrize("base", [llama, llava])
def test_blocks_run_again_select_what_they_did_at_first(base, routing, reentrant):
    image = base is llava
    rows = [batch([9, 7, 12], [3, 2, 4], seed, image=image) for seed in (2, 3)]
    rows = [rows[0], padded_left(rows[1])]
    _, expected, _ = trained(base, rows, routing=routing)
    model, found, again = trained(base, rows, reentrant, routing=routing)
    assert again >= 2 * (len(layers(model)) - 3)  # of both forwards, up to a block's last Linear
    routers = [name for name in found if "router" in name]
    assert found.keys() == expected.keys() and bool(routers) == (routing == "instance")
    for name, gradient in found.items():
        assert expected[name].abs().max() > 1e-7, name
        assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_an_unloaded_model_is_the_base_again():
    inputs = batch([9, 7, 12], [3, 2, 4])
    base = llama()
    before = base(**inputs).logits
    model = adapt(base).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss_of(model, inputs).backward()
    assert "generate" in vars(base) and base._forward_pre_hooks
    assert not torch.equal(model(**inputs).logits, before)
    unloaded = model.unload()
    assert unloaded is base and not layers(base)
    assert torch.equal(base.eval()(**inputs).logits, before)
    assert not base._forward_pre_hooks and not base._forward_hooks and "generate" not in vars(base)
    for module in base.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        assert function is None or "mixlora" not in type(function).__module__
    assert not any("mixlora" in name for name, _ in base.named_parameters())


def test_an_unloaded_base_can_be_adapted_again():
    inputs = batch([9, 7, 12], [3, 2, 4])
    expected = adapt(llama())(**inputs).logits
    base = adapt(llama(), seed=9).unload()
    torch.manual_seed(0)
    llama()  # leaves the generator where it was for `expected`
    again = adapt(base)
    assert torch.equal(again(**inputs).logits, expected)
    assert len(base._forward_pre_hooks) == 1
