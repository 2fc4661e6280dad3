"""Formats of LLaVA v1, MixLoRA and PEFT on disk: recognising them, and reading them without executing anything.

Files are mapped: opening a checkpoint of 14 GB costs nothing, and only the tensors that are used are read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from torch import Tensor

from mixlora.checkpoints.pickled import map_tensors, read_namespace
from mixlora.common import files
from mixlora.common.errors import CheckpointError, type_of
from mixlora.common.files import exists, is_file

NAMESPACE, INDEX, WHOLE = "cmoa_args.bin", "pytorch_model.bin.index.json", "pytorch_model.bin"
PROJECTOR, CONVERTED = "mm_projector.bin", "projector.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
BESIDE_LORA = "non_lora_trainables.bin"
LARGEST_NUMBER = 10**9
"""The largest number that a checkpoint's settings may have."""

_INSTANCE = ("input", "input_lora_a_param")  # cond_type: IFS alone, and with CFS
_NEEDED = ("n_experts", "n_selected", "lora_alpha", "cond_type")
_AS_RELEASED = {  # settings without a counterpart here, which must have these values
    "independent_rank": True,
    "mix_loraA": True,
    "mix_start_layer": 0,
    "used_scored_weight": False,
    "mix_mm_projector": False,
    "lora_bias": "none",
    "ifs_weight": 1,
}
_LAYER = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+)\.(.+)")


class Kind(StrEnum):
    """The kinds of checkpoint that a path can hold."""

    MIXLORA = "MixLoRA adapter"
    LORA = "LoRA adapter"
    RELEASED = "released MixLoRA checkpoint"
    LLAVA_LORA = "LLaVA v1 LoRA"
    PROJECTOR = "LLaVA v1 projector"
    CONVERTED = "projector of a Hugging Face LLaVA"


