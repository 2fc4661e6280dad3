"""from_trainer: what is measured is the gradient of `trainer.training_step` on each example alone."""

import copy
import functools
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Trainer
from trl import SFTConfig, SFTTrainer

import interference
from interference.errors import MeasurementError, RunError, ScopeError
from interference.run.remarks import PLAIN_LOSS, other_loss
from tests.support.mixtures import mixture
from tests.support.models import SHAPE, batch, llama, lora
from tests.support.small_processors import byte_level
from tests.support.watching import arguments

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TASKS = ("red", "blue")
QUESTIONS = ["What is shown?", "What is it? Be brief.", "Is this Paris?", "system: What?"]


def rows_of_tokens():
    """Rows without padding, of several lengths; the last tokens are supervised."""
    made = batch([9, 12, 7, 11, 8, 10], [3, 5, 2, 4, 1, 3])
    rows = []
    for k in range(6):
        kept = made["attention_mask"][k].bool()
        row = {key: value[k][kept].tolist() for key, value in made.items()}
        rows.append({**row, "task": TASKS[k % 2], "note": "unused"})
    return rows


def padded(features):
    """A collator that pads on the right."""
    longest = max(len(row["input_ids"]) for row in features)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in features])
        for key, value in fill.items()
    }


def plain(folder, kind=Trainer, dataset=None, model=None, **options):
    func = options.pop("compute_loss_func", None)
    return kind(
        model=model or lora(llama()),
        args=arguments(folder, **options),
        train_dataset=Dataset.from_list(rows_of_tokens()) if dataset is None else dataset,
        data_collator=padded,
        compute_loss_func=func,
    )


def talkative():
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": 600}
    return LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=48, num_key_value_heads=2))


def tuned(folder, form="messages", dataset=None, kind=SFTTrainer, func=None, **options):
    tokenizer = byte_level()
    tokenizer.chat_template = MARKED
    return kind(
        model=lora(talkative()),
        args=arguments(folder, SFTConfig, bf16=False, gradient_checkpointing=False, **options),
        train_dataset=Dataset.from_list(records(form)) if dataset is None else dataset,
        processing_class=tokenizer,
        compute_loss_func=func,
    )


def records(form):
    pairs = [(question, f"{answer} is shown.") for answer in ("Paris", "system") for question in QUESTIONS]
    rows = []
    for k, (question, answer) in enumerate(pairs):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        kinds = {
            "messages": {"messages": turns},
            "completion": {"prompt": question, "completion": f" {answer}"},
            "text": {"text": f"{question} {answer}"},
        }
        rows.append({**kinds[form], "task": TASKS[k % 2]})
    return rows


