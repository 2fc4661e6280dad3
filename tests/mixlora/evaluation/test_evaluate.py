"""Whole evaluations: what is left on disk, what is not done again, what is refused and when."""

import json
from datetime import date
from pathlib import Path

import pytest
import torch

from mixlora.common.errors import CheckpointError, ConfigError, DataError, RunError
from mixlora.data import mini, templates
from mixlora.data.mini.draw import INKS
from mixlora.data.templates import LLAVA_V1_TEXT
from mixlora.evaluation import config, folder, predictions, results
from mixlora.evaluation.run import evaluate
from mixlora.evaluation.scoring.metrics import score
from tests.support import killing
from tests.support.evaluations import FOLLOW, adapted, copied, files, follow_file, lines, made, put, ran, refusal, saved
from tests.support.small_processors import collating

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Adapters, a task file, and an evaluation `whole` of the LoRA."""
    folder = tmp_path_factory.mktemp("evaluations")
    saved(folder / "lora")
    follow_file(folder / "follow.jsonl")
    ran(folder / "whole", tasks_of(folder), model=lora(folder))
    return folder


def tasks_of(folder):
    return {
        "read_word": {"mini": "heldout", "samples": 6},
        "name_ink": {"mini": "heldout", "samples": 6, "score": "classification"},
        "follow": {"file": str(folder / "follow.jsonl")},
    }


def lora(folder):
    return {"base": "mini", "device": "cpu", "adapter": str(folder / "lora")}


def test_predictions_are_in_the_papers_format_in_the_datas_order(place):
    for task in ("read_word", "name_ink"):
        found = lines(place / "whole" / "predictions" / f"{task}.jsonl")
        for row, example in zip(found, mini.examples(task, "heldout", 6), strict=True):
            assert list(row) == ["question_id", "prompt", "predict", "target", "image_path", "task", "group", "seal"]
            assert (row["question_id"], row["task"], row["image_path"]) == (example.id, task, None)
            assert (row["prompt"], row["target"]) == tuple(turn.text for turn in example.turns)
    found = lines(place / "whole" / "predictions" / "follow.jsonl")
    assert [(row["question_id"], row["target"]) for row in found] == FOLLOW
    assert not list((place / "whole").rglob("*.partial")) and not (place / "whole" / "judgements").exists()


def test_scores_are_those_of_the_predictions(place):
    found = results.load(place / "whole")
    assert (found.label, list(found.tasks)) == ("whole", ["read_word", "name_ink", "follow"])
    for task, metric in (("read_word", "exact"), ("name_ink", "classification"), ("follow", "exact")):
        own = score(predictions.read(place / "whole" / "predictions" / f"{task}.jsonl"), metric, None, 100, 0)
        entry = found.tasks[task]
        assert (entry["metric"], entry["n"], entry["unparsed"], entry["main"]) == (metric, 6, own.unparsed, own.main)
        value = own.values["accuracy"]
        assert entry["scores"]["accuracy"] == {"value": value.value, "low": value.low, "high": value.high}
    config = found.meta["config"]
    assert Path(config["model"]["adapter"]).is_absolute() and Path(config["tasks"]["follow"]["file"]).is_absolute()


def test_the_adapter_answers(place, tmp_path):
    tasks = {"read_word": tasks_of(place)["read_word"]}
    ran(tmp_path / "base", tasks)
    base, own = (lines(out / "predictions" / "read_word.jsonl") for out in (tmp_path / "base", place / "whole"))
    assert [row["predict"] for row in own] != [row["predict"] for row in base]
    ran(tmp_path / "other", tasks, model=lora(place) | {"adapter": str(saved(tmp_path / "lora", seed=2))})
    assert [row["predict"] for row in own] != [
        row["predict"] for row in lines(tmp_path / "other" / "predictions" / "read_word.jsonl")
    ]


def test_answers_that_are_there_need_no_model(place, tmp_path, no_model):
    out, tasks = copied(place / "whole", tmp_path / "moved"), tasks_of(place)
    before = files(out)
    assert ran(out, tasks, model=lora(place), label="whole").tasks == results.load(place / "whole").tasks
    same = files(out)
    assert {name for name in before if same[name] != before[name]} <= {"results.json"}  # it names its directory
    tasks["read_word"] |= {"score": "contained"}
    tasks["name_ink"] |= {"labels": list(INKS)}
    how = {"batch_size": 2, "max_new_tokens": 6, "temperature": 1}
    found = ran(out, tasks, model=lora(place), generation=how)
    assert found.tasks["read_word"]["metric"] == "contained" and found.meta["labels"].keys() == {"name_ink"}
    assert results.load(out).tasks == found.tasks


def test_tasks_can_be_added(place, tmp_path, monkeypatch):
    out, tasks = tmp_path / "out", tasks_of(place)
    ran(out, {"read_word": tasks["read_word"]}, model=lora(place))
    first = files(out)["predictions/read_word.jsonl"]
    asked = []
    monkeypatch.setattr("mixlora.evaluation.run.generate", spy(asked))
    ran(out, tasks, model=lora(place))
    assert {example.task for example in asked} == {"name_ink", "follow"}
    whole = files(place / "whole")
    assert {name: data for name, data in files(out).items() if name.startswith("predictions")} == {
        name: data for name, data in whole.items() if name.startswith("predictions")
    }
    assert files(out)["predictions/read_word.jsonl"] == first
    assert files(out)["evaluation.json"] == whole["evaluation.json"]


def spy(asked):
    """`generate` that tells what it generates."""
    from mixlora.evaluation.generation import Generator, generate

    class Telling(Generator):
        def answers(self, examples):
            asked.extend(examples)
            return super().answers(examples)

    return lambda generator, examples, done: generate(Telling(**vars(generator)), examples, done)


def test_a_killed_evaluation_ends_as_an_uninterrupted_one(place, tmp_path, monkeypatch):
    out, tasks = copied(place / "whole", tmp_path / "whole"), tasks_of(place)
    (out / "results.json").unlink()
    for task, kept in (("name_ink", 4), ("follow", 0)):  # one whole batch of 4 and a torn line; nothing
        file = out / "predictions" / f"{task}.jsonl"
        partial = file.with_name(f"{task}.jsonl.partial")
        found = {row["question_id"]: row for row in lines(file)}
        first = first_batch(place, tasks, task)[:kept]
        torn = '{"question_id": "stroop' if kept else ""
        put(partial, [found[one] for one in first])
        with partial.open("a") as ending:
            ending.write(torn)
        file.unlink()
    asked = []
    monkeypatch.setattr("mixlora.evaluation.run.generate", spy(asked))
    ran(out, tasks, model=lora(place))
    assert [example.task for example in asked] == ["name_ink"] * 2 + ["follow"] * 6
    assert predictions_of(out) == predictions_of(place / "whole")
    assert results.load(out).tasks == results.load(place / "whole").tasks


def test_an_evaluation_continues_on_the_day_that_it_began(place, tmp_path, monkeypatch):
    tasks = tasks_of(place)
    dated = {"chat_template": "{{ strftime_now('%Y') }} " + LLAVA_V1_TEXT}
    monkeypatch.setattr(templates, "today", lambda: date(2020, 1, 2))
    found = ran(tmp_path / "out", {"follow": tasks["follow"]}, model=lora(place) | dated)
    assert found.meta["config"]["model"]["date"] == "2020-01-02"
    monkeypatch.setattr(templates, "today", lambda: date(2021, 1, 2))
    asked = []
    monkeypatch.setattr("mixlora.evaluation.run.generate", spy(asked))
    found = ran(tmp_path / "out", tasks, model=lora(place) | dated)
    assert found.meta["config"]["model"]["date"] == "2020-01-02"
    assert {example.task for example in asked} == {"read_word", "name_ink"}
    plain = ran(tmp_path / "plain", {"follow": tasks["follow"]}, model=lora(place))
    assert plain.meta["config"]["model"]["date"] is None


@pytest.mark.parametrize("unfinished", [False, True])
def test_damaged_answers_are_refused_and_kept(place, tmp_path, no_model, unfinished):
    """In any of their values; also where they lack the checksum of their line."""
    out, tasks = copied(place / "whole", tmp_path / "whole"), {"follow": tasks_of(place)["follow"]}
    file = out / "predictions" / "follow.jsonl"
    if unfinished:
        file = file.rename(file.with_name("follow.jsonl.partial"))
    whole = file.read_text()
    for here, there in (
        ('"predict": "', '"predict": "no '),
        ('"target": "two"', '"target": "tw0"'),
        ('"seal"', '"sea1"'),
    ):
        file.write_text(whole.replace(here, there, 1))
        before = files(out)
        assert refusal(DataError, out, tasks, model=lora(place)) == (
            f"{file.name}:1: the line is damaged: its checksum is another; delete {file}, and the same evaluation "
            "answers again."
        )
        assert files(out) == before
    file.unlink()
    with pytest.raises(AssertionError):  # it would answer again
        ran(out, tasks, model=lora(place))


def test_of_kept_answers_only_the_answer_is_used(place, tmp_path, no_model):
    """Right answers, questions and places are those of the data."""
    out, tasks = copied(place / "whole", tmp_path / "whole"), {"follow": tasks_of(place)["follow"]}
    file = out / "predictions" / "follow.jsonl"
    rows = lines(file)
    put(file, [row | {"target": row["predict"], "prompt": "?", "image_path": "elsewhere.png"} for row in rows])
    assert ran(out, tasks, model=lora(place)).tasks == {"follow": results.load(place / "whole").tasks["follow"]}
    assert lines(file) == rows


def predictions_of(out):
    return {name: data for name, data in files(out).items() if name != "results.json"}


def first_batch(place, tasks, task):
    """Ids of what is generated first."""
    from mixlora.evaluation.generation import Generator

    config = made(place / "whole", tasks, model=lora(place))
    examples = mini.examples(task, "heldout", 6) if task != "follow" else []
    batches = Generator(None, collating(mini.load_base()[1]), config.generation).batches(examples)
    return [example.id for example in batches[0]] if batches else []


def dies(values):
    """An evaluation whose process dies after the first answers to `name_ink`, in the middle of another's line."""
    append = folder.Folder.append

    def append_and_die(self, task, found):
        append(self, task, found)
        if task == "name_ink":
            with self._partial(task).open("a") as file:
                file.write('{"question_id": "str')
            killing.die()

    folder.Folder.append = append_and_die
    evaluate(config.load(None, (), values))


