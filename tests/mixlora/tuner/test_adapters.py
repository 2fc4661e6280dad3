"""Adapters beside each other and above a LoRA: switched, added, disabled, copied, deleted; merging refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from mixlora import MixLoraConfig
from mixlora.common.errors import MergeError
from tests.support.adapted import PROJECTIONS, adapt, batch, layers, llama, llava, loss_of, perturb, selections, single
from tests.support.models import lora

REFUSED = "every instance chooses its own factors"


def logits(model, image=False):
    with torch.no_grad():
        return model(**batch([9, 7, 12], [3, 2, 4], image=image)).logits


def two(**options):
    model = adapt(llama())
    config = {"r": 3, "num_factors": 5, "target_modules": ["q_proj", "up_proj"]} | options
    model.add_adapter("second", MixLoraConfig.paper(**config))
    perturb(model, 4, "second")
    return model


@pytest.mark.parametrize(("base", "image"), [(llama, False), (llava, True)])
def test_a_disabled_adapter_is_the_base_to_the_bit(base, image):
    model = adapt(base())
    before = logits(model, image)
    with model.disable_adapter():
        assert torch.equal(logits(model, image), logits(base(), image))
    assert torch.equal(logits(model, image), before)


def test_adapters_switch_and_come_back():
    model = two()
    first = logits(model)
    model.set_adapter("second")
    second = logits(model)
    assert next(iter(layers(model).values())).selection.A.shape == (3, 3)
    assert (first - second).abs().max() > 0.1
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_adapters_active_together_add_up():
    model = single(MixLoraConfig.paper(r=2, num_factors=4), 5, 7)
    model.add_adapter("second", MixLoraConfig.paper(r=3, num_factors=6, target_modules=["linear"]))
    perturb(model, 3)
    x = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deltas = []
    for names in ("default", "second", ["default", "second"]):
        model.base_model.set_adapter(names)
        with model.disable_adapter():
            base = model(x)
        deltas.append(model(x) - base)
    assert all(delta.abs().max() > 0.1 for delta in deltas)
    assert_close(deltas[2], deltas[0] + deltas[1], rtol=1e-10, atol=1e-12)


def test_a_deleted_adapter_leaves_the_other_as_it_was():
    model = two()
    first = logits(model)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    assert not any("second" in name for name, _ in model.named_parameters())
    for layer in layers(model).values():
        assert all("second" not in held for held in (layer.configs, layer.tasks, layer._selections, layer.dropout))


def test_deleting_the_active_adapter_activates_the_other():
    model = two()
    first = logits(model)
    model.set_adapter("second")
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_a_lora_below_and_the_adapter_above_add_up():
    options = {"targets": ["q_proj"]}
    below = lora(llama(), **options)
    alone = logits(below)
    linear = below.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    torch.manual_seed(3)
    model = get_peft_model(below.base_model.model, MixLoraConfig.paper(r=2, num_factors=6, target_modules=["q_proj"]))
    assert torch.equal(logits(model), alone)
    perturb(model)
    name, layer = next(iter(layers(model).items()))
    assert layer.base_layer is linear and name.endswith("q_proj")
    both = logits(model)
    assert (both - alone).abs().max() > 0.1
    x = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0))
    mixed = layer(x)
    layer.enable_adapters(False)
    with_lora = layer(x)
    linear.enable_adapters(False)
    plain = layer(x)
    layer.enable_adapters(True)
    only_mixed = layer(x)
    assert torch.equal(plain, llama().model.layers[0].self_attn.q_proj(x))
    assert (with_lora - plain).abs().max() > 0.1 and (only_mixed - plain).abs().max() > 0.1
    assert_close(mixed - plain, (with_lora - plain) + (only_mixed - plain), rtol=1e-4, atol=1e-5)
    linear.enable_adapters(True)
    assert torch.equal(logits(model), both)
    for each in layers(model).values():
        each.enable_adapters(False)
    assert torch.equal(logits(model), alone)
    with model.disable_adapter():  # of PEFT: every tuner's adapters
        assert torch.equal(logits(model), logits(llama()))


def test_a_copy_is_independent_of_the_original():
    model = adapt(llama())
    expected = logits(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), expected)
    own, others = (next(iter(layers(m).values())) for m in (model, copied))
    assert own.tracker is not others.tracker
    with torch.no_grad():
        for layer in layers(copied).values():
            layer.mixlora_B["default"].mul_(2)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(copied), expected)


def test_a_copy_follows_its_own_forwards():
    model = adapt(llama())
    copied = copy.deepcopy(model)
    del model
    inputs = batch([9, 7, 12], [3, 2, 4])
    fresh = adapt(llama())
    fresh(**inputs)
    copied(**inputs)
    expected = selections(fresh)
    assert all(torch.equal(s, expected[n]) for n, s in selections(copied).items())


def test_a_copy_outlives_the_forwards_of_the_original():
    model = adapt(llama())
    copied = copy.deepcopy(model)
    first, second = batch([9, 7, 12], [3, 2, 4]), batch([9, 7, 12], [6, 5, 9])
    with torch.no_grad():
        expected = model(**second).logits
        model(**first)
        assert torch.equal(copied(**second).logits, expected)


def test_only_the_layers_asked_for_are_adapted():
    model = adapt(llama(), layers_to_transform=[0, 2])
    assert {name.split(".layers.")[1][0] for name in layers(model)} == {"0", "2"}
    assert len(layers(model)) == 2 * len(PROJECTIONS)
    assert (logits(model) - logits(llama())).abs().max() > 0.1


def distance(model, other, autocast=False):
    """Of the logits of two models that draw the same factors, relative."""
    found = []
    for each, lower in ((model, autocast), (other, False)):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            found.append(logits(each).float())
    return ((found[0] - found[1]).norm() / found[1].norm()).item()


def test_autocast_to_bfloat16_stays_close_to_float32():
    model = adapt(llama(), routing="random")
    assert 1e-3 < distance(model, model, autocast=True) < 0.05
    model = adapt(llama())
    logits(model)
    (first, chosen), *_ = selections(model).items()
    exact = layers(model)[first].selection
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model, batch([9, 7, 12], [3, 2, 4])).backward()
    assert torch.equal(selections(model)[first], chosen)
    found = layers(model)[first].selection
    assert_close(found.scores_A, exact.scores_A, rtol=1e-5, atol=1e-6)
    assert_close(found.scores_B, exact.scores_B, rtol=1e-5, atol=1e-6)
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g.dtype == torch.float32 and g.isfinite().all() and g.any() for g in grads)


def test_a_bfloat16_base_has_float32_adapters_and_bfloat16_outputs():
    model = adapt(llama().bfloat16(), routing="random")
    assert {p.dtype for n, p in model.named_parameters() if "mixlora_" in n} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    assert 1e-3 < distance(model, adapt(llama(), routing="random")) < 0.08
    model = adapt(llama().bfloat16())
    loss_of(model, batch([9, 7, 12], [3, 2, 4])).backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == 21 * 5 and all(g.dtype == torch.float32 and g.isfinite().all() and g.any() for g in grads)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama().bfloat16()))


@pytest.mark.parametrize(
    "merge",
    [
        lambda model: model.merge_adapter(),
        lambda model: model.merge_and_unload(),
        lambda model: model.base_model.merge_and_unload(safe_merge=True),
        lambda model: model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mixed"),
        lambda model: next(iter(layers(model).values())).merge(),
    ],
    ids=["merge_adapter", "merge_and_unload", "safe_merge", "add_weighted_adapter", "layer"],
)
def test_merging_is_refused_and_changes_nothing(merge):
    model = two()
    before = logits(model)
    with pytest.raises(MergeError) as refused:
        merge(model)
    assert REFUSED in str(refused.value) and "unload()" in str(refused.value)
    assert torch.equal(logits(model), before)


def test_a_lora_cannot_be_added_to_the_same_model_unnoticed():
    model = adapt(llama())
    with pytest.raises((ValueError, TypeError)):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))
