"""Training by transformers' Trainer and by TRL's SFTTrainer, with checkpoints, from a tokenizer made here."""

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from mixlora import MixLoraConfig
from tests.support.adapted import PROJECTIONS, adapt, batch, llama
from tests.support.needed import needed
from tests.support.small_processors import spaced


def arguments(out, kind=TrainingArguments, **options):
    return kind(
        output_dir=str(out),
        **{
            "per_device_train_batch_size": 4,
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "max_steps": 6,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 0,
        }
        | options,
    )


def examples(count=8):
    made = batch([12] * count, [4] * count)
    return [{key: value[row] for key, value in made.items()} for row in range(count)]


def adapter(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "mixlora_" in n}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def moved(before, after, part):
    names = [name for name in before if part in name]
    assert names
    return [name for name in names if not torch.equal(before[name], after[name])] == names


def test_a_trainer_lowers_the_loss_and_moves_factors_and_routers(tmp_path):
    model = adapt(llama())
    before, base = adapter(model), llama().state_dict()
    settings = arguments(tmp_path, learning_rate=0.01, max_steps=20)
    trainer = Trainer(model=model, args=settings, train_dataset=examples(4))
    trainer.train()
    found = losses(trainer)
    assert len(found) == 20 and sum(found[-3:]) < 0.85 * sum(found[:3])
    after = adapter(model)
    assert all(moved(before, after, part) for part in ("mixlora_A", "mixlora_B", "independent_A", "conditional"))
    assert all(torch.equal(value, base[name]) for name, value in model.unload().state_dict().items())


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointing"])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path, options):
    whole = adapt(llama())
    Trainer(model=whole, args=arguments(tmp_path / "whole", **options), train_dataset=examples()).train()
    settings = {"save_strategy": "steps", "save_steps": 3} | options
    Trainer(model=adapt(llama()), args=arguments(tmp_path, max_steps=3, **settings), train_dataset=examples()).train()
    resumed = adapt(llama(), seed=9)
    trainer = Trainer(model=resumed, args=arguments(tmp_path, **settings), train_dataset=examples())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == 6
    for (name, mine), theirs in zip(adapter(resumed).items(), adapter(whole).values(), strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "checkpoint-6")
    assert all(torch.equal(p, adapter(resumed)[n]) for n, p in adapter(loaded).items())


@pytest.mark.parametrize("options", [{}, {"packing": True}], ids=["padded", "packed"])
def test_an_sft_trainer_lowers_the_loss_and_moves_routers(tmp_path, options):
    datasets, trl = needed("datasets"), needed("trl")
    pairs = [(colour, thing) for colour in ("red", "blue", "green") for thing in ("ball", "cube", "cone")]
    rows = [
        {"prompt": f"what is the colour of a {colour} {thing}", "completion": f" this thing is {colour}"}
        for colour, thing in pairs
    ]
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 8, "bf16": False, "max_length": 32}
    config = MixLoraConfig.paper(r=2, num_factors=6, target_modules=PROJECTIONS)
    trainer = trl.SFTTrainer(
        model=llama(),
        args=arguments(tmp_path, trl.SFTConfig, **settings, **options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=spaced(),
        peft_config=config,
    )
    before = adapter(trainer.model)
    trainer.train()
    found = losses(trainer)
    assert len(found) == 8 and sum(found[-2:]) < 0.6 * sum(found[:2])
    after = adapter(trainer.model)
    assert all(moved(before, after, part) for part in ("mixlora_A", "mixlora_B", "independent_B", "conditional"))
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "checkpoint-8")
    assert all(torch.equal(p, after[n]) for n, p in adapter(loaded).items())
