"""Loading base models, their processors and PEFT adapters from disk or hub; every weight must find its place."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file, logging

from mixlora.checkpoints.patterns import check_patterns
from mixlora.checkpoints.projector import PROJECTOR_MODULE, load_projector
from mixlora.common.errors import CheckpointError, ConfigError, ToolError
from mixlora.common.files import exists, is_folder, read_json
from mixlora.common.sections import MINI, SPLIT, BaseSection
from mixlora.tuner.model import register

register()

_NOT_EXECUTED = "nothing of it is executed; ask for them as safetensors, or fetch them again if they are damaged"

LOAD_ERRORS = (Exception,)
"""Errors of loading untrusted files: transformers, peft, torch and tokenizers raise errors of every kind."""


def load_processor(section: BaseSection, place: str | None = None) -> Any:
    """The tokenizer of a language model, or the processor of a vision-language model.

    Args:
        section: the base.
        place: path or hub id that it is loaded from; None for the base's. Where that has a tokenizer alone, the rest of
            a processor is the base's.

    Raises:
        CheckpointError: if there is none.
    """
    base = place or base_of(section)
    sees, options = _sees(own_config(section)), {"trust_remote_code": section.trust_remote_code}
    try:
        if not sees:
            return AutoTokenizer.from_pretrained(base, **options)
        if place is None or _has_processor(place):
            return AutoProcessor.from_pretrained(base, **options)
        processor = AutoProcessor.from_pretrained(base_of(section), **options)
        processor.tokenizer = AutoTokenizer.from_pretrained(base, **options)
        processor.chat_template = processor.tokenizer.chat_template or processor.chat_template
        return processor
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"no tokenizer or processor can be loaded from {base}; copy those of its base into it "
            f"({first_words(error)})"
        ) from None


def _has_processor(place: str) -> bool:
    """Whether a path or hub id has a processor's files beside a tokenizer's."""
    for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME):
        if cached_file(place, name, _raise_exceptions_for_missing_entries=False):
            return True
    return False


def is_llava_v1(section: BaseSection) -> bool:
    """Whether the base is of the architecture of LLaVA v1."""
    return bool(own_config(section).model_type == "llava")


def image_aspect_ratio(section: BaseSection) -> str | None:
    """What the base's configuration says of how pictures become squares; None where it says nothing."""
    return getattr(own_config(section), "image_aspect_ratio", None)


def load_base(section: BaseSection, device: torch.device | None = None) -> Any:
    """The base model with the section's projector, in evaluation mode.

    Args:
        section: the base.
        device: in place of the section's device.

    Raises:
        CheckpointError: if it is missing or cannot be loaded.
    """
    base, split = base_of(section), device is None and section.device == SPLIT
    device = device or device_of(section.device)
    options: dict[str, Any] = {"device_map": "auto"} if split else {}
    own = own_config(section)
    kind = _auto_class(own)
    try:
        if section.quantization is not None:
            known = _quantization(section, own)
            options = {"quantization_config": known, "device_map": "auto" if split else {"": device}}
        with without_bars():
            model = kind.from_pretrained(
                base,
                dtype=section.dtype,
                attn_implementation=section.attention,
                trust_remote_code=section.trust_remote_code,
                **options,
            )
    except UnpicklingError:
        raise CheckpointError(f"the weights of {base} contain objects other than tensors; {_NOT_EXECUTED}") from None
    except LOAD_ERRORS as error:
        raise CheckpointError(f"the base model {base} cannot be loaded: {first_words(error)}") from None
    refuse_offloaded(model)
    _compute_as_asked(model)
    if section.projector is not None:
        load_projector(model, Path(section.projector))
    return (model if options else model.to(device)).eval()


def refuse_offloaded(model: nn.Module) -> None:
    """Check that all weights of a model are in memory.

    Raises:
        CheckpointError: accelerate has offloaded some, for example because the GPUs cannot hold all.
    """
    away = [parameter.is_meta for parameter in model.parameters()]
    if any(away):
        raise CheckpointError(
            f"{sum(away)} of the model's {len(away)} weights are offloaded to the CPU or a disk; load it smaller "
            "(quantization: 4bit or 8bit, dtype: bfloat16), or onto more GPUs"
        )


