"""Per-example gradients of adapter factors: one forward and one backward give those of a whole batch.

With x [batch, seq, d_in] the input of a factor and d [batch, seq, d_out] the gradient at its output, the gradient of
example n is sum_t d[n, t] x[n, t]^T; MixLoRA gathers every example's own factors, whose gradients need only be put in
their rows. What a forward would spend on everything else is left out: weights are frozen,
logits are computed where tokens are supervised, and the graph is rooted at the first probed factor, so that the layers
below it (and the image encoder) run without one.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, set_adapter
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from interference.errors import MeasurementError
from interference.gradients.targets import Tap, Target
from mixlora import MixLoraLayer, routed
from mixlora.tuner.factors import Gather
from mixlora.tuner.routing import Conditional

IGNORED = -100  # the label of a token that is not supervised, as in transformers
LOGIT_ROWS = 8  # logits are computed for a multiple of so many positions; see _kept


@dataclass(frozen=True)
class BatchGradients:
    """What one backward pass gives.

    Attributes:
        gradients: {block name: [batch, *factor shape]}, float32 or better, of each example's own loss.
        losses: [batch], mean cross-entropy over supervised tokens (nats per token).
        tokens: [batch], number of supervised tokens.
        selections: {name of the block of A or B: [batch, r]}, the factors that each example used; empty for LoRA.
    """

    gradients: dict[str, Tensor]
    losses: Tensor
    tokens: Tensor
    selections: dict[str, Tensor] = field(default_factory=dict)


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


def example_losses(model: nn.Module, batch: Mapping[str, Any], whole_logits: bool = False) -> tuple[Tensor, Tensor]:
    """Each example's mean cross-entropy over its supervised tokens.

    Args:
        model: a causal language model, possibly with an image encoder.
        batch: what its forward takes, with `labels` [batch, seq]; -100 marks unsupervised tokens. `tasks`, the task of
            every example, is for MixLoRA's routers.
        whole_logits: compute logits at every position even where the model could leave the unsupervised ones out.

    Returns:
        losses [batch] (nats per token, differentiable) and the number of supervised tokens [batch].

    Raises:
        MeasurementError: if an example has no supervised token.
    """
    labels = batch["labels"]
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    supervised = targets != IGNORED
    tokens = supervised.sum(dim=1)
    if not bool(tokens.all()):
        row = int((tokens == 0).nonzero()[0])
        raise MeasurementError(
            f"row {row} of the batch has no supervised token; every label is -100 or its first token"
        )
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "tasks")}
    kept = _kept(supervised, batch.get("attention_mask"))
    if not whole_logits and "logits_to_keep" in _forward_parameters(model):
        inputs["logits_to_keep"] = _last(supervised) if _spread(model) else kept
    with routed(model, tasks=batch.get("tasks"), labels=labels, alone=True):
        logits = model(**inputs, use_cache=False, return_dict=True).logits
    chosen = supervised[:, -logits.shape[1] :] if logits.dim() == 3 else supervised[kept]
    logits = logits[chosen.to(logits.device)]
    losses = F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        targets[supervised].to(logits.device),
        reduction="none",
    )
    rows = supervised.nonzero()[:, 0].to(logits.device)
    summed = losses.new_zeros(len(labels)).index_add(0, rows, losses)
    return summed / tokens.to(logits.device), tokens


class Probe:
    """Computes per-example gradients of a model's targets; use as a context manager.

    While it is open the model is in evaluation mode, frozen, and only the probed adapter is active; when it closes,
    hooks, `requires_grad`, modes and active adapters are as they were. Parameters are never modified.

    Args:
        model: the model that holds the targets.
        targets: adapted modules to probe, all of one adapter.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        self.model = model
        self.targets = targets
        self._stack = ExitStack()
        self._gradients: dict[str, Tensor] = {}
        self._batch_shape = (0, 0)

    def __enter__(self) -> "Probe":
        try:
            self._stack.enter_context(as_found(self.model))
            activate(self.model, self.targets[0].adapter)
            self.model.eval()
            self.model.requires_grad_(False)
            for target in self.targets:
                for tap in target.taps.values():
                    self._stack.enter_context(self._hook(tap))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def gradients(self, batch: Mapping[str, Any]) -> BatchGradients:
        """Gradients of every example of a collated batch.

        Args:
            batch: what the model's forward takes, with `labels` [batch, seq].

        Raises:
            MeasurementError: if an example has no supervised token, or a module does not keep examples apart.
        """
        self._gradients = {}
        self._batch_shape = (batch["labels"].shape[0], batch["labels"].shape[1])
        with torch.enable_grad():
            losses, tokens = example_losses(self.model, batch, whole_logits=self._probes_head)
            losses.sum().backward()
        gradients, self._gradients = self._gradients, {}
        for target in self.targets:
            for block in target.blocks:
                if block.name not in gradients:
                    raise MeasurementError(f"{target.path} took no part in the loss; leave it out of the modules")
        return BatchGradients(gradients, losses.detach(), tokens, self._selections())

    def _selections(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for target in self.targets:
            if isinstance(target.layer, MixLoraLayer) and target.layer.selection is not None:
                a, b = target.blocks[:2]
                found |= {a.name: target.layer.selection.A, b.name: target.layer.selection.B}
        return found

    @property
    def _probes_head(self) -> bool:
        return any(target.place.layer is None for target in self.targets)

    @contextmanager
    def _hook(self, tap: Tap) -> Iterator[None]:
        def forward_hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_(True)
            seen = tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)
            output.register_hook(lambda gradient: self._add(tap.block.name, module, seen, gradient))

        handle = tap.module.register_forward_hook(forward_hook)
        try:
            yield
        finally:
            handle.remove()

    def _add(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output_gradients: Tensor) -> None:
        """A module that runs several times in a forward collects the sum over its calls."""
        batch, seq = self._batch_shape
        if isinstance(module, nn.Linear):
            inputs = (_by_example(inputs[0], batch, seq),)
            output_gradients = _by_example(output_gradients, batch, seq)
        if output_gradients.shape[0] != batch or output_gradients.dim() < 2:
            seen = inputs[0] if isinstance(module, nn.Linear) else output_gradients
            raise MeasurementError(
                f"block {name}: values of shape {tuple(seen.shape)} do not keep the {batch} examples of the batch "
                "apart (one image an example, no token routing, no packing); leave the module out"
            )
        gradient = per_example(module, inputs, output_gradients)
        self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient


