"""What an adapter trains, parameter by parameter, and which part of it a measurement leaves out.

Everything that trains is looked at, by asking PEFT's own layers, and what is measured is subtracted.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from interference.blocks import ROUTERS
from interference.gradients.targets import Target, all_targets
from mixlora import MixLoraLayer
from mixlora.tuner.routing import learns

_MOST = 8
"""Names of a kind that are listed."""
_KINDS = {
    "lora_magnitude_vector": "DoRA magnitudes",
    "lora_embedding_A": "LoRA on embeddings",
    "lora_embedding_B": "LoRA on embeddings",
    "mixlora_router": "routers of MixLoRA",
}
"""Parameters of tuners' layers, by attribute, that are reported without their module's name."""
_NAMED = {
    "lora_A": "LoRA on ",
    "lora_B": "LoRA on ",
    "mixlora_A": "MixLoRA on ",
    "mixlora_B": "MixLoRA on ",
    "trainable_tokens_delta": "trainable tokens of ",
}
"""Parameters that are reported with it."""


class Trained(NamedTuple):
    """A parameter that trains.

    Attributes:
        parameter: it.
        kind: in words; parameters of one kind are told together.
        name: which of its kind; "" where the kind says all.
    """

    parameter: nn.Parameter
    kind: str
    name: str = ""


def trained_parameters(model: nn.Module, adapter: str) -> list[nn.Parameter]:
    """Every parameter that trains with an adapter, once."""
    return list({id(found.parameter): found.parameter for found in _trained(model, adapter)}.values())


def unprobed(model: nn.Module, adapter: str, targets: Sequence[Target]) -> list[str]:
    """In words: what trains with the adapter and is not measured.

    Other layers of modules that are measured are not told: they are left out by choice, and the scope says so.

    Args:
        model: the model with the adapter.
        adapter: its name.
        targets: what is measured.
    """
    measured = {id(tap.weight) for target in targets for tap in target.taps.values()}
    places = {(block.component, block.module, block.side) for target in targets for block in target.blocks}
    routers = any(block.side in ROUTERS for target in targets for block in target.blocks)
    for target in all_targets(model, adapter, routers):
        for tap in target.taps.values():
            if (tap.block.component, tap.block.module, tap.block.side) in places:
                measured.add(id(tap.weight))
    names: dict[str, set[str]] = {}
    for found in _trained(model, adapter):
        if id(found.parameter) not in measured:
            names.setdefault(found.kind, set()).add(found.name)
            measured.add(id(found.parameter))
    return sorted(kind + _listed(sorted(told)) for kind, told in names.items())


def trained_by(model: nn.Module, adapter: str) -> Iterator[nn.Parameter]:
    """Every parameter that trains with an adapter; one may come twice.

    Args:
        model: the model with the adapter.
        adapter: its name.
    """
    return (found.parameter for found in _trained(model, adapter))


def _listed(names: Sequence[str]) -> str:
    """The names, of many the first few."""
    more = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
    return ", ".join([*names[:_MOST], *more])


def _trained(model: nn.Module, adapter: str) -> Iterator[Trained]:
    """Every parameter that trains with an adapter; one may come twice, under the most telling kind first."""
    owned: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            owned.update(id(parameter) for parameter in _all_adapters(module))
            yield from _of_tuner(path, module, adapter)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            saved = getattr(module, "modules_to_save", None)
            owned.update(id(parameter) for parameter in ([] if saved is None else saved.parameters()))
            if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
                for parameter in module.modules_to_save[adapter].parameters():
                    yield Trained(parameter, "modules_to_save: ", path.rpartition(".")[2])
    yield from _biases(model, adapter)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in owned:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            yield Trained(parameter, "parameters of the base: ", plain)


def _of_tuner(path: str, module: Any, adapter: str) -> Iterator[Trained]:
    frozen = isinstance(module, MixLoraLayer) and adapter in module.configs and not learns(module.configs[adapter])
    for attribute in module.adapter_layer_names:
        holder = getattr(module, attribute, None)
        if holder is None or adapter not in holder or (frozen and attribute == "mixlora_router"):
            continue
        held = holder[adapter]
        for name, parameter in [("", held)] if isinstance(held, nn.Parameter) else held.named_parameters():
            yield Trained(parameter, *_words(path, module, attribute, held, name))


def _words(path: str, module: Any, attribute: str, held: Any, name: str) -> tuple[str, str]:
    """The kind and name of a parameter that a tuner's layer holds."""
    if attribute in _KINDS:
        return _KINDS[attribute], ""
    if name == "bias" and isinstance(module, LoraLayer):
        return f"biases of {attribute}", ""
    if isinstance(module, ParamWrapper):
        return "LoRA on the parameters ", module.parameter_name
    if isinstance(module, LoraLayer) and not isinstance(held, nn.Linear):
        return f"LoRA on {type(module.get_base_layer()).__name__} modules", ""
    return _NAMED.get(attribute, f"{attribute} of "), path.removesuffix(".token_adapter").rpartition(".")[2]


def _biases(model: nn.Module, adapter: str) -> Iterator[Trained]:
    """Biases of the base that train as `bias` of the adapter's configuration says."""
    config = model.peft_config.get(adapter) if isinstance(model, PeftModel) else None
    which = getattr(config, "bias", "none")
    if which == "all":
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "lora_" not in name:
                yield Trained(parameter, "biases of the base")
    elif which == "lora_only":
        for module in model.modules():
            if isinstance(module, LoraLayer) and adapter in module.lora_A:
                bias = getattr(module.get_base_layer(), "bias", None)
                if isinstance(bias, nn.Parameter):
                    yield Trained(bias, "biases of adapted modules")


def _all_adapters(module: Any) -> Iterator[nn.Parameter]:
    """The parameters of all adapters that a tuner's layer holds."""
    for attribute in module.adapter_layer_names:
        holder = getattr(module, attribute, None)
        if isinstance(holder, nn.Module):
            yield from holder.parameters()
