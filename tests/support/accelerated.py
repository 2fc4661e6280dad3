"""What models on simulated accelerators give beside the CPU's; `python -m tests.support.accelerated` prints it.

JSON: "cases" holds {case: {"one" or "two": {quantity: largest difference, as a share of the CPU's largest value}}}, or
what went wrong in its place; "refused" what is said of tensors on two devices.
"""

import contextlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import dispatch_model
from numpy.typing import NDArray
from torch import Tensor, nn

import interference
from interference.factors.observer import observe
from interference.gradients.state import activate
from interference.gradients.targets import find_targets
from tests.support import models
from tests.support.accelerators import FAR, FARTHER, Accelerators, moved
from tests.support.adapted import adapt, gradients, loss_of, padded_left, selections

Found = dict[str, NDArray[Any]]


def spread(model: nn.Module) -> nn.Module:
    """The model with all but the first of its transformer blocks on the second accelerator, by accelerate's hooks."""
    inner = model.get_base_model()
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    places: dict[str, torch.device] = {}
    for name, module in inner.named_modules():
        if any(name.startswith(f"{known}.") for known in places):
            continue
        parts = name.split(".")
        block = parts[-1].isdigit() and isinstance(inner.get_submodule(name.rpartition(".")[0]), nn.ModuleList)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not block and not own and next(module.children(), None) is not None:
            continue
        late = (block and parts[-1] != "0") or (module is head and head.weight is not embeddings.weight)
        places[name] = FARTHER if late and "vision" not in name else FAR
    dispatch_model(inner, {name: str(place) for name, place in places.items()})
    assert len(set(inner.hf_device_map.values())) == 2
    return model


def text(seed: int = 2, image: bool = False) -> dict[str, Tensor]:
    """A padded batch."""
    return models.batch([7, 9, 8], [2, 3, 1], seed=seed, image=image)


def measured(model: nn.Module, image: bool = False, verified: bool = False, **options: Any) -> Found:
    """The Gram matrices, losses and selections of a run, which is compared with autograd if asked for."""
    batches = {task: [text(seed, image), text(seed + 1, image)] for task, seed in (("a", 2), ("b", 5))}
    run = interference.compute(model, batches, **options)
    found = {"gram": run.gram(), "loss": run.probes["loss"].to_numpy()}
    if options.get("weight_space"):
        found["weight"] = run.gram(space="weight")
    if run.selections is not None and len(run.selections):
        found["selections"] = np.concatenate([np.ravel(each) for each in run.selections.values()])
    if verified:
        checked = interference.verify(run, model, batches, units=1)
        assert checked.error < 1e-4 and checked.gram_error < 1e-4, (checked.error, checked.gram_error)
    return found


def trained(model: nn.Module, **inputs: Any) -> Found:
    """The loss of a training step, its gradients, and what was selected."""
    model.train()
    batch = {key: value.to(model.device) for key, value in text().items()} | inputs
    loss = loss_of(model, batch)
    loss.backward()
    chosen = {f"selection {name}": each for name, each in selections(model).items()}
    found = {"loss": loss.detach(), **gradients(model), **chosen}
    return {name: each.cpu().numpy() for name, each in found.items()}


def packed(model: nn.Module) -> Found:
    """A step on two sequences a row."""
    batch = models.batch([9, 9, 9], [2, 3, 1])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 3)
    given = {**{key: value for key, value in batch.items() if key != "attention_mask"}, "position_ids": positions}
    model.train()
    loss = loss_of(model, {key: value.to(model.device) for key, value in given.items()})
    loss.backward()
    return {name: each.cpu().numpy() for name, each in {"loss": loss.detach(), **gradients(model)}.items()}


def generated(model: nn.Module, image: bool = False, **options: Any) -> Found:
    """What is generated from padded prompts."""
    prompts = padded_left(text(image=image))
    batch = {key: value.to(model.device) for key, value in prompts.items() if key != "labels"}
    with torch.no_grad():
        out = model.eval().generate(**batch, **options, max_new_tokens=4, do_sample=False, pad_token_id=0)
    return {"tokens": out.cpu().numpy()}


def observed(model: nn.Module) -> Found:
    """What prompts select, or how strongly they drive each rank direction."""
    targets = find_targets(model, "default")
    activate(model, "default")
    batch = {key: value.to(model.device) for key, value in text().items() if key != "labels"}
    with torch.no_grad():
        found = observe(model.eval(), targets, batch)
    return {name: each.cpu().numpy() for name, each in found.items()}


def told(model: nn.Module) -> nn.Module:
    """A model that routes by task, its tasks encoded by random vectors."""
    generator = torch.Generator().manual_seed(0)
    bank = model.base_model.mixlora_tasks["default"]
    bank.put({task: torch.randn(bank.width, generator=generator) for task in "ab"})
    return model


