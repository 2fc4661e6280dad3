"""A checkpoint's tokenizer or processor and its chat template: the adapter's where it has them, else the base's.

Trainers save both beside an adapter, and what they save is what it was trained with.
"""

from copy import copy
from datetime import date
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from mixlora.checkpoints.lengths import longest_text, positions, without_no_number
from mixlora.checkpoints.loading import image_aspect_ratio, is_llava_v1, load_processor
from mixlora.common.files import LARGEST_JSON, SNAPSHOTS, TRAINING, is_file, is_folder, read_json, read_text
from mixlora.common.sections import BaseSection
from mixlora.data.collation import Collator
from mixlora.data.images import Square
from mixlora.data.templates import (
    LLAVA_V1,
    RAW_TEXT,
    TEMPLATE_FILE,
    ChatTemplate,
    named_template,
    own_template,
    template_of,
)

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def load_collator(
    section: BaseSection, adapter: str | None = None, max_length: int | None = None, day: date | None = None
) -> Collator:
    """What makes batches of examples for a checkpoint, as its trainer made them.

    Args:
        section: the base, and what the configuration says of its template and pictures.
        adapter: path or hub id of an adapter, whose tokenizer and template come before the base's.
        max_length: tokens kept of an example; None keeps all, and refuses more than the model was made for.
        day: the day that a template takes for today where the configuration names none; None for the day of the
            training that made the adapter, where its record tells it, else today.

    Raises:
        CheckpointError: there is no tokenizer or processor.
        ConfigError: there is no such template.
    """
    own = adapter if adapter is not None and _holds(adapter) else None
    processor = load_processor(section, own)
    without_no_number(getattr(processor, "tokenizer", processor))
    place = f"the {'adapter' if own else 'base'}'s ({own or section.base})"
    day = section.day or day or _trained_day(adapter)
    template = _template(section, processor, adapter if own is None else None, place, day)
    longest = longest_text(section, processor)
    return Collator(processor, max_length, template, _square(section, processor), positions(section), longest)


def with_template(collator: Collator) -> Any:
    """The collator's tokenizer or processor with its chat template, to be saved beside what is trained by it."""
    processor, template = copy(collator.processor), collator.template
    text = RAW_TEXT if template.is_raw and template.named else template.text
    processor.chat_template = text
    if not collator.is_tokenizer:
        processor.tokenizer = copy(collator.tokenizer)
        processor.tokenizer.chat_template = text
    return processor


def recorded_day(path: Path) -> str | None:
    """The day that the training in a directory takes for today; None where there is none, or it writes no date."""
    try:
        found = read_json(path / TRAINING)["config"]["model"]["date"]
        return None if found is None else date.fromisoformat(found).isoformat()
    except (OSError, ValueError, LookupError, TypeError):  # no training, or a damaged one, which is refused later
        return None


def _trained_day(adapter: str | None) -> date | None:
    """The day that the training took for today which made an adapter, or a snapshot of it."""
    if adapter is None:
        return None
    path = Path(adapter)
    found = recorded_day(path.parent.parent if path.parent.name == SNAPSHOTS else path)
    return None if found is None else date.fromisoformat(found)


def _template(section: BaseSection, processor: Any, adapter: str | None, place: str, day: date | None) -> ChatTemplate:
    if section.chat_template is not None:
        text, source = named_template(section.chat_template)
    elif adapter is not None and is_file(file := Path(adapter) / TEMPLATE_FILE):
        text, source = read_text(file, LARGEST_JSON), f"the adapter's ({file})"
    elif (own := own_template(processor)) is None and is_llava_v1(section):
        text, source = named_template(LLAVA_V1)[0], "LLaVA v1's: the base is a LLaVA without a template of its own"
    else:
        text, source = own, place if own is not None else "none: neither the base nor the adapter has one"
    return template_of(processor, text, source, day, section.chat_template is not None)


def _holds(adapter: str) -> bool:
    """Whether an adapter brings a tokenizer."""
    if is_folder(Path(adapter)):
        return all(is_file(Path(adapter) / name) for name in _TOKENIZER)
    try:
        return all(cached_file(adapter, name, _raise_exceptions_for_missing_entries=False) for name in _TOKENIZER)
    except OSError:  # no such repository, or no network: loading the adapter says so
        return False


def _square(section: BaseSection, processor: Any) -> Square | None:
    """The colour of the square that pictures are padded to, where the base or the configuration asks for it."""
    asked = section.image.pad
    if asked is None and image_aspect_ratio(section) == "pad" and not getattr(processor, "do_pad", False):
        asked = "square"
    if asked is None or not hasattr(processor, "image_processor"):
        return None
    mean = getattr(processor.image_processor, "image_mean", None) or (0, 0, 0)
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue
