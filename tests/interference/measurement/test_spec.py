"""A Spec is the same whoever asks: a notebook's arguments, or the keys of a configuration."""

import inspect
from dataclasses import fields

import pytest

from interference import compute
from interference.blocks import Granularity
from interference.config import ProbeConfig
from interference.errors import ConfigError, ScopeError
from interference.measurement.spec import Spec
from tests.support.models import llama, lora

ASKED = {
    "layers": [0, 2], "modules": ["mlp"], "components": ["language"], "routers": True, "token_mean": True,
    "granularity": "group", "weight_space": True, "sketch": 16, "seed": 3, "memory_budget": 1000,
}  # fmt: skip


def test_arguments_and_keys_make_the_same_spec():
    assert Spec.of(ProbeConfig(**ASKED)) == Spec.checked(unit="example", **ASKED)
    assert Spec.checked(unit="example", **ASKED).granularity is Spec.of(ProbeConfig(**ASKED)).granularity


def test_the_defaults_are_those_of_compute():
    signature = inspect.signature(compute).parameters
    assert {field.name: field.default for field in fields(Spec)} == {
        field.name: signature[field.name].default for field in fields(Spec)
    }
    made = Spec.of(ProbeConfig())
    assert made == Spec(components=["language"]) and made.granularity is Granularity.MODULE


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"unit": "token"}, ScopeError, "unit 'token' is not one of example, batch"),
        ({"granularity": "row"}, ConfigError, "granularity is 'row', but must be one of 'module', 'group', 'layer'"),
        ({"sketch": 15}, ConfigError, "sketch is 15, but must be at least 16 (4096 is usual)"),
        ({"seed": -1}, ConfigError, "seed is -1, but must be a whole number from 0 to 4294967295"),
    ],
)
def test_what_cannot_be_used_is_named(wrong, error, words):
    with pytest.raises(error) as told:
        Spec.checked(**{"unit": "example", **ASKED, **wrong})
    assert str(told.value) == words


def test_targets_are_those_of_the_scope():
    found = Spec(layers=[1], modules=["q_proj", "mlp"]).targets(lora(llama()))
    assert [target.place.module for target in found] == ["q_proj", "gate_proj", "up_proj", "down_proj"]
    assert {target.place.layer for target in found} == {1} and {target.adapter for target in found} == {"default"}


def test_a_run_records_sketches_only_if_it_has_them():
    assert Spec().meta() == {"unit": "example", "token_mean": False, "granularity": "module"}
    assert Spec(sketch=200).meta() == {**Spec().meta(), "sketch": 200, "sketch_error": 0.1}
