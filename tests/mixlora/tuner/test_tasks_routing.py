"""Routing by the definition of a task: encoding, giving, saving, and the words where something is missing."""

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from mixlora import routed
from mixlora.common.errors import RoutingError
from tests.support.adapted import adapt, batch, layers, llama, llava, padded_left, perturb, selections

DEFINITIONS = {"colour": "name the colour of what is shown", "count": "count the things shown"}
WORDS = [
    "<unk>",
    "name",
    "the",
    "colour",
    "of",
    "what",
    "is",
    "shown",
    "count",
    "things",
    "in",
    "read",
    "every",
    "word",
]
INPUTS = batch([9, 7, 12], [3, 2, 4])
TASKS = ["count", "colour", "count"]


def words():
    known = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def made(base=llama, encoded=True, **options):
    model = adapt(base(), routing="task", task_definitions=DEFINITIONS, **options).eval()
    if encoded:
        model.base_model.encode_tasks(words())
    return model


def logits(model, tasks=TASKS, **inputs):
    with torch.no_grad():
        return model(**(INPUTS | inputs), tasks=tasks).logits


def mean_hidden(encoder, definition):
    """Eq. 12, token by token."""
    ids = torch.tensor([[WORDS.index(word) for word in definition.split()]])
    with torch.no_grad():
        hidden = encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    return sum(hidden) / len(hidden)


def test_a_definition_is_the_mean_last_hidden_state_of_the_base():
    model = made()
    bank = model.base_model.mixlora_tasks["default"]
    assert bank.names == ["colour", "count"] and bank.embeddings.shape == (2, 32)
    for name, embedding in zip(bank.names, bank.embeddings, strict=True):
        assert_close(embedding, mean_hidden(llama(), DEFINITIONS[name]), rtol=1e-5, atol=1e-6)


def test_routers_score_the_definition_and_not_the_instance():
    model = made()
    logits(model)
    embeddings = model.base_model.mixlora_tasks["default"].embeddings[[1, 0, 1]]
    for layer in layers(model).values():
        weight = layer.mixlora_router["default"].independent_A.weight
        assert weight.shape == (6, 32)
        assert_close(layer.selection.scores_A, (embeddings @ weight.T).softmax(dim=-1), rtol=1e-4, atol=1e-6)
        assert torch.equal(layer.selection.A[0], layer.selection.A[2])
    assert any(not torch.equal(s[:, 0], s[:, 1]) for s in selections(model).values())


def test_another_encoder_may_have_another_width():
    encoder = llama(hidden_size=16, intermediate_size=24).train()
    model = made(encoded=False, task_width=16)
    model.base_model.encode_tasks(words(), encoder=encoder)
    bank = model.base_model.mixlora_tasks["default"]
    assert encoder.training and bank.embeddings.shape == (2, 16)
    assert_close(bank.embeddings[1], mean_hidden(encoder, DEFINITIONS["count"]), rtol=1e-5, atol=1e-6)
    router = layers(model)["base_model.model.model.layers.0.mlp.down_proj"].mixlora_router["default"]
    assert router.independent_B.weight.shape == (6, 16) and router.conditional.weight.shape == (2, 48, 6)
    with pytest.raises(RoutingError) as refused:
        model.base_model.encode_tasks(words())
    assert str(refused.value) == (
        "the encoder's hidden states have width 32, but the adapter's routers expect 16; "
        "create the adapter with task_width=32"
    )


@pytest.mark.parametrize("width", [None, 16])
def test_a_loaded_adapter_needs_no_encoding(tmp_path, width):
    model = made(encoded=False, task_width=width)
    model.base_model.encode_tasks(words(), encoder=llama(hidden_size=width or 32))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, adapter_name="again").eval()
    assert torch.equal(logits(loaded), expected)
    assert (expected - llama()(**INPUTS).logits).abs().max() > 0.1


def test_definitions_may_be_added_and_are_saved(tmp_path):
    model = made()
    before = logits(model)
    model.base_model.encode_tasks(words(), {"read": "read every word"})
    assert torch.equal(logits(model), before)
    expected = logits(model, ["read", "colour", "count"])
    assert not torch.equal(expected[0], before[0]) and torch.equal(expected[1], before[1])
    assert list(model.peft_config["default"].task_definitions) == ["colour", "count", "read"]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(logits(loaded, ["read", "colour", "count"]), expected)