def told_apart(model: nn.Module) -> nn.Module:
    """The same where its tasks are on the CPU, as of an adapter that is made or read on a base elsewhere."""
    bank = model.base_model.mixlora_tasks["default"]
    bank.embeddings = bank.embeddings.cpu()
    return model


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module], Found]]
TASKED = {"routing": "task", "task_definitions": {"a": "name it", "b": "count it"}}
CASES: dict[str, Case] = {
    "lora": (lambda: models.lora(models.llama()), measured),
    "eager attention": (lambda: models.lora(models.llama("eager")), measured),
    "dora": (lambda: models.lora(models.llama(), use_dora=True), measured),
    "tied embeddings": (lambda: models.lora(models.qwen2()), measured),
    "opt": (lambda: models.lora(models.opt(), ["q_proj", "v_proj", "fc1"]), measured),
    "gpt2": (lambda: models.lora(models.gpt2(), ["c_attn", "c_proj"], fan_in_fan_out=True), measured),
    "llava": (lambda: models.lora(models.llava()), lambda model: measured(model, image=True, verified=True)),
    "llava's image encoder": (
        lambda: models.lora(models.llava()),
        lambda model: measured(model, image=True, components=["language", "vision"]),
    ),
    "weight space": (
        lambda: models.lora(models.llama()),
        lambda model: measured(model, weight_space=True),
    ),
    "sketch": (
        lambda: models.lora(models.llama()),
        lambda model: measured(model, weight_space=True, sketch=16),
    ),
    "units of batches": (
        lambda: models.lora(models.llama()),
        lambda model: measured(model, unit="batch", token_mean=True),
    ),
    "mixlora": (lambda: adapt(models.llama()), lambda model: measured(model, verified=True)),
    "mixlora, official": (lambda: adapt(models.llama(), "official"), measured),
    "mixlora, random": (lambda: adapt(models.llama(), routing="random"), lambda model: seeded(lambda: measured(model))),
    "mixlora, llava": (lambda: adapt(models.llava()), lambda model: measured(model, image=True)),
    "routers": (lambda: adapt(models.llama()), lambda model: measured(model, routers=True)),
    "training": (lambda: adapt(models.llama()), trained),
    "training, official": (lambda: adapt(models.llama(), "official"), trained),
    "training by task": (
        lambda: told(adapt(models.llama(), **TASKED)),
        lambda model: trained(model, tasks=["a", "b", "a"]),
    ),
    "training by task, its tasks on the CPU": (
        lambda: told(adapt(models.llama(), **TASKED)),
        lambda model: trained(told_apart(model), tasks=["a", "b", "a"]),
    ),
    "training on packed rows": (lambda: adapt(models.llama()), packed),
    "generation": (lambda: adapt(models.llama()), generated),
    "generation by beams": (lambda: adapt(models.llama()), lambda model: generated(model, num_beams=2)),
    "generation by token": (lambda: adapt(models.llama(), "official"), generated),
    "generation of llava": (lambda: adapt(models.llava()), lambda model: generated(model, image=True)),
    "factors": (lambda: adapt(models.llama()), observed),
    "rank directions": (lambda: models.lora(models.llama()), observed),
}


def refused() -> list[str]:
    """What torch would say of tensors on two devices, and the simulation does, too."""
    said = []
    with Accelerators():
        for place, other in ((FAR, "cpu"), (FAR, FARTHER)):
            near, far = torch.ones(2, device=place), torch.ones(2, device=other)
            for work in (lambda a, b: a + b, lambda a, b: a @ b, lambda a, b: b[a.bool()], lambda a, b: a[b.bool()]):
                try:
                    work(near, far)
                except RuntimeError as error:
                    said.append(str(error))
    return said


def seeded(work: Callable[[], Found]) -> Found:
    """What it gives after a fixed seed."""
    torch.manual_seed(0)
    return work()


def differences(case: str) -> dict[str, dict[str, float] | str]:
    """How far what a case gives on one or two accelerators is from what it gives on the CPU; or where it fails."""
    build, look = CASES[case]
    expected = look(build())
    found: dict[str, dict[str, float] | str] = {}
    for place, put in (("one", moved), ("two", spread)):
        with Accelerators():
            try:
                given = look(put(build()))
            except Exception:
                found[place] = "".join(traceback.format_exc().splitlines(keepends=True)[-30:])
                continue
        found[place] = {name: _apart(given[name], values) for name, values in expected.items()}
        assert given.keys() == expected.keys()
    return found


def _apart(given: NDArray[Any], expected: NDArray[Any]) -> float:
    assert given.shape == expected.shape
    return float(np.abs(given - expected).max() / max(np.abs(expected).max(), 1e-9))


def main(cases: list[str]) -> None:
    """Print what the cases, or all of them, give."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        found = {case: differences(case) for case in cases or CASES}
    print(json.dumps({"cases": found, "refused": refused()}))


if __name__ == "__main__":
    main(sys.argv[1:])
