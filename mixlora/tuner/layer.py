"""MixLoraLayer: a Linear with banks of factors, from which every instance uses a few of its own."""

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from mixlora.common.errors import AdapterError, MergeError, RoutingError, type_of
from mixlora.tuner.config import DecodeRouting, FactorInit, MixLoraConfig, Pooling, Routing
from mixlora.tuner.context import Context, pool
from mixlora.tuner.factors import Gather, add_projected
from mixlora.tuner.routing import Router, Selection, drawn, has_router, learns, straight_through, top
from mixlora.tuner.tracker import Tracker

CANNOT_MERGE = (
    "MixLoRA cannot be merged into the base: every instance chooses its own factors, so there is no single delta "
    "weight; keep the adapter, or call unload() for the base without it"
)


class MixLoraLayer(nn.Module, BaseTunerLayer):
    """A Linear and its MixLoRA adapters.

    For every instance, y = W x + (alpha / r) sum_k b_{B(k)} <a_{A(k)}, x>: r of the E factors a_e [d_in] and of the b_e
    [d_out] are chosen, the k-th ranked of A paired with the k-th ranked of B.

    Args:
        base_layer: The Linear, or another tuner's layer around one.
        name: The module's path in the model; the key of its selections.
        tracker: Knows the current forward.
        in_stream: Whether the module's input is the text's tokens, position by position.

    Raises:
        AdapterError: If the base layer is not a Linear.
    """

    adapter_layer_names = ("mixlora_A", "mixlora_B", "mixlora_router")
    other_param_names = ("configs", "dropout", "tasks", "_selections")

    def __init__(self, base_layer: nn.Module, name: str, tracker: Tracker, in_stream: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        linear = self.get_base_layer()
        if not isinstance(linear, nn.Linear):
            raise AdapterError(
                f"{name} is {type_of(linear)}, but only Linear modules can be adapted; leave it out of target_modules"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.name = name
        self.tracker = tracker
        self.in_stream = in_stream
        self.configs: dict[str, MixLoraConfig] = {}
        self.dropout = nn.ModuleDict()
        self.mixlora_A = nn.ParameterDict()
        self.mixlora_B = nn.ParameterDict()
        self.mixlora_router = nn.ModuleDict()
        self.gather_A, self.gather_B = Gather(), Gather()
        self.tasks: dict[str, Any] = {}
        self._selections: dict[str, Selection] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @property
    def selection(self) -> Selection | None:
        """The last active adapter's selection in the last forward; None before the first forward."""
        found = [self._selections[name] for name in self.active_adapters if name in self._selections]
        return found[-1] if found else None

    def update_layer(
        self, adapter: str, config: MixLoraConfig, tasks: Any = None, inference_mode: bool = False
    ) -> None:
        """Add an adapter.

        Args:
            adapter: Its name.
            config: Its configuration.
            tasks: The encoded task definitions, for routing="task".
            inference_mode: Freeze it.
        """
        width = self.in_features if tasks is None else tasks.width
        self.configs[adapter] = config
        self.tasks[adapter] = tasks
        self.dropout[adapter] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.mixlora_A[adapter] = nn.Parameter(torch.empty(config.num_factors, self.in_features))
        self.mixlora_B[adapter] = nn.Parameter(torch.empty(config.num_factors, self.out_features))
        if has_router(config):
            self.mixlora_router[adapter] = Router(config, self.in_features, width)
        if not learns(config):
            self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter: ("mixlora_router",)}
        self.reset_factors(adapter)
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def reset_factors(self, adapter: str) -> None:
        """Initialise A according to `factor_init`, and B with zeros: a new adapter changes no output.

        Args:
            adapter: Its name.
        """
        if self.configs[adapter].factor_init is FactorInit.GAUSSIAN:
            nn.init.normal_(self.mixlora_A[adapter], std=1 / math.sqrt(self.in_features))
        else:
            nn.init.kaiming_uniform_(self.mixlora_A[adapter], a=math.sqrt(5))
        nn.init.zeros_(self.mixlora_B[adapter])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output plus that of the active adapters.

        Args:
            x: [..., d_in].
            *args: What else the base layer takes.
            **kwargs: Likewise by name.

        Returns:
            [..., d_out].

        Raises:
            RoutingError: If the instances cannot be told apart, or a task is unknown.
        """
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for adapter in self.active_adapters:
            if adapter in self.mixlora_A:
                result = self._adapted(x, result, adapter)
        return result

    def _adapted(self, x: Tensor, result: Tensor, adapter: str) -> Tensor:
        bank_a, bank_b = self.mixlora_A[adapter], self.mixlora_B[adapter]
        x = self._cast_input_dtype(x, bank_a.dtype)
        context, known = self._context(x, adapter)
        if not known:
            self._check_instances(x)
        if known and context is not None:
            x = x.reshape(*context.shape, -1)
        packing = context.packing if known and context is not None else None
        rows = x if packing is None else packing.unpack(x)
        rows = rows.reshape(-1, *rows.shape[-2:]) if rows.dim() > 2 else rows.unsqueeze(0)
        selection, a, weights = self._route(rows, context, known, adapter)
        b = self.gather_B(bank_b, selection.B)
        self._selections[adapter] = selection.detached()
        outputs = result.reshape(*x.shape[:-1], -1)
        outputs = outputs.reshape(*rows.shape[:2], -1) if packing is None else packing.unpack(outputs)
        added = add_projected(outputs, self.dropout[adapter](rows), a, b, weights)
        return (added if packing is None else packing.pack(added, len(x))).view_as(result)

    def _context(self, x: Tensor, adapter: str) -> tuple[Context | None, bool]:
        """The context of the current forward, and whether it knows the positions of x."""
        context = self.tracker.context
        if not self.in_stream:
            return context, False
        if context is not None and _tokens_of(context.shape, tuple(x.shape[:-1])):
            return context, True
        if self.configs[adapter].pooling is not Pooling.ALL:
            self.tracker.warn_once(
                "no context",
                f"{self.name} is called with an input of shape {tuple(x.shape)} whose tokens the model's forward does "
                "not tell apart, so MixLoRA pools over all its positions; call the model that contains it",
            )
        return None, False

    def _check_instances(self, x: Tensor) -> None:
        """Raise a RoutingError if instances share rows of x, whose positions are not the tokens of the forward."""
        shape = tuple(x.shape)
        if x.dim() > 3:
            raise RoutingError(
                f"{self.name} is called with an input of shape {shape}, in which MixLoRA cannot tell the instances "
                "apart; leave it out of target_modules"
            )
        context = self.tracker.context
        if self.in_stream or context is None or 1 in (context.shape[0], context.pictures):
            return
        if x.dim() == 2 or (len(x) == 1 and context.pictures is not None):
            raise RoutingError(
                f"{self.name} is called with an input of shape {shape}, which packs the pictures of "
                f"{context.shape[0]} instances into one sequence, so all would get one routing; leave it out of "
                "target_modules, or give batches of one instance"
            )

    def _route(
        self, rows: Tensor, context: Context | None, known: bool, adapter: str
    ) -> tuple[Selection, Tensor, Tensor]:
        """The selection, the selected A factors [instances, r, d_in] and the weights of the pairs [instances, r]."""
        config, bank = self.configs[adapter], self.mixlora_A[adapter]
        kept = self._kept(context, config, adapter, len(rows))
        if kept is not None:
            return kept, self.gather_A(bank, kept.A), _equal(kept.A, rows, config)
        if not has_router(config):
            chosen = drawn(len(rows), config, rows.device)
            self._keep(context, adapter, chosen)
            return chosen, self.gather_A(bank, chosen.A), _equal(chosen.A, rows, config)
        router: Any = self.mixlora_router[adapter]
        with torch.autocast(rows.device.type, enabled=False):
            scores, independent_b = router.independent(self._seen(rows, context, known, adapter))
            chosen_a = top(scores, config.r)
            a = self.gather_A(bank, chosen_a)
            scores_b = router.dependent(independent_b, a)
            selection = Selection(chosen_a, top(scores_b, config.r), scores, scores_b)
        self._keep(context, adapter, selection)
        weights = _equal(chosen_a, rows, config)
        if learns(config) and torch.is_grad_enabled():
            weights = weights * straight_through(scores, selection.A) * straight_through(scores_b, selection.B)
        return selection, a, weights

    def _seen(self, rows: Tensor, context: Context | None, known: bool, adapter: str) -> Tensor:
        """The input of the independent routers [instances, width]."""
        config = self.configs[adapter]
        if config.routing is Routing.TASK:
            found = self.tasks[adapter].of(self.tracker.tasks if context is None else context.tasks, len(rows))
            return found.to(rows.device)  # the bank is the whole model's: the base's devices are none of its own
        return pool(rows, context.mask(Pooling(config.pooling)) if known and context is not None else None)

    def _kept(self, context: Context | None, config: MixLoraConfig, adapter: str, instances: int) -> Selection | None:
        """An earlier selection to reuse: the prompt's while decoding, or a random one in a recomputation."""
        if context is None:
            return None
        key = (self.name, adapter)
        held = context.drawn.get(key)
        if context.decoding and config.decode_routing is DecodeRouting.PROMPT:
            held = context.held.get(key)
            if held is None:
                self.tracker.warn_once(
                    "no prompt",
                    "the cached prompt was not run through this MixLoRA adapter, so generated tokens are routed "
                    "without it; run the prompt with the adapter active",
                )
        return None if held is None else _repeated(held, instances)

    def _keep(self, context: Context | None, adapter: str, selection: Selection) -> None:
        if context is None:
            return
        key = (self.name, adapter)
        if not has_router(self.configs[adapter]):
            context.drawn[key] = selection
        if not context.decoding:
            context.held[key] = selection.detached()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge.

        Args:
            safe_merge: Not read.
            adapter_names: Not read.

        Raises:
            MergeError: Always.
        """
        raise MergeError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Do nothing: adapters are never merged."""

    def __repr__(self) -> str:
        return f"mixlora.{super().__repr__()}"


def _tokens_of(tokens: tuple[int, int], leading: tuple[int, ...]) -> bool:
    """Whether leading axes of an input are those of the forward's tokens (batch, seq), but for axes of length 1."""
    batch, seq = tokens
    if leading in (tokens, (batch * seq,)):
        return True
    return len(leading) > 2 and (leading[0], leading[-1]) == tokens and math.prod(leading) == batch * seq


def _equal(selection: Tensor, rows: Tensor, config: MixLoraConfig) -> Tensor:
    """The scaling as the weight of every selected pair [instances, r]: the forward is unweighted."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return torch.full(selection.shape, config.scaling, dtype=dtype, device=rows.device)


def _repeated(held: Selection, instances: int) -> Selection:
    """A held selection for a batch in which every instance was repeated (beams, several answers)."""
    count = len(held.A)
    if count == instances:
        return held
    if instances % count:
        raise RoutingError(
            f"the cached prompt has {count} instances, but {instances} continue from it; use the cache of the same "
            "batch"
        )
    parts = [
        None if part is None else part.repeat_interleave(instances // count, dim=0)
        for part in (held.A, held.B, held.scores_A, held.scores_B)
    ]
    return Selection(*parts)  # type: ignore[arg-type]
