"""A caller's batches that no model can take: one sentence that names the place, before the model sees them."""

import pytest
import torch
from transformers import LlamaModel

import interference
from interference.errors import MeasurementError, ScopeError
from tests.support.models import batch, gpt2, llama, lora


def computed(model, change):
    batches = {task: [batch([9, 7], [3, 2], seed=seed)] for task, seed in (("a", 2), ("b", 3))}
    batches["b"][0] = change(batches["b"][0])
    return interference.compute(model, batches)


def put(key, made):
    """A change of one value of a batch."""
    return lambda given: {**given, key: made(given[key])}


CASES = {
    "label out of range": (
        put("labels", lambda x: torch.where(x > 0, 64, x)),
        "a label is 64, but must be at least 0 and below the vocabulary's 64 or -100",
    ),
    "negative label": (
        put("labels", lambda x: torch.where(x > 0, -1, x)),
        "a label is -1, but must be at least 0 and below the vocabulary's 64 or -100",
    ),
    "id out of range": (
        put("input_ids", lambda x: torch.full_like(x, 70)),
        "a token of input_ids is 70, but must be at least 0 and below the vocabulary's 64",
    ),
    "negative id": (
        put("input_ids", lambda x: torch.full_like(x, -100)),
        "a token of input_ids is -100, but must be at least 0 and below the vocabulary's 64",
    ),
    "shape of labels": (
        put("labels", lambda x: x[:, :-1]),
        "input_ids has shape (2, 9), but labels has (2, 8); both must be [batch, seq]",
    ),
    "rows of labels": (
        put("labels", lambda x: x[:1]),
        "input_ids has shape (2, 9), but labels has (1, 9); both must be [batch, seq]",
    ),
    "shape of the mask": (
        put("attention_mask", lambda x: x[:, :-1]),
        "attention_mask has shape (2, 8), but labels has (2, 9); both must be [batch, seq]",
    ),
    "float ids": (
        put("input_ids", lambda x: x.float()),
        "input_ids is of float32, but must be of whole numbers; use .long()",
    ),
    "float labels": (
        put("labels", lambda x: x.double()),
        "labels is of float64, but must be of whole numbers; use .long()",
    ),
    "one-dimensional ids": (
        put("input_ids", lambda x: x[0]),
        "input_ids has shape (9,), but must be [batch, seq] with one row per example",
    ),
    "one-dimensional": (
        lambda given: {key: value[0] for key, value in given.items()},
        "labels has shape (9,), but must be [batch, seq] with one row per example",
    ),
    "no rows": (
        lambda given: {key: value[:0] for key, value in given.items()},
        "labels has shape (0, 9), but must be [batch, seq] with one row per example",
    ),
    "lists": (
        put("labels", lambda x: x.tolist()),
        "labels is a list, but must be a tensor [batch, seq] of whole numbers",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_batch(case):
    change, words = CASES[case]
    with pytest.raises(ScopeError) as error:
        computed(lora(llama(), ["q_proj"]), change)
    assert str(error.value) == f"task 'b', batch 0: {words}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda given: given["labels"], "task 'b', batch 0 is a Tensor, but must be a dict of tensors, as a collator "),
        (
            lambda given: {key: given[key] for key in ("labels", "attention_mask")},
            "task 'b', batch 0 has no input_ids; collate it with input_ids [batch, seq]",
        ),
    ],
)
def test_what_is_no_batch(change, words):
    with pytest.raises(ScopeError) as error:
        computed(lora(llama(), ["q_proj"]), change)
    assert str(error.value).startswith(words)


def test_more_tokens_than_a_model_has_positions_for():
    model = lora(gpt2(), ["c_attn"], fan_in_fan_out=True)
    with pytest.raises(ScopeError) as error:
        computed(model, lambda _: batch([70, 12], [3, 2]))
    assert (
        str(error.value) == "task 'b', batch 0 has rows of 70 tokens, but the model has positions for 64; truncate them"
    )
    computed(lora(llama(max_position_embeddings=8), ["q_proj"]), dict)  # rotary ones are computed for any number


def test_a_model_without_a_head():
    bare = lora(LlamaModel(llama().config), ["q_proj"])
    with pytest.raises(MeasurementError) as error:
        computed(bare, dict)
    assert str(error.value) == (
        "LlamaModel gives no logits, because it has no head that predicts tokens; load the base with "
        "AutoModelForCausalLM"
    )
