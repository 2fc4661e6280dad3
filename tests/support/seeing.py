"""Processors and tiny models of the kinds that see: Gemma 3, Qwen2.5-VL, Idefics 3, LLaVA-NeXT and PaliGemma."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mixlora.data.examples import Example, Form, Turn
from mixlora.data.templates import known_to_trl
from tests.support.small_processors import byte_level, picture

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "initializer_range": 0.2}
VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


class Kind(NamedTuple):
    """A processor, a tiny model, and what the processor gives beside tokens, mask and pixels."""

    processor: Callable[[], Any]
    model: Callable[[Any], torch.nn.Module]
    keys: set[str]


class _Videos:
    """Stands in for a video processor, which needs torchvision; it is never called."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")


class QwenWithoutVideos(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor, which takes the stand-in."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Let the stand-in pass."""
        return (
            type(argument)
            if isinstance(argument, _Videos)
            else super().check_argument_for_proper_class(argument_name, argument)
        )


def tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer with special tokens, some of them named."""
    made = byte_level()
    known = [AddedToken(token, special=True, normalized=False) for token in special]
    made.add_special_tokens({"additional_special_tokens": known})
    if named:
        made._set_model_specific_special_tokens(named)
    return made


def gemma3_processor() -> Gemma3Processor:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    made = tokenizer(*names.values(), "<start_of_turn>", "<end_of_turn>", **names)
    pictures = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return Gemma3Processor(pictures, made, chat_template=known_to_trl()["gemma3"], image_seq_length=4)


def qwen_processor() -> Qwen2_5_VLProcessor:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    sizes = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    pictures = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, size=sizes)
    template = known_to_trl()["qwen2_5_vl"]
    return QwenWithoutVideos(pictures, tokenizer(*special), video_processor=_Videos(), chat_template=template)


def idefics_processor() -> Idefics3Processor:
    special = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<|im_start|>"]
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    template = known_to_trl()["idefics3"]
    return Idefics3Processor(pictures, tokenizer(*special), image_seq_len=4, chat_template=template)


def next_processor() -> LlavaNextProcessor:
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )
    return LlavaNextProcessor(
        pictures,
        tokenizer("<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=known_to_trl()["llava_next"],
    )


def paligemma_processor() -> PaliGemmaProcessor:
    pictures = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pictures.image_seq_length = 4
    return PaliGemmaProcessor(pictures, tokenizer("<image>"))


def _id(processor: Any, token: str) -> int:
    return int(processor.tokenizer.convert_tokens_to_ids(token))


def gemma3_model(processor: Any) -> Gemma3ForConditionalGeneration:
    text = Gemma3TextConfig(vocab_size=len(processor.tokenizer), head_dim=8, sliding_window=16, **TEXT)
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4,
        image_token_index=_id(processor, "<image_soft_token>"),
        boi_token_index=_id(processor, "<start_of_image>"),
        eoi_token_index=_id(processor, "<end_of_image>"),
        initializer_range=0.2,
    )
    made = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(made.model.multi_modal_projector.mm_input_projection_weight, std=0.3)  # otherwise zero
    return made


def qwen_model(processor: Any) -> Qwen2_5_VLForConditionalGeneration:
    ids = {f"{name}_id": _id(processor, f"<|{name.removesuffix('_token')}|>") for name in ("vision_start_token",)}
    ids |= {"image_token_id": _id(processor, "<|image_pad|>"), "video_token_id": _id(processor, "<|video_pad|>")}
    ids |= {"vision_end_token_id": _id(processor, "<|vision_end|>")}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 14, "fullatt_block_indexes": [0], "window_size": 56}
    text = {**TEXT, "vocab_size": len(processor.tokenizer), "rope_parameters": rope}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def idefics_model(processor: Any) -> Idefics3ForConditionalGeneration:
    text = LlamaConfig(vocab_size=len(processor.tokenizer), pad_token_id=0, **TEXT)
    vision = {**VISION, "patch_size": 7}
    config = Idefics3Config(
        text_config=text, vision_config=vision, image_token_id=_id(processor, "<image>"), scale_factor=2, pad_token_id=0
    )
    return Idefics3ForConditionalGeneration(config)


def next_model(processor: Any) -> LlavaNextForConditionalGeneration:
    text = LlamaConfig(vocab_size=len(processor.tokenizer), **TEXT)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_index=_id(processor, "<image>"),
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
        vision_feature_layer=-1,
    )
    return LlavaNextForConditionalGeneration(config)


def paligemma_model(processor: Any) -> PaliGemmaForConditionalGeneration:
    text = GemmaConfig(vocab_size=len(processor.tokenizer), head_dim=8, **TEXT)
    vision = SiglipVisionConfig(**VISION, projection_dim=32)
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=_id(processor, "<image>"), projection_dim=32
    )
    return PaliGemmaForConditionalGeneration(config)


KINDS = {
    "gemma3": Kind(gemma3_processor, gemma3_model, {"token_type_ids"}),
    "qwen2_5_vl": Kind(qwen_processor, qwen_model, {"image_grid_thw", "mm_token_type_ids"}),
    "idefics3": Kind(idefics_processor, idefics_model, {"pixel_attention_mask"}),
    "llava_next": Kind(next_processor, next_model, {"image_sizes"}),
    "paligemma": Kind(paligemma_processor, paligemma_model, {"token_type_ids"}),
}
TEMPLATED = [name for name in KINDS if name != "paligemma"]


def model_of(name: str, processor: Any) -> torch.nn.Module:
    """A tiny model with random weights of a kind, in evaluation mode."""
    torch.manual_seed(0)
    return KINDS[name].model(processor).eval()


def asked(number: int, form: Form = Form.MESSAGES, **more: Any) -> Example:
    """A question of its own length about a picture of its own size and colours, with its answer."""
    question = ("What?", "What is shown?", "What is the user's question?")[number % 3]
    answer = ("Paris is shown.", "is", "A curious user")[number % 3]
    turns = (Turn("user", question, (0,)), Turn("assistant", answer))
    return Example(str(number), "t", turns, (speckled(number),), f"f:{number}", form=form, **more)


def speckled(number: int) -> Image.Image:
    """A picture whose halves differ."""
    made = picture(60 + 30 * (number % 2), 50)
    made.paste((10, 20 + 60 * (number % 3), 90), (0, 0, 30, 50))
    return made
