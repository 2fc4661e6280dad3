"""Chat templates: which one writes a model's conversations, where it comes from, and its variant for training.

How a conversation is rendered by one, and what of the text is supervised, is in `rendering`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from mixlora.common.errors import ConfigError
from mixlora.common.files import LARGEST_JSON, exists, read_text
from mixlora.common.limits import limited
from mixlora.common.sections import NAMED_TEMPLATES

RAW, LLAVA_V1 = NAMED_TEMPLATES
"""Names: of no template, so that a prompt, its answer and the eos token are written as text; of LLaVA v1's."""
TEMPLATE_FILE = "chat_template.jinja"
"""What transformers calls the file of a checkpoint's template."""
LLAVA_V1_TEXT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('it has no ' + message['role'] + ' turns') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The conversation format of LLaVA and Vicuna v1, which MixLoRA was trained with."""

RAW_TEXT = "{% for message in messages %}{{ message['content'] }}{% endfor %}{{ eos_token }}"
"""`RAW` as a template, by which a training that used none says so beside its adapter."""

REFUSALS = (Exception,)
"""What a template raises that cannot write a conversation: it divides by 0, calls itself, takes what is not there."""

Result = TypeVar("Result")

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template.

    Attributes:
        text: in Jinja; None for `RAW`.
        training: its variant whose generation markers say what an assistant writes, itself if it has them; None where
            there is none.
        source: where it comes from, for a reader.
        day: the day that it takes for today.
        calls_tools: whether it writes calls of tools and what they return.
        named: whether a configuration names it, rather than the checkpoint.
    """

    text: str | None
    training: str | None
    source: str
    day: date
    calls_tools: bool = False
    named: bool = False

    @property
    def dated(self) -> bool:
        """Whether it writes the date."""
        return self.text is not None and "strftime_now" in self.text

    @property
    def written_day(self) -> str | None:
        """The day that it writes, as "2026-03-04"; None where it writes none."""
        return self.day.isoformat() if self.dated else None

    @property
    def is_raw(self) -> bool:
        """Whether prompts and answers are written as they stand."""
        return self.text is None

    @property
    def is_llava_v1(self) -> bool:
        """Whether it is LLaVA v1's, whose trainer also begins with the tokenizer's BOS and puts pictures first."""
        return self.text == LLAVA_V1_TEXT

    def json(self) -> dict[str, Any]:
        """What a job records of it."""
        return {
            "source": self.source,
            "text": self.text,
            "training": self.training is not None,
            "day": self.written_day,
        }

    def jinja(self, training: bool) -> str:
        """The template, or its variant for training."""
        text = self.training if training else self.text
        assert text is not None
        return text

    @contextmanager
    def on_its_day(self, training: bool) -> Iterator[str]:
        """The template or its variant for training; inside, what transformers renders by it has its day for today."""
        jinja = self.jinja(training)
        found = _compile_jinja_template(jinja).globals
        clock = found["strftime_now"]
        found["strftime_now"] = self.day.strftime
        try:
            yield jinja
        finally:
            found["strftime_now"] = clock


def template_of(
    processor: Any, text: str | None, source: str, day: date | None = None, named: bool = False
) -> ChatTemplate:
    """A chat template with its variant for training.

    Args:
        processor: the tokenizer or processor that it is for.
        text: the template; None to write prompts and answers as they stand.
        source: where it comes from, for a reader.
        day: the day that it takes for today; None for today.
        named: whether a configuration names it.

    Raises:
        ConfigError: it does not end, or not before memory does.
    """
    day = day or today()
    if text is None or text == RAW_TEXT:
        return ChatTemplate(None, None, source, day, named=named)
    asked = copy(processor)
    asked.chat_template = text
    import_module("trl.chat_template_utils")  # which takes longer than a template may
    training, calls_tools = bounded(lambda: (_training(asked), _calls_tools(asked)), source)
    return ChatTemplate(text, training, source, day, calls_tools, named)


def bounded(render: Callable[[], Result], source: str, example: str = "") -> Result:
    """What a template renders, if it does so within bounds.

    Args:
        render: renders by it.
        source: where the template comes from.
        example: where the example stands whose conversation it is, if there is one.

    Raises:
        ConfigError: it does not end, or not before memory does.
    """
    place, remedy = f"{example}: " if example else "", "give another model.chat_template"
    return limited(
        render, lambda what: ConfigError(f"{place}the chat template ({source}) {what} for one conversation; {remedy}")
    )


def llava_v1(processor: Any) -> ChatTemplate:
    """LLaVA v1's template, for a processor or tokenizer."""
    return template_of(processor, *named_template(LLAVA_V1))


def today() -> date:
    """The day that templates take for today where none is named."""
    return date.today()


def own_template(processor: Any) -> str | None:
    """The template that a tokenizer or processor brings; None where it has none.

    Raises:
        ConfigError: if it has several, none of them the default.
    """
    tokenizer = processor if isinstance(processor, PreTrainedTokenizerBase) else processor.tokenizer
    found = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if isinstance(found, Mapping):
        if "default" not in found:
            raise ConfigError(
                f"the model has the chat templates {', '.join(found)}; set model.chat_template to the file of one"
            )
        return str(found["default"])
    return None if found is None else str(found)


@cache
def known_to_trl() -> Mapping[str, str]:
    """{name: template} of those that TRL ships for models, its variants for training left out."""
    from trl import chat_template_utils

    folder = Path(chat_template_utils.__file__).parent / "chat_templates"
    files = sorted(folder.glob("*.jinja"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files if not file.stem.endswith("_training")}


def named_template(named: str) -> tuple[str | None, str]:
    """A template by what a configuration calls it, and where it comes from.

    Args:
        named: a file, `raw`, `llava-v1`, a name that TRL knows ("qwen3"), or a template itself.

    Raises:
        ConfigError: there is no such template.
    """
    if named == RAW:
        return None, "no template (chat_template: raw)"
    if named == LLAVA_V1:
        return LLAVA_V1_TEXT, "LLaVA v1's (chat_template: llava-v1)"
    if "{%" in named or "{{" in named:
        return named, "the configuration's own text"
    if exists(path := Path(named)) and path.is_file():
        try:
            return read_text(path, LARGEST_JSON), f"the file {named}"
        except (OSError, ValueError) as error:
            raise ConfigError(f"the chat template {named} cannot be read: {error}") from None
    if named in known_to_trl():
        return known_to_trl()[named], f"TRL's {named}"
    raise ConfigError(
        f"chat_template is {named!r:.200}, which is neither a file nor a known name; give a file, {RAW}, {LLAVA_V1}, "
        f"or one of TRL's: {', '.join(known_to_trl())}"
    )


def _training(asked: Any) -> str | None:
    """The variant of a processor's template with generation markers; None where there is none."""
    if _MARKED.search(asked.chat_template):
        return str(asked.chat_template)
    from trl import chat_template_utils

    try:
        return chat_template_utils.get_training_chat_template(asked)
    except Exception:  # TRL renders messages of its own first, which a template may refuse in any way
        return None


def _calls_tools(asked: Any) -> bool:
    """Whether a processor's template writes all of a call of a tool and of what it returns."""
    from trl import chat_template_utils

    try:
        return bool(chat_template_utils.supports_tool_calling(asked))
    except Exception:  # as above
        return False
