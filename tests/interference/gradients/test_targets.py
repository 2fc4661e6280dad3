"""Which modules of real models are probed, where they lie, and which adapters cannot be."""

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

import interference
from interference.blocks import Side
from interference.errors import CheckpointError
from interference.gradients.targets import find_targets, probed_adapter
from interference.verification import reference
from tests.support.models import batch, gpt2, llama, llava, lora, opt


def names(model, **scope):
    return [target.taps[Side.A].block.name for target in find_targets(model, "default", **scope)]


def test_the_language_model_of_llava_is_found_under_its_vision():
    model = lora(llava(), r".*(q_proj|linear_1|fc1|lm_head)")
    assert names(model) == [f"language.{k}.q_proj.A" for k in range(3)] + ["language.lm_head.A"]
    assert names(model, components=["vision"])[:2] == ["vision.0.q_proj.A", "vision.0.fc1.A"]
    assert names(model, components=["projector"]) == ["projector.linear_1.A"]


@pytest.mark.parametrize(
    ("model", "modules", "groups"),
    [
        (lambda: lora(opt(), ["q_proj", "fc1"]), ["q_proj", "fc1"], ["attention", "mlp"]),
        (
            lambda: lora(gpt2(), ["c_attn", "c_proj"], fan_in_fan_out=True),
            ["c_attn", "attn.c_proj", "mlp.c_proj"],
            ["attention", "mlp"],
        ),
    ],
)
def test_groups_and_names_in_other_architectures(model, modules, groups):
    found = find_targets(model(), "default")
    blocks = [target.taps[Side.A].block for target in found]
    assert sorted({block.group for block in blocks}) == groups
    assert len({block.name for block in blocks}) == len(blocks) == 3 * len(modules)


def test_modules_of_one_name_in_one_layer_are_told_apart():
    found = names(lora(gpt2(), ["c_proj"], fan_in_fan_out=True), layers=[1])
    assert found == ["language.1.c_proj.A", "language.1.mlp.c_proj.A"]


def test_sizes_and_factors():
    target = find_targets(lora(llama()), "default", [0], ["k_proj"])[0]
    assert target.path.endswith("layers.0.self_attn.k_proj")
    assert (target.taps[Side.A].block.size, target.taps[Side.B].block.size) == (4 * 32, 16 * 4)
    assert tuple(target.taps[Side.B].weight.shape) == (16, 4)


def test_a_rank_pattern_is_followed():
    found = find_targets(lora(llama(), ["q_proj", "v_proj"], rank_pattern={"v_proj": 2}), "default", [0])
    assert [target.taps[Side.A].block.size for target in found] == [128, 64]


def test_the_probed_adapter():
    model = lora(llama(), ["q_proj"])
    assert probed_adapter(model, None) == "default"
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    assert probed_adapter(model, None) == "default" and probed_adapter(model, "other") == "other"
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(CheckpointError, match=r"^2 adapters are active \(default, other\); name the one to probe: ada"):
        probed_adapter(model, None)
    with pytest.raises(CheckpointError, match=r"^adapter 'third' is not loaded; loaded are: default, other$"):
        probed_adapter(model, "third")
    assert [t.taps[Side.A].block.module for t in find_targets(model, "other")] == ["v_proj"] * 3


@pytest.mark.parametrize("model", [llama, lambda: nn.Linear(2, 2)])
def test_a_model_without_lora_is_refused(model):
    with pytest.raises(
        CheckpointError, match=r"the model has no LoRA or MixLoRA adapter; load one with peft.PeftModel.from_pret"
    ):
        probed_adapter(model(), None)


def merged(model):
    model.merge_adapter()
    return model


def switched_off(model):
    model.base_model.disable_adapter_layers()
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: merged(lora(llama())), "adapters are merged into the base weights; call unmerge_adapter.. first"),
        (lambda: switched_off(lora(llama())), "q_proj: adapters are switched off; call enable_adapters.. first"),
        (
            lambda: lora(llama(), ["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6]),
            "LoRA variant ALoraLinearVariant is not supported; supported are LoRA, rsLoRA and DoRA",
        ),
        (
            lambda: get_peft_model(llama(), LoraConfig(target_modules=["embed_tokens"])),
            "adapter 'default' adapts no Linear module; only adapters of Linear layers are probed",
        ),
    ],
)
def test_adapters_that_cannot_be_probed(build, message):
    with pytest.raises(CheckpointError, match=message):
        find_targets(build(), "default")


def bart():
    config = BartConfig(vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
                        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48)  # fmt: skip
    return lora(BartForConditionalGeneration(config), ["q_proj"])


def t5():
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
    return lora(T5ForConditionalGeneration(config), ["q"])


@pytest.mark.parametrize(("build", "name"), [(bart, "Bart"), (t5, "T5")])
def test_encoder_decoders_are_refused(build, name):
    model, batches = build(), {"a": [batch([9, 7], [3, 2])], "b": [batch([9, 7], [3, 2], seed=3)]}
    said = rf"^{name}ForConditionalGeneration has an encoder and a decoder, whose labels are not shifted .*; only decod"
    with pytest.raises(CheckpointError, match=said):
        interference.compute(model, batches)
    with pytest.raises(CheckpointError, match=said):
        reference.gradients(model, batches["a"][0])
