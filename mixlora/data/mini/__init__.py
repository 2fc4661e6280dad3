"""The mini suite: a small multimodal instruction-tuning benchmark, made from data that installed packages contain.

Six training tasks (`TASKS`) represent the six capabilities of the paper, seven `UNSEEN` ones its evaluation sets.
`load_base` loads a small LLaVA that was trained from scratch on captions and other kinds of questions.

`draw` draws, `pictures` are the sources of pictures, `tasks` ask about them, `suite` makes examples.

Not here: how the base was made (`mixlora.pretraining`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mixlora.data.mini.suite import examples
from mixlora.data.mini.tasks import TASKS, UNSEEN, Task

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["TASKS", "UNSEEN", "Task", "base_path", "examples", "load_base"]


def base_path() -> Path:
    """The directory of the shipped base model, for `from_pretrained` of transformers."""
    return Path(__file__).parent / "base"


def load_base() -> "tuple[LlavaForConditionalGeneration, LlavaProcessor]":
    """The shipped base model, float32 on the CPU in evaluation mode, and its processor."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(base_path(), dtype="float32")
    return model.eval(), LlavaProcessor.from_pretrained(base_path())
