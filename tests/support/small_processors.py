"""Small tokenizers and processors of real classes, and conversations for them."""

import re
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mixlora.common.labels import IGNORED
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example, Turn, pictures_first
from mixlora.data.templates import ChatTemplate, llava_v1, own_template, template_of

_THOUGHT = ("<think>", "</think>")
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
COLOURS = ["what", "is", "the", "colour", "of", "a", "red", "blue", "green", "ball", "cube", "cone", "this", "thing"]
LLAVA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def example(*texts: str, system: str | None = None, image: Path | Image.Image | None = None, **more) -> Example:
    turns = [Turn("user" if k % 2 == 0 else "assistant", text) for k, text in enumerate(texts)]
    first = [Turn("system", system)] if system is not None else []
    images = () if image is None else (image,)
    return Example("7", "t", pictures_first((*first, *turns), len(images)), images, "file.jsonl:7", **more)


def written_by(processor, text: str | None) -> ChatTemplate:
    """A chat template for a processor."""
    return template_of(processor, text, "the test's")


def collating(processor, template: str | None = None, max_length: int | None = None) -> Collator:
    """A collator of a template; of LLaVA v1's where none is named and the processor has none."""
    if template is None and own_template(processor) is None:
        return Collator(processor, max_length, llava_v1(processor))
    return Collator(processor, max_length, written_by(processor, template) if template else None)


def templated(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template, to which all that looks like a special token in it is one."""
    tokenizer = byte_level()
    named = sorted(set(re.findall(r"<[|｜/]?[\w▁|｜/ ]{2,40}[|｜]?>|\[/?[A-Z_]{3,}\]", template)))
    special = [AddedToken(name, special=name not in _THOUGHT, normalized=False) for name in named]
    tokenizer.add_tokens([token for token in special if not token.special])
    tokenizer.add_special_tokens({"additional_special_tokens": [token for token in special if token.special]})
    tokenizer.chat_template = template
    return tokenizer


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


def spaced() -> PreTrainedTokenizerFast:
    """One token a word, split at spaces alone; few enough for the tiny models."""
    known = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *COLOURS])}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


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
