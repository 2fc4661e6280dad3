"""Methods: the trainable model that each method makes of a base."""

import re
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn

from mixlora.checkpoints.patterns import check_patterns
from mixlora.checkpoints.projector import PROJECTOR_MODULE
from mixlora.common.errors import ConfigError, ToolError
from mixlora.training.config import Method, TrainConfig
from mixlora.tuner.config import MixLoraConfig, Routing
from mixlora.tuner.model import MixLoraModel


def adapter_config(
    config: TrainConfig, target_modules: list[str] | str | None = None, saved: list[str] | None = None
) -> PeftConfig:
    """PEFT's configuration of the adapter that a training configuration describes.

    Args:
        config: the training's.
        target_modules: names or a pattern of the Linear modules.
        saved: modules that are trained whole.

    Raises:
        ConfigError: if an option is not allowed.
    """
    common: dict[str, Any] = {
        "target_modules": target_modules,
        "lora_dropout": config.adapter.dropout,
        "modules_to_save": saved,
    }
    if config.method == Method.MIXLORA:
        own = config.mixlora.model_dump(exclude={"alpha"})
        definitions = {name: task.definition or "" for name, task in config.tasks.items()}
        if own["routing"] == Routing.TASK:
            own["task_definitions"] = definitions
        try:
            return MixLoraConfig(**common, **own, lora_alpha=config.mixlora.alpha)
        except ConfigError as error:
            raise ConfigError(f"mixlora: {error}") from None
    lora = config.lora
    return LoraConfig(
        **common, r=lora.r, lora_alpha=lora.alpha, use_rslora=lora.rslora, use_dora=lora.dora, bias="none"
    )


def prepare(base: Any, tokenizer: Any, config: TrainConfig) -> Any:
    """The base with a new adapter, or with everything except its image encoder trainable.

    Raises:
        ToolError: if the base has no such modules.
    """
    if config.method == Method.FULL:
        return _full(base)
    if config.model.quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=config.training.gradient_checkpointing)
    adapter = adapter_config(
        config,
        config.adapter.target_modules or language_targets(base),
        [projector_of(base)] if config.adapter.train_projector else None,
    )
    check_patterns(adapter, base, lambda what: ConfigError(f"adapter: {what}; list names of modules, as [q_proj]"))
    try:
        model = get_peft_model(base, adapter)
    except ToolError:
        raise
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"adapter.target_modules: {error} The language model has {', '.join(linear_names(base))}."
        ) from None
    if isinstance(model.base_model, MixLoraModel) and config.mixlora.routing == Routing.TASK:
        model.base_model.encode_tasks(tokenizer)
    return model


def language_targets(base: Any) -> str:
    """A pattern of the paths of all Linear modules in the language model, except its output layer."""
    decoder = base.get_decoder()
    path = next(name for name, module in base.named_modules() if module is decoder)
    return rf".*{re.escape(path)}\..*\.({'|'.join(linear_names(base))})"


def linear_names(base: Any) -> list[str]:
    """Names of the Linear modules in the language model, except its output layer."""
    modules = base.get_decoder().named_modules()
    return sorted({name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)})


def projector_of(base: Any) -> str:
    """The name of the module between the image encoder and the language model.

    Raises:
        ConfigError: if there is none.
    """
    if all(name.rpartition(".")[2] != PROJECTOR_MODULE for name, _ in base.named_modules()):
        raise ConfigError("adapter.train_projector: this base has no projector; leave it out")
    return PROJECTOR_MODULE


def _full(base: Any) -> nn.Module:
    base.requires_grad_(True)
    encoder = base.get_encoder(modality="image") if hasattr(base, "get_encoder") else None
    if encoder is not None and encoder is not base and hasattr(base.config, "vision_config"):
        encoder.requires_grad_(False)
    return base
