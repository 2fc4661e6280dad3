"""What is trained on and what is read share nothing, by content and by group; where examples come from."""

import json

import pytest

from interference import config
from interference.branching import pools
from interference.branching.recipe import recipe_of
from interference.errors import ConfigError, DataError, ScopeError
from mixlora.data.groups import all_shared
from tests.support.checkpoints import write_llava, write_pictures, write_task
from tests.support.starts import RECIPE, Start


def drawn(settings, share=8):
    return pools.draw(settings, recipe_of(settings), share)


def ids(found):
    return (
        {(unit.task, one.id) for unit in found.held_out.units for one in unit.examples},
        {(name, one.id) for name, stream in found.streams.items() for one in stream.examples},
    )


def contents(examples):
    return {repr([(turn.role, turn.text) for turn in one.example.turns]) for one in examples}


def test_nothing_is_in_both(start):
    found = drawn(start.config())
    read, trained = ids(found)
    assert len(read) == 20 and len(trained) == 60 and not read & trained
    assert found.told == {
        name: {"from": "the configuration", "examples": 30, "left_out": 10} for name in ("red", "blue")
    }


def test_a_copy_of_what_is_read_is_not_trained_on(start, tmp_path):
    """Every record of blue is one of red under another id."""
    blue = write_task(tmp_path / "blue.jsonl", 40, 0, lambda k, own: own | {"id": f"other {k}"})
    found = drawn(Start(start.base, start.adapter, {**start.tasks, "blue": blue}).config())
    read = contents([one for unit in found.held_out.units for one in unit.examples])
    trained = contents([one for stream in found.streams.values() for one in stream.examples])
    assert read and trained and not read & trained
    assert {name: own["left_out"] for name, own in found.told.items()} == {"red": len(read), "blue": len(read)}


def test_a_group_of_what_is_read_is_not_trained_on(start, tmp_path):
    """Documents of four records, each in both tasks."""
    tasks = {
        name: write_task(tmp_path / f"{name}.jsonl", 60, at, lambda k, own: own | {"document": f"d{k // 4}"})
        for at, name in enumerate(["red", "blue"])
    }
    values = Start(start.base, start.adapter, tasks).data(held_out=5)
    for task in values["tasks"].values():
        task["group"] = "document"
    found = drawn(config.build(values, "test"))
    read = {unit.examples[0].example.group for unit in found.held_out.units}
    trained = {one.example.group for stream in found.streams.values() for one in stream.examples}
    assert len(read) > 4 and trained == {f"d{k}" for k in range(15)} - read


def test_a_picture_of_what_is_read_is_not_trained_on(tmp_path):
    """Each picture is asked about twice in each task, under two names."""
    folder = write_llava(tmp_path)
    write_pictures(tmp_path, [f"{k}.png" for k in range(30)])
    for k in range(30):
        (tmp_path / f"copy {k}.png").write_bytes((tmp_path / f"{k}.png").read_bytes())
    names = [*(f"{k}.png" for k in range(30)), *(f"copy {k}.png" for k in range(30))]
    tasks = {
        name: write_task(tmp_path / f"{name}.jsonl", 60, at, lambda k, own: own | {"image": names[k]})
        for at, name in enumerate(["red", "blue"])
    }
    found = drawn(Start(folder / "base", folder / "adapter", tasks).config(held_out=6))
    read, trained = (
        {key for keys in all_shared((one.example, "image") for one in examples) for key in keys}
        for examples in (
            [one for unit in found.held_out.units for one in unit.examples],
            [one for stream in found.streams.values() for one in stream.examples],
        )
    )
    assert 6 <= len(read) <= 12 and read.isdisjoint(trained) and len(read | trained) == 30


