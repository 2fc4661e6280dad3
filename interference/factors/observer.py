"""Observer: what each example selects, from forwards of a model over the prompts.

Not here: what the selections say of tasks (`selections`, `neighbours`, `affinity`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor

from interference.blocks import Component
from interference.config import OF_TRAINING, AnalysisConfig, is_recorded, whole_seed
from interference.errors import RunError, ScopeError
from interference.factors.factors import Factors, check_free, load
from interference.factors.selections import Selections, check_tasks
from interference.factors.untrained import NoControlError, Origin, attach, origin
from interference.factors.watching import Grouping, batches, blocks_of, observe
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Target
from interference.measurement import checkpoint, sample
from interference.measurement.resume import clear, day_of, refuse_busy, settle, unfinished
from interference.measurement.sample import EncodedUnit
from interference.measurement.spec import Spec
from interference.measurement.spool import DiskSpool
from interference.measurement.units import digested
from interference.statistics.groups import Codes
from mixlora import MixLoraLayer
from mixlora.checkpoints.fingerprints import fingerprints, of_checkpoint, of_processing, summary
from mixlora.checkpoints.loading import base_of
from mixlora.common.files import exists, expanded, without_dots
from mixlora.common.identity import differences
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.data.checking import fingerprint
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example
from mixlora.data.groups import IMAGE, all_shared, connected

__all__ = ["compute", "compute_config", "kept_or_computed"]  # public as `interference.observation`

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
    group: str = IMAGE,
    untrained: int | None = 0,
    progress: Progress = silent,
) -> Factors:
    """What the examples of each task select, from forwards over their prompts.

    Args:
        model: A model with a LoRA or MixLoRA adapter; its state is restored afterwards.
        collator: Collator of its processor.
        tasks: {task: examples}.
        layers: Transformer blocks, from 0; None for all.
        modules: Module names ("q_proj") or "attention", "mlp"; None for all.
        adapter: The adapter; None for the active one.
        components: Parts of the model: "language", "vision", "projector".
        batch_size: Examples in one forward.
        seed: Seed of what routing="random" draws.
        group: What examples that are not independent share: "image" (a picture, by its content), "none", or the key of
            their records that they were read with. Examples of the same prompt are one group in any case.
        untrained: Seed of an untrained adapter of the same configuration, which is in the model during the call. Its
            selections are the control for those of the trained adapter. None for no control.
        progress: Called after every batch.

    Returns:
        What every example selects, in memory.

    Raises:
        CheckpointError: If the model has no adapter that can be observed.
        ConfigError: If the seed cannot be used.
        ScopeError: If a layer or module does not exist, or there are fewer than two tasks.
        DataError: If a prompt cannot be rendered.
        MeasurementError: If a module does not keep examples apart, or a value is not finite.
    """
    check_tasks(list(tasks))
    source = None if untrained is None else Origin(whole_seed(untrained))
    spec = Spec(layers, modules, adapter, components)
    targets = spec.targets(model)
    observer = Observer(model, targets, collator, batch_size, whole_seed(seed), progress)
    owners, each = zip(*((task, example) for task, own in tasks.items() for example in own), strict=True)
    encoded = [collator.encode_prompt(example) for example in each]
    grouping = Grouping.of(encoded, connected(all_shared((example, group) for example in each)))
    provenance = checkpoint.provenance(fingerprints(model, targets[0].adapter))
    with _control(model, targets[0].adapter, source) as control:
        return observer.factors(encoded, owners, grouping, control, spec, provenance)


def compute_config(config: AnalysisConfig, out: Path | str, progress: Progress = silent) -> Factors:
    """What the examples of a configuration select, saved to `out`. A run of it measures the same examples.

    Selections wait next to `out`, in `<out>.partial`. A call that finds selections of the same model and examples there
    continues the work.

    Args:
        config: Which model and examples.
        out: The directory.
        progress: Called after every batch.

    Returns:
        What every example selects, as it was saved.

    Raises:
        InterferenceError: If the input is wrong; see `compute`.
        DataError: If a task's file or a record cannot be used.
        RunError: If `out` exists already or cannot be written, or another process computes it.
    """
    out, probe = without_dots(expanded(out).absolute()), config.probe
    clear(out, "factors.json")
    refuse_busy(out)
    check_free(out)
    check_tasks(list(config.tasks))
    collator = sample.collator_of(config, day_of(out))
    tasks = sample.read(config).examples
    units = [EncodedUnit(task, (collator.encode_prompt(one),)) for task, examples in tasks.items() for one in examples]
    grouped = sample.grouped(units, config)
    encoded, owners = [unit.examples[0] for unit in grouped], [unit.task for unit in grouped]
    grouping = Grouping.of(encoded, [unit.group for unit in grouped])
    model = checkpoint.load_model(config.model)
    spec = replace(Spec.of(probe), routers=False)  # routers select and are not selected
    targets = spec.targets(model)
    described = {**resolved(sample.dated(config, collator)), "out": None}
    inputs, parts = _inputs(config, tasks, collator), fingerprints(model)
    with ExitStack() as stack:
        source = origin(config.model.adapter, probe.seed)
        control = stack.enter_context(_control(model, targets[0].adapter, source))
        untrained = fingerprints(model)["adapter weights"]  # of both adapters
        asked = {key: value for key, value in described.items() if key not in OF_TRAINING}
        job = {"factors of": parts, "weights of it and its untrained control": untrained, "config": asked}
        job |= {"processing": of_processing(collator), **checkpoint.origin_of(model)}
        spool = stack.enter_context(unfinished(out, job))
        observer = Observer(model, targets, collator, probe.batch_size, probe.seed, progress, spool, summary(job))
        found = observer.factors(encoded, owners, grouping, control, spec, checkpoint.provenance(parts))
        found = replace(found, meta={**found.meta, "config": described, "inputs": inputs})
        settle(found.save, out)
    return found


def kept_or_computed(config: AnalysisConfig, out: Path | str, progress: Progress = silent) -> Factors:
    """What `compute_config` saved to `out` for the same configuration; it is computed now if it is missing.

    Args:
        config: Which model and examples.
        out: The directory.
        progress: Called after every batch.

    Returns:
        What every example selects.

    Raises:
        InterferenceError: As in `compute_config`.
        RunError: If the base, the adapter, a task's file, or how its text becomes tokens has changed since it was
            computed.
    """
    out = expanded(out)
    clear(out, "factors.json")
    record = out / "factors.json"
    if exists(record):
        found = load(out)
        if is_recorded(found.meta.get("config"), _wanted(config, found)):
            tasks, collator = sample.read(config).examples, sample.collator_of(config, _kept_day(found))
            if changed := differences(found.meta.get("inputs") or {}, _inputs(config, tasks, collator)):
                raise RunError(f"{out} was computed from other inputs ({changed}); delete it, or choose another --out")
            return found
    return compute_config(config, out, progress)


def _wanted(config: AnalysisConfig, found: Factors) -> AnalysisConfig:
    """The configuration that kept factors must have; of any day, where it names none or the template writes none."""
    kept = _kept_date(found)
    day = kept if config.model.date is None or kept is None else config.model.date
    return config.model_copy(update={"model": config.model.model_copy(update={"date": day})})


def _kept_date(found: Factors) -> str | None:
    """The day that kept factors' template wrote; None where it wrote none."""
    return ((found.meta.get("config") or {}).get("model") or {}).get("date")


