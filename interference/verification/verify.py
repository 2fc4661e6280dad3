"""verify: is a run's first-order claim true? Computes the gradients of some units again, and takes real steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from interference.blocks import ROUTERS, Granularity, coarsen
from interference.config import AnalysisConfig, build
from interference.errors import RunError, ScopeError
from interference.gradients.autograd import Loss
from interference.gradients.examples import single
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Target, probed_adapter
from interference.measurement import checkpoint, objective, sample
from interference.measurement.spec import Spec
from interference.measurement.units import Batch, of_collated
from interference.run import Run
from interference.run.remarks import plain_loss
from interference.verification.derivation import TOGETHER, apart, derive, gram_of, together, unit_gradients
from interference.verification.independent import example_batch
from interference.verification.products import Products
from interference.verification.steps import linear_until, real_steps
from mixlora.common.progress import Progress, silent
from mixlora.common.settings import without_trust

TOLERANCES = {"float64": 1e-5, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.2, "4-bit": 0.01, "8-bit": 0.2}
"""Relative errors of a gradient that a base's precision alone causes: padding changes the rounding, and 8-bit Linears
round their inputs, too."""


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        gradients: One row per recomputed unit. `task` and `source` name it; `norm` is that of its gradient. `error` is
            the error against batch-1 autograd, relative to that norm or to the median unit's, whichever is larger: the
            gradient of a loss near 0 is a difference of nearly equal numbers and has few right digits. `own_error` is
            relative to its own norm. `worst_block` is the block that differs most, `worst_error` its error relative to
            that block (no block if the two ways agree to the bit).
        gram_error: Largest |K - K'| / sqrt(K'[u,u] K'[v,v]) of any block, those of the weight-space view included. K is
            the run's Gram; K' that of the derived gradients, or of their sketches if the run is of sketches. Compared
            are the units in `gradients`, and one unit of every other part of the run against them. K'[u,u] counts as
            at least 1e-4 of that of the largest block of its side in the median unit.
        gram_block: The block that differs most.
        loss_error: Largest error of the loss of one of these units, relative to it or to the median unit's, whichever
            is larger; inf where a unit has another number of supervised tokens.
        steps: One row per step size: `step` (lambda), `predicted` (root mean square fall of the loss, nats per token),
            `slope` of the real fall on the predicted one, `correlation`, `pairs` of units.
        linear_until: The largest step up to which slope lies within 0.9 to 1.1 and correlation above 0.99; 0 if none.
        dtype: Dtype of the base's weights: "float32", "bfloat16", "float16", "float64", "4-bit" or "8-bit".
        routers: Whether MixLoRA's routers were measured; their straight-through gradient is not the loss's derivative.
    """

    gradients: pd.DataFrame
    gram_error: float
    gram_block: str
    loss_error: float
    steps: pd.DataFrame
    linear_until: float
    dtype: str
    routers: bool = False

    @property
    def error(self) -> float:
        """The largest relative error of a unit's gradient."""
        return float(self.gradients["error"].max())

    @property
    def passed(self) -> bool:
        """Whether gradients, Gram and losses are autograd's within the base's precision, and small steps as told."""
        tolerance = TOLERANCES[self.dtype]
        right = self.error <= tolerance and self.gram_error <= 3 * tolerance  # an inner product has the error of two
        return right and self.loss_error <= tolerance and (self.linear_until > 0 or self.dtype != "float32")

    def summary(self) -> pd.DataFrame:
        """The steps with the gradient errors.

        Returns:
            One row per step size: the columns of `steps`, gradient_error, gram_error, gram_block, loss_error,
            linear_until, passed.
        """
        return self.steps.assign(
            gradient_error=self.error, gram_error=self.gram_error, gram_block=self.gram_block,
            loss_error=self.loss_error, linear_until=self.linear_until, passed=self.passed,
        )  # fmt: skip


