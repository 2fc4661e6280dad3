"""Previews: the text of the tokens, the supervised ones marked, and what is told of the data."""

import json
from datetime import date

import pytest

from mixlora.common.errors import DataError
from mixlora.common.sections import TaskSection
from mixlora.data import described, preview
from mixlora.data.collation import Collator
from mixlora.data.templates import template_of
from tests.support.small_processors import (
    CHATML,
    byte_level,
    example,
    llava,
    metaspace,
    picture,
    text,
    words,
    written_by,
)

GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def of(collator, *texts, **more):
    return preview.preview(collator.encode(example(*texts, **more)), collator)


@pytest.mark.parametrize("tokenizer", [byte_level, metaspace, words])
def test_the_pieces_are_the_text_of_the_tokens(tokenizer):
    made = tokenizer()
    collator = Collator(made, template=written_by(made, GENERATION))
    found = of(collator, "What is it?", "Paris", "What?", "Paris is")
    assert "".join(piece for piece, _ in found.pieces) == text(collator, found.encoded)
    marked = [piece for piece, mark in found.pieces if mark]
    assert [piece.strip().partition("<|im_end|>")[0].strip() for piece in marked] == ["Paris", "Paris is"]


def test_a_character_of_two_tokens_is_whole():
    made = byte_level()
    found = of(Collator(made, template=written_by(made, GENERATION)), "é?", "ü")
    assert [piece for piece, mark in found.pieces if mark] == ["ü<|im_end|>\n"]


def test_brackets_colours_and_what_would_steer_the_terminal():
    made = byte_level()
    found = of(Collator(made, template=written_by(made, GENERATION)), "a\x1b[31m?\tb", "Paris\nYes")
    plain = "\n".join(found.lines(colour=False))
    assert plain == (
        "task 't', example '7' (file.jsonl:7)\n"
        f"  {len(found.encoded.input_ids)} tokens, {found.encoded.supervised} of them supervised\n"
        "  form: messages; loss_on: answers\n"
        "<|im_start|>user\na\N{REPLACEMENT CHARACTER}[31m? b<|im_end|>\n"
        "<|im_start|>assistant\n[Paris↵]\n[Yes<|im_end|>↵]\n"
    )
    coloured = "\n".join(found.lines(colour=True))
    assert coloured.count("\x1b[1;32m") == coloured.count("\x1b[0m") == 2
    assert coloured.replace("\x1b[1;32m", "[").replace("\x1b[0m", "]") == plain


def test_no_color_is_heeded(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert preview.wants_colour(True) and not preview.wants_colour(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not preview.wants_colour(True)


def test_a_pictures_placeholders_are_one_and_its_size_is_told():
    processor = llava(byte_level())
    collator = Collator(processor, template=written_by(processor, CHATML))
    found = of(collator, "What?", "Paris", image=picture(60, 50))
    assert found.encoded.input_ids.count(collator.tokenizer.convert_tokens_to_ids("<image>")) == 9
    assert "<image> x 9\nWhat?" in found.pieces[0][0] and found.pieces[0][0].count("<image>") == 1
    assert "  pictures: 60 x 50 pixels" in list(found.lines(False))


def test_json_has_a_mark_for_every_token_and_what_is_cut():
    made = byte_level()
    whole = of(Collator(made, template=written_by(made, GENERATION)), "What?", "Paris is it")
    length = len(whole.encoded.input_ids) - 3
    found = of(Collator(made, length, template=written_by(made, GENERATION)), "What?", "Paris is it")
    row = json.loads(found.json())
    assert list(row)[:7] == ["task", "id", "text", "input_ids", "supervised", "template", "truncated"]
    assert (row["task"], row["id"], row["template"], row["truncated"]) == ("t", "7", "the test's", 3)
    assert len(row["input_ids"]) == len(row["supervised"]) == length
    assert row["supervised"] == [int(label != -100) for label in found.encoded.labels]
    assert row["text"] == made.decode(row["input_ids"])
    assert f"  {length} tokens, {sum(row['supervised'])} of them supervised, 3 more cut off by max_length" in list(
        found.lines(False)
    )


def test_a_long_text_loses_its_middle_with_a_note():
    pieces = [("a" * 60, False), ("b" * 60, True)]
    assert preview.shortened(pieces, 120) == pieces
    assert preview.shortened(pieces, 20) == [
        ("a" * 10, False),
        (" [… 100 characters are not shown …] ", False),
        ("b" * 10, True),
    ]


@pytest.fixture
def file(tmp_path):
    rows = [{"prompt": f"What {k}?", "response": "" if k % 2 else "Paris", "score": 1} for k in range(6)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_the_first_sampled_examples_of_each_task_and_what_is_told(file):
    made = byte_level()
    collator = Collator(made, template=template_of(made, GENERATION + "{# strftime_now #}", "x", date(2020, 2, 3)))
    task = TaskSection(file=str(file), on_error="skip", loss_on="last-answer")
    found, told = preview.previews({"t": (task, 5)}, collator, 0, 2)
    assert len(found) == 2 and {one.encoded.id for one in found} < {"1", "3", "5"}
    assert told == [
        "chat template: x; it writes a date, which is 2020-02-03",
        "task 't': 3 records were skipped (3 x an answer is empty, so there is nothing to learn)",
        "task 't': these keys of its records are not read: score",
        "task 't': the loss is on last-answer (loss_on), not on the answers of all turns",
    ]
    with pytest.raises(DataError, match="3 records cannot be used"):
        preview.previews({"t": (TaskSection(file=str(file)), None)}, collator, 0, 2)


def test_what_is_cut_without_picture_or_without_template_is_told():
    own = {"examples": 40, "with_picture": 37, "cut": 3, "forms": ["text"], "loss_on": ["answers"]}
    assert described.sentences({"template": {"source": "x", "text": "y"}, "tasks": {"a": own}})[1:] == [
        "task 'a': max_length cuts the answers of 3 of 40 examples",
        "task 'a': 3 of 40 examples have no picture",
        "task 'a': records are text, used as they are, without the chat template",
    ]


@pytest.mark.parametrize("damaged", [{}, {"template": 3, "tasks": []}, {"tasks": {"a": None, "b": {"skipped": 3}}}])
def test_what_is_missing_or_damaged_is_not_told(damaged):
    assert described.sentences(damaged) == []
