"""Examples as their processor gives them equal those that are measured; where they do not, verification fails."""

import json
from dataclasses import replace

import pytest
import torch

from interference import config
from interference.errors import MeasurementError
from interference.measurement.compute import compute_config
from interference.verification import verify
from interference.verification.independent import example_batch
from mixlora.data.collation import Collator
from mixlora.data.examples import Example, Form, LossOn, Turn, pictures_first
from mixlora.data.templates import known_to_trl, named_template
from tests.support.models import lora
from tests.support.seeing import KINDS, asked, model_of, speckled
from tests.support.small_processors import CHATML, LISTED_WITHOUT_EOS, byte_level, llava, metaspace, written_by

TURNS = (Turn("user", "What is it?"), Turn("assistant", "Paris."), Turn("user", "Is it?"), Turn("assistant", "It is"))
FORMS = [
    {},
    {"loss_on": LossOn.EVERYTHING},
    {"loss_on": LossOn.LAST_ANSWER},
    {"form": Form.COMPLETION, "prompt_turns": 3},
    {"form": Form.PLAIN, "turns": TURNS[:2]},
    {"form": Form.PLAIN, "turns": TURNS[:2], "loss_on": LossOn.EVERYTHING},
    {"form": Form.TEXT, "turns": TURNS[1:2]},
    {"form": Form.TEXT, "turns": (Turn("assistant", "<s>user Q</s> and A</s>"),)},
    {"turns": (TURNS[0], replace(TURNS[1], supervised=False), *TURNS[2:])},
    {"turns": (TURNS[0], Turn("assistant", "<s>old</s>"))},
]


def same(collator: Collator, example: Example) -> None:
    encoded = collator.encode(example)
    found, expected = example_batch(collator, encoded), collator.collate([encoded])
    assert set(found) >= set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("template", [CHATML, known_to_trl()["qwen3"], named_template("llava-v1")[0]])
@pytest.mark.parametrize("bos", [True, False])
def test_texts_are_those_that_are_measured(template, form, bos):
    tokenizer = byte_level(bos=bos)
    collator = Collator(tokenizer, template=written_by(tokenizer, template))
    same(collator, replace(Example("1", "t", TURNS, (), "f:1"), **form))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("template", [CHATML, LISTED_WITHOUT_EOS, named_template("llava-v1")[0], None])
@pytest.mark.parametrize("form", FORMS[:6])
def test_pictures_are_those_that_are_measured(template, form, shown):
    processor = llava(metaspace() if template is None else byte_level(bos=True))
    example = replace(Example("1", "t", TURNS, (), "f:1"), **form)
    if template is None and example.form is not Form.PLAIN:
        example = replace(example, turns=example.turns[:2], form=Form.QUESTION)
    if shown:
        example = replace(example, turns=pictures_first(example.turns), images=(speckled(1),))
    same(Collator(processor, template=written_by(processor, template)), example)
    same(Collator(processor, template=written_by(processor, template), square=(1, 2, 3)), example)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", KINDS)
def test_examples_of_models_that_see_are_those_that_are_measured(name, number):
    processor = KINDS[name].processor()
    example = asked(number, Form.QUESTION)
    same(Collator(processor), example)
    length = len(Collator(processor).encode(example).input_ids)
    same(Collator(processor, max_length=length - 1), example)
    if name != "paligemma":
        same(Collator(processor), asked(number, Form.COMPLETION, prompt_turns=1))
        same(Collator(processor), Example("1", "t", TURNS, (), "f:1"))


def test_other_tokens_are_told():
    tokenizer = byte_level()
    collator = Collator(tokenizer, template=written_by(tokenizer, known_to_trl()["qwen3"]))
    right = collator.encode(Example("a", "t", TURNS, (), "f.jsonl:4"))
    ids = [*right.input_ids[:9], 7, *right.input_ids[10:]]
    with pytest.raises(MeasurementError) as error:
        example_batch(collator, replace(right, input_ids=ids))
    assert str(error.value) == (
        "f.jsonl:4: example 'a' was measured with other tokens than its tokenizer gives, from token 9 on; the run "
        "is not of the gradients of its trainer, do not use it"
    )
    last = len(right.labels) - 1
    with pytest.raises(MeasurementError, match=rf"with other supervised tokens than .*, from token {last} on"):
        example_batch(collator, replace(right, labels=[*right.labels[:-1], 12]))


@pytest.fixture
def gemma(tmp_path):
    """The configuration of a run of a tiny Gemma 3 with pictures, in two tasks."""
    processor = KINDS["gemma3"].processor()
    adapted = lora(model_of("gemma3", processor), r".*language_model.*\.(q_proj|down_proj)")
    adapted.save_pretrained(tmp_path / "adapter")
    model_of("gemma3", processor).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    tasks = {}
    for number, task in enumerate(("red", "blue")):
        lines = []
        for k in range(3):
            speckled(k).save(tmp_path / f"{task}{k}.png")
            question, answer = (turn.text for turn in asked(k + number).turns)
            lines.append({"id": str(k), "prompt": question, "response": answer, "image": f"{task}{k}.png"})
        file = tmp_path / f"{task}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)) + "\n")
        tasks[task] = {"file": str(file)}
    model = {"base": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter")}
    values = {"model": model, "tasks": tasks, "probe": {"samples": 3, "batch_size": 2}, "out": str(tmp_path / "run")}
    return config.build(values, "test")


def test_a_right_run_of_pictures_passes(gemma):
    found = verify.verify_config(compute_config(gemma))
    assert found.passed and found.error < 1e-4


def test_a_key_that_the_collator_drops_fails(gemma, monkeypatch):
    own = Collator.collate

    def dropping(self, *given, **options):
        return {key: value for key, value in own(self, *given, **options).items() if key != "token_type_ids"}

    monkeypatch.setattr(Collator, "collate", dropping)
    found = verify.verify_config(compute_config(gemma))
    assert not found.passed and found.error > 1e-3 and found.gram_error > 1e-3
