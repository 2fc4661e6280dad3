"""A Linear with LoRA as one function: fewer passes over activations than PEFT's forward, and what its factors see.

PEFT computes W x + scaling * B A x as three products, a multiplication and an addition as wide as the output, and
autograd goes through all of them again. Here the scaling is applied where it is narrow (rank wide) and products are
added up where they are made. It is done for plain LoRA on a plain Linear; `gradients` hooks everything else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Seen = Callable[[Tensor, Tensor], None]
"""Told the input of a factor and the gradient at its output, both [batch, seq, width]."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Watch:
    """Who is told of a module's factors.

    Attributes:
        root: a tensor that requires a gradient, so that there is a backward even if the module's input needs none.
        a: told of A.
        b: told of B.
    """

    root: Tensor
    a: Seen
    b: Seen


class _Adapted(torch.autograd.Function):
    """y = x W^T + bias + (scaling * x A^T) B^T of frozen weights, and the gradient of x.

    With d the gradient at y, factor A sees the input x and the gradient scaling * d B at its output; factor B sees the
    input scaling * x A^T and the gradient d.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, root: Tensor | None, base: nn.Linear, a: Tensor, b: Tensor, scaling: float, watch: Watch
    ) -> Tensor:
        rows = x.flatten(0, -2)
        narrow = F.linear(rows, a).mul_(scaling)
        output = F.linear(rows, base.weight, base.bias).addmm_(narrow, b.T)
        if root is not None:
            ctx.save_for_backward(x, narrow.view(*x.shape[:-1], -1))
        ctx.base, ctx.a, ctx.b, ctx.scaling, ctx.watch = base, a, b, scaling, watch
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        rows = d.flatten(0, -2)
        narrow_d = (rows @ ctx.b).mul_(ctx.scaling)
        if ctx.needs_input_grad[1]:
            x, narrow = ctx.saved_tensors
            ctx.watch.a(x, narrow_d.view(*d.shape[:-1], -1))
            ctx.watch.b(narrow, d)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (rows @ ctx.base.weight).addmm_(narrow_d, ctx.a).view(*d.shape[:-1], -1)
        return d_x, None, None, None, None, None, None


@contextmanager
def fused(layer: nn.Module, adapter: str, watch: Watch | None) -> Iterator[None]:
    """Let a `fusible` layer run as one function; its weights, which have to be frozen, get no gradients.

    Args:
        layer: an adapted Linear.
        adapter: its active adapter.
        watch: told of the factors in every backward; None if they are not probed.
    """
    own, lora = layer.forward, cast(LoraLinear, layer)
    base, a, b = (cast(nn.Linear, m) for m in (lora.get_base_layer(), lora.lora_A[adapter], lora.lora_B[adapter]))
    root = None if watch is None else watch.root

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.dtype != a.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return own(x, *args, **kwargs)
        return _Adapted.apply(x, root, base, a.weight, b.weight, lora.scaling[adapter], watch)

    layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward


def fusible(layer: nn.Module, adapter: str) -> bool:
    """Whether `layer` is plain LoRA with this active adapter on a plain Linear of its dtype, hooked by nobody."""
    if type(layer) is not LoraLinear or "forward" in vars(layer) or layer.merged or layer.disable_adapters:
        return False
    if layer.active_adapters != [adapter] or adapter not in layer.lora_A or adapter in layer.lora_variant:
        return False
    base, a, b = layer.get_base_layer(), layer.lora_A[adapter], layer.lora_B[adapter]
    if not all(_bare(module) for module in (base, a, b)) or a.bias is not None or b.bias is not None:
        return False
    return base.weight.dtype == a.weight.dtype == b.weight.dtype


def _bare(module: nn.Module) -> bool:
    return type(module) is nn.Linear and "forward" not in vars(module) and not any(vars(module)[k] for k in _HOOKS)
