"""Checkpoints that can be probed: a base model with its LoRA or MixLoRA adapter, and what identifies them.

Not here: how a base and an adapter are loaded (`mixlora.checkpoints`).
"""

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from interference.config import ModelConfig
from interference.errors import CheckpointError, RunError
from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import fingerprints, summary


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
            f"the adapter at {config.adapter} is of kind {kind}; only LORA and MIXLORA adapters can be measured"
        )
    return found


def provenance(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of the model, the libraries and the time of a measurement.

    Args:
        parts: the model's `fingerprints`.
    """
    return {
        "fingerprints": recorded(parts),
        "versions": versions(),
        "computed": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Of the libraries that compute a measurement."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}


def origin_of(model: nn.Module) -> dict[str, Any]:
    """What the parts of a job share beside the model: the versions that compute them, and the kind of device."""
    own = {**versions(), "task-interference": version("task-interference")}
    return {"versions": own, "device": next(model.parameters()).device.type}


def recorded(parts: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints as a run keeps them: a digest of each part, and one of all, "model"."""
    digests = {name: part if isinstance(part, str) else summary(part) for name, part in parts.items()}
    return {"model": summary(parts), **digests}


def refuse_other(model: nn.Module, meta: Mapping[str, Any], noun: str, adapter: str | None = None) -> None:
    """Check that a model is the one that a result was computed with.

    Args:
        model: the model.
        meta: the result's.
        noun: what messages call the result.
        adapter: the probed one; others do not count. None where the model has one.

    Raises:
        RunError: if it is another one, or the result is of a version that recorded only a part of it.
    """
    known, found = meta.get("fingerprints") or {}, recorded(fingerprints(model, adapter))
    if known.keys() != found.keys():
        raise RunError(
            f"{noun} was computed by an earlier version, which did not record the whole model; compute it again"
        )
    changed = [name for name in found if name != "model" and found[name] != known[name]]
    if changed:
        raise RunError(f"the model's {_listed(changed)} changed since {noun} was computed; compute it again")


def _listed(parts: Sequence[str]) -> str:
    named = [_NAMES[part] for part in parts]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


_NAMES = {
    "base weights": "base weights",
    "adapter weights": "adapter weights",
    "base": "base configuration",
    "adapter": "adapter configuration",
    "scaling": "scaling of adapted layers",
}
