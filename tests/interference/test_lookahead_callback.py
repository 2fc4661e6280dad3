"""LookaheadCallback: branches along a training, which are those of a real Trainer, and which leave no trace."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.training_args import OptimizerNames

import interference
from interference import LookaheadCallback, prediction
from interference.branching.branches import drawn_by
from interference.branching.readings import Readings
from interference.branching.trainers import batches_of, optimizer_of, standing
from interference.errors import CheckpointError, ConfigError, MeasurementError, RunError, ScopeError
from interference.prediction.horizons import beside
from tests.support.models import batch, llama, llava, lora
from tests.support.needed import needed
from tests.support.small_processors import spaced
from tests.support.watching import (
    MODELS,
    PROBES,
    arguments,
    callback_of,
    examples,
    measuring,
    own_log,
    trained,
    weights,
)


def rows(seed, count=12, image=False):
    """What branches along one task train on."""
    made = batch([12] * count, [4] * count, seed, image)
    return [{key: value[row] for key, value in made.items()} for row in range(count)]


ROWS = {"red": rows(20), "blue": rows(21)}


def looking(trainer, **options):
    given = {"branches": ROWS, "held_out": PROBES, "steps": (1, 3), "every": 2, "seeds": 2}
    return LookaheadCallback(trainer, **{**given, **options})


def looked(out, model, options=None, resume=None, dataset=None, **settings):
    """A Trainer after its training, along which a callback has looked ahead if there are options for it."""
    trainer = Trainer(model=model, args=arguments(out, **settings), train_dataset=dataset or examples())
    if options is not None:
        trainer.add_callback(looking(trainer, **options))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def found_by(trainer):
    return callback_of(trainer, LookaheadCallback).lookaheads


def own(trainer):
    """The Trainer's own entries of its log."""
    return [entry for entry in own_log(trainer) if not any(key.startswith("lookahead/") for key in entry)]


