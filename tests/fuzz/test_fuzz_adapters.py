"""Adapters from strangers: loaded into their base, or refused in a sentence; nothing in them is executed."""

import json
import os
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file

from interference.config import ModelConfig
from interference.measurement import checkpoint
from mixlora import MixLoraConfig
from mixlora.checkpoints.prompting import load_collator
from mixlora.common.sections import BaseSection
from mixlora.data.examples import Example, Turn
from tests.support.checkpoints import write_adapter, write_base
from tests.support.models import llama
from tests.support.mutations import attempt, changed, damaged, fuzz, put, values, written

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module", params=["lora", "mixlora"])
def adapter(request, base, tmp_path_factory):
    made = tmp_path_factory.getbasetemp() / f"whole-{request.param}"
    if request.param == "lora":
        write_adapter(made)
    else:
        write_adapter(made, get_peft_model(llama(), MixLoraConfig(r=2, num_factors=4, target_modules=["q_proj"])))
    return {name: (made / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def use(base, folder):
    """Load an adapter as `compute` and as `plan` do."""
    found = ModelConfig(base=str(base), adapter=str(folder), device="cpu")
    said = [attempt(lambda: checkpoint.load_model(found))]
    with torch.device("meta"):
        said.append(attempt(lambda: checkpoint.empty_adapted(found)))
    return said


def test_whole_ones_load(tmp_path, base, adapter):
    assert use(base, put(tmp_path / "a", adapter)) == [None, None]


@fuzz(60)
@given(st.data())
def test_changed_configurations(tmp_path_factory, base, adapter, data):
    config = json.loads(adapter[CONFIG])
    made = data.draw(
        changed(config) | st.sampled_from(sorted(config)).flatmap(lambda k: values.map(lambda v: config | {k: v}))
    )
    whole = adapter | {CONFIG: written(made)}
    use(base, put(tmp_path_factory.getbasetemp() / "changed", whole))


@fuzz(40)
@given(st.data())
def test_damaged_files(tmp_path_factory, base, adapter, data):
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    use(base, put(tmp_path_factory.getbasetemp() / "damaged", adapter | {name: data.draw(damaged(adapter[name]))}))


@fuzz(40)
@given(st.data())
def test_damaged_pickles(tmp_path_factory, base, adapter, data):
    folder = put(tmp_path_factory.getbasetemp() / "pickled", adapter)
    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
    stored = (folder / PICKLE).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / PICKLE).write_bytes(data.draw(damaged(stored)))
    use(base, folder)


LENGTHS = {
    "tokenizer_config.json": ["model_max_length"],
    "config.json": ["max_position_embeddings", "rope_parameters", "rope_scaling"],
}
"""{file of a base: its keys that say how long texts may be}."""


def prompt(base):
    """Load what makes prompts for the base, and make one."""
    collator = load_collator(BaseSection(base=str(base), device="cpu"))
    turns = (Turn("user", "w1 w2"), Turn("assistant", "w3"))
    return collator.encode(Example("a", "red", turns, (), "red.jsonl:1"))


@pytest.mark.parametrize("key", [key for keys in LENGTHS.values() for key in keys])
@fuzz(30)
@given(st.data())
def test_lengths_of_a_base(tmp_path_factory, base, key, data):
    file = next(name for name, keys in LENGTHS.items() if key in keys)
    whole = {path.name: path.read_bytes() for path in base.iterdir()}
    found = json.loads(whole[file])
    value = data.draw(values | st.floats() | st.sampled_from([10**400, -1, "2048"]))
    if key.startswith("rope"):
        value = data.draw(st.just(value) | st.just({"rope_type": "linear", "rope_theta": 1e4, "factor": value}))
    folder = put(tmp_path_factory.getbasetemp() / "lengths", whole | {file: written(found | {key: value})})
    attempt(lambda: prompt(folder))


class Trap:
    """Its unpickling would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_nothing(tmp_path, base, adapter, zipped):
    folder, trap = put(tmp_path / "a", {CONFIG: adapter[CONFIG]}), tmp_path / "trap"
    if zipped:
        torch.save({"x": Trap(trap)}, folder / PICKLE)
    else:
        (folder / PICKLE).write_bytes(pickle.dumps(Trap(trap)))
    said, _ = use(base, folder)
    reason = (
        "contain objects other than tensors; nothing of it is executed; ask for them as safetensors, or fetch them "
    )
    assert said == f"the weights of {folder} {reason}again if they are damaged"
    assert not trap.exists()
