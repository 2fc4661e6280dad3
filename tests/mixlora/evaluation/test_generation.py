"""Answers of a model: each is the same alone and in a batch, likeliest or drawn, and memory errors are told."""

import pytest
import torch
from torch.testing import assert_close

from mixlora import routed
from mixlora.common.errors import RoutingError, TrainingError
from mixlora.data import mini
from mixlora.evaluation.config import GenerationSection
from mixlora.evaluation.generation import Draw, Generator, generate
from tests.support.adapted import layers
from tests.support.evaluations import adapted, follow
from tests.support.small_processors import collating

torch.set_num_threads(1)
NEW = 6
DEFINITIONS = {"read_word": "Read the word.", "name_ink": "What colour is the ink?"}


@pytest.fixture(scope="module")
def collator():
    return collating(mini.load_base()[1])


@pytest.fixture(scope="module")
def mixed():
    """Questions of several lengths, with pictures and without."""
    return [*mini.examples("read_word", "heldout", 5), *follow(3), *mini.examples("spatial", "heldout", 4)]


@pytest.fixture(scope="module", params=["lora", "mixlora"])
def model(request):
    return adapted(request.param)


def generator(model, collator, named=False, **how):
    return Generator(model, collator, GenerationSection(max_new_tokens=NEW, **how), named)


def said(model, collator, examples, **how):
    """{id: answer}."""
    batches = generate(generator(model, collator, **how), examples, lambda example: None)
    return {example.id: text for batch in batches for example, text in batch}


def alone(model, collator, example, **options):
    """The greedy answer to one prompt without padding."""
    batch = collator.collate([collator.encode_prompt(example)])
    del batch["labels"]
    out = model.generate(**batch, **options, max_new_tokens=NEW, do_sample=False)
    return collator.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_batched_answers_are_those_of_one_prompt_alone(model, collator, mixed):
    found = said(model, collator, mixed, batch_size=5)
    assert found == {example.id: alone(model, collator, example) for example in mixed}
    assert len(set(found.values())) > 3  # the adapter did not make all answers alike


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 1.0}])
def test_routers_that_would_look_at_padding_do_not_let_the_batch_decide(collator, mixed, how):
    model = adapted("mixlora", pooling="all", cfs_form="official", decode_routing="token")
    found = said(model, collator, mixed, batch_size=5, **how)
    assert found == said(model, collator, mixed, batch_size=1, **how)
    if "do_sample" not in how:
        assert found == {example.id: alone(model, collator, example, **how) for example in mixed}
    assert len(set(found.values())) > 3


@torch.no_grad()
def test_the_likeliest_tokens_are_taken_step_by_step(collator, mixed):
    model = adapted("lora")
    found = said(model, collator, mixed[:2] + mixed[5:7])
    for example in (*mixed[:2], *mixed[5:7]):
        batch = collator.collate([collator.encode_prompt(example)])
        del batch["labels"]
        ids, new = batch["input_ids"], []
        while len(new) < NEW and collator.tokenizer.eos_token_id not in new:  # without a cache
            whole = torch.cat([ids, torch.tensor([new], dtype=ids.dtype)], dim=1)
            logits = model(**batch | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}).logits
            new.append(int(logits[0, -1].argmax()))
        assert found[example.id] == collator.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_batches_are_of_one_kind_with_the_longest_first(collator, mixed):
    batches = generator(None, collator, batch_size=3).batches(mixed)
    assert sorted(example.id for batch in batches for example in batch) == sorted(example.id for example in mixed)
    kinds = [{example.has_image for example in batch} for batch in batches]
    assert [len(batch) for batch in batches] == [3, 3, 3, 3] and all(len(kind) == 1 for kind in kinds)
    for kind in (True, False):
        own = [batch for batch in batches if batch[0].has_image == kind]
        lengths = [len(collator.encode_prompt(example).input_ids) for batch in own for example in batch]
        assert lengths == sorted(lengths, reverse=True) and (not kind or len(set(lengths)) > 1)
    again = generator(None, collator, batch_size=3).batches(mixed[::-1])
    assert [[one.id for one in batch] for batch in again] == [[one.id for one in batch] for batch in batches]


def test_known_answers_are_not_generated_again(model, collator, mixed):
    some = generator(model, collator, batch_size=3)
    batches = some.batches(mixed)
    known = {example.id: f"known {k}" for k, example in enumerate([*batches[0], batches[1][0]])}
    found = dict(
        pair
        for batch in generate(some, mixed, lambda one: known.get(one.id))
        for pair in ((example.id, text) for example, text in batch)
    )
    assert [found[one.id] for one in batches[0]] == ["known 0", "known 1", "known 2"]
    assert found[batches[1][0].id] == alone(model, collator, batches[1][0])  # its batch was not complete


