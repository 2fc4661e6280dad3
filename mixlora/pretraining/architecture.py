"""The small LLaVA of the suite: its architecture and its tokenizer, both of transformers' own classes.

About 1.6 million parameters: a CLIP vision tower that sees a picture as 36 patches, a projector and a Llama.
"""

from typing import TYPE_CHECKING

from mixlora.data.mini.draw import SIZE

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

PATCH = 8
WIDTH = 128
LAYERS = 4
PAPER, CONTRAST = 0.93, 0.25
"""Mean and deviation for normalising pixels in [0, 1]: the light page becomes zero, so that ink stands out."""
HEADS = 4

SPECIAL = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>", "image": "<image>"}

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content %}"
    "{% if message.role == 'user' %}{{ 'USER: ' }}"
    "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% for part in parts if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in parts if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{{ eos_token if message.role == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{{ 'ASSISTANT:' if add_generation_prompt }}"
)
"""LLaVA v1's form of a conversation: "USER: <image>\\nquestion ASSISTANT: answer</s>"."""


def tokenizer(texts: list[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer in which every word of the texts is one token; other words are split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word.strip(".,?!;:") for text in texts for word in text.split()})
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL.values()],
        show_progress=False,
    )
    core.train_from_iterator([f" {word}" for word in words] + ["USER:", " ASSISTANT:", *texts], trainer)
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL["bos"],
        eos_token=SPECIAL["eos"],
        unk_token=SPECIAL["unk"],
        pad_token=SPECIAL["pad"],
        extra_special_tokens={"image_token": SPECIAL["image"]},
        padding_side="right",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def processor(words: "PreTrainedTokenizerFast") -> "LlavaProcessor":
    """Pictures and conversations to tensors: one image token for each patch."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    eye = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[PAPER] * 3,
        image_std=[CONTRAST] * 3,
    )
    return LlavaProcessor(
        image_processor=eye,
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=SPECIAL["image"],
        chat_template=CHAT_TEMPLATE,
    )


def config(words: "PreTrainedTokenizerFast") -> "LlavaConfig":
    """The model's configuration, for that tokenizer's vocabulary."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    eye = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    mouth = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return LlavaConfig(
        vision_config=eye,
        text_config=mouth,
        image_token_index=words.get_vocab()[SPECIAL["image"]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIZE // PATCH) ** 2,
        tie_word_embeddings=True,
    )


def newborn(words: "PreTrainedTokenizerFast", seed: int) -> "LlavaForConditionalGeneration":
    """The model with seeded random weights."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config(words))