def test_a_real_kill(place, tmp_path):
    out, tasks = tmp_path / "out", tasks_of(place)
    given = made(out, tasks, model=lora(place)).model_dump(mode="json")
    assert killing.ended(killing.start(dies, given)) == -9
    assert sorted(path.name for path in (out / "predictions").iterdir()) == [
        "name_ink.jsonl.partial",
        "read_word.jsonl",
    ]
    with pytest.raises(DataError, match="has no results"):
        results.load(out)
    ran(out, tasks, model=lora(place))
    assert predictions_of(out) == predictions_of(place / "whole")
    assert results.load(out).tasks == results.load(place / "whole").tasks


def test_a_directory_claimed_by_an_evaluation_that_never_answered_is_free(tmp_path, place):
    out, task = tmp_path / "out", {"follow": tasks_of(place)["follow"]}
    out.mkdir()
    (out / ".evaluation.json.new").write_text('{"form')  # killed while claiming it
    with pytest.raises(CheckpointError, match=r"the base model .* cannot be loaded"):
        ran(out, task, model={"base": "mini", "device": "cpu", "attention": "flash_attention_2"})
    assert [path.name for path in (out / "predictions").iterdir()] == []
    assert ran(out, task).tasks["follow"]["n"] == 6


REFUSED = {
    "generation.max_new_tokens was 6 and is now 7": {"generation": {"batch_size": 4, "max_new_tokens": 7}},
    "generation.do_sample was False and is now True, generation.temperature was None and is now 0.2, "
    "generation.top_p": {"generation": {"batch_size": 4, "max_new_tokens": 6, "do_sample": True, "top_p": 0.9}},
    "model.dtype was 'float32' and is now 'bfloat16'": {"model": {"base": "mini", "dtype": "bfloat16"}},
}


