"""Per-example gradients of each kind of layer, as pure functions of its inputs and the gradient at its output.

Not here: the hooks that read inputs and output gradients off a model (`probe`).
"""

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
    """Per-example gradient of a module's parameter, from the module's inputs and the gradient at its output.

    Args:
        module: a Linear (a LoRA factor, or an independent router), MixLoRA's Gather (the whole bank, in which factors
            that an example did not select have gradient zero) or its Conditional router.
        inputs: the inputs of its forward; the first has the examples along its first axis.
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


def by_example(values: Tensor, batch: int, seq: int) -> Tensor:
    """Inputs or output gradients of a Linear, the examples along the first axis.

    Args:
        values: [batch * seq, d], [batch, d], or of another shape, which stays as it is.
        batch: examples in the batch.
        seq: positions of an example.

    Returns:
        [batch, positions, d], if the examples can be told apart.
    """
    if values.dim() == 2 and values.shape[0] == batch * seq:
        return values.unflatten(0, (batch, seq))
    return values.unsqueeze(1) if values.dim() == 2 and values.shape[0] == batch else values
