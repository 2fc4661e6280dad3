"""Tiny models with MixLoRA adapters whose B factors and routers are far from their start."""

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from mixlora import MixLoraConfig
from tests.support.models import batch, llama

TARGETS = ["q_proj", "v_proj", "fc1", "up_proj", "down_proj"]


def mixture(model: nn.Module | None = None, preset: str = "paper", **options) -> PeftModel:
    """A model with a perturbed MixLoRA: r = 2 of 5 factors."""
    settings = {"r": 2, "num_factors": 5, "target_modules": TARGETS, **options}
    adapted = get_peft_model(model or llama(), getattr(MixLoraConfig, preset)(**settings))
    perturb(adapted)
    return adapted


def perturb(model: nn.Module, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mixlora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif "mixlora_router" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def batches(count: int = 3, seed: int = 0) -> dict[str, list]:
    """Padded batches of two tasks."""
    lengths, answers = [12, 7, 9, 11], [3, 1, 5, 4]
    return {task: [batch(lengths, answers, 20 * k + n + seed) for n in range(count)] for k, task in enumerate("ab")}
