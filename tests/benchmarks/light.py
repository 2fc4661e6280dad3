"""What MixLoRA costs beside LoRA of the same rank, and beside the form that builds every instance's delta weight.

One adapted Linear of d x d, forward and backward of a batch, E = 16 factors of which r = 4 are used. Peak memory is
measured in a process of its own for every case.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from mixlora import MixLoraConfig, MixLoraLayer
from tests.benchmarks.resident import forget_peak, peak
from tests.benchmarks.table import Row, show

WIDTHS = (576, 1024, 4096)
BATCH, SEQ, RANK, FACTORS = 8, 128, 4, 16
REPEATS = 15
CASES = ("plain Linear", "LoRA", "MixLoRA, paper", "MixLoRA, official", "MixLoRA, dense delta")
PROMISES = {"MixLoRA, paper": "<= 1.10", "MixLoRA, official": "<= 1.10"}


class One(nn.Module):
    """A model of one Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.linear(inputs_embeds)


def run() -> None:
    """Measure and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for width in (*WIDTHS, 11008) if device == "cuda" else WIDTHS:
        steps = {name: step_of(name, width, device) for name in CASES}
        ratios = _ratios(steps, device)
        peaks = {name: _peak_of(name, width) for name in CASES} if device == "cpu" else {}
        for name in CASES:
            if name == "LoRA":
                continue
            found = ratios[name]
            note = (
                f"peak memory {peaks[name] / peaks['LoRA']:.2f} of LoRA's {peaks['LoRA'] / 2**20:.0f} MiB"
                if peaks
                else ""
            )
            spread = f"{min(found):.2f} - {max(found):.2f}"
            promise = PROMISES.get(name, "")
            show(Row("light", f"d = {width}: {name}", f"{statistics.median(found):.2f} x", spread, promise, note))


def step_of(name: str, width: int, device: str) -> Callable[[], None]:
    """A forward and backward of the adapted Linear, as a training step would run it."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = adapted(name, One(width)).to(device, dtype)
    x = torch.randn(BATCH, SEQ, width, device=device, dtype=dtype, requires_grad=True)
    mask = torch.ones(BATCH, SEQ, dtype=torch.long, device=device)
    mask[::2, -SEQ // 4 :] = 0
    direction = torch.randn_like(x)

    def step() -> None:
        model(inputs_embeds=x, attention_mask=mask).backward(direction)
        model.zero_grad(set_to_none=True)
        x.grad = None

    return step


def adapted(name: str, base: nn.Module) -> nn.Module:
    """The model of a case."""
    if name == "plain Linear":
        return base.requires_grad_(False)
    if name == "LoRA":
        return get_peft_model(base, LoraConfig(r=RANK, target_modules=["linear"]))
    preset = MixLoraConfig.official if name.endswith("official") else MixLoraConfig.paper
    model = get_peft_model(base, preset(r=RANK, num_factors=FACTORS, target_modules=["linear"]))
    return Dense(model) if name.endswith("dense delta") else model


class Dense(nn.Module):
    """The same method with every instance's delta weight [d_in, d_out] built, as in the released code."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        layer = self.model.base_model.model.linear
        assert isinstance(layer, MixLoraLayer)
        layer.tracker._enter(self.model, (), {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask})
        selection, a, weights = layer._route(inputs_embeds, layer.tracker.context, True, "default")
        b = layer.gather_B(layer.mixlora_B["default"], selection.B)
        delta = torch.einsum("nr,nri,nro->nio", weights.to(a.dtype), a, b)
        return layer.base_layer(inputs_embeds) + torch.bmm(inputs_embeds, delta)


def _ratios(steps: dict[str, Callable[[], None]], device: str) -> dict[str, list[float]]:
    for step in steps.values():
        step()
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            spent[name].append(_seconds(step, device))
    return {name: [t / lora for t, lora in zip(found, spent["LoRA"], strict=True)] for name, found in spent.items()}


def _seconds(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_of(name: str, width: int) -> int:
    """Bytes above the built model that a few steps take at their peak."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.light", name, str(width)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(output.splitlines()[-1]))


def _peak(name: str, width: int) -> int:
    step = step_of(name, width, "cpu")
    forget_peak()
    before = peak()
    for _ in range(3):
        step()
    return peak() - before


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1], int(sys.argv[2]))))
