"""What a layer knows of the forward it is part of: never of another one, and warnings that come once."""

import pytest
import torch

from mixlora import MixLoraConfig, routed
from mixlora.common.errors import RoutingError
from mixlora.tuner.context import pool
from tests.support.adapted import PROJECTIONS, adapt, batch, layers, llama, selections

INPUTS = batch([9, 7, 12], [3, 2, 4])
UNLABELLED = {key: value for key, value in INPUTS.items() if key != "labels"}


def chosen(model, call):
    with torch.no_grad():
        call()
    return selections(model)


def same(one, other):
    return all(torch.equal(selection, other[name]) for name, selection in one.items())


def said(record):
    return [str(warning.message) for warning in record if "MixLoRA" in str(warning.message)]


def test_a_decoder_called_past_its_model_warns_once_for_all_its_layers(recwarn):
    model = adapt(llama())
    decoder = model.get_base_model().model
    first = chosen(model, lambda: decoder(input_ids=INPUTS["input_ids"]))
    chosen(model, lambda: decoder(input_ids=INPUTS["input_ids"][:2, :5]))
    assert len(said(recwarn)) == 1
    assert same(first, chosen(model, lambda: model(input_ids=INPUTS["input_ids"])))


@pytest.mark.filterwarnings("ignore:.*MixLoRA pools over all")
def test_a_call_past_the_model_knows_nothing_of_the_forward_before():
    model = adapt(llama())
    decoder = model.get_base_model().model
    whole = chosen(model, lambda: model(input_ids=INPUTS["input_ids"]))
    labelled = chosen(model, lambda: model(**INPUTS))
    after = chosen(model, lambda: decoder(input_ids=INPUTS["input_ids"]))
    assert not same(whole, labelled)
    assert same(after, whole)


@pytest.mark.filterwarnings("ignore:.*MixLoRA pools over all")
def test_a_layer_called_after_a_forward_knows_nothing_of_it():
    model = adapt(llama())
    layer = next(iter(layers(model).values()))
    x = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0))
    layer(x)
    expected = layer.selection.scores_A
    model(**INPUTS)
    layer(x)
    assert torch.equal(layer.selection.scores_A, expected)


def test_a_forward_that_failed_leaves_nothing_to_the_next():
    model = adapt(llama())
    expected = chosen(model, lambda: model(**UNLABELLED))
    with pytest.raises(IndexError), routed(model, labels=INPUTS["labels"]):
        model(input_ids=torch.full((3, 12), 64))
    assert same(chosen(model, lambda: model(**UNLABELLED)), expected)


def test_a_generation_that_failed_leaves_nothing_to_the_next():
    model = adapt(llama()).eval()
    expected = chosen(model, lambda: model(**UNLABELLED))

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(**UNLABELLED, max_new_tokens=4, stopping_criteria=[fail], pad_token_id=0)
    other = batch([9, 7, 12], [3, 2, 4], seed=5)["input_ids"]
    assert not same(chosen(model, lambda: model(input_ids=other)), expected)
    assert same(chosen(model, lambda: model(**UNLABELLED)), expected)


def test_labels_nest():
    model = adapt(llama())
    inner, outer = INPUTS["labels"], torch.full_like(INPUTS["labels"], -100)
    outer[:, 2:] = 5
    expected = {}
    for name, labels in {"inner": inner, "outer": outer}.items():
        expected[name] = chosen(model, lambda labels=labels: model(**UNLABELLED, labels=labels))
    with routed(model, labels=outer):
        with routed(model, labels=inner):
            assert same(chosen(model, lambda: model(**UNLABELLED)), expected["inner"])
        assert same(chosen(model, lambda: model(**UNLABELLED)), expected["outer"])
        assert same(chosen(model, lambda: model(**INPUTS)), expected["inner"])  # its own come first
    assert not same(expected["inner"], expected["outer"])


def test_an_adapter_added_by_transformers_itself_routes_as_through_peft():
    expected = adapt(llama())
    base = llama()
    base.add_adapter(MixLoraConfig.paper(r=2, num_factors=6, lora_alpha=8.0, target_modules=PROJECTIONS))
    with torch.no_grad():
        for name, parameter in expected.get_base_model().named_parameters():
            base.get_parameter(name).copy_(parameter)
        assert torch.equal(base(**INPUTS).logits, expected(**INPUTS).logits)


def test_the_kind_of_task_changes_nothing():
    plain, causal = adapt(llama()).eval(), adapt(llama(), task_type="CAUSAL_LM").eval()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        assert torch.equal(causal(**INPUTS).logits, plain(**INPUTS).logits)
    assert torch.equal(causal.generate(**UNLABELLED, **options), plain.generate(**UNLABELLED, **options))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (INPUTS["labels"][:2], r"labels of shape \(2, 12\), but the forward has tokens of shape \(3, 12\); give those"),
        (INPUTS["labels"].tolist(), r"labels is a list, but must be a tensor \[batch, seq\]"),
    ],
)
def test_labels_of_another_batch_are_refused(labels, words):
    model = adapt(llama())
    with pytest.raises(RoutingError, match=words), routed(model, labels=labels):
        model(**UNLABELLED)


def test_adapters_chosen_row_by_row_are_refused():
    with pytest.raises(RoutingError, match="one set of active adapters for a whole batch; leave adapter_names out"):
        adapt(llama())(**INPUTS, adapter_names=["default"] * 3)


def test_a_mean_of_float16_does_not_overflow_in_its_sum():
    x = torch.full((1, 100, 4), 1000.0, dtype=torch.float16)
    pooled = pool(x, torch.arange(100)[None] < 90)
    torch.testing.assert_close(pooled, torch.full((1, 4), 1000.0), rtol=2e-3, atol=0)
