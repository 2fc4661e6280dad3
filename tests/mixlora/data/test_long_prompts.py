"""Texts of hundreds of thousands of words before an answer: refused by their beginning, and only where the whole is."""

from dataclasses import replace

import pytest

from mixlora.common.errors import DataError
from mixlora.data import encoding
from mixlora.data.examples import Form, LossOn
from tests.support.small_processors import CHATML, byte_level, collating, example, metaspace, words

LONG = "What is shown? " * 60_000
TOKENIZERS = {"bytes": byte_level, "spaces": metaspace, "words": words}


@pytest.fixture
def tokenized(monkeypatch):
    """The characters of every text that is tokenized."""
    found: list[int] = []
    real = encoding.tokenize

    def counting(tokenizer, text, special=False):
        found.append(len(text))
        return real(tokenizer, text, special)

    monkeypatch.setattr(encoding, "tokenize", counting)
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
    monkeypatch.setattr(encoding, "_LONG", 10**9)
    assert found == [kept(count) for count in counts]
    assert found[0] is not None and found[-1] is None


@pytest.mark.parametrize("on", [LossOn.EVERYTHING, LossOn.ANSWERS])
def test_a_long_answer_is_cut_as_before(monkeypatch, on):
    long = replace(example("What?", LONG), loss_on=on)
    cut = collating(byte_level(), CHATML, max_length=60).encode(long)
    monkeypatch.setattr(encoding, "_LONG", 10**9)
    assert cut == collating(byte_level(), CHATML, max_length=60).encode(long)
    assert len(cut.input_ids) == 60 and cut.truncated > 10_000


def test_without_a_limit_all_is_tokenized(tokenized):
    assert len(collating(byte_level(), CHATML).encode(example(LONG, "Paris")).input_ids) > 100_000
