"""Per-example gradients equal batch-1 autograd on padded batches of real classes; the model comes back as it was."""

import pytest
import torch
from peft import LoraConfig
from torch import nn

from interference.blocks import Side
from interference.errors import MeasurementError
from interference.gradients.layers import outer_gradient
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets, probed_adapter
from interference.verification import reference
from tests.support.models import batch, gpt2, llama, llava, lora, opt, perturb, qwen2

BATCH = {"lengths": [12, 7, 9, 12], "answers": [3, 1, 5, 11]}


def probe(model, data, **scope):
    targets = find_targets(model, probed_adapter(model, None), **scope)
    with Probe(model, targets) as opened:
        found = opened.gradients(data)
    return found, reference.of_targets(model, data, targets), targets


def assert_equal(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert gradient.norm() > 0, name
        assert error < tolerance, f"{name}: {error}"


CASES = {
    "llama sdpa": lambda: lora(llama()),
    "llama eager": lambda: lora(llama("eager")),
    "llama rslora": lambda: lora(llama(), use_rslora=True),
    "llama dora": lambda: lora(llama(), use_dora=True),
    "llama lora bias": lambda: lora(llama(), lora_bias=True),
    "llama head": lambda: lora(llama(), ["q_proj", "lm_head"]),
    "llama one module": lambda: lora(llama(), ["down_proj"]),
    "llama dropout": lambda: lora(llama(), lora_dropout=0.5),
    "qwen2 tied": lambda: lora(qwen2()),
    "opt": lambda: lora(opt(), ["q_proj", "v_proj", "fc1", "fc2"]),
    "gpt2 conv1d": lambda: lora(gpt2(), ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_batch_one_autograd(case):
    found, expected, _ = probe(CASES[case](), batch(**BATCH))
    assert_equal(found.gradients, expected)


@pytest.mark.parametrize("components", [["language"], ["vision"], ["projector"], ["language", "vision", "projector"]])
def test_llava_components_equal_batch_one_autograd(components):
    model = lora(llava(), r".*(q_proj|v_proj|fc1|linear_1|down_proj)")
    found, expected, targets = probe(model, batch(**BATCH, image=True), components=components)
    assert {target.taps[Side.A].block.component for target in targets} == set(components)
    assert_equal(found.gradients, expected)


def test_losses_are_the_models_own():
    model, data = lora(llama()), batch(**BATCH)
    found, _, _ = probe(model, data)
    own = [model.eval()(**reference.single(data, row)).loss for row in range(4)]
    torch.testing.assert_close(found.losses, torch.stack(own).detach())
    assert found.tokens.tolist() == [3, 1, 5, 11]


def test_sum_over_examples_is_the_plain_batch_gradient():
    model, data = lora(llama()).eval(), batch([9, 9, 9], [4, 4, 4])
    found, _, targets = probe(model, data)
    model(**data).loss.backward()
    for target in targets:
        for tap in target.taps.values():
            torch.testing.assert_close(found.gradients[tap.block.name].mean(0), tap.weight.grad)


def test_a_gradient_does_not_depend_on_its_batch():
    model, data = lora(llama()), batch(**BATCH)
    found, _, targets = probe(model, data)
    with Probe(model, targets) as opened:
        alone = opened.gradients(reference.single(data, 1)).gradients
    for name, gradient in alone.items():
        torch.testing.assert_close(found.gradients[name][1:2], gradient, rtol=1e-4, atol=1e-5)


def test_torch_func_agrees():
    model, data = lora(llama("eager")), batch(**BATCH)
    found, _, targets = probe(model, data)
    assert_equal(found.gradients, reference.gradients_functional(model, data, targets))


def test_scopes_of_one_layer_equal_the_whole():
    model, data = lora(llama()), batch(**BATCH)
    whole, _, _ = probe(model, data)
    part, _, targets = probe(model, data, layers=[2], modules=["attention"])
    assert [target.path.split(".")[-1] for target in targets] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    for name, gradient in part.gradients.items():
        torch.testing.assert_close(whole.gradients[name], gradient)


def test_low_precision_base_with_float32_adapter():
    model = lora(llama().to(torch.bfloat16))
    assert {p.dtype for n, p in model.named_parameters() if "lora" in n} == {torch.float32}
    found, expected, _ = probe(model, batch(**BATCH))
    assert {gradient.dtype for gradient in found.gradients.values()} == {torch.float32}
    assert_equal(found.gradients, expected, tolerance=0.05)  # bfloat16 has 8 bits; padding changes its rounding


def test_one_of_several_adapters_is_probed():
    model = lora(llama())
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    perturb(model, seed=5)
    with torch.no_grad():
        model.base_model.model.model.norm.modules_to_save["other"].weight.mul_(1.5)
    targets = find_targets(model, "other")
    with Probe(model, targets) as opened:
        found = opened.gradients(batch(**BATCH)).gradients
    assert {tuple(g.shape) for g in found.values()} == {(4, 2, 32), (4, 32, 2)}
    assert model.active_adapters == ["default"]
    model.set_adapter("other")
    assert_equal(found, reference.gradients(model, batch(**BATCH)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_comes_back_as_it_was(training, fails):
    model = lora(llama(), modules_to_save=["norm"]).train(training)
    model.base_model.model.model.layers[1].eval()
    model.base_model.model.model.norm.requires_grad_(True)
    before = [(p.requires_grad, p.grad, p.clone()) for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    data = batch(**BATCH)
    if fails:
        data["labels"][2] = -100
        with pytest.raises(MeasurementError, match="row 2 of the batch has no supervised token"):
            probe(model, data)
    else:
        probe(model, data)
    for (required, grad, value), parameter in zip(before, model.parameters(), strict=True):
        assert parameter.requires_grad == required
        assert parameter.grad is grad
        assert torch.equal(parameter, value)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tokens_that_lost_their_example_are_refused():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)[:-1])

    model = lora(llama(), ["q_proj"])
    targets = find_targets(model, "default")
    target = targets[0]
    opened = Probe(model, targets)
    opened._batch_shape = (2, 5)
    with pytest.raises(MeasurementError, match=r"language.0.q_proj.A: values of shape \(9, 32\) do not keep the 2"):
        tap = target.taps[Side.A]
        opened._add(tap.block.name, tap.module, (torch.zeros(9, 32),), torch.zeros(9, 4))


@pytest.mark.parametrize("answer", [1, 2, 3, 5])
def test_few_supervised_tokens_of_a_large_vocabulary_lose_no_digits(answer):
    """Matrix products of one to three rows round ten times worse than those of whole tiles."""
    found, expected, _ = probe(lora(llama(vocab_size=50_000)), batch([12], [answer]))
    assert_equal(found.gradients, expected, tolerance=2e-6)


def test_outer_gradient_by_hand():
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    d = torch.tensor([[[10.0], [1.0]]])
    assert outer_gradient(x, d).tolist() == [[[13.0, 24.0]]]