def test_drawn_answers_depend_on_the_seed_and_on_nothing_else(model, collator, mixed):
    how = {"do_sample": True, "temperature": 2.0, "top_p": 0.95}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = said(model, collator, mixed, **how)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert said(model, collator, mixed[::-1], **how, batch_size=5) == first
    assert said(model, collator, mixed[2:3], **how) == {mixed[2].id: first[mixed[2].id]}
    other, greedy = said(model, collator, mixed, **how, seed=1), said(model, collator, mixed)
    assert sum(other[key] != first[key] for key in first) > 6 and sum(greedy[key] != first[key] for key in first) > 6
    assert said(model, collator, mixed, **how | {"temperature": 1e-6}) == greedy


@pytest.mark.parametrize("top_p", [None, 0.7])
def test_tokens_are_drawn_as_often_as_they_are_likely(mixed, top_p):
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -torch.inf])
    expected = (logits / 0.8).softmax(-1)
    if top_p:  # the likeliest two reach 0.7
        expected = torch.where(expected >= expected[1], expected, 0.0)
        expected = expected / expected.sum()
    drawn = torch.zeros(5)
    draw = Draw(GenerationSection(do_sample=True, temperature=0.8, top_p=top_p), mixed)
    steps = 600
    for _ in range(steps):
        chosen = draw(None, logits.repeat(len(mixed), 1)).argmax(-1)
        drawn += torch.bincount(chosen, minlength=5)
    n = steps * len(mixed)
    assert_close(drawn / n, expected, atol=4 * 0.5 / n**0.5, rtol=0)
    assert drawn[4] == 0 and (top_p is None or drawn[2:].sum() == 0)


def test_beams_are_searched(model, collator, mixed):
    own = [*mixed[:5], *mini.examples("name_ink", "heldout", 12)[5:]]
    found = said(model, collator, own, num_beams=3)
    assert found == {example.id: alone(model, collator, example, num_beams=3) for example in own}
    assert found != said(model, collator, own)


def test_routers_by_task_are_told_the_tasks(collator):
    model = adapted("mixlora", routing="task", task_definitions=DEFINITIONS)
    model.base_model.encode_tasks(collator.tokenizer)
    examples = [mini.examples(task, "heldout", 1)[0] for task in DEFINITIONS]
    answers = generator(model, collator, named=True).answers(examples)
    chosen = [layer.selection.A for layer in layers(model).values()]
    assert any(not torch.equal(*selection) for selection in chosen)
    for example, text in zip(examples, answers, strict=True):
        with routed(model, tasks=[example.task]):
            assert alone(model, collator, example) == text
    beams = generator(model, collator, named=True, num_beams=2).answers(examples)
    assert beams == [alone(model, collator, one, num_beams=2, tasks=[one.task]) for one in examples]
    with pytest.raises(RoutingError, match="needs the task of every instance"):
        generator(model, collator).answers(examples)


@pytest.mark.parametrize(
    ("count", "remedy"),
    [(3, "lower generation.batch_size, and the same command continues"), (1, "with model.dtype or model.quantization")],
)
def test_memory_that_runs_out_is_told_with_a_remedy(monkeypatch, collator, count, remedy):
    model = adapted("lora")
    forward = model.base_model.model.forward
    calls = []

    def second(*args, **given):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **given)

    monkeypatch.setattr(model.base_model.model, "forward", second)
    with pytest.raises(TrainingError) as error:
        generator(model, collator).answers(follow(count))
    width = len(collator.encode_prompt(follow(1)[0]).input_ids)
    assert f"memory ran out with {count} prompts of {width} tokens and {NEW} new ones at most: " in str(error.value)
    assert remedy in str(error.value)


def test_the_papers_settings_fill_what_is_not_given():
    paper = GenerationSection.model_validate({"preset": "paper"})
    assert (paper.do_sample, paper.temperature, paper.max_new_tokens) == (True, 0.2, 1024)
    own = GenerationSection.model_validate({"preset": "paper", "max_new_tokens": 64})
    assert (own.do_sample, own.max_new_tokens) == (True, 64)
    by_hand = GenerationSection(do_sample=True, temperature=0.2, max_new_tokens=64)
    assert own.identity == by_hand.identity and "preset" not in own.identity  # answers depend on what it sets
    with pytest.raises(ValueError, match="Input should be 'paper'"):
        GenerationSection.model_validate({"preset": "papre"})
