"""Losses of units: several examples at once where that changes nothing, else one by one."""

import numpy as np
import pytest
import torch

from interference.gradients.losses import example_losses
from interference.verification.derivation import together
from interference.verification.reading import Losses
from tests.support.models import batch, llama


@pytest.fixture
def model():
    return llama().eval()


@pytest.fixture
def units():
    """Three units: of one short example, of two in a batch, of two batches."""
    return [[batch([5], [2])], [batch([9, 7], [3, 1], 3)], [batch([6], [4], 4), batch([8], [1], 5)]]


def counted(model):
    """How often the model is called."""
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
def by_hand(model, units, token_mean):
    found = []
    for batches in units:
        pairs = [example_losses(model, each) for each in batches]
        losses, tokens = (torch.cat(own).double() for own in zip(*pairs, strict=True))
        weights = tokens if token_mean else torch.ones_like(tokens)
        found.append(float((losses * weights).sum() / weights.sum()))
    return found


@pytest.mark.parametrize("token_mean", [True, False])
def test_they_are_those_of_every_example(model, units, token_mean):
    read = Losses(model, units, together(units), token_mean, None)
    for _ in range(2):
        np.testing.assert_allclose(read(), by_hand(model, units, token_mean), rtol=1e-6)


def test_once_tried_examples_are_read_together(model, units):
    read, calls = Losses(model, units, together(units), False, None), counted(model)
    read()
    assert len(calls) == 4 + 1
    read()
    assert len(calls) == 4 + 2


def test_where_padding_changes_a_loss_examples_are_read_alone(model, units):
    """As in a model that reads its padding: here the rows together are others."""
    others = [[batch([5], [2], 9)], *units[1:]]
    read, calls = Losses(model, units, together(others), False, None), counted(model)
    for _ in range(2):
        np.testing.assert_allclose(read(), by_hand(model, units, False), rtol=1e-6)
    assert len(calls) == 4 + 1 + 4 + 4 + 4  # by_hand calls it, too
