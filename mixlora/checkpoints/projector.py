"""LLaVA v1's projector for a Hugging Face LLaVA: converting it, and loading it into a model."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mixlora.checkpoints.formats import CONVERTED, State
from mixlora.checkpoints.pickled import map_tensors
from mixlora.common.errors import CheckpointError
from mixlora.tuner.model import base_model_of

PROJECTOR_MODULE = "multi_modal_projector"
"""The name of the module between the image encoder and the language model of a Hugging Face LLaVA."""
_PROJECTOR = re.compile(r"(.*\.)?mm_projector\.(.+)")
_LINEAR = {"weight": "linear_1.weight", "bias": "linear_1.bias"}
_TWO_LAYERS = {f"{old}.{end}": f"linear_{new}.{end}" for old, new in ((0, 1), (2, 2)) for end in ("weight", "bias")}


@dataclass(frozen=True)
class Projector:
    """A projector with the names of a Hugging Face LLaVA.

    Attributes:
        hidden_act: The value that the base's `projector_hidden_act` must have for it to compute the same.
        tensors: {name in the model: values}.
    """

    hidden_act: str
    tensors: dict[str, Tensor]


def load_projector(model: nn.Module, path: Path | str) -> None:
    """Load a converted projector into a Hugging Face LLaVA, with or without a PEFT adapter.

    Args:
        model: A LlavaForConditionalGeneration, or a PeftModel of one.
        path: The directory that `import_checkpoint` wrote, or `projector.safetensors` in it.

    Raises:
        CheckpointError: If there is no such file; or the base's projector is missing, is quantized, or has another
            `projector_hidden_act` or other shapes.
    """
    path = Path(path) / CONVERTED if Path(path).is_dir() else Path(path)
    projector = _read_projector(path)
    base = base_model_of(model)
    found = getattr(getattr(base, "config", None), "projector_hidden_act", None)
    if found != projector.hidden_act:
        raise CheckpointError(
            f"the base has projector_hidden_act={found!r}, but {path} needs {projector.hidden_act!r}; "
            f"load the base with projector_hidden_act={projector.hidden_act!r}"
        )
    parameters = dict(base.named_parameters())
    for name, tensor in projector.tensors.items():
        if name not in parameters:
            raise CheckpointError(f"the base has no {name} for {path}; put the projector in before it is adapted")
        if not parameters[name].is_floating_point():
            raise CheckpointError(
                f"{name} is quantized in the base ({parameters[name].dtype}) and cannot take the values of {path}; "
                f"load the base with its {PROJECTOR_MODULE} among llm_int8_skip_modules"
            )
        if parameters[name].shape != tensor.shape:
            have, given = tuple(parameters[name].shape), tuple(tensor.shape)
            raise CheckpointError(
                f"{name} has shape {have} in the base and {given} in {path}, which is for another base"
            )
    with torch.no_grad():
        for name, tensor in projector.tensors.items():
            parameters[name].copy_(tensor)


def _read_projector(path: Path) -> Projector:
    tensors = map_tensors(path)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    if "projector_hidden_act" not in metadata:
        raise CheckpointError(f"{path} was not written by import-official; convert mm_projector.bin with it first")
    return Projector(metadata["projector_hidden_act"], tensors)


def convert(state: State) -> Projector:
    """LLaVA v1's projector as the two Linears of a Hugging Face LLaVA, which compute the same.

    A single Linear becomes the first of the two; the second is the identity, without an activation between them.
    """
    keys = {match[2]: key for key in state.tensors if (match := _PROJECTOR.fullmatch(key))}
    places = _TWO_LAYERS if keys.keys() & _TWO_LAYERS.keys() else _LINEAR
    if unknown := sorted(keys.keys() - places.keys()):
        raise CheckpointError(
            f"{keys[unknown[0]]} in {state.where} cannot be placed; only projectors of one or two Linears are converted"
        )
    old, key = next(iter(keys.items()), ("", "model.mm_projector."))
    stem = key.removesuffix(old)
    width = state.take(f"{stem}{next(iter(places))}", None, None).shape[0]
    shapes = {"linear_1.weight": (width, None), "linear_2.weight": (width, width)}
    found = {new: state.take(stem + old, *shapes.get(new, (width,))) for old, new in places.items()}
    if places is _LINEAR:
        like = found["linear_1.weight"]
        found |= {"linear_2.weight": torch.eye(width, dtype=like.dtype), "linear_2.bias": like.new_zeros(width)}
    tensors = {f"model.{PROJECTOR_MODULE}.{name}": own_copy(tensor) for name, tensor in found.items()}
    return Projector("linear" if places is _LINEAR else "gelu", tensors)


def own_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy, which does not map the file of the tensor."""
    return tensor.clone(memory_format=torch.contiguous_format)
