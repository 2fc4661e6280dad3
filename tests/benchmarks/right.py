"""How far results are from reference values: the golden file's, and batch-1 autograd's."""

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from torch import Tensor

from interference import metrics, reference
from interference.gradients import Probe
from interference.targets import find_targets
from tests.benchmarks.speed import error
from tests.benchmarks.table import Row, show
from tests.interference.models import batch, gpt2, llama, llava, lora, opt

GOLDEN = Path(__file__).parents[1] / "golden" / "interference_matrix.safetensors"
CASES = {
    "llama": lambda: lora(llama()),
    "llama, eager attention": lambda: lora(llama("eager")),
    "llama, DoRA": lambda: lora(llama(), use_dora=True),
    "opt": lambda: lora(opt(), ["q_proj", "v_proj", "fc1", "fc2"]),
    "gpt2, Conv1D": lambda: lora(gpt2(), ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "llava": lambda: lora(llava()),
}


def run() -> None:
    """Measure and print."""
    golden = load_file(GOLDEN)
    gradients = np.concatenate([golden[f"gradients.{task}"] for task in range(3)]).astype(np.float64)
    tasks = np.repeat(["0", "1", "2"], 20).tolist()
    found = metrics.interference(gradients @ gradients.T, tasks, pairs="uni-perceiver")
    off = float(np.max(np.abs(found / golden["interference_uni_perceiver"] - 1)))
    show(Row("right", "interference matrix, golden file", f"{off:.1e}", "", "<= 1e-6"))
    for name, build in CASES.items():
        torch.manual_seed(0)
        data = batch([12, 7, 9, 12], [3, 1, 5, 11], image=name == "llava")
        show(Row("right", f"gradients, {name}", f"{_error(build(), data):.1e}", "", "<= 1e-5"))


def _error(model: PeftModel, data: dict[str, Tensor]) -> float:
    targets = find_targets(model, "default")
    with Probe(model, targets) as probe:
        found = probe.gradients(data).gradients
    return error(found, reference.of_targets(model, data, targets))