@dataclass
class State:
    """The tensors of a checkpoint, by their released names.

    Attributes:
        where: their file or directory, for messages.
        tensors: mapped from disk.
        adapted: {(layer, projection): the names of its adapter's tensors}.
    """

    where: Path
    tensors: Mapping[str, Tensor]
    adapted: dict[tuple[int, str], set[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.adapted = {}
        for key in self.tensors:
            if (found := _LAYER.fullmatch(key)) and found[3].startswith(("lora_", "cmoa_")):
                self.adapted.setdefault((int(found[1]), found[2]), set()).add(found[3])

    def take(self, key: str, *shape: int | None) -> Tensor:
        """The tensor of a name, which must exist and have the shape; None stands for any size."""
        if key not in self.tensors:
            raise CheckpointError(f"{self.where} lacks {key}; the checkpoint is incomplete, fetch it again")
        tensor = self.tensors[key]
        sizes = zip(shape, tensor.shape, strict=False)
        if tensor.ndim != len(shape) or any(want not in (None, have) for want, have in sizes):
            wanted = str(tuple(shape)).replace("None", "any")
            raise CheckpointError(
                f"{key} in {self.where} has shape {tuple(tensor.shape)}, but {wanted} fits the others"
            )
        return tensor


def recognise(path: Path) -> Kind:
    """The kind of checkpoint at a path, by the names of its files.

    Raises:
        CheckpointError: if it is of no known kind; the message lists the known ones.
    """
    if is_file(path) and path.name.endswith((PROJECTOR, CONVERTED)):
        return Kind.PROJECTOR if path.name.endswith(PROJECTOR) else Kind.CONVERTED
    if is_file(path / NAMESPACE):
        return Kind.RELEASED
    if is_file(path / ADAPTER_CONFIG):
        kind = read_json(path / ADAPTER_CONFIG).get("peft_type")
        if kind == "MIXLORA":
            return Kind.MIXLORA
        if kind == "LORA":
            return Kind.LLAVA_LORA if is_file(path / BESIDE_LORA) else Kind.LORA
        raise CheckpointError(f"{path / ADAPTER_CONFIG} has peft_type {kind!r}; only MIXLORA and LORA are supported")
    if is_file(path / PROJECTOR):
        return Kind.PROJECTOR
    if is_file(path / CONVERTED):
        return Kind.CONVERTED
    if is_file(path / WHOLE) or is_file(path / INDEX):
        raise CheckpointError(f"{path} has no {NAMESPACE}, where a released MixLoRA keeps r and alpha; put it there")
    raise CheckpointError(
        f"{path} {'has an unknown format' if exists(path) else 'does not exist'}; supported are a directory with "
        f"{ADAPTER_CONFIG} (a MixLoRA or LoRA adapter, LLaVA v1's too), one with {NAMESPACE} (a released MixLoRA "
        f"checkpoint), and {PROJECTOR} or a directory with it"
    )


@dataclass(frozen=True)
class Settings:
    """The settings of a released MixLoRA checkpoint.

    Attributes:
        factors: E.
        r: the number of factors that an instance uses.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: of the adapter's input.
    """

    factors: int
    r: int
    alpha: float
    dropout: float


def released_settings(source: Path) -> Settings:
    """The settings of a released MixLoRA checkpoint, checked.

    Raises:
        CheckpointError: if one is missing, is not a valid number, or has a value that an adapter here cannot express.
    """
    path = source / NAMESPACE
    found = read_namespace(path)
    if missing := [name for name in _NEEDED if name not in found]:
        there = ", ".join(name if name.isidentifier() else repr(name) for name in sorted(found)) or "nothing"
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it has only: {there}")
    if found["cond_type"] not in _INSTANCE:
        raise CheckpointError(
            f"cond_type is {shown(found['cond_type'])} in {path}; only instance routing is supported, "
            f"one of: {', '.join(_INSTANCE)}"
        )
    for name, only in _AS_RELEASED.items():
        if found.get(name, only) != only:
            raise CheckpointError(f"{name} is {shown(found[name])} in {path}; only {only!r} is supported")
    factors = number(path, found, "n_experts", 1, None, int)
    r = number(path, found, "n_selected", 1, factors, int)
    alpha = number(path, found, "lora_alpha", 0, None, int, float)
    return Settings(factors, r, alpha, number(path, {"lora_dropout": 0.0} | found, "lora_dropout", 0, 1, int, float))


def number(path: Path, found: Mapping[str, Any], name: str, low: float, high: float | None, *kinds: type) -> Any:
    """A number in a file, which must be of these types and within the bounds; a `high` of None is `LARGEST_NUMBER`.

    Raises:
        CheckpointError: if it is not.
    """
    value: Any = found.get(name)
    high = LARGEST_NUMBER if high is None else high
    if type(value) not in kinds or not low <= value <= high:  # NaN fails, too
        kind = "whole number" if kinds == (int,) else "number"
        raise CheckpointError(f"{name} is {shown(value)} in {path}, but must be a {kind} from {low} to {high}")
    return value


def released_state(source: Path) -> State:
    """The mapped tensors of a released MixLoRA checkpoint, from one file or several.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    if (source / INDEX).is_file():
        places = read_json(source / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{source / INDEX} has no weight_map of file names")
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{source / INDEX} names {name!r}, which is not a file in that directory")
    else:
        names = [WHOLE]
    return State(source, {key: tensor for name in names for key, tensor in map_tensors(source / name).items()})


def projector_state(source: Path) -> State:
    """The mapped tensors of `mm_projector.bin`.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    path = source / PROJECTOR if source.is_dir() else source
    return State(path, map_tensors(path))


def adapter_state(source: Path) -> State:
    """The mapped tensors of a PEFT adapter.

    Raises:
        CheckpointError: if their file is missing or damaged.
    """
    older = source / "adapter_model.bin"
    path = older if older.is_file() and not (source / ADAPTER).is_file() else source / ADAPTER
    return State(path, map_tensors(path))


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        CheckpointError: if it cannot be read, or is not an object.
    """
    try:
        found = files.read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} contains {type_of(found)}, but must contain a JSON object")
    return found


def whole_number(config: Mapping[str, Any], name: str) -> int:
    """A count in a config.json; 0 if there is none."""
    value = config.get(name)
    return value if type(value) is int else 0
