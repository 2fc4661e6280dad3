"""Generation: with a cache as without, and with the selection that the option says."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

from mixlora.common.errors import RoutingError
from tests.support.adapted import adapt, batch, layers, llama, llava, padded_left, row_of, selections

NEW = 6
WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "answers": {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7},
    "beams and answers": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 10},
}


def prompts(image=False):
    inputs = padded_left(batch([9, 7, 12], [1, 1, 1], image=image))
    del inputs["labels"]
    return inputs


def generate(model, inputs, **way):
    torch.manual_seed(7)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": 2}
    return model.generate(**inputs, **{**options, **way})


def followed(model, inputs, **way):
    """The tokens, and the selection of every adapted Linear at every step of a generation."""
    steps = []
    hook = model.get_base_model().register_forward_hook(lambda *_: steps.append(selections(model)))
    try:
        return generate(model, inputs, **way), steps
    finally:
        hook.remove()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("base", [llama, llava])
def test_a_cache_changes_no_token(base, way):
    model, inputs = adapt(base()).eval(), prompts(image=base is llava)
    cached = generate(model, inputs, **way)
    assert cached.shape == (3 * way.get("num_return_sequences", 1), 12 + NEW)
    assert torch.equal(cached, generate(model, inputs, **way, use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(cached, generate(model, inputs, **way))


def test_an_instance_generates_what_it_does_alone():
    model, inputs = adapt(llama()).eval(), prompts()
    together = generate(model, inputs, do_sample=False)
    for row in range(3):
        alone = generate(model, row_of(inputs, row), do_sample=False)
        assert torch.equal(together[row, 12:], alone[0, -NEW:])


@pytest.mark.parametrize("way", [WAYS["greedy"], WAYS["beams"], {"do_sample": False, "use_cache": False}])
def test_new_tokens_use_the_selection_of_the_prompt(way):
    model, inputs = adapt(llama()).eval(), prompts()
    model(**inputs)
    expected = selections(model)
    _, steps = followed(model, inputs, **way)
    beams = way.get("num_beams", 1)
    assert len(steps) == NEW
    for step in steps:
        for name, selection in step.items():
            assert torch.equal(selection, expected[name].repeat_interleave(beams, dim=1)), name


@pytest.mark.parametrize("options", [{"preset": "official"}, {"decode_routing": "token"}], ids=["official", "paper"])
def test_tokens_routed_anew_look_at_the_newest_token_alone(options):
    model, inputs = adapt(llama(), **options).eval(), prompts()
    name, layer = next(iter(layers(model).items()))
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    _, steps = followed(model, inputs, do_sample=False)
    hook.remove()
    assert [tuple(x.shape) for x in seen] == [(3, 12, 32)] + [(3, 1, 32)] * (NEW - 1)
    weight = layer.mixlora_router["default"].independent_A.weight
    for x, step in zip(seen[1:], steps[1:], strict=True):
        expected = (x[:, 0] @ weight.T).softmax(dim=-1).topk(2).indices
        assert torch.equal(step[name][0], expected)
    for other in steps[0]:
        assert len({str(step[other].tolist()) for step in steps}) > 1, other


@torch.no_grad()
def test_a_loop_by_hand_holds_the_selection_of_the_prompt():
    model, inputs = adapt(llama()).eval(), prompts()
    ids, mask = inputs["input_ids"][2:], inputs["attention_mask"][2:]
    answer = torch.tensor([[17, 30, 5, 41]])
    whole = torch.cat([ids, answer], dim=1)
    labels = torch.cat([torch.full_like(ids, -100), answer], dim=1)
    expected = model(input_ids=whole, labels=labels).logits[:, -4:]
    for given in ({"attention_mask": mask}, {}):
        output = model(input_ids=ids, use_cache=True, **given)
        chosen, cache = selections(model), output.past_key_values
        found = []
        for token in answer.unbind(1):
            found.append(model(input_ids=token[:, None], past_key_values=cache).logits)
            assert all(torch.equal(s, chosen[n]) for n, s in selections(model).items())
        assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_cache_of_the_caller_holds_the_selection_where_tuples_come_back():
    model, inputs = adapt(llama()).eval(), row_of(prompts(), 2)
    cache = DynamicCache()
    model(**inputs, past_key_values=cache, return_dict=False)
    chosen = selections(model)
    model(input_ids=torch.tensor([[9]]), past_key_values=cache, return_dict=False)
    assert all(torch.equal(s, chosen[n]) for n, s in selections(model).items())


@torch.no_grad()
def test_a_cache_repeated_for_several_answers_repeats_its_selection():
    model, inputs = adapt(llama()).eval(), prompts()
    cache = model(**inputs, use_cache=True).past_key_values
    chosen = selections(model)
    cache.batch_repeat_interleave(2)
    mask = torch.cat([inputs["attention_mask"].repeat_interleave(2, dim=0), torch.ones(6, 1, dtype=torch.long)], dim=1)
    model(input_ids=torch.full((6, 1), 9), attention_mask=mask, past_key_values=cache)
    assert all(torch.equal(s, chosen[n].repeat_interleave(2, dim=1)) for n, s in selections(model).items())


@torch.no_grad()
def test_two_conversations_keep_their_own_selection_in_turn():
    model, inputs = adapt(llama()).eval(), prompts()
    caches, chosen = [], []
    for row in (0, 2):
        caches.append(model(**row_of(inputs, row), use_cache=True).past_key_values)
        chosen.append(selections(model))
    assert any(not torch.equal(s, chosen[1][n]) for n, s in chosen[0].items())
    for _ in range(2):
        for cache, expected in zip(caches, chosen, strict=True):
            model(input_ids=torch.tensor([[9]]), past_key_values=cache)
            assert all(torch.equal(s, expected[n]) for n, s in selections(model).items())


@torch.no_grad()
def test_a_copied_cache_still_knows_its_prompt():
    model, inputs = adapt(llama()).eval(), prompts()
    cache = copy.deepcopy(model(**row_of(inputs, 0), use_cache=True).past_key_values)
    chosen = selections(model)
    model(**row_of(inputs, 2))
    model(input_ids=torch.tensor([[9]]), past_key_values=cache)
    assert all(torch.equal(s, chosen[n]) for n, s in selections(model).items())


@torch.no_grad()
def test_going_on_from_a_cache_the_adapter_did_not_make_is_said_once(recwarn):
    model, inputs = adapt(llama()).eval(), prompts()
    with model.disable_adapter():
        cache = model(**row_of(inputs, 0), use_cache=True).past_key_values
    for _ in range(2):
        model(input_ids=torch.tensor([[9]]), past_key_values=cache)
    said = [str(w.message) for w in recwarn if "MixLoRA" in str(w.message)]
    assert len(said) == 1
    assert said[0].startswith("the cached prompt was not run through this MixLoRA adapter, so generated tokens are")


@torch.no_grad()
def test_a_cache_of_another_batch_is_refused():
    model, inputs = adapt(llama()).eval(), prompts()
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(RoutingError, match="the cached prompt has 3 instances, but 2 continue from it"):
        model(input_ids=torch.tensor([[9], [8]]), past_key_values=cache)


def test_random_factors_are_held_while_generating():
    model, inputs = adapt(llama(), routing="random").eval(), prompts()
    cached, steps = followed(model, inputs, do_sample=False)
    assert all(torch.equal(step[n], s) for step in steps for n, s in steps[0].items())
    assert torch.equal(cached, generate(model, inputs, do_sample=False, use_cache=False))


@pytest.mark.parametrize("padded", [True, False])
def test_a_static_cache_changes_no_token(padded):
    model, inputs = adapt(llama()).eval(), prompts()
    inputs = inputs if padded else row_of(inputs, 2)
    expected = generate(model, inputs, do_sample=False)
    assert torch.equal(generate(model, inputs, do_sample=False, cache_implementation="static"), expected)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("way", [{"assistant_model": llama(num_hidden_layers=1)}, {"prompt_lookup_num_tokens": 3}])
def test_guessed_tokens_are_no_part_of_the_prompt(way, masked):
    model, inputs = adapt(llama()).eval(), row_of(prompts(), 2)
    if not masked:
        del inputs["attention_mask"]
    inputs["input_ids"][0, :4] = inputs["input_ids"][0, -4:]  # something to look up
    expected, steps = followed(model, inputs, do_sample=False)
    found, guessed = followed(model, inputs, do_sample=False, **way)
    assert all(torch.equal(step[name], steps[0][name]) for step in guessed for name in step)
    assert torch.equal(found, expected)


def test_a_prompt_in_pieces_is_refused():
    model, inputs = adapt(llama()).eval(), row_of(prompts(), 2)
    with pytest.raises(
        RoutingError, match="is processed in chunks of 5, but MixLoRA routes by the whole prompt; leave prefill"
    ):
        generate(model, inputs, do_sample=False, prefill_chunk_size=5)
