"""The untrained adapter: it selects what the model selected before its training, wherever its weights are from."""

import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from interference import config
from interference.errors import CheckpointError, ConfigError, RunError
from interference.factors import factors, neighbours, observer
from interference.factors.contrast import contrast
from interference.factors.untrained import Origin, origin
from interference.measurement import checkpoint
from interference.measurement.compute import compute_config
from mixlora import MixLoraConfig, routed
from mixlora.checkpoints.fingerprints import fingerprints
from mixlora.common import settings
from mixlora.data.collation import Collator
from mixlora.training.config import TrainConfig
from mixlora.training.run import train
from tests.support.checkpoints import record, tokenizer, write_task
from tests.support.models import llama, lora
from tests.support.observed import asked, words
from tests.support.selections import factors as made_of
from tests.support.selections import random_mixture
from tests.support.trainings import values

WORDS = words()


def same(one, other):
    assert one.blocks.equals(other.blocks) and one.values.keys() == other.values.keys()
    for name, value in one.values.items():
        np.testing.assert_array_equal(value, other.values[name])


def differ(one, other):
    return any((value != other.values[name]).any() for name, value in one.values.items())


def stepped(model, steps=3):
    """Some steps of training with a large learning rate."""
    batch = Collator(tokenizer())(words()["a"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.1)
    for _ in range(steps):
        with routed(model, tasks="a"):
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


ADAPTERS = {
    "mixture": lambda: MixLoraConfig.paper(r=2, num_factors=5, target_modules=["q_proj", "up_proj", "down_proj"]),
    "lora": lambda: LoraConfig(r=4, target_modules=["q_proj", "up_proj"]),
    "dora": lambda: LoraConfig(r=4, target_modules=["v_proj"], use_dora=True),
    "by task": lambda: MixLoraConfig.paper(
        r=2, num_factors=5, target_modules=["q_proj"], routing="task", task_definitions={"a": "w1 w2", "b": "w9 w8"}
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_it_selects_what_the_model_selected_before_training(kind):
    base = llama()
    torch.manual_seed(7)
    model = get_peft_model(base, ADAPTERS[kind]())
    if kind == "by task":
        model.base_model.encode_tasks(tokenizer())
    before = observer.compute(model, Collator(tokenizer()), words(), untrained=None)
    assert before.untrained is None and before.meta["untrained"] == {
        "missing": "as none was asked for (untrained=None)"
    }
    stepped(model)
    modules, weights = list(model.state_dict()), {name: value.clone() for name, value in model.state_dict().items()}
    after = observer.compute(model, Collator(tokenizer()), words(), untrained=7)
    same(after.untrained, before.selections)
    same(after.selections, observer.compute(model, Collator(tokenizer()), words(), untrained=None).selections)
    assert differ(after.selections, before.selections)
    other = observer.compute(model, Collator(tokenizer()), words(), untrained=8).untrained
    assert differ(other, before.selections)
    assert list(model.state_dict()) == modules and list(model.peft_config) == ["default"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert factors.origin(after) == "an untrained adapter of the same configuration, seed 7"
    assert after.meta["fingerprints"] == checkpoint.recorded(fingerprints(model))  # of the trained adapter alone


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where `mixlora train` left a MixLoRA, with the snapshots of steps 0 and 2."""
    return trained_with_start(tmp_path_factory.mktemp("home"), "mixlora")


def trained_with_start(folder, method):
    recipe = {"steps": 2, "batch_size": 8, "learning_rate": 5e-2, "snapshots": [0, 2], "seed": 5}
    nested = values(folder / "out", method, adapter={"dropout": 0}) | {"training": recipe}
    return train(settings.build(TrainConfig, nested, "the test"))[0]


def of(adapter, out, **probe):
    made = {
        "model": {"base": "mini", "adapter": str(adapter), "device": "cpu"},
        "tasks": {name: {"mini": "heldout"} for name in ("read_word", "name_ink")},
        "probe": {"samples": 12, **probe},
    }
    return observer.compute_config(config.build(made, "the test"), out)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mixlora", "lora"])
def test_it_is_the_snapshot_of_step_0_or_drawn_again_by_the_seed_of_the_training(home, tmp_path, method):
    place = home if method == "mixlora" else trained_with_start(tmp_path, method)
    start = of(place / "snapshots" / "step-0", tmp_path / "start")
    same(start.untrained, start.selections)
    snapshot = of(place, tmp_path / "snapshot")
    assert factors.origin(snapshot) == "untrained: the training's snapshot of step 0"
    same(snapshot.untrained, start.selections)
    assert differ(snapshot.selections, start.selections)
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    shutil.rmtree(moved / "snapshots" / "step-0")
    for adapter, name in ((moved, "whole"), (moved / "snapshots" / "step-2", "late")):
        again = of(adapter, tmp_path / name)
        assert factors.origin(again) == "untrained: drawn again with the training's seed 5"
        same(again.untrained, start.selections)
    (moved / "training.json").unlink()
    stated = of(moved, tmp_path / "stated", seed=6)
    assert factors.origin(stated) == "an untrained adapter of the same configuration, seed 6"
    assert differ(stated.untrained, start.selections)


def test_where_it_comes_from(home, tmp_path):
    weights = home / "snapshots" / "step-0" / "adapter_model.safetensors"
    for adapter in (home, home / "snapshots" / "step-2", home / "checkpoints" / "checkpoint-1"):
        assert origin(str(adapter), 3) == Origin(5, True, weights)
    assert origin("someone/adapter", 3) == Origin(3)
    for number, text in enumerate(("[", "[]", '{"config": null}', '{"config": {"training": {"seed": -1}}}')):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "training.json").write_text(text)
        assert origin(str(folder), 3) == Origin(3)


def test_a_snapshot_that_is_not_of_the_adapter_is_refused(home, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    weights = moved / "snapshots" / "step-0" / "adapter_model.safetensors"
    held = load_file(weights)
    remedy = "; move it away, and the untrained adapter is drawn with the training's seed"
    save_file({name: value for number, (name, value) in enumerate(held.items()) if number}, weights)
    with pytest.raises(CheckpointError) as told:
        of(moved, tmp_path / "out")
    assert str(told.value) == f"the snapshot {weights} is from another adapter{remedy}"
    weights.write_bytes(b"x")
    with pytest.raises(CheckpointError) as told:
        of(moved, tmp_path / "out")
    assert str(told.value).startswith(f"the snapshot {weights} cannot be read: ") and str(told.value).endswith(remedy)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init_lora_weights": "pissa"}, "because init_lora_weights='pissa' makes weights from those of the base"),
        ({"bias": "lora_only"}, "because bias='lora_only' trains weights of the base itself"),
    ],
)
def test_why_there_is_none_is_told(change, words):
    model = lora(llama())
    for name, value in change.items():
        setattr(model.peft_config["default"], name, value)
    given = observer.compute(model, Collator(tokenizer()), WORDS)
    assert given.untrained is None and given.meta["untrained"] == {"missing": words}
    said = f"there is no untrained adapter beside it, {words}: it is unknown whether training made these clusters"
    assert factors.remarks(given)[-1] == said


def test_an_interrupted_second_forward_is_continued(folder, tmp_path):
    out, stages = tmp_path / "out", []

    def stop(stage, done, total):
        if stage == "selections, untrained":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observer.kept_or_computed(asked(folder, batch_size=4), out, stop)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("part-*")}
    assert len(kept) == 6  # of 18 examples by 4: five parts of the trained adapter, and one of the untrained one

    def watch(stage, done, total):
        stages.append((stage, done, total))
        now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("part-*")}
        assert kept.items() <= now.items()

    found = observer.kept_or_computed(asked(folder, batch_size=4), out, watch)
    assert stages[4] == ("selections", 18, 18) and stages[-1] == ("selections, untrained", 18, 18)
    whole = observer.compute_config(asked(folder, batch_size=4), tmp_path / "whole")
    same(found.untrained, whole.untrained)
    same(found.selections, whole.selections)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "a"])
def test_a_seed_of_the_untrained_adapter_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ConfigError, match=rf"seed is {seed}, but must be a whole number from 0 to 4294967295"):
        observer.compute(lora(llama()), Collator(tokenizer()), words(), untrained=seed)


def test_another_snapshot_of_step_0_is_another_job(home, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    weights = moved / "snapshots" / "step-0" / "adapter_model.safetensors"
    nested = {
        "model": {"base": "mini", "adapter": str(moved), "device": "cpu"},
        "tasks": {name: {"mini": "heldout"} for name in ("read_word", "name_ink")},
        "probe": {"samples": 12},
    }
    settings = config.build(nested, "the test")

    def stop(stage, done, total):
        if stage == "selections, untrained":
            raise KeyboardInterrupt

    observer.kept_or_computed(settings, tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        observer.compute_config(settings, tmp_path / "out", stop)
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    words = r"out\.partial holds unfinished work of another job \(weights of it and its untrained control has changed\)"
    with pytest.raises(RunError, match=words):
        observer.compute_config(settings, tmp_path / "out")
    with pytest.raises(RunError, match=r"was computed from other inputs \(the untrained adapter has changed\)"):
        observer.kept_or_computed(settings, tmp_path / "kept")


def test_groups_are_those_of_a_run_joined_where_prompts_are_the_same(folder, tmp_path):
    values = asked(folder).model_dump(mode="json") | {"out": str(tmp_path / "run")}
    for seed, task in enumerate(("red", "blue", "green")):
        first = record(0, seed)

        def of_document(k, made, first=first):  # the last of a task asks what its first asks
            return {**(made if k < 5 else {**first, "id": made["id"]}), "document": k // 2}

        write_task(tmp_path / f"{task}.jsonl", 6, seed, of_document)
        values["tasks"][task] |= {"file": str(tmp_path / f"{task}.jsonl"), "group": "document"}
    asking = config.build(values, "the test")
    run, found = compute_config(asking), observer.compute_config(asking, tmp_path / "factors")
    assert run.probes["ids"].tolist() == found.examples["id"].tolist()
    own, joined = run.probes["group"].to_numpy(), found.examples["group"].to_numpy()
    document = found.examples["id"].str.extract(r"(\d+)$")[0].astype(int) // 2
    for one, other in combinations(range(18), 2):  # one label space for all tasks
        assert (own[one] == own[other]) == (document[one] == document[other])
        assert (joined[one] == joined[other]) == (document[one] % 2 == document[other] % 2)  # 0 and 2 are joined
    assert found.meta["copies"] == 3
    assert found.untrained.groups is found.selections.groups
    assert factors.remarks(found) == [
        "18 examples form 2 groups, 3 of them with the prompt of another: neighbours are taken from other groups only, "
        "and chance and intervals are based on whole groups"
    ]


def test_examples_of_a_notebook_share_pictures_or_a_key():
    tasks = {
        name: [replace(one, group="x") if k < 2 else one for k, one in enumerate(own)] for name, own in WORDS.items()
    }
    collator = Collator(tokenizer())
    by_key = observer.compute(lora(llama()), collator, tasks, group="document")
    assert by_key.examples["group"].tolist() == [0, 0, 1, 2, 0, 0, 3, 4]
    for group in ("image", "none"):
        alone = observer.compute(lora(llama()), collator, tasks, group=group)
        assert alone.examples["group"].tolist() == list(range(8)) and factors.remarks(alone) == []


def test_tables_hold_both_and_the_difference():
    given = made_of(random_mixture(examples=(24, 24, 24), planted=0.6))
    untrained = random_mixture(seed=9, examples=(24, 24, 24))
    embedded = neighbours.embed(given.selections, 5, permutations=20)
    beside = contrast(given.selections, untrained, embedded)
    tables = factors.tables(replace(given, untrained=untrained), embedded, beside=beside)
    assert list(tables)[:3] == ["purity", "learning", "tasks"]
    kinds = ["selections", "map", "selections, untrained", "map, untrained"]
    assert tables["purity"]["neighbours on"].tolist() == kinds
    (row,) = tables["learning"].to_dict("records")
    purity = tables["purity"].set_index("neighbours on")["purity"]
    assert row["difference"] == pytest.approx(purity["selections"] - purity["selections, untrained"])
    assert 0 < row["low"] < row["difference"] < row["high"] and row["groups"] == 72
    assert row["says"] == "training made neighbourhoods purer"
    assert tables["tasks"]["untrained purity"].mean() == pytest.approx(purity["selections, untrained"])
