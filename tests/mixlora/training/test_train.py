"""Trainings of the small base: what is left on disk, what is trained, and that it can be loaded again."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mixlora.checkpoints import loading
from mixlora.data import mini
from mixlora.training.corpus import gather
from mixlora.training.methods import language_targets
from mixlora.training.run import train
from mixlora.training.trainer import Batches
from tests.support.adapted import llama
from tests.support.needed import needed
from tests.support.small_processors import collating
from tests.support.trainings import RECIPE, made


def weights(path):
    return load_file(path / "adapter_model.safetensors")


def record(path):
    return json.loads((path / "training.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LoRA and a MixLoRA of the same recipe, with snapshots."""
    folder = tmp_path_factory.mktemp("trained")
    for method in ("lora", "mixlora"):
        assert train(made(folder / method, method, training={"snapshots": [0, 3]})) == [folder / method]
    return folder


@pytest.mark.parametrize("method", ["lora", "mixlora"])
def test_what_a_training_leaves(trained, method):
    path = trained / method
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "snapshots",
        "training.json",
    ]
    found = record(path)
    assert found["finished"] and found["steps"] == 4 and found["config"]["method"] == method
    assert found["examples"] == {"read_word": 12, "name_ink": 12}
    assert found["trained_parameters"] == sum(tensor.numel() for tensor in weights(path).values())
    start, third = (weights(path / "snapshots" / f"step-{step}") for step in (0, 3))
    assert start.keys() == third.keys() == weights(path).keys()
    ending = "lora_B.weight" if method == "lora" else "mixlora_B"
    assert all(not tensor.any() for name, tensor in start.items() if name.endswith(ending))
    assert all(tensor.any() for name, tensor in third.items() if name.endswith(ending))


def test_every_part_of_a_mixlora_has_learned(trained):
    path = trained / "mixlora"
    start, end = weights(path / "snapshots" / "step-0"), weights(path)
    for part in ("mixlora_A", "mixlora_B", "independent_A", "independent_B", "conditional"):
        moved = [not torch.equal(end[name], start[name]) for name in start if part in name]
        assert len(moved) == 28 and all(moved), part


@pytest.mark.parametrize("method", ["lora", "mixlora"])
def test_what_was_trained_is_loaded_again(trained, method):
    section = made(trained, method).model
    model = loading.load_adapted(section, str(trained / method))
    held = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    for name, value in weights(trained / method).items():
        own = next(key for key in held if key.replace(".default", "") == name)
        assert_close(held[own], value)


def test_only_the_language_model_is_adapted_unless_asked(trained):
    names = weights(trained / "lora")
    assert len(names) == 2 * 4 * 7 and all("language_model" in name for name in names)
    assert language_targets(llama()).startswith(".*model\\..*\\.(")


def test_an_ended_training_is_left_as_it_is(trained):
    path = trained / "lora"
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert train(made(path, "lora", training={"snapshots": [0, 3], "logging_steps": 1})) == [path]
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_specialists_are_a_lora_for_each_task(tmp_path, trained):
    paths = train(made(tmp_path / "out", "specialist"))
    assert paths == [tmp_path / "out" / "read_word", tmp_path / "out" / "name_ink"]
    assert record(tmp_path / "out")["specialists"] == {"read_word": "read_word", "name_ink": "name_ink"}
    one, other = map(weights, paths)
    assert one.keys() == other.keys() == weights(trained / "lora").keys()
    assert all(not torch.equal(one[name], other[name]) for name in one)
    assert record(paths[0])["examples"] == {"read_word": 12}
    alone = train(made(tmp_path / "alone", tasks={"read_word": {"mini": "train", "samples": 12}}))[0]
    assert all(torch.equal(value, one[name]) for name, value in weights(alone).items())  # nothing else differs


def test_full_fine_tuning_leaves_a_whole_model_whose_eyes_are_as_they_were(tmp_path):
    path = train(made(tmp_path / "full", "full"))[0]
    model = LlavaForConditionalGeneration.from_pretrained(path).state_dict()
    base = mini.load_base()[0].state_dict()
    moved = {name for name in base if not torch.equal(model[name], base[name])}
    seeing = {name for name in base if "vision_tower" in name}
    assert moved and not moved & seeing
    assert {name for name in base if "layers." in name} - seeing <= moved
    assert any("multi_modal_projector" in name for name in moved)
    assert LlavaProcessor.from_pretrained(path).tokenizer.get_vocab() == mini.load_base()[1].tokenizer.get_vocab()


@pytest.mark.parametrize("method", ["lora", "mixlora"])
def test_a_trained_projector_is_saved_with_the_adapter(tmp_path, method):
    path = train(made(tmp_path / "out", method, adapter={"train_projector": True}))[0]
    saved = {name: value for name, value in weights(path).items() if "multi_modal_projector" in name}
    base = mini.load_base()[0]
    before = {name: value for name, value in base.state_dict().items() if "multi_modal_projector" in name}
    assert len(saved) == len(before) == 4
    model = PeftModel.from_pretrained(base, path)
    active = model.base_model.model.model.multi_modal_projector
    held = dict(active.modules_to_save["default"].named_parameters())
    for name, value in saved.items():
        assert_close(held[name.rpartition("multi_modal_projector.")[2]], value)
        assert not torch.equal(value, next(own for key, own in before.items() if key.endswith(name[-14:])))


