"""Trainings as people run them: other models, other data, the command line."""

import json
import os
import re
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from transformers.integrations import integration_utils

from mixlora.checkpoints import loading
from mixlora.checkpoints.prompting import load_collator
from mixlora.common import processes, settings
from mixlora.common.errors import ConfigError
from mixlora.common.sections import resolved
from mixlora.data import mini, templates
from mixlora.data.examples import Example, Turn
from mixlora.data.templates import LLAVA_V1, named_template
from mixlora.training import config, run
from mixlora.training.corpus import gather
from mixlora.training.order import Epochs
from tests.support.adapted import llama
from tests.support.small_processors import collating
from tests.support.trainings import TASKS, made, values

WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five", "six", "seven"]


def record(path):
    return json.loads((path / "training.json").read_text())


def losses(path):
    return [loss for _, loss in record(path)["losses"]]


def weights(path):
    return load_file(path / "adapter_model.safetensors")


def text(path, count=12, image=None):
    """A task in a file; with a picture, every second example has it."""
    lines = []
    for number in range(count):
        line = {
            "id": f"{path.stem}{number}",
            "prompt": f"Count to {number}.",
            "response": " ".join(WORDS[: number % 9 + 1]),
        }
        lines.append(line | ({"image": image} if image and number % 2 else {}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"file": str(path)}


@pytest.fixture(scope="module")
def textual(tmp_path_factory):
    """A language model without eyes, with a tokenizer that has no chat template."""
    path = tmp_path_factory.mktemp("base")
    tokenizer = mini.load_base()[1].tokenizer
    tokenizer.save_pretrained(path)
    llama(vocab_size=len(tokenizer)).save_pretrained(path)
    return {"base": str(path), "device": "cpu"}


@pytest.mark.parametrize("method", ["lora", "mixlora", "full"])
def test_a_language_model_is_trained_on_text(tmp_path, textual, method):
    tasks = {"count": text(tmp_path / "count.jsonl"), "more": text(tmp_path / "more.jsonl")}
    training = {"logging_steps": 1, "steps": 8}
    path = run.train(made(tmp_path / "out", method, model=textual, tasks=tasks, training=training))[0]
    assert len(losses(path)) == 8 and losses(path)[-1] < 0.9 * losses(path)[0]
    if method == "full":
        again = made(tmp_path / "again", model={"base": str(path), "device": "cpu"}, tasks=tasks, training=training)
        assert losses(run.train(again)[0])[0] < 0.9 * losses(path)[0]  # what was learned is in the new base


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "mixlora"])
def test_examples_with_and_without_pictures_come_together(tmp_path, method):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    tasks = {"see": text(tmp_path / "see.jsonl", image="red.png")}
    options = {"tasks": tasks, "adapter": {"dropout": 0, "train_projector": True}}
    logged = {"logging_steps": 1, "steps": 3}
    found = [
        run.train(made(tmp_path / f"out{k}", method, **options, training=logged | more))[0]
        for k, more in enumerate(({"micro_batch_size": 1}, {}, {"workers": 2}))
    ]
    alone, mixed, prepared = map(losses, found)  # one example in a forward is with or without, never both
    assert_close(torch.tensor(mixed), torch.tensor(alone), rtol=1e-4, atol=0)
    assert prepared == mixed and mixed[-1] < mixed[0]
    assert any("multi_modal_projector" in name for name in weights(found[1]))


