"""Inspection: what an adapter, a released checkpoint or a projector on disk holds, without loading a model."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixlora.checkpoints import formats
from mixlora.checkpoints.formats import ADAPTER_CONFIG, BESIDE_LORA, CONVERTED, Kind, State, read_json
from mixlora.checkpoints.pickled import map_tensors
from mixlora.common.errors import CheckpointError, plain

_OPTIONS = {  # keys of an adapter's configuration that are printed
    Kind.MIXLORA: ["routing", "conditional", "router_gradient", "pooling", "decode_routing", "cfs_form", "factor_init"],
    Kind.LORA: ["use_rslora", "use_dora", "rank_pattern", "alpha_pattern"],
    Kind.LLAVA_LORA: ["use_rslora", "use_dora", "rank_pattern", "alpha_pattern"],
}
_PARTS = (  # the part that a tensor belongs to, by its name
    ("factors A", re.compile(r".*\.(mixlora_A|lora_A\.weight|lora_A\.default\.\d+|lora_embedding_A)")),
    ("factors B", re.compile(r".*\.(mixlora_B|lora_B\.weight|lora_B\.default\.\d+|lora_embedding_B)")),
    ("routers", re.compile(r".*\.(mixlora_router|cmoa_selector|cmoa_loarB_extra_selector)\..+")),
    ("projector", re.compile(r"(.*\.)?(mm_projector|multi_modal_projector)\..+")),
    ("task embeddings", re.compile(r".*\bmixlora_tasks\..+")),
)
_INDEPENDENT = re.compile(r".*\.(independent_[AB]|lora[AB]_selector)\.weight")
_CONDITIONAL = re.compile(r".*\.(conditional|loraA_param2loraB_selector)\.weight")


@dataclass(frozen=True)
class Description:
    """The description of a path's content.

    Attributes:
        path: as given.
        kind: the kind of checkpoint.
        r: rank, or the number of factors that an instance uses; None for a projector.
        factors: E of a MixLoRA.
        alpha: of the adapter.
        scaling: factor of the adapter's output.
        options: of routing, or of the variant of LoRA.
        modules: the number of adapted Linears.
        parameters: {part: number} of the existing parts; the base's weights are not counted.
        outside: share of the routers' entries outside their initial range; None without routers.
    """

    path: str
    kind: str
    r: int | None = None
    factors: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    modules: int = 0
    parameters: dict[str, int] = field(default_factory=dict)
    outside: float | None = None

    @property
    def routers(self) -> str:
        """Whether the routers seem to be trained."""
        if self.outside is None:
            return "none"
        if self.outside == 0:
            return "inside their initial range (as released: never trained, or hardly)"
        return f"trained: {100 * self.outside:.3g}% of their entries are outside the initial range"

    def __str__(self) -> str:
        lines: dict[str, Any] = {"kind": str(self.kind), "r": self.r, "E": self.factors}
        lines |= {"alpha": self.alpha, "scaling": self.scaling}
        lines |= self.options
        if self.modules:
            lines["adapted modules"] = self.modules
        lines |= {f"parameters, {part}": f"{count:,}" for part, count in self.parameters.items()}
        if self.outside is not None:
            lines["routers"] = self.routers
        shown = {name: _worded(value) for name, value in lines.items() if value is not None}
        width = max(len(name) for name in shown)
        return "\n".join(f"{name:{width}}  {plain(value)}" for name, value in shown.items())

    def json(self) -> str:
        """The description as JSON, for a script."""
        return json.dumps(asdict(self) | {"routers": self.routers}, indent=2)


def describe(path: Path | str) -> Description:
    """Describe what a path holds: an adapter, a released checkpoint, a LLaVA v1 LoRA or a projector.

    Tensors are mapped; only those of routers are read.

    Raises:
        CheckpointError: if it is none of these, or damaged.
    """
    path = Path(path)
    kind = formats.recognise(path)
    if kind is Kind.RELEASED:
        return _released(path)
    if kind in (Kind.MIXLORA, Kind.LORA, Kind.LLAVA_LORA):
        return _adapter(path, kind)
    if kind is Kind.PROJECTOR:
        state = formats.projector_state(path)
    else:
        file = path / CONVERTED if path.is_dir() else path
        state = State(file, map_tensors(file))
    if "projector" not in (parameters := _count(state.tensors)):
        raise CheckpointError(f"{state.where} has no projector: no name like model.mm_projector.weight")
    return Description(str(path), kind, parameters=parameters)


def _released(path: Path) -> Description:
    settings = formats.released_settings(path)
    state = formats.released_state(path)
    tensors = {key: tensor for key, tensor in state.tensors.items() if _part(key) != "other"}
    return Description(
        str(path),
        Kind.RELEASED,
        settings.r,
        settings.factors,
        settings.alpha,
        settings.alpha / settings.r,
        {"routing": "instance", "conditional": any(_CONDITIONAL.fullmatch(key) for key in tensors)},
        len(state.adapted),
        _count(tensors),
        outside_initial_range(tensors),
    )


def _adapter(path: Path, kind: Kind) -> Description:
    file, config = path / ADAPTER_CONFIG, read_json(path / ADAPTER_CONFIG)
    r = formats.number(file, config, "r", 1, None, int)
    factors = formats.number(file, config, "num_factors", 1, None, int) if kind is Kind.MIXLORA else None
    if factors and config.get("lora_alpha") is None:
        config["lora_alpha"] = 2 * factors
    alpha = formats.number(file, config, "lora_alpha", 0, None, int, float)
    state = formats.adapter_state(path)
    tensors = dict(state.tensors)
    for beside in (path / BESIDE_LORA, path / CONVERTED):
        if beside.is_file():
            tensors |= map_tensors(beside)
    return Description(
        str(path),
        kind,
        r,
        factors,
        alpha,
        alpha / (math.sqrt(r) if config.get("use_rslora") else r),
        {name: config[name] for name in _OPTIONS[kind] if config.get(name) not in (None, {})},
        sum(_part(key) == "factors A" for key in tensors),
        _count(tensors),
        outside_initial_range(tensors),
    )


def outside_initial_range(tensors: Mapping[str, Tensor]) -> float | None:
    """Share of the routers' entries outside their initial range; None without routers.

    Independent routers [E, d_in] are initialised uniformly within 1 / sqrt(d_in), conditional ones, [r, d_in, E] or
    released (E, r * d_in), within 1 / sqrt(r * d_in).
    """
    outside = total = 0
    for key, weight in tensors.items():
        if _INDEPENDENT.fullmatch(key):
            inputs = weight.shape[-1]
        elif _CONDITIONAL.fullmatch(key):
            inputs = weight.shape[0] * weight.shape[1] if weight.ndim == 3 else weight.shape[-1]
        else:
            continue
        rounding = 1e-6 if weight.dtype in (torch.float32, torch.float64) else torch.finfo(weight.dtype).eps
        bound = (1 + rounding) / math.sqrt(inputs)
        outside += weight.numel() - int((weight.float().abs() <= bound).sum())  # NaN counts as outside
        total += weight.numel()
    return outside / total if total else None


def _part(key: str) -> str:
    return next((name for name, pattern in _PARTS if pattern.fullmatch(key)), "other")


def _count(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for key, tensor in tensors.items():
        counts[_part(key)] += tensor.numel()
    return {name: counts[name] for name in (*(name for name, _ in _PARTS), "other") if counts[name]}


def _worded(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