@pytest.mark.parametrize("said", REFUSED)
def test_another_evaluations_directory_is_refused(place, no_model, said):
    sections = {"model": lora(place)} | REFUSED[said]
    sections["model"] = lora(place) | sections["model"]
    before = files(place / "whole")
    message = refusal(CheckpointError, place / "whole", tasks_of(place), **sections)
    assert message.startswith(f"{place / 'whole'} is from a different evaluation: {said}")
    assert message.endswith("; choose another --out, or delete it") and files(place / "whole") == before


def test_an_adapter_trained_again_in_its_place_is_noticed(place, tmp_path, no_model):
    out = copied(place / "whole", tmp_path / "out")
    elsewhere = copied(place / "lora", tmp_path / "lora")
    ran(out, tasks_of(place), model=lora(place) | {"adapter": str(elsewhere)})  # only moved
    saved(elsewhere, seed=2)
    said = refusal(CheckpointError, out, tasks_of(place), model=lora(place) | {"adapter": str(elsewhere)})
    names = [f"tasks.{task}.adapter has changed" for task in tasks_of(place)]
    assert f"is from a different evaluation: {', '.join(names)}; choose another --out" in said
    said = refusal(CheckpointError, out, tasks_of(place))
    assert "tasks.read_word.adapter was '" in said and "' and is now None" in said