def verify(
    run: Run,
    model: nn.Module,
    batches: Mapping[str, Iterable[Batch]],
    adapter: str | None = None,
    units: int = 2,
    progress: Progress = silent,
    loss: Loss | None = None,
) -> Verification:
    """Verify a run of `interference.compute` with the model and the batches it was computed from.

    Args:
        run: The run.
        model: The same model; parameters are moved along gradients and restored to the bit.
        batches: The same batches.
        adapter: The probed adapter; None for the active one.
        units: Units to recompute for each task, drawn with the run's seed. One unit of every other measured batch is
            added.
        progress: Called as the work goes on.
        loss: The loss that the run measured, if it was the caller's or a trainer's.

    Returns:
        Errors of the gradients, of every block of the Gram and of the losses, and how far real steps follow Delta.

    Raises:
        RunError: If the model is not the run's, the batches hold other units, or it measured a loss that is not given.
        ScopeError: If only one unit would be derived: the steps of a unit are read off the losses of others.
        MeasurementError: If no step moves another unit's loss.

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
        >>> run = interference.compute(model, batches)
        >>> interference.verify(run, model, batches).error < 1e-4
        True
    """
    checkpoint.refuse_other(model, run.meta, "the run", probed_adapter(model, adapter))
    unit = str(run.meta["unit"])
    chosen = _chosen(run, units)
    rows: dict[int, Batch] = {}
    count = 0
    for part in of_collated(model, batches, unit):
        places = range(count, count + len(part.units))
        for place in [place for place in places if place in chosen] or places[:1]:
            ((batch, owners),) = part.batches
            alone = len(batch["labels"]) == 1 or unit == "batch"
            own = batch if alone else single(batch, owners.index(place - count))
            rows[place] = own if place in chosen else _on(own, "cpu")  # there may be as many as the run has units
        count += len(part.units)
    if count != len(run.probes):
        raise RunError(
            f"the batches contain {count} units, but the run has {len(run.probes)}; pass the run's own batches"
        )
    scope = run.meta.get("scope") or {}
    targets = _targets(run, model, scope.get("layers"), scope.get("modules"), adapter)
    loss = _loss(run, model, targets, rows[chosen[0]]) if loss is None else loss
    given = [[rows[k]] for k in chosen]
    device = next(model.parameters()).device
    rest = ((k, [_on(batch, device)]) for k, batch in rows.items() if k not in chosen)
    padded = together(given) if loss is None else apart(given)
    return _verify(run, model, targets, chosen, given, padded, rest, progress, loss)


def verify_config(
    run: Run, units: int = 2, progress: Progress = silent, trust_remote_code: bool = False
) -> Verification:
    """Verify a run that `interference compute` made, from the checkpoint and files its configuration names.

    Args:
        run: The run.
        units: Units to recompute for each task, drawn with the run's seed. One unit of every other measured batch is
            added.
        progress: Called as the work goes on.
        trust_remote_code: Run code that comes with the base, whatever the run says.

    Returns:
        Errors of the gradients, of every block of the Gram and of the losses, and how far real steps follow Delta.

    Raises:
        RunError: If the run has no configuration, or model or data have changed since then.
        MeasurementError: If an example was measured as other tokens than its processor gives; or as `verify`.
        ScopeError: As `verify`.
    """
    if run.meta.get("config") is None:
        raise RunError(
            "the run was computed from a notebook; verify it there: interference.verify(run, model, batches)"
        )
    config: AnalysisConfig = build(without_trust(run.meta["config"]), "the run's configuration")
    config.model.trust_remote_code = trust_remote_code
    encoded = sample.encode(sample.read(config), sample.collator_of(config), config)
    if sample.describe(encoded)["fingerprint"] != (run.meta.get("data") or {}).get("fingerprint"):
        raise RunError("the examples have changed since the run was computed; compute it again")
    if run.groups is not None and run.groups != [unit.group for unit in encoded.units]:
        raise RunError(
            "the groups of examples have changed since the run was computed (other labels, or other pictures in "
            "common), and its intervals use the old ones; compute it again"
        )
    model = checkpoint.load_model(config.model)
    checkpoint.refuse_other(model, run.meta, "the run")
    targets = _targets(run, model, config.probe.layers, config.probe.modules)
    chosen = _chosen(run, units)
    own = [sample.example_batches(encoded, place, example_batch, model.device) for place in chosen]
    loss = _loss(run, model, targets, own[0][0])
    size = TOGETHER if loss is None else 1
    padded = sample.padded_batches(encoded, chosen, size, model.device)
    others = [part[0] for part in sample.parts_of(encoded, config) if not set(part) & set(chosen)]
    rest = ((place, sample.example_batches(encoded, place, example_batch, model.device)) for place in others)
    return _verify(run, model, targets, chosen, own, padded, rest, progress, loss)


def _verify(
    run: Run,
    model: nn.Module,
    targets: Sequence[Target],
    chosen: list[int],
    units: Sequence[list[Batch]],
    padded: Iterable[tuple[Batch, Sequence[int]]],
    rest: Iterable[tuple[int, list[Batch]]],
    progress: Progress,
    loss: Loss | None,
) -> Verification:
    """Compare a run with what is derived of the units at `chosen`.

    Args:
        run: The run.
        model: Its model.
        targets: Its probed modules.
        chosen: Places of the units in the run.
        units: Their batches, from which gradients are derived and losses read.
        padded: The same examples as the run batches them, with the position in `chosen` of each row's unit.
        rest: One unit of every other part of the run, its place and batches.
        progress: Called as the work goes on.
        loss: That the run measured; None for the mean cross-entropy over supervised tokens.
    """
    token_mean = bool(run.meta["token_mean"])
    measured = unit_gradients(model, targets, padded, len(chosen), token_mean, loss)
    with as_found(model):
        activate(model, targets[0].adapter)
        derived = derive(model, targets, units, token_mean, loss)
        products, told = Products(run, targets, chosen, derived.rows), dict(zip(chosen, derived.told, strict=True))
        for place, batches in rest:
            found = derive(model, targets, [batches], token_mean, loss)
            products.add(place, found.rows)
            told[place] = found.told[0]
    progress("gradients", len(chosen), len(chosen))
    gram, exact = run.gram()[np.ix_(chosen, chosen)].astype(np.float64), gram_of(derived.rows)
    predicted = gram if run.meta.get("sketch") is None else exact  # sketches' known error is not the gradients'
    steps = real_steps(model, targets, units, derived.rows, predicted, token_mean, progress, loss)
    routers = any(block.side in ROUTERS for target in targets for block in target.blocks)
    blocks = products.errors()
    worst = max(blocks, key=lambda name: blocks[name])
    return Verification(
        _errors(run, chosen, measured, derived.rows), blocks[worst], worst, _loss_error(run, told), steps,
        linear_until(steps), _dtype(model), routers,
    )  # fmt: skip