def randomness():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def same(one, other):
    """Whether nested values are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# --- what a training is like afterwards ---

TRAININGS = {
    "AdamW": {"gradient_accumulation_steps": 2, "lr_scheduler_type": "linear", "weight_decay": 0.1},
    "recomputed": {"gradient_checkpointing": True, "warmup_steps": 2, "lr_scheduler_type": "linear"},
    "autocast": {"bf16": True},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "max_grad_norm": 0.0},
    "Adafactor": {"optim": "adafactor"},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("kind", ["lora", "random"])
def test_a_training_goes_on_as_if_nobody_had_branched(tmp_path, kind, settings):
    alone = looked(tmp_path, MODELS[kind](), **settings)
    states = randomness()
    watched = looked(tmp_path, MODELS[kind](), {"every": 1}, **settings)
    assert states == randomness()
    assert set(found_by(watched)) >= {1, 2, 3}
    before = weights(MODELS[kind]())
    for (name, mine), theirs in zip(weights(watched.model).items(), weights(alone.model).values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert any(not torch.equal(value, before[name]) for name, value in weights(watched.model).items())
    assert same(watched.optimizer.state_dict(), alone.optimizer.state_dict())
    assert same(watched.lr_scheduler.state_dict(), alone.lr_scheduler.state_dict())
    assert own(watched) == own(alone) and len(own(alone)) == 5


def test_a_branch_leaves_no_trace_in_the_middle_of_a_training(tmp_path):
    """Every attribute, gradient, mode and buffer, where the optimizer keeps a state and gradients are there."""
    model = MODELS["lora"]()
    seen = []

    class Looked(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            model.base_model.model.model.layers[1].eval()
            model(**PROBES["red"][0]).loss.backward()
            books = state_of(trainer)
            callback._find()
            seen.append(same(books, state_of(trainer)))
            with pytest.raises(ZeroDivisionError), standing(trainer):
                optimizer_of(trainer).param_groups[0]["lr"] = 7.0
                next(iter(optimizer_of(trainer).state.values()))["exp_avg"].zero_()
                model.get_input_embeddings().weight.requires_grad_(True)
                raise ZeroDivisionError
            seen.append(same(books, state_of(trainer)))
            model.zero_grad()

    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=examples())
    callback = looking(trainer)
    trainer.add_callback(Looked())
    trainer.train()
    assert seen == [True] * 8


def state_of(trainer):
    """What a training consists of, copied; objects by their number."""
    optimizer, model = optimizer_of(trainer), trainer.model
    parameters = list(model.named_parameters())
    return {
        "weights": {name: each.detach().clone() for name, each in parameters},
        "gradients": {name: (id(each.grad), each.grad.clone()) for name, each in parameters if each.grad is not None},
        "required": [each.requires_grad for _, each in parameters],
        "buffers": {name: (id(each), each.clone()) for name, each in model.named_buffers()},
        "modes": [module.training for module in model.modules()],
        "random": randomness(),
        "optimizer": json.loads(json.dumps(optimizer.state_dict(), default=lambda value: value.tolist())),
        "state": [
            (id(key), id(value), [id(each) for each in value.values()]) for key, value in optimizer.state.items()
        ],
        "attributes": {name: id(value) for name, value in vars(optimizer).items()},
        "trainer": {name: id(value) for name, value in vars(trainer).items()},
        "synced": trainer.accelerator.gradient_state.sync_gradients,
    }


def test_a_scaler_of_gradients_is_as_before(tmp_path):
    """As under fp16, which takes a GPU."""
    trainer = Trainer(model=MODELS["lora"](), args=arguments(tmp_path), train_dataset=examples())
    trainer.create_optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    scaler.scale(torch.ones(()))  # makes its tensors
    trainer.accelerator.scaler = scaler
    before = (scaler.state_dict(), id(scaler._scale), scaler._scale.clone())
    with standing(trainer):
        scaler.scale(trainer.model(**PROBES["red"][0]).loss).backward()
        scaler.step(trainer.optimizer)
        scaler.update()
        assert scaler.get_scale() == 16.0
    assert (scaler.state_dict(), id(scaler._scale), scaler._scale) == before
    assert trainer.optimizer.state == {} and all(each.grad is None for each in trainer.model.parameters())


@pytest.mark.slow
def test_both_callbacks_along_one_training(tmp_path):
    """What one measures does not depend on the other."""
    alone = looked(tmp_path, MODELS["random"](), {"every": 2})
    trainer = Trainer(model=MODELS["random"](), args=arguments(tmp_path), train_dataset=examples())
    for callback in (looking(trainer), measuring(trainer)):
        trainer.add_callback(callback)
    trainer.train()
    measured = callback_of(trained(tmp_path, MODELS["random"](), [{"every": 2}])).runs
    assert all(np.array_equal(one.losses, found_by(trainer)[step].losses) for step, one in found_by(alone).items())
    assert list(callback_of(trainer).runs) == list(measured) == [0, 2, 4]
    assert all(np.array_equal(run.gram(), callback_of(trainer).runs[step].gram()) for step, run in measured.items())


# --- what a branch is ---


class Ordered(Trainer):
    """Takes its examples in their order."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset)


class Read(TrainerCallback):
    """Draws what each step drops as a branch does, and reads every held-out example's loss by itself after steps."""

    def __init__(self, model, begun, seed, task, steps):
        self.model, self.begun, self.seed, self.task, self.steps, self.losses = model, begun, seed, task, steps, []

    def on_step_begin(self, args, state, control, **_):
        torch.manual_seed(drawn_by(f"step {state.global_step + 1 - self.begun}", repr(self.task), self.seed))

    def on_step_end(self, args, state, control, **_):
        if state.global_step - self.begun in self.steps:
            self.losses.append(plain_losses(self.model))


def plain_losses(model):
    """The losses of the held-out examples, one by one."""
    forward = getattr(model, "_original_forward", model)  # without autocast
    training, found = model.training, []
    model.eval()
    with torch.no_grad():
        for given in (each for task in PROBES.values() for each in task):
            for row, length in enumerate(given["attention_mask"].sum(dim=1).tolist()):
                one = {key: value[row : row + 1, :length] for key, value in given.items()}
                found.append(forward(**one).loss.item())
    model.train(training)
    return found


