"""Checkpoints: a base model and a PEFT adapter from disk or hub to a model ready to be probed."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import logging

from interference.config import ModelConfig
from interference.errors import CheckpointError
from mixlora.errors import MixLoraError
from mixlora.model import register

register()  # MixLoRA with PEFT

_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)


def load_processor(config: ModelConfig) -> Any:
    """The tokenizer of a language model, or the processor of a vision-language model.

    Raises:
        CheckpointError: if there is none.
    """
    base, own = _base(config), _own_config(config)
    kind: Any = AutoProcessor if _sees(own) else AutoTokenizer
    try:
        return kind.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"no tokenizer or processor can be loaded from {base}: {_first(error)}") from None


def load_model(config: ModelConfig) -> PeftModel:
    """The base model with its adapter, on its device, in evaluation mode.

    Raises:
        CheckpointError: if the base or the adapter is missing, is of another kind, or they do not fit each other.
    """
    adapter = adapter_config(config)
    base = _base(config)
    try:
        with _without_bars():
            model = _kind(_own_config(config)).from_pretrained(
                base,
                dtype=config.dtype,
                attn_implementation=config.attention,
                trust_remote_code=config.trust_remote_code,
            )
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"the base model {base} cannot be loaded: {_first(error)}") from None
    return _adapt(model.to(device_of(config)), config, adapter).eval()


def empty_adapted(config: ModelConfig) -> PeftModel:
    """The base model with its adapter, both with untrained weights, on the device that is the default.

    Raises:
        CheckpointError: if the base or the adapter is missing, or they do not fit each other.
    """
    own, adapter = _own_config(config), adapter_config(config)
    try:
        return get_peft_model(_kind(own).from_config(own, trust_remote_code=config.trust_remote_code), adapter)
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"{_misfit(config)}: {_first(error)}") from None


def adapter_config(config: ModelConfig) -> PeftConfig:
    """The adapter's own configuration.

    Raises:
        CheckpointError: if there is no adapter, or one of a kind that is not probed.
    """
    try:
        found = PeftConfig.from_pretrained(config.adapter)
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            f"there is no PEFT adapter at {config.adapter} (no adapter_config.json can be read: {_first(error)})"
        ) from None
    if found.peft_type not in ("LORA", "MIXLORA"):
        kind = getattr(found.peft_type, "value", found.peft_type)
        raise CheckpointError(
            f"the adapter at {config.adapter} is of kind {kind}; only LORA and MIXLORA adapters are probed"
        )
    return found


def device_of(config: ModelConfig) -> torch.device:
    """The device to compute on."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {name!r} cannot be used: {_first(error)}") from None


def fingerprint(model: nn.Module) -> str:
    """A hash that changes when the model does: every name and shape, all adapter weights, a sample of the others."""
    found = hashlib.sha256()
    for name, parameter in chain(model.named_parameters(), model.named_buffers()):
        values = parameter.detach().reshape(-1)
        if "lora_" not in name and len(values) > 64:
            values = values[:: max(len(values) // 64, 1)]
        found.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        found.update(values.to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()[:32]


def _adapt(model: nn.Module, config: ModelConfig, adapter: PeftConfig) -> PeftModel:
    misfit = _misfit(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing keys are an error below
            adapted = PeftModel.from_pretrained(model, config.adapter, config=adapter)
        saved = load_peft_weights(config.adapter, device="cpu")
    except MixLoraError as error:
        raise CheckpointError(f"{config.adapter} on {config.base}: {error}") from None
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"{misfit}: {_first(error)}") from None
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    optional = get_peft_model_state_dict(adapted, save_embedding_layers=True)  # saved where LoRA is on embeddings
    for name in sorted(expected.keys() - saved.keys()):
        raise CheckpointError(f"{misfit}: it holds no weights for {name}")
    for name in sorted(saved.keys() - expected.keys() - optional.keys()):
        raise CheckpointError(f"{misfit}: the base has no place for {name}")
    return adapted


def _misfit(config: ModelConfig) -> str:
    return f"the adapter at {config.adapter} does not fit the base {config.base}"


def _own_config(config: ModelConfig) -> PreTrainedConfig:
    base = _base(config)
    logging.set_verbosity_error()
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            f"there is no base model {base} (neither a directory with config.json nor a hub id): {_first(error)}"
        ) from None


def _base(config: ModelConfig) -> str:
    if config.base != "mini":
        return config.base
    from mixlora.data import mini

    return str(mini.base_path())


@contextmanager
def _without_bars() -> Iterator[None]:
    """Progress bars of transformers off: stderr is for our own progress and for errors."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _kind(config: PreTrainedConfig) -> Any:
    return AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM


def _sees(config: PreTrainedConfig) -> bool:
    return getattr(config, "vision_config", None) is not None


def _first(error: BaseException) -> str:
    """What an error says first that tells something: the first size mismatch, or its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    chosen = next((line for line in lines if line.startswith("size mismatch")), lines[0])
    return chosen[:300].rstrip(".")


def is_local(name: str) -> bool:
    """Whether a base or adapter is named by a path that exists."""
    return Path(name).exists()
