"""Per-example gradients of each kind of layer, as pure functions of its inputs and the gradient at its output."""

from typing import Any

import torch
from torch import Tensor, nn

from mixlora.tuner.factors import Gather
from mixlora.tuner.routing import Conditional


def outer_gradient(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """Per-example gradient of a Linear's weight.

    The narrower of the two goes first: BLAS takes six times as long for a tall product times a thin one.

    Args:
        inputs: [batch, seq, d_in].
        output_gradients: [batch, seq, d_out].

    Returns:
        [batch, d_out, d_in], float32 or better.
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    inputs, output_gradients = inputs.to(dtype), output_gradients.to(dtype)
    if inputs.shape[-1] < output_gradients.shape[-1]:
        return torch.bmm(inputs.transpose(1, 2), output_gradients).transpose(1, 2)
    return torch.bmm(output_gradients.transpose(1, 2), inputs)


def per_example(module: nn.Module, inputs: tuple[Any, ...], output_gradients: Tensor) -> Tensor:
    """Per-example gradient of what a module multiplies with, from its inputs and the gradient at its output.

    Args:
        module: a Linear (a LoRA factor, or an independent router), MixLoRA's Gather (the whole bank, in which factors
            that an example did not select have gradient zero) or its Conditional router.
        inputs: of its forward, the first with the examples along its first axis.
        output_gradients: [batch, ...].

    Returns:
        [batch, *shape of the parameter], float32 or better.
    """
    dtype = torch.promote_types(output_gradients.dtype, torch.float32)
    if isinstance(module, Gather):
        bank, selection = inputs
        rows = output_gradients.new_zeros((len(selection), *bank.shape), dtype=dtype)
        return rows.scatter_(1, selection.unsqueeze(-1).expand_as(output_gradients), output_gradients.to(dtype))
    if isinstance(module, Conditional):
        return module.example_gradients(inputs[0].to(dtype), output_gradients.to(dtype))
    return outer_gradient(inputs[0].flatten(1, -2), output_gradients.flatten(1, -2))