PARITY = {
    "AdamW": {"weight_decay": 0.1, "gradient_accumulation_steps": 2},
    "hard clipping": {"max_grad_norm": 0.01},
    "autocast": {"bf16": True},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", PARITY.values(), ids=PARITY)
def test_a_branch_is_a_training_on_one_task_that_is_resumed_there(tmp_path, settings):
    """Against a Trainer of its own, from the checkpoint that the training saved at this step."""
    model = MODELS["lora"]
    saving = {"save_strategy": "steps", "save_steps": 2, **settings}
    trainer = looked(tmp_path, model(), {"every": 2, "first": False}, **saving)
    found, size = found_by(trainer)[2], 2 * settings.get("gradient_accumulation_steps", 1)
    made = callback_of(trainer, LookaheadCallback)._made
    for seed, task in ((0, "red"), (1, "blue")):
        order = batches_of(made.rows[task], size, drawn_by("order", task, seed))
        taken = [row.item() for _ in range(4) for row in next(order)]
        other = model()
        args = arguments(tmp_path / "alone", max_steps=5, ignore_data_skip=True, **settings)
        alone = Ordered(model=other, args=args, train_dataset=taken)
        read = Read(other, 2, seed, task, [1, 3])
        alone.add_callback(read)
        alone.train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-2"))
        theirs = found.losses[found.seeds.index(seed), found.tasks.index(task)]
        np.testing.assert_allclose(theirs, read.losses, rtol=1e-6)
        assert np.abs(theirs - found.examples["loss"].to_numpy()).max() > 1e-3  # the branch has moved


def test_losses_before_are_those_of_the_weights_at_the_step(tmp_path):
    first = plain_losses(MODELS["lora"]())
    trainer = looked(tmp_path, MODELS["lora"](), {"every": 4})
    found = found_by(trainer)
    np.testing.assert_allclose(found[0].examples["loss"], first, rtol=1e-5)
    np.testing.assert_allclose(found[4].examples["loss"], plain_losses(trainer.model), rtol=1e-5)
    assert found[0].examples["task"].tolist() == ["red"] * 5 + ["blue"] * 4
    assert found[0].examples["tokens"].tolist() == [3, 1, 5, 2, 4, 2, 6, 3, 3]


def test_rows_are_taken_without_end_and_each_as_often():
    given = list(range(5))
    batches = batches_of(given, 3, 1)
    taken = [each for _ in range(5) for each in next(batches)]
    assert sorted(taken) == sorted(given * 3) and sorted(taken[:5]) == given
    again = batches_of(given, 3, 1)
    assert taken == [each for _ in range(5) for each in next(again)]
    assert next(batches_of(given, 5, 2)) != taken[:5]


def test_pictures_and_a_full_fine_tuning_without_an_adapter(tmp_path):
    branches = {"red": rows(30, 8, image=True), "blue": rows(31, 8, image=True)}
    held_out = {task: [batch([12, 9], [3, 2], seed=k, image=True)] for k, task in enumerate(("red", "blue"))}
    options = {"branches": branches, "held_out": held_out, "every": 1}
    alone, watched = (
        looked(tmp_path, llava(), given, dataset=examples(image=True), max_steps=2) for given in (None, options)
    )
    assert list(found_by(watched)) == [0, 1, 2]
    assert all(torch.equal(p, weights(alone.model)[name]) for name, p in weights(watched.model).items())
    assert same(watched.optimizer.state_dict(), alone.optimizer.state_dict())


def test_the_trainers_own_loss_is_trained_on_and_read(tmp_path):
    settings = {"label_smoothing_factor": 0.1}
    alone, watched = (looked(tmp_path, MODELS["lora"](), given, **settings) for given in (None, {"every": 4}))
    assert all(torch.equal(p, weights(alone.model)[name]) for name, p in weights(watched.model).items())
    found = found_by(watched)[4]
    assert found.meta["loss"] == "Trainer.compute_loss with label smoothing 0.1, one example per backward pass"
    assert not np.allclose(found.examples["loss"], plain_losses(watched.model), rtol=1e-3)


@pytest.mark.slow
def test_trl_keeps_its_running_means(tmp_path):
    datasets, trl = needed("datasets"), needed("trl")
    colours = ["red", "blue", "green", "white", "black", "small", "large", "round"]
    data = [
        {
            "prompt": f"what is the {colours[k % 8]} of a",
            "completion": f" ball this {colours[k // 8]}",
            "task": "ab"[k % 2],
        }
        for k in range(32)
    ]

    def run(options):
        settings = {"bf16": False, "max_length": 32, "max_steps": 4, "logging_steps": 3}
        trainer = trl.SFTTrainer(
            model=lora(llama()), args=arguments(tmp_path, trl.SFTConfig, **settings), processing_class=spaced(),
            train_dataset=datasets.Dataset.from_list(data[:24]), eval_dataset=datasets.Dataset.from_list(data[24:]),
        )  # fmt: skip
        if options is not None:
            held_out = interference.trainer_batches(trainer, "task", split="eval")
            trainer.add_callback(looking(trainer, branches="task", held_out=held_out, **options))
        trainer.train()
        return trainer

    alone, watched = run(None), run({"every": 1})
    assert own(watched) == own(alone) and "mean_token_accuracy" in own(alone)[0]
    assert list(found_by(watched)) == [0, 1, 2, 3, 4] and found_by(watched)[0].tasks == ["a", "b"]
    assert all(torch.equal(p, weights(alone.model)[name]) for name, p in weights(watched.model).items())
    assert same(watched.optimizer.state_dict(), alone.optimizer.state_dict())


# --- what it keeps and logs ---


def test_a_lookahead_of_each_step_is_saved_and_read_like_any_other(tmp_path, interference):
    looked(tmp_path, MODELS["lora"](), {"out": tmp_path / "ahead"})
    assert sorted(path.name for path in (tmp_path / "ahead").iterdir()) == ["step-0", "step-2", "step-4"]
    found = prediction.load(tmp_path / "ahead" / "step-2")
    assert (found.steps, found.seeds, found.tasks) == ([1, 3], [0, 1], ["red", "blue"])
    assert found.losses.shape == (2, 2, 2, 9) and found.meta["step"] == 2 and found.meta["adapter"] == "default"
    assert found.meta["recipe"]["learning_rate"] == 0.02 and found.meta["recipe"]["batch_size"] == 2
    assert found.matrix("delta").loc["red", "red"] > 0
    said = interference("lookahead", tmp_path / "ahead" / "step-2")
    assert said.code == 0 and said.out.startswith(
        "recipe (Trainer at step 2): AdamW with the state that it had, a constant rate of 0.02, batches of 2 examples"
    )


def test_the_page_shows_the_one_beside_a_run(tmp_path):
    trainer = looked(tmp_path, MODELS["lora"](), {"every": 4, "out": tmp_path / "ahead", "first": False})
    run = interference.compute(trainer.model, PROBES)
    run.save(tmp_path / "run")
    (tmp_path / "ahead" / "step-4").rename(tmp_path / "run-lookahead")
    found, why = beside(tmp_path / "run", interference.load(tmp_path / "run"))
    assert why == "" and found.tasks == ["red", "blue"]


def test_what_is_logged(tmp_path):
    trainer = looked(tmp_path, MODELS["lora"]())
    assert not any(key.startswith("lookahead/") for entry in trainer.state.log_history for key in entry)
    trainer = looked(tmp_path, MODELS["lora"](), {"every": 4, "held_out": SURE})
    logged = {entry["step"]: entry for entry in trainer.state.log_history if any("lookahead/" in key for key in entry)}
    assert list(logged) == [0, 4]
    for step, found in found_by(trainer).items():
        table = found.table("interference", 3)
        wanted = {
            f"lookahead/{row.affected}/{row.stepped}": row.value
            for row in table.itertuples()
            if row.affected != row.stepped and row.verdict != "no-signal"
        }
        assert wanted and wanted == {key: value for key, value in logged[step].items() if key not in ("step", "epoch")}


SURE = {
    task: [{key: torch.stack([row[key] for row in rows(20 + k)]) for key in ("input_ids", "attention_mask", "labels")}]
    for k, task in enumerate(["red", "blue"])
}
for _given in SURE.values():  # what is trained on, but for a token
    _given[0]["input_ids"][:, 1] -= 1


@pytest.mark.parametrize(
    ("options", "settings", "steps"),
    [
        ({}, {"max_steps": 5}, [0, 2, 4, 5]),
        ({"first": False, "last": False}, {"max_steps": 5}, [2, 4]),
        ({}, {"warmup_steps": 3, "lr_scheduler_type": "linear"}, [2]),  # the rate of steps 0 and 4 is 0
    ],
)
def test_when_it_looks_ahead(tmp_path, options, settings, steps):
    trainer = looked(tmp_path, lora(llama()), options, **settings)
    assert list(found_by(trainer)) == steps


@pytest.mark.slow
def test_a_resumed_training_continues_the_series(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = looked(tmp_path / "whole", MODELS["random"](), {"out": tmp_path / "whole" / "ahead"}, **settings)
    out = tmp_path / "ahead"
    looked(tmp_path, MODELS["random"](), {"out": out}, **settings)
    kept = (out / "step-2" / "lookahead.json").stat().st_mtime_ns
    checkpoint = str(tmp_path / "trained" / "checkpoint-2")
    resumed = looked(tmp_path, MODELS["random"](), {"out": out}, resume=checkpoint, **settings)
    assert kept == (out / "step-2" / "lookahead.json").stat().st_mtime_ns
    found, wanted = found_by(resumed), found_by(whole)
    assert list(found) == list(wanted) == [0, 2, 4, 6]
    assert len({each.meta["series"] for each in found.values()}) == 1
    for step, each in found.items():
        np.testing.assert_allclose(each.losses, wanted[step].losses, rtol=1e-5, err_msg=str(step))
        pd.testing.assert_frame_equal(each.examples, wanted[step].examples, rtol=1e-5)
    with pytest.raises(RunError, match=r"already holds a series \(step-0\); choose another out, delete the directory"):
        looked(tmp_path, lora(llama()), {"out": out})


# --- what it refuses ---


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"every": 0}, ConfigError, "every is 0, but must be at least 1 optimizer step"),
        ({"seeds": 1}, ConfigError, "seeds is 1, but must be at least 2: intervals are over seeds, too"),
        ({"seed": -1}, ConfigError, "seed is -1, but must be a whole number from 0"),
        ({"steps": (0, 1)}, ConfigError, r"steps is \(0, 1\): a branch of 0 steps is where the training stands; begin"),
        ({"steps": (2, 1)}, ConfigError, r"steps is \(2, 1\): is not ascending"),
        ({"steps": (1.5,)}, ConfigError, r"steps is \(1.5,\), but must be whole numbers of optimizer steps, as \(1, 5"),
        ({"steps": ()}, ConfigError, r"steps is \(\), but must be whole numbers"),
        ({"held_out": {"red": PROBES["red"]}}, ScopeError, "of pairs of tasks, but held_out has one task; give it ano"),
        ({"held_out": {**PROBES, "blue": iter(PROBES["blue"])}}, ScopeError, "gives its batches only once"),
        ({"groups": {"red": [1] * 5}}, ScopeError, "groups has no task 'blue'"),
    ],
)
def test_settings_are_refused_where_they_are_made(tmp_path, options, error, words):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path), train_dataset=examples())
    with pytest.raises(error, match=words):
        looking(trainer, **options)


