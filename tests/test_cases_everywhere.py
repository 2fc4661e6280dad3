"""The small files of `tests/cases` through the commands: each encodes the same examples, or refuses them alike."""

import pytest

from interference.config import AnalysisConfig
from interference.measurement import sample
from mixlora.checkpoints.prompting import load_collator
from mixlora.common.errors import DataError
from mixlora.common.labels import IGNORED
from mixlora.common.progress import silent
from mixlora.common.settings import build
from mixlora.evaluation import run as evaluation
from mixlora.evaluation.config import EvaluateConfig
from mixlora.training import corpus
from mixlora.training.config import TrainConfig
from tests.mixlora.data.reading.test_cases import DATA, IMAGES, READ, REFUSED
from tests.support.checkpoints import write_adapter
from tests.support.models import llama
from tests.support.small_processors import byte_level


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """The text model, with a template that knows tools, and the mini base, which sees."""
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder / "base")
    byte_level().save_pretrained(folder / "base")
    text = {"base": str(folder / "base"), "chat_template": "qwen2_5", "date": "2026-03-04", "device": "cpu"}
    return {False: text, True: {"base": "mini", "device": "cpu"}, "adapter": write_adapter(folder / "adapter")}


def task_of(name):
    return {"file": str(DATA / name), "images": str(IMAGES)}


def section_of(sections, name):
    return sections["image" in name or "img" in name or "placeholder" in name or "mixed" in name or "part" in name]


def computed(sections, name, out):
    model = section_of(sections, name) | {"adapter": str(sections["adapter"])}
    own = task_of(name) | {"group": "none"}  # some files show one picture throughout
    tasks = {"t": own, "other": own}
    config = build(AnalysisConfig, {"model": model, "tasks": tasks, "probe": {}, "out": str(out)}, "test")
    found = sample.encode(sample.read(config), sample.collator_of(config), config)
    return [unit.examples[0] for unit in found.units if unit.task == "t"]


def trained(sections, name, out):
    values = {"method": "lora", "model": section_of(sections, name), "tasks": {"t": task_of(name)}, "out": str(out)}
    config = build(TrainConfig, values, "test")
    collator = load_collator(config.model)
    return [collator.encode(example) for example in corpus.gather(config.tasks, collator, 0, True, silent).examples]


def evaluated(sections, name, out):
    values = {"model": section_of(sections, name), "tasks": {"t": task_of(name)}, "out": str(out)}
    config = build(EvaluateConfig, values, "test")
    collator = load_collator(config.model)
    asked, *_ = evaluation._read(config, collator, silent)
    return [collator.encode_prompt(example) for example in asked["t"][1]]


@pytest.mark.parametrize("name", READ)
def test_every_command_gives_the_model_the_same(sections, name, tmp_path):
    measured, learned, prompts = (command(sections, name, tmp_path) for command in (computed, trained, evaluated))
    assert len(measured) == len(learned) == len(prompts) == READ[name].count
    by_id = {example.id: example for example in measured}
    for example, prompt in zip(learned, prompts, strict=True):
        same = by_id[example.id]
        assert (same.input_ids, same.labels) == (example.input_ids, example.labels)
        length = len(prompt.input_ids)
        assert prompt.input_ids == example.input_ids[:length]
        assert any(label != IGNORED for label in example.labels[length:])


@pytest.mark.parametrize("name", REFUSED)
def test_every_command_refuses_the_same(sections, name, tmp_path):
    said = []
    for command in (computed, trained, evaluated):
        with pytest.raises(DataError) as error:
            command(sections, name, tmp_path)
        said.append(str(error.value))
    assert said[0] == said[1] == said[2] and REFUSED[name][1] in said[0]