class Doubled(Trainer):
    """Twice the loss, and the square of the mean logit."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return 2 * loss + outputs.logits.mean() ** 2


def focal(outputs, labels, num_items_in_batch=None):
    """A sum over the step's tokens, as a compute_loss_func has it."""
    losses = F.cross_entropy(outputs.logits[0, :-1], labels[0, 1:], reduction="none", ignore_index=-100)
    count = (labels[0, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return ((1 - (-losses).exp()) * losses).sum() / count


TRAINERS = {
    "trainer": (plain, {}, None),
    "smoothing": (plain, {"label_smoothing_factor": 0.1}, "label smoothing 0.1"),
    "subclass": (plain, {"kind": Doubled}, "Doubled.compute_loss with a compute_loss of its own"),
    "function": (plain, {"compute_loss_func": focal}, "compute_loss_func focal"),
    "mixlora": (lambda folder: plain(folder, model=mixture()), {}, None),
    "mixlora-smoothing": (
        lambda folder: plain(folder, model=mixture(), label_smoothing_factor=0.1),
        {},
        "label smoothing 0.1",
    ),
    "sft": (tuned, {}, None),
    "sft-answers": (tuned, {"assistant_only_loss": True}, None),
    "sft-completion": (tuned, {"form": "completion", "completion_only_loss": True}, None),
    "sft-text": (tuned, {"form": "text", "max_length": 12}, None),
    "sft-smoothing": (tuned, {"label_smoothing_factor": 0.2}, "label smoothing 0.2"),
    "sft-function": (tuned, {"func": focal}, "compute_loss_func focal"),
    "sft-dft": (tuned, {"loss_type": "dft"}, "loss_type dft"),
}


def stepped(trainer, batches):
    """The Gram matrix of the gradients that `training_step` leaves, one example at a time, and its losses."""
    model, rows, losses = trainer.model, [], []
    trainer.current_gradient_accumulation_steps = 1
    for one in [one for given in batches.values() for one in given]:
        model.zero_grad()
        inputs = {key: value for key, value in one.items() if key != "tasks"}
        losses.append(float(trainer.training_step(model, inputs)))
        factors = [p for n, p in model.named_parameters() if p.requires_grad and "router" not in n]
        grads = [p.grad.flatten() for p in factors]
        rows.append(torch.cat(grads).double())
    model.zero_grad()
    whole = torch.stack(rows)
    return (whole @ whole.T).numpy(), losses


@pytest.mark.parametrize("name", TRAINERS)
def test_gradients_are_those_of_the_training_step(name, tmp_path):
    make, options, words = TRAINERS[name]
    trainer = make(tmp_path, **options)
    run = interference.from_trainer(trainer, by="task", samples=50)
    assert list(run.tasks) == list(TASKS) and len(run.probes) == len(trainer.train_dataset)
    expected, losses = stepped(trainer, interference.trainer_batches(trainer, samples=50))
    norms = np.sqrt(np.diagonal(expected))
    assert norms.min() > 0
    assert np.abs(run.gram() - expected).max() <= 1e-5 * np.outer(norms, norms).max()
    assert (np.abs(run.gram() - expected) / np.outer(norms, norms)).max() <= 2e-5
    assert_close(run.probes["loss"].to_numpy(), np.array(losses), rtol=1e-5, atol=1e-6)
    if words is None:
        assert run.meta["loss"] == PLAIN_LOSS and other_loss(run.meta) is None
    else:
        assert words in run.meta["loss"] and run.meta["loss"].endswith("one example per backward pass")
        assert run.meta["conventions"]["loss"] == run.meta["loss"] and words in other_loss(run.meta)
    assert run.meta["trainer"] == {
        "class": type(trainer).__name__, "by": "task", "samples": 50, "split": "train", "groups": "image"
    }  # fmt: skip


def test_a_collator_that_joins_rows_is_given_one_at_a_time(tmp_path):
    trainer = tuned(tmp_path, assistant_only_loss=True)
    run = interference.from_trainer(trainer)
    trainer.data_collator.padding_free = True
    batches = interference.trainer_batches(trainer)
    assert "attention_mask" not in batches["red"][0] and batches["red"][0]["position_ids"].shape[0] == 1
    assert_close(interference.from_trainer(trainer).gram(), run.gram(), rtol=1e-4, atol=1e-5)


def test_the_plain_loss_is_measured_in_batches_and_another_one_by_one(tmp_path, monkeypatch):
    shapes = []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def counted(self, *args, **kwargs):
        shapes.append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    interference.from_trainer(plain(tmp_path, per_device_train_batch_size=3))
    assert shapes == [1, 1, 3, 3]  # one example by both losses, then the batches
    shapes.clear()
    interference.from_trainer(plain(tmp_path, label_smoothing_factor=0.1))
    assert shapes == [1] * 6


@pytest.mark.parametrize("name", ["smoothing", "sft-answers", "sft-dft", "sft-function"])
def test_trainer_and_model_come_back_as_they_were(name, tmp_path):
    make, options, _ = TRAINERS[name]
    trainer = make(tmp_path, **options)
    trainer.model.train()
    trainer.model.base_model.model.model.layers[1].eval()
    books = copy.deepcopy(vars(trainer).get("_metrics"))
    attributes, data = dict(vars(trainer)), trainer.train_dataset.to_list()

    def state():
        model = trainer.model
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            [parameter.detach().clone().tolist() for name, parameter in model.named_parameters() if "lora" in name],
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )

    before = state()
    interference.from_trainer(trainer, samples=3)
    assert state() == before and all(parameter.grad is None for parameter in trainer.model.parameters())
    assert vars(trainer).keys() == attributes.keys()
    assert all(vars(trainer)[key] is value for key, value in attributes.items())
    assert vars(trainer).get("_metrics") == books and trainer.train_dataset.to_list() == data


def test_datasets_by_task_are_prepared_as_the_trainers_own(tmp_path):
    trainer = tuned(tmp_path, assistant_only_loss=True)
    whole = interference.from_trainer(trainer)
    rows = records("messages")
    parts = {task: Dataset.from_list([row for row in rows if row["task"] == task]) for task in TASKS}
    apart = interference.from_trainer(trainer, by=parts)
    order = np.argsort(whole.probes["loss"]), np.argsort(apart.probes["loss"])
    assert_close(apart.gram()[np.ix_(order[1], order[1])], whole.gram()[np.ix_(order[0], order[0])])
    listed = interference.from_trainer(trainer, by={task: list(part) for task, part in parts.items()})
    assert_close(listed.gram(), apart.gram())


def test_a_dataset_for_evaluation_and_lists_of_rows(tmp_path):
    rows = rows_of_tokens()
    trainer = plain(tmp_path, dataset=Dataset.from_list(rows[:2]))
    trainer.eval_dataset = rows
    run = interference.from_trainer(trainer, split="eval")
    assert_close(run.gram(), interference.from_trainer(plain(tmp_path)).gram())
    assert run.probes["source"][0].startswith("eval_dataset, row ")
    trainer.eval_dataset = {task: Dataset.from_list([row for row in rows if row["task"] == task]) for task in TASKS}
    assert len(interference.from_trainer(trainer, by=trainer.eval_dataset).probes) == 6
    with pytest.raises(ScopeError, match=r"eval_dataset is a dict of datasets; .*by=trainer.eval_dataset"):
        interference.from_trainer(trainer, split="eval")


def test_rows_are_drawn_with_the_seed(tmp_path):
    trainer = plain(tmp_path)
    drawn = [tuple(interference.from_trainer(trainer, samples=2, seed=seed).probes["ids"]) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1 and len(drawn[0]) == 4
    batches = interference.trainer_batches(trainer, samples=2)
    assert [int(one["input_ids"].shape[1]) for given in batches.values() for one in given] == [
        len(trainer.train_dataset[int(row)]["input_ids"]) for row in drawn[0]
    ]


def refused(error, words, make, **options):
    with pytest.raises(error, match=words):
        interference.from_trainer(make, **options)


def test_refusals(tmp_path):
    refused(ScopeError, r"does not have the column 'kind' in every row, but input_ids.*by=", plain(tmp_path), by="kind")
    rows = rows_of_tokens()
    refused(
        ScopeError,
        r"does not have the column 'kind' in every row, but input_ids",
        plain(tmp_path, dataset=rows),
        by="kind",
    )
    lonely = Dataset.from_list([*rows, {**rows[0], "task": "green"}])
    refused(ScopeError, r"task 'green' has 1 rows; at least 2", plain(tmp_path, dataset=lonely))
    streamed = Dataset.from_list(rows).to_iterable_dataset()
    refused(ScopeError, r"train_dataset is of IterableDataset, an iterable", plain(tmp_path, dataset=streamed))
    trainer = plain(tmp_path)
    trainer.train_dataset = None
    refused(ScopeError, r"the trainer has no train_dataset; give it one, or .*by=\{task: dataset\}", trainer)
    refused(ScopeError, r"samples=1 is too few", plain(tmp_path), samples=1)
    refused(ScopeError, r"split 'test' is not one of train, eval", plain(tmp_path), split="test")
    dumb = Dataset.from_list([*rows, {**rows[0], "labels": [-100] * 9}])
    refused(ScopeError, r"train_dataset, row 6 \(task 'red'\): no token is supervised", plain(tmp_path, dataset=dumb))
    odd = Dataset.from_list([{**row, "task": [row["task"]]} for row in rows])
    refused(ScopeError, r"train_dataset, row 0: task is \['red'\], but must be the name", plain(tmp_path, dataset=odd))


def test_packed_rows_are_refused(tmp_path):
    trainer = tuned(tmp_path, packing=True, max_length=64)
    refused(ScopeError, r"packs several examples into a row.*packing=False", trainer)
    many = {task: trainer.train_dataset.select([0, 0]) for task in TASKS}
    refused(ScopeError, r"task 'red'.*several packed examples.*packing=False", trainer, by=many)


def test_other_losses_are_verified_by_the_same_loss(tmp_path):
    trainer = plain(tmp_path, label_smoothing_factor=0.1)
    run = interference.from_trainer(trainer, layers=[1])
    batches = interference.trainer_batches(trainer)
    found = interference.verify(run, trainer.model, batches, loss=trainer.compute_loss)
    assert found.passed and found.gram_error < 1e-5 and found.linear_until > 0
    with pytest.raises(RunError, match=r"label smoothing 0.1.*loss=trainer.compute_loss.*trainer_batches"):
        interference.verify(run, trainer.model, batches)
    other = interference.verify(run, trainer.model, batches, loss=lambda model, batch: 3 * model(**batch).loss)
    assert not other.passed and other.gram_error > 0.1


def test_a_trainer_whose_batches_have_no_labels_is_refused(tmp_path):
    trainer = plain(tmp_path)
    trainer.data_collator = lambda rows: {"input_ids": padded(rows)["input_ids"]}
    refused(ScopeError, r"row \d+ \(task '\w+'\): the trainer's collator gives no labels, only input_ids", trainer)


def test_a_training_step_of_its_own_is_named(tmp_path):
    class Clipped(Trainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    run = interference.from_trainer(plain(tmp_path, kind=Clipped))
    assert other_loss(run.meta).endswith("its own training_step is not followed")


def test_several_processes_are_refused(tmp_path, monkeypatch):
    trainer = plain(tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    refused(MeasurementError, r"measures in one process, but 2 train; start one process", trainer)
