"""Fingerprints: digests of everything that a model computes from, part by part, so that a change can be named.

A job continues only where they are the same. Not here: what else a job depends on (its data, its configuration).
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from mixlora.checkpoints.digests import digest, of_file, of_tensors
from mixlora.common.files import TRAINING, exists, is_file
from mixlora.data.collation import Collator

_UNREAD = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id"} | {
    "use_cache", "output_attentions", "output_hidden_states", "return_dict", "bos_token_id", "eos_token_id",
    "pad_token_id", "_attn_implementation_autoset",
}  # fmt: skip
"""Keys of a base's configuration that change no logit: names, labels, outputs, what only generation reads."""
_UNREAD_OF_ADAPTERS = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"}
_FILES = (".json", ".jinja", ".model", ".safetensors", ".bin", ".pt", ".txt", ".tiktoken", ".spm", ".bpe", ".py")
"""Suffixes of the files of a checkpoint: configurations, weights, vocabularies of tokenizers, code of its own."""
_OTHER_FILES = {TRAINING, GENERATION_CONFIG_NAME}


def fingerprints(model: nn.Module, adapter: str | None = None) -> dict[str, Any]:
    """What the model computes from.

    Args:
        model: with or without adapters.
        adapter: the one that is active when it computes, so that others do not count; None where all do.

    Returns:
        "base weights" and "adapter weights": digests of all parameters and buffers, with names, shapes and dtypes;
        "base" and "adapter": the configurations, without paths and what only generation reads; "scaling": of every
        adapted layer, a digest.
    """
    adapters = getattr(model, "peft_config", {})
    own = {name: _owner(key, adapters) for name, key in _adapter_tensors(model)}
    tensors = list(_tensors(model))
    config = getattr(model, "config", None)
    counted = {name for name, owner in own.items() if adapter is None or owner in (adapter, None)}
    return {
        "base weights": of_tensors((_of_base(name), value) for name, value in tensors if name not in own),
        "adapter weights": of_tensors((name, value) for name, value in tensors if name in counted),
        "base": _plain(_read(config)) if isinstance(config, PreTrainedConfig) else {},
        "adapter": {
            name: _plain({key: value for key, value in each.to_dict().items() if key not in _UNREAD_OF_ADAPTERS})
            for name, each in (adapters.items() if isinstance(model, PeftModel) else ())
            if adapter in (name, None)
        },
        "scaling": digest([json.dumps(_scaling(model, adapter)).encode()]),
    }


def of_processing(collator: Collator) -> dict[str, str]:
    """Digests of what turns examples into tensors: the tokenizer, the chat template and the processing of pictures."""
    tokenizer, template = collator.tokenizer, collator.template
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = repr(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    special = repr((tokenizer.special_tokens_map, tokenizer.init_kwargs.get("add_bos_token")))
    found = {
        "tokenizer": digest([words.encode(), special.encode()]),
        "chat template": digest([repr((template.text, template.training, template.written_day)).encode()]),
    }
    pictures = getattr(collator.processor, "image_processor", None)
    return found if pictures is None else {**found, "image processor": digest([pictures.to_json_string().encode()])}


def summary(parts: Mapping[str, Any]) -> str:
    """One digest of fingerprints."""
    return digest([json.dumps(parts, sort_keys=True).encode()])


def of_checkpoint(name: str) -> str:
    """A digest of a checkpoint's files on disk; of a hub id, the commit that is kept of it.

    A moved or copied checkpoint keeps its digest. Records of trainings and what only generation reads do not count.

    Args:
        name: path of a directory or file, or hub id.

    Raises:
        OSError: a file cannot be read.
    """
    path = Path(name)
    if not exists(path):
        return of_hub(name)
    held = path.iterdir() if path.is_dir() else [path]
    files = sorted(file for file in held if is_file(file) and (file == path or file.suffix in _FILES))
    return digest(f"{file.name} {of_file(file)} ".encode() for file in files if file.name not in _OTHER_FILES)


def of_generation(name: str) -> str:
    """A digest of what only generation reads of a checkpoint on disk: its generation_config.json.

    Without that file it is the digest of nothing, as for a hub id, whose commit `of_checkpoint` has.

    Args:
        name: path of a directory or hub id.

    Raises:
        OSError: the file cannot be read.
    """
    file = Path(name) / GENERATION_CONFIG_NAME
    return of_file(file) if is_file(file) else digest([])


def of_hub(name: str) -> str:
    """A hub id with the commit that the hub's cache on this machine holds of it, if it holds one."""
    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return f"{name}@{Path(found).parent.name}"
    return name


def _tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that the model holds, by name: what it saves, quantisation included, and buffers that it does not."""
    saved = model.state_dict()
    yield from saved.items()
    yield from ((name, value) for name, value in model.named_buffers() if name not in saved)


def _adapter_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the tensors that belong to adapters, and the part of each in which the adapter's name stands."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            for own in module.adapter_layer_names:
                yield from _under(name, own, getattr(module, own, None))
        elif isinstance(module, AuxiliaryTrainingWrapper):
            for own, child in module.named_children():
                if own != "original_module":
                    yield from _under(name, own, child)


def _of_base(name: str) -> str:
    """The name that a base's tensor has without adapters."""
    for wrapper in ("base_model.model.", "base_layer.", "original_module."):
        name = name.replace(wrapper, "")
    return name


def _owner(key: str, adapters: Iterable[str]) -> str | None:
    """The adapter that a tensor belongs to; None where its name does not tell."""
    return next((part for part in key.split(".") if part in adapters), None)


def _under(*place: Any) -> Iterator[tuple[str, str]]:
    *path, held = place
    if isinstance(held, nn.Module):
        yield from ((".".join([*path, key]), key) for key in (*held.state_dict(), *dict(held.named_buffers())))
    elif isinstance(held, Tensor):
        yield ".".join(path), ""


def _scaling(model: nn.Module, adapter: str | None) -> dict[str, Any]:
    """The scaling of every layer with the adapter (None: with any), which a notebook can change without a config."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    held = {name: getattr(layer, "scaling", None) for name, layer in layers.items()}
    return {
        name: {key: float(value) for key, value in scaling.items() if adapter in (key, None)}
        for name, scaling in held.items()
        if isinstance(scaling, dict) and (adapter is None or adapter in scaling)
    }


def _read(config: PreTrainedConfig) -> dict[str, Any]:
    """What a model reads of its configuration, and of those within it."""
    own = inspect.signature(type(config)).parameters
    unread = _UNREAD | (GenerationConfig().to_dict().keys() - own)
    found = {key: value for key, value in config.to_dict().items() if key not in unread}
    for key in found:
        inner = getattr(config, key, None)
        if isinstance(inner, PreTrainedConfig):
            found[key] = _read(inner)
    return found


def _plain(value: Any) -> Any:
    """The value as JSON has it, sets in order."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
