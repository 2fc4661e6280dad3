"""Conversion: released checkpoints of MixLoRA and LLaVA v1 to files for a Hugging Face LLaVA.

Files are mapped, and only the tensors of the adapter and the projector are read. The base's weights are never copied.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mixlora.checkpoints import formats
from mixlora.checkpoints.formats import (
    ADAPTER,
    ADAPTER_CONFIG,
    BESIDE_LORA,
    CONVERTED,
    NAMESPACE,
    Kind,
    Settings,
    State,
    read_json,
)
from mixlora.checkpoints.pickled import map_tensors
from mixlora.checkpoints.projector import Projector, convert, load_projector, own_copy
from mixlora.common.directories import is_occupied
from mixlora.common.errors import CheckpointError, unwritable
from mixlora.common.writing import whole_directory

__all__ = ["Imported", "import_checkpoint", "load_projector"]  # public as `mixlora.official`

_OLD, _NEW = "base_model.model.model.layers.", "base_model.model.model.language_model.layers."
_CONDITIONAL = "cmoa_loarB_extra_selector.loraA_param2loraB_selector.weight"
_PLAIN_LORA: dict[str, Any] = {
    "bias": "none",
    "modules_to_save": None,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
_LORA_ENDS = ("lora_A.weight", "lora_B.weight")


@dataclass(frozen=True)
class Imported:
    """The result of a conversion.

    Attributes:
        kind: Of the source.
        out: The directory that was written.
        modules: The number of adapted Linears.
        parameters: The adapter's number of parameters; 0 if the source is only a projector.
        projector_hidden_act: The value that the base's configuration must have for the projector to compute the same;
            None if the source has no projector.
    """

    kind: Kind
    out: Path
    modules: int
    parameters: int
    projector_hidden_act: str | None


@dataclass(frozen=True)
class _Adapter:
    config: dict[str, Any]
    modules: int
    tensors: dict[str, Tensor]


def import_checkpoint(source: Path | str, out: Path | str, *, base: str | None = None) -> Imported:
    """Convert a released MixLoRA checkpoint, a LLaVA v1 LoRA or a LLaVA v1 projector.

    Args:
        source: The released directory, or `mm_projector.bin`.
        out: A new directory for `adapter_config.json` and `adapter_model.safetensors` (for PeftModel.from_pretrained)
            and `projector.safetensors` (for `load_projector`), if the source has them.
        base: Path or hub id of the Hugging Face LLaVA of the adapter; stored in the adapter's configuration.

    Returns:
        What was recognised and written.

    Raises:
        CheckpointError: If the source is none of these, is incomplete or inconsistent, or has settings that the adapter
            cannot express; or if `out` is not empty or cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from mixlora import official
        >>> weights = {"model.mm_projector.weight": torch.ones(8, 4), "model.mm_projector.bias": torch.ones(8)}
        >>> with tempfile.TemporaryDirectory() as name:
        ...     torch.save(weights, Path(name, "mm_projector.bin"))
        ...     found = official.import_checkpoint(Path(name, "mm_projector.bin"), Path(name, "converted"))
        >>> str(found.kind), found.projector_hidden_act
        ('LLaVA v1 projector', 'linear')
    """
    source, out = Path(source), Path(out)
    if is_occupied(out):
        raise CheckpointError(f"{out} is not empty; name a new directory")
    kind = formats.recognise(source)
    adapter: _Adapter | None = None
    projector: Projector | None = None
    if kind is Kind.RELEASED:
        state = formats.released_state(source)
        adapter, projector = _mixlora(source, state, base), convert(state)
    elif kind in (Kind.LLAVA_LORA, Kind.LORA):
        adapter = _lora(source, base)
        if kind is Kind.LLAVA_LORA:
            projector = convert(State(source / BESIDE_LORA, map_tensors(source / BESIDE_LORA)))
    elif kind is Kind.PROJECTOR:
        projector = convert(formats.projector_state(source))
    else:
        raise CheckpointError(f"{source} is already a {kind}; there is nothing to convert")
    _write(out, adapter, projector)
    parameters = sum(tensor.numel() for tensor in adapter.tensors.values()) if adapter else 0
    return Imported(
        kind, out, adapter.modules if adapter else 0, parameters, projector.hidden_act if projector else None
    )


def _mixlora(source: Path, state: State, base: str | None) -> _Adapter:
    """A released MixLoRA as an adapter of the PEFT method MIXLORA."""
    settings = formats.released_settings(source)
    if not state.adapted:
        raise CheckpointError(f"{source} has no factors: no name like {_OLD}0.mlp.up_proj.lora_A.default.0")
    conditional = any(_CONDITIONAL in names for names in state.adapted.values())
    own = read_json(source / "config.json") if (source / "config.json").is_file() else {}
    _check_width(state, formats.whole_number(own, "hidden_size"))
    layers = max(max(layer for layer, _ in state.adapted) + 1, formats.whole_number(own, "num_hidden_layers"))
    modules = [(layer, name) for layer in range(layers) for name in sorted({name for _, name in state.adapted})]
    tensors = {}
    for layer, name in modules:
        for key, tensor in _module(state, f"{_OLD}{layer}.{name}.", settings, conditional).items():
            tensors[f"{_NEW}{layer}.{name}.{key}"] = tensor
    config = _config("MIXLORA", base, modules, layers) | {
        "r": settings.r,
        "num_factors": settings.factors,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "routing": "instance",
        "conditional": conditional,
        "router_gradient": "none",
        "pooling": "all",
        "decode_routing": "token",
        "cfs_form": "official",
        "factor_init": "kaiming",
        "format_version": 1,
    }
    return _Adapter(config, len(modules), tensors)


def _check_width(state: State, hidden: int) -> None:
    """Refuse factors of another width than config.json's hidden size, if it names one."""
    key = f"{_OLD}0.self_attn.q_proj.lora_A.default.0"
    if hidden and key in state.tensors and (width := state.take(key, 1, None).shape[1]) != hidden:
        raise CheckpointError(
            f"{key} in {state.where} has shape (1, {width}), but config.json's hidden_size asks for (1, {hidden})"
        )


