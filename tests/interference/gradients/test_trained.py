"""What an adapter trains and a measurement leaves out: everything that trains, minus what is measured."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

import interference
from interference.gradients.targets import find_targets
from interference.gradients.trained import unprobed
from tests.support.adapted import adapt
from tests.support.models import SHAPE, batch, gpt2, llama, llava, lora, opt


def said(model, **scope):
    return unprobed(model, "default", find_targets(model, "default", **scope))


def test_of_a_plain_adapter_nothing_is_left_out():
    assert said(lora(llama(), ["q_proj"])) == []
    assert said(lora(llama(), ["q_proj", "v_proj"]), layers=[0, 2]) == []


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda: lora(llama(), ["q_proj", "embed_tokens"], modules_to_save=["norm", "lm_head"]),
            ["LoRA on embeddings", "modules_to_save: input_layernorm, lm_head, norm, post_attention_layernorm"],
        ),
        (lambda: lora(llama(), ["q_proj"], use_dora=True), ["DoRA magnitudes"]),
        (lambda: lora(llama(), ["q_proj"], lora_bias=True), ["biases of lora_B"]),
        (lambda: lora(opt(), ["q_proj"], bias="lora_only"), ["biases of adapted modules"]),
        (lambda: lora(opt(), ["q_proj"], bias="all"), ["biases of the base"]),
        (lambda: lora(gpt2(), ["c_attn"], fan_in_fan_out=True, bias="all"), ["biases of the base"]),
        (lambda: lora(llama(), ["q_proj"], trainable_token_indices=[3, 5]), ["trainable tokens of embed_tokens"]),
        (lambda: lora(llava(), r".*(language_model.*q_proj|fc1|linear_1)"), ["LoRA on fc1, linear_1"]),
        (lambda: adapt(llama(), target_modules=["q_proj"]), ["routers of MixLoRA"]),
        (lambda: adapt(llama(), "official", target_modules=["q_proj"]), []),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "loaded"])
def test_what_is_left_out_is_said(build, expected, training):
    model = build()
    if not training:  # as PeftModel.from_pretrained leaves it
        model.requires_grad_(False)
    assert said(model) == expected


def test_modules_outside_the_scope_are_said():
    model = lora(llama(), ["q_proj", "down_proj", "lm_head"])
    assert said(model, modules=["attention"]) == ["LoRA on down_proj, lm_head"]
    assert said(model, layers=[1]) == ["LoRA on lm_head"]


def test_experts_outside_the_scope_are_said():
    torch.manual_seed(0)
    base = MixtralForCausalLM(
        MixtralConfig(
            **{**SHAPE, "num_hidden_layers": 1}, intermediate_size=48, num_key_value_heads=2, num_local_experts=2
        )
    )
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    model = get_peft_model(base, config)
    assert said(model, modules=["q_proj"]) == ["LoRA on the parameters gate_up_proj"]


def test_unfrozen_parameters_of_the_base_are_said_and_those_of_another_adapter_are_not():
    model = lora(llama(), ["q_proj"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["norm"]))
    model.base_model.set_adapter(["default", "other"])
    assert said(model) == []
    model.get_base_model().lm_head.weight.requires_grad_(True)
    assert said(model) == ["parameters of the base: lm_head.weight"]


def test_routers_that_are_measured_are_not_left_out():
    model = adapt(llama(), target_modules=["q_proj"])
    assert said(model, routers=True) == said(model, routers=True, layers=[0]) == []


def test_many_names_are_counted():
    model = lora(llama(), ["q_proj"])
    model.get_base_model().requires_grad_(True)
    (told,) = said(model)
    assert told.startswith("parameters of the base: lm_head.weight, ") and told.endswith(" more")
    assert told.count(",") == 8 and "base_layer" not in told


def test_a_run_names_them():
    model = lora(opt(), ["q_proj"], bias="lora_only")
    batches = {task: [batch([9, 7], [3, 2], seed=seed)] for task, seed in (("a", 2), ("b", 3))}
    assert interference.compute(model, batches).meta["not_probed"] == ["biases of adapted modules"]
