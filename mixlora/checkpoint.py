"""Checkpoints: base models, their processors and PEFT adapters, from disk or hub, whole or refused in words."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.utils import logging

from mixlora.errors import CheckpointError, MixLoraError
from mixlora.model import register
from mixlora.official import load_projector
from mixlora.sections import MINI, BaseSection

register()

LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)


def load_processor(section: BaseSection) -> Any:
    """The tokenizer of a language model, or the processor of a vision-language model.

    Raises:
        CheckpointError: if there is none.
    """
    base = base_of(section)
    kind: Any = AutoProcessor if _sees(_own_config(section)) else AutoTokenizer
    try:
        return kind.from_pretrained(base, trust_remote_code=section.trust_remote_code)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"no tokenizer or processor can be loaded from {base}; copy the base's beside it ({first_words(error)})"
        ) from None


def load_base(section: BaseSection, device: torch.device | None = None) -> Any:
    """The base model, with the section's projector, on its device or another, in evaluation mode.

    Raises:
        CheckpointError: if it is missing, or cannot be loaded so.
    """
    base, device = base_of(section), device or device_of(section.device)
    options: dict[str, Any] = {}
    if section.quantization is not None:
        options = {"quantization_config": _quantization(section), "device_map": {"": device}}
    try:
        with without_bars():
            model = _kind(_own_config(section)).from_pretrained(
                base,
                dtype=section.dtype,
                attn_implementation=section.attention,
                trust_remote_code=section.trust_remote_code,
                **options,
            )
    except LOAD_ERRORS as error:
        raise CheckpointError(f"the base model {base} cannot be loaded: {first_words(error)}") from None
    if section.projector is not None:
        load_projector(model, Path(section.projector))
    return (model if options else model.to(device)).eval()


def load_adapted(section: BaseSection, adapter: str) -> PeftModel:
    """The base model with an adapter, in evaluation mode.

    Raises:
        CheckpointError: if the base or the adapter is missing, or they do not fit each other.
    """
    config = adapter_config(adapter)
    return adapt(load_base(section), section, adapter, config)


def adapt(model: nn.Module, section: BaseSection, adapter: str, config: PeftConfig) -> PeftModel:
    """A loaded base with an adapter, whose every weight has found its place.

    Raises:
        CheckpointError: if they do not fit each other.
    """
    misfit = _misfit(section, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing keys are an error below
            adapted = PeftModel.from_pretrained(model, adapter, config=config)
        saved = load_peft_weights(adapter, device="cpu")
    except MixLoraError as error:
        raise CheckpointError(f"{adapter} on {section.base}: {error}") from None
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{misfit}: {first_words(error)}") from None
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    optional = get_peft_model_state_dict(adapted, save_embedding_layers=True)  # saved where LoRA is on embeddings
    for name in sorted(expected.keys() - saved.keys()):
        raise CheckpointError(f"{misfit}: it holds no weights for {name}")
    for name in sorted(saved.keys() - expected.keys() - optional.keys()):
        raise CheckpointError(f"{misfit}: the base has no place for {name}")
    return adapted.eval()


def empty_adapted(section: BaseSection, adapter: str) -> PeftModel:
    """The base model with an adapter, both with untrained weights, on the device that is the default.

    Raises:
        CheckpointError: if the base or the adapter is missing, or they do not fit each other.
    """
    own, config = _own_config(section), adapter_config(adapter)
    try:
        return get_peft_model(_kind(own).from_config(own, trust_remote_code=section.trust_remote_code), config)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{_misfit(section, adapter)}: {first_words(error)}") from None


def adapter_config(adapter: str) -> PeftConfig:
    """An adapter's own configuration.

    Raises:
        CheckpointError: if there is no adapter.
    """
    try:
        return PeftConfig.from_pretrained(adapter)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"there is no PEFT adapter at {adapter} (no adapter_config.json can be read: {first_words(error)})"
        ) from None


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {name!r} cannot be used: {first_words(error)}") from None


def base_of(section: BaseSection) -> str:
    """Path or hub id of the base."""
    if section.base != MINI:
        return section.base
    from mixlora.data import mini

    return str(mini.base_path())


def first_words(error: BaseException) -> str:
    """What an error says first that tells something: the first size mismatch, or its first line with what it lists."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    chosen = next((line for line in lines if line.startswith("size mismatch")), lines[0])
    if chosen.endswith(":"):
        chosen = " ".join(lines[lines.index(chosen) :])
    return chosen.rstrip(".:") if len(chosen) <= 300 else f"{chosen[:300]}…"


def _quantization(section: BaseSection) -> BitsAndBytesConfig:
    if section.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if section.dtype == "auto" else getattr(torch, section.dtype)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _misfit(section: BaseSection, adapter: str) -> str:
    return f"the adapter at {adapter} does not fit the base {section.base}"


def _own_config(section: BaseSection) -> PreTrainedConfig:
    base = base_of(section)
    logging.set_verbosity_error()
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=section.trust_remote_code)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"there is no base model {base} (neither a directory with config.json nor a hub id): {first_words(error)}"
        ) from None


@contextmanager
def without_bars() -> Iterator[None]:
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
