"""How far results are from reference values: the golden file's, and batch-1 autograd's."""

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from safetensors.numpy import load_file
from torch import Tensor, nn

from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.statistics import metrics
from interference.verification import reference
from mixlora import MixLoraConfig
from tests.benchmarks.speed import error
from tests.benchmarks.table import Row, show
from tests.support.models import PROJECTIONS, batch, gpt2, llama, llava, lora, opt
from tests.support.paths import GOLDEN

MATRICES = GOLDEN / "interference_matrix.safetensors"
CASES = {
    "llama": lambda: lora(llama()),
    "llama, eager attention": lambda: lora(llama("eager")),
    "llama, DoRA": lambda: lora(llama(), use_dora=True),
    "opt": lambda: lora(opt(), ["q_proj", "v_proj", "fc1", "fc2"]),
    "gpt2, Conv1D": lambda: lora(gpt2(), ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "llava": lambda: lora(llava()),
    "llama, MixLoRA": lambda: mixture(llama(), PROJECTIONS),
    "llava, MixLoRA": lambda: mixture(llava(), r".*language_model.*(q_proj|up_proj|down_proj)"),
}


def run() -> None:
    """Measure and print."""
    golden = load_file(MATRICES)
    gradients = np.concatenate([golden[f"gradients.{task}"] for task in range(3)]).astype(np.float64)
    tasks = np.repeat(["0", "1", "2"], 20).tolist()
    gram = gradients @ gradients.T
    found = metrics.interference(gram, tasks, pairs="uni-perceiver", reduce="mean-of-ratios")
    off = float(np.max(np.abs(found / golden["interference_uni_perceiver"] - 1)))
    show(Row("right", "interference matrix, golden file", f"{off:.1e}", "", "<= 1e-6"))
    for name, build in CASES.items():
        torch.manual_seed(0)
        data = batch([12, 7, 9, 12], [3, 1, 5, 11], image=name == "llava")
        show(Row("right", f"gradients, {name}", f"{_error(build(), data):.1e}", "", "<= 1e-5"))
        if "MixLoRA" in name:
            note = "a router's gradient is a difference of nearly equal terms"
            show(Row("right", f"gradients, {name}, routers too", f"{_error(build(), data, True):.1e}", "", "", note))


def mixture(base: nn.Module, targets: list[str] | str) -> PeftModel:
    """A MixLoRA, r = 2 of 5 factors, whose B factors and routers are far from their start."""
    model = get_peft_model(base, MixLoraConfig.paper(r=2, num_factors=5, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mixlora_B" in name or "mixlora_router" in name:
                parameter.normal_(std=0.2 if "mixlora_B" in name else 1.0)
    return model


def _error(model: PeftModel, data: dict[str, Tensor], routers: bool = False) -> float:
    targets = find_targets(model, "default", routers=routers)
    with Probe(model, targets) as probe:
        found = probe.gradients(data).gradients
    return error(found, reference.of_targets(model, data, targets))