def _by_example(values: Tensor, batch: int, seq: int) -> Tensor:
    """Values of a Linear with the examples along the first axis: [batch, positions, d], if they can be told apart."""
    if values.dim() == 2 and values.shape[0] == batch * seq:
        return values.unflatten(0, (batch, seq))
    return values.unsqueeze(1) if values.dim() == 2 and values.shape[0] == batch else values


def _kept(supervised: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Supervised positions [batch, seq], and a few attended ones that make their number a multiple of LOGIT_ROWS.

    BLAS leaves rows beyond a multiple of four to a kernel that adds up the vocabulary's products one by one. Its
    rounding is ten times larger, and a model with large activations makes 1e-4 of the gradient of it. What is added has
    no part in the loss.
    """
    spare = ~supervised if attention_mask is None else ~supervised & attention_mask.bool()
    added = spare.flatten().nonzero()[: -int(supervised.sum()) % LOGIT_ROWS, 0]
    return supervised.flatten().index_fill(0, added, True).view_as(supervised)


def _last(supervised: Tensor) -> int:
    """How many of the last positions hold all supervised ones [batch, seq]."""
    return supervised.shape[1] - int(supervised.any(dim=0).nonzero()[0])


def _spread(model: nn.Module) -> bool:
    """Whether layers are on several devices, of which the last is not that of the positions to keep."""
    return len(set(getattr(_base(model), "hf_device_map", {}).values())) > 1


def _forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_base(model).forward).parameters


def _base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def activate(model: nn.Module, adapter: str) -> None:
    """Make `adapter` the only active one; nothing is touched where it already is."""
    if any(layer.active_adapters != [adapter] for layer in _adapted(model)):
        set_adapter(model, adapter)


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Hand the model back as it came: training modes, requires_grad and active adapters."""
    modes = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    active = [(layer, layer._active_adapter) for layer in _adapted(model)]
    try:
        yield
    finally:
        for layer, names in active:
            layer._active_adapter = names
        for module, training in modes:
            module.training = training
        for parameter, needed in required:
            parameter.requires_grad_(needed)


def _adapted(model: nn.Module) -> list[Any]:
    """Modules that choose among adapters: tuner layers, and wrappers of modules that are saved whole."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