@pytest.mark.slow
def test_vision_flan_has_a_task_for_each_of_its_names(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    records = [
        {
            "id": f"{task}{n}",
            "image": "red.png",
            "task_name": task,
            "conversations": [{"from": "human", "value": f"<image>\n{task} {n}"}, {"from": "gpt", "value": WORDS[n]}],
        }
        for task, count in (("a+x", 8), ("b", 6), ("c/d", 4))
        for n in range(count)
    ]
    (tmp_path / "flan.json").write_text(json.dumps(records))
    tasks = {"flan": {"file": str(tmp_path / "flan.json"), "images": str(tmp_path), "by": "task_name"}}
    recipe = {"order": "task", "batch_size": 4, "steps": 2}
    paths = run.train(made(tmp_path / "out", "specialist", tasks=tasks, training=recipe))
    assert [path.name for path in paths] == ["a+x", "b", "c%2Fd"]
    assert [record(path)["examples"] for path in paths] == [{"a+x": 8}, {"b": 6}, {"c/d": 4}]
    assert record(tmp_path / "out")["specialists"] == {"a+x": "a+x", "b": "b", "c/d": "c%2Fd"}


def test_weights_say_how_often_tasks_are_seen(tmp_path):
    tasks = {name: task | {"weight": weight} for (name, task), weight in zip(TASKS.items(), (1, 3), strict=True)}
    path = run.train(made(tmp_path / "out", tasks=tasks, training={"steps": 3}))[0]
    assert record(path)["examples"] == {"read_word": 12, "name_ink": 12}
    assert record(path)["examples_seen"] == {"read_word": 6, "name_ink": 18}


def labelled(path, counts):
    """An entry that stands for a task of each name, of so many examples."""
    lines = [
        {"id": f"{task}{n}", "prompt": f"Count to {n}.", "response": WORDS[n % 9], "kind": task}
        for task, count in counts.items()
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"file": str(path), "by": "kind"}


@pytest.mark.parametrize(
    ("weights_", "expected"),
    [
        ({}, {"one": 12, "a": 20, "b": 10, "c": 6}),  # every example once
        ({"one": 2}, {"one": 32, "a": 6, "b": 5, "c": 5}),  # 2 : 1, of which each of three tasks has a third
        ({"many": 3}, {"one": 12, "a": 12, "b": 12, "c": 12}),  # 1 : 3
        ({"one": 1, "many": 1}, {"one": 24, "a": 8, "b": 8, "c": 8}),
    ],
)
def test_a_weight_is_an_entrys_and_shared_by_the_tasks_that_it_stands_for(tmp_path, weights_, expected):
    entries = {"one": text(tmp_path / "one.jsonl"), "many": labelled(tmp_path / "m.jsonl", {"a": 20, "b": 10, "c": 6})}
    tasks = {name: entry | {"weight": weights_.get(name)} for name, entry in entries.items()}
    collator = collating(mini.load_base()[1].tokenizer)
    corpus = gather(made(tmp_path, tasks=tasks).tasks, collator, 0, False, lambda *_: None)
    assert len(corpus.tasks) == 48
    assert Counter(corpus.tasks[place] for place in Epochs(corpus, "shuffled", 8, 0)) == expected


def test_examples_are_cut_to_a_length(tmp_path, textual):
    tasks = {"count": text(tmp_path / "count.jsonl", count=9)}
    tokenizer = mini.load_base()[1].tokenizer
    examples = gather(made(tmp_path, tasks=tasks).tasks, collating(tokenizer), 0, False, lambda *_: None)
    longest = max(examples.lengths)
    training = {"logging_steps": 1, "steps": 1, "batch_size": 9}
    whole, same, cut = (
        losses(run.train(made(tmp_path / f"{k}", model=textual, tasks=tasks, training=training | more))[0])
        for k, more in enumerate(({}, {"max_length": longest}, {"max_length": longest - 1}))
    )
    assert whole == same != cut
    kept = collating(tokenizer, max_length=longest - 1)
    inputs = kept(example for example in examples)
    assert inputs["labels"].shape == (9, longest - 1)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(textual["base"])(**inputs).loss
    assert cut == pytest.approx([expected.item()], rel=1e-4)


def test_a_finished_directory_is_a_configuration(tmp_path):
    path = run.train(made(tmp_path / "out", "mixlora", training={"steps": 2}))[0]
    again = config.load(path, (), {"out": str(tmp_path / "again")})
    found = run.train(again)[0]
    assert found == tmp_path / "again"
    one, other = weights(path), weights(found)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ConfigError, match="names no directory"):
        run.train(config.load(path))


def interrupted_at(step):
    def told(stage, done, _):
        if stage == "training" and done == step:
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize("moved", [False, True])
def test_a_base_by_a_relative_path_is_found_from_anywhere(tmp_path, monkeypatch, textual, moved):
    monkeypatch.chdir(Path(textual["base"]).parent)
    count = text(tmp_path / "count.jsonl")
    wanted = made(
        tmp_path / "out",
        model=textual | {"base": Path(textual["base"]).name},
        tasks={"count": {"file": os.path.relpath(count["file"])}},
    )
    with pytest.raises(KeyboardInterrupt):
        run.train(wanted, interrupted_at(3))
    if moved:
        monkeypatch.chdir(tmp_path)
        wanted = config.load(tmp_path / "out", (), {"out": "out"})
    steps = []
    assert run.train(wanted, lambda stage, done, _: steps.append(done) if stage == "training" else None)
    assert steps == [3, 4]
    known = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert known["base_model_name_or_path"] == textual["base"]
    monkeypatch.chdir("/")
    again = {**textual, "base": known["base_model_name_or_path"]}
    assert loading.load_adapted(made(tmp_path, model=again).model, str(tmp_path / "out")).active_adapter == "default"


def prompt(base, template=None):
    """How a base's own processor, or a template, begins a conversation."""
    collator = load_collator(made("o", model={"base": str(base), "chat_template": template}).model)
    turns = (Turn("user", "Count."), Turn("assistant", "one"))
    return collator.tokenizer.decode(collator.encode(Example("1", "t", turns, (), "t:1")).input_ids)


