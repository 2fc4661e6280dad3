"""Per-example gradients that are slow and obviously right: `verify` and the tests compare `gradients` with them.

There are two independent ways: batch-1 autograd through the model's own loss, and torch.func (vmap of grad).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from interference.blocks import Component
from interference.gradients.autograd import Loss, loss_of, model_loss, weights_of
from interference.gradients.examples import single, singles
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Target, find_targets, probed_adapter
from mixlora import routed
from mixlora.common.labels import IGNORED

__all__ = ["gradients"]  # public as `interference.reference`


def gradients(
    model: nn.Module,
    batch: Mapping[str, Any],
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    adapter: str | None = None,
    components: Sequence[Component | str] = (Component.LANGUAGE,),
    routers: bool = False,
) -> dict[str, Tensor]:
    """Each example's gradient by batch-1 autograd: alone, without its padding, through the model's own loss.

    Args:
        model: A model with a LoRA or MixLoRA adapter.
        batch: What its forward takes, with `labels` [batch, seq].
        layers: Transformer block indices; None for all.
        modules: Module names or groups; None for all.
        adapter: The probed adapter; None for the active one.
        components: Parts of the model.
        routers: Also the gradients of MixLoRA's routers.

    Returns:
        {block name: [batch, *factor shape]}, nats per token and unit of the parameter.

    Raises:
        CheckpointError: If the model has no such adapter.
        ScopeError: If a layer, module or component does not exist.

    Example:
        >>> import interference, torch, transformers
        >>> from peft import LoraConfig, get_peft_model
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size))
        >>> model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> found = interference.reference.gradients(model, {"input_ids": ids, "labels": ids})
        >>> {name: tuple(gradient.shape) for name, gradient in found.items()}
        {'language.0.q_proj.A': (1, 8, 16), 'language.0.q_proj.B': (1, 16, 8)}
    """
    name = probed_adapter(model, adapter)
    targets = find_targets(model, name, layers, modules, components, routers)
    return of_targets(model, batch, targets)


def of_targets(
    model: nn.Module, batch: Mapping[str, Any], targets: Sequence[Target], loss: Loss | None = None
) -> dict[str, Tensor]:
    """`gradients` of known targets.

    Args:
        model: A model with a LoRA or MixLoRA adapter.
        batch: What its forward takes, with `labels` [batch, seq].
        targets: Of one adapter.
        loss: A function of (model, batch of one example) in place of the model's own; None for that.

    Returns:
        {block name: [batch, *factor shape]}.
    """
    return with_losses(model, batch, targets, loss)[0]


def with_losses(
    model: nn.Module, batch: Mapping[str, Any], targets: Sequence[Target], loss: Loss | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """`of_targets`, and the loss of each example.

    Args:
        model: As in `of_targets`, like the others.
        batch: What its forward takes.
        targets: Of one adapter.
        loss: In place of the model's own; None for that.

    Returns:
        {block name: [batch, *factor shape]}, and [batch], nats per token.
    """
    with as_found(model), torch.enable_grad():
        activate(model, targets[0].adapter)
        weights = _prepare(model, targets)
        rows, losses = [], []
        alone = [single(batch, row) for row in range(len(batch["labels"]))] if loss is None else singles(batch)
        for example in alone:
            found = loss_of(model, example, loss or model_loss)
            rows.append(torch.autograd.grad(found, list(weights.values())))
            losses.append(found.detach())
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(weights)}, torch.stack(losses)


def gradients_functional(model: nn.Module, batch: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Each example's gradient by torch.func: vmap over the examples of grad of a functional call.

    The batch must consist of tensors with the examples along the first axis. The model's attention must be one that
    vmap can follow ("eager").

    Args:
        model: A model with a LoRA or MixLoRA adapter.
        batch: What its forward takes, with `labels` [batch, seq].
        targets: Of one adapter.

    Returns:
        {block name: [batch, *factor shape]}.
    """
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with as_found(model), torch.enable_grad():
        activate(model, targets[0].adapter)
        weights = _prepare(model, targets)
        free = {names[id(weight)]: weight for weight in weights.values()}

        def loss(parameters: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
            inputs = {key: value.unsqueeze(0) for key, value in example.items() if key != "labels"}
            with routed(model, tasks=batch.get("tasks"), labels=example["labels"].unsqueeze(0), alone=True):
                logits = functional_call(model, parameters, (), {**inputs, "use_cache": False}).logits[0, :-1]
            targets = example["labels"][1:]
            return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED)

        found = vmap(grad(loss), in_dims=(None, 0))({k: w.detach() for k, w in free.items()}, tensors)
    return dict(zip(weights, found.values(), strict=True))


def _prepare(model: nn.Module, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Freeze all but the targets' factors, and return these: {block name: weight}."""
    model.eval()
    model.requires_grad_(False)
    weights = weights_of(targets)
    for weight in weights.values():
        weight.requires_grad_(True)
    return weights