def test_batches_hold_pictures_as_the_models_own_pipeline_makes_them(tmp_path):
    processor = mini.load_base()[1]
    config = made(tmp_path)
    examples = gather(config.tasks, collating(processor), 0, True, lambda *_: None)
    batch = Batches(collating(processor), mixed=False, named=True)([examples[0], examples[13]])
    assert batch.pop("tasks") == ["read_word", "name_ink"]
    for row, example in enumerate((examples[0], examples[13])):
        chat = [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": example.images[0]},
                    {"type": "text", "text": example.turns[0].text},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": example.turns[1].text}]},
        ]
        expected = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        length = expected["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, :length], expected["input_ids"][0])
        assert torch.equal(batch["pixel_values"][row], expected["pixel_values"][0])


OPTIONS = {
    "bf16": {"bf16": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "accumulation": {"micro_batch_size": 2},
}


def losses(path):
    return [loss for _, loss in record(path)["losses"]]


@pytest.fixture(scope="module", params=["lora", "mixlora"])
def plain(request, tmp_path_factory):
    """Losses of a training without dropout, and its method."""
    training = {"logging_steps": 1}
    folder = tmp_path_factory.mktemp("plain")
    return request.param, losses(train(made(folder / "p", request.param, adapter={"dropout": 0}, training=training))[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_how_a_step_is_computed_changes_nothing_in_what_it_is(tmp_path, plain, option):
    method, expected = plain
    training = {"logging_steps": 1} | OPTIONS[option]
    found = losses(train(made(tmp_path / "out", method, adapter={"dropout": 0}, training=training))[0])
    assert len(found) == RECIPE["steps"]
    tolerance = 0.05 if option == "bf16" else 1e-4
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=tolerance, atol=tolerance)
    assert found[-1] < found[0]


def test_a_4_bit_base_is_trained(tmp_path):
    needed("bitsandbytes")
    training = {"logging_steps": 1, "steps": 6, "learning_rate": 1e-2}
    model = {"base": "mini", "device": "cpu", "quantization": "4bit"}
    path = train(made(tmp_path / "out", "mixlora", model=model, training=training))[0]
    assert losses(path)[-1] < losses(path)[0]
    again = loading.load_adapted(made(tmp_path, model=model).model, str(path))
    kinds = {module.weight.dtype for name, module in again.named_modules() if name.endswith("q_proj.base_layer")}
    assert kinds == {torch.uint8}


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_projector_is_trained_above_a_quantized_base_and_put_there_again(tmp_path, bits):
    needed("bitsandbytes")
    model = {"base": "mini", "device": "cpu", "quantization": bits}
    options = {"adapter": {"dropout": 0, "train_projector": True}, "training": {"logging_steps": 1, "steps": 6}}
    path = train(made(tmp_path / "out", model=model, **options))[0]
    assert sum(losses(path)[3:]) < 0.95 * sum(losses(path)[:3])  # the second epoch, and the first
    plain = train(made(tmp_path / "plain", **options))[0]  # it is put above quantized weights, too
    base = {name: value for name, value in mini.load_base()[0].state_dict().items() if "projector" in name}
    for adapter in (path, plain):
        held = dict(loading.load_adapted(made(tmp_path, model=model).model, str(adapter)).named_parameters())
        saved = {name: value for name, value in weights(adapter).items() if "projector" in name}
        assert len(saved) == len(base) == 4
        for name, value in saved.items():
            layer = name.rpartition("multi_modal_projector.")[2]
            before = base[f"model.multi_modal_projector.{layer}"]
            assert not torch.equal(value, before)
            here = name.replace("multi_modal_projector.", "multi_modal_projector.modules_to_save.default.")
            assert_close(held[here], value)


def test_routing_by_task_is_trained_by_definitions(tmp_path):
    tasks = {
        "read_word": {"mini": "train", "samples": 12, "definition": "Read the word."},
        "name_ink": {"mini": "train", "samples": 12, "definition": "Name the colour of the ink."},
    }
    mixture = {"r": 2, "num_factors": 4, "routing": "task"}
    path = train(made(tmp_path / "out", "mixlora", tasks=tasks, mixlora=mixture))[0]
    known = json.loads((path / "adapter_config.json").read_text())
    assert known["task_definitions"] == {name: task["definition"] for name, task in tasks.items()}
    encoded = next(value for name, value in weights(path).items() if "mixlora_tasks" in name)
    assert encoded.shape == (2, 128) and not torch.equal(encoded[0], encoded[1])


def test_of_the_suites_own_prompt_the_answer_and_its_end_are_learned_token_for_token():
    collator = collating(mini.load_base()[1])
    example = mini.examples("read_word", "heldout", 1)[0]
    question, answer = (turn.text for turn in example.turns)
    encoded = collator.encode(example)
    words = collator.tokenizer.convert_ids_to_tokens(encoded.input_ids)
    learned = [label != -100 for label in encoded.labels]
    asked = collator.tokenizer.tokenize(f"\n{question} ASSISTANT:")
    assert words == ["<s>", "USER", ":", "Ġ", *["<image>"] * 36, *asked, f"Ġ{answer}", "</s>"]
    assert learned == [False] * (len(words) - 2) + [True, True]
    assert all(label in (-100, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))
