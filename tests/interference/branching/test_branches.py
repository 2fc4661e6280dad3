"""A branch takes the steps of transformers' own Trainer on the same examples, and leaves the model as it was."""

from itertools import islice

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from interference.branching.branches import standing
from interference.branching.held_out import HeldOut
from interference.errors import MeasurementError
from interference.gradients.trained import trained_parameters
from interference.measurement import checkpoint
from mixlora import routed
from mixlora.common.sections import BaseSection
from mixlora.data.sampling import place
from tests.support.checkpoints import write_adapter, write_llava, write_pictures, write_task
from tests.support.mixtures import mixture
from tests.support.models import PROJECTIONS, llama, perturb
from tests.support.starts import RECIPE, Start

STEPS = [1, 2, 5]
CASES = {
    "plain": {},
    "micro-batches": {"micro_batch_size": 3, "batch_size": 9},
    "decay and no clipping": {"weight_decay": 0.1, "max_grad_norm": 0},
    "hard clipping": {"max_grad_norm": 0.01},
    "by length": {"order": "length", "batch_size": 4},
    "recomputed": {"gradient_checkpointing": True},
}


class Watched(HeldOut):
    """Keeps the trained weights at every reading."""

    def losses(self, model):
        self.weights = [
            *getattr(self, "weights", []),
            [p.detach().clone() for p in trained_parameters(model, "default")],
        ]
        return super().losses(model)


