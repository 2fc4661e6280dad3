"""compute: a model and examples to a Run."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from interference.blocks import Component, Granularity
from interference.config import LEAST_SUMS, AnalysisConfig, whole_seed
from interference.errors import ConfigError, ScopeError
from interference.gradients.probe import Probe
from interference.gradients.sketch import relative_error
from interference.gradients.targets import find_targets, probed_adapter, unprobed
from interference.measurement import checkpoint, sample
from interference.measurement.builder import Measuring
from interference.measurement.prober import Prober
from interference.measurement.resume import clear, gram_file, refuse_busy, settle, unfinished
from interference.measurement.spool import MemorySpool, Shard
from interference.measurement.units import Batch, Probed, of_collated
from interference.run import Run, load
from interference.run.run import check_free
from mixlora.checkpoints import loading
from mixlora.checkpoints.loading import SPLIT, kind_of
from mixlora.common import processes
from mixlora.common.directories import check_writable
from mixlora.common.enums import member
from mixlora.common.files import expanded
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved

CONVENTIONS = {
    "loss": "mean cross-entropy over supervised tokens of an example, nats per token",
    "mode": "evaluation (no dropout), parameters unmodified",
    "axes": "rows are the affected task i, columns the stepped task j",
    "gram": "K[u, v] = <g_u, g_v>, float32, upper triangle packed row by row",
}
MEMORY = 2**30
_ELSEWHERE: Any = {"out": True, "probe": {"spool_dir", "memory_budget"}}
"""Keys that say where and with how much memory, and not what is measured."""


def compute(
    model: nn.Module,
    batches: Mapping[str, Iterable[Batch]],
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    adapter: str | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    *,
    components: Sequence[Component | str] = (Component.LANGUAGE,),
    unit: Literal["example", "batch"] = "example",
    token_mean: bool = False,
    granularity: Granularity | str = Granularity.MODULE,
    weight_space: bool = False,
    routers: bool = False,
    memory_budget: int = MEMORY,
    spool_dir: Path | str | None = None,
    sketch: int | None = None,
    progress: Progress = silent,
) -> Run:
    """The run of a model with a LoRA or MixLoRA adapter, over batches that the caller collated.

    Args:
        model: a model with a LoRA or MixLoRA adapter; it is handed back exactly as it came.
        batches: {task: collated batches}, each what the model's forward takes, with `labels` [batch, seq] in which -100
            marks unsupervised tokens.
        layers: transformer blocks, from 0; None for all.
        modules: module names ("q_proj") or "attention", "mlp"; None for all.
        adapter: the probed adapter; None for the active one.
        out: also save the run to this directory.
        seed: of later bootstraps.
        components: parts of the model: "language", "vision", "projector".
        unit: what one gradient belongs to: each "example", or each "batch" (the mean over its examples).
        token_mean: with unit="batch", weigh the examples by their supervised tokens.
        granularity: "module", "group" or "layer": how far blocks are summed before they are kept.
        weight_space: also keep the Gram of the weight-space view (`space="weight"`).
        routers: also measure MixLoRA's routers, as blocks of their own.
        memory_budget: bytes that gradients may take in memory; what is beyond waits on disk.
        spool_dir: where it waits; None for the system's temporary directory.
        sketch: keep so many random sums of every block's gradient in place of it; see `interference.gradients.sketch`.
        progress: told what is being done.

    Returns:
        The run, in memory.

    Raises:
        CheckpointError: if the model has no adapter that can be probed, or not all of its weights are in memory.
        ConfigError: if the seed, granularity or sketch is not one that can be.
        ScopeError: if a layer or module is not there, or a task has fewer than two units.
        MeasurementError: if a loss or gradient is not finite, or every gradient is zero.
        RunError: if something is at `out` already, or nothing can be written there.
    """
    if unit not in ("example", "batch"):
        raise ScopeError(f"unit {unit!r} is none of example, batch")
    granularity = member(Granularity, granularity, "granularity")
    if sketch is not None and sketch < LEAST_SUMS:
        raise ConfigError(f"sketch is {sketch}, but must be at least {LEAST_SUMS} (4096 is usual)")
    seed = whole_seed(seed)
    out = None if out is None else expanded(out)
    if out is not None:
        check_free(out)
        check_writable(out)
    name = probed_adapter(model, adapter)
    targets = find_targets(model, name, layers, modules, components, routers)
    scope = {
        "layers": None if layers is None else [int(layer) for layer in layers],
        "modules": None if modules is None else list(modules),
    }
    folder = None if spool_dir is None else expanded(spool_dir)
    with MemorySpool(memory_budget // 2, folder) as spool, Probe(model, targets) as probe:
        measuring = Measuring(targets, granularity, weight_space, memory_budget, progress, sketch)
        prober = Prober(probe, spool, token_mean, weight_space, progress, sketch=sketch, seed=seed)
        found = prober.run(of_collated(on_device(model, batches), unit))
        _check_counts(found, batches)
        measuring.take(found, np.arange(len(found.units)))
        kind = {"unit": unit, "token_mean": token_mean, "granularity": str(granularity), **_sketching(sketch)}
        meta = {"seed": seed, "config": None, "scope": scope, **kind, **_provenance(model, name)}
        run = measuring.run(dict(measuring.packed(spool)), spool, meta)
    if out is not None:
        run.save(out)
    return run


def compute_config(config: AnalysisConfig, progress: Progress = silent) -> Run | None:
    """The run that a configuration describes, saved to its `out`.

    What can be wrong with the input is looked for before the model is loaded. Gradients wait beside `out`, in
    `<out>.partial`, or in the `spool_dir`; a call that finds them there, of the same model and examples, continues
    where they end. Of several processes (torchrun, `accelerate launch`) each measures its share of the examples.

    Returns:
        The run, as it was saved; None in a process that is not the first.

    Raises:
        InterferenceError: if the input is wrong; see `compute`.
        DataError: if a task's file or a record cannot be used.
    """
    if config.out is None:
        raise ScopeError("the configuration names no directory for the run; give out: or --out")
    out, probe = Path(config.out).absolute(), config.probe
    shard = Shard(processes.rank(), processes.count())
    first = shard.rank == 0
    if shard.count > 1:
        processes.meet(kind_of(config.model.device), processes.PATIENCE)
    with _together(shard):
        if first and out.name:
            clear(out, "run.json")
            refuse_busy(out)
        check_free(out)
        encoded, model, measuring = _prepared(config, progress if first else silent, shard)
    provenance = _provenance(model, probed_adapter(model, None))
    identity = f"{provenance['fingerprints']['model']} {config.model_dump_json(exclude=_ELSEWHERE)}"
    spool_dir = None if probe.spool_dir is None else Path(probe.spool_dir)
    units = sample.count(encoded)
    need = measuring.spooled(units) * processes.here() // shard.count
    with ExitStack() as stack:
        opening = unfinished(out, identity, spool_dir, need, measuring.kept(units), first)
        for turn in (True, False):  # the first looks whether the place is free before others write there
            with _together(shard):
                if turn is first:
                    spool = stack.enter_context(opening)
        opened = stack.enter_context(Probe(model, measuring.targets))
        parts, order = sample.parts(encoded, config, model.device)
        prober = Prober(
            opened, spool, probe.token_mean, probe.weight_space, measuring.progress, units,
            probe.sketch, probe.seed, shard, identity,
        )  # fmt: skip
        with _together(shard):
            found = prober.run(parts)
        _check_counts(found, config.tasks)
        measuring.take(found, order)
        kind = {"unit": "example", "token_mean": probe.token_mean, "granularity": str(measuring.granularity)}
        kind |= _sketching(probe.sketch)
        data = sample.describe(encoded)
        meta = {"seed": probe.seed, "config": resolved(config), **kind, **provenance, "data": data}
        with _together(shard):
            kept = measuring.write(spool, gram_file(out))
        with _together(shard):
            run = measuring.run(kept, spool, meta)
            if first:
                settle(lambda place: run.save(place, gram_file(out)), out)
    return load(out) if first else None


def _prepared(config: AnalysisConfig, progress: Progress, shard: Shard) -> tuple[sample.Sample, PeftModel, Measuring]:
    """The examples, the model, and what of it is measured; what can be wrong with examples is found first."""
    probe = config.probe
    if shard.count > 1 and config.model.device == SPLIT:
        raise ScopeError(
            f"device: {SPLIT} spreads one model over all GPUs, but each of {shard.count} processes holds a model "
            "of its own; leave device out, or start one process"
        )
    encoded = sample.encode(sample.read(config), loading.load_processor(config.model), config)
    model = checkpoint.load_model(config.model)
    name, granularity = probed_adapter(model, None), Granularity(probe.granularity)
    targets = find_targets(model, name, probe.layers, probe.modules, probe.components, probe.routers)
    measuring = Measuring(targets, granularity, probe.weight_space, probe.memory_budget, progress, probe.sketch, shard)
    return encoded, model, measuring


def _together(shard: Shard) -> AbstractContextManager[None]:
    """Re-raise any process's error in all of them."""
    return processes.together() if shard.count > 1 else nullcontext()


