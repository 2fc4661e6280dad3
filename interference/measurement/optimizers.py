"""Optimizers: the second moments that AdamW has of the probed parameters, from a saved state or a live optimizer.

A state is read without executing anything, and as a stranger's. Not here: what is made of the moments (`adam`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from interference.blocks import Step
from interference.config import AnalysisConfig
from interference.errors import CheckpointError, ConfigError
from interference.gradients.targets import Target
from interference.gradients.trained import trained_by
from interference.measurement.adam import Moment, Moments
from mixlora.checkpoints.pickled import map_values
from mixlora.common.files import expanded, is_file, is_folder

_FILES = ("optimizer.pt", "optimizer.bin")
"""The names under which a Trainer, and accelerate, save an optimizer's state in a checkpoint."""
_SHARDS = {
    "*.distcp": "FSDP",
    "optimizer_*/*.distcp": "FSDP",
    "optimizer_*_rank*.bin": "FSDP",
    "*optim_states.pt": "DeepSpeed",
    "global_step*/*optim_states.pt": "DeepSpeed",
}
"""What a checkpoint has instead where a state is saved in shards: {pattern: by what}."""
_REMEDY = "name the state that was saved with this adapter (probe.optimizer), or measure with step: gradient"
_SECOND = "exp_avg_sq"
_LEAST = 1e-15  # of eps: the squared length of a step must be a number where v is 0
_FACTORED = {"exp_avg_sq_row", "exp_avg_sq_col"}
_PACKED = {"state2", "qmap2", "absmax2", "__bnb_optimizer_quant_state__"}
_OWN = {"step", "exp_avg", _SECOND, "max_exp_avg_sq"}


def moments_of(
    step: Step, optimizer: "torch.optim.Optimizer | Path | str | None", model: nn.Module, targets: Sequence[Target]
) -> Moments | None:
    """The second moments of the probed parameters; None where no step of AdamW is measured, or they are estimated.

    Args:
        step: what is measured.
        optimizer: a live one, or the path of its saved state; None where there is none.
        model: the model.
        targets: its probed modules.

    Raises:
        ConfigError: if an optimizer is given that nothing reads, or that is not one.
        CheckpointError: as `from_file` and `from_optimizer`.
    """
    if optimizer is None:
        return None
    if step is not Step.ADAM:
        raise ConfigError(
            "an optimizer is given, but only the step of AdamW reads it; add step='adam', or leave it out"
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        return from_optimizer(optimizer, targets)
    if not isinstance(optimizer, str | Path):
        kind = type(optimizer).__name__
        raise ConfigError(f"optimizer is a {kind}, but must be a torch.optim.Optimizer or the path of its saved state")
    return from_file(expanded(optimizer), model, targets)


def of_config(config: AnalysisConfig, model: nn.Module, targets: Sequence[Target]) -> Moments | None:
    """`moments_of` the state that a configuration names, else of the one beside its adapter."""
    return moments_of(Step(config.probe.step), state_of(config), model, targets)


def state_of(config: AnalysisConfig) -> Path | None:
    """Where a configuration's optimizer state is: as it says, else beside the adapter; None where there is none.

    Raises:
        CheckpointError: if it is not where the configuration says, or in shards.
    """
    if config.probe.step != Step.ADAM:
        return None
    if config.probe.optimizer is not None:
        return file_of(Path(config.probe.optimizer))
    return _found(Path(config.model.adapter))


def of_trainer(
    trainer: Trainer, step: Step, given: "torch.optim.Optimizer | Path | str | None"
) -> "torch.optim.Optimizer | Path | str | None":
    """The optimizer that was given, else the Trainer's own once it has taken a step, where AdamW's step is measured.

    Raises:
        CheckpointError: if the Trainer's own is DeepSpeed's.
    """
    if given is not None or step is not Step.ADAM:
        return given
    if trainer.is_deepspeed_enabled:
        raise CheckpointError(
            "the training uses DeepSpeed, whose optimizer keeps second moments in flat parts that cannot be read; "
            "measure with step='gradient'"
        )
    own = trainer.optimizer
    return own if getattr(own, "state", None) else None


def from_file(path: Path, model: nn.Module, targets: Sequence[Target]) -> Moments:
    """The second moments in a Trainer's optimizer.pt.

    The state numbers parameters in the order in which the Trainer made its groups: those that decay, then the others,
    each in the order of `named_parameters`.

    Args:
        path: the file, or the checkpoint that holds it.
        model: whose adapter the state belongs to.
        targets: the probed modules.

    Raises:
        CheckpointError: if there is no such file, it is not AdamW's state, or belongs to another adapter.
    """
    held = map_values(path := file_of(path))
    held = held if isinstance(held, Mapping) else {}
    state, groups = held.get("state"), held.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list) or not all(map(_is_group, groups)):
        raise CheckpointError(f"{path} {_other_file(held)}; {_REMEDY}")
    entries = {}
    for parameter, group, number in _numbered(str(path), groups, model, targets[0].adapter):
        entries[id(parameter)] = (state.get(number), group)
        _check_shape(f"{path}, parameter {number}", state.get(number), parameter)
    return _moments(str(path), entries, targets)