@pytest.mark.parametrize("seeing", [False, True])
def test_a_whole_model_is_saved_with_the_template_that_it_was_trained_with(tmp_path, textual, seeing):
    base = {"base": "mini", "device": "cpu"} if seeing else textual
    template = str(named_template(LLAVA_V1)[0]).replace("USER: ", "HUMAN: ")
    wanted = {"model": base | {"chat_template": template}, "tasks": {"count": text(tmp_path / "count.jsonl")}}
    path = run.train(made(tmp_path / "out", "full", **wanted, training={"steps": 1}))[0]
    assert prompt(path) == prompt(base["base"], template) != prompt(base["base"])
    assert "HUMAN: Count." in prompt(path)


def test_a_specialists_directory_is_one_too(tmp_path):
    path = run.train(made(tmp_path / "out", "specialist", training={"steps": 1}))[1]
    assert config.load(path, (), {"out": "o"}) == config.load(tmp_path / "out", (), {"out": "o"})


def test_the_last_loss_is_known_whatever_is_logged(tmp_path):
    path = run.train(made(tmp_path / "out", training={"steps": 3, "logging_steps": 2}))[0]
    assert [step for step, _ in record(path)["losses"]] == [2, 3]


def test_tensorboard_keeps_its_losses(tmp_path):
    pytest.importorskip("tensorboard")
    path = run.train(made(tmp_path / "out", training={"report_to": ["tensorboard"], "steps": 2}))[0]
    assert list((path / "logs").glob("events.out.tfevents.*")) and not (path / "checkpoints").exists()


def test_tensorboard_that_is_not_installed_is_told_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(ConfigError) as told:
        run.train(made(tmp_path / "out", training={"report_to": ["tensorboard"], "steps": 2}))
    assert str(told.value).startswith(
        "training.report_to: 'tensorboard' is not installed here; install it, or choose from"
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def recipe(tmp_path):
    """A configuration file."""
    (tmp_path / "c.yaml").write_text(json.dumps(values(tmp_path / "unused") | {"out": None}))
    return tmp_path / "c.yaml"


def test_the_command(mixlora, recipe, tmp_path):
    out = tmp_path / "out"
    call = ("train", recipe, "--method", "mixlora", "--set", "training.steps=1", "--out", out)
    code, said, errors = mixlora(*call, "-q")
    assert code == 0 and re.fullmatch(r"note: chat template: the base's \(.*\)\n", errors)
    assert re.match(rf"trained: {out}, 1 steps, loss [\d.]+ \(training.json\)", said) and said.count("\n") == 1
    assert record(out)["config"]["method"] == "mixlora" and record(out)["steps"] == 1
    code, said, errors = mixlora(*call, "-q", "--set", "training.seed=3")
    assert (code, said) == (2, "")
    assert errors == (
        f"error: {out} is from a different training (training.seed was 0 and is now 3); choose another --out, or "
        "delete it\n"
    )
    assert mixlora("train", recipe)[::2] == (
        2,
        "error: the configuration names no directory for what is trained; give out: or --out\n",
    )
    assert mixlora("train")[::2] == (
        2,
        "error: there is nothing to train: name a YAML file, such as analysis_configs/mini.yaml\n",
    )


def test_full_fine_tuning_is_quiet_if_asked(mixlora, recipe, tmp_path):
    code, said, errors = mixlora("train", recipe, "--method", "full", "-q", "--out", tmp_path / "out")
    assert code == 0 and re.fullmatch(r"note: chat template: the base's \(.*\)\n", errors)
    assert said.startswith(f"trained: {tmp_path / 'out'}, ") and said.count("\n") == 1


def test_the_command_where_training_fails(mixlora, recipe, tmp_path):
    failing = ("--set", "training.learning_rate=1e30")
    code, said, errors = mixlora("train", recipe, "-q", *failing, "--out", tmp_path / "o")
    assert (code, said) == (1, "")
    assert errors.splitlines()[1].startswith(
        f"error: {tmp_path / 'o'}: the loss is no longer a number at step 3; lower "
    )


def test_the_command_that_is_interrupted(mixlora, recipe, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mixlora.training.trainer.Report.on_step_end", interrupted)
        code, said, errors = mixlora("train", recipe, "-q", "--out", tmp_path / "out")
    assert (code, said, errors.splitlines()[1:]) == (130, "", ["interrupted: the same command continues"])
    assert mixlora("train", recipe, "-q", "--out", tmp_path / "out")[0] == 0
    assert record(tmp_path / "out")["steps"] == 4 and Path(tmp_path / "out" / "README.md").exists()


def test_a_process_asks_for_its_gpu_once_it_has_met_the_others(tmp_path, monkeypatch):
    """Before, every process would be given the first."""
    asked = []
    monkeypatch.setattr(processes, "meet", lambda kind: asked.append(kind) or True)
    monkeypatch.setattr(loading, "device_of", lambda name: asked.append(name) or pytest.fail("far enough"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        run.train(config.load(None, (), settings.overridden(values(tmp_path / "out"), ["model.device=auto"], {})))
    assert asked == ["cuda", "auto"]


def test_a_named_template_is_found_beside_the_adapter_and_its_snapshots(tmp_path, textual):
    """Measured later, the adapter is given the tokens that it was trained on."""
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] + '= ' + m['content'] + ' </s>' }}{% endfor %}"
                    "{% if add_generation_prompt %}{{ 'assistant= ' }}{% endif %}")  # fmt: skip
    wanted = {"model": textual | {"chat_template": str(file)}, "tasks": {"count": text(tmp_path / "count.jsonl")}}
    told = []
    path = run.train(made(tmp_path / "out", **wanted, training={"steps": 1, "snapshots": [0]}), tell=told.append)[0]
    assert told[0] == f"chat template: the file {file}"
    plain = made("o", model=textual).model
    example = Example("1", "t", (Turn("user", "Count."), Turn("assistant", "one")), (), "t:1")
    trained = load_collator(made("o", **wanted).model).encode(example)
    for place in (path, path / "snapshots" / "step-0"):
        found = load_collator(plain, str(place))
        assert found.template.source == f"the adapter's ({place})"
        assert found.encode(example).input_ids == trained.input_ids
        assert found.encode(example).labels == trained.labels
    assert load_collator(plain).encode(example).input_ids != trained.input_ids
    bare = run.train(made(tmp_path / "bare", model=textual, tasks=wanted["tasks"], training={"steps": 1}))[0]
    assert not (bare / "tokenizer.json").exists()


