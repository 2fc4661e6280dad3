"""verify: is a run's first-order claim true? Computes the gradients of some units again, and takes real steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from interference.blocks import ROUTERS, Granularity, coarsen
from interference.config import AnalysisConfig, build
from interference.errors import RunError, ScopeError
from interference.gradients.autograd import Loss
from interference.gradients.examples import single
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Target, probed_adapter
from interference.measurement import checkpoint, objective, sample
from interference.measurement.optimizers import state_of
from interference.measurement.spec import Spec
from interference.measurement.units import Batch, of_collated
from interference.run import Run
from interference.run.remarks import plain_loss
from interference.verification.adam import AdamCheck, held
from interference.verification.derivation import TOGETHER, apart, derive, gram_of, together, unit_gradients
from interference.verification.independent import example_batch
from interference.verification.products import Products
from interference.verification.reading import Losses
from interference.verification.result import Verification
from interference.verification.steps import linear_until, real_steps
from mixlora.common.progress import Progress, silent
from mixlora.common.settings import without_trust


def verify(
    run: Run,
    model: nn.Module,
    batches: Mapping[str, Iterable[Batch]],
    adapter: str | None = None,
    units: int = 2,
    progress: Progress = silent,
    loss: Loss | None = None,
    optimizer: Optimizer | Path | str | None = None,
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
        optimizer: If the run measured AdamW's step, the optimizer whose second moments it read, or the path of its
            saved state.

    Returns:
        Errors of the gradients, of every block of the Gram and of the losses, and how far real steps follow Delta.

    Raises:
        RunError: If the model is not the run's, the batches hold other units, or it measured a loss or read an
            optimizer's state that is not given.
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
    return _verify(run, model, targets, chosen, given, padded, rest, progress, loss, optimizer)


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
    return _verify(run, model, targets, chosen, own, padded, rest, progress, loss, state_of(config))


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
    optimizer: Optimizer | Path | str | None,
) -> Verification:
    """Compare a run with what is derived of the units at `chosen`.

    Args:
        run: The run.
        model: Its model.
        targets: Its probed modules.
        chosen: Places of the units in the run.
        units: Their batches, from which gradients are derived.
        padded: The same examples as the run batches them, with the position in `chosen` of each row's unit.
        rest: One unit of every other part of the run, its place and batches.
        progress: Called as the work goes on.
        loss: That the run measured; None for the mean cross-entropy over supervised tokens.
        optimizer: The optimizer whose second moments it read; None if it read none.
    """
    token_mean = bool(run.meta["token_mean"])
    moments = None if run.meta.get("adam") is None else held(run, model, targets, optimizer)
    padded = list(padded)
    measured = unit_gradients(model, targets, padded, len(chosen), token_mean, loss)
    with as_found(model):
        activate(model, targets[0].adapter)
        derived = derive(model, targets, units, token_mean, loss)
        products, told = Products(run, targets, chosen, derived.rows), dict(zip(chosen, derived.told, strict=True))
        adam = None if moments is None else AdamCheck(run, targets, moments, chosen, derived.rows)
        for place, batches in rest:
            found = derive(model, targets, [batches], token_mean, loss)
            for check in (products, adam):
                if check is not None:
                    check.add(place, found.rows)
            told[place] = found.told[0]
    progress("gradients", len(chosen), len(chosen))
    gram, exact = run.gram()[np.ix_(chosen, chosen)].astype(np.float64), gram_of(derived.rows)
    predicted = gram if run.meta.get("sketch") is None else exact  # sketches' known error is not the gradients'
    losses = Losses(model, units, padded, token_mean, loss)
    steps = real_steps(model, targets, derived.rows, predicted, losses, progress)
    routers = any(block.side in ROUTERS for target in targets for block in target.blocks)
    blocks = products.errors()
    worst = max(blocks, key=lambda name: blocks[name])
    return Verification(
        _errors(run, chosen, measured, derived.rows), blocks[worst], worst, _loss_error(run, told), steps,
        linear_until(steps), _dtype(model), routers,
        None if adam is None else adam.result(model, losses, progress),
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
