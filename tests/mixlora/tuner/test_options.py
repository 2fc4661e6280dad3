"""What a configuration may say, what it says by default, and the words of a refusal."""

import json
import re

import pytest
from peft import PeftConfig, PeftType, get_peft_model

from mixlora import MixLoraConfig
from mixlora.common.errors import AdapterError, ConfigError
from mixlora.tuner.model import register
from tests.support.adapted import llama
from tests.support.models import gpt2

UNKNOWN = {
    "routing": "routing is 'soft', but must be one of: instance, task, random",
    "router_gradient": "router_gradient is 'soft', but must be one of: straight-through, none",
    "pooling": "pooling is 'soft', but must be one of: prompt, attended, all",
    "decode_routing": "decode_routing is 'soft', but must be one of: prompt, token",
    "cfs_form": "cfs_form is 'soft', but must be one of: exact, official",
    "factor_init": "factor_init is 'soft', but must be one of: gaussian, kaiming",
}


def chosen(config):
    return [str(getattr(config, name)) for name in UNKNOWN]


def test_presets_differ_in_what_the_released_code_does_otherwise():
    paper, official = MixLoraConfig.paper(), MixLoraConfig.official()
    assert chosen(paper) == ["instance", "straight-through", "prompt", "prompt", "exact", "gaussian"]
    assert chosen(official) == ["instance", "none", "all", "token", "official", "kaiming"]
    assert paper.conditional and official.conditional
    assert chosen(MixLoraConfig()) == chosen(paper)


def test_an_option_overrides_a_preset():
    assert MixLoraConfig.official(pooling="attended", conditional=False).pooling == "attended"
    assert MixLoraConfig.paper(conditional=False).conditional is False


@pytest.mark.parametrize(
    ("r", "factors", "alpha", "scaling"),
    [(2, 16, None, 16), (4, 32, None, 16), (8, 16, None, 4), (4, 16, 8, 2), (3, 3, 1.5, 0.5)],
)
def test_alpha_is_twice_the_factors_unless_given(r, factors, alpha, scaling):
    config = MixLoraConfig(r=r, num_factors=factors, lora_alpha=alpha)
    assert config.scaling == scaling
    assert config.alpha == (2 * factors if alpha is None else alpha)


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_value_is_refused_with_the_allowed_ones(name):
    with pytest.raises(ConfigError) as refused:
        MixLoraConfig(**{name: "soft"})
    assert str(refused.value) == UNKNOWN[name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 17}, "r is 17, but there are only num_factors=16 factors to choose from"),
        ({"r": 0}, "r is 0, but must be a whole number from 1"),
        ({"r": -2}, "r is -2, but must be a whole number from 1"),
        ({"r": 2.0}, "r is 2.0, but must be a whole number from 1"),
        ({"r": True}, "r is True, but must be a whole number from 1"),
        ({"num_factors": 0}, "num_factors is 0, but must be a whole number from 1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0, but must be at least 0 and below 1"),
        ({"lora_dropout": -0.1}, "lora_dropout is -0.1, but must be at least 0 and below 1"),
        ({"routing": "task"}, "routing='task' needs task_definitions={task: definition}, and there are none"),
        (
            {"routing": "task", "task_definitions": {}},
            "routing='task' needs task_definitions={task: definition}, and there are none",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_sentence(options, words):
    with pytest.raises(ConfigError) as refused:
        MixLoraConfig(**options)
    assert str(refused.value) == words


def test_the_configuration_survives_the_disk(tmp_path):
    config = MixLoraConfig.official(r=3, num_factors=5, lora_alpha=7.0, target_modules=["q_proj"], lora_dropout=0.25)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MixLoraConfig)
    assert loaded.to_dict() | {"inference_mode": False} == config.to_dict()
    assert loaded.target_modules == {"q_proj"}
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["peft_type"], written["format_version"], written["pooling"]) == ("MIXLORA", 1, "all")


def test_an_adapter_of_a_newer_format_is_refused(tmp_path):
    MixLoraConfig().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ConfigError) as refused:
        PeftConfig.from_pretrained(tmp_path)
    assert str(refused.value) == ("the adapter has format 2, but this version reads up to 1; update task-interference")


def test_registering_again_is_harmless():
    register()
    assert PeftType("MIXLORA") is PeftType.MIXLORA
    assert list(PeftType).count("MIXLORA") == 1


@pytest.mark.parametrize(
    ("model", "target", "kind"),
    [(gpt2, "c_attn", "a Conv1D"), (llama, "embed_tokens", "an Embedding"), (llama, "norm", "a LlamaRMSNorm")],
)
def test_a_target_that_is_no_linear_is_refused_by_its_name_and_kind(model, target, kind):
    with pytest.raises(AdapterError) as refused:
        get_peft_model(model(), MixLoraConfig(target_modules=[target]))
    assert f"{target} is {kind}, but only Linear modules can be adapted" in str(refused.value)
    assert "leave it out of target_modules" in str(refused.value)


def test_a_refused_target_leaves_nothing_on_the_base():
    base = gpt2()
    with pytest.raises(AdapterError):
        get_peft_model(base, MixLoraConfig(target_modules=["c_attn"]))
    assert not base._forward_pre_hooks and not base._forward_hooks and "generate" not in vars(base)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conditional": "False"}, "conditional is 'False', but must be True or False"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, but must be a number above 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0, but must be a number above 0"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', but must be a number above 0"),
        ({"lora_dropout": "x"}, "lora_dropout is 'x', but must be at least 0 and below 1"),
        ({"task_width": -1}, "task_width is -1, but must be a whole number from 1"),
        ({"task_definitions": ["a"]}, "task_definitions is a list, but must be {task: definition}"),
        ({"task_definitions": {"a": " "}}, "task_definitions: 'a' is defined as ' ', but both must be text"),
        ({"task_definitions": {1: "x"}}, "task_definitions: 1 is defined as 'x', but both must be text"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(options, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        MixLoraConfig(**options)