SHARED = [*ROWS["red"][:5], {key: value[0] for key, value in batch([8], [2], seed=40).items()}]
DOUBLE = {key: torch.cat([value, value]) for key, value in batch([8], [2], seed=40).items()}
ALONE = {key: value[:, :8] for key, value in batch([8, 9], [3, 4], seed=40).items()}


@pytest.mark.parametrize("start", [{"first": True}, {"first": False}, {"first": True, "warmup_steps": 2}])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"branches": {**ROWS, "green": rows(3)}}, ScopeError, "branches has the tasks red, blue, green, but held_out"),
        (
            {"branches": {**ROWS, "red": SHARED}, "held_out": {**PROBES, "blue": [DOUBLE, *PROBES["blue"]]}},
            ScopeError,
            r"the dataset of task 'red', row 5 \(task 'red'\) is what branches train on, but is also read \(blue",
        ),
        ({"held_out": {**PROBES, "blue": [DOUBLE]}}, ScopeError, "the held-out examples of task 'blue' are one group"),
        ({"branches": {**ROWS, "red": ROWS["red"][:1]}}, ScopeError, "task 'red' has 1 rows; at least 2 are needed"),
        ({"branches": "topic"}, ScopeError, "does not have the column 'topic' in every row"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path, options, error, words, start):
    settings = {"lr_scheduler_type": "linear", "warmup_steps": start.get("warmup_steps", 0)}
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path, **settings), train_dataset=examples())
    callback = looking(trainer, first=start["first"], **options)
    trainer.add_callback(callback)
    with pytest.raises(error, match=words):
        trainer.train()
    assert trainer.state.global_step == 0 and callback.lookaheads == {}