def _module(state: State, stem: str, settings: Settings, conditional: bool) -> dict[str, Tensor]:
    """The tensors of one adapted Linear by their new names: factors [E, d_in] and [E, d_out], W_AB [r, d_in, E]."""
    factors, r = settings.factors, settings.r
    a, b = (_stacked(state, f"{stem}lora_{side}.default", factors) for side in "AB")
    d_in = a.shape[1]
    if f"{stem}weight" in state.tensors:
        state.take(f"{stem}weight", b.shape[1], d_in)
    own, extra = f"{stem}cmoa_selector", f"{stem}cmoa_loarB_extra_selector"
    routers = {
        "independent_A": state.take(f"{own}.loraA_selector.weight", factors, d_in),
        "independent_B": state.take(f"{extra if conditional else own}.loraB_selector.weight", factors, d_in),
    }
    if conditional:
        flat = state.take(f"{stem}{_CONDITIONAL}", factors, r * d_in)
        routers["conditional"] = flat.reshape(factors, r, d_in).permute(1, 2, 0)
    named = {f"mixlora_router.{name}.weight": own_copy(weight) for name, weight in routers.items()}
    return {"mixlora_A": a, "mixlora_B": b} | named


def _stacked(state: State, stem: str, count: int) -> Tensor:
    """Factors [count, d] of tensors (1, d) named stem.0, stem.1, ..."""
    width = state.take(f"{stem}.0", 1, None).shape[1]
    rows = [state.take(f"{stem}.{index}", 1, width) for index in range(count)]
    if f"{stem}.{count}" in state.tensors:
        raise CheckpointError(f"{state.where} holds {stem}.{count}, but {NAMESPACE} says n_experts = {count}")
    return torch.cat(rows)


def _lora(source: Path, base: str | None) -> _Adapter:
    """LLaVA v1's LoRA with the module names of a Hugging Face LLaVA; the values do not change."""
    config = read_json(source / ADAPTER_CONFIG)
    for name, only in _PLAIN_LORA.items():
        if config.get(name) and config[name] != only:
            raise CheckpointError(
                f"{name} is {config[name]!r} in {source / ADAPTER_CONFIG}; only {only!r} is converted"
            )
    state = formats.adapter_state(source)
    if not state.adapted:
        raise CheckpointError(f"{state.where} has no LoRA factors: no name like {_OLD}0.mlp.up_proj.lora_A.weight")
    r = formats.number(source / ADAPTER_CONFIG, config, "r", 1, None, int)
    alpha = formats.number(source / ADAPTER_CONFIG, config, "lora_alpha", 0, None, int, float)
    known = {f"{_OLD}{layer}.{name}.{end}" for layer, name in state.adapted for end in _LORA_ENDS}
    for key in sorted(state.tensors.keys() - known):
        raise CheckpointError(f"{state.where} holds {key}, which is not a LoRA factor of LLaVA v1's language model")
    tensors = {}
    for layer, name in sorted(state.adapted):
        for end, shape in zip(_LORA_ENDS, ((r, None), (None, r)), strict=True):
            tensors[f"{_NEW}{layer}.{name}.{end}"] = own_copy(state.take(f"{_OLD}{layer}.{name}.{end}", *shape))
    own = read_json(source / "config.json") if (source / "config.json").is_file() else {}
    layers = max(max(layer for layer, _ in state.adapted) + 1, formats.whole_number(own, "num_hidden_layers"))
    if config.get("layers_to_transform") is not None:
        layers = 0
    converted = _config("LORA", base, state.adapted, layers) | {
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": config.get("lora_dropout", 0.0),
        "use_rslora": bool(config.get("use_rslora")),
        "bias": "none",
    }
    return _Adapter(converted, len(state.adapted), tensors)


def _config(kind: str, base: str | None, modules: Iterable[tuple[int, str]], layers: int) -> dict[str, Any]:
    return {
        "peft_type": kind,
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": _targets(set(modules), layers),
    }


def _targets(modules: set[tuple[int, str]], layers: int) -> str:
    """A pattern of the language model's adapted modules; the image encoder's modules of the same names do not match.

    Args:
        modules: (layer, projection) of each.
        layers: The number of the language model's layers; 0 if not every layer may be adapted.
    """
    names = sorted({name for _, name in modules})
    if modules == {(layer, name) for layer in range(layers) for name in names}:
        return rf".*language_model.*\.({'|'.join(sorted(name.partition('.')[2] for name in names))})"
    each = "|".join(re.escape(f"{layer}.{name}") for layer, name in sorted(modules))
    return rf".*language_model\.layers\.({each})"


def _write(out: Path, adapter: _Adapter | None, projector: Projector | None) -> None:
    try:
        with whole_directory(out.resolve()) as folder:
            if adapter:
                text = json.dumps(adapter.config, indent=2) + "\n"
                (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
                save_file(adapter.tensors, folder / ADAPTER, {"format": "pt"})
            if projector:
                metadata = {"format": "pt", "projector_hidden_act": projector.hidden_act}
                save_file(projector.tensors, folder / CONVERTED, metadata)
    except (OSError, SafetensorError) as error:
        raise unwritable(f"{out} cannot be written", error, CheckpointError, "directory", "start again") from None