class Ordered(Trainer):
    """Takes its examples in their order."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset)


class Seen(TrainerCallback):
    """Keeps the trained weights after steps, and draws what each step drops as a branch does."""

    def __init__(self, model, seed):
        self.model, self.seed, self.weights = model, seed, []

    def on_step_begin(self, args, state, control, **_):
        torch.manual_seed(int.from_bytes(place(f"step {state.global_step + 1}", "'red'", self.seed)[:4]))

    def on_step_end(self, args, state, control, **_):
        if state.global_step in STEPS:
            self.weights.append([p.detach().clone() for p in trained_parameters(self.model, "default")])


def branched(job, seed=3, steps=STEPS):
    """The losses and trained weights of a branch along red."""
    own = job.branches
    own.held_out = Watched(job.pools.held_out, own.model, own.adapter, 4, 2**20)
    recipe = own.recipe.training
    losses = own.along(["red"], seed, steps, [recipe.learning_rate] * steps[-1], recipe.batch_size)
    return losses, own.held_out.weights


def trained(job, folder, seed=3):
    """The trained weights of a Trainer on the same examples, at the same steps."""
    recipe, own = job.recipe.training, job.branches
    model = checkpoint.load_model(job.config.model)
    for parameter in trained_parameters(model, "default"):
        parameter.requires_grad_(True)
    rows = list(islice(own.streams["red"].batches(recipe.batch_size, recipe.order, seed), STEPS[-1]))
    seen, micro = Seen(model, seed), recipe.micro_batch_size or recipe.batch_size
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=micro, gradient_accumulation_steps=recipe.batch_size // micro,
        max_steps=STEPS[-1], learning_rate=recipe.learning_rate, lr_scheduler_type="constant", warmup_steps=0,
        weight_decay=recipe.weight_decay, max_grad_norm=recipe.max_grad_norm, report_to="none", save_strategy="no",
        remove_unused_columns=False, use_cpu=True, disable_tqdm=True, bf16=recipe.bf16,
    )  # fmt: skip
    examples = [one.example for batch in rows for one in batch]
    with torch.random.fork_rng():
        Ordered(model, arguments, job.pools.collator, examples, callbacks=[seen]).train()
    return seen.weights


def same(found, expected):
    assert len(found) == len(expected) == len(STEPS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # Adam enlarges the rounding of small gradients
    assert (
        sum((a - b).abs().max() > 1e-2 for a, b in zip(expected[0], expected[-1], strict=True)) > len(expected[0]) / 2
    )


@pytest.mark.parametrize("case", CASES)
def test_a_branch_is_a_training(start, tmp_path, case):
    job = start.job(recipe={**RECIPE, **CASES[case]})
    _, found = branched(job)
    same(found, trained(job, tmp_path))


@pytest.mark.parametrize("kind", ["dropout", "mixture", "dora", "a bias", "whole modules"])
def test_whatever_the_adapter(start, tmp_path, kind):
    options = {"dropout": {"lora_dropout": 0.3}, "dora": {"use_dora": True}, "a bias": {"lora_bias": True}}
    options |= {"whole modules": {"modules_to_save": ["norm"]}}
    if kind == "mixture":
        adapted = mixture()
    else:
        adapted = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS, **options[kind]))
        perturb(adapted)
    other = Start(start.base, write_adapter(tmp_path / "adapter", adapted), start.tasks)
    job = other.job(recipe={**RECIPE, "micro_batch_size": 4})
    losses, found = branched(job)
    same(found, trained(job, tmp_path / "trainer"))
    again, _ = branched(job)
    assert torch.equal(losses, again)  # what was dropped, too


def test_pictures(tmp_path):
    folder = write_llava(tmp_path)
    write_pictures(tmp_path, [f"{k}.png" for k in range(60)])
    tasks = {
        name: write_task(
            tmp_path / f"{name}.jsonl", 30, at, lambda k, own, at=at: own | {"image": f"{k + 30 * at}.png"}
        )
        for at, name in enumerate(["red", "blue"])
    }
    job = Start(folder / "base", folder / "adapter", tasks).job()
    _, found = branched(job)
    same(found, trained(job, tmp_path / "trainer"))


@pytest.mark.parametrize("kind", ["lora", "mixture"])
@pytest.mark.parametrize("counts", [True, False])
def test_a_step_s_loss_and_gradients_are_the_model_s_own(start, tmp_path, kind, counts):
    """Logits at supervised positions alone change neither."""
    own = start if kind == "lora" else Start(start.base, write_adapter(tmp_path / "adapter", mixture()), start.tasks)
    branches = own.job().branches
    branches._counts = counts
    rows = next(branches.streams["red"].batches(8, "shuffled", 0))
    batch, tokens, tasks = branches.collator.collate(rows), torch.tensor(50), ["red"] * 8
    with standing(branches.model, branches.adapter):
        branches.model.train()
        weights = trained_parameters(branches.model, branches.adapter)
        found = branches.loss(batch, tasks, tokens, 3)
        with routed(branches.model, tasks=tasks):
            counted = {"num_items_in_batch": tokens} if counts else {}
            expected = branches.model(**batch, **counted).loss / (1 if counts else 3)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        pairs = zip(*(torch.autograd.grad(loss, weights) for loss in (found, expected)), strict=True)
        for one, other in pairs:
            assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.slow
def test_a_loss_that_takes_no_count_is_a_mean_of_micro_batches(start, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    counted = trained(start.job(recipe={**RECIPE, "micro_batch_size": 2}), tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    job = start.job(recipe={**RECIPE, "micro_batch_size": 2})
    _, found = branched(job)
    same(found, expected := trained(job, tmp_path))
    assert not torch.allclose(expected[0][1], counted[0][1], rtol=1e-3)


def test_nothing_is_left_on_the_model(start):
    job = start.job()
    model = job.branches.model
    parameter = trained_parameters(model, "default")[0]
    parameter.grad = kept = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [(module.training, own.requires_grad) for module in model.modules() for own in module.parameters()]
    drawn = torch.random.get_rng_state()
    branched(job)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [(module.training, own.requires_grad) for module in model.modules() for own in module.parameters()]
    assert torch.equal(drawn, torch.random.get_rng_state()) and parameter.grad is kept
    del parameter.grad


def test_readings_change_nothing(start):
    job = start.job(recipe={**RECIPE, "micro_batch_size": 4})
    often, _ = branched(job, steps=[1, 2, 3, 4, 5])
    seldom, _ = branched(job, steps=[5])
    assert torch.equal(often[-1], seldom[0])


def test_branches_differ_by_seed_and_agree_with_themselves(start):
    job = start.job()
    first, again, other = (branched(job, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_tasks_together_take_equal_shares(start):
    job = start.job()
    both = zip(*(job.pools.streams[name].batches(4, "shuffled", 0) for name in ("red", "blue")), strict=True)
    red, blue = next(both)
    alone = next(job.pools.streams["red"].batches(4, "shuffled", 0))
    assert [one.id for one in red] == [one.id for one in alone] and len(blue) == 4
    found = job.branches.along(["red", "blue"], 0, [2], [1e-2] * 2, 4)
    assert found.shape == (1, 20) and not torch.equal(found, job.branches.along(["red"], 0, [2], [1e-2] * 2, 4))


def test_a_branch_that_diverges_is_named(start):
    job = start.job(recipe={**RECIPE, "learning_rate": 1e30})
    with pytest.raises(MeasurementError) as told:
        branched(job)
    words = str(told.value)
    assert words.startswith("the branch along 'red' with seed 3 diverged at step ")
    assert words.endswith("; lower lookahead.recipe.learning_rate")


def test_what_trains_is_what_peft_trains(start, tmp_path):
    from peft import PeftModel

    from mixlora.checkpoints.loading import load_base

    adapter = write_adapter(tmp_path / "adapter", mixture(router_gradient="none"))
    for own in (start.adapter, adapter):
        loaded = PeftModel.from_pretrained(load_base(BaseSection(base=str(start.base))), own, is_trainable=True)
        expected = {name for name, value in loaded.named_parameters() if value.requires_grad}
        model = checkpoint.load_model(Start(start.base, own, start.tasks).config().model)
        with standing(model, "default"):
            assert {name for name, value in model.named_parameters() if value.requires_grad} == expected != set()
