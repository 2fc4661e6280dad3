"""compute: the run of a model and examples, from a notebook's batches or from a configuration's files."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from torch import nn
from torch.optim import Optimizer

from interference.blocks import Component, Granularity, Step
from interference.config import MEMORY_BUDGET, OF_TRAINING, AnalysisConfig
from interference.errors import ScopeError
from interference.gradients.autograd import Loss
from interference.gradients.probe import Probe
from interference.gradients.targets import Target
from interference.gradients.trained import unprobed
from interference.measurement import checkpoint, sample
from interference.measurement.builder import RunBuilder
from interference.measurement.labels import Labels, workload
from interference.measurement.objective import PLAIN, Objective, of_work
from interference.measurement.optimizers import moments_of, of_config, state_of
from interference.measurement.prober import Prober
from interference.measurement.resume import clear, day_of, gram_file, refuse_busy, settle, unfinished
from interference.measurement.shard import Shard
from interference.measurement.spec import Spec
from interference.measurement.spool import DiskSpool, MemorySpool
from interference.measurement.units import Batch, Probed, Workload
from interference.run import Run, load
from interference.run.storage import check_free
from mixlora.checkpoints.fingerprints import fingerprints, of_processing, summary
from mixlora.checkpoints.loading import SPLIT, kind_of
from mixlora.common import processes
from mixlora.common.directories import check_writable
from mixlora.common.files import expanded, without_dots
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.data.templates import today

CONVENTIONS = {
    "mode": "evaluation (no dropout), parameters unmodified",
    "axes": "rows are the affected task i, columns the stepped task j",
    "gram": "K[u, v] = <g_u, g_v>, float32, upper triangle packed row by row",
}
_ELSEWHERE: Any = {
    **dict.fromkeys(("out", *OF_TRAINING), True),
    "model": {"base", "adapter", "projector"},
    "probe": {"spool_dir", "memory_budget", "optimizer"},
}
"""Keys that say where and with how much memory to measure, or something else, not what; of what paths name, the
content counts."""


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
    memory_budget: int = MEMORY_BUDGET,
    spool_dir: Path | str | None = None,
    sketch: int | None = None,
    step: Step | str = Step.GRADIENT,
    optimizer: Optimizer | Path | str | None = None,
    loss: Loss | None = None,
    groups: Labels | None = None,
    progress: Progress = silent,
) -> Run:
    """Measure a model with a LoRA or MixLoRA adapter, on batches that the caller collated.

    The loss of an example is its mean cross-entropy over supervised tokens. If the model's own forward computes another
    one (its `loss_function`), that one is measured. The run's meta names it.

    Args:
        model: A model with a LoRA or MixLoRA adapter; its state is restored afterwards.
        batches: {task: collated batches}, each what the model's forward takes, with `labels` [batch, seq] in which -100
            marks unsupervised tokens.
        layers: Transformer blocks, from 0; None for all.
        modules: Module names ("q_proj") or "attention", "mlp"; None for all.
        adapter: The probed adapter; None for the active one.
        out: Also save the run to this directory.
        seed: Seed of the sketches and of later bootstraps.
        components: Parts of the model: "language", "vision", "projector".
        unit: What one gradient belongs to: each "example", or each "batch" (the mean over its examples).
        token_mean: With unit="batch", weigh the examples by their supervised tokens.
        granularity: "module", "group" or "layer": how far blocks are summed before they are kept.
        weight_space: Also keep the Gram of the weight-space view (`space="weight"`).
        routers: Also measure MixLoRA's routers, as blocks of their own.
        memory_budget: Bytes that gradients may take in memory; the others wait on disk.
        spool_dir: Directory of the gradients on disk; None for the system's temporary directory.
        sketch: Keep this number of random sums instead of every block's gradient; see `interference.gradients.sketch`.
        step: "gradient", or "adam" to measure also the step that AdamW takes from a gradient (`space="adam"`).
        optimizer: Optimizer whose second moments AdamW's step divides by: the one that trains the model, or the path of
            the optimizer.pt that a Trainer saved. None to estimate them from the gradients.
        loss: A function of (model, batch of one example) that returns a scalar tensor. It is measured instead of the
            mean cross-entropy, one example per backward pass.
        groups: {task: a label for every unit, in the order of its batches}. Units with the same label, in one task or
            in two, are not independent, such as those that share a picture or a document. None if that is not known:
            units are then treated as independent.
        progress: Called as the work goes on.

    Returns:
        The run, in memory.

    Raises:
        CheckpointError: If the model has no adapter that can be probed, or not all of its weights are in memory. Also
            if the optimizer is not AdamW, or of another adapter.
        ConfigError: If the seed, granularity, sketch, step or loss cannot be used.
        ScopeError: If a layer or module does not exist, or a row holds several packed examples. Also if a task has
            fewer than two units or groups, or `groups` does not have one label per unit.
        MeasurementError: If a loss or gradient is not finite, or every gradient is zero.
        RunError: If `out` exists already, or cannot be written.

    Example:
        >>> import interference, torch, transformers
        >>> from peft import LoraConfig, get_peft_model
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size))
        >>> model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        >>> def batch(seed):
        ...     ids = torch.randint(32, (4, 6), generator=torch.Generator().manual_seed(seed))
        ...     return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        >>> batches = {"a": [batch(0)], "b": [batch(1)]}
        >>> interference.compute(model, batches)
        Run(8 units: a 4, b 4; 2 blocks)
    """
    spec = Spec.checked(
        layers=layers, modules=modules, adapter=adapter, components=components, routers=routers, unit=unit,
        token_mean=token_mean, granularity=granularity, weight_space=weight_space, sketch=sketch, seed=seed,
        memory_budget=memory_budget, step=step,
    )  # fmt: skip
    work = workload(model, batches, unit, groups)
    return measured(model, spec, work, partial(of_work, loss=loss), out, spool_dir, progress, optimizer)


def measured(
    model: nn.Module,
    spec: Spec,
    work: Workload,
    objective_of: Callable[[nn.Module, str, Workload], tuple[Objective, Workload]],
    out: Path | str | None,
    spool_dir: Path | str | None,
    progress: Progress,
    optimizer: Optimizer | Path | str | None = None,
    **meta: Any,
) -> Run:
    """The run of a workload that does not come from a configuration, in memory, and at `out`.

    Args:
        model: Its state is restored afterwards.
        spec: What is measured.
        work: The parts to measure.
        objective_of: Which loss is measured, of the model, the probed adapter and the work.
        out: Also save the run to this directory.
        spool_dir: As in `compute`.
        progress: Called as the work goes on.
        optimizer: As in `compute`.
        **meta: What else the run records.

    Returns:
        The run.
    """
    out = None if out is None else without_dots(expanded(out))
    if out is not None:
        check_free(out)
        check_writable(out)
    targets = spec.targets(model)
    moments = moments_of(spec.step, optimizer, model, targets)
    objective, work = objective_of(model, targets[0].adapter, work)
    scope = {
        "layers": None if spec.layers is None else [int(layer) for layer in spec.layers],
        "modules": None if spec.modules is None else list(spec.modules),
    }
    with MemorySpool(spec.half_budget, None if spool_dir is None else expanded(spool_dir)) as spool:
        known = {
            "seed": spec.seed,
            "config": None,
            "scope": scope,
            **spec.meta(),
            **_provenance(model, targets, fingerprints(model, targets[0].adapter)),
        }
        builder = RunBuilder(spec, targets, progress, moments=moments)
        run = measure(builder, model, work, spool, {**known, **meta}, objective=objective)
    if out is not None:
        run.save(out)
    return run


def compute_config(config: AnalysisConfig, progress: Progress = silent) -> Run | None:
    """The run that a configuration describes, saved to its `out`.

    Wrong input is reported before the model is loaded, as far as possible. Gradients wait next to `out`, in
    `<out>.partial`, or in the `spool_dir`. A call that finds gradients of the same model and examples there continues
    the measurement. Of several processes (torchrun, `accelerate launch`) each measures its share of the examples.

    Args:
        config: What to measure, and where the run goes.
        progress: Called as the work goes on.

    Returns:
        The run, as it was saved; None in all processes but the first.

    Raises:
        InterferenceError: If the input is wrong; see `compute`.
        DataError: If a task's file or a record cannot be used.
    """
    if config.out is None:
        raise ScopeError("the configuration names no directory for the run; give out: or --out")
    out = without_dots(Path(config.out).absolute())
    shard = Shard.of_processes(kind_of(config.model.device))
    with shard.together():
        if shard.first and out.name:
            clear(out, "run.json")
            refuse_busy(out)
        check_free(out)
        found = day_of(out) or today()
    day = shard.gathered(found)[0]  # midnight may pass between two processes
    with shard.together():
        encoded, model, builder = _prepared(config, day, progress if shard.first else silent, shard)
    config = sample.dated(config, encoded.collator)
    parts = fingerprints(model)
    with shard.together():
        given = sample.workload(encoded, config, model.device)
        objective, work = of_work(model, builder.targets[0].adapter, given)
    spec, data = builder.spec, sample.describe(encoded)
    kept = config.model_dump(mode="json", exclude=_ELSEWHERE)
    processing = of_processing(encoded.collator)
    identity = {"model": parts, "config": kept, "loss": objective.words, "processing": processing}
    identity |= checkpoint.origin_of(model)
    if spec.step is Step.ADAM:
        identity["optimizer"] = "estimated" if builder.moments is None else builder.moments.digest
    with _waiting(config, out, identity, builder, sample.count(encoded)) as spool:
        meta = {"seed": spec.seed, "config": resolved(config), **spec.meta(), "data": data}
        meta |= _provenance(model, builder.targets, parts)
        run = measure(builder, model, work, spool, meta, gram_file(out), summary(identity), objective)
        with shard.together():
            if shard.first:
                settle(lambda place: run.save(place, gram_file(out)), out)
    return load(out) if shard.first else None


def measure(
    builder: RunBuilder,
    model: nn.Module,
    work: Workload,
    spool: MemorySpool | DiskSpool,
    meta: Mapping[str, Any],
    file: Path | None = None,
    job: str = "",
    objective: Objective = PLAIN,
) -> Run:
    """The run of a workload: what a notebook's batches and a configuration's files have in common.

    Args:
        builder: Of the model's targets.
        model: Its state is restored afterwards.
        work: The parts to measure.
        spool: Where their gradients wait.
        meta: What the run records of the measurement.
        file: Where the Gram matrices are written; None to keep them in memory.
        job: Identity of the measurement; only parts of the same job are taken from the spool.
        objective: Which loss is measured.

    Returns:
        The run.

    Raises:
        ScopeError: If a task has fewer than two units.
        MeasurementError: If a loss or gradient is not finite, or every gradient is zero.
        RunError: If gradients or Gram matrices cannot be written or read.
    """
    shard = builder.shard
    with Probe(model, builder.targets, objective.loss) as probe:
        prober = Prober(probe, spool, builder.spec, builder.progress, work.count, shard, job)
        with shard.together():
            found = prober.run(work.parts)
    again = sum(shard.gathered(len(prober.again)))
    _check_counts(found, work.tasks)
    builder.take(found, work.places)
    with shard.together():
        grams = builder.grams(spool, file)
    with shard.together():
        conventions = {"loss": objective.words, **meta["conventions"]}
        meta = {**meta, "loss": objective.words, "conventions": conventions, "measured_again": again}
        return builder.run(grams, spool, meta)


def _prepared(
    config: AnalysisConfig, day: date, progress: Progress, shard: Shard
) -> tuple[sample.Sample, PeftModel, RunBuilder]:
    """The examples, the model, and the builder of the run; errors in the examples are found first."""
    if shard.count > 1 and config.model.device == SPLIT:
        raise ScopeError(
            f"device: {SPLIT} spreads one model over all GPUs, but each of {shard.count} processes holds a model "
            "of its own; leave device out, or start one process"
        )
    state_of(config)  # a missing state is refused before the data are read
    encoded = sample.encode(sample.read(config), sample.collator_of(config, day), config)
    model, spec = checkpoint.load_model(config.model), Spec.of(config.probe)
    targets = spec.targets(model)
    return encoded, model, RunBuilder(spec, targets, progress, shard, of_config(config, model, targets))


@contextmanager
def _waiting(
    config: AnalysisConfig, out: Path, identity: Mapping[str, Any], builder: RunBuilder, units: int
) -> Iterator[DiskSpool]:
    """The spool in which this process's gradients wait."""
    shard, spool_dir = builder.shard, config.probe.spool_dir
    need = builder.spool_bytes(units) * processes.here() // shard.count
    place = None if spool_dir is None else Path(spool_dir)
    opening = unfinished(out, identity, place, need, builder.gram_bytes(units), shard.first)
    with ExitStack() as stack:  # the first process checks the place before the others write there
        yield shard.first_then_others(lambda: stack.enter_context(opening))


def _provenance(model: nn.Module, targets: Sequence[Target], parts: Mapping[str, Any]) -> dict[str, Any]:
    """What the run records of the model and of how it was measured."""
    adapter = targets[0].adapter
    return {
        "conventions": CONVENTIONS,
        "adapter": adapter,
        "not_probed": unprobed(model, adapter, targets),
        **checkpoint.provenance(parts),
    }


def _check_counts(found: Probed, tasks: Iterable[str]) -> None:
    """Check that every task has two units."""
    counts = dict.fromkeys(tasks, 0) | Counter(unit.task for unit in found.units)
    if not counts:
        raise ScopeError("there is nothing to measure: no task was given")
    for task, count in counts.items():
        if count < 2:
            raise ScopeError(f"task {task!r} has {count} units; at least 2 are needed: give it more examples")
