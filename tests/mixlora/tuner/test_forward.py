"""Instances are routed by themselves: not by their batch, its padding, their answer or what is packed beside them."""

import pytest
import torch
from torch.testing import assert_close

from mixlora import routed
from tests.support.adapted import adapt, batch, layers, llama, llava, opt, padded_left, row_of, selections

MODELS = {"llama": llama, "llava": llava, "opt": opt}
LENGTHS, ANSWERS = [9, 7, 12], [3, 2, 4]


def made(name, **options):
    return adapt(MODELS[name](), **options).eval(), batch(LENGTHS, ANSWERS, image=name == "llava")


@pytest.mark.parametrize("pooling", ["prompt", "attended"])
@pytest.mark.parametrize("padded", [dict, padded_left], ids=["right", "left"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_instance_depends_on_nothing_beside_it(name, padded, pooling):
    model, inputs = made(name, pooling=pooling)
    inputs = padded(inputs)
    together = model(**inputs).logits
    chosen = selections(model)
    assert any(len({tuple(row.flatten().tolist()) for row in s.unbind(1)}) == 3 for s in chosen.values())
    for row in range(3):
        alone = model(**row_of(inputs, row)).logits[0]
        assert_close(together[row][inputs["attention_mask"][row].bool()], alone, rtol=1e-4, atol=1e-4)
        for layer, selection in selections(model).items():
            assert torch.equal(selection[:, 0], chosen[layer][:, row]), layer


@torch.no_grad()
def test_pooling_over_all_positions_depends_on_padding():
    model, inputs = made("llama", pooling="all")
    model(**inputs)
    together = selections(model)
    model(**row_of(inputs, 1))
    alone = selections(model)
    assert sum(not torch.equal(together[n][:, 1], alone[n][:, 0]) for n in alone) > len(alone) / 2


@torch.no_grad()
def test_the_image_encoder_routes_each_image_by_itself():
    model, inputs = made("llava", target_modules=["q_proj", "v_proj", "linear_1"])
    together = model(**inputs).logits
    chosen = {name: s for name, s in selections(model).items() if "language_model" not in name}
    assert len(chosen) == 5 and all(s.shape == (2, 3, 2) for s in chosen.values())
    alone = model(**row_of(inputs, 1)).logits[0]
    assert_close(together[1, : LENGTHS[1]], alone, rtol=1e-4, atol=1e-4)
    for name, selection in selections(model).items():
        if name in chosen:
            assert torch.equal(selection[:, 0], chosen[name][:, 1])


@torch.no_grad()
def test_the_answer_does_not_choose_the_factors_where_labels_tell_it():
    model, inputs = made("llama")
    model(**inputs)
    chosen = selections(model)
    answer = inputs["labels"] != -100
    other = inputs | {"input_ids": torch.where(answer, (inputs["input_ids"] + 7) % 60 + 3, inputs["input_ids"])}
    model(**other)
    assert all(torch.equal(s, chosen[n]) for n, s in selections(model).items())
    unlabelled = {k: v for k, v in other.items() if k != "labels"}
    model(**unlabelled)
    assert any(not torch.equal(s, chosen[n]) for n, s in selections(model).items())


@torch.no_grad()
def test_labels_around_a_forward_count_as_its_own():
    model, inputs = made("llama")
    expected = model(**inputs).logits
    unlabelled = {k: v for k, v in inputs.items() if k != "labels"}
    with routed(model, labels=inputs["labels"]):
        assert torch.equal(model(**unlabelled).logits, expected)
    assert not torch.equal(model(**unlabelled).logits, expected)
    assert routed(llama(), labels=inputs["labels"]).__enter__() is None


@torch.no_grad()
def test_a_row_without_a_prompt_pools_over_all_it_attends_to():
    model, inputs = made("llama")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    answered = torch.where(mask.bool(), ids, -100)
    model(input_ids=ids, attention_mask=mask, labels=answered)
    chosen = selections(model)
    model(input_ids=ids, attention_mask=mask)
    assert all(torch.equal(s, chosen[n]) for n, s in selections(model).items())


@torch.no_grad()
def test_only_what_precedes_the_first_of_several_answers_is_the_prompt():
    model, inputs = made("llama")
    ids = inputs["input_ids"][2:]
    labels = torch.full_like(ids, -100)
    labels[:, 4:6], labels[:, 9:] = ids[:, 4:6], ids[:, 9:]
    model(input_ids=ids, labels=labels)
    chosen = selections(model)
    changed = torch.cat([ids[:, :4], (ids[:, 4:] + 11) % 60 + 3], dim=1)
    model(input_ids=changed, labels=labels)
    assert all(torch.equal(s, chosen[n]) for n, s in selections(model).items())
    first = next(iter(layers(model).values()))
    pooled = []
    hook = first.register_forward_pre_hook(lambda _, args: pooled.append(args[0][:, :4].mean(dim=1)))
    model(input_ids=ids, labels=labels)
    hook.remove()
    expected = (pooled[0] @ first.mixlora_router["default"].independent_A.weight.T).softmax(dim=-1)
    assert_close(first.selection.scores_A, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("preset", ["paper", "official"])
@torch.no_grad()
def test_packed_sequences_are_instances_of_their_own(preset, labelled):
    model, inputs = made("llama", preset=preset)
    rows = [row_of(inputs, row) for row in range(3)]
    keys = ["input_ids", "labels"] if labelled else ["input_ids"]
    packed = {key: torch.cat([row[key] for row in rows], dim=1) for key in keys}
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    together = model(**packed, position_ids=positions, use_cache=False).logits[0]
    chosen = selections(model)
    for row, part in enumerate(together.split(LENGTHS)):
        alone = model(**{key: rows[row][key] for key in keys}, use_cache=False).logits[0]
        assert_close(part, alone, rtol=1e-4, atol=1e-4)
        for name, selection in selections(model).items():
            assert torch.equal(selection[:, 0], chosen[name][:, row])
    assert all(s.shape == (2, 3, 2) for s in chosen.values())


@torch.no_grad()
def test_rows_may_be_packed_differently():
    model, inputs = made("llama")
    ids = inputs["input_ids"][:, :7].clamp(min=3)
    lengths = [[4, 3], [7], [1, 1, 5]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert all(s.shape == (2, 6, 2) for s in selections(model).values())
    for row, parts in enumerate(lengths):
        for tokens, logits in zip(ids[row].split(parts), together[row].split(parts), strict=True):
            assert_close(logits, model(input_ids=tokens[None], use_cache=False).logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_inputs_given_by_place_or_as_embeddings_route_the_same():
    model, inputs = made("llama")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = model(input_ids=ids, attention_mask=mask).logits
    base = model.get_base_model()
    assert torch.equal(base(ids, mask).logits, expected)
    embedded = base.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded, attention_mask=mask).logits, expected)


@torch.no_grad()
def test_a_mask_of_four_dimensions_is_said_to_hide_padding_from_the_routers():
    model, inputs = made("llama")
    ids = inputs["input_ids"]
    square = torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()
    with pytest.warns(UserWarning, match=r"the attention mask is not \[batch, seq\], so MixLoRA pools over every"):
        model(input_ids=ids, attention_mask=square)
    chosen = selections(model)
    model(input_ids=ids)
    assert all(torch.equal(s, chosen[n]) for n, s in selections(model).items())