def file_of(path: Path) -> Path:
    """The file of a saved state, or of the checkpoint that has it.

    Raises:
        CheckpointError: if there is none, or it is in shards.
    """
    if (found := _found(path)) is None:
        raise CheckpointError(f"there is no optimizer's state at {path}; {_REMEDY}")
    return found


def _found(path: Path) -> Path | None:
    """`file_of`; None if there is none."""
    for file in (path, *(path / name for name in _FILES)):
        if is_file(file):
            return file
    for pattern, engine in _SHARDS.items() if is_folder(path) else ():
        if shard := next(path.glob(pattern), None):
            raise CheckpointError(
                f"{shard} is a shard of an optimizer's state, as {engine} saves it, which cannot be read; measure with "
                "step: gradient, or a copy of the adapter without it, for which second moments are estimated"
            )
    return None


def from_optimizer(optimizer: torch.optim.Optimizer, targets: Sequence[Target]) -> Moments:
    """The second moments of a live optimizer.

    Args:
        optimizer: AdamW that trains the model, also as accelerate wraps it.
        targets: the probed modules.

    Raises:
        CheckpointError: if it is not AdamW, has taken no step, or does not train a probed parameter.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    entries = {
        id(parameter): (optimizer.state.get(parameter), group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return _moments(f"the optimizer {type(optimizer).__name__}", entries, targets)


def _is_group(group: Any) -> bool:
    numbers = group.get("params") if isinstance(group, Mapping) else None
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _numbered(
    source: str, groups: Sequence[Mapping[str, Any]], model: nn.Module, adapter: str
) -> Iterator[tuple[nn.Parameter, Mapping[str, Any], int]]:
    """The parameters that an adapter trains, each with its group in a saved state and its number there."""
    trained = {id(parameter) for parameter in trained_by(model, adapter)}
    named = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in trained}
    decaying = set(Trainer.get_decay_parameter_names(cast(Trainer, None), model))  # it asks nothing of the Trainer
    apart = [[p for n, p in named.items() if (n in decaying) is wanted] for wanted in (True, False)]
    numbers = [group["params"] for group in groups]
    for order in (apart, [list(named.values())]):
        if [*map(len, order)] == [*map(len, numbers)]:
            for parameters, group in zip(order, groups, strict=True):
                yield from ((p, group, n) for p, n in zip(parameters, group["params"], strict=True))
            return
    raise CheckpointError(
        f"{source} is of {_counted(map(len, numbers))} parameters in its groups, but adapter {adapter!r} trains "
        f"{_counted(map(len, apart))} (with and without decay): it is of another adapter or not a Trainer's; {_REMEDY}"
    )


def _counted(counts: Iterator[int]) -> str:
    return " + ".join(map(str, counts)) or "0"


def _moments(source: str, entries: Mapping[int, tuple[Any, Mapping[str, Any]]], targets: Sequence[Target]) -> Moments:
    """The moments of the probed parameters, by their blocks."""
    held = [entry for entry, _ in entries.values() if entry]
    if not held:
        raise CheckpointError(
            f"{source} has no state of any parameter: it has taken no step, or keeps no moments (SGD); {_REMEDY}"
        )
    found = {}
    for target in targets:
        for tap in target.taps.values():
            entry, group = entries.get(id(tap.weight), (None, {}))
            place = f"{source}, {tap.block.name}"
            if not entry:
                raise CheckpointError(f"{place}: the state lacks this parameter, which is probed; {_REMEDY}")
            found[tap.block.name] = _moment(place, entry, group, tap.weight)
    return Moments(found, source)


def _moment(place: str, entry: Any, group: Mapping[str, Any], weight: Tensor) -> Moment:
    """One parameter's moment, checked as a stranger's."""
    keys = set(entry) if isinstance(entry, Mapping) else set()
    squares = entry.get("max_exp_avg_sq" if group.get("amsgrad") else _SECOND) if keys else None
    if not _is_plain(squares) or keys - _OWN:
        raise CheckpointError(f"{place}: {_other_kind(keys, squares)}; {_REMEDY}")
    if not isinstance(group.get("amsgrad"), bool) or group.get("maximize"):
        raise CheckpointError(
            f"{place}: the state is not of a torch.optim.AdamW that lowers a loss: its settings are "
            f"{', '.join(sorted(f'{key!s:.40}' for key in group if key != 'params')[:16])}; {_REMEDY}"
        )
    _check_shape(place, entry, weight)
    squares = squares.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(squares).all()) or bool((squares < 0).any()):
        raise CheckpointError(f"{place}: the second moments are not all finite and at least 0; {_REMEDY}")
    step, betas, eps = entry.get("step"), group.get("betas"), group.get("eps", 0.0)
    number = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    if not _within(number, 1, 2**53):
        raise CheckpointError(f"{place}: the state is of step {number!r:.40}, but AdamW must have taken one; {_REMEDY}")
    rates = list(betas) if isinstance(betas, list | tuple) and len(betas) == 2 else []
    if not rates or not all(_within(rate, 0, 1 - 1e-12) for rate in rates) or not _within(eps, _LEAST, 1):
        raise CheckpointError(f"{place}: no step of AdamW has betas {betas!r:.40} and eps {eps!r:.40}; {_REMEDY}")
    return Moment(squares, int(number), (float(rates[0]), float(rates[1])), float(eps))


def _check_shape(place: str, entry: Any, weight: Tensor) -> None:
    """Raise a CheckpointError if a parameter's moments are of another shape than the parameter."""
    squares = entry.get(_SECOND) if isinstance(entry, Mapping) else None
    if isinstance(squares, Tensor) and squares.shape != weight.shape:
        raise CheckpointError(
            f"{place}: the state is of shape {[*squares.shape]}, but the adapter's parameter of {[*weight.shape]}: it "
            f"is of another adapter; {_REMEDY}"
        )