def test_an_example_is_known_by_tokens_and_pictures_whatever_its_padding(tmp_path):
    trainer = Trainer(model=llava(), args=arguments(tmp_path), train_dataset=examples())
    given = batch([12, 9], [3, 2], seed=1, image=True)
    read = Readings(trainer, {"red": [given], "blue": [batch([9, 9], [3, 2], seed=5, image=True)]}, None, 0)
    one = {key: value[1:, :9] if value.dim() == 2 else value[1:] for key, value in given.items()}
    one["labels"] = torch.where(one["labels"] == -100, one["input_ids"], -100)  # supervised otherwise
    assert read.place_of(one) == "red batch 0 row 1"
    assert read.place_of({**one, "pixel_values": -one["pixel_values"]}) is None
    assert read.place_of({**one, "input_ids": one["input_ids"] + 1}) is None


def test_trainings_that_cannot_be_branched_are_refused(tmp_path, monkeypatch):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path), train_dataset=examples())
    callback = looking(trainer)

    def refused(error, words):
        with pytest.raises(error, match=words):
            callback.on_train_begin(trainer.args, trainer.state, trainer.control)

    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    refused(CheckpointError, "the training uses FSDP, where no process has the whole")
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    state = trainer.accelerator.state  # shared by every Accelerator: put back by monkeypatch
    monkeypatch.setitem(state.__dict__, "deepspeed_plugins", DeepSpeedPlugin(zero_stage=2))
    monkeypatch.setitem(state.__dict__, "distributed_type", DistributedType.DEEPSPEED)
    refused(CheckpointError, "the training uses DeepSpeed, whose state cannot be set aside for a branch; train with a")
    monkeypatch.undo()
    monkeypatch.setattr(trainer.args, "optim", OptimizerNames.LOMO)
    refused(CheckpointError, "the training uses the optimizer lomo, whose state cannot be set aside")
    monkeypatch.undo()
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    refused(MeasurementError, "branches are trained in one process, but 2 train; start one process")
    monkeypatch.undo()
    trainer.create_optimizer()
    trainer.optimizer.is_paged = True  # as bitsandbytes says of its own
    refused(CheckpointError, "the training uses a paged optimizer, whose state cannot be set aside")


def test_a_branch_that_diverges_ends_the_training(tmp_path):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path, learning_rate=1e30), train_dataset=examples())
    trainer.add_callback(looking(trainer))
    before = weights(trainer.model)
    words = (
        r"the branch along 'red' with seed 0 diverged at step [12]: .*; lower the learning rate, or take fewer steps"
    )
    with pytest.raises(MeasurementError, match=words):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer.model).items())


def test_groups_and_copies_are_not_independent(tmp_path):
    trainer = Trainer(model=lora(llama()), args=arguments(tmp_path), train_dataset=examples())
    copied = {"red": PROBES["red"], "blue": [*PROBES["blue"], PROBES["red"][1]]}
    groups = {"red": ["a", "a", "b", "c", "d"], "blue": ["a", "e", "f", "g", "h", "i"]}
    plain, labelled = (Readings(trainer, copied, given, 0).table()["group"].tolist() for given in (None, groups))
    assert plain == [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 4]
    assert labelled == [0, 0, 1, 2, 3, 0, 4, 5, 6, 2, 3]
