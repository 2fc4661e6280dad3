"""Batches of a model, how long examples are cut, and what cannot be encoded."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mixlora.common.errors import DataError, MixLoraError
from mixlora.common.labels import IGNORED
from mixlora.data import mini
from mixlora.data.collation import Collator
from mixlora.data.examples import Form, LossOn
from mixlora.data.images import open_image
from tests.support.small_processors import (
    CHATML,
    SPECIAL,
    byte_level,
    collating,
    example,
    learned,
    llava,
    picture,
    words,
    written_by,
)

# --- batches ---


def test_padding_is_on_the_right_and_masked():
    collator = collating(words(), CHATML)
    short, long = example("What?", "Paris"), example("What is it?", "Yes")
    batch = collator([short, long])
    pad = collator.tokenizer.pad_token_id
    assert batch["input_ids"].shape == (2, 11)
    torch.testing.assert_close(batch["attention_mask"], torch.tensor([[1] * 9 + [0] * 2, [1] * 11]))
    assert batch["input_ids"][0, 9:].tolist() == [pad, pad]
    assert batch["labels"][0].tolist() == [*collator.encode(short).labels, IGNORED, IGNORED]
    left = collator.collate([collator.encode(short), collator.encode(long)], padding="left")
    assert left["attention_mask"][0].tolist() == [0, 0] + [1] * 9
    assert left["input_ids"][0, 2:].tolist() == collator.encode(short).input_ids
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_without_a_padding_token_the_eos_pads():
    collator = collating(byte_level(pad_token=None), CHATML)
    batch = collator([example("What?", "is"), example("What is shown?", "Paris")])
    assert batch["input_ids"][0, -1] == collator.tokenizer.eos_token_id
    assert batch["attention_mask"][0, -1] == 0 and batch["labels"][0, -1] == IGNORED


def test_pixels_are_the_processors_own_and_paths_are_opened(tmp_path):
    picture().save(tmp_path / "a.png")
    collator = collating(llava(byte_level()))
    batch = collator([example("What?", "is", image=tmp_path / "a.png"), example("What?", "no", image=picture(90, 48))])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    theirs = collator.processor.image_processor(images=[picture(), picture(90, 48)], return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], theirs["pixel_values"])
    image_id = collator.processor.image_token_id
    assert (batch["input_ids"] == image_id).sum(1).tolist() == [9, 9]
    assert (batch["labels"][batch["input_ids"] == image_id] == IGNORED).all()


def test_a_picture_on_its_side_is_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(60, 20).save(tmp_path / "a.jpg", exif=exif)
    collator = collating(llava(byte_level()))
    asked = []
    collator._expansion = lambda size: asked.append(size) or "<image>"
    collator.encode(example("What?", "is", image=tmp_path / "a.jpg"))
    assert asked == [(20, 60)]


# --- max_length ---


def test_truncation_from_the_right_counts_what_it_cuts():
    collator = collating(words(), CHATML, 9)
    encoded = collator.encode(example("What?", "Paris. Yes"))
    assert learned(collator, encoded) == ["Paris", "."]
    assert len(encoded.input_ids) == 9
    assert encoded.truncated and collator.cut(encoded) == 2
    assert not collator.encode(example("What?", "Paris")).truncated


def test_an_answer_cut_off_entirely_is_refused():
    collator = collating(words(), CHATML, 7)
    with pytest.raises(DataError) as error:
        collator.encode(example("What?", "Paris"))
    assert str(error.value) == (
        "file.jsonl:7: max_length 7 cuts off the whole answer of example '7', which has 9 tokens, 7 of them before it; "
        "raise max_length or drop the record."
    )
    with pytest.raises(DataError, match="the prompt of example '7' alone has more tokens than max_length 7"):
        collator.encode_prompt(example("What is it? Yes", "Paris"))


def test_an_example_longer_than_the_models_positions_is_refused_or_cut():
    tokenizer = words()
    template = written_by(tokenizer, CHATML)
    given = example("What?", "Paris. Yes")  # 11 tokens
    with pytest.raises(DataError) as error:
        Collator(tokenizer, template=template, positions=10).encode(given)
    assert str(error.value) == (
        "file.jsonl:7: example '7' has more tokens than the 10 that the model has positions for; set max_length to "
        "10 or less, or drop the record"
    )
    assert len(Collator(tokenizer, template=template, positions=11).encode(given).input_ids) == 11
    assert Collator(tokenizer, 10, template, positions=10).encode(given).truncated
    with pytest.raises(DataError, match=r"'7' has more tokens than the 6 that the model has positions"):
        Collator(tokenizer, template=template, positions=6).encode_prompt(given)
    assert len(Collator(tokenizer, template=template, positions=10).encode_prompt(given, new_tokens=3).input_ids) == 7
    with pytest.raises(DataError) as error:
        Collator(tokenizer, template=template, positions=10).encode_prompt(given, new_tokens=4)
    assert str(error.value) == (
        "file.jsonl:7: example '7' has a prompt of 7 tokens, but the model has positions for 10, including up to 4 new "
        "ones; lower generation.max_new_tokens, or drop the record"
    )


# --- which answers ---


def test_the_last_answer_alone_and_turns_of_weight_0():
    collator = collating(words(), CHATML)
    given = example("What?", "Paris", "Is it?", "Yes", "What?", "is")
    assert learned(collator, collator.encode(given)) == [*["Paris", "<|im_end|>"], *["Yes", "<|im_end|>"],
                                                         *["is", "<|im_end|>"]]  # fmt: skip
    last = replace(given, loss_on=LossOn.LAST_ANSWER)
    assert learned(collator, collator.encode(last)) == ["is", "<|im_end|>"]
    turns = tuple(replace(turn, supervised=k != 3) for k, turn in enumerate(given.turns))
    some = replace(given, turns=turns)
    assert learned(collator, collator.encode(some)) == ["Paris", "<|im_end|>", "is", "<|im_end|>"]
    assert collator.encode(some).input_ids == collator.encode(given).input_ids
    everything = collator.encode(replace(given, loss_on=LossOn.EVERYTHING))
    assert everything.labels == everything.input_ids == collator.encode(given).input_ids


@pytest.mark.parametrize("loss_on", [LossOn.ANSWERS, LossOn.LAST_ANSWER])
def test_answers_that_are_all_of_weight_0_are_refused(loss_on):
    given = example("What?", "Paris", loss_on=loss_on)
    turns = tuple(replace(turn, supervised=False) for turn in given.turns)
    with pytest.raises(DataError) as error:
        collating(words(), CHATML).encode(replace(given, turns=turns))
    assert str(error.value) == f"file.jsonl:7: loss_on: {loss_on} leaves no token to learn; drop the record"


# --- refusals ---


@pytest.mark.parametrize(("token", "where"), [("<image>", 0), ("</s>", 1), ("<|im_end|>", 0), ("<s>", 1)])
def test_special_tokens_in_a_record_are_text(token, where):
    texts = ["What?", "Paris"]
    texts[where] += f" or {token}x"
    collator = collating(llava(byte_level(), CHATML))
    own = collator.tokenizer
    encoded = collator.encode(example(*texts))
    plain = [own(words, split_special_tokens=True, add_special_tokens=False).input_ids for words in texts]
    start, end, newline = (own.convert_tokens_to_ids(word) for word in ("<|im_start|>", "<|im_end|>", "Ċ"))
    asked, answered = ([*own(role + "\n", add_special_tokens=False).input_ids] for role in ("user", "assistant"))
    expected = [start, *asked, *plain[0], end, newline, start, *answered, *plain[1], end, newline]
    special = own.convert_tokens_to_ids(SPECIAL)
    assert own.decode(encoded.input_ids) == own.decode(expected)
    assert [one for one in encoded.input_ids if one in special] == [start, end, start, end]
    assert learned(collator, encoded)[-2:] == ["<|im_end|>", "Ċ"]
    assert own.decode([label for label in encoded.labels if label != IGNORED]) == f"{texts[1]}<|im_end|>\n"


def test_special_tokens_in_a_record_are_the_pieces_of_their_letters():
    collator = collating(byte_level(), CHATML)
    own = collator.tokenizer
    encoded = collator.encode(example("What?", "<s>old</s>"))
    letters = [own(piece, split_special_tokens=True, add_special_tokens=False).input_ids for piece in ("<s>", "</s>")]
    old = own("old", add_special_tokens=False).input_ids
    end, newline = own.convert_tokens_to_ids(["<|im_end|>", "Ċ"])
    assert [label for label in encoded.labels if label != IGNORED] == [*letters[0], *old, *letters[1], end, newline]
    batch = collator([example("What?", "<s>old</s>")])
    assert batch["input_ids"][0].tolist() == encoded.input_ids


def test_what_is_no_special_token_of_this_model_is_text():
    collator = collating(words(), CHATML)
    encoded = collator.encode(example("What <|endoftext|> is it?", "USER : Paris"))
    assert learned(collator, encoded) == ["USER", ":", "Paris", "<|im_end|>"]


def test_of_an_answer_without_tokens_its_end_is_supervised():
    collator = collating(words(drop="\u200b"), CHATML)
    for answer in ("\u200b\u200b", " \n"):
        assert learned(collator, collator.encode(example("What?", answer))) == ["<|im_end|>"]
    silent = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(DataError) as error:
        collating(words(drop="\u200b"), silent).encode(example("What?", "\u200b"))
    assert str(error.value) == "file.jsonl:7: loss_on: answers leaves no token to learn; drop the record"


def test_an_image_for_a_language_model_is_refused():
    with pytest.raises(DataError, match=r"the record has an image, but \w+ has no image token; use a vision-language"):
        collating(byte_level(), CHATML).encode(example("What?", "is", image=picture()))


def test_a_mixed_batch_is_refused():
    collator = collating(llava(byte_level()))
    with pytest.raises(
        DataError, match=r"mixes examples with an image \(file.jsonl:7\) and without one \(file.jsonl:7\)"
    ):
        collator([example("What?", "is", image=picture()), example("What?", "is")])
    rows = [collator.encode(example("What?", "is", image=shown)) for shown in (None, picture())]
    assert [row.has_image for row in rows] == [False, True]
    with pytest.raises(DataError, match="A batch mixes"):
        collator.collate(rows)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_mixed_batch_that_is_asked_for_gives_the_logits_of_its_rows_alone(padding):
    model, processor = mini.load_base()
    collator = collating(processor)
    pictured = mini.examples("name_ink", "heldout", 2, 3)
    plain = [example("What is the color of the word?", "red"), example("What is it?", "a circle")]
    rows = [collator.encode(one) for one in (plain[0], pictured[0], plain[1], pictured[1])]
    batch = collator.collate(rows, padding, mixed=True)
    assert batch["pixel_values"].shape[0] == 2 and batch["input_ids"].shape[0] == 4
    pixels = processor.image_processor(images=[open_image(one) for one in pictured], return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], pixels["pixel_values"])
    with torch.no_grad():
        places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        together = model(**batch, position_ids=places).logits
        for k, row in enumerate(rows):
            alone = model(**collator.collate([row])).logits[0]
            own = together[k][batch["attention_mask"][k].bool()]
            torch.testing.assert_close(own, alone, atol=1e-5, rtol=0)


def test_a_mixed_batch_of_one_kind_is_an_ordinary_one():
    collator = collating(llava(byte_level()))
    for shown in (None, picture()):
        rows = [collator.encode(example("What?", "is", image=shown))] * 2
        plain, mixed = collator.collate(rows), collator.collate(rows, mixed=True)
        assert set(mixed) == set(plain)
        torch.testing.assert_close(mixed, plain)


def test_an_empty_batch_is_refused():
    with pytest.raises(DataError, match="The batch is empty; give at least one"):
        collating(words())([])


def test_a_broken_image_is_named(tmp_path):
    picture(400, 400).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.png").write_text("no picture")
    collator = collating(llava(byte_level()))
    with pytest.raises(DataError, match=r"file.jsonl:7: the image .*b.png cannot be used"):
        collator.encode(example("What?", "is", image=tmp_path / "b.png"))
    with pytest.raises(DataError, match=r"file.jsonl:7: the image .*a.png cannot be used"):
        collator([example("What?", "is", image=tmp_path / "a.png")])


def test_a_generation_prompt_that_is_no_prefix_is_refused():
    collator = collating(words(), CHATML.replace("'<|im_start|>assistant\n'", "'ASSISTANT:'"))
    with pytest.raises(DataError, match=r"^file.jsonl:7: the chat template \(the test's\) has no generation markers"):
        collator.encode(example("What?", "is"))


def test_a_template_that_changes_or_refuses_the_conversation_is_told():
    shout = collating(words(), CHATML.replace("m['content']", "m['content'] | replace('is', 'was')"))
    with pytest.raises(DataError) as error:
        shout.encode(example("What?", "it is"))
    assert str(error.value) == (
        "file.jsonl:7: the chat template (the test's) drops or changes turn 2 (assistant): 'it is'; change the record, "
        "or give another model.chat_template"
    )
    deaf = collating(words(), "{% for m in messages if m['role'] != 'system' %}" + CHATML.split("%}", 1)[1])
    with pytest.raises(DataError, match=r"drops or changes turn 1 \(system\): 'Be brief\.'"):
        deaf.encode(example("What?", "is", system="Be brief."))
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with pytest.raises(DataError) as error:
        collating(words(), no_system).encode(example("What?", "is", system="Be brief."))
    assert str(error.value) == (
        "file.jsonl:7: the chat template (the test's) rejects this conversation: no system role; change its turns, or "
        "give another model.chat_template"
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: collating(words(), "nothing"), "does not render a user turn and an assistant turn; give another"),
        (lambda: collating(words(), "{% if %}"), r"does not render .* \(.+\); give another model.chat_template"),
        (
            lambda: collating(llava(byte_level()), "{{ messages[0]['content'] }}"),
            "with one <image> placeholder",
        ),
        (lambda: collating(words(), max_length=0), "max_length is 0; give a number of tokens above 0"),
        (
            lambda: collating(llava(byte_level(chat_template={"tool": "x"}))),
            "has the chat templates tool; set model.chat_template to the file of one",
        ),
    ],
)
def test_templates_and_settings_that_cannot_work_are_told_at_once(build, message):
    with pytest.raises(MixLoraError, match=message):
        build()


def test_a_text_that_could_not_end_is_refused():
    ended = collating(byte_level(eos_token=None), CHATML)
    assert learned(ended, ended.encode(example("What?", "is", "What?", "is")))[-2:] == ["<|im_end|>", "Ċ"]
    with pytest.raises(MixLoraError, match="the tokenizer has no eos_token, so a model cannot learn to stop; set"):
        ended.encode(example("What?", "is", form=Form.PLAIN))


def test_an_image_token_that_the_tokenizer_splits_is_refused():
    processor = llava(byte_level())
    processor.image_token = "<picture>"
    with pytest.raises(MixLoraError, match=r"splits the processor's image token '<picture>'; add it"):
        collating(processor)
