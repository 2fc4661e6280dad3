"""MixLoraModel: the tuner that adapts a model, and its registration as PEFT's method "MIXLORA"."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    PeftType,
    register_peft_method,
)
from torch import Tensor, nn

from mixlora.common.errors import AdapterError, MergeError, RoutingError, type_of
from mixlora.tuner.config import MixLoraConfig, Routing
from mixlora.tuner.layer import CANNOT_MERGE, MixLoraLayer
from mixlora.tuner.task_bank import TaskBank, encode
from mixlora.tuner.tracker import Tracker

NAME = "MIXLORA"


class MixLoraModel(BaseTuner):
    """A model with MixLoRA adapters; `peft.get_peft_model(model, MixLoraConfig(...))` makes it.

    Its methods are those of PEFT's tuners, but adapters are never merged, and definitions of tasks can be encoded.
    """

    prefix = "mixlora_"
    tuner_layer_cls = MixLoraLayer
    target_module_mapping = cast(dict[str, list[str]], TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise AdapterError("MixLoRA routes decoder-only models; this one has an encoder for its text")
        self.mixlora_tasks = nn.ModuleDict()
        self.tracker = Tracker()
        self._outside = _outside(model)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.tracker.attach(model)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        tasks = self._task_bank(peft_config, adapter_name)
        if isinstance(target, MixLoraLayer):
            target.update_layer(adapter_name, peft_config, tasks, peft_config.inference_mode)
            return
        in_stream = not any(current_key == path or current_key.startswith(path + ".") for path in self._outside)
        layer = MixLoraLayer(target, current_key, self.tracker, in_stream)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config, tasks, peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _task_bank(self, config: MixLoraConfig, adapter: str) -> TaskBank | None:
        if config.routing is not Routing.TASK:
            return None
        if adapter not in self.mixlora_tasks:
            config.task_width = config.task_width or _hidden_size(self.model)
            self.mixlora_tasks[adapter] = TaskBank(list(config.task_definitions or ()), config.task_width)
        bank: Any = self.mixlora_tasks[adapter]
        return bank

    def encode_tasks(
        self,
        tokenizer: Any,
        definitions: Mapping[str, str] | None = None,
        encoder: nn.Module | None = None,
        adapter: str | None = None,
    ) -> None:
        """Encode task definitions for `routing="task"`; they are saved with the adapter.

        Args:
            tokenizer: Of the encoder.
            definitions: {task: definition} of new tasks, or new definitions of known ones; the configuration's if None.
            encoder: A frozen language model; the base without its adapters if None.
            adapter: Its name; the active one if None.

        Raises:
            RoutingError: If the adapter does not route by task, or the encoder's width is not the adapter's.
        """
        name = adapter or self.active_adapters[0]
        config = cast(MixLoraConfig, self.peft_config[name])
        if name not in self.mixlora_tasks:
            raise RoutingError(f"adapter {name!r} has routing={config.routing!s}; only routing='task' encodes tasks")
        wanted = dict((config.task_definitions or {}) if definitions is None else definitions)
        with self._bare() if encoder is None else _as_is():
            encoded = encode(wanted, self.model if encoder is None else encoder, tokenizer)
        bank: Any = self.mixlora_tasks[name]
        width = len(next(iter(encoded.values())))
        if width != bank.width:
            raise RoutingError(
                f"the encoder's hidden states have width {width}, but the adapter's routers expect {bank.width}; "
                f"create the adapter with task_width={width}"
            )
        bank.put(encoded)
        config.task_definitions = {**(config.task_definitions or {}), **wanted}

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """Disable the adapters inside the block."""
        layers = [m for m in self.model.modules() if isinstance(m, MixLoraLayer)]
        before = [layer._disable_adapters for layer in layers]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, disabled in zip(layers, before, strict=True):
                layer._disable_adapters = disabled

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **arguments: Any) -> Iterator[None]:
        """The context in which PEFT calls forward and generate; it receives `adapter_names`, which is refused."""
        if arguments.get("adapter_names") is not None:
            raise RoutingError(
                "MixLoRA has one set of active adapters for a whole batch; leave adapter_names out, call set_adapter"
            )
        yield

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its encoded tasks.

        Args:
            adapter_name: Its name.
        """
        super().delete_adapter(adapter_name)
        if adapter_name in self.mixlora_tasks:
            del self.mixlora_tasks[adapter_name]

    def unload(self) -> nn.Module:
        """The base model without its adapters and hooks.

        Returns:
            The model that was adapted.
        """
        self.tracker.detach(self.model)
        return super().unload()

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse to combine adapters.

        Raises:
            MergeError: Always.
        """
        raise MergeError(CANNOT_MERGE)

    def _check_merge_allowed(self) -> None:
        raise MergeError(CANNOT_MERGE)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        for owner in ("mixlora_router", "mixlora_tasks"):
            before, found, after = key.rpartition(f"{owner}.{adapter_name}.")
            if found:
                return f"{before}{owner}.{after}"
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        _check_fit(model, found, adapter_name)
        return found


@contextmanager
def routed(
    model: nn.Module, tasks: Sequence[str] | str | None = None, labels: Tensor | None = None, alone: bool | None = None
) -> Iterator[None]:
    """Give tasks or labels to the forwards inside the block that have none of their own.

    Args:
        model: A model with MixLoRA adapters; any other is not affected.
        tasks: The task of every instance, or one task for all, for routing="task".
        labels: [batch, seq]; the first supervised token of a row ends its prompt.
        alone: Whether pooling="all" ignores padding, as if every instance were alone in its batch.

    Yields:
        Nothing; the block runs with them.

    Raises:
        RoutingError: If `labels` is not a tensor.

    Example:
        >>> import peft, torch, transformers
        >>> from mixlora import MixLoraConfig, routed
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size))
        >>> model = peft.get_peft_model(base, MixLoraConfig(r=2, num_factors=8, target_modules=["q_proj"]))
        >>> ids = torch.tensor([[1, 2, 3, 4]])
        >>> with routed(model, labels=torch.tensor([[-100, -100, 3, 4]])):  # the prompt is the first two tokens
        ...     logits = model(input_ids=ids).logits
        >>> model.base_model.model.model.layers[0].self_attn.q_proj.selection.A.shape
        torch.Size([1, 2])
    """
    if labels is not None and not isinstance(labels, Tensor):
        raise RoutingError(f"labels is {type_of(labels)}, but must be a tensor [batch, seq]")
    tracker = next((module.tracker for module in model.modules() if isinstance(module, MixLoraLayer)), None)
    with tracker.given(tasks=tasks, labels=labels, alone=alone) if tracker else _as_is():
        yield


def base_model_of(model: nn.Module) -> nn.Module:
    """The model that PEFT has adapted; a model that PEFT does not wrap is its own base."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def register() -> None:
    """Make "MIXLORA" a method of PEFT; repeating it is harmless."""
    if NAME not in PeftType.__members__:
        member = str.__new__(PeftType, NAME)
        member._name_, member._value_ = NAME, NAME
        type.__setattr__(PeftType, NAME, member)
        PeftType._member_names_.append(NAME)
        PeftType._member_map_[NAME] = member
        PeftType._value2member_map_[NAME] = member
    if PeftType(NAME) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=MixLoraConfig, model_cls=MixLoraModel)


