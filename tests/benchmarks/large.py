"""Per-example gradients of a model shaped as LLaVA-7B's language model, with random weights and a float32 LoRA r = 4.

On a GPU: all 32 layers in bfloat16, examples as long as LLaVA's with an image of 576 tokens. On a CPU: 2 layers in
float32 and short examples, so that a case takes seconds. `whole`: all 32 layers and two short examples; on a CPU, once.
"""

import copy
import statistics
import time
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.verification import reference
from tests.benchmarks.speed import Case, Gradients, error, step
from tests.benchmarks.table import Row, show
from tests.support.models import lora

SHAPE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
SUPERVISED = 16
PLAIN, LOOP = "plain forward + backward", "batch-1 autograd loop"


@dataclass(frozen=True)
class Size:
    """How much of the work a device is given: layers of the model, tokens of the batch, rounds of the timing."""

    layers: int
    dtype: torch.dtype
    batch: int
    seq: int
    rounds: int

    @property
    def deep(self) -> int:
        """The layer at the depth of layer 25 of 32."""
        return self.layers * 25 // 32


SIZES = {"cuda": Size(32, torch.bfloat16, 8, 640, 5), "cpu": Size(2, torch.float32, 4, 256, 3)}
WHOLE = {"cuda": Size(32, torch.bfloat16, 2, 128, 5), "cpu": Size(32, torch.bfloat16, 2, 128, 1)}


@dataclass(frozen=True)
class Spent:
    """What a case took: seconds on the wall and, on a CPU, of the processor, which other work there changes little.

    On a GPU also the bytes of its peak above what was allocated before.
    """

    seconds: float
    processor: float = 0.0
    memory: int = 0


def whole(device: str = "", dtype: torch.dtype | None = None) -> None:
    """Measure and print all 32 layers and two short examples, for which 20 GiB of memory are needed."""
    _compared(WHOLE, device, dtype, ("compile", "vmap"))


def run(device: str = "", dtype: torch.dtype | None = None) -> None:
    """Measure and print.

    Args:
        device: "cuda" or "cpu"; "" for a GPU where there is one.
        dtype: of the base; None for the usual one of the device.
    """
    _compared(SIZES, device, dtype)


def _compared(sizes: dict[str, Size], device: str, dtype: torch.dtype | None, without: tuple[str, ...] = ()) -> None:
    """Measure and print the cases but for those with one of the words `without` in their names."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = replace(sizes[device], dtype=dtype or sizes[device].dtype)
    model, data = built(size, device), batch(size, device)
    cases = {PLAIN: lambda: step(model, data)} | ways(model, data, size.deep)
    cases = {name: case for name, case in cases.items() if not any(word in name for word in without)}
    errors, failed = _warmed(cases)
    spent: dict[str, list[Spent]] = {name: [] for name in cases if name not in failed}
    for _ in range(size.rounds):
        for name, found in spent.items():
            found.append(measure(cases[name], device))
    plain = spent[PLAIN]
    work = f"{_machine(device)}: {size.layers} layers, {size.dtype}, {size.batch} x {size.seq} tokens"
    middle, spread = _spread([each.seconds for each in plain])
    note = _joined(work, _of_processor([each.processor for each in plain], " s"), _peak(plain))
    show(Row("large", PLAIN, f"{middle} s", spread, "", note))
    for name in list(cases)[1:]:
        show(_row(name, spent.get(name), plain, errors.get(name)))


def built(size: Size, device: str) -> PeftModel:
    """The model on its device, with a LoRA on its seven projections whose B is not zero."""
    config = LlamaConfig(**SHAPE, num_hidden_layers=size.layers)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=size.dtype)
    base.to_empty(device=device)
    base.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    _fill(base, device)
    torch.manual_seed(0)
    return lora(base)


def _fill(base: nn.Module, device: str) -> None:
    """Random weights, drawn once and repeated: so many new ones would take a CPU longer than what is measured."""
    drawn = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)
            for piece in parameter.view(-1).split(len(drawn)) if parameter.dim() > 1 else ():
                piece.copy_(drawn[: len(piece)])


def batch(size: Size, device: str) -> dict[str, Tensor]:
    """A batch of random tokens, the last of which are supervised."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, SHAPE["vocab_size"], (size.batch, size.seq), generator=generator).to(device)
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def ways(model: PeftModel, data: dict[str, Tensor], deep: int) -> dict[str, Case]:
    """Ways to the per-example gradients of A and B; the loop, which the others are compared with, first."""
    every = find_targets(model, "default")

    compiled = layers_compiled(model)

    def ours(layers: list[int] | None, probed: PeftModel = model) -> Gradients:
        with Probe(probed, find_targets(probed, "default", layers)) as probe:
            return probe.gradients(data).gradients

    def functional() -> Gradients:
        model.get_base_model().set_attn_implementation("eager")
        try:
            return reference.gradients_functional(model, data, every)
        finally:
            model.get_base_model().set_attn_implementation("sdpa")

    return {
        LOOP: lambda: reference.of_targets(model, data, every),
        "torch.func vmap(grad)": functional,
        "ours, all layers": lambda: ours(None),
        "ours, all layers, torch.compile": lambda: ours(None, compiled),
        f"ours, layer {deep}": lambda: ours([deep]),
    }


def layers_compiled(model: PeftModel) -> PeftModel:
    """A copy on the same parameters, each of whose transformer blocks torch.compile compiles."""
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for layer in copied.get_base_model().model.layers:
        layer.compile()
    return copied


def measure(case: Case, device: str) -> Spent:
    """Run a case twice, and measure the second call, as in `speed`."""
    case()
    if device == "cpu":
        start, processor = time.perf_counter(), time.process_time()
        case()
        return Spent(time.perf_counter() - start, time.process_time() - processor)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    case()
    torch.cuda.synchronize()
    return Spent(time.perf_counter() - start, memory=torch.cuda.max_memory_allocated() - before)


def _warmed(cases: dict[str, Case]) -> tuple[dict[str, float], set[str]]:
    """Run every case once: its difference from the loop's gradients, and which did not fit into memory."""
    errors: dict[str, float] = {}
    failed: set[str] = set()
    cases[PLAIN]()
    expected = cases[LOOP]()
    for name in list(cases)[2:]:
        try:
            errors[name] = error(cases[name](), expected)
        except torch.OutOfMemoryError:
            failed.add(name)
            torch.cuda.empty_cache()
    return errors, failed


def _row(name: str, spent: list[Spent] | None, plain: list[Spent], off: float | None) -> Row:
    if spent is None:
        return Row("large", name, "no memory", note="more than the GPU has")
    pairs = list(zip(spent, plain, strict=True))
    middle, spread = _spread([each.seconds / beside.seconds for each, beside in pairs])
    shares = [each.processor / beside.processor for each, beside in pairs if beside.processor]
    said = "" if off is None else f"differs from the loop by {off:.1e}"
    return Row("large", name, f"{middle} x", spread, note=_joined(said, _of_processor(shares, " x"), _peak(spent)))


def _spread(found: list[float]) -> tuple[str, str]:
    """The median, and from the smallest to the largest."""
    return f"{statistics.median(found):.2f}", f"{min(found):.2f} - {max(found):.2f}"


def _of_processor(found: list[float], unit: str) -> str:
    if not any(found):
        return ""
    middle, spread = _spread(found)
    return f"of the processor {middle}{unit} ({spread})"


def _peak(spent: list[Spent]) -> str:
    highest = max(each.memory for each in spent)
    return f"peak {highest / 2**30:.1f} GiB above the model" if highest else ""


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
