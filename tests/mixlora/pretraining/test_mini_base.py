"""The mini suite's base model: that it is what its recipe makes, and that it can learn the six tasks."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from mixlora.data import mini
from mixlora.pretraining import architecture, diet, loop, recipe, sight, speech
from mixlora.pretraining.muon import Muon, orthogonal
from tests.support.small_processors import collating

RECORD = json.loads((mini.base_path() / "recipe.json").read_text())


@pytest.fixture(scope="module")
def base():
    return mini.load_base()


def newborn() -> tuple:
    """The model before its first step, with the shipped tokenizer."""
    _, processor = mini.load_base()
    return architecture.newborn(processor.tokenizer, recipe.Recipe().seed), processor


def test_the_base_is_small(base):
    assert sum(file.stat().st_size for file in mini.base_path().iterdir()) <= 8 * 2**20
    assert sum(parameter.numel() for parameter in base[0].parameters()) == RECORD["parameters"] < 2e6
    assert {parameter.dtype for parameter in base[0].parameters()} == {torch.float32}
    assert not base[0].training


def test_the_record_is_of_the_recipe_as_it_stands():
    assert RECORD["recipe"] == asdict(recipe.Recipe())
    assert sum(RECORD["pictures"].values()) == 40_000
    assert min(RECORD["sight"]["heldout"].values()) > 0.9
    assert RECORD["speech"]["heldout"]["all"]["accuracy"] > 0.8


def test_a_prompt_is_rendered_in_the_manner_of_llava(base):
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read the word."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    render = base[1].apply_chat_template
    assert render(turns) == "<s>USER: <image>\nRead the word. ASSISTANT: red</s>"
    assert render(turns[:1], add_generation_prompt=True) == "<s>USER: <image>\nRead the word. ASSISTANT:"
    assert render([turns[0], {"role": "assistant", "content": "red"}]) == render(turns)


def test_every_answer_of_the_suite_is_one_token(base):
    words = {answer for task in (*mini.TASKS.values(), *mini.UNSEEN.values()) for answer in task.answers}
    assert len(words) > 60
    assert {len(base[1].tokenizer.encode(f" {word}")) for word in words} == {1}


@pytest.mark.slow
def test_the_vocabulary_is_the_one_that_the_suites_texts_give(base):
    assert set(architecture.tokenizer(diet.texts()).get_vocab()) == set(base[1].tokenizer.get_vocab())


def test_a_picture_is_36_tokens_and_the_pixels_of_the_recipe(base):
    (example,) = mini.examples("name_ink", "heldout", 1)
    batch = collating(base[1])([example])
    assert (batch["input_ids"] == base[0].config.image_token_index).sum() == 36
    (picture,) = [one for one in diet.pictures("heldout", 9, 0) if "digit" in one.facts]
    by_processor = base[1].image_processor(images=[picture.image], return_tensors="pt")["pixel_values"]
    by_recipe = recipe.normal(recipe.block("heldout", 9, 0).pixels)
    assert (by_recipe - by_processor).abs().amax(dim=(1, 2, 3)).min() < 1e-5


def test_the_recipe_writes_prompts_as_the_collator_does(base):
    (example,) = recipe.quiz(9)[:1]
    encoded = collating(base[1]).encode(example)
    line = speech.Scribe(base[1], 36).line([(example.turns[0].text, example.turns[1].text)])
    assert line.tokens == encoded.input_ids
    assert line.labels == encoded.labels


def test_the_recipes_loss_is_the_models_own(base):
    examples = recipe.quiz(40)
    batch = collating(base[1])(examples)
    scribe = speech.Scribe(base[1], 36)
    lines = [scribe.line([(one.turns[0].text, one.turns[1].text)]) for one in examples]
    with torch.no_grad():
        seen = speech.patches(base[0], batch["pixel_values"])
        torch.testing.assert_close(speech.answer_loss(base[0], seen, lines), base[0](**batch).loss, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_first_steps_of_stage_zero_are_the_recorded_ones():
    losses, _ = recipe.see(newborn()[0], recipe.Recipe(), stop_after=recipe.RECORDED_STEPS)
    torch.testing.assert_close(losses, RECORD["sight"]["first_losses"], rtol=5e-3, atol=0.0)


@pytest.mark.slow
def test_the_first_steps_of_stage_one_are_the_recorded_ones(base):
    beginner, processor = newborn()
    beginner.model.vision_tower.load_state_dict(base[0].model.vision_tower.state_dict())
    losses = recipe.speak(beginner, processor, recipe.Recipe(), stop_after=recipe.RECORDED_STEPS)
    torch.testing.assert_close(losses, RECORD["speech"]["first_losses"], rtol=5e-3, atol=0.0)


@pytest.mark.slow
def test_the_base_answers_its_own_kind_of_question_as_well_as_recorded(base):
    asked = recipe.quiz(400, seed=7)
    told = RECORD["speech"]["heldout"]["all"]["accuracy"]
    margin = 4 * math.sqrt(told * (1 - told) / len(asked)) + 0.01
    assert recipe.accuracy(*base, asked) == pytest.approx(told, abs=margin)


def test_the_schedule_warms_up_and_falls_to_zero():
    schedule = loop.Schedule(steps=110, learning_rate=1.0, warmup=10)
    assert [schedule.factor(step) for step in (0, 4, 9, 10, 60, 110)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0])


def test_facts_become_labels_and_words_fall_into_letters():
    (row,) = sight.labels([{"word": "red", "ink": "blue", "style": "mono"}]).tolist()
    told = {name: values[label] for (name, values), label in zip(sight.FACTS.items(), row, strict=True) if label >= 0}
    letters = {f"letter_{place}": letter for place, letter in enumerate("red   ")}
    assert told == {"word": "red", "ink": "blue", "style": "mono", **letters}


def test_the_optimizer_moves_along_the_orthogonal_factor():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(8, 24, generator=generator)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    exact = left @ right
    near = orthogonal(gradient[None])[0]
    assert torch.linalg.svdvals(near).sub(1).abs().max() < 0.35
    assert torch.nn.functional.cosine_similarity(near.flatten(), exact.flatten(), dim=0) > 0.97
    weight = torch.zeros(24, 8, requires_grad=True)
    weight.grad = gradient.T.clone()
    Muon([weight], lr=0.1).step()
    assert weight.detach().pow(2).mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.2)
