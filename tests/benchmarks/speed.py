"""Time of per-example gradients, by several ways, as a ratio to a plain forward and backward of the same model.

What is timed is the second of two calls in a row, as a job of many batches is one call after another: the first meets
whatever the heap holds from another way, and pays for the pages that the allocator gave back to the system.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor

from interference.gradients.losses import example_losses
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.verification import reference
from tests.benchmarks import work
from tests.benchmarks.table import Row, show

REPEATS = 5
Gradients = dict[str, Tensor]
Case = Callable[[], Gradients]

PROMISES = {"ours, all layers": "<= 0.75", "ours, layer 25": "<= 0.40", "ours, layers 5 and 25": "~ 0.60"}


def run(repeats: int = REPEATS) -> None:
    """Measure and print."""
    model, data = work.model(), work.batch()
    cases = ways(model, data)
    expected = cases["batch-1 autograd loop"]()
    ours = {name for name in cases if name.startswith("ours")}
    for group in (ours, cases.keys() - ours):  # ours first, in the memory that a process of theirs would have
        chosen = {name: case for name, case in cases.items() if name in group}
        errors = {name: error(case(), expected) for name, case in chosen.items()}  # warms up, too
        compare(model, data, chosen, errors, repeats)


def compare(
    model: PeftModel, data: dict[str, Tensor], cases: dict[str, Case], errors: dict[str, float], repeats: int
) -> None:
    """Time the cases in turn with a plain step, and print their ratios to it."""
    plain: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        plain.append(seconds(lambda: step(model, data)))
        for name, case in cases.items():
            ratios[name].append(seconds(case) / plain[-1])
    threads = f"{torch.get_num_threads()} threads, {repeats} repeats"
    spread = f"{min(plain):.2f} - {max(plain):.2f}"
    show(Row("speed", "plain forward + backward", f"{statistics.median(plain):.2f} s", spread, "", threads))
    for name, found in ratios.items():
        spread = f"{min(found):.2f} - {max(found):.2f}"
        note = f"differs from batch-1 autograd by {errors[name]:.1e}"
        show(Row("speed", name, f"{statistics.median(found):.2f} x", spread, PROMISES.get(name, ""), note))


def step(model: PeftModel, data: dict[str, Tensor]) -> None:
    """The plain step that the ratios refer to."""
    work.plain(model, data)
    model.zero_grad(set_to_none=True)


def ways(model: PeftModel, data: dict[str, Tensor]) -> dict[str, Case]:
    """Ways to the per-example gradients of A and B."""
    every = find_targets(model, "default")

    def ours(layers: list[int] | None) -> Case:
        targets = find_targets(model, "default", layers)

        def case() -> Gradients:
            with Probe(model, targets) as probe:
                return probe.gradients(data).gradients

        return case

    def functional() -> Gradients:
        model.get_base_model().set_attn_implementation("eager")
        try:
            return reference.gradients_functional(model, data, every)
        finally:
            model.get_base_model().set_attn_implementation("sdpa")

    return {
        "batch-1 autograd loop": lambda: reference.of_targets(model, data, every),
        "torch.func vmap(grad)": functional,
        "opacus GradSampleModule": opacus(model, data),
        "ours, all layers": ours(None),
        "ours, layers 5 and 25": ours([5, 25]),
        "ours, layer 25": ours([25]),
    }


def opacus(model: PeftModel, data: dict[str, Tensor]) -> Case:
    """Opacus' hooks on a copy of the model, in which only the factors require a gradient."""
    from opacus.grad_sample import GradSampleModule

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = GradSampleModule(copy.deepcopy(model), batch_first=True, loss_reduction="sum", strict=False).train()
    targets = find_targets(wrapped._module, "default")
    weights = {tap.block.name: tap.weight for target in targets for tap in target.taps.values()}

    def case() -> Gradients:
        losses, _ = example_losses(wrapped, data, whole_logits=True)
        losses.sum().backward()
        found = {name: weight.grad_sample for name, weight in weights.items()}
        wrapped.zero_grad(set_to_none=True)
        for weight in weights.values():
            weight.grad_sample = None
        return found

    return case


def error(found: Gradients, expected: Gradients) -> float:
    """The largest relative difference of a block."""
    return max(float((found[k] - expected[k]).norm() / expected[k].norm()) for k in found)


def seconds(case: Callable[[], object]) -> float:
    """Seconds on the wall of the second of two calls."""
    case()
    start = time.perf_counter()
    case()
    return time.perf_counter() - start