def test_better_words_replace_a_definition():
    model = made()
    before = logits(model)
    model.base_model.encode_tasks(words(), {"count": "count every word"})
    bank = model.base_model.mixlora_tasks["default"]
    assert bank.names == ["colour", "count"]
    assert_close(bank.embeddings[1], mean_hidden(llama(), "count every word"), rtol=1e-5, atol=1e-6)
    after = logits(model)
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])


def test_tasks_given_in_any_way_route_the_same():
    model = made()
    expected = logits(model)
    with routed(model, tasks=TASKS), torch.no_grad():
        assert torch.equal(model(**INPUTS).logits, expected)
    assert torch.equal(logits(model, "count")[[0, 2]], expected[[0, 2]])
    prompts = {k: v for k, v in padded_left(INPUTS).items() if k != "labels"}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    given = model.generate(**prompts, tasks=TASKS, **options)
    with routed(model, tasks=TASKS):
        assert torch.equal(model.generate(**prompts, **options), given)
        assert torch.equal(model.generate(**prompts, **options, use_cache=False), given)
    other = model.generate(**prompts, tasks="colour", **options)
    assert torch.equal(other[1], given[1]) and not torch.equal(other, given)
    beams = model.generate(**prompts, tasks=TASKS, **options, num_beams=2, num_return_sequences=2)
    assert beams.shape == (6, 17)
    with routed(model, tasks=TASKS):
        assert torch.equal(model.generate(**prompts, **options, num_beams=2, num_return_sequences=2), beams)


def test_tasks_reach_a_model_for_causal_language_modelling():
    plain, causal = made(), made(task_type="CAUSAL_LM")
    assert torch.equal(logits(causal), logits(plain))
    prompts = {k: v for k, v in padded_left(INPUTS).items() if k != "labels"}
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found, expected = (m.generate(**prompts, tasks=TASKS, **options) for m in (causal, plain))
    assert torch.equal(found, expected)


def test_an_adapted_image_encoder_routes_by_the_task_too():
    inputs = batch([9, 7, 12], [3, 2, 4], image=True)
    model = made(llava, encoded=False, target_modules=["q_proj", "v_proj"])
    model.base_model.encode_tasks(words())
    assert torch.isfinite(logits(model, **inputs)).all()
    chosen = {n: s for n, s in selections(model).items() if "vision_tower" in n}
    assert len(chosen) == 4 and all(torch.equal(s[:, 0], s[:, 2]) for s in chosen.values())


def test_routers_learn_by_task_and_embeddings_do_not():
    model = made().train()
    model(**INPUTS, tasks=TASKS).loss.backward()
    routers = [p for n, p in model.named_parameters() if "independent_A" in n]
    assert len(routers) == 21 and all(p.grad.abs().max() > 0 for p in routers)
    assert not model.base_model.mixlora_tasks["default"].embeddings.requires_grad


def test_each_adapter_has_its_own_tasks():
    model = made()
    expected = logits(model)
    config = adapt(llama(), routing="task", task_definitions={"read": "read every word"}).peft_config["default"]
    model.add_adapter("second", config)
    perturb(model, 3, "second")
    model.base_model.encode_tasks(words(), adapter="second")
    assert torch.equal(logits(model), expected)
    model.set_adapter("second")
    logits(model, "read")
    with pytest.raises(RoutingError, match="task 'count' is unknown to the adapter, which knows: read"):
        logits(model)
    model.delete_adapter("second")
    assert list(model.base_model.mixlora_tasks) == ["default"]


@pytest.mark.parametrize(
    ("tasks", "words_of_it"),
    [
        (None, r"routing='task' needs the task of every instance: model\(\.\.\., tasks=\[\.\.\.\]\)"),
        (["count", "sing", "count"], r"task 'sing' is unknown to the adapter, which knows: colour, count; give its"),
        (["count", "count"], "tasks names 2 tasks, but the batch has 3 instances; name one for each"),
        ([], "tasks names 0 tasks, but the batch has 3 instances; name one for each"),
    ],
)
def test_what_is_wrong_with_tasks_is_said(tasks, words_of_it):
    with pytest.raises(RoutingError, match=words_of_it):
        logits(made(), tasks)


def test_definitions_that_were_not_encoded_are_missed():
    with pytest.raises(RoutingError, match=r"the task definitions are not encoded yet; call model\.base_model\.encode"):
        logits(made(encoded=False))


def test_an_adapter_that_routes_otherwise_encodes_nothing():
    with pytest.raises(RoutingError) as refused:
        adapt(llama()).base_model.encode_tasks(words(), DEFINITIONS)
    assert str(refused.value) == ("adapter 'default' has routing=instance; only routing='task' encodes tasks")