def load_adapted(section: BaseSection, adapter: str) -> PeftModel:
    """The base model with an adapter, in evaluation mode.

    Raises:
        CheckpointError: if the base or the adapter is missing, or they do not fit each other.
    """
    config = adapter_config(adapter)
    return adapt(load_base(section), section, adapter, config)


def adapt(model: nn.Module, section: BaseSection, adapter: str, config: PeftConfig) -> PeftModel:
    """A loaded base with an adapter, every weight of which has found its place.

    Args:
        model: the base.
        section: the base's section.
        adapter: path or hub id.
        config: the adapter's own, from `adapter_config`, which refuses unsafe ones.

    Raises:
        CheckpointError: if they do not fit each other.
    """
    misfit = _misfit(section, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing keys are an error below, and lora_bias has vectors
            check_patterns(config, model, _slow)
            saved = _saved(adapter)
            # PEFT would read the weights onto a GPU that it finds, whatever the model's device
            adapted = PeftModel.from_pretrained(model, adapter, config=config, torch_device="cpu")
            expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            optional = get_peft_model_state_dict(adapted, save_embedding_layers=True)  # saved if LoRA adapts embeddings
    except ToolError as error:
        own = isinstance(error, CheckpointError)  # it names the adapter
        raise CheckpointError(str(error) if own else f"{adapter} on {section.base}: {error}") from None
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{misfit}: {first_words(error)}") from None
    for name in sorted(expected.keys() - saved.keys()):
        raise CheckpointError(f"{misfit}: it has no weights for {name}")
    for name in sorted(saved.keys() - expected.keys() - optional.keys()):
        raise CheckpointError(f"{misfit}: the base has no place for {name}")
    _check_numbers(adapter, saved, {**optional, **expected})
    return adapted.eval()


def empty_adapted(section: BaseSection, adapter: str) -> PeftModel:
    """The base model with an adapter, both with untrained weights, on the default device.

    Raises:
        CheckpointError: if the base or the adapter is missing, or they do not fit each other.
    """
    own, config = own_config(section), adapter_config(adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' deprecations
            base = _auto_class(own).from_config(own, trust_remote_code=section.trust_remote_code)
            check_patterns(config, base, _slow)
            return get_peft_model(base, config)
    except ToolError as error:
        raise CheckpointError(f"{adapter} on {section.base}: {error}") from None
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{_misfit(section, adapter)}: {first_words(error)}") from None


def adapter_config(adapter: str) -> PeftConfig:
    """An adapter's own configuration.

    Raises:
        CheckpointError: if there is no adapter, or PEFT would import code for it.
    """
    _refuse_specials(Path(adapter))
    if is_folder(Path(adapter)) and not exists(Path(adapter) / ADAPTER_CONFIG):  # PEFT would ask the hub for it
        raise CheckpointError(
            f"there is no PEFT adapter at {adapter} (no {ADAPTER_CONFIG} can be read: the directory has none)"
        )
    try:
        if exists(Path(adapter) / ADAPTER_CONFIG):
            read_json(Path(adapter) / ADAPTER_CONFIG)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # keys of a newer PEFT, which it ignores
            found = PeftConfig.from_pretrained(adapter)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"there is no PEFT adapter at {adapter} (no {ADAPTER_CONFIG} can be read: {first_words(error)})"
        ) from None
    if getattr(found, "megatron_config", None):  # PEFT would import whatever module `megatron_core` names
        raise CheckpointError(f"the adapter at {adapter} asks PEFT to import megatron_core; remove it")
    return found


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" and "split" are a GPU if there is one.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if name.partition(":")[0] == "meta":
        raise CheckpointError(f"device {name!r} stores only shapes, no numbers; use cpu or cuda")
    try:
        return torch.empty(0, device=kind_of(name) if name in ("auto", SPLIT) else name).device
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {name!r} cannot be used: {first_words(error)}") from None


def kind_of(name: str) -> str:
    """The type of that device, "cpu" or "cuda", without using it: processes may not have their own GPU yet."""
    if name in ("auto", SPLIT):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]