@contextmanager
def _as_is() -> Iterator[None]:
    yield


def _check_fit(model: nn.Module, weights: Mapping[str, Tensor], adapter: str) -> None:
    """Raise an AdapterError that names the first weight that does not fit or is missing."""
    shapes = {key: value.shape for key, value in model.state_dict().items() if "mixlora_" in key}
    for key, value in weights.items():
        if "mixlora_" not in key:
            continue
        if key not in shapes:
            raise AdapterError(f"the adapter does not fit the base: the base has no place for {key}")
        if value.shape != shapes[key]:
            raise AdapterError(
                f"the adapter does not fit the base: {key} has shape {tuple(value.shape)}, but the model has "
                f"{tuple(shapes[key])}"
            )
    named = (key for key in shapes if f".{adapter}." in f"{key}.")
    if missing := next((key for key in named if key not in weights), None):
        raise AdapterError(f"the adapter does not fit the base: it has no weights for {missing}")


def _outside(model: Any) -> list[str]:
    """Paths of the modules whose input is not the text's tokens: the image encoder and what follows it."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if decoder is None or not hasattr(model, "get_encoder"):
        return []
    inner = getattr(model, "base_model", model)
    encoder = model.get_encoder(modality="image")
    if encoder is None or any(encoder is other for other in (model, inner, decoder)):
        return []
    names = {id(module): path for path, module in model.named_modules()}
    parent = names[id(encoder)].rpartition(".")[0]
    siblings = model.get_submodule(parent).children()
    heads = {id(module) for module in (decoder, model.get_output_embeddings())}
    return [names[id(child)] for child in siblings if id(child) not in heads]


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


register()