def _within(value: Any, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )


def _is_plain(squares: Any) -> TypeGuard[Tensor]:
    """Whether second moments are an ordinary tensor: neither a part of one, nor packed."""
    return type(squares) is Tensor and squares.is_floating_point() and squares.layout is torch.strided


def _other_kind(keys: set[Any], squares: Any) -> str:
    """What a parameter's state is of, where it is not AdamW's."""
    names = ", ".join(sorted(f"{key!s:.40}" for key in keys)[:8]) or "nothing by name"
    if keys & _FACTORED:
        kind = "the factored state of Adafactor"
    elif keys & _PACKED:
        kind = "a state of bitsandbytes, whose moments are named otherwise and may be packed in 8 bits"
    elif "momentum_buffer" in keys:
        kind = "the state of SGD"
    elif isinstance(squares, Tensor) and type(squares) is not Tensor:
        kind = f"second moments in a {type(squares).__name__}, in parts (FSDP) or packed"
    elif "exp_avg" in keys and _SECOND not in keys:
        kind = "a state without second moments, as Lion's"
    else:
        kind = "the state of another optimizer than AdamW"
    return f"the state has {names}: {kind}; AdamW's step needs {_SECOND} of torch.optim.AdamW"


def _other_file(held: Mapping[Any, Any]) -> str:
    """What a file has, where it is not a torch optimizer's numbered state."""
    if {"optimizer_state_dict", "base_optimizer_state"} & set(held):
        return "is a state of DeepSpeed, which has second moments in flat parts"
    if isinstance(held.get("state"), Mapping) and any(isinstance(name, str) for name in held["state"]):
        return "is a state whose parameters have names instead of numbers, as FSDP saves it"
    return "is not an optimizer's state: it has no state and param_groups"
