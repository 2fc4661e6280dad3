"""A Linear with LoRA as one function: fewer passes over activations than PEFT's forward, and the gradients at A and B.

PEFT computes W x + scaling * B A x as three products, a multiplication and an addition as wide as the output, and
autograd goes through all of them again. Here the scaling is applied where it is narrow (rank wide) and products are
added where they are made. It is done for plain LoRA on plain Linears alone; `gradients` hooks everything else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

Tell = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Told (x, d at A's output) and (scaling * A x, d at B's output), d being the gradient of the loss."""


class _Adapted(torch.autograd.Function):
    """x W^T + bias + scaling * (x A^T) B^T, of frozen weights; its backward tells what the factors' gradients need.

    `root` requires a gradient where the factors are probed: then there is a backward even if x needs none.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, root: Tensor | None, base: nn.Linear, a: Tensor, b: Tensor, scaling: float, tell: Tell
    ) -> Tensor:
        narrow = F.linear(x, a).mul_(scaling)
        output = F.linear(x, base.weight, base.bias)
        output.flatten(0, -2).addmm_(narrow.flatten(0, -2), b.T)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x, narrow)
        ctx.base, ctx.a, ctx.b, ctx.scaling, ctx.tell = base, a, b, scaling, tell
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        narrow_d = (d @ ctx.b).mul_(ctx.scaling)
        if ctx.needs_input_grad[1]:
            x, narrow = ctx.saved_tensors
            ctx.tell(x, narrow_d, narrow, d)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = d @ ctx.base.weight
            d_x.flatten(0, -2).addmm_(narrow_d.flatten(0, -2), ctx.a)
        return d_x, None, None, None, None, None, None
