"""compute: a model and examples to a Run."""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from interference import checkpoint, sampled
from interference.blocks import Block, Component, Granularity, coarsen, to_frame
from interference.config import AnalysisConfig
from interference.errors import InterferenceError, MeasurementError, RunError, ScopeError
from interference.gradients import Probe
from interference.gram import DiskSpool, MemorySpool, grams
from interference.packing import pack
from interference.pairing import choose
from interference.probing import OWNER, Batch, Probed, Prober, of_collated, selected_rows, weight_block
from interference.run import Run, check_free
from interference.targets import Target, find_targets, probed_adapter, unprobed
from mixlora import MixLoraLayer
from mixlora.errors import MixLoraError
from mixlora.progress import Progress, silent
from mixlora.sections import resolved

CONVENTIONS = {
    "loss": "mean cross-entropy over supervised tokens of an example, nats per token",
    "mode": "evaluation (no dropout), parameters unmodified",
    "axes": "rows are the affected task i, columns the stepped task j",
    "gram": "K[u, v] = <g_u, g_v>, float32, upper triangle packed row by row",
}
MEMORY = 2**30


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
        progress: told what is being done.

    Returns:
        The run, in memory.

    Raises:
        CheckpointError: if the model has no adapter that can be probed.
        ScopeError: if a layer or module is not there, or a task has fewer than two units.
        MeasurementError: if a loss or gradient is not finite, or every gradient is zero.
        RunError: if something is at `out` already.
    """
    if unit not in ("example", "batch"):
        raise ScopeError(f"unit {unit!r} is none of example, batch")
    granularity = choose(Granularity, granularity, "granularity")
    if out is not None:
        check_free(Path(out))
    name = probed_adapter(model, adapter)
    targets = find_targets(model, name, layers, modules, components, routers)
    with MemorySpool(memory_budget // 2) as spool, Probe(model, targets) as probe:
        measuring = Measuring(targets, granularity, weight_space, memory_budget, progress)
        found = Prober(probe, spool, token_mean, weight_space, progress).run(
            of_collated(on_device(model, batches), unit)
        )
        _check_counts(found, batches)
        kind = {"unit": unit, "token_mean": token_mean, "granularity": str(granularity)}
        meta = {"seed": seed, "config": None, **kind, **_provenance(model, name)}
        run = measuring.finish(found, spool, np.arange(len(found.units)), meta)
    if out is not None:
        run.save(out)
    return run


def compute_config(config: AnalysisConfig, progress: Progress = silent) -> Run:
    """The run that a configuration describes, saved to its `out`.

    What can be wrong with the input is looked for before the model is loaded. Gradients wait beside `out`, in
    `<out>.partial`; a call that finds them there, of the same model and examples, continues where they end.

    Raises:
        InterferenceError: if the input is wrong; see `compute`.
        DataError: if a task's file or a record cannot be used.
    """
    if config.out is None:
        raise ScopeError("the configuration names no directory for the run; give out: or --out")
    out, probe = Path(config.out).absolute(), config.probe
    check_free(out)
    processor = checkpoint.load_processor(config.model)
    tasks = sampled.read(config)
    encoded = sampled.encode(tasks, processor, config)
    model = checkpoint.load_model(config.model)
    name = probed_adapter(model, None)
    targets = find_targets(model, name, probe.layers, probe.modules, probe.components, probe.routers)
    granularity = Granularity(probe.granularity)
    measuring = Measuring(targets, granularity, probe.weight_space, probe.memory_budget, progress)
    provenance = _provenance(model, name)
    identity = f"{provenance['fingerprints']['model']} {config.model_dump_json(exclude={'out'})}"
    with _partial(out, identity) as spool, Probe(model, targets) as opened:
        parts, order = sampled.parts(encoded, config, model.device)
        prober = Prober(opened, spool, probe.token_mean, probe.weight_space, progress, sampled.count(encoded))
        found = prober.run(parts)
        _check_counts(found, config.tasks)
        kind = {"unit": "example", "token_mean": probe.token_mean, "granularity": str(granularity)}
        data = sampled.describe(encoded)
        meta = {"seed": probe.seed, "config": resolved(config), **kind, **provenance, "data": data}
        run = measuring.finish(found, spool, order, meta)
        run.save(out)
    return run


class Measuring:
    """From probed gradients to a run."""

    def __init__(
        self,
        targets: Sequence[Target],
        granularity: Granularity,
        weight_space: bool,
        memory_budget: int,
        progress: Progress,
    ) -> None:
        self.selecting = [block for target in targets if _mixes(target) for block in target.blocks[:2]]
        if weight_space and self.selecting:
            raise ScopeError(
                "weight_space is for LoRA: MixLoRA has no single weight that a step changes; leave weight_space out"
            )
        self.blocks = [block for target in targets for block in target.blocks]
        if weight_space:
            self.blocks += [weight_block(target) for target in targets]
        self.granularity = granularity
        self.memory_budget = memory_budget
        self.progress = progress
        self.started = time.perf_counter()

    def stored(self) -> tuple[list[Block], dict[str, list[tuple[str, int]]]]:
        """The blocks a run keeps, and which probed blocks (with their widths) each is the sum of."""
        kept: dict[str, Block] = {}
        sums: dict[str, list[tuple[str, int]]] = {}
        for block in self.blocks:
            coarse = coarsen(block, self.granularity)
            size = block.size + (kept[coarse.name].size if coarse.name in kept else 0)
            kept[coarse.name] = Block(coarse.component, coarse.layer, coarse.module, coarse.group, coarse.side, size)
            sums.setdefault(coarse.name, []).append((block.name, block.size))
        return list(kept.values()), sums

    def finish(self, found: Probed, spool: MemorySpool | DiskSpool, order: np.ndarray, meta: Mapping[str, Any]) -> Run:
        """The run of what was probed; `order[n]` is the place in the run of the n-th probed unit."""
        blocks, sums = self.stored()
        place, packed = np.argsort(order), {}
        for name, matrix in grams(spool, found.sizes, sums, self.memory_budget // 2):
            packed[name] = pack(matrix[np.ix_(place, place)])
            self.progress("gram", len(packed), len(sums))
        if not any(matrix.any() for matrix in packed.values()):
            raise MeasurementError("every gradient is zero: the adapter changes no supervised token's loss")
        units = [found.units[k] for k in place]
        probes = pd.DataFrame(
            {
                "task": [unit.task for unit in units],
                "loss": [found.losses[k] for k in place],
                "tokens": [found.tokens[k] for k in place],
                "ids": [unit.ids for unit in units],
                "source": [unit.source for unit in units],
            }
        )
        seconds = round(time.perf_counter() - self.started, 2)
        return Run(
            probes, to_frame(blocks), packed, {**meta, "seconds": seconds}, self._selections(found, spool, order)
        )

    def _selections(self, found: Probed, spool: MemorySpool | DiskSpool, order: np.ndarray) -> dict[str, np.ndarray]:
        """{block name: [examples, r]} in the order of the run's units, which `OWNER` names; empty for LoRA."""
        if not self.selecting:
            return {}

        def whole(name: str) -> np.ndarray:
            return np.concatenate([spool.read(part, selected_rows(name)).numpy() for part in range(len(found.sizes))])

        counts = [len(spool.read(part, selected_rows(OWNER))) for part in range(len(found.sizes))]
        first = np.cumsum([0, *found.sizes[:-1]])
        owner = order[whole(OWNER) + np.repeat(first, counts)].astype(np.int32)
        place = np.argsort(owner, kind="stable")
        return {OWNER: owner[place]} | {block.name: whole(block.name)[place] for block in self.selecting}


def _mixes(target: Target) -> bool:
    return isinstance(target.layer, MixLoraLayer)


@contextmanager
def _partial(out: Path, identity: str) -> Iterator[DiskSpool]:
    """The spool beside `out`: continued if it is of the same job, removed when the run is saved or the input wrong."""
    folder = out.with_name(out.name + ".partial")
    mark = folder / "identity"
    if folder.exists() and not mark.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}, where gradients would wait, is not of an unfinished run; choose another --out")
    if mark.exists() and mark.read_text(encoding="utf-8") != identity:
        raise RunError(
            f"{folder} is of an unfinished run of another configuration or checkpoint; finish that one, delete the "
            "directory, or choose another --out"
        )
    try:
        spool = DiskSpool(folder)
        mark.write_text(identity, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from None
    try:
        yield spool
    except (InterferenceError, MixLoraError):
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


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
    device = next(model.parameters()).device

    def moved(batch: Batch) -> Batch:
        return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    return {task: map(moved, iterable) for task, iterable in batches.items()}