def training(start, folder, files, **sections):
    """The file of a training on these files."""
    values = {
        "method": "lora",
        "model": {"base": str(start.base)},
        "tasks": {name: {"file": str(file)} for name, file in files.items()},
        "training": {"batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.1},
        **sections,
    }
    file = folder / "train.yaml"
    file.write_text(json.dumps(values))
    return file


def test_a_training_brings_its_recipe_and_its_examples(start, tmp_path):
    other = write_task(tmp_path / "other.jsonl", 20, 7)
    file = training(start, tmp_path, {"red": other})
    settings = start.config(training=str(file), recipe={"weight_decay": 0.2})
    recipe = recipe_of(settings)
    assert (recipe.training.batch_size, recipe.training.learning_rate, recipe.training.weight_decay) == (4, 3e-3, 0.2)
    found = drawn(settings, 4)
    assert found.told["red"] == {"from": str(file), "examples": 20, "left_out": 0}
    assert found.told["blue"] == {"from": "the configuration", "examples": 30, "left_out": 10}
    assert all(
        one.source.startswith(str(other)) or "other.jsonl" in one.source for one in found.streams["red"].examples
    )


def test_a_task_of_a_training_that_has_many_in_one_file(start, tmp_path):
    file = tmp_path / "all.jsonl"
    write_task(file, 48, 5, lambda k, own: own | {"kind": ("red", "blue", "green")[k % 3]})
    followed = training(start, tmp_path, {}, tasks={"all": {"file": str(file), "by": "kind"}})
    found = drawn(start.config(training=str(followed)), 4)
    assert {name: own["examples"] for name, own in found.told.items()} == {"red": 16, "blue": 16}


def test_a_training_s_max_length_holds_for_what_is_trained_on(start):
    values = start.data(recipe={**RECIPE, "max_length": 12})
    for task in values["tasks"].values():
        task["on_error"] = "skip"  # some answers are cut off whole
    found = drawn(config.build(values, "test"))
    read = max(len(unit.examples[0].input_ids) for unit in found.held_out.units)
    trained = max(len(one.input_ids) for stream in found.streams.values() for one in stream.examples)
    assert trained == 12 < read


def test_what_cannot_be_drawn_is_refused(start, tmp_path):
    with pytest.raises(ScopeError) as told:
        drawn(start.config(held_out=36))
    assert str(told.value) == (
        "task 'red' has 4 examples to train on, but a step takes 8; 36 others are held out or share a group with one "
        "that is: give it more examples, or lower lookahead.held_out or lookahead.recipe.batch_size"
    )
    values = start.data()
    values["tasks"].pop("blue")
    with pytest.raises(ScopeError, match="a lookahead is of pairs of tasks, but the configuration has one task; give"):
        drawn(config.build(values, "test"))
    file = training(start, tmp_path, {"red": tmp_path / "gone.jsonl"})
    with pytest.raises(DataError, match=r"gone.jsonl does not exist; .* it is of .*train.yaml, which branches follow"):
        drawn(start.config(training=str(file)))


def test_a_missing_recipe_is_refused(start):
    with pytest.raises(ConfigError) as told:
        recipe_of(start.config(recipe={}))
    assert str(told.value) == (
        f"there is no recipe to follow: {start.adapter} is not of a `mixlora train`, whose training.json would tell; "
        "give lookahead.training (such a configuration) or lookahead.recipe (its values, as {learning_rate: 1e-4, "
        "batch_size: 16})"
    )
    with pytest.raises(ConfigError, match=r"^lookahead.recipe: batch_size 8 is not a multiple of micro_batch_size 3"):
        recipe_of(start.config(recipe={**RECIPE, "micro_batch_size": 3}))


@pytest.mark.parametrize("place", ["", "snapshots/step-2", "checkpoints/checkpoint-2"])
def test_the_adapter_s_own_training_is_the_recipe(start, tmp_path, place):
    adapter = tmp_path / place
    adapter.mkdir(parents=True, exist_ok=True)
    file = training(start, tmp_path, start.tasks)
    record = {"format": 1, "config": json.loads(file.read_text()), "data": None, "model": {}, "finished": True}
    (tmp_path / "training.json").write_text(json.dumps(record))
    values = Start(start.base, adapter, start.tasks).data(recipe={})
    recipe = recipe_of(config.build(values, "test"))
    assert (recipe.training.learning_rate, set(recipe.tasks), recipe.place) == (3e-3, {"red", "blue"}, str(tmp_path))