def test_a_base_is_known_by_its_weights_not_by_its_place(place, tmp_path, no_model):
    out, tasks = copied(place / "whole", tmp_path / "out"), {"follow": tasks_of(place)["follow"]}
    base = copied(mini.base_path(), tmp_path / "base")
    ran(out, tasks, model=lora(place) | {"base": str(base)})
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    said = refusal(CheckpointError, out, tasks, model=lora(place) | {"base": str(base)})
    assert said.startswith(f"{out} is from a different evaluation: base has changed; ")


def test_generation_settings_of_the_base_are_noticed(place, tmp_path, no_model):
    """They change every answer, but no logit."""
    tasks = {"follow": tasks_of(place)["follow"]}
    base = copied(mini.base_path(), tmp_path / "base")
    ran(out := copied(place / "whole", tmp_path / "out"), tasks, model=lora(place) | {"base": str(base)})
    file = base / "generation_config.json"
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | {"repetition_penalty": 30.0}))
    said = refusal(CheckpointError, out, tasks, model=lora(place) | {"base": str(base)})
    assert said.startswith(f"{out} is from a different evaluation: generation config has changed; ")


def test_a_chat_template_is_known_by_its_text_not_by_its_place(place, tmp_path, monkeypatch):
    tasks, file = {"follow": tasks_of(place)["follow"]}, tmp_path / "one.jinja"
    file.write_text(LLAVA_V1_TEXT)
    ran(tmp_path / "out", tasks, model=lora(place) | {"chat_template": str(file)})
    moved = tmp_path / "two.jinja"
    file.rename(moved)
    asked = []
    monkeypatch.setattr("mixlora.evaluation.run.generate", spy(asked))
    ran(tmp_path / "out", tasks, model=lora(place) | {"chat_template": str(moved)})
    moved.write_text("Please. " + LLAVA_V1_TEXT)
    said = refusal(CheckpointError, tmp_path / "out", tasks, model=lora(place) | {"chat_template": str(moved)})
    assert said.startswith(f"{tmp_path / 'out'} is from a different evaluation: chat template has changed; ")
    assert not asked


