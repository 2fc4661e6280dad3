"""Tiny models with MixLoRA adapters whose B factors are not zero and whose routers tell instances apart."""

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from mixlora import MixLoraConfig, MixLoraLayer
from tests.support.models import IMAGE_TOKEN, PROJECTIONS, batch, llama, llava, opt, qwen2

__all__ = ["IMAGE_TOKEN", "PROJECTIONS", "batch", "llama", "llava", "opt", "qwen2"]

torch.set_num_threads(1)  # more are slower on matrices this small
OPT_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


class Single(nn.Module):
    """A model that is one Linear, called as a language model is."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_in, d_out, bias=False)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None):
        return self.linear(inputs_embeds)


def single(config: MixLoraConfig, d_in: int, d_out: int, dtype: torch.dtype = torch.float64) -> PeftModel:
    """A `Single` adapted as `config` says, perturbed."""
    torch.manual_seed(0)
    config.target_modules = {"linear"}
    model = get_peft_model(Single(d_in, d_out).to(dtype), config)
    perturb(model)
    return model


def adapt(model: nn.Module, preset: str = "paper", seed: int = 1, **options: Any) -> PeftModel:
    """The model with an adapter of 2 of 6 factors in every projection of its text, perturbed."""
    options = {"r": 2, "num_factors": 6, "lora_alpha": 8.0, "target_modules": targets(model)} | options
    adapted = get_peft_model(model, getattr(MixLoraConfig, preset)(**options))
    perturb(adapted, seed)
    return adapted


def targets(model: nn.Module) -> list[str] | str:
    kind = model.config.model_type
    if kind == "llava":
        return r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    return OPT_PROJECTIONS if kind == "opt" else PROJECTIONS


def perturb(model: nn.Module, seed: int = 1, adapter: str | None = None) -> None:
    """Random B factors and routers, of one adapter or all: after training, neither is what it started as."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mixlora_" not in name or (adapter and f".{adapter}" not in name):
                continue
            if "mixlora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif "mixlora_router" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def layers(model: nn.Module) -> dict[str, MixLoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MixLoraLayer)}


def selections(model: nn.Module) -> dict[str, Tensor]:
    """What every adapted Linear chose last: [2, instances, r]."""
    return {name: torch.stack([layer.selection.A, layer.selection.B]) for name, layer in layers(model).items()}


def padded_left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with its padding on the other side."""
    shifts = inputs["attention_mask"].shape[1] - inputs["attention_mask"].sum(dim=1)
    rolled = {key: inputs[key].clone() for key in inputs}
    for key in ("input_ids", "attention_mask", "labels"):
        for row, shift in enumerate(shifts.tolist()):
            rolled[key][row] = inputs[key][row].roll(shift)
    return rolled


def row_of(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row alone, without its padding."""
    kept = inputs["attention_mask"][row].bool()
    return {
        key: value[row : row + 1] if key == "pixel_values" else value[row : row + 1, kept]
        for key, value in inputs.items()
    }


def loss_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the supervised tokens."""
    logits = model(**inputs).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of the trained parameters, which are forgotten."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
