"""A suite with a known answer: two groups of tasks that help within and hurt across, by construction.

Every prompt ends in the same token, so that all tasks ask for the output of one vector h of length 1. Task i wants a
target t_i: its loss is |W h - t_i|^2 / 2, a quadratic in the one Linear that is trained. A training that has converged
on i and j leaves W h between t_i and t_j, so that T_ij = -|t_i - t_j|^2 / 8. Targets have length 1 at the angles below:
tasks within a group are near each other, those of the other group are opposite.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from tests.support.checkpoints import WORDS, tokenizer, write_task

ANGLES = {"east": 0, "northeast": 28, "southeast": -20, "west": 180, "northwest": 148, "southwest": 205}
GROUPS = [{"east", "northeast", "southeast"}, {"west", "northwest", "southwest"}]
SIZE = 8


class QuadraticConfig(PreTrainedConfig):
    model_type = "planted-quadratic"
    vocab_size = 512
    hidden_size = SIZE


class Quadratic(PreTrainedModel):
    """One Linear on the embedding of each token; the loss is half the squared distance to the next one's."""

    config_class = QuadraticConfig
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, SIZE)
        self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(SIZE, SIZE, bias=False)})])
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_decoder(self):
        return self.layers

    def forward(self, input_ids=None, attention_mask=None, labels=None, use_cache=None, return_dict=None):
        out = self.layers[0]["proj"](self.embed(input_ids))
        loss = None
        if labels is not None:
            asked = labels[:, 1:] != -100
            wanted = self.embed(labels[:, 1:][asked])
            loss = ((out[:, :-1][asked] - wanted) ** 2).sum(dim=1).mean() / 2
        return CausalLMOutput(loss=loss, logits=out @ self.embed.weight.T)


AutoConfig.register(QuadraticConfig.model_type, QuadraticConfig, exist_ok=True)
AutoModelForCausalLM.register(QuadraticConfig, Quadratic, exist_ok=True)


def targets() -> dict[str, np.ndarray]:
    """{task: its target}."""
    turned = {task: np.deg2rad(angle) for task, angle in ANGLES.items()}
    return {task: np.array([np.cos(own), np.sin(own), *[0.0] * (SIZE - 2)]) for task, own in turned.items()}


def truth() -> np.ndarray:
    """T of trainings that have converged, [tasks i, tasks j], off the diagonal."""
    found = list(targets().values())
    return np.array([[-((a - b) ** 2).sum() / 8 for b in found] for a in found])


def write(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The base and the task files: task k answers every question with one word, whose embedding is its target."""
    text = tokenizer()
    model = Quadratic(QuadraticConfig(vocab_size=len(text)))
    ids = {task: text.convert_tokens_to_ids(WORDS[-1 - k]) for k, task in enumerate(ANGLES)}
    with torch.no_grad():
        model.embed.weight[:] = 0
        model.embed.weight[:, -1] = 1  # h, of every token but the answers and what ends them
        model.embed.weight[text.convert_tokens_to_ids(["</s>", "<|im_end|>"])] = 0
        model.layers[0]["proj"].weight[:] = 0
        for task, target in targets().items():
            model.embed.weight[ids[task]] = torch.tensor(target, dtype=torch.float32)
    model.save_pretrained(folder / "base")
    text.save_pretrained(folder / "base")
    files = {}
    for k, task in enumerate(ANGLES):
        answer = WORDS[-1 - k]
        files[task] = write_task(folder / f"{task}.jsonl", 80, k, lambda _, own, said=answer: own | {"response": said})
    return folder / "base", files
