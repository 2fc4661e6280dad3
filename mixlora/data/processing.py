"""What a model's own processor makes of texts and pictures, beside tokens. Nothing here knows examples."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixlora.data.tokens import MARKERS


@dataclass(frozen=True)
class Seen:
    """What a processor is given for one example.

    Attributes:
        text: with one placeholder a picture.
        suffix: the answer, where the processor takes one; None without an answer.
        pictures: in the order of their placeholders.
    """

    text: str
    suffix: str | None
    pictures: Sequence[Image.Image]


def takes_suffix(processor: Any) -> bool:
    """Whether a processor writes a prompt and its answer itself, as PaliGemma's does."""
    return "suffix" in inspect.signature(type(processor).__call__).parameters


def processed(processor: Any, given: Sequence[Seen]) -> dict[str, Any]:
    """What the processor gives of some examples, with unpadded rows of tokens."""
    if takes_suffix(processor):  # it makes labels of all rows as one array, which they are not
        return _joined([_suffixed(processor, one) for one in given])
    pictures = [list(one.pictures) for one in given]
    options = {"sanitize_control_tokens": True} if any(MARKERS[0] in one.text for one in given) else {}
    return dict(
        processor(
            text=[one.text for one in given],
            images=pictures if any(pictures) else None,
            images_kwargs={"return_tensors": "pt"},
            text_kwargs={"padding": False, "add_special_tokens": False},
            **options,
        )
    )


def is_of_rows(values: Any, rows: Sequence[Sequence[int]]) -> bool:
    """Whether what a processor gives has a number for every token of every row."""
    try:
        return [len(own) for own in values] == [len(row) for row in rows] and not hasattr(values[0][0], "__len__")
    except (TypeError, IndexError):
        return False


def as_tensor(values: Any) -> Tensor:
    """What a processor gives of pictures, as one tensor."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, list) and values and isinstance(values[0], Tensor):
        return torch.stack(values)
    return torch.as_tensor(values)


def _suffixed(processor: Any, one: Seen) -> Mapping[str, Any]:
    answer = {} if one.suffix is None else {"suffix": [one.suffix]}
    found: Mapping[str, Any] = processor(
        text=[one.text], images=[list(one.pictures)], images_kwargs={"return_tensors": "pt"}, **answer
    )
    return found


def _joined(single: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of one row each as one of several."""
    return {
        key: torch.cat([one[key] for one in single]) if isinstance(first, Tensor) else [one[key][0] for one in single]
        for key, first in single[0].items()
    }
