"""Observer: what each example selects, from forwards of a model over the prompts.

Not here: what the selections say of tasks (`selections`, `neighbours`, `affinity`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor, nn

from interference.blocks import Component, to_frame
from interference.config import AnalysisConfig, whole_seed
from interference.errors import MeasurementError, RunError, ScopeError
from interference.factors.factors import Factors, check_free, load
from interference.factors.selections import Selections, check_tasks
from interference.gradients.losses import can_skip_logits
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Target
from interference.measurement import checkpoint, sample
from interference.measurement.resume import clear, day_of, refuse_busy, settle, unfinished
from interference.measurement.spec import Spec
from interference.measurement.spool import DiskSpool
from interference.measurement.units import digested
from mixlora import MixLoraLayer, routed
from mixlora.common.files import exists, expanded, is_folder
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example
from mixlora.tuner.context import pool

CONVENTIONS = {
    "seen": "the prompt alone, as generation sees it; padding left out; evaluation mode",
    "MIXLORA": "indices of the chosen factors of A and of B, ranked",
    "LORA": "mean of A x over the prompt's tokens, unscaled",
}


def compute(
    model: PeftModel,
    collator: Collator,
    tasks: Mapping[str, Sequence[Example]],
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    adapter: str | None = None,
    *,
    components: Sequence[Component | str] = (Component.LANGUAGE,),
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> Factors:
    """What the examples of each task select, from forwards over their prompts.

    Args:
        model: a model with a LoRA or MixLoRA adapter; its state is restored afterwards.
        collator: of its processor.
        tasks: {task: examples}.
        layers: transformer blocks, from 0; None for all.
        modules: module names ("q_proj") or "attention", "mlp"; None for all.
        adapter: the adapter; None for the active one.
        components: parts of the model: "language", "vision", "projector".
        batch_size: examples in one forward.
        seed: of what routing="random" draws.
        progress: called after every batch.

    Raises:
        CheckpointError: if the model has no adapter that can be observed.
        ConfigError: if the seed cannot be used.
        ScopeError: if a layer or module does not exist, or there are fewer than two tasks.
        DataError: if a prompt cannot be rendered.
        MeasurementError: if a module does not keep examples apart, or a value is not finite.
    """
    check_tasks(list(tasks))
    targets = Spec(layers, modules, adapter, components).targets(model)
    return Observer(model, targets, collator, batch_size, whole_seed(seed), progress).run(tasks)


def compute_config(config: AnalysisConfig, out: Path | str, progress: Progress = silent) -> Factors:
    """What the examples of a configuration select, saved to `out`. A run of it measures the same examples.

    Selections wait next to `out`, in `<out>.partial`. A call that finds selections of the same model and examples there
    continues the work.

    Raises:
        InterferenceError: if the input is wrong; see `compute`.
        DataError: if a task's file or a record cannot be used.
        RunError: if `out` exists already or cannot be written, or another process computes it.
    """
    out, probe = expanded(out).absolute(), config.probe
    clear(out, "factors.json")
    refuse_busy(out)
    check_free(out)
    check_tasks(list(config.tasks))
    collator = sample.collator_of(config, day_of(out))
    tasks = sample.read(config).examples
    for examples in tasks.values():
        for example in examples:
            collator.encode_prompt(example)  # raises before the model is loaded
    model = checkpoint.load_model(config.model)
    targets = replace(Spec.of(probe), routers=False).targets(model)  # routers select and are not selected
    described = {**resolved(sample.dated(config, collator)), "out": None}
    job = f"factors {checkpoint.fingerprint(model)} {json.dumps(described)}"
    with unfinished(out, job) as spool:
        observer = Observer(model, targets, collator, probe.batch_size, probe.seed, progress, spool, job)
        found = observer.run(tasks)
        found = replace(found, meta={**found.meta, "config": described})
        settle(found.save, out)
    return found


def kept_or_computed(config: AnalysisConfig, out: Path | str, progress: Progress = silent) -> Factors:
    """What `compute_config` saved to `out` for the same configuration; it is computed now if it is missing.

    Raises:
        InterferenceError: as in `compute_config`.
        RunError: if the adapter or a task's file has changed since it was computed.
    """
    out = expanded(out)
    clear(out, "factors.json")
    record = out / "factors.json"
    if exists(record):
        found = load(out)
        if found.meta.get("config") == _wanted(config, found):
            if changed := _changed_since(config, record.stat().st_mtime):
                raise RunError(f"{changed} has changed since {out} was computed; delete that, or choose another --out")
            return found
    return compute_config(config, out, progress)


def _wanted(config: AnalysisConfig, found: Factors) -> dict[str, Any]:
    """The configuration that kept factors must have; of any day, where it names none or the template writes none."""
    wanted = {**resolved(config), "out": None}
    kept = ((found.meta.get("config") or {}).get("model") or {}).get("date")
    if config.model.date is None or kept is None:
        wanted["model"]["date"] = kept
    return wanted


def _changed_since(config: AnalysisConfig, moment: float) -> Path | None:
    """A file of the adapter or of a task that was written after the moment, if there is one."""
    adapter = Path(config.model.adapter)
    named = [Path(task.file) for task in config.tasks.values() if task.file is not None]
    files = [*(adapter.glob("adapter_*") if is_folder(adapter) else ()), *filter(exists, named)]
    return next((path for path in files if path.stat().st_mtime > moment), None)


def observe(model: nn.Module, targets: Sequence[Target], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the examples of one batch select: {block name: [batch, r]}.

    Args:
        model: in evaluation mode, the targets' adapter the active one.
        targets: all MixLoRA, or all LoRA.
        batch: collated prompts with `attention_mask`; `tasks`, the task of every example, is for MixLoRA's routers.

    Raises:
        MeasurementError: if a module does not keep the examples of the batch apart, or a value is not finite.
    """
    mask = batch["attention_mask"].bool()
    inputs = {key: value for key, value in batch.items() if key != "tasks"}
    if can_skip_logits(model) and all(target.place.layer is not None for target in targets):
        inputs["logits_to_keep"] = 1
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for target in targets:
            hooks.enter_context(_watched(target, mask, found))
        with routed(model, tasks=batch.get("tasks"), alone=True):
            model(**inputs, use_cache=False)
    for target in targets:
        values = found.get(target.place.name)
        if values is None or len(values) != len(mask):
            raise MeasurementError(
                f"{target.path} does not keep the {len(mask)} examples of a batch apart (one image an example, or text "
                "alone in the language model); leave the module out"
            )
    return found


