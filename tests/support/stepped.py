"""A tiny LoRA that a real Trainer has trained, with the optimizer's state that it saved beside the adapter."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from interference.gradients.targets import find_targets
from interference.verification import reference
from tests.support.models import batch, llama, lora


def probes() -> dict[str, list[dict[str, Tensor]]]:
    """Batches of two tasks of unequal size."""
    return {
        "red": [batch([7, 9, 8], [3, 4, 2], 5), batch([6, 6], [2, 3], 6)],
        "blue": [batch([8, 5, 9, 7], [2] * 4, 7)],
    }


def rows(count: int = 24) -> list[dict[str, Tensor]]:
    """Examples to train on, of one length."""
    made = [batch([8], [4], 100 + k) for k in range(count)]
    return [{key: value[0] for key, value in one.items()} for one in made]


def trainer_of(folder: Path, model: nn.Module | None = None, steps: int = 12, **settings: Any) -> Trainer:
    """A Trainer that saves its last step; not yet trained."""
    options = {
        "max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 2e-3, "weight_decay": 0.01,
        "save_steps": steps, "logging_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "seed": 1,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **options | settings)
    trainer = Trainer(model or lora(llama()), arguments, train_dataset=rows())
    trainer.remove_callback(PrinterCallback)
    return trainer


def trained(folder: Path, model: nn.Module | None = None, steps: int = 12, **settings: Any) -> tuple[Trainer, Path]:
    """A Trainer after its training, and the checkpoint of its last step."""
    trainer = trainer_of(folder, model, steps, **settings)
    trainer.train()
    return trainer, folder / f"checkpoint-{steps}"


def gradients_of(model: PeftModel, **scope: Any) -> dict[str, Tensor]:
    """{block: [units, entries]} of the probes by batch-1 autograd."""
    found = [reference.gradients(model, one, **scope) for given in probes().values() for one in given]
    return {name: torch.cat([rows[name].flatten(1) for rows in found]) for name in found[0]}


def scales_of(trainer: Trainer, **scope: Any) -> dict[str, Tensor]:
    """{block: [entries]}: P = 1 / (sqrt(v_hat) + eps), from the parameters that the live optimizer has."""
    found = {}
    for target in find_targets(trainer.model, "default", **scope):
        for tap in target.taps.values():
            held = trainer.optimizer.state[tap.weight]
            (group,) = [g for g in trainer.optimizer.param_groups if any(p is tap.weight for p in g["params"])]
            v_hat = held["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(held["step"]))
            found[tap.block.name] = (1 / (v_hat.sqrt() + group["eps"])).flatten()
    return found