def base_of(section: BaseSection) -> str:
    """Path or hub id of the base."""
    if section.base != MINI:
        return section.base
    from mixlora.data import mini

    return str(mini.base_path())


def first_words(error: BaseException) -> str:
    """The first informative line of an error: the first size mismatch, or the first line with the list after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    chosen = next((line for line in lines if line.startswith("size mismatch")), lines[0])
    if chosen.endswith(":"):
        chosen = " ".join(lines[lines.index(chosen) :])
    return chosen.rstrip(".:") if len(chosen) <= 300 else f"{chosen[:300]}…"


def _slow(what: str) -> ToolError:
    """The error for an adapter whose patterns take too long."""
    return ConfigError(f"{what}; write names of modules into its {ADAPTER_CONFIG}")


def _refuse_specials(folder: Path) -> None:
    """Refuse pipes and devices in place of an adapter's files: reading them might never end."""
    for path in (folder / name for name in (ADAPTER_CONFIG, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        if exists(path) and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file; replace it by one")


def _quantization(section: BaseSection, own: PreTrainedConfig) -> BitsAndBytesConfig:
    left = _left_whole(section, own)
    if section.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left)
    compute = torch.float32 if section.dtype == "auto" else getattr(torch, section.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=left,  # also for 4 bits
    )


def _compute_as_asked(model: nn.Module) -> None:
    """Switch off bitsandbytes' 4-bit kernel for CPUs with AVX512-BF16.

    It computes in bfloat16 even if the section asks for float32, and fails on inputs that are no multiple of 64.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no attribute of every Module


def _left_whole(section: BaseSection, own: PreTrainedConfig) -> list[str] | None:
    """Paths of the modules that are not quantized; None for transformers' default.

    A projector stays whole, because it is trained and takes values of a file. If modules are named, the output layer,
    which transformers skips by default, has to be among them.
    """
    if not _sees(own):
        return None
    with torch.device("meta"):
        model = _auto_class(own).from_config(own, trust_remote_code=section.trust_remote_code)
    head = model.get_output_embeddings()
    named = model.named_modules()
    return [name for name, module in named if module is head or name.rpartition(".")[2] == PROJECTOR_MODULE]


def _saved(adapter: str) -> dict[str, Tensor]:
    """The weights of an adapter as they were saved.

    Raises:
        CheckpointError: if they cannot be read.
    """
    try:
        return load_peft_weights(adapter, device="cpu")
    except UnpicklingError:
        raise CheckpointError(f"the weights of {adapter} contain objects other than tensors; {_NOT_EXECUTED}") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"the weights of the adapter at {adapter} are damaged: {first_words(error)}; fetch or write them again"
        ) from None


def _check_numbers(adapter: str, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError if a weight is of another kind than the model's, or not finite."""
    for name, values in saved.items():
        if not expected[name].is_floating_point():
            continue
        if not values.is_floating_point():
            kind = str(values.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"the adapter at {adapter} has {kind} values in {name}, but its weights must be floating-point; "
                "write it again from the model that was trained"
            )
        if not bool(values.float().isfinite().all()):
            raise CheckpointError(
                f"the adapter at {adapter} has numbers in {name} that are not finite; its training diverged, or the "
                "file is damaged"
            )


def _misfit(section: BaseSection, adapter: str) -> str:
    return f"the adapter at {adapter} does not fit the base {section.base}"


def own_config(section: BaseSection) -> PreTrainedConfig:
    """The base's configuration.

    Raises:
        CheckpointError: there is none that can be read.
    """
    base = base_of(section)
    logging.set_verbosity_error()
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=section.trust_remote_code)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"there is no base model {base} (neither a directory with config.json nor a hub id): {first_words(error)}"
        ) from None


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn transformers' progress bars off: stderr is for our own progress and for errors."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _auto_class(config: PreTrainedConfig) -> Any:
    return AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM


def _sees(config: PreTrainedConfig) -> bool:
    return getattr(config, "vision_config", None) is not None