def _kept_day(found: Factors) -> date | None:
    kept = _kept_date(found)
    return None if kept is None else date.fromisoformat(kept)


def _inputs(config: AnalysisConfig, tasks: Mapping[str, Sequence[Example]], collator: Collator) -> dict[str, str]:
    """A digest of the content of everything that factors are computed from, by name or by key of the configuration."""
    model = config.model
    named = {"base": base_of(model), "adapter": model.adapter, "projector": model.projector}
    found = {f"model.{key}": of_checkpoint(name) for key, name in named.items() if name is not None}
    source = origin(model.adapter, config.probe.seed)
    found["the untrained adapter"] = source.text if source.snapshot is None else of_checkpoint(str(source.snapshot))
    found |= {f"the {name}": held for name, held in of_processing(collator).items()}
    return found | {f"tasks.{task}": fingerprint(examples) for task, examples in tasks.items()}


@dataclass
class Observer:
    """Finds what examples select, batch by batch.

    Attributes:
        model: A model with a LoRA or MixLoRA adapter; its state is restored afterwards.
        targets: Of one adapter.
        collator: Collator of the model's processor.
        batch_size: Examples in one forward.
        seed: Seed of what routing="random" draws. What a batch draws does not depend on the batches before it.
        progress: Called after every batch.
        spool: Where the selections of every batch wait; None to keep them in memory.
        job: Identity of the work; only selections of the same job are taken from the spool.
        control: Whether the targets are the untrained adapter's.
    """

    model: PeftModel
    targets: Sequence[Target]
    collator: Collator
    batch_size: int = 8
    seed: int = 0
    progress: Progress = silent
    spool: DiskSpool | None = None
    job: str = ""
    control: bool = False

    def factors(
        self,
        encoded: Sequence[Encoded],
        owners: Sequence[str],
        grouping: Grouping,
        control: "_Control",
        spec: Spec,
        provenance: Mapping[str, Any],
    ) -> Factors:
        """What examples select, of the adapter and then of its untrained control.

        Args:
            encoded: Their prompts.
            owners: Their tasks.
            grouping: Their groups.
            control: The untrained adapter, if there is one.
            spec: Which modules are observed.
            provenance: What the factors record of the model.

        Returns:
            What the factors hold.

        Raises:
            ScopeError: If some targets are LoRA and others MixLoRA.
            DataError: See `compute`.
            MeasurementError: See `compute`.
            RunError: See `compute_config`.
        """
        found, beside = self.selections(encoded, owners, grouping.groups), None
        if control.name is not None:
            targets = replace(spec, adapter=control.name).targets(self.model)
            second = replace(self, targets=targets, control=True)
            beside = second.selections(encoded, owners, grouping.groups)
        examples = pd.DataFrame(
            {
                "task": owners,
                "id": [one.id for one in encoded],
                "source": [one.source for one in encoded],
                "group": grouping.groups,
            }
        )
        meta = {
            "adapter": self.targets[0].adapter,
            "adapter_kind": "MIXLORA" if found.mixture else "LORA",
            "seed": self.seed,
            "config": None,
            "conventions": CONVENTIONS,
            "copies": grouping.copies,
            "untrained": control.told,
            **provenance,
        }
        return Factors(found, examples, meta, beside)

    def selections(self, encoded: Sequence[Encoded], owners: Sequence[str], groups: Codes) -> Selections:
        """What the examples select of the targets' adapter.

        Args:
            encoded: Their prompts.
            owners: Their tasks.
            groups: [examples].

        Returns:
            By example and block.

        Raises:
            ScopeError: If some targets are LoRA and others MixLoRA.
        """
        name = self.targets[0].adapter
        mixtures = {isinstance(target.layer, MixLoraLayer) for target in self.targets}
        if len(mixtures) > 1:
            raise ScopeError(f"adapter {name!r} has LoRA modules and MixLoRA modules; name modules of one kind")
        mixture = mixtures == {True}
        with as_found(self.model), torch.no_grad(), torch.random.fork_rng():
            activate(self.model, name)
            self.model.eval()
            values = self._collect(encoded, owners)
        return Selections(list(owners), blocks_of(self.targets, mixture), values, mixture, groups)

    def _collect(self, encoded: Sequence[Encoded], owners: Sequence[str]) -> dict[str, np.ndarray]:
        """{block: [examples, r]} in the order of `encoded`. If memory is too small, the first batch fails."""
        order: list[int] = []
        parts: dict[str, list[np.ndarray]] = {}
        for number, rows in enumerate(batches(encoded, self.batch_size)):
            batch = self.collator.collate([encoded[k] for k in rows])
            for name, values in self._part(number, batch, [owners[k] for k in rows]).items():
                parts.setdefault(name, []).append(values.numpy())
            order += rows
            stage = "selections, untrained" if self.control else "selections"
            self.progress(stage, len(order), len(encoded))
        place = np.argsort(order)
        return {name: np.concatenate(chunks)[place] for name, chunks in parts.items()}

    def _part(self, number: int, batch: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """What a batch selects: observed, or taken from the spool where an interrupted call left it."""
        if self.spool is None:
            return self._observed(number, batch, tasks)
        part = 2 * number + self.control  # both adapters' parts wait in one spool
        digest = digested(self.job, [({**batch, "tasks": list(tasks)}, [])])
        if (self.spool.metadata(part) or {}).get("batches") != digest:
            self.spool.write(part, self._observed(number, batch, tasks), {"batches": digest})
        return self.spool.rows(part)

    def _observed(self, number: int, batch: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        torch.manual_seed(int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))
        moved = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        return {name: each.cpu() for name, each in observe(self.model, self.targets, {**moved, "tasks": tasks}).items()}


@dataclass(frozen=True)
class _Control:
    """The untrained adapter in the model.

    Attributes:
        name: Of the adapter; None if there is none.
        told: What factors record of it.
    """

    name: str | None
    told: dict[str, str] | None


@contextmanager
def _control(model: PeftModel, adapter: str, source: Origin | None) -> Iterator[_Control]:
    """The untrained adapter, which is in the model inside the block."""
    if source is None:
        yield _Control(None, {"missing": "as none was asked for (untrained=None)"})
        return
    try:
        name = attach(model, adapter, source)
    except NoControlError as error:
        yield _Control(None, {"missing": str(error)})
        return
    try:
        yield _Control(name, {"text": source.text})
    finally:
        with as_found(model):
            model.delete_adapter(name)
