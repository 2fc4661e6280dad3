"""Configurations of trainings: what is refused and how, what methods share, and the recipes that are shipped."""

import pytest

from mixlora.common import settings
from mixlora.common.errors import ConfigError
from mixlora.common.sections import _absolute, resolved
from mixlora.training import config
from tests.support.paths import CONFIGS
from tests.support.trainings import values


@pytest.mark.parametrize("file", ["mini.yaml", "paper_train.yaml", "llava15_train.yaml"])
def test_methods_differ_only_in_what_the_configuration_says(file):
    lora = dict(settings.leaves(resolved(config.load(CONFIGS / file, ["method=lora"], {"out": "runs/a"}))))
    assert lora["method"] == "lora"
    for method in ("mixlora", "specialist", "full"):
        other = dict(settings.leaves(resolved(config.load(CONFIGS / file, (), {"method": method, "out": "runs/a"}))))
        assert {key for key in lora if lora[key] != other[key]} == {"method"}
        assert lora.keys() == other.keys()


def test_a_home_directory_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = values("~/run", model={"base": "~/base", "projector": "~/p"}, tasks={"a": {"file": "~/a", "images": "~/i"}})
    found = settings.build(config.TrainConfig, given, "test")
    task = found.tasks["a"]
    assert [found.out, found.model.base, found.model.projector, task.file, task.images] == [
        str(tmp_path / name) for name in ("run", "base", "p", "a", "i")
    ]
    with pytest.raises(ConfigError, match="null byte"):
        settings.build(config.TrainConfig, {**given, "out": "~\0/a"}, "test")


def test_the_papers_recipe_is_the_papers():
    found = config.load(CONFIGS / "paper_train.yaml")
    recipe = found.training
    assert (recipe.learning_rate, recipe.lr_scheduler_type, recipe.warmup) == (4e-5, "cosine", 0.03)
    assert (recipe.weight_decay, recipe.epochs, recipe.batch_size, recipe.max_length) == (0, 3, 128, 1792)
    assert recipe.bf16 and recipe.gradient_checkpointing and recipe.micro_batch_size == 16
    assert found.adapter.dropout == 0.05 and found.adapter.train_projector
    assert (found.mixlora.r, found.mixlora.num_factors, found.mixlora.alpha) == (4, 16, None)  # None is 2E
    assert found.lora.alpha / found.lora.r == 2
    assert found.tasks["vision_flan"].by == "task_name"
    llava = config.load(CONFIGS / "llava15_train.yaml")
    assert llava.model.base == "llava-hf/llava-1.5-7b-hf" and llava.training == recipe
    assert not llava.adapter.train_projector


def test_numbers_may_be_written_without_a_dot(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "method: lora\nmodel: {base: b}\ntasks: {t: {file: f}}\ntraining: {learning_rate: 4e-5}\n"
    )
    assert config.load(tmp_path / "c.yaml").training.learning_rate == 4e-5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method=dora", "method: Input should be 'lora', 'mixlora', 'specialist' or 'full' (it is 'dora')"),
        ("training.learning_rate=0", "training.learning_rate: Input should be greater than 0 (it is 0)"),
        ("training.learning_rate=fast", "training.learning_rate: Input should be a valid number, "),
        ("training.snapshots=[-1]", "training.snapshots: steps are counted from 0 (it is [-1])"),
        (
            "training.micro_batch_size=3",
            "training: batch_size 8 is not a multiple of micro_batch_size 3; choose one that is",
        ),
        ("training.snapshots=[9]", "training: snapshots asks for step 9, but the last one is 4; leave it out"),
        ("training.epochs=2", "training: steps and epochs are both given; leave out one of them"),
        (
            "training.order=sorted",
            "training.order: Input should be 'length', 'shuffled', 'task' or 'balanced' (it is 'sorted')",
        ),
        ("training.lerning_rate=1", "unknown key 'training.lerning_rate'; did you mean 'learning_rate'?"),
        ("lora.rank=1", "unknown key 'lora.rank'; the keys here are r, alpha, rslora, dora"),
        ("tasks.read_word.wieght=1", "unknown key 'tasks.read_word.wieght'; did you mean 'weight'?"),
        ("tasks.read_word.weight=.inf", "tasks.read_word.weight: Input should be a finite number (it is inf)"),
        ("tasks.read_word.weight=.nan", "tasks.read_word.weight: Input should be "),
        ("training.epochs=.inf", "training.epochs: Input should be a finite number (it is inf)"),
        ("tasks.t.samples=3", "tasks.t: give either file: PATH or mini: heldout"),
        ("adapter.dropout=1", "adapter.dropout: Input should be less than 1 (it is 1)"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, setting, message):
    with pytest.raises(ConfigError) as error:
        config.load(None, (), settings.overridden(values(tmp_path), [setting], {}))
    assert str(error.value).startswith(f"the options: {message}")


def test_full_fine_tuning_of_quantized_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"method full cannot train quantized weights; leave model.quantization out"):
        config.load(None, (), settings.overridden(values(tmp_path, "full"), ["model.quantization=4bit"], {}))


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("runs", True),
        ("runs/{task}", True),
        ("runs/spec-{task}", True),
        ("spec-{task}", True),
        ("{task}", True),
        ("a{b}.json", True),
        ("owner/adapter", False),
        ("owner/adapter-{task}", False),
        ("other/{task}", False),
        ("a{c", True),
    ],
)
def test_what_is_there_or_whose_folder_is_becomes_absolute(tmp_path, monkeypatch, name, is_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "a{b}.json").write_text("[]")
    assert _absolute(name) == (str(tmp_path / name) if is_path else name)
