"""A tiny language model that judges answers, and the configuration that names it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.small_processors import CHATML, byte_level


def saved_judge(path, seed=0):
    """A language model that knows nothing."""
    tokenizer = byte_level(chat_template=CHATML)
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tasks_of(folder):
    return {"follow": {"file": str(folder / "follow.jsonl"), "score": "judge"}}


def judge_of(folder, **more):
    return {"model": str(folder / "judge"), "device": "cpu", "batch_size": 4} | more
