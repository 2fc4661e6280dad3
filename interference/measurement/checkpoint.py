"""Checkpoints that can be probed: a base model with its LoRA or MixLoRA adapter, and what identifies them.

Not here: how a base and an adapter are loaded (`mixlora.checkpoints`).
"""

import hashlib
import time
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn

from interference.config import ModelConfig
from interference.errors import CheckpointError
from mixlora.checkpoints import loading


def load_model(config: ModelConfig) -> PeftModel:
    """The base model with its adapter, on its device, in evaluation mode.

    Raises:
        CheckpointError: if the base or the adapter is missing or of another kind, or they do not fit each other.
    """
    adapter_config(config)
    return loading.load_adapted(config, config.adapter)


def empty_adapted(config: ModelConfig) -> PeftModel:
    """The base model with its adapter, both with untrained weights, on the default device.

    Raises:
        CheckpointError: if the base or the adapter is missing, or they do not fit each other.
    """
    adapter_config(config)
    return loading.empty_adapted(config, config.adapter)


def adapter_config(config: ModelConfig) -> PeftConfig:
    """The adapter's own configuration.

    Raises:
        CheckpointError: if there is no adapter, or its kind cannot be probed.
    """
    found = loading.adapter_config(config.adapter)
    if found.peft_type not in ("LORA", "MIXLORA"):
        kind = getattr(found.peft_type, "value", found.peft_type)
        raise CheckpointError(
            f"the adapter at {config.adapter} is of kind {kind}; only LORA and MIXLORA adapters are probed"
        )
    return found


def provenance(model: nn.Module) -> dict[str, Any]:
    """What is recorded of the model, the libraries and the time of a measurement."""
    return {
        "fingerprints": {"model": fingerprint(model)},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "computed": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


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
