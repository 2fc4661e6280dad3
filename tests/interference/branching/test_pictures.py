"""Features of pictures that are kept give the losses that computing them again gives, to the bit."""

import pytest
import torch
from torch import nn

from interference.branching.held_out import HeldOut
from interference.measurement.sample import EncodedUnit, Sample
from mixlora.checkpoints.loading import load_processor
from mixlora.common.sections import BaseSection
from mixlora.data.collation import Collator
from tests.mixlora.data.test_processors import FORMS
from tests.support.checkpoints import write_llava
from tests.support.models import llava, lora, perturb
from tests.support.seeing import KINDS, asked, model_of

LANGUAGE = r".*(language_model|text_model).*\.(q_proj|v_proj|down_proj)"
PLACES = {"vision": r".*vision_tower.*(q_proj|fc1)", "projector": r".*multi_modal_projector\.linear_1"}


def held_out(model, processor, form, budget=2**30):
    """Six examples with pictures, read in batches of four."""
    collator = Collator(processor)
    units = [EncodedUnit("t", (collator.encode(asked(number, form)),), number) for number in range(6)]
    return HeldOut(Sample(collator, units), model, "default", 4, budget)


def looks(model):
    """How often the model's image encoder has run, from now on."""
    named = [
        module for name, module in model.named_modules() if name.endswith(("vision_tower", "visual", "vision_model"))
    ]
    seen = []
    named[0].register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("name", KINDS)
def test_losses_are_the_same_and_pictures_are_looked_at_once(name):
    processor = KINDS[name].processor()
    model = lora(model_of(name, processor), LANGUAGE)
    kept, made_again = held_out(model, processor, FORMS[name]), held_out(model, processor, FORMS[name], budget=0)
    found = []
    for seed in (1, 2, 3):
        perturb(model, seed)
        seen = looks(model)
        found.append(kept.losses(model))
        count = len(seen)
        assert torch.equal(found[-1], made_again.losses(model))
        assert count == (0 if seed > 1 else len(seen) - count) and len(seen) > count
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("place", PLACES)
def test_features_that_train_are_computed_each_time(tmp_path, place):
    processor = load_processor(BaseSection(base=str(write_llava(tmp_path) / "base")))
    model = lora(llava(), PLACES[place])
    kept = held_out(model, processor, next(iter(FORMS.values())))
    first = kept.losses(model)
    perturb(model, 2)
    assert torch.equal(kept.losses(model), held_out(model, processor, next(iter(FORMS.values())), 0).losses(model))
    assert not torch.equal(kept.losses(model), first)


def test_running_means_train_too(tmp_path):
    processor = load_processor(BaseSection(base=str(write_llava(tmp_path) / "base")))
    model = lora(llava(), LANGUAGE)
    seen = looks(model)
    model.base_model.model.model.vision_tower.norm = nn.BatchNorm1d(24)
    kept = held_out(model, processor, next(iter(FORMS.values())))
    kept.losses(model)
    before = len(seen)
    kept.losses(model)
    assert len(seen) > before


def test_nothing_is_left_on_the_model(tmp_path):
    processor = load_processor(BaseSection(base=str(write_llava(tmp_path) / "base")))
    model = lora(llava(), LANGUAGE)
    encoder, drawn = model.base_model.model.model, torch.random.get_rng_state()
    before = vars(encoder).keys(), [own.requires_grad for own in model.parameters()]
    held_out(model, processor, next(iter(FORMS.values()))).losses(model)
    assert (vars(encoder).keys(), [own.requires_grad for own in model.parameters()]) == before
    assert torch.equal(torch.random.get_rng_state(), drawn) and all(own.grad is None for own in model.parameters())
