"""The loss of every example of a batch, as if it were alone. Logits are computed only where tokens are supervised."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interference.errors import MeasurementError
from interference.gradients.autograd import Loss, loss_of, tokens_of
from interference.gradients.examples import inputs_of, singles
from interference.gradients.padding import with_positions
from mixlora import routed
from mixlora.common.labels import IGNORED
from mixlora.tuner.model import base_model_of

LOGIT_ROWS = 8
"""Logits are computed for a multiple of this number of positions; `_kept` says why."""


def example_losses(
    model: nn.Module, batch: Mapping[str, Any], whole_logits: bool = False, alone: bool | None = True
) -> tuple[Tensor, Tensor]:
    """Each example's mean cross-entropy over its supervised tokens.

    Args:
        model: a causal language model, possibly with an image encoder.
        batch: what its forward takes, with `labels` [batch, seq]; -100 marks unsupervised tokens. `tasks`, the task of
            every example, is for MixLoRA's routers.
        whole_logits: compute logits at every position, even if the model can skip the unsupervised ones.
        alone: whether routers that look at padding see each example as if it were alone; None as in a training.

    Returns:
        losses [batch] (nats per token, differentiable) and the number of supervised tokens [batch].

    Raises:
        MeasurementError: if an example has no supervised token, or the model has no head.
    """
    logits, targets, supervised, tokens = _supervised(model, batch, whole_logits, alone)
    losses = F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        targets.to(logits.device),
        reduction="none",
    )
    return _by_example(losses, supervised) / tokens.to(logits.device), tokens


def losses_by(model: nn.Module, batch: Mapping[str, Any], loss: Loss | None) -> tuple[Tensor, Tensor]:
    """Each example's loss, by whichever loss is read.

    Args:
        model: as in `example_losses`.
        batch: as in `example_losses`.
        loss: of a batch of one example; None for the mean cross-entropy over supervised tokens.

    Returns:
        Losses (nats per token, where it is the cross-entropy) and numbers of supervised tokens, each [batch].

    Raises:
        MeasurementError: if an example has no supervised token, or its loss is no scalar.
    """
    if loss is None:
        return example_losses(model, batch)
    return torch.stack([loss_of(model, example, loss) for example in singles(batch)]), tokens_of(batch)


def exact_answers(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Whether every supervised token of an example is the likeliest one after those before it.

    That is when greedy decoding gives exactly the answer, whatever it does after the answer.

    Args:
        model: as in `example_losses`.
        batch: as in `example_losses`.

    Returns:
        1 or 0 for each example [batch].

    Raises:
        MeasurementError: as `example_losses`.
    """
    logits, targets, supervised, tokens = _supervised(model, batch)
    right = (logits.argmax(dim=-1) == targets.to(logits.device)).double()
    return (_by_example(right, supervised) == tokens.to(logits.device)).double()


def _supervised(
    model: nn.Module, batch: Mapping[str, Any], whole_logits: bool = False, alone: bool | None = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [tokens, vocabulary] and targets [tokens] where tokens are supervised, these places [batch, seq], counts.

    Raises:
        MeasurementError: if an example has no supervised token, or the model has no head.
    """
    batch = with_positions(model, batch)
    labels = batch["labels"]
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    supervised, tokens = targets != IGNORED, tokens_of(batch)
    inputs = inputs_of(batch, "labels")
    kept = _kept(supervised, batch.get("attention_mask"))
    if not whole_logits and can_skip_logits(model):
        inputs["logits_to_keep"] = _last(supervised) if _spread(model) else kept
    with routed(model, tasks=batch.get("tasks"), labels=labels, alone=alone):
        logits = _logits(model, model(**inputs, use_cache=False, return_dict=True))
    chosen = supervised[:, -logits.shape[1] :] if logits.dim() == 3 else supervised[kept]
    return logits[chosen.to(logits.device)], targets[supervised], supervised, tokens


def _by_example(values: Tensor, supervised: Tensor) -> Tensor:
    """Sums over the supervised tokens of every example [batch]."""
    rows = supervised.nonzero()[:, 0].to(values.device)
    return values.new_zeros(len(supervised)).index_add(0, rows, values)


def _logits(model: nn.Module, output: Any) -> Tensor:
    found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        name = type(base_model_of(model)).__name__
        raise MeasurementError(
            f"{name} gives no logits, because it has no head that predicts tokens; load the base with "
            "AutoModelForCausalLM"
        )
    return found


def can_skip_logits(model: nn.Module) -> bool:
    """Whether the model's forward can skip the logits of some positions."""
    return "logits_to_keep" in inspect.signature(base_model_of(model).forward).parameters


def _kept(supervised: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Supervised positions [batch, seq], and a few attended ones that make their number a multiple of LOGIT_ROWS.

    BLAS hands rows beyond a multiple of four to a kernel that adds up the vocabulary's products one by one. Its
    rounding error is ten times larger: 1e-4 of the gradient of a model with large activations. The positions that are
    added take no part in the loss.
    """
    spare = ~supervised if attention_mask is None else ~supervised & attention_mask.bool()
    added = spare.flatten().nonzero()[: -int(supervised.sum()) % LOGIT_ROWS, 0]
    return supervised.flatten().index_fill(0, added, True).view_as(supervised)


def _last(supervised: Tensor) -> int:
    """The number of last positions that hold all supervised ones [batch, seq]."""
    return supervised.shape[1] - int(supervised.any(dim=0).nonzero()[0])


def _spread(model: nn.Module) -> bool:
    """Whether layers are on several devices: the positions to keep are not on the last one."""
    return len(set(getattr(base_model_of(model), "hf_device_map", {}).values())) > 1