def _loss_error(run: Run, told: Mapping[int, tuple[float, int]]) -> float:
    """How far a run's losses are from those derived of its units: {place: loss, supervised tokens}."""
    kept = run.probes.iloc[list(told)]
    losses, tokens = (np.array(values) for values in zip(*told.values(), strict=True))
    if (kept["tokens"].to_numpy() != tokens).any():
        return math.inf
    size = np.maximum(np.abs(losses), np.median(np.abs(losses)))
    off = np.abs(kept["loss"].to_numpy() - losses)
    return float(np.where(np.isfinite(off), off / np.where(size > 0, size, 1), math.inf).max())


def _on(batch: Batch, device: torch.device | str) -> Batch:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _loss(run: Run, model: nn.Module, targets: Sequence[Target], batch: Batch) -> Loss | None:
    """The loss of a run, where the model alone tells it; None for the mean cross-entropy over supervised tokens.

    Raises:
        RunError: If it was the caller's or a trainer's.
    """
    if plain_loss(run.meta):
        return None
    own = objective.of_model(model, targets[0].adapter, batch)
    if own.words == run.meta["loss"]:
        return own.loss
    trained = " and the batches of interference.trainer_batches(trainer, ...)" if run.meta.get("trainer") else ""
    how = "trainer.compute_loss" if trained else "the same function"
    raise RunError(f"the run measured {run.meta['loss']}; verify needs that loss: pass loss={how}{trained}")


def _chosen(run: Run, units: int) -> list[int]:
    """Places in the run of `units` units of every task, drawn with the run's seed."""
    rng = np.random.default_rng(run.seed)
    places = [np.flatnonzero(run.probes["task"] == task) for task in run.tasks]
    chosen = sorted(int(k) for found in places for k in rng.permutation(found)[:units])
    if len(chosen) < 2:
        raise ScopeError("a run of one task is verified by two units or more: steps of one are read off another's loss")
    return chosen


def _targets(
    run: Run,
    model: nn.Module,
    layers: Sequence[int] | None,
    modules: Sequence[str] | None,
    adapter: str | None = None,
) -> list[Target]:
    """The targets in the run's scope whose blocks it holds."""
    kept, granularity = set(run.blocks["name"]), Granularity(run.meta["granularity"])
    routers = bool(run.blocks["side"].isin(ROUTERS).any())
    spec = Spec(layers, modules, adapter, sorted(set(run.blocks["component"])), routers)
    return [target for target in spec.targets(model) if coarsen(target.place, granularity).name in kept]


def _errors(run: Run, chosen: list[int], measured: dict[str, Tensor], derived: dict[str, Tensor]) -> pd.DataFrame:
    names = list(derived)
    off = torch.stack([(measured[name] - derived[name]).flatten(1).double().norm(dim=1) for name in names], dim=1)
    size = torch.stack([derived[name].flatten(1).double().norm(dim=1) for name in names], dim=1)
    relative = torch.where(size > 0, off / size, off)
    worst = relative.max(dim=1)
    frame = run.probes.iloc[chosen][["task", "source"]].reset_index(drop=True)
    error, norm = off.norm(dim=1), size.norm(dim=1)
    frame["norm"] = norm.numpy()
    frame["error"] = (error / norm.clamp(min=float(norm.median()))).numpy()
    frame["own_error"] = (error / norm).numpy()
    frame["worst_block"] = [
        names[int(k)] if value > 0 else "" for k, value in zip(worst.indices, worst.values, strict=True)
    ]
    frame["worst_error"] = worst.values.numpy()
    return frame


def _dtype(model: nn.Module) -> str:
    """The dtype of most of the model's floating-point weights, or how many bits quantised ones have."""
    for dtype, name in ((torch.int8, "8-bit"), (torch.uint8, "4-bit")):
        if any(parameter.dtype == dtype for parameter in model.parameters()):
            return name
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            name = str(parameter.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name])