def test_the_tokenizer_that_an_adapter_brings_is_noticed(place, tmp_path):
    """One of specialists' may change though the adapter of no task does."""
    saved(tmp_path / "all" / "follow")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "all" / "follow" / name).write_bytes((mini.base_path() / name).read_bytes())
    copied(place / "lora", tmp_path / "all" / "read_word")
    tasks = tasks_of(place)
    model = {"base": "mini", "device": "cpu", "adapter": f"{tmp_path / 'all'}/{{task}}"}
    ran(tmp_path / "out", {"follow": tasks["follow"]}, model=model)
    file = tmp_path / "all" / "read_word" / "tokenizer.json"
    whole = json.loads((mini.base_path() / "tokenizer.json").read_text())
    words = whole["model"]["vocab"]
    one, other = sorted(words)[-2:]
    words[one], words[other] = words[other], words[one]
    file.write_text(json.dumps(whole))
    (file.parent / "tokenizer_config.json").write_bytes((mini.base_path() / "tokenizer_config.json").read_bytes())
    both = {name: tasks[name] for name in ("read_word", "follow")}  # the first task's tokenizer counts
    said = refusal(CheckpointError, tmp_path / "out", both, model=model)
    assert said.startswith(f"{tmp_path / 'out'} is from a different evaluation: tokenizer has changed; ")


def test_changed_data_is_noticed(place, tmp_path, no_model):
    out, tasks = copied(place / "whole", tmp_path / "out"), tasks_of(place)
    ran(out, {"name_ink": tasks["name_ink"]}, model=lora(place))  # the others are not forgotten
    tasks["follow"] = {"file": str(follow_file(tmp_path / "f.jsonl", [*FOLLOW[:-1], ("six", "nine")]))}
    tasks["read_word"] |= {"samples": 5}
    said = refusal(CheckpointError, out, tasks, model=lora(place))
    other = "tasks.read_word.examples has changed, tasks.follow.examples has changed"
    assert said == f"{out} is from a different evaluation: {other}; choose another --out, or delete it"


def test_directories_of_something_else_are_refused(tmp_path, place, no_model):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "file", place / "lora"):
        said = refusal(CheckpointError, out, {"follow": tasks_of(place)["follow"]})
        assert said == f"{out} exists, but is not an evaluation; choose another --out"
    said = refusal(RunError, tmp_path / "file" / "x", {"follow": tasks_of(place)["follow"]})
    assert said == f"{tmp_path / 'file' / 'x'} cannot be written: Not a directory; choose another --out"
    assert files(tmp_path) == {"mine/thesis.txt": b"mine", "file": b"mine"}


def test_adapters_that_are_none_are_refused_before_anything_is_claimed(tmp_path, place, no_model):
    out, follow = tmp_path / "out", {"follow": tasks_of(place)["follow"]}
    base = copied(mini.base_path(), tmp_path / "full")
    saved(tmp_path / "many" / "read_word")
    for adapter, said in (
        (base, f"{base} is a whole model, not an adapter; give it as model.base, without adapter"),
        (tmp_path / "many", f"{tmp_path / 'many'} has an adapter for each task; give '{tmp_path / 'many'}/{{task}}'"),
        (tmp_path / "many" / "{task}", f"there is no PEFT adapter at {tmp_path / 'many' / 'follow'} ("),
        (tmp_path / "none", f"there is no PEFT adapter at {tmp_path / 'none'} (no adapter_config.json can be read: "),
    ):
        model = {"base": "mini", "device": "cpu", "adapter": str(adapter)}
        assert refusal(CheckpointError, out, follow, model=model).startswith(said)
    (base / "training.json").write_text("{}")
    model = {"base": "mini", "adapter": str(base)}
    assert "is a whole model (it was trained with method full), no" in refusal(
        CheckpointError, out, follow, model=model
    )
    assert not out.exists()