def test_that_no_template_was_used_is_told_beside_the_adapter(tmp_path, textual):
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2+0=", "completion": " 2"}\n' * 8)
    own = {"file": str(tmp_path / "sums.jsonl")}
    wanted = {"model": textual | {"chat_template": "raw"}, "tasks": {"sums": own}}
    (path,) = run.train(made(tmp_path / "out", **wanted, training={"steps": 1}))
    found = load_collator(made("o", model=textual).model, str(path))
    assert found.template.is_raw and found.template.source == f"the adapter's ({path})"
    messages = [{"role": "user", "content": "2+0="}, {"role": "assistant", "content": " 2"}]
    assert found.tokenizer.apply_chat_template(messages, tokenize=False) == f"2+0= 2{found.tokenizer.eos_token}"


def test_the_path_of_a_template_is_absolute_in_what_is_recorded(tmp_path, monkeypatch):
    (tmp_path / "own.jinja").write_text("x")
    monkeypatch.chdir(tmp_path)
    named = {"own.jinja": str(tmp_path / "own.jinja"), "raw": "raw", "qwen3": "qwen3", "{{ x }}": "{{ x }}"}
    for name, kept in named.items():
        config_ = made("o", model={"base": "mini", "chat_template": name})
        assert resolved(config_)["model"]["chat_template"] == kept


def test_a_training_continues_on_the_day_that_it_began(tmp_path, textual, monkeypatch):
    dated = "{{ strftime_now('%Y') }}" + "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    model = textual | {"chat_template": dated + "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"}
    wanted = {"model": model, "tasks": {"count": text(tmp_path / "count.jsonl")}}
    monkeypatch.setattr(templates, "today", lambda: date(2020, 1, 2))
    path = run.train(made(tmp_path / "out", **wanted, training={"steps": 1}))[0]
    monkeypatch.setattr(templates, "today", lambda: date(2021, 1, 2))
    told = []
    assert run.train(made(tmp_path / "out", **wanted, training={"steps": 1}), tell=told.append) == [path]
    assert record(path)["config"]["model"]["date"] == "2020-01-02" and told[0].endswith("which is 2020-01-02")
    wanted["training"] = {"steps": 1, "snapshots": [0]}
    monkeypatch.setattr(templates, "today", lambda: date(2022, 1, 2))
    path = run.train(made(tmp_path / "other", **wanted))[0]
    monkeypatch.setattr(templates, "today", lambda: date(2023, 1, 2))
    for place in (path, path / "snapshots" / "step-0"):  # measured later, its prompts have the day of its training
        assert load_collator(made("o", model=textual).model, str(place)).template.written_day == "2022-01-02"
    assert load_collator(made("o", model=model).model).template.written_day == "2023-01-02"


def test_the_command_previews_without_training(mixlora, recipe):
    code, said, errors = mixlora("train", recipe, "--preview")
    assert code == 0 and errors.startswith("note: chat template: the base's (")
    assert said.count("tokens, ") == 6 and "<image> x 36\n" in said and "</s>]" in said
