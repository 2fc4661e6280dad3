"""Routers: scores of the factors, their ranked selection, and the gradient by which routers learn.

Notation of the paper: IFS (independent factor selection) scores the factors of A and B by the pooled hidden state; CFS
(conditional factor selection) scores B's factors by the selected factors of A.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixlora.tuner.config import CfsForm, MixLoraConfig, RouterGradient, Routing


@dataclass(frozen=True)
class Selection:
    """The factors that an adapted Linear selected for every instance.

    Attributes:
        A: Indices of the selected A factors [instances, r], by descending score.
        B: Indices of the selected B factors [instances, r]; the k-th pairs with the k-th of A.
        scores_A: [instances, E]; None if the factors were drawn.
        scores_B: [instances, E].
    """

    A: Tensor
    B: Tensor
    scores_A: Tensor | None = None
    scores_B: Tensor | None = None

    def detached(self) -> "Selection":
        """The same selection without a graph.

        Returns:
            A new selection of the same indices, its scores detached.
        """
        return Selection(self.A, self.B, *(None if s is None else s.detach() for s in (self.scores_A, self.scores_B)))


def top(scores: Tensor, r: int) -> Tensor:
    """Indices [instances, r] of the r highest of scores [instances, E], ranked (Eqs. 5, 10)."""
    return scores.topk(r, dim=-1).indices


def conditional_logits(selected: Tensor, weight: Tensor, form: CfsForm) -> Tensor:
    """The logits of CFS for each selected A factor (Eq. 7 before its softmax): a_{A(k)} W[k], [instances, r, E].

    Args:
        selected: The selected A factors [instances, r, d_in], ranked.
        weight: W_AB, [r, d_in, E]: one matrix for every rank.
        form: "exact", or "official": the released einsum, which sums factors and weight over d_in separately.

    Returns:
        [instances, r, E].
    """
    if form == CfsForm.EXACT:
        return torch.einsum("nrd,rde->nre", selected, weight)
    return selected.sum(dim=-1, keepdim=True) * weight.sum(dim=1)


def conditional_scores(logits: Tensor) -> Tensor:
    """CFS scores of the B factors [instances, E] (Eqs. 7 to 9): softmax over E of sum_k softmax(logits[k])."""
    return _softmax(_softmax(logits).sum(dim=1))


def straight_through(scores: Tensor, selection: Tensor) -> Tensor:
    """Ones [instances, r] whose derivative is that of the selected scores."""
    chosen = scores.gather(-1, selection)
    return 1 + (chosen - chosen.detach())


class Conditional(nn.Module):
    """W_AB of conditional factor selection, [r, d_in, E]."""

    def __init__(self, r: int, d_in: int, num_factors: int, form: CfsForm) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.empty(r, d_in, num_factors))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise uniformly within 1 / sqrt(r * d_in), as the released Linear with r * d_in inputs."""
        r, d_in, _ = self.weight.shape
        bound = 1 / math.sqrt(r * d_in)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, selected: Tensor) -> Tensor:
        """Logits [instances, r, E] of the selected A factors [instances, r, d_in]."""
        return conditional_logits(selected, self.weight, self.form)

    def example_gradients(self, selected: Tensor, logit_gradients: Tensor) -> Tensor:
        """Every instance's gradient of the weight [instances, r, d_in, E], from its logits' [instances, r, E]."""
        if self.form is CfsForm.EXACT:
            return torch.einsum("nrd,nre->nrde", selected, logit_gradients)
        each = selected.sum(dim=-1, keepdim=True) * logit_gradients
        return each.unsqueeze(2).expand(-1, -1, selected.shape[2], -1)


class ScoresA(NamedTuple):
    """The first half of a routing: A's scores, and the independent part of B's."""

    A: Tensor
    independent_B: Tensor


class Router(nn.Module):
    """The routers of one adapted Linear.

    Args:
        config: The adapter's configuration.
        d_in: Input width of the Linear.
        width: Width of the independent routers' input.
    """

    def __init__(self, config: MixLoraConfig, d_in: int, width: int) -> None:
        super().__init__()
        self.independent_A = nn.Linear(width, config.num_factors, bias=False)
        self.independent_B = nn.Linear(width, config.num_factors, bias=False)
        self.conditional: Conditional | None = None
        if config.conditional:
            self.conditional = Conditional(config.r, d_in, config.num_factors, CfsForm(config.cfs_form))

    def independent(self, hidden: Tensor) -> ScoresA:
        """IFS (Eqs. 4, 6): softmax(W_A h) and softmax(W_B h), each [instances, E], of hidden [instances, width]."""
        hidden = hidden.to(self.independent_A.weight.dtype)
        a, b = (_softmax(linear(hidden)) for linear in (self.independent_A, self.independent_B))
        return ScoresA(a, b)

    def dependent(self, independent: Tensor, selected: Tensor) -> Tensor:
        """Scores of the B factors [instances, E]: IFS plus CFS (Eq. 10)."""
        if self.conditional is None:
            return independent
        return independent + conditional_scores(self.conditional(selected.to(self.conditional.weight.dtype)))


def has_router(config: MixLoraConfig) -> bool:
    """Whether scores, learnt or fixed, select the factors; otherwise they are drawn."""
    return config.routing is not Routing.RANDOM


def learns(config: MixLoraConfig) -> bool:
    """Whether routers get a gradient."""
    return has_router(config) and config.router_gradient is RouterGradient.STRAIGHT_THROUGH


def drawn(instances: int, config: MixLoraConfig, device: torch.device) -> Selection:
    """A random selection, from torch's default CPU generator, so that a seed gives the same one on every device."""
    a, b = (top(torch.rand(instances, config.num_factors), config.r).to(device) for _ in range(2))
    return Selection(a, b)


def _softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
