"""Which routers there are, what trains them, and how factors are drawn where there are none."""

import pytest
import torch
from peft import get_peft_model

from mixlora import MixLoraConfig
from tests.support.adapted import Single, adapt, batch, layers, llama, loss_of, perturb, selections

INPUTS = batch([9, 7, 12], [3, 2, 4])


def routers(model):
    return {n: p for n, p in model.named_parameters() if "mixlora_router" in n}


def factors(model):
    return {n: p for n, p in model.named_parameters() if "mixlora_A" in n or "mixlora_B" in n}


def step(model):
    """One step of an optimizer over what is to be trained; the names of what moved."""
    trained = [p for p in model.parameters() if p.requires_grad]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trained, lr=0.1)
    loss_of(model, INPUTS).backward()
    optimizer.step()
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("conditional", [True, False])
def test_every_router_and_factor_moves_under_straight_through(conditional):
    model = adapt(llama(), conditional=conditional)
    assert len(routers(model)) == 21 * (3 if conditional else 2)
    assert step(model) == {*routers(model), *factors(model)}


def fixed():
    return adapt(llama(), router_gradient="none")


def switched():
    model = fixed()
    model.add_adapter("second", MixLoraConfig.paper(r=2, num_factors=4, target_modules=["q_proj"]))
    perturb(model, 2, "second")
    model.set_adapter("second")
    model.set_adapter("default")
    return model


def disabled_and_enabled():
    model = fixed()
    with model.disable_adapter():
        pass
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    return model


def asked_for_gradients():
    model = fixed()
    model.base_model.set_requires_grad("default", True)
    return model


@pytest.mark.parametrize("made", [fixed, switched, disabled_and_enabled, asked_for_gradients])
def test_fixed_routers_have_no_gradient_whatever_was_done_to_the_adapter(made):
    model = made()
    own = {n: p for n, p in routers(model).items() if "default" in n}
    assert len(own) == 63 and not any(p.requires_grad for p in own.values())
    assert step(model) == {n for n in factors(model) if "default" in n}
    assert all(p.grad is None for p in own.values())


def test_fixed_routers_stay_so_beside_an_adapter_whose_routers_learn():
    model = switched()
    model.set_adapter("second")
    learning = {n for n, p in routers(model).items() if p.requires_grad}
    assert len(learning) == 9 and all(".second." in n for n in learning)
    assert step(model) == learning | {n for n in factors(model) if "second" in n}


def test_a_straight_through_router_leaves_the_value_of_the_forward():
    learning, not_learning = adapt(llama()), fixed()
    with torch.no_grad():
        unweighted = learning(**INPUTS).logits
    assert torch.allclose(learning(**INPUTS).logits, unweighted, rtol=1e-5, atol=1e-6)
    assert torch.equal(not_learning(**INPUTS).logits, unweighted)


def test_random_routing_has_no_router_and_draws_by_the_seed_alone():
    model = adapt(llama(), routing="random")
    assert not routers(model)
    drawn = []
    for seed, training in ((1, True), (1, False), (2, True)):
        torch.manual_seed(seed)
        model.train(training)(**INPUTS)
        drawn.append(selections(model))
    for name, selection in drawn[0].items():
        assert selection.shape == (2, 3, 2)
        assert torch.equal(selection, drawn[1][name])
        assert all(len(set(row.tolist())) == 2 for row in selection.flatten(0, 1))
    assert any(not torch.equal(s, drawn[2][n]) for n, s in drawn[0].items())
    model(**INPUTS)
    assert any(not torch.equal(s, drawn[2][n]) for n, s in selections(model).items())
    layer = next(iter(layers(model).values()))
    assert layer.selection.scores_A is None and layer.selection.scores_B is None


def test_random_routing_draws_every_factor_as_often():
    config = MixLoraConfig(r=2, num_factors=5, routing="random", target_modules=["linear"])
    model = get_peft_model(Single(3, 3), config)
    perturb(model)
    torch.manual_seed(0)
    model(torch.zeros(5000, 1, 3))
    (layer,) = layers(model).values()
    for chosen in (layer.selection.A, layer.selection.B):
        counts = torch.bincount(chosen.flatten(), minlength=5) / 5000
        assert (counts - 0.4).abs().max() < 0.03  # more than four standard errors of 0.007
    pairs = torch.bincount(layer.selection.A[:, 0] * 5 + layer.selection.B[:, 0], minlength=25) / 5000
    assert (pairs - 0.04).abs().max() < 0.015  # A and B apart


def test_routers_look_at_the_input_before_dropout():
    model = adapt(llama(), lora_dropout=0.5).train()
    first = next(iter(layers(model).values()))
    outputs, chosen = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outputs.append(model(**INPUTS).logits)
        chosen.append(first.selection)
    assert not torch.equal(*outputs)
    assert torch.equal(chosen[0].scores_A, chosen[1].scores_A)
    assert torch.equal(chosen[0].B, chosen[1].B)
    torch.manual_seed(0)
    assert torch.equal(model.eval()(**INPUTS).logits, adapt(llama()).eval()(**INPUTS).logits)
