"""Texts of hundreds of thousands of words: refused or cut by their beginning, and only as the whole is."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, MambaConfig

from mixlora.checkpoints.lengths import longest_of, positions_of
from mixlora.common.errors import DataError
from mixlora.data import encoding, tokens
from mixlora.data.collation import Collator
from mixlora.data.examples import Form, LossOn
from tests.support.small_processors import CHATML, byte_level, collating, example, metaspace, words, written_by

LONG = "What is shown? " * 60_000
TOKENIZERS = {"bytes": byte_level, "spaces": metaspace, "words": words}


@pytest.fixture
def tokenized(monkeypatch):
    """The characters of every text that is tokenized."""
    found: list[int] = []
    real = tokens.tokenize

    def counting(tokenizer, text, special=False):
        found.append(len(text))
        return real(tokenizer, text, special)

    monkeypatch.setattr(encoding, "tokenize", counting)
    monkeypatch.setattr(tokens, "tokenize", counting)
    return found


@pytest.mark.parametrize("form", [Form.MESSAGES, Form.COMPLETION, Form.PLAIN])
def test_a_long_prompt_is_refused_by_its_beginning(tokenized, form):
    long = replace(example(LONG, "Paris"), form=form, prompt_turns=1)
    with pytest.raises(
        DataError, match=r"7: max_length 40 cuts off the whole answer of example '7', which has more than"
    ):
        collating(byte_level(), CHATML, max_length=40).encode(long)
    with pytest.raises(DataError, match="of example '7' alone has more tokens than max_length 40; raise max_length or"):
        collating(byte_level(), CHATML, max_length=40).encode_prompt(long)
    assert tokenized and max(tokenized) <= 16 * 140


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("white", [" ", " " * 50])
def test_what_is_refused_is_what_is_refused_by_its_tokens(monkeypatch, make, white):
    collator = collating(make(), CHATML, max_length=150)

    def kept(count):
        long = example(f"What is shown?{white}" * count, "Paris")
        try:
            return collator.encode(long).input_ids
        except DataError:
            return None

    counts = [*range(1, 30), 40, 60, 120, 200, 1000]
    found = [kept(count) for count in counts]
    monkeypatch.setattr(tokens, "_LONG", 10**9)
    assert found == [kept(count) for count in counts]
    assert found[0] is not None and found[-1] is None


LONGER = "What is shown? " * 3_000
TURNS = {
    "answer": (Form.MESSAGES, ("What?", LONGER)),
    "completion": (Form.COMPLETION, ("What?", LONGER)),
    "plain": (Form.PLAIN, ("What?", LONGER)),
    "text": (Form.TEXT, (LONGER,)),
    "several turns": (Form.MESSAGES, ("What?", "Paris", "What?", LONGER, LONGER, "Paris")),
}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("on", [LossOn.EVERYTHING, LossOn.ANSWERS])
@pytest.mark.parametrize("form", TURNS)
def test_what_is_behind_max_length_is_not_tokenized(monkeypatch, tokenized, make, on, form):
    kind, turns = TURNS[form]
    long = replace(example(*turns), form=kind, loss_on=on, prompt_turns=1)
    tokenizer = make()
    collator = collating(tokenizer, CHATML, max_length=60)
    cut = collator.encode(long)
    assert len(cut.input_ids) == 60 and cut.truncated and max(tokenized) <= 16 * 160
    monkeypatch.setattr(tokens, "_LONG", 10**9)
    assert cut == collating(tokenizer, CHATML, max_length=60).encode(long)
    whole = collating(tokenizer, CHATML).encode(long)
    assert collator.cut(cut) == whole.supervised - cut.supervised > 3_000


def test_a_word_that_is_longer_than_what_is_kept_is_tokenized_whole(tokenized):
    word = "a" * 50_000
    cut = collating(byte_level(), CHATML, max_length=60).encode(example("What?", word))
    assert cut.input_ids == collating(byte_level(), CHATML).encode(example("What?", word)).input_ids[:60]
    assert max(tokenized) > len(word)


def test_a_special_token_that_is_text_is_not_cut_apart():
    text = " ".join(["What </s> is <|im_end|> shown?"] * 400)
    tokenizer = byte_level()
    whole = collating(tokenizer, CHATML).encode(example("What?", text))
    for length in range(60, 90):
        cut = collating(tokenizer, CHATML, max_length=length).encode(example("What?", text))
        assert cut.input_ids == whole.input_ids[:length]


def test_without_max_length_a_text_is_bounded_by_what_the_model_was_made_for(tokenized):
    tokenizer = byte_level()
    collator = Collator(tokenizer, template=written_by(tokenizer, CHATML), longest=80)
    said = r"7: example '7' has more tokens than the 80 that the model was made for; set max_length \(the tokens kept"
    for turns in (("What?", LONG), (LONG, "Paris")):
        with pytest.raises(DataError, match=said):
            collator.encode(example(*turns))
    with pytest.raises(DataError, match=r"80 that the model was made for; set generation\.max_prompt_length, or"):
        collator.encode_prompt(example(LONG, "Paris"), new_tokens=4)
    assert max(tokenized) <= 16 * 180
    collator = Collator(tokenizer, 200, written_by(tokenizer, CHATML), longest=80)
    assert len(collator.encode(example("What?", LONG)).input_ids) == 200


def test_without_a_limit_all_is_tokenized(tokenized):
    assert len(collating(byte_level(), CHATML).encode(example(LONG, "Paris")).input_ids) > 100_000


def test_what_a_model_was_made_for_is_the_most_that_it_says():
    assert longest_of(LlamaConfig(max_position_embeddings=64), 10**30) == 64
    assert longest_of(LlamaConfig(max_position_embeddings=64), 512) == 512
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    assert longest_of(LlamaConfig(max_position_embeddings=64, rope_parameters=scaled), 10**30) == 256
    assert longest_of(MambaConfig(), 10**30) is None


NO_NUMBERS = ["2048", [1], None, True, math.nan, math.inf, -math.inf, -3, 0, {}]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_lengths_that_are_no_numbers_do_not_count(value):
    assert longest_of(SimpleNamespace(max_position_embeddings=64), value) == 64
    assert longest_of(SimpleNamespace(max_position_embeddings=value), 512) == 512
    assert longest_of(SimpleNamespace(max_position_embeddings=64, rope_parameters={"factor": value}), 10**30) == 64
    assert longest_of(SimpleNamespace(max_position_embeddings=64, rope_scaling=value), 10**30) == 64
    assert positions_of(SimpleNamespace(max_position_embeddings=value)) is None


def test_lengths_beyond_all_bounds_are_bounded():
    for huge in (10**400, 1e308):
        text = SimpleNamespace(max_position_embeddings=huge, rope_scaling={"factor": huge})
        assert longest_of(text, huge) == 10**18 and positions_of(SimpleNamespace(max_position_embeddings=huge)) == 10**9
