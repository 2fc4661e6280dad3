"""What reaches a batch of a model that sees is all that its processor gives, and tokens and labels are TRL's."""

import pytest
import torch
from trl.chat_template_utils import get_training_chat_template
from trl.data_utils import prepare_multimodal_messages

from mixlora.common.errors import DataError
from mixlora.common.labels import IGNORED
from mixlora.data.collation import Collator
from mixlora.data.examples import Example, Form, LossOn, Turn
from tests.support.seeing import KINDS, TEMPLATED, asked, paligemma_processor, speckled

FORMS = {name: Form.QUESTION if name == "paligemma" else Form.MESSAGES for name in KINDS}


def by_trl(processor, example: Example):
    """An example as TRL's collator for models that see gives it: what apply_chat_template returns."""
    plain = [{"role": turn.role, "content": turn.text} for turn in example.turns]
    return processor.apply_chat_template(
        prepare_multimodal_messages(plain, images=list(example.images)),
        chat_template=get_training_chat_template(processor) or processor.chat_template,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"add_special_tokens": False},
    )


def marked(found) -> list[int]:
    """The labels of a single row with a mask of its assistants' tokens."""
    ids, mask = found["input_ids"][0], torch.as_tensor(found["assistant_masks"])[0].bool()
    return ids.masked_fill(~mask, IGNORED).tolist()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", TEMPLATED)
def test_tokens_and_labels_are_trls(name, number):
    processor = KINDS[name].processor()
    example = asked(number)
    found, expected = Collator(processor).encode(example), by_trl(processor, example)
    assert found.input_ids == expected["input_ids"][0].tolist()
    assert found.labels == marked(expected)
    assert 0 < found.supervised < len(found.labels)


@pytest.mark.parametrize("name", TEMPLATED)
def test_turns_with_a_picture_each_are_trls(name):
    processor = KINDS[name].processor()
    turns = (*asked(0).turns, *asked(1).turns)
    example = Example("1", "t", turns, (speckled(0), speckled(1)), "f:1")
    found = Collator(processor)([example])
    pictured = [
        {"role": turn.role, "content": [*[{"type": "image", "image": image}] * bool(turn.places), words]}
        for turn, image in zip(turns, (speckled(0), None, speckled(1), None), strict=True)
        for words in [{"type": "text", "text": turn.text}]
    ]
    expected = processor.apply_chat_template(
        pictured,
        chat_template=get_training_chat_template(processor) or processor.chat_template,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"add_special_tokens": False},
    )
    assert found["labels"][0].tolist() == marked(expected)
    for key in found.keys() - {"labels"}:
        torch.testing.assert_close(found[key], expected[key], msg=key)


@pytest.mark.parametrize("name", KINDS)
def test_all_that_the_processor_gives_reaches_a_batch(name):
    processor = KINDS[name].processor()
    collator = Collator(processor)
    examples = [asked(number, FORMS[name]) for number in range(3)]
    batch = collator(examples)
    tokens = {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert set(batch) == tokens | KINDS[name].keys
    single = [alone(processor, example) for example in examples]
    for key in batch.keys() - {"labels"}:
        for row, one in enumerate(single):
            if batch[key].shape[:2] == batch["labels"].shape:
                kept = batch["attention_mask"][row].bool()
                assert batch[key][row, kept].tolist() == one[key][0].tolist(), key
                assert not batch[key][row, ~kept].any() or key == "input_ids"
    for key in KINDS[name].keys | {"pixel_values"}:
        if batch[key].shape[:2] != batch["labels"].shape:
            torch.testing.assert_close(batch[key], torch.cat([one[key] for one in single]), msg=key)


def alone(processor, example: Example):
    """What a processor gives of an example alone: by its chat template, or as PaliGemma's takes prompt and answer."""
    if example.form is Form.MESSAGES:
        return by_trl(processor, example)
    prompt, answer = (turn.text for turn in example.turns)
    images = list(example.images)
    return processor(text=[f"<image>{prompt}"], images=[images], suffix=[answer], return_tensors="pt")


@pytest.mark.parametrize("form", [Form.QUESTION, Form.PLAIN])
def test_paligemmas_prompt_and_answer_are_its_processors_own(form):
    processor = paligemma_processor()
    example = asked(1, form)
    batch, expected = Collator(processor)([example]), alone(processor, example)
    for key, value in expected.items():
        torch.testing.assert_close(batch[key], torch.as_tensor(value), msg=key)
    supervised = batch["labels"][0][batch["labels"][0] != IGNORED]
    assert processor.tokenizer.decode(supervised) == "is</s>"
    assert batch["token_type_ids"][0].tolist() == (batch["labels"][0] != IGNORED).long().tolist()


def test_paligemmas_prompt_for_an_answer_is_its_processors_own():
    processor = paligemma_processor()
    collator = Collator(processor)
    asks = [collator.encode_prompt(asked(number, Form.QUESTION)) for number in (0, 1)]
    batch = collator.collate(asks, padding="left")
    for row, number in enumerate((0, 1)):
        example = asked(number)
        text = [f"<image>{example.turns[0].text}"]
        expected = processor(text=text, images=[list(example.images)], return_tensors="pt")
        kept = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row, kept].tolist() == expected["input_ids"][0].tolist()
        assert not batch["token_type_ids"][row].any()


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (asked(0), "f:0: the record holds messages, but PaliGemmaProcessor takes one prompt and its answer; give"),
        (
            asked(0, Form.QUESTION, loss_on=LossOn.EVERYTHING),
            "f:0: loss_on is everything, but PaliGemmaProcessor supervises only the answer",
        ),
        (
            Example("1", "t", (Turn("user", "Q"), Turn("assistant", "A")), (), "f:1", form=Form.PLAIN),
            "f:1: the record has no image, but PaliGemmaProcessor needs one",
        ),
        (
            Example(
                *("1", "t", (Turn("user", "Q", (0,)), Turn("assistant", "</s>A")), (speckled(0),), "f:1"),
                form=Form.QUESTION,
            ),
            "f:1: the record contains a special token of the model, which PaliGemmaProcessor cannot read as text; "
            "remove",
        ),
    ],
)
def test_what_paligemma_cannot_take_is_refused(example, words):
    with pytest.raises(DataError) as error:
        Collator(paligemma_processor()).encode(example)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_rows_are_cut_with_their_tokens(name):
    processor = KINDS[name].processor()
    example = asked(0, FORMS[name])
    whole = Collator(processor)([example])
    length = whole["labels"].shape[1] - 2
    batch = Collator(processor, max_length=length)([example])
    for key in ("input_ids", "labels", "token_type_ids", "attention_mask"):
        assert batch[key].tolist() == whole[key][:, :length].tolist()


@pytest.mark.parametrize("name", TEMPLATED)
def test_a_placeholder_in_a_record_is_text(name):
    processor = KINDS[name].processor()
    collator = Collator(processor)
    turns = (Turn("user", f"What is {processor.image_token}?", (0,)), Turn("assistant", "Paris"))
    plain = collator([asked(0)])
    example = Example("1", "t", turns, asked(0).images, "f:1")
    if name == "idefics3":  # it counts placeholders itself, those of the record too
        with pytest.raises(
            DataError, match=r"^f:1: the record's text contains <image>, which Idefics3Processor cannot read"
        ):
            collator.encode(example)
        return
    batch = collator([example])
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert (batch["input_ids"] == image).sum() == (plain["input_ids"] == image).sum()
    assert f"What is {processor.image_token}?" in processor.tokenizer.decode(batch["input_ids"][0])
