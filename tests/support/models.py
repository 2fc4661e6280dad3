"""Tiny models of real classes, with adapters whose B is not zero, and padded batches of random tokens."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 64
IMAGE_TOKEN = 63
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


def llama(attention: str = "sdpa", **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2, **changes})
    config._attn_implementation = attention
    return LlamaForCausalLM(config)


def qwen2() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True))


def opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            **{k: v for k, v in SHAPE.items() if k != "initializer_range"},
            init_std=0.2,
            ffn_dim=48,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2)
    )


def llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config)


def lora(model: nn.Module, targets: list[str] | str | None = None, **changes: Any) -> PeftModel:
    """The model with a LoRA whose B is random: at B = 0 every gradient of A is zero."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets or PROJECTIONS, **changes)
    adapted = get_peft_model(model, config)
    perturb(adapted)
    return adapted


def perturb(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def batch(lengths: list[int], answers: list[int], seed: int = 2, image: bool = False) -> dict[str, Tensor]:
    """A right-padded batch: row n has `lengths[n]` tokens, the last `answers[n]` of which are supervised."""
    generator = torch.Generator().manual_seed(seed)
    size, seq = len(lengths), max(lengths)
    ids = torch.randint(3, IMAGE_TOKEN, (size, seq), generator=generator)
    mask, labels = torch.zeros(size, seq, dtype=torch.long), torch.full((size, seq), -100)
    for row, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        mask[row, :length] = 1
        labels[row, length - answer : length] = ids[row, length - answer : length]
        ids[row, length:] = 0
    made = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if image:
        ids[:, 1:5] = IMAGE_TOKEN
        made["pixel_values"] = torch.randn(size, 3, 16, 16, generator=generator)
    return made