@dataclass
class Observer:
    """Finds what examples select, batch by batch.

    Attributes:
        model: a model with a LoRA or MixLoRA adapter; its state is restored afterwards.
        targets: of one adapter.
        collator: of the model's processor.
        batch_size: examples in one forward.
        seed: of what routing="random" draws. What a batch draws does not depend on the batches before it.
        progress: called after every batch.
        spool: where the selections of every batch wait; None to keep them in memory.
        job: identity of the work; only selections of the same job are taken from the spool.
    """

    model: PeftModel
    targets: Sequence[Target]
    collator: Collator
    batch_size: int = 8
    seed: int = 0
    progress: Progress = silent
    spool: DiskSpool | None = None
    job: str = ""

    def run(self, tasks: Mapping[str, Sequence[Example]]) -> Factors:
        """What the examples of each task select.

        Raises:
            ScopeError: if some targets are LoRA and others MixLoRA.
            DataError, MeasurementError, RunError: see `compute` and `compute_config`.
        """
        name = self.targets[0].adapter
        mixtures = {isinstance(target.layer, MixLoraLayer) for target in self.targets}
        if len(mixtures) > 1:
            raise ScopeError(f"adapter {name!r} is a LoRA here and a MixLoRA there; name the modules of one of them")
        mixture = mixtures == {True}
        owners = [task for task, examples in tasks.items() for _ in examples]
        encoded = [self.collator.encode_prompt(example) for examples in tasks.values() for example in examples]
        with as_found(self.model), torch.no_grad(), torch.random.fork_rng():
            activate(self.model, name)
            self.model.eval()
            values = self._collect(encoded, owners)
        examples = {"task": owners, "id": [one.id for one in encoded], "source": [one.source for one in encoded]}
        found = Selections(owners, _blocks(self.targets, mixture), values, mixture)
        return Factors(found, pd.DataFrame(examples), self._meta(name, mixture))

    def _collect(self, encoded: Sequence[Encoded], owners: Sequence[str]) -> dict[str, np.ndarray]:
        """{block: [examples, r]} in the order of `encoded`. If memory is too small, the first batch fails."""
        order: list[int] = []
        parts: dict[str, list[np.ndarray]] = {}
        for number, rows in enumerate(_batches(encoded, self.batch_size)):
            batch = self.collator.collate([encoded[k] for k in rows])
            for name, values in self._part(number, batch, [owners[k] for k in rows]).items():
                parts.setdefault(name, []).append(values.numpy())
            order += rows
            self.progress("selections", len(order), len(encoded))
        place = np.argsort(order)
        return {name: np.concatenate(chunks)[place] for name, chunks in parts.items()}

    def _part(self, number: int, batch: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """What a batch selects: observed, or taken from the spool where an interrupted call left it."""
        if self.spool is None:
            return self._observed(number, batch, tasks)
        digest = digested(self.job, [(batch, [])])
        if (self.spool.metadata(number) or {}).get("batches") != digest:
            self.spool.write(number, self._observed(number, batch, tasks), {"batches": digest})
        return self.spool.rows(number)

    def _observed(self, number: int, batch: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        torch.manual_seed(int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))
        moved = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        return {name: each.cpu() for name, each in observe(self.model, self.targets, {**moved, "tasks": tasks}).items()}

    def _meta(self, adapter: str, mixture: bool) -> dict[str, Any]:
        return {
            "adapter": adapter,
            "adapter_kind": "MIXLORA" if mixture else "LORA",
            "seed": self.seed,
            "config": None,
            "conventions": CONVENTIONS,
            **checkpoint.provenance(self.model),
        }


def _batches(encoded: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """The rows of each forward, the longest first. Either all rows of a forward have an image or none has."""
    longest = sorted(range(len(encoded)), key=lambda k: -len(encoded[k].input_ids))
    for kind in (False, True):
        alike = [k for k in longest if encoded[k].has_image is kind]
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _blocks(targets: Sequence[Target], mixture: bool) -> pd.DataFrame:
    blocks = [block for target in targets for block in target.blocks[: 2 if mixture else 1]]
    weights = [tap.weight for target in targets for tap in list(target.taps.values())[: 2 if mixture else 1]]
    return to_frame(blocks).drop(columns="size").assign(factors=[len(weight) for weight in weights])


@contextmanager
def _watched(target: Target, mask: Tensor, found: dict[str, Tensor]) -> Iterator[None]:
    """Inside, forwards put what the target selects into `found`. If a module runs again, its last call counts."""

    def chosen(layer: Any, _: Any, output: Tensor) -> None:
        _check_finite(target, output)
        a, b = target.blocks[:2]
        found.update({a.name: layer.selection.A.int(), b.name: layer.selection.B.int()})

    def activated(_: nn.Module, __: Any, output: Tensor) -> None:
        _check_finite(target, output)
        if target.place.component is not Component.LANGUAGE and output.dim() == 3:
            found[target.place.name] = pool(output, None).float()
        elif output.shape[:-1].numel() == mask.numel():  # a DoRA first multiplies its matrices with each other
            found[target.place.name] = pool(output.reshape(*mask.shape, -1), mask).float()

    mixture = isinstance(target.layer, MixLoraLayer)
    module = target.layer if mixture else next(iter(target.taps.values())).module
    handle = module.register_forward_hook(chosen if mixture else activated)
    try:
        yield
    finally:
        handle.remove()


def _check_finite(target: Target, output: Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise MeasurementError(
            f"{target.path} gives values that are not finite; the checkpoint is broken or its dtype too narrow (try "
            "dtype: float32)"
        )
