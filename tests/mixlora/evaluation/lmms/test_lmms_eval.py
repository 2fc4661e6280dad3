"""lmms-eval finds the plugin and generates with the adapter.

Where lmms-eval is installed, its own registry and classes run. Where it is not, a package of the same layout stands in
for them, written after version 0.7.3: a manifest of class paths, one `llava_hf` class for each of two forms that loads
base and processor in `__init__`, keeps the model in `_model` and hands it out unwrapped as `model`, and generates from
requests whose `args` are (context, settings, pictures of a document, its id, task, split).
"""

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mixlora import MixLoraConfig
from mixlora.common.errors import MixLoraError
from mixlora.evaluation.lmms.plugin import manifest
from tests.support.paths import ROOT

INSTALLED = find_spec("lmms_eval") is not None
REGISTRY = """
from dataclasses import dataclass

@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
"""
SIMPLE = """
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

class LlavaHf:
    is_simple = True

    def __init__(self, pretrained="", device="cuda", dtype="auto", device_map="", **kwargs):
        assert kwargs == {}, f"Unexpected kwargs: {kwargs}"
        self.pretrained, self._device = pretrained, torch.device(device)
        dtype = dtype if dtype == "auto" else getattr(torch, dtype)
        self._model = LlavaForConditionalGeneration.from_pretrained(pretrained, dtype=dtype, device_map=device_map)
        self.processor, self.task_dict = AutoProcessor.from_pretrained(pretrained), {}

    @property
    def model(self):
        return self._model

    def prompt(self, document, context):
        return self.processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"<image>\\n{context}"}],
            chat_template=self.processor.chat_template, tokenize=False, add_generation_prompt=True,
        )

    def generate_until(self, requests):
        said = []
        for context, settings, show, index, task, split in (request.args for request in requests):
            document = self.task_dict[task][split][index]
            images, text = show(document), self.prompt(document, context)
            inputs = self.processor(images=images, text=text, return_tensors="pt").to(self._device, self.model.dtype)
            made = self.model.generate(**inputs, max_new_tokens=settings["max_new_tokens"], do_sample=False)
            made = made[0, inputs["input_ids"].shape[1]:]
            said.append(self.processor.tokenizer.decode(made, skip_special_tokens=True))
        return said
"""
CHAT = """
from lmms_eval.models.simple.llava_hf import LlavaHf as Simple

class LlavaHf(Simple):
    is_simple = False
"""


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "lmms_eval"]:
        del sys.modules[name]
    sys.modules.pop("mixlora.evaluation.lmms.model", None)


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """lmms-eval, or what stands in for it."""
    if INSTALLED:
        yield
        return
    folder = tmp_path_factory.mktemp("stands in")
    models = folder / "lmms_eval" / "models"
    for name, text in {"simple/llava_hf": SIMPLE, "chat/llava_hf": CHAT, "registry_v2": REGISTRY}.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    forget()
    yield
    sys.path.remove(str(folder))
    forget()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """base/, adapter/ (LoRA) and mixlora/ of a tiny LLaVA; the adapters change what it says."""
    from tests.support import checkpoints

    folder = checkpoints.write_llava(tmp_path_factory.mktemp("llava"))
    base = LlavaForConditionalGeneration.from_pretrained(folder / "base")
    config = MixLoraConfig(r=2, num_factors=4, target_modules=r".*language_model.*(q_proj|down_proj)")
    adapted = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "mixlora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder / "mixlora")
    return folder


def picture(document):
    return [Image.new("RGB", (20, 18), document["colour"])]


def expected(folder, adapter, document):
    """What the adapted base says, by PEFT and transformers alone."""
    model = LlavaForConditionalGeneration.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(model, folder / adapter).eval() if adapter else model.eval()
    processor = AutoProcessor.from_pretrained(folder / "base")
    text = f"<|im_start|>user\n<image>\n{document['q']}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=picture(document), text=text, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=processor.tokenizer.eos_token_id)
    return processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def loaded(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.mark.skipif(INSTALLED, reason="lmms-eval is installed")
def test_without_lmms_eval_one_sentence_says_what_to_install():
    forget()
    with pytest.raises(MixLoraError, match=r"needs lmms-eval and its video reader .*; pip install lmms-eval decord$"):
        importlib.import_module("mixlora.evaluation.lmms.model")


def test_the_entry_point_is_a_light_function():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    assert points == {"mixlora": "mixlora.evaluation.lmms.plugin:manifest"}
    ask = "import sys, mixlora.evaluation.lmms.plugin as p; print(callable(p.manifest), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_nothing_else_imports_the_adapter():
    imports = re.compile(r"^\s*(from|import) mixlora\.evaluation\.lmms\b", re.MULTILINE)
    assert imports.search(Path(__file__).read_text())
    users = [path for path in (ROOT / "mixlora").rglob("*.py") if imports.search(path.read_text())]
    assert users == []


@pytest.mark.parametrize("adapter", ["adapter", "mixlora"])
def test_the_simple_form_generates_with_the_adapter(harness, checkpoint, adapter):
    cls = loaded(manifest().simple_class_path)
    assert cls.is_simple and manifest().model_id == "mixlora_llava"
    options = {"pretrained": str(checkpoint / "base"), "adapter": str(checkpoint / adapter)}
    model = cls(**options, device="cpu", dtype="float32")
    documents = [{"q": "w3 w5 w9", "colour": (90, 10, 10)}, {"q": "w1", "colour": (0, 200, 10)}]
    model.task_dict = {"t": {"s": documents}}
    requests = [
        SimpleNamespace(args=(one["q"], {"max_new_tokens": 6}, picture, index, "t", "s"))
        for index, one in enumerate(documents)
    ]
    said = [text.strip() for text in model.generate_until(requests)]
    assert said == [expected(checkpoint, adapter, one).strip() for one in documents]
    assert said != [expected(checkpoint, None, one).strip() for one in documents]


def test_the_chat_form_has_the_adapter_too(harness, checkpoint):
    cls = loaded(manifest().chat_class_path)
    model = cls(pretrained=str(checkpoint / "base"), adapter=str(checkpoint / "mixlora"), device="cpu", dtype="float32")
    assert not cls.is_simple and model.model.peft_config["default"].peft_type == "MIXLORA"
    own = PeftModel.from_pretrained(
        LlavaForConditionalGeneration.from_pretrained(checkpoint / "base"), checkpoint / "mixlora"
    )
    found = dict(model.model.named_parameters())
    for name, tensor in own.named_parameters():
        assert torch.equal(found[name], tensor), name


def test_mistakes_are_told_in_words(harness, checkpoint, tmp_path):
    cls = loaded(manifest().simple_class_path)
    base = {"pretrained": str(checkpoint / "base"), "device": "cpu", "dtype": "float32"}
    with pytest.raises(MixLoraError, match="no adapter is named; write --model_args pretrained=BASE,adapter=ADAPTER"):
        cls(**base)
    with pytest.raises(MixLoraError, match=r"there is no PEFT adapter at .*none"):
        cls(**base, adapter=str(tmp_path / "none"))

    class Sharded(cls):
        @property
        def model(self):
            return super().model.model

    with pytest.raises(MixLoraError, match=r"the base is sharded \(FSDP or DeepSpeed\)"):
        Sharded(**base, adapter=str(checkpoint / "adapter"))
