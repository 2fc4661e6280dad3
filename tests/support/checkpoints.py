"""Tiny checkpoints on disk (base, tokenizer, LoRA), task files, and configurations that name them."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.support.models import IMAGE_TOKEN, llama, llava, lora

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
ROLES = ["system", "user", "assistant", "USER", "ASSISTANT", ":", "."]
WORDS = [f"w{k}" for k in range(IMAGE_TOKEN - len(SPECIAL) - len(ROLES))]
ARGUMENTS = ["--samples", "6", "--layers", "1", "--quiet"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and <image> the last."""
    vocabulary = {word: k for k, word in enumerate([*SPECIAL, *ROLES, *WORDS, "<image>"])}
    made = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([*SPECIAL, "<image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        chat_template=CHATML,
    )  # fmt: skip


def write_base(folder: Path, model=None) -> Path:
    (model or llama()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_adapter(folder: Path, adapted: PeftModel | None = None) -> Path:
    (adapted or lora(llama())).save_pretrained(folder)
    return folder


def fresh_lora(model, **changes) -> PeftModel:
    """A LoRA at its initialisation: B is zero."""
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **{"target_modules": ["q_proj", "up_proj"], **changes}))


def write_llava(folder: Path) -> Path:
    """base/ and adapter/ of a tiny LLaVA of 16 px pictures in 2 x 2 patches."""
    llava().save_pretrained(folder / "base")
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("m['content']", "m['content'] | string").replace(
            "m['content'] | string",
            "(m['content'] if m['content'] is string else ('<image>\n' if (m['content'] | selectattr('type', 'equalto',"
            " 'image') | list) else '') + (m['content'] | selectattr('type', 'equalto', 'text') | first)['text'])",
        ),
    ).save_pretrained(folder / "base")
    lora(llava(), r".*language_model.*(q_proj|down_proj)").save_pretrained(folder / "adapter")
    return folder


def record(k: int, seed: int = 0, **more) -> dict:
    """A question of 2 to 7 words and an answer of 1 to 3."""
    generator = torch.Generator().manual_seed(1000 * seed + k)
    draw = [f"w{n}" for n in torch.randint(len(WORDS), (12,), generator=generator).tolist()]
    asked, answered = 2 + (5 * k + seed) % 6, 1 + (k + seed) % 3
    return {"id": f"r{k}", "prompt": " ".join(draw[:asked]), "response": " ".join(draw[7 : 7 + answered]), **more}


def write_task(file: Path, count: int = 8, seed: int = 0, change=lambda k, values: values) -> Path:
    lines = [json.dumps(change(k, record(k, seed))) for k in range(count)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def write_pictures(folder: Path, names) -> None:
    for k, name in enumerate(names):
        Image.new("RGB", (20 + k, 18), (40 * k % 256, 90, 30)).save(folder / name)


def data(base: Path, adapter: Path, tasks: dict[str, Path], out: Path | None = None, **probe) -> dict:
    """The nested values of a configuration."""
    return {
        "model": {"base": str(base), "adapter": str(adapter), "device": "cpu"},
        "tasks": {name: {"file": str(file)} for name, file in tasks.items()},
        "probe": {"samples": 6, "layers": [1], "batch_size": 4, **probe},
        **({} if out is None else {"out": str(out)}),
    }
