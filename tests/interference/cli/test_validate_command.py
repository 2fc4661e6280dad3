"""interference validate: what it prints, as text and as JSON, what it will take, and what it refuses."""

import json

import pandas as pd
import pytest

from interference import prediction
from interference.cli import validations
from interference.statistics.ranking import SCORES
from mixlora.common import settings
from mixlora.training.config import TrainConfig
from mixlora.training.run import train
from tests.support.checkpoints import write_base, write_task

TASKS = ["red", "blue", "green", "gold"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A configuration of a validation, whose training is done."""
    folder = tmp_path_factory.mktemp("command")
    write_base(folder / "base")
    tasks = {task: {"file": str(write_task(folder / f"{task}.jsonl", 40, k))} for k, task in enumerate(TASKS)}
    model = {"base": str(folder / "base"), "device": "cpu"}
    recipe = {"steps": 2, "batch_size": 6, "learning_rate": 1e-2, "order": "shuffled", "snapshots": [1, 2], "seed": 7}
    trained = {
        "method": "lora",
        "model": model,
        "tasks": tasks,
        "adapter": {"target_modules": ["q_proj"]},
        "training": recipe,
        "out": str(folder / "lora"),
    }
    train(settings.build(TrainConfig, trained, "the test"))
    asked = {
        "model": {**model, "adapter": str(folder / "lora")},
        "tasks": tasks,
        "probe": {"samples": 6, "batch_size": 8},
        "lookahead": {"steps": [1], "seeds": 2, "held_out": 6},
        "validation": {"horizons": [1, 2], "seeds": 2, "held_out": 6},
        "out": str(folder / "run"),
    }
    path = folder / "c.yaml"
    path.write_text(json.dumps(asked))
    return path


@pytest.fixture
def done(interference, file):
    """The directory of the validation, made once."""
    place = file.with_name("run-validation")
    if not place.exists():
        said = interference("validate", file, "--quiet")
        assert said.code == 0, said.err
    return place


def test_it_prints_truth_and_scores(interference, file, tmp_path):
    said = interference("validate", file, "--out", tmp_path / "out", "--set", "validation.checkpoints=[2]")
    assert said.code == 0, said.err
    words = " ".join(said.out.split())
    assert (
        "1 example of each task in a step; 2 seeds, from 1000 on; 6 held-out examples of each task are read " in words
    )
    assert "after 1 step (pairs): training with another task hurt in " in words and "of 12 pairs" in words
    assert "the truth of one seed ranks that of another by " in words and "would score about " in words
    assert "Spearman within rows, pairs, 2 steps" in words and "lookahead delta, 1 step" in words
    assert "in layer 1" not in words  # one part of the model: in --json
    assert "Validation(4 tasks; 10 sets x 2 seeds; " in words and f" in {tmp_path / 'out'}, drawn in" in said.out
    drawn = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert drawn == [f"validation.{kind}" for kind in ("csv", "pdf", "png", "svg")]
    assert f"next: interference validate {tmp_path / 'out'} --json prints every score" in said.err


def test_fewer_held_out_examples_than_were_asked_for_are_told():
    examples = pd.DataFrame({"task": list("aaabb")})
    assert validations.held_out(examples, 2) == "2 to 3 held-out examples of each task are read"
    assert validations.held_out(examples, 3) == (
        "2 to 3 held-out examples of each task are read (3 were asked for, but no others are left)"
    )


def test_json_has_everything(interference, done):
    said = interference("validate", done, "--json")
    told = json.loads(said.out)
    assert said.code == 0 and said.err == ""
    found = prediction.load_validation(done)
    assert len(told["truth"]) == 2 * 16 and len(told["ceilings"]) == 2 * 4
    assert len(told["predictions"]) == 4 * len(found.table()) and told["predictions"][0]["truth"] == "pairs"
    assert {row["score"] for row in told["predictions"]} == set(SCORES)


def test_a_finished_one_is_printed_again(interference, done):
    first, again = (interference("validate", done, "--quiet") for _ in range(2))
    assert first.code == 0 and first.out == again.out and "Spearman within rows" in first.out


def test_a_plan_says_what_it_takes(interference, file):
    said = interference("plan", file, "--no-time")
    words = " ".join(said.out.split())
    assert (
        "validation: 20 trainings of 2 steps on up to 2 tasks, each with 1 in a step; 42 readings of 24 held" in words
    )
    assert "note: with 4 tasks scores have no intervals; that takes 6" in words
    assert f"next: interference validate {file}" in said.err
    told = json.loads(interference("plan", file, "--json").out)["validation"]
    assert told["shares"] == 2 * 2 * 16 and told["seconds"] > 0
    assert told["seconds"] == pytest.approx(64 * told["share_seconds"] + 42 * told["reading_seconds"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("horizons=[2,1]", "validation.horizons: is not ascending; list each number of steps once, the smallest first"),
        ("horizons=[0]", "validation.horizons: after 0 steps nothing is trained; begin with 1 or more"),
        ("seed=0", "validation.seed: 0 is also a seed of lookahead.seed; choose others, so that the truth knows"),
        ("seed=7", "validation.seed: 7 is the seed of "),
        ("checkpoints=[7]", "validation.checkpoints asks for step 7, but "),
        ("share=40", "task 'red' has 28 examples to train on, but a step takes 40; 12 others are held out or share"),
    ],
)
def test_what_it_refuses(refused, file, tmp_path, setting, words):
    out = tmp_path / "out"
    assert words in refused("validate", file, "--quiet", "--out", out, "--set", f"validation.{setting}", out=out)


def test_a_finished_one_is_not_changed(refused, done, tmp_path):
    words = f"{done} is a finished validation, which is printed as it is; drop --set and --out"
    assert words in refused("validate", done, "--set", "validation.horizons=[3]")
    assert words in refused("validate", done, "--out", tmp_path / "other", out=tmp_path / "other")


def test_without_a_place(refused, file, tmp_path):
    values = json.loads(file.read_text())
    del values["out"]
    (tmp_path / "c.yaml").write_text(json.dumps(values))
    assert "there is no directory for the validation; give --out, or out: of the run" in refused(
        "validate", tmp_path / "c.yaml"
    )
