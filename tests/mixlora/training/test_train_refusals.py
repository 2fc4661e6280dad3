"""What a training refuses, in which words, and what is left behind."""

import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from mixlora.checkpoints import loading
from mixlora.common import processes, settings
from mixlora.common.errors import CheckpointError, ConfigError, DataError, RunError, TrainingError
from mixlora.data import mini
from mixlora.training import config, run
from mixlora.training.trainer import arguments
from tests.support.adapted import llama
from tests.support.evaluations import files
from tests.support.trainings import TASKS, made, values


def refused(kind, made_config):
    """The words with which a training is refused."""
    with pytest.raises(kind) as error:
        run.train(made_config)
    return str(error.value)


def with_setting(out, setting, method="lora"):
    return config.load(None, (), settings.overridden(values(out, method), [setting], {}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One step of a LoRA."""
    return run.train(made(tmp_path_factory.mktemp("trained") / "out", training={"steps": 1}))[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("out=null", "the configuration names no directory for what is trained; give out: or --out"),
        (
            "model.device=cuda:3",
            "model.device is 'cuda:3', but training takes auto, cpu or cuda; choose a GPU by CUDA_VISIBLE_DEVICES",
        ),
        ("mixlora.routing=expert", "mixlora: routing is 'expert', but must be one of: instance, task, random"),
        ("mixlora.num_factors=1", "mixlora: r is 2, but there are only num_factors=1 factors to choose from"),
        ("training.batch_size=25", "training.batch_size is 25, but there are only 24 examples; choose a smaller one"),
    ],
)
def test_options_are_refused_before_a_base_is_loaded(tmp_path, monkeypatch, setting, message):
    monkeypatch.setattr(loading, "load_base", lambda *_, **__: pytest.fail("a base was loaded"))
    assert refused(ConfigError, with_setting(tmp_path / "out", setting, "mixlora")) == message
    assert not (tmp_path / "out").exists()


def test_a_batch_that_no_specialist_has_is_refused_before_any_is_trained(tmp_path):
    tasks = TASKS | {"name_ink": {"mini": "train", "samples": 6}}
    message = "task 'name_ink': training.batch_size is 8, but there are only 6 examples; choose a smaller one"
    assert refused(ConfigError, made(tmp_path / "out", "specialist", tasks=tasks)) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("by", [False, True])
@pytest.mark.parametrize("task", ["checkpoints", "snapshots", "logs", "training.json", ".training.json.new", ".lock"])
def test_a_specialist_by_the_name_of_what_a_training_keeps(tmp_path, task, by):
    records = [{"id": str(n), "prompt": f"p {n}", "response": "r", "name": task} for n in range(8)]
    entry = jsonl(tmp_path / "t.jsonl", records)
    tasks = {"many": entry | {"by": "name"}} if by else {task: entry}
    assert refused(ConfigError, made(tmp_path / "out", "specialist", tasks=tasks)) == (
        f"task {task!r}: its specialist would be {tmp_path / 'out' / task}, which the training needs for its "
        "own files; give the task another name"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["lora", "specialist"])
def test_a_snapshot_beyond_the_last_step_is_refused_before_a_base_is_loaded(tmp_path, monkeypatch, method):
    epochs = {"steps": None, "epochs": 1.5}
    last = 5 if method == "lora" else 3  # 24 or 12 examples in batches of 8: 3 or 2 an epoch
    with monkeypatch.context() as patched:
        patched.setattr(loading, "load_base", lambda *_, **__: pytest.fail("a base was loaded"))
        wanted = made(tmp_path / "out", method, training=epochs | {"snapshots": [0, last, last + 1]})
        message = refused(ConfigError, wanted)
    where = "" if method == "lora" else "task 'read_word': "
    assert message == f"{where}training.snapshots asks for step {last + 1}, but the last one is {last}; leave it out"
    assert not (tmp_path / "out").exists()
    path = run.train(made(tmp_path / "out", method, training=epochs | {"snapshots": [last]}))[0]
    assert json.loads((path / "training.json").read_text())["steps"] == last
    assert [own.name for own in (path / "snapshots").iterdir()] == [f"step-{last}"]


def test_batches_that_do_not_divide_among_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError) as error:
        arguments(made(tmp_path, training={"micro_batch_size": 4}).training, None, "cpu", False)
    message = (
        "training.batch_size 8 is not a multiple of micro_batch_size 4 x 3 processes; choose one that is, or another "
        "training.micro_batch_size"
    )
    assert str(error.value) == message


@pytest.mark.parametrize(("processes", "micro"), [(1, 8), (2, 4), (8, 1)])
def test_processes_share_a_batch_where_nothing_else_is_said(tmp_path, processes, micro):
    assert made(tmp_path).training.micro(processes) == micro


def test_two_entries_of_one_task(tmp_path):
    record = {"prompt": "a", "response": "b", "task_name": "read_word"}
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record | {"id": k}) + "\n" for k in range(9)))
    tasks = {"read_word": {"mini": "train", "samples": 12}, "v": {"file": str(tmp_path / "t.jsonl"), "by": "task_name"}}
    message = refused(ConfigError, made(tmp_path / "out", tasks=tasks))
    assert message == "tasks: 'read_word' comes from 'read_word' and from 'v'; give every task a name of its own"


def test_another_trainings_directory_is_refused_before_the_data_is_read(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("x")
    monkeypatch.setattr(run, "gather", lambda *_: pytest.fail("the data was read"))
    assert "exists, but is not a training" in refused(CheckpointError, made(tmp_path))


def test_reports_to_what_is_not_installed(tmp_path):
    message = refused(ConfigError, with_setting(tmp_path / "out", "training.report_to=[paper]"))
    assert message.startswith("training.report_to: 'paper' is not installed here; install it, or choose from: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.lr_scheduler_type=sine", "training.lr_scheduler_type: Input should be 'cosine', 'linear', "),
        (
            "mixlora.routing=task",
            "mixlora.routing is task, but task 'read_word' has no definition; give tasks.read_word",
        ),
        (
            "tasks={many: {file: f, by: task_name}}",
            "mixlora.routing is task, but tasks.many stands for several, which cannot each be defined; give each an ",
        ),
    ],
)
def test_what_no_training_could_use_is_refused_where_it_is_made(tmp_path, setting, message):
    nested = values(tmp_path, "mixlora", mixlora={"routing": "task"} if "many" in setting else {})
    nested = nested | {"tasks": {}} if "many" in setting else nested
    with pytest.raises(ConfigError) as error:
        config.load(None, (), settings.overridden(nested, [setting], {}))
    assert str(error.value).startswith(f"the options: {message}")


@pytest.mark.parametrize("method", ["lora", "mixlora"])
@pytest.mark.parametrize(
    ("targets", "words"),
    [("[q_projection]", "q_projection"), ("'([a'", "unterminated")],
)
def test_targets_that_are_not_there(tmp_path, method, targets, words):
    message = refused(ConfigError, with_setting(tmp_path / "out", f"adapter.target_modules={targets}", method))
    assert message.startswith("adapter.target_modules: ") and words in message
    assert not (tmp_path / "out").exists()


def test_a_projector_of_a_model_without_eyes(tmp_path):
    llama(vocab_size=512).save_pretrained(tmp_path / "base")
    mini.load_base()[1].tokenizer.save_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "base").is_fast
    (tmp_path / "t.jsonl").write_text('{"id": "1", "prompt": "a", "response": "b"}\n')
    wanted = made(
        tmp_path / "out",
        model={"base": str(tmp_path / "base"), "device": "cpu"},
        tasks={"t": {"file": str(tmp_path / "t.jsonl")}},
        adapter={"train_projector": True},
        training={"batch_size": 1},
    )
    assert refused(ConfigError, wanted) == "adapter.train_projector: this base has no projector; leave it out"


def test_a_directory_with_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert refused(CheckpointError, made(tmp_path)) == (
        f"{tmp_path} exists, but is not a training; choose another --out"
    )
    assert refused(CheckpointError, made(tmp_path / "notes.txt")) == (
        f"{tmp_path / 'notes.txt'} exists, but is not a training; choose another --out"
    )


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("training.learning_rate=0.001", "training.learning_rate was 0.005 and is now 0.001"),
        ("method=mixlora", "method was lora and is now mixlora"),
        ("lora.alpha=4", "lora.alpha was 8 and is now 4"),
        ("tasks.name_ink.weight=2", "tasks.name_ink.weight was None and is now 2.0"),
        ("training.seed=1", "training.seed was 0 and is now 1"),
    ],
)
def test_a_directory_of_another_training(trained, setting, difference):
    nested = settings.overridden(values(trained, training={"steps": 1}), [setting], {})
    message = refused(CheckpointError, config.load(None, (), nested))
    assert message == f"{trained} is from a different training ({difference}); choose another --out, or delete it"


@pytest.mark.parametrize("setting", ["mixlora.alpha=9", "training.micro_batch_size=2", "training.save_steps=1"])
def test_what_changes_nothing_that_is_trained_may_differ(trained, setting):
    nested = settings.overridden(values(trained, training={"steps": 1}), [setting], {})
    assert run.train(config.load(None, (), nested)) == [trained]


def test_a_finished_training_says_that_its_base_was_not_compared(trained, tmp_path):
    told = []
    finished = config.load(None, (), values(trained, training={"steps": 1}))
    assert run.train(finished, tell=told.append) == [trained]
    assert told[-1] == f"{trained} was trained before: whether the base has changed since was not checked"
    run.train(made(tmp_path / "new", training={"steps": 1}), tell=told.append)
    assert not any(str(tmp_path / "new") in clause for clause in told)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged; restore it, or train again elsewhere"),
        ('{"format": 1, "data": "", "finished": true}', "is damaged; restore it, or train again elsewhere"),
        ('{"config": {}, "data": "", "finished": true}', "is damaged; restore it, or train again elsewhere"),
        (
            '{"format": 1, "config": 3, "data": "", "finished": true}',
            "is damaged; restore it, or train again elsewhere",
        ),
        ("[" * 10**5, "is damaged; restore it, or train again elsewhere"),
        ("[1]", "is damaged; restore it, or train again elsewhere"),
        ('{"format": 9}', "was written by a newer version (format 9); update task-interference"),
    ],
)
def test_a_record_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "training.json").write_text(text)
    assert refused(CheckpointError, made(tmp_path)).endswith(message)


def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "training.json")
    assert refused(CheckpointError, made(tmp_path)) == (
        f"{tmp_path / 'training.json'} cannot be read: it is a pipe or a device, not a regular file"
    )


@pytest.mark.parametrize(("name", "words"), [("n" * 300, "File name too long"), ("a\0b", "embedded null byte")])
def test_names_that_no_directory_can_have(tmp_path, name, words):
    message = refused(RunError, made(tmp_path / name))
    assert message == f"{tmp_path / name} cannot be written: {words}; choose another --out"


@pytest.mark.parametrize(
    ("key", "value"),
    [("images", "x"), ("outside", True), ("where", {"a": 1}), ("split", "x"), ("fields", {"id": "x"}), ("by", "x")],
)
def test_what_says_how_a_file_is_read_is_refused_beside_the_mini_suite(tmp_path, key, value):
    with pytest.raises(ConfigError) as error:
        made(tmp_path, tasks={"read_word": {"mini": "train", key: value}})
    said = f"the options: tasks.read_word: {key} is for a file; leave it out with mini"
    assert str(error.value) == said
    made(tmp_path, tasks={"read_word": {"mini": "train", key: type(value)() if key != "images" else None}})


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"file": str(path)}


def test_changed_data(tmp_path):
    records = [{"id": str(n), "prompt": f"p {n}", "response": "r"} for n in range(8)]
    wanted = made(tmp_path / "out", tasks={"t": jsonl(tmp_path / "t.jsonl", records)}, training={"steps": 1})
    run.train(wanted)
    records[3]["response"] = "another"
    jsonl(tmp_path / "t.jsonl", records)
    assert refused(CheckpointError, wanted) == (
        f"{tmp_path / 'out'} is from a training on other examples: a data file has changed; choose another --out, or "
        "delete it"
    )


def test_all_that_is_wrong_with_data_is_listed_before_a_base_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_base", lambda *_, **__: pytest.fail("a base was loaded"))
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    good = [{"id": f"g{n}", "prompt": "p", "response": "r", "image": "whole.png"} for n in range(5)]
    no_answer = [{"id": f"a{n}", "prompt": "p"} for n in range(9)]
    no_picture = [{"id": f"p{n}", "prompt": "p", "response": "r", "image": f"none{n}.png"} for n in range(8)]
    half = [{"id": f"h{n}", "prompt": "p", "response": "r", "image": "half.png"} for n in range(7)]
    long = [{"id": "l", "prompt": "p " * 500, "response": "r"}]
    tasks = {
        "one": jsonl(tmp_path / "one.jsonl", good + no_answer + half),
        "two": jsonl(tmp_path / "two.jsonl", no_picture + good + long),
    }
    lines = refused(DataError, made(tmp_path / "out", tasks=tasks, training={"max_length": 200})).split("\n")
    assert lines[0] == "25 records cannot be used; correct or remove these:"
    assert lines[-1] == "  and 5 more"
    assert sum(line.count("one.jsonl:") + line.count("two.jsonl:") for line in lines) == 20
    assert not (tmp_path / "out").exists()


def test_a_task_without_a_record_that_can_be_used(tmp_path):
    tasks = TASKS | {"empty": jsonl(tmp_path / "empty.jsonl", [])}
    message = refused(DataError, made(tmp_path / "out", tasks=tasks))
    assert message == f"Task empty: {tmp_path / 'empty.jsonl'} has no record; give a file with at least one."
    tasks["empty"] = jsonl(tmp_path / "empty.jsonl", [{"id": "1", "prompt": "p"}])
    assert refused(DataError, made(tmp_path / "out", tasks=tasks)).startswith("empty.jsonl:1: ")


def short_of_memory(monkeypatch, step):
    """From that forward on, memory is out."""
    forward, calls = LlavaForConditionalGeneration.forward, []

    def failing(self, *args, **kwargs):
        calls.append(None)
        if len(calls) >= step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", failing)


@pytest.mark.slow
def test_memory_that_runs_out_and_a_smaller_batch_that_goes_on(tmp_path, monkeypatch):
    plain = {"adapter": {"dropout": 0}}
    with monkeypatch.context() as patched:
        short_of_memory(patched, step=4)
        message = refused(TrainingError, made(tmp_path / "out", **plain))
    longest = message.partition("up to ")[2].partition(" ")[0]
    assert message == (
        f"memory ran out with 8 examples of up to {int(longest)} tokens in a forward pass: lower "
        "training.micro_batch_size (batch_size may stay 8), set training.gradient_checkpointing: true, and the same "
        "command continues; or lower training.max_length, with another --out"
    )
    steps = []
    smaller = {"micro_batch_size": 4, "gradient_checkpointing": True}
    told = lambda stage, done, total: steps.append(done) if stage == "training" else None  # noqa: E731
    path = run.train(made(tmp_path / "out", **plain, training=smaller), told)[0]
    assert steps == [3, 4]
    assert json.loads((path / "training.json").read_text())["config"]["training"]["micro_batch_size"] == 4
    whole = run.train(made(tmp_path / "whole", **plain))[0]
    one, other = (load_file(found / "adapter_model.safetensors") for found in (path, whole))
    for name in one:
        assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


POOLED = {"mixlora": {"r": 2, "num_factors": 4, "alpha": 4, "pooling": "all"}}


def test_routers_that_look_at_padding_allow_no_smaller_batch_to_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        short_of_memory(patched, step=4)
        message = refused(TrainingError, made(tmp_path / "out", "mixlora", **POOLED))
    assert "set training.gradient_checkpointing: true, with another --out; or lower training.max_length" in message
    before = files(tmp_path / "out")
    message = refused(CheckpointError, made(tmp_path / "out", "mixlora", **POOLED, training={"micro_batch_size": 4}))
    assert message == (
        f"{tmp_path / 'out'} is from another training (training.micro_batch_size was 8 and is now 4); choose another "
        "--out, or delete it"
    )
    monkeypatch.setattr(processes, "count", lambda: 2)  # each has half of a batch
    message = refused(CheckpointError, made(tmp_path / "out", "mixlora", **POOLED))
    assert "(training.micro_batch_size was 8 and is now 4)" in message and files(tmp_path / "out") == before
    monkeypatch.undo()
    assert run.train(made(tmp_path / "out", "mixlora", **POOLED, training={"micro_batch_size": 8}))


def test_a_loss_that_is_no_number_any_more(tmp_path):
    training = {"learning_rate": 1e30, "save_steps": 1, "max_grad_norm": 0}  # the first step warms up from 0
    wanted = made(tmp_path / "out", "full", training=training)
    message = refused(TrainingError, wanted)
    assert message == (
        f"{tmp_path / 'out'}: the loss is no longer a number at step 3; lower training.learning_rate, or choose "
        "model.dtype: float32"
    )
    saved = load_file(tmp_path / "out" / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert refused(TrainingError, wanted) == message  # no step is taken with what is no number
    assert not json.loads((tmp_path / "out" / "training.json").read_text())["finished"]