def test_specialists_answer_each_its_own_task(place, tmp_path):
    tasks = {"read_word": tasks_of(place)["read_word"], "a/b": tasks_of(place)["follow"]}
    saved(tmp_path / "all" / "read_word", seed=2)
    copied(place / "lora", tmp_path / "all" / "a%2Fb")
    out = tmp_path / "out"
    found = ran(out, tasks, model={"base": "mini", "device": "cpu", "adapter": f"{tmp_path / 'all'}/{{task}}"})
    assert list(found.tasks) == ["read_word", "a/b"]
    model = lora(place) | {"adapter": str(tmp_path / "all" / "read_word")}
    ran(tmp_path / "alone", {"read_word": tasks["read_word"]}, model=model)
    name = "predictions/read_word.jsonl"
    assert files(out)[name] == files(tmp_path / "alone")[name] != files(place / "whole")[name]
    said = [row["predict"] for row in lines(place / "whole" / "predictions" / "follow.jsonl")]
    assert [row["predict"] for row in lines(out / "predictions" / "a%2Fb.jsonl")] == said


def test_a_base_that_is_left_out_is_the_adapters_own(place, tmp_path, no_model):
    out = copied(place / "whole", tmp_path / "out")
    config = made(out, tasks_of(place), model={"adapter": str(place / "lora"), "device": "cpu"})
    assert config.model.base == str(mini.base_path())
    assert evaluate(config).tasks == results.load(place / "whole").tasks
    saved(tmp_path / "many" / "read_word")
    pattern = {"adapter": f"{tmp_path / 'many'}/{{task}}"}
    assert made(out, {"read_word": {"mini": "heldout"}}, model=pattern).model.base == str(mini.base_path())
    with pytest.raises(ConfigError, match=r"no base model is named in .*none/adapter_config.json; check the adapter's"):
        made(out, tasks_of(place), model={"adapter": str(tmp_path / "none")})


def test_routing_by_task_is_told_new_definitions(tmp_path, place):
    adapter = tmp_path / "routed"
    model = adapted("mixlora", routing="task", task_definitions={"read_word": "Read the word."})
    model.base_model.encode_tasks(mini.load_base()[1].tokenizer)
    model.save_pretrained(adapter)
    section = {"base": "mini", "device": "cpu", "adapter": str(adapter)}
    tasks = {"read_word": {"mini": "heldout", "samples": 2}, "follow": tasks_of(place)["follow"]}
    said = refusal(ConfigError, tmp_path / "out", tasks, model=section)
    assert said == (
        f"{adapter} routes by task and was not trained on 'follow'; give its definition in words: "
        "tasks.follow.definition"
    )
    tasks["follow"] |= {"definition": "Which number follows?"}
    ran(tmp_path / "out", tasks, model=section)
    tasks["follow"] |= {"definition": "Name a colour."}
    said = refusal(CheckpointError, tmp_path / "out", tasks, model=section)
    assert "tasks.follow.definition was 'Which number follows?' and is now 'Name a colour.'" in said
    ran(tmp_path / "alone", {"read_word": tasks["read_word"]}, model=section)
    name = "predictions/read_word.jsonl"
    assert files(tmp_path / "alone")[name] == files(tmp_path / "out")[name]


def test_finished_results_rerun_their_evaluation(place, tmp_path, no_model):
    from mixlora.evaluation import config

    out = copied(place / "whole", tmp_path / "out")
    again = config.load(place / "whole", ["label=again"], {"out": str(out)})
    assert evaluate(again).tasks == results.load(place / "whole").tasks
    assert results.load(out).label == "again"
    with pytest.raises(ConfigError, match=r"lora is a directory, but has no results.json of an evaluation; name a"):
        config.load(place / "lora")
