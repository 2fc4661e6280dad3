"""Per-example gradients of adapter factors: one forward and one backward give those of a whole batch.

With x [batch, seq, d_in] the input of a factor and d [batch, seq, d_out] the gradient at its output, the gradient of
example n is sum_t d[n, t] x[n, t]^T. MixLoRA gathers every example's own factors; their gradients only need to be put
in the right rows. Work that these gradients do not need is skipped: weights are frozen, logits are computed where
tokens are supervised, and the graph starts at the first probed factor, so that the layers below it (and the image
encoder) run without one.

That is for the mean cross-entropy over supervised tokens. Any other loss is measured one example at a time, by
`autograd`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interference.errors import MeasurementError
from interference.gradients.autograd import Loss, gradients_of, model_loss, selections_of, tokens_of, weights_of
from interference.gradients.layers import by_example, per_example
from interference.gradients.losses import example_losses
from interference.gradients.padding import check_padding, with_positions
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Tap, Target


@dataclass(frozen=True)
class BatchGradients:
    """What one backward pass gives.

    Attributes:
        gradients: {block name: [batch, *factor shape]}, float32 or better, of each example's own loss.
        losses: [batch], mean cross-entropy over supervised tokens (nats per token), or of the probe's own loss.
        tokens: [batch], number of supervised tokens.
        selections: {name of the block of A or B: [batch, r]}, the factors that each example used; empty for LoRA.
    """

    gradients: dict[str, Tensor]
    losses: Tensor
    tokens: Tensor
    selections: dict[str, Tensor] = field(default_factory=dict)


class Probe:
    """Computes per-example gradients of a model's targets; use as a context manager.

    While it is open, the model is in evaluation mode and frozen, and only the probed adapter is active. Closing it
    removes the hooks and restores `requires_grad`, modes and active adapters. Parameters are never modified.

    Args:
        model: the model that holds the targets.
        targets: adapted modules to probe, all of one adapter.
        loss: of a batch of one example; None for the mean cross-entropy over its supervised tokens.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target], loss: Loss | None = None) -> None:
        self.model = model
        self.targets = targets
        self.loss = loss
        self._stack = ExitStack()
        self._gradients: dict[str, Tensor] = {}
        self._batch_shape = (0, 0)
        self._padding_checked = False

    def __enter__(self) -> "Probe":
        try:
            self._stack.enter_context(as_found(self.model))
            activate(self.model, self.targets[0].adapter)
            self.model.eval()
            self.model.requires_grad_(False)
            if self.loss is not None:
                for weight in weights_of(self.targets).values():
                    weight.requires_grad_(True)
                return self
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
            MeasurementError: if an example has no supervised token, a module does not keep examples apart, or the
                probe's own loss is not a scalar that depends on every target, or the model's loss depends on padding.
        """
        if self.loss is not None:
            tokens = tokens_of(batch)
            batch = with_positions(self.model, batch) if self.loss is model_loss else batch
            with torch.enable_grad():
                found, own, selections = gradients_of(self.model, batch, self.targets, self.loss)
            return BatchGradients(found, own, tokens, selections)
        if not self._padding_checked:
            self._padding_checked = check_padding(self.model, batch, lambda one: example_losses(self.model, one)[0])
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
        return BatchGradients(gradients, losses.detach(), tokens, selections_of(self.targets))

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
        """Add the gradient of one call of a module; a module may run several times in a forward."""
        batch, seq = self._batch_shape
        if isinstance(module, nn.Linear):
            inputs = (by_example(inputs[0], batch, seq),)
            output_gradients = by_example(output_gradients, batch, seq)
        if output_gradients.shape[0] != batch or output_gradients.dim() < 2:
            seen = inputs[0] if isinstance(module, nn.Linear) else output_gradients
            raise MeasurementError(
                f"block {name}: values of shape {tuple(seen.shape)} do not keep the {batch} examples of the batch "
                "apart (one image per example, no token routing, no packing); leave the module out"
            )
        gradient = per_example(module, inputs, output_gradients)
        self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient
