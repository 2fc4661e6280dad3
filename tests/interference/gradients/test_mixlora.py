"""Per-example gradients of MixLoRA's factors and routers equal batch-1 autograd; the model comes back as it was."""

import pytest
import torch

from interference.blocks import Side
from interference.errors import CheckpointError, ScopeError
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.verification import reference
from mixlora import routed
from tests.support.mixtures import mixture
from tests.support.models import batch, gpt2, llama, llava, opt, qwen2

MODELS = {
    "llama": llama,
    "llama, eager": lambda: llama("eager"),
    "qwen2": qwen2,
    "opt": opt,
    "llava": llava,
}


def relative(found, expected):
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


def probed(model, rows, **scope):
    with Probe(model, find_targets(model, "default", **scope)) as probe:
        return probe.gradients(rows)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_factors_and_routers_equal_batch_1_autograd(name, conditional):
    targets = (
        r".*language_model.*(q_proj|up_proj|down_proj)" if name == "llava" else ["q_proj", "v_proj", "fc1", "up_proj"]
    )
    model = mixture(MODELS[name](), target_modules=targets, conditional=conditional)
    rows = batch([12, 7, 9, 12], [3, 1, 5, 4], image=name == "llava")
    found = probed(model, rows, routers=True)
    expected = reference.gradients(model, rows, routers=True)
    assert found.gradients.keys() == expected.keys()
    sides = {key.rpartition(".")[2] for key in expected}
    assert sides == {"A", "B", "router-A", "router-B"} | ({"router-AB"} if conditional else set())
    assert relative(found.gradients, expected) < 2e-5


def test_torch_func_agrees_where_routers_choose():
    model = mixture(llama("eager"))
    rows = batch([12, 7, 9], [3, 1, 5])
    targets = find_targets(model, "default", routers=True)
    functional = reference.gradients_functional(model, rows, targets)
    assert relative(functional, reference.of_targets(model, rows, targets)) < 2e-5


def test_one_deep_layer_gives_the_gradients_that_all_layers_give():
    model, rows = mixture(), batch([12, 7, 9], [3, 1, 5])
    whole, one = probed(model, rows), probed(model, rows, layers=[2], modules=["q_proj"])
    assert set(one.gradients) == {"language.2.q_proj.A", "language.2.q_proj.B"}
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(gradient, whole.gradients[name], rtol=1e-4, atol=1e-6)


def test_factors_that_an_example_did_not_select_have_gradient_zero():
    model, rows = mixture(), batch([12, 7, 9], [3, 1, 5])
    found = probed(model, rows)
    for name, gradient in found.gradients.items():
        assert gradient.shape[:2] == (3, 5)
        used = gradient.flatten(2).norm(dim=2) > 0
        for row in range(3):
            assert set(used[row].nonzero()[:, 0].tolist()) == set(found.selections[name][row].tolist())


def test_routing_looks_at_the_prompt_as_in_training():
    model, rows = mixture(), batch([12, 7, 9], [3, 1, 5])
    found = probed(model, rows)
    model.eval()(**rows)
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    assert torch.equal(found.selections["language.1.q_proj.A"], layer.selection.A)
    model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
    assert not torch.equal(layer.selection.scores_A, torch.zeros_like(layer.selection.scores_A))
    without = layer.selection.scores_A
    model(**rows)
    assert (layer.selection.scores_A - without).abs().max() > 1e-4


def test_pooling_over_everything_is_measured_as_if_each_example_were_alone():
    model, rows = mixture(preset="official"), batch([12, 7, 9, 12], [3, 1, 5, 11])
    found, expected = probed(model, rows), reference.gradients(model, rows)
    assert relative(found.gradients, expected) < 2e-5
    model.eval()(**rows)
    padded = model.get_base_model().model.layers[0].self_attn.q_proj.selection.scores_A
    with routed(model, alone=True):
        model(**rows)
    alone = model.get_base_model().model.layers[0].self_attn.q_proj.selection.scores_A
    assert (padded - alone)[1].abs().max() > 1e-4


def test_the_model_comes_back_as_it_was():
    model = mixture()
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    probed(model, batch([9, 7], [2, 1]), routers=True)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0] and torch.equal(parameter, before[name][1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "official"}, "the routers of adapter 'default' have no gradient; leave routers out"),
        ({"routing": "random"}, "the routers of adapter 'default' have no gradient; leave routers out"),
    ],
)
def test_routers_without_a_gradient_are_refused(options, words):
    with pytest.raises(ScopeError, match=words):
        find_targets(mixture(**options), "default", routers=True)


def test_a_switched_off_adapter_is_refused():
    model = mixture()
    with model.disable_adapter(), pytest.raises(CheckpointError, match="adapters are switched off"):
        find_targets(model, "default")


def test_a_module_that_is_no_linear_is_refused():
    with pytest.raises(ValueError, match="is a Conv1D, but only Linear modules can be adapted"):
        mixture(gpt2(), target_modules=["c_attn"])


def test_sides_of_routers_are_named_for_the_command_line():
    assert [str(side) for side in Side] == ["A", "B", "W", "router-A", "router-B", "router-AB"]
