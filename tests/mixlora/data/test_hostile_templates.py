"""Chat templates from strangers: whatever one does, the outcome is a text or one sentence, and soon."""

import time

import pytest

from mixlora.common import limits
from mixlora.common.errors import ConfigError, DataError
from tests.support.small_processors import CHATML, byte_level, collating, example

FAILING = {
    "{{ 1 / 0 }}": "division by zero",
    "{% for i in range(10**9) %}x{% endfor %}": "Range too big",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}": "maximum recursion depth exceeded",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "maximum recursion depth exceeded",
    "{{ raise_exception('a\nb' + 'x' * 10**6) }}": "a bx",
    "{{ 10 ** 400 / 3 }}": "too large",
}
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 7 ** (10 ** 9) }}",
    "{% set s = namespace(n=0) %}{% for i in range(99999) %}{% for j in range(999) %}{% set s.n = s.n + 1 %}"
    "{% endfor %}{% endfor %}",
]
HUGE = [
    "{{ 'a' * 10**13 }}",
    "{{ 'x' | center(10**13) }}",
    "{{ '%10000000000000d' % 1 }}",
    "{% set s = namespace(x=[1]) %}{% for i in range(99) %}{% set s.x = s.x + s.x %}{% endfor %}",
]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    monkeypatch.setattr(limits, "MEMORY", 2**28)


def sentence(template):
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        collating(byte_level(), template).encode(example("What?", "Paris"))
    assert time.process_time() - start < 8
    words = str(error.value)
    assert "\n" not in words and len(words) < 600 and words.endswith("give another model.chat_template")
    return words


@pytest.mark.parametrize(("template", "reason"), FAILING.items())
def test_a_template_that_fails(template, reason):
    words = sentence(template)
    assert words.startswith("the chat template (the test's) does not render a user turn and an assistant turn (")
    assert reason in words


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_without_end(template):
    asked = "the chat template (the test's) takes more than 0.5 s for one conversation; give another"
    assert sentence(template).startswith(asked)


@pytest.mark.parametrize("template", HUGE)
def test_a_template_without_measure(template, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 30)  # a processor under load must not be the first to say no
    asked = "the chat template (the test's) needs more than 256 MiB of memory for one conversation; give another"
    assert sentence(template).startswith(asked)


def test_a_template_that_writes_much_of_little():
    words = sentence("{{ messages[0]['content'] * 10**6 }}")
    assert words.startswith("the chat template (the test's) makes 19000000 characters of one conversation")
    collator = collating(byte_level(), CHATML)
    assert len(collator.encode(example("What? " * 300_000, "Paris")).input_ids) > 600_000


LATE = CHATML + (
    "{% if 'loop' in messages[0]['content'] %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}{% endif %}{{ 1 / (messages[0]['content'] | length) }}"
)


def test_a_template_that_a_record_sets_off():
    collator = collating(byte_level(), LATE)
    with pytest.raises(ConfigError, match=r"^file\.jsonl:7: the chat template \(the test's\) takes more than 0\.5 s"):
        collator.encode(example("loop", "Paris"))
    with pytest.raises(DataError, match=r"^file\.jsonl:7: .* rejects this conversation: division by zero; change its"):
        collator.encode(example("", "Paris"))


def test_a_long_conversation_has_the_time_for_each_of_its_turns(monkeypatch):
    turns = ["What is it?", "Paris."] * 120
    encoded = collating(byte_level(), CHATML).encode(example(*turns))
    monkeypatch.setattr(limits, "SECONDS", 0.1)
    start = time.process_time()
    assert collating(byte_level(), CHATML).encode(example(*turns)).input_ids == encoded.input_ids
    assert time.process_time() - start > 0.1
