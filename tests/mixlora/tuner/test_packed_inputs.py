"""Inputs whose instances are packed, or that have more than three axes: routed one by one, or refused."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from mixlora import MixLoraConfig
from mixlora.common.errors import RoutingError
from tests.support.adapted import IMAGE_TOKEN, adapt, batch, row_of, selections
from tests.support.models import SHAPE

TEXT = {**SHAPE, "num_hidden_layers": 2, "intermediate_size": 48, "num_key_value_heads": 2}
PIXTRAL = PixtralVisionConfig(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)
PACKED = r"packs the pictures of 2 instances into one sequence, so all would get one routing; leave it out of target"


def pixtral():
    """LLaVA with Pixtral's tower; each picture of 16 x 16 pixels is four patches."""
    text = MistralConfig(**TEXT, head_dim=8)
    config = LlavaConfig(
        vision_config=PIXTRAL, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def mistral3():
    text = MistralConfig(**TEXT, head_dim=8)
    config = Mistral3Config(
        vision_config=PIXTRAL, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1,
        spatial_merge_size=1,
    )  # fmt: skip
    return Mistral3ForConditionalGeneration(config)


def qwen():
    vision = {"depth": 1, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 8, "fullatt_block_indexes": [0], "window_size": 32, "spatial_merge_size": 1}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    ids = {"image_token_id": IMAGE_TOKEN, "video_token_id": 0, "vision_start_token_id": 1, "vision_end_token_id": 2}
    config = Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **ids)
    return Qwen2_5_VLForConditionalGeneration(config)


def pictured(kind, size=2):
    """A batch with one picture a row, as the model of a kind takes it."""
    inputs = batch([9, 12][:size], [3, 4][:size], image=True)
    if kind is qwen:
        inputs["pixel_values"] = inputs["pixel_values"].new_ones(4 * size, 3 * 2 * 8 * 8).cumsum(0) / 9
        inputs["image_grid_thw"] = torch.tensor([[1, 2, 2]] * size)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).int()
    elif kind in (pixtral, mistral3):
        inputs["image_sizes"] = torch.tensor([[16, 16]] * size)
    return inputs


def adapted(kind, modules):
    torch.manual_seed(0)
    return adapt(kind(), target_modules=modules).eval()


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        (pixtral, r".*vision_tower.*\.q_proj"),
        (mistral3, r".*vision_tower.*\.gate_proj"),
        (mistral3, r".*multi_modal_projector\.linear_1"),
        (qwen, r".*visual.*\.qkv"),
        (qwen, r".*visual\.merger\.mlp\.0"),
    ],
)
@torch.no_grad()
def test_pictures_of_several_instances_in_one_sequence_are_refused(kind, modules):
    model = adapted(kind, modules)
    with pytest.raises(RoutingError, match=PACKED):
        model(**pictured(kind))
    model(**pictured(kind, size=1))  # alone, an instance has its own routing
    assert all(chosen.shape == (2, 1, 2) for chosen in selections(model).values())


@pytest.mark.parametrize("kind", [pixtral, mistral3, qwen])
@torch.no_grad()
def test_the_text_of_such_models_is_routed_row_by_row(kind):
    model = adapted(kind, r".*language_model.*\.(q_proj|down_proj)")
    model(**pictured(kind))
    assert all(chosen.shape == (2, 2, 2) for chosen in selections(model).values())


@torch.no_grad()
def test_an_input_with_an_axis_of_one_in_the_middle_is_routed_by_instance():
    config = DeepseekV2Config(
        **{**TEXT, "num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=8,
        qk_rope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=2, n_routed_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    model = adapted(lambda: DeepseekV2ForCausalLM(config), ["kv_b_proj"])
    inputs = batch([9, 7, 12], [3, 2, 4])
    together = model(**inputs).logits
    chosen = selections(model)
    assert all(selection.shape == (2, 3, 2) for selection in chosen.values())
    for row in range(3):
        alone = model(**row_of(inputs, row)).logits[0]
        assert_close(together[row][inputs["attention_mask"][row].bool()], alone, rtol=1e-4, atol=1e-4)
        for name, selection in selections(model).items():
            assert torch.equal(selection[:, 0], chosen[name][:, row])


class Windows(torch.nn.Module):
    """A model that calls its Linear with windows of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, inputs_embeds):
        return self.linear(inputs_embeds.view(2, 2, 3, 8)).view(2, 6, 8)


@torch.no_grad()
def test_other_inputs_of_four_axes_are_refused():
    model = get_peft_model(Windows(), MixLoraConfig(r=2, num_factors=4, target_modules=["linear"]))
    said = r"^linear is called with an input of shape \(2, 2, 3, 8\), in which MixLoRA cannot tell the instances apart"
    with pytest.raises(RoutingError, match=said):
        model(inputs_embeds=torch.randn(2, 6, 8))
