"""Gradients of models that see: a padded batch of ours against autograd of each example as its processor gives it."""

import pytest
import torch

from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from mixlora.common.labels import IGNORED
from mixlora.data.collation import Collator
from tests.mixlora.data.test_processors import FORMS, alone, marked
from tests.support.models import lora
from tests.support.seeing import KINDS, asked, model_of


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_a_padded_batch_are_those_of_each_example_alone(name):
    processor = KINDS[name].processor()
    base = model_of(name, processor)
    model = lora(base, r".*(language_model|text_model).*\.(q_proj|v_proj|down_proj)")
    examples = [asked(number, FORMS[name]) for number in range(3)]
    batch = Collator(processor)(examples)
    assert not batch["attention_mask"].all()
    targets = find_targets(model, "default")
    with Probe(model, targets) as probe:
        found = probe.gradients(batch)
    for row, example in enumerate(examples):
        single = {key: torch.as_tensor(value) for key, value in alone(processor, example).items()}
        labels = single.pop("labels") if "labels" in single else torch.tensor([marked(single)])
        single.pop("assistant_masks", None)
        loss = model(**single, labels=labels).loss
        negative = {**single, "pixel_values": -single["pixel_values"]}
        assert abs(float(model(**negative, labels=labels).loss - loss)) > 1e-3
        torch.testing.assert_close(found.losses[row], loss.detach(), rtol=1e-5, atol=1e-6)
        assert int(found.tokens[row]) == int((labels != IGNORED).sum())
        for target in targets:
            for tap in target.taps.values():
                tap.weight.requires_grad_(True)
                (own,) = torch.autograd.grad(loss, tap.weight, retain_graph=True)
                scale = own.abs().max()
                assert scale > 0
                torch.testing.assert_close(
                    found.gradients[tap.block.name][row] / scale, own / scale, rtol=0, atol=1e-5, msg=tap.block.name
                )
