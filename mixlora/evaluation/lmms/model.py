"""The model `mixlora_llava` of lmms-eval: its own LLaVA of Hugging Face with a LoRA or MixLoRA adapter.

    python -m lmms_eval --model mixlora_llava --model_args pretrained=BASE,adapter=ADAPTER --tasks mme --batch_size 1

lmms-eval loads the base, writes prompts and generates. Its chat form needs a processor whose chat template accepts
messages of parts; `--force_simple` selects the other form, which writes "<image>" and the question itself. Tasks that
generate were run with lmms-eval 0.7.3; those that need likelihoods fail in its own class under transformers 5.
"""

import os
from typing import Any

from mixlora.checkpoints.loading import adapt, adapter_config
from mixlora.checkpoints.projector import load_projector
from mixlora.common.errors import CheckpointError, ConfigError
from mixlora.common.sections import BaseSection

try:
    from lmms_eval.models.chat.llava_hf import LlavaHf as ChatLlava
    from lmms_eval.models.simple.llava_hf import LlavaHf as SimpleLlava
except ImportError as error:
    raise ConfigError(
        f"mixlora.evaluation.lmms.model needs lmms-eval and its video reader ({error}); pip install lmms-eval decord"
    ) from error


class _Adapted:
    """A LLaVA of lmms-eval with an adapter.

    Args:
        adapter: path or hub id of a PEFT adapter, LoRA or MixLoRA.
        projector: projector.safetensors of `mixlora import-official`, loaded into the base.
        options: options of lmms-eval's `llava_hf`: pretrained, dtype, device, batch_size, ...

    Raises:
        CheckpointError: if the adapter is missing or does not fit, or the model is sharded over devices.
    """

    pretrained: str
    model: Any
    _model: Any

    def __init__(self, adapter: str = "", projector: str | None = None, **options: Any) -> None:
        if not adapter:
            raise CheckpointError("no adapter is named; write --model_args pretrained=BASE,adapter=ADAPTER")
        config = adapter_config(adapter)
        if os.environ.get("WORLD_SIZE", "1") == "1" and not options.get("device_map"):
            options["device_map"] = options.get("device", "cuda")  # transformers 5 refuses lmms-eval's default, ""
        super().__init__(**options)
        if self._model is not self.model:
            raise CheckpointError(
                "the base is sharded (FSDP or DeepSpeed), so no adapter can be loaded into it; use plain DDP"
            )
        if projector is not None:
            load_projector(self._model, projector)
        self._model = adapt(self._model, BaseSection(base=self.pretrained), adapter, config)


class AdaptedLlava(_Adapted, SimpleLlava):
    """The form that writes prompts from a task's text."""

    is_simple = True


class AdaptedLlavaChat(_Adapted, ChatLlava):
    """The form that writes prompts from a task's messages."""

    is_simple = False