def _sketching(sketch: int | None) -> dict[str, Any]:
    """What a run says of its sketches; nothing where there are none."""
    return {} if sketch is None else {"sketch": sketch, "sketch_error": relative_error(sketch)}


def _provenance(model: nn.Module, adapter: str) -> dict[str, Any]:
    return {
        "conventions": CONVENTIONS,
        "adapter": adapter,
        "not_probed": unprobed(model, adapter),
        "fingerprints": {"model": checkpoint.fingerprint(model)},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "computed": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _check_counts(found: Probed, tasks: Iterable[str]) -> None:
    counts = dict.fromkeys(tasks, 0) | Counter(unit.task for unit in found.units)
    if not counts:
        raise ScopeError("there is nothing to measure: no task was given")
    for task, count in counts.items():
        if count < 2:
            raise ScopeError(f"task {task!r} has {count} units; at least 2 are needed: give it more examples")


def on_device(model: nn.Module, batches: Mapping[str, Iterable[Batch]]) -> dict[str, Iterator[Batch]]:
    """The batches with their tensors on the model's device, one at a time."""
    if not isinstance(batches, Mapping):
        raise ScopeError(f"batches is a {type(batches).__name__}, but must be a dict {{task: its batches}}")
    for task, given in batches.items():
        if isinstance(given, Mapping):
            raise ScopeError(f"the batches of task {task!r} are a dict; give a list of them, as [batch]")
    loading.refuse_offloaded(model)
    device = next(model.parameters()).device

    def moved(batch: Batch) -> Batch:
        return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    return {task: map(moved, iterable) for task, iterable in batches.items()}
