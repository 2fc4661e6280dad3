"""MixLoraConfig: every option of the method, its allowed values, and the two presets."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, cast

from peft import PeftConfig
from peft.utils import PeftType

from mixlora.common.enums import member
from mixlora.common.errors import ConfigError, type_of

FORMAT = 1  # of a saved adapter; higher numbers are refused


class Routing(StrEnum):
    """What the routers look at."""

    INSTANCE = "instance"  # the pooled input of the layer (Eqs. 4, 6)
    TASK = "task"  # the encoded definition of the task (Eq. 12)
    RANDOM = "random"  # nothing: factors are drawn for every instance and forward


class RouterGradient(StrEnum):
    """How routers learn, although a selection has no derivative."""

    STRAIGHT_THROUGH = "straight-through"  # a selected factor has weight 1 and the derivative of its score
    NONE = "none"  # routers keep their initial values, as in the released code


class Pooling(StrEnum):
    """The positions over which `instance` routers average the input."""

    PROMPT = "prompt"  # attended tokens before the answer
    ATTENDED = "attended"
    ALL = "all"  # including padding and the answer, as in the released code


class DecodeRouting(StrEnum):
    """The selection for newly generated tokens."""

    PROMPT = "prompt"  # the prompt's
    TOKEN = "token"  # a new one at every step, from the newest token alone, as in the released code


class CfsForm(StrEnum):
    """How conditional factor selection contracts the selected A factors with its weight."""

    EXACT = "exact"  # Eq. 7
    OFFICIAL = "official"  # the released einsum, which sums each over d_in separately


class FactorInit(StrEnum):
    """Distribution of the A factors before training; B factors start at zero."""

    GAUSSIAN = "gaussian"  # N(0, 1 / d_in)
    KAIMING = "kaiming"  # uniform within 1 / sqrt(d_in), as in the released code


OPTIONS: dict[str, type[StrEnum]] = {
    "routing": Routing,
    "router_gradient": RouterGradient,
    "pooling": Pooling,
    "decode_routing": DecodeRouting,
    "cfs_form": CfsForm,
    "factor_init": FactorInit,
}
_MUST_BE = "{name} is {value!r}, but must be one of: {members}"


@dataclass
class MixLoraConfig(PeftConfig):
    """Configuration of Conditional Mixture-of-LoRA (Shen et al., ACL 2024), a PEFT method.

    Args:
        r: Factors of A, and of B, that an instance uses.
        num_factors: Factors of A, and of B, that every adapted Linear has (E).
        lora_alpha: The adapter's output is scaled by lora_alpha / r; 2 * num_factors if None, as in the paper.
        lora_dropout: Dropout of the adapter's input; routers look at the input without it.
        target_modules: Names of the Linear modules to adapt, as in PEFT's LoraConfig.
        exclude_modules: Names of modules not to adapt.
        layers_to_transform: Layer indices to adapt; all if None.
        layers_pattern: Name of the list of layers, for `layers_to_transform`.
        modules_to_save: Modules trained and saved whole with the adapter (the projector).
        routing: "instance", "task" or "random"; see `Routing`.
        conditional: Whether B's factors also depend on the selected A's (conditional factor selection, Eqs. 7 to 9).
        router_gradient: "straight-through" or "none"; see `RouterGradient`.
        pooling: "prompt", "attended" or "all"; see `Pooling`.
        decode_routing: "prompt" or "token"; see `DecodeRouting`.
        cfs_form: "exact" or "official"; see `CfsForm`.
        factor_init: "gaussian" or "kaiming"; see `FactorInit`.
        task_definitions: {task: its definition}, for routing="task".
        task_width: Width of the encoded definitions; the base's hidden size if None.
        format_version: Of the saved adapter; not an option.

    Raises:
        ConfigError: If a value is not allowed; the message lists what is.

    Example:
        >>> from mixlora import MixLoraConfig
        >>> config = MixLoraConfig(r=2, num_factors=8, target_modules=["q_proj"])
        >>> config.alpha, config.scaling
        (16.0, 8.0)
        >>> import peft, transformers
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size))
        >>> model = peft.get_peft_model(base, config)
        >>> tuple(model.base_model.model.model.layers[0].self_attn.q_proj.mixlora_A["default"].shape)
        (8, 16)
    """

    r: int = 4
    num_factors: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    routing: Routing | str = Routing.INSTANCE
    conditional: bool = True
    router_gradient: RouterGradient | str = RouterGradient.STRAIGHT_THROUGH
    pooling: Pooling | str = Pooling.PROMPT
    decode_routing: DecodeRouting | str = DecodeRouting.PROMPT
    cfs_form: CfsForm | str = CfsForm.EXACT
    factor_init: FactorInit | str = FactorInit.GAUSSIAN
    task_definitions: dict[str, str] | None = field(default=None)
    task_width: int | None = None
    format_version: int = FORMAT

    @classmethod
    def paper(cls, **options: Any) -> Self:
        """The method as the paper describes it, which are the defaults.

        Args:
            **options: Fields of the configuration that replace the preset's.

        Returns:
            The configuration.

        Raises:
            ConfigError: If a value is not allowed.

        Example:
            >>> from mixlora import MixLoraConfig
            >>> MixLoraConfig.paper(num_factors=8) == MixLoraConfig(num_factors=8)
            True
        """
        return cls(**options)

    @classmethod
    def official(cls, **options: Any) -> Self:
        """The method as the released code computes it.

        Args:
            **options: Fields of the configuration that replace the preset's.

        Returns:
            The configuration.

        Raises:
            ConfigError: If a value is not allowed.

        Example:
            >>> from mixlora import MixLoraConfig
            >>> config = MixLoraConfig.official(r=2)
            >>> str(config.router_gradient), str(config.pooling), str(config.cfs_form)
            ('none', 'all', 'official')
        """
        preset = {
            "conditional": True,
            "router_gradient": RouterGradient.NONE,
            "pooling": Pooling.ALL,
            "decode_routing": DecodeRouting.TOKEN,
            "cfs_form": CfsForm.OFFICIAL,
            "factor_init": FactorInit.KAIMING,
        }
        return cls(**preset | options)  # type: ignore[arg-type]

    @property
    def alpha(self) -> float:
        """`lora_alpha`, or its default."""
        return 2.0 * self.num_factors if self.lora_alpha is None else self.lora_alpha

    @property
    def scaling(self) -> float:
        """The factor of the adapter's output: alpha / r."""
        return self.alpha / self.r

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = cast(PeftType, PeftType("MIXLORA"))
        if self.format_version > FORMAT:
            raise ConfigError(
                f"the adapter has format {self.format_version}, but this version reads up to {FORMAT}; "
                "update task-interference"
            )
        for name in ("r", "num_factors"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}, but must be a whole number from 1")
        if self.r > self.num_factors:
            raise ConfigError(
                f"r is {self.r}, but there are only num_factors={self.num_factors} factors to choose from"
            )
        if not (isinstance(self.lora_dropout, (int, float)) and 0 <= self.lora_dropout < 1):
            raise ConfigError(f"lora_dropout is {self.lora_dropout!r}, but must be at least 0 and below 1")
        if self.lora_alpha is not None and not _positive(self.lora_alpha):
            raise ConfigError(f"lora_alpha is {self.lora_alpha!r}, but must be a number above 0, or None for 2E")
        if not isinstance(self.conditional, bool):
            raise ConfigError(f"conditional is {self.conditional!r}, but must be True or False")
        if self.task_width is not None and not (isinstance(self.task_width, int) and self.task_width > 0):
            raise ConfigError(f"task_width is {self.task_width!r}, but must be a whole number from 1, or None")
        for name, kind in OPTIONS.items():
            setattr(self, name, member(kind, getattr(self, name), name, message=_MUST_BE))
        if self.routing is Routing.TASK and not self.task_definitions:
            raise ConfigError("routing='task' needs task_definitions={task: definition}, and there are none")
        _check_definitions(self.task_definitions)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), list):
                setattr(self, name, set(value))


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _check_definitions(definitions: Any) -> None:
    if definitions is None:
        return
    if not isinstance(definitions, dict):
        raise ConfigError(f"task_definitions is {type_of(definitions)}, but must be {{task: definition}}")
    for name, definition in definitions.items():
        if not (isinstance(name, str) and isinstance(definition, str) and definition.strip()):
            raise ConfigError(f"task_definitions: {name!r} is defined as {definition!r}, but both must be text")
