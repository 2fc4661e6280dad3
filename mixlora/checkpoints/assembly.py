"""Assembly: one Hugging Face LLaVA from a language model, a CLIP vision tower and LLaVA v1's projector.

The paper's base was published only as these three parts. Not here: converting the published projector (`conversion`).
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)
from transformers.utils import logging

from mixlora.checkpoints import formats
from mixlora.checkpoints.conversion import import_checkpoint
from mixlora.checkpoints.loading import LOAD_ERRORS, first_words
from mixlora.checkpoints.projector import load_projector
from mixlora.common.directories import is_occupied
from mixlora.common.errors import CheckpointError, ConfigError, unwritable
from mixlora.common.writing import whole_directory
from mixlora.data.templates import LLAVA_V1_TEXT

DTYPES = ("auto", "float32", "bfloat16", "float16")
_ACTIVATION = "projector_hidden_act"
_PARTS = (
    "{% set content %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ IMAGE }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% endset %}"
)


def assemble(
    language: Path | str,
    vision: Path | str,
    out: Path | str,
    projector: Path | str | None = None,
    *,
    image_token: str = "<image>",
    feature_layer: int = -2,
    dtype: str = "auto",
    seed: int = 0,
) -> Path:
    """Write a LlavaForConditionalGeneration and its processor; the directory.

    The language model keeps its weights and its logits. The image token is added to its vocabulary if it has none; the
    new row of the embedding and of the head is the mean of the others, so that the token is at most as probable as an
    average one. A picture's features are one hidden layer of the tower, without the class token. A tokenizer without
    a padding token pads with its unk token, as LLaVA v1 did, or else with eos.

    Args:
        language: path or hub id of a LLaMA-type causal language model with a fast tokenizer.
        vision: path or hub id of a CLIP model, whole or its vision tower alone, with its image processor.
        out: a new directory.
        projector: `mm_projector.bin`, or what `conversion.import_checkpoint` made of it; None initialises LLaVA 1.5's
            two layers (normal, the language model's initializer_range), and warns.
        image_token: the placeholder of a picture in a text.
        feature_layer: the tower's layer whose output is used: from 1, or from -1 for the last.
        dtype: dtype of all weights; "auto" is the language model's own.
        seed: seed of a new projector.

    Raises:
        CheckpointError: if a part is missing or of another kind, parts do not fit, or `out` is not empty.
        ConfigError: if `dtype`, `image_token` or `feature_layer` is not allowed.
    """
    out = Path(out)
    if is_occupied(out):
        raise CheckpointError(f"{out} is not empty; name a new directory")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    tokenizer = _tokenizer(language, image_token)
    with _quiet():
        text = _language_model(language, dtype)
        tower = _vision_tower(vision, text.dtype, feature_layer)
    pictures = _image_processor(vision, tower.config)
    with TemporaryDirectory() as folder:
        converted = _converted(projector, Path(folder) / "projector")
        model = _composed(text, tower, tokenizer, image_token, feature_layer, _activation(converted))
        _put_projector(model, converted, seed, f"{projector} does not fit {language} and {vision}")
    _check_same_logits(model, text, language)
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy "default" removes
        image_token=image_token,
        chat_template=chat_template(image_token),
    )
    _write(out, model, processor)
    return out


def chat_template(image_token: str) -> str:
    """LLaVA v1's conversation with its BOS, for messages of text and of parts (text and one image before it)."""
    parts = _PARTS.replace("IMAGE", json.dumps(f"{image_token}\n"))
    start = "{% for message in messages %}"
    return "{{ bos_token }}" + LLAVA_V1_TEXT.replace("message['content']", "content").replace(start, start + parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' report of a CLIP's unused text tower, and its progress bars."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _config(name: Path | str, what: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(str(name), trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"no {what} can be read from {name}: {first_words(error)}") from None


def _tokenizer(language: Path | str, image_token: str) -> Any:
    """The language model's tokenizer with the image token and a padding token."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(language), trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"no tokenizer can be loaded from {language}: {first_words(error)}") from None
    if not tokenizer.is_fast:
        raise CheckpointError(f"the tokenizer of {language} has no fast form; give one with a tokenizer.json")
    taken = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token}
    if not image_token.strip() or image_token in taken:
        raise ConfigError(f"image_token is {image_token!r}; it must be a token of its own, such as '<image>'")
    tokenizer.add_tokens([AddedToken(image_token, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _language_model(name: Path | str, dtype: str) -> Any:
    """A causal language model; its checkpoint has every weight."""
    config = _config(name, "language model")
    if getattr(config, "vision_config", None) is not None:
        raise CheckpointError(
            f"{name} is a {config.model_type} and already has a vision tower; give a language model without one"
        )
    kind: Any = AutoModelForCausalLM
    try:
        model, report = kind.from_pretrained(str(name), dtype=dtype, trust_remote_code=False, output_loading_info=True)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{name} cannot be loaded as a causal language model: {first_words(error)}") from None
    _check_whole(name, report)
    return model.eval()


def _vision_tower(name: Path | str, dtype: torch.dtype, feature_layer: int) -> Any:
    """A CLIP vision tower; its checkpoint has every weight."""
    config: Any = _config(name, "vision model")
    if config.model_type not in ("clip", "clip_vision_model"):
        raise CheckpointError(f"{name} is a {config.model_type}, not a CLIP; give a CLIP or its vision tower")
    depth = getattr(config, "vision_config", config).num_hidden_layers
    if not 1 <= abs(feature_layer) <= depth:
        raise ConfigError(
            f"feature_layer is {feature_layer}, but {name} has the layers 1 to {depth}, or -{depth} to -1 from its end"
        )
    kind: Any = CLIPVisionModel
    try:
        tower, report = kind.from_pretrained(str(name), dtype=dtype, output_loading_info=True)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"the vision tower of {name} cannot be loaded: {first_words(error)}") from None
    _check_whole(name, report)
    return tower.eval()


def _check_whole(name: Path | str, report: dict[str, Any]) -> None:
    """Refuse a model with weights that its checkpoint does not have."""
    if absent := sorted(report["missing_keys"]):
        raise CheckpointError(f"{name} lacks {absent[0]} ({len(absent)} weights are missing); fetch it again")


def _image_processor(name: Path | str, config: Any) -> Any:
    """The tower's image processor, whose pictures must have the size that the tower expects."""
    try:
        processor: Any = AutoImageProcessor.from_pretrained(str(name), trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"no image processor can be loaded from {name}: {first_words(error)}") from None
    blank = torch.zeros(3, config.image_size + 2, config.image_size, dtype=torch.uint8)
    found = tuple(processor(images=[blank.numpy()], return_tensors="pt")["pixel_values"].shape[1:])
    if found != (wanted := (config.num_channels, config.image_size, config.image_size)):
        raise CheckpointError(
            f"the image processor of {name} makes pictures of {found}, but its tower expects {wanted}"
        )
    return processor


def _converted(projector: Path | str | None, folder: Path) -> Path | None:
    """The file of a projector for a Hugging Face LLaVA; a published one is converted into `folder`."""
    if projector is None:
        return None
    path = Path(projector)
    kind = formats.recognise(path)
    if kind is formats.Kind.PROJECTOR:
        import_checkpoint(path, folder)
        return folder / formats.CONVERTED
    if kind is formats.Kind.CONVERTED:
        return path / formats.CONVERTED if path.is_dir() else path
    raise CheckpointError(f"{projector} is a {kind}; give {formats.PROJECTOR} or {formats.CONVERTED}")


def _activation(converted: Path | None) -> str:
    """The activation between the projector's Linears: LLaVA 1.5's GELU if the projector is new."""
    if converted is None:
        return "gelu"
    try:
        with safe_open(converted, "pt") as file:
            found = (file.metadata() or {}).get(_ACTIVATION, "gelu")  # without one, load_projector refuses the file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{converted} cannot be read: {first_words(error)}") from None
    return str(found)


def _composed(
    text: Any, tower: Any, tokenizer: Any, image_token: str, feature_layer: int, activation: str
) -> LlavaForConditionalGeneration:
    """A LLaVA that contains the given models, which are not copied; its projector is not initialised."""
    _grow(text, len(tokenizer))
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(image_token),
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        projector_hidden_act=activation,
        vision_feature_select_strategy="default",
        vision_feature_layer=feature_layer,
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model, model.model.vision_tower = text.base_model, tower
    model.lm_head = text.get_output_embeddings()
    model.model.multi_modal_projector.to_empty(device="cpu").to(text.dtype)
    model.generation_config = GenerationConfig(  # without a chat model's sampling settings
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


def _grow(text: Any, tokens: int) -> None:
    """Resize embeddings and head to the number of tokens; new rows are the mean of the others."""
    known = text.get_input_embeddings().num_embeddings
    if tokens <= known:
        return
    text.resize_token_embeddings(tokens, mean_resizing=False)
    weights = {id(part.weight): part.weight for part in (text.get_input_embeddings(), text.get_output_embeddings())}
    with torch.no_grad():
        for weight in weights.values():  # one, where the two are tied
            weight[known:] = weight[:known].float().mean(0).to(weight.dtype)


def _put_projector(model: LlavaForConditionalGeneration, converted: Path | None, seed: int, misfit: str) -> None:
    layers: nn.Module = model.model.multi_modal_projector
    if converted is not None:
        try:
            load_projector(model, converted)
        except CheckpointError as error:
            raise CheckpointError(f"{misfit}: {error}") from None
        return
    warnings.warn("no projector was given: its weights are new, and the model cannot see yet", stacklevel=3)
    generator = torch.Generator().manual_seed(seed)
    text: Any = model.config.text_config
    with torch.no_grad():
        for name, weight in layers.named_parameters():
            values = torch.zeros(weight.shape)
            weight.copy_(
                values if name.endswith("bias") else values.normal_(0, text.initializer_range, generator=generator)
            )


def _check_same_logits(model: LlavaForConditionalGeneration, text: Any, name: Path | str) -> None:
    """Refuse a language model whose head is more than a Linear: LLaVA would compute other logits."""
    ids = torch.arange(4)[None]
    with torch.no_grad():
        own: Tensor = text(input_ids=ids).logits
        made: Tensor = model(input_ids=ids).logits
    if not torch.equal(own, made):
        raise CheckpointError(
            f"{name} is a {text.config.model_type}, whose logits a LLaVA does not compute; give a LLaMA-type model"
        )


def _write(out: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    try:
        with whole_directory(out.resolve()) as folder:
            with _quiet():
                model.save_pretrained(folder)
            processor.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise unwritable(f"{out} cannot be written", error, CheckpointError, "directory", "start again") from None
