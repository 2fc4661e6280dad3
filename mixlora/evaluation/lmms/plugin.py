"""The plugin that lmms-eval finds. lmms-eval imports it at start, so it imports nothing heavy."""

from typing import Any


def manifest() -> Any:
    """The ModelManifest of `mixlora_llava`, found through the entry points `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="mixlora_llava",
        simple_class_path="mixlora.evaluation.lmms.model.AdaptedLlava",
        chat_class_path="mixlora.evaluation.lmms.model.AdaptedLlavaChat",
    )
