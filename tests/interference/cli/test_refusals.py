"""Every wrong input of the command line: exit code 2, one sentence with the value and the remedy, nothing written."""

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file

from interference import load
from tests.support.checkpoints import fresh_lora, write_adapter, write_base, write_task
from tests.support.models import llama, lora


@pytest.fixture
def compute(refused, tiny, tmp_path):
    """`interference compute` on the tiny checkpoint with other arguments, which must be refused; what it says."""

    def call(*extra, base=tiny.base, adapter=tiny.adapter, tasks=tiny.tasks):
        named = [part for name, file in tasks.items() for part in ("--task", f"{name}={file}")]
        given = ["--base", base, "--adapter", adapter, *named, "--out", tmp_path / "run", "--quiet", *extra]
        said = refused("compute", *given, out=tmp_path / "run")
        for path, short in ((tmp_path, "TMP"), (tiny.base.parent, "TINY")):
            said = said.replace(str(path), short)
        return said

    return call


# --- checkpoints ---


def test_missing_checkpoints(compute):
    said = compute(adapter="no/adapter")
    assert said.startswith("there is no PEFT adapter at no/adapter (no adapter_config.json can be read: ")
    said = compute(base="no/base")
    assert said.startswith("there is no base model no/base (neither a directory with config.json nor a hub id): ")


def test_an_adapter_of_other_modules(compute, tmp_path):
    folder = write_adapter(tmp_path / "a", lora(llama(), ["q_proj"]))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["c_attn"]}))
    said = compute(adapter=folder)
    assert said.startswith("the adapter at TMP/a does not fit the base TINY/base: Target modules {'c_attn'} not found")


def test_an_adapter_of_other_shapes(compute, tmp_path):
    folder = write_adapter(tmp_path / "a")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.ones(4, 40) for name in weights if "lora_A" in name}, folder / "adapter_model.safetensors")
    said = compute(adapter=folder)
    assert said.startswith("the adapter at TMP/a does not fit the base TINY/base: size mismatch for base_model")
    assert "torch.Size([4, 40])" in said


def test_an_adapter_with_a_weight_too_few_or_too_many(compute, tmp_path):
    folder = write_adapter(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file)
    assert compute(adapter=folder).endswith(f"does not fit the base TINY/base: it has no weights for {name}")
    extra = name.replace("layers.1", "layers.7")
    save_file(weights | {extra: weights[name].clone()}, file)
    assert compute(adapter=folder).endswith(f"does not fit the base TINY/base: the base has no place for {extra}")


def test_an_adapter_of_another_kind(compute, tmp_path):
    other = get_peft_model(llama(), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    assert compute(adapter=write_adapter(tmp_path / "ia3", other)) == (
        "the adapter at TMP/ia3 is of kind IA3; only LORA and MIXLORA adapters can be measured"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_model.safetensors", "the weights of the adapter at TMP/a are damaged: "),
        ("adapter_config.json", "there is no PEFT adapter at TMP/a (no adapter_config.json can be read: "),
    ],
)
def test_a_damaged_adapter(compute, tiny, tmp_path, name, message):
    shutil.copytree(tiny.adapter, tmp_path / "a")
    (tmp_path / "a" / name).write_bytes(b"{ broken")
    assert compute(adapter=tmp_path / "a").startswith(message)


def changed(tiny, folder, change):
    """A copy of the tiny adapter whose first weight is changed, and the name of that weight."""
    shutil.copytree(tiny.adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: change(weights[name])}, folder / "adapter_model.safetensors")
    return name


def test_a_truncated_adapter(compute, tiny, tmp_path):
    shutil.copytree(tiny.adapter, tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert compute(adapter=tmp_path / "a") == (
        "the weights of the adapter at TMP/a are damaged: Error while deserializing header: incomplete metadata, file "
        "not fully covered; fetch or write them again"
    )


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_an_adapter_with_a_number_that_is_not_finite(compute, tiny, tmp_path, value):
    name = changed(tiny, tmp_path / "a", lambda weight: weight.index_fill(0, torch.tensor([1]), float(value)))
    assert compute(adapter=tmp_path / "a") == (
        f"the adapter at TMP/a has numbers in {name} that are not finite; its training diverged, or the file is damaged"
    )


@pytest.mark.parametrize("dtype", ["bool", "int8"])
def test_an_adapter_of_other_numbers(compute, tiny, tmp_path, dtype):
    name = changed(tiny, tmp_path / "a", lambda weight: weight.to(getattr(torch, dtype)))
    assert compute(adapter=tmp_path / "a") == (
        f"the adapter at TMP/a has {dtype} values in {name}, but its weights must be floating-point; write it again "
        "from the model that was trained"
    )


@pytest.mark.parametrize("device", ["meta", "meta:0"])
def test_a_device_without_numbers(compute, tiny, device):
    said = compute("--set", f"model.device={device}", adapter=tiny.adapter)
    assert said == f"device '{device}' stores only shapes, no numbers; use cpu or cuda"


def test_a_directory_that_is_no_adapter(compute, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(PeftConfig, "from_pretrained", lambda *_, **__: pytest.fail("the hub was asked"))
    assert compute(adapter=tmp_path / "a") == (
        "there is no PEFT adapter at TMP/a (no adapter_config.json can be read: the directory has none)"
    )


def test_a_damaged_base(compute, tiny, tmp_path):
    shutil.copytree(tiny.base, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"\0" * 100)
    assert compute(base=tmp_path / "b").startswith("the base model TMP/b cannot be loaded: ")
    for file in (tmp_path / "b").glob("*token*"):
        file.unlink()
    said = compute(base=tmp_path / "b")
    assert said.startswith("no tokenizer or processor can be loaded from TMP/b; copy those of its base into it (")


def test_a_device_that_is_not_there(compute):
    said = compute("--set", "model.device=moon")
    assert said.startswith("device 'moon' cannot be used: ")


# --- scope ---


def test_layers_and_modules_that_are_not_there(compute):
    assert compute("--layers", "1,9") == "layer 9 is not among the adapted layers: 0-2 (counted from 0)"
    assert compute("--modules", "mlp,c_attn") == (
        "module 'c_attn' is not among those here: attention, down_proj, gate_proj, k_proj, language, mlp, o_proj, "
        "q_proj, up_proj, v_proj"
    )
    assert compute("--set", "probe.components=[vision]") == (
        "adapter 'default' adapts nothing in vision; it adapts: language"
    )


@pytest.mark.parametrize("layers", ["a", "1-", "3-1", "1,,2", "", "-1", "²"])
def test_layers_that_are_no_numbers(compute, layers):
    assert compute("--layers", layers) == f"--layers {layers!r} is not a list of layers; write 5,25 or 0-3"


# --- data ---


def lines(tmp_path, *texts):
    (tmp_path / "bad.jsonl").write_text("\n".join(texts) + "\n")
    return {"bad": tmp_path / "bad.jsonl"}


GOOD = json.dumps({"prompt": "w1 w2", "response": "w3"})


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([GOOD, "{'prompt': 1}"], "bad.jsonl:2: invalid JSON at column 2"),
        ([GOOD, '{"prompt": "w1", "response": " "}'], "bad.jsonl:2: an answer is empty, so there is nothing to learn"),
        ([GOOD, '{"prompt": "w1", "response": "w", "image": "a.png"}'], "bad.jsonl:2: the image 'a.png' is not in TMP"),
        (
            [GOOD],
            "task 'bad' has 1 usable examples, but 2 units of 1 are needed; give it more examples or a smaller un",
        ),
    ],
)
def test_data_that_cannot_be_used(compute, tmp_path, texts, words):
    said = compute(tasks=lines(tmp_path, *texts))
    assert said.startswith(words)


def test_samples_that_make_no_two_units_are_told_as_such(compute):
    assert compute("--samples", "6", "--set", "probe.unit_size=4") == (
        "samples=6 is too few for 2 units of 4; set samples to 8 or more, or a smaller unit_size"
    )


def test_a_missing_file_and_a_picture_for_a_language_model(compute, tmp_path):
    assert compute(tasks={"red": tmp_path / "none.jsonl"}) == (
        "Task red: TMP/none.jsonl does not exist; check the path in `file`."
    )
    (tmp_path / "a.png").write_bytes(b"")
    said = compute(tasks=lines(tmp_path, GOOD, GOOD.replace("}", ', "image": "a.png"}')))
    assert "bad.jsonl:2: " in said and "has no image token; use a vision-language model" in said


def test_an_answer_cut_off(compute):
    said = compute("--set", "probe.max_length=3")
    assert ".jsonl:" in said and "max_length 3 cuts off the whole answer of example 'r" in said
    assert said.endswith("raise max_length or drop the record.")


# --- configuration ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "probe.sampels=3"], "the options: unknown key 'probe.sampels'; did you mean 'samples'?"),
        (["--set", "modle.base=x"], "the options: unknown key 'modle'; did you mean 'model'?"),
        (["--set", "probe.samples=many"], "the options: probe.samples: Input should be a valid integer"),
        (["--set", "probe.samples=1"], "the options: probe.samples: Input should be greater than or equal to 2 (it is"),
        (["--set", "probe.granularity=block"], "the options: probe.granularity: Input should be 'module', 'group' or"),
        (["--set", "probe.samples"], "--set 'probe.samples' is not of the form key.subkey=value"),
        (["--set", "=3"], "--set '=3' is not of the form key.subkey=value"),
        (["--set", "probe.layers=[1"], "--set 'probe.layers=[1': the value is not valid YAML"),
        (
            ["--memory-budget", "lots"],
            "the options: probe.memory_budget: not an amount of memory; write a number of bytes, or an amount like "
            "2GiB",
        ),
        (["--task", "red"], "--task 'red' is not of the form NAME=FILE"),
        (["--task", "red=x"], "--task names 'red' twice; give every task a name of its own"),
        (["--set", "probe.layers=[]"], "the options: probe.layers: is an empty list; leave it out to take all"),
    ],
)
def test_configurations_that_cannot_be_used(compute, arguments, message):
    assert compute(*arguments).startswith(message)


def test_nothing_to_measure(refused, tiny):
    assert refused("compute") == ("there is nothing to measure: name a YAML file, or give --base, --adapter and --task")
    assert refused("compute", "--base", tiny.base) == "the options: 'model.adapter' is missing"
    assert refused("compute", *tiny.arguments()) == (
        "the configuration names no directory for the run; give out: or --out"
    )
    assert refused("compute", "none.yaml") == "there is no configuration file none.yaml"


# --- where the run goes ---


def test_directories_that_are_taken(refused, interference, tiny, run_dir, tmp_path):
    before = {path: path.read_bytes() for path in run_dir.iterdir()}
    assert refused("compute", *tiny.arguments(run_dir)) == (
        f"{run_dir} already holds a run; choose another --out or delete it first"
    )
    assert {path: path.read_bytes() for path in run_dir.iterdir()} == before
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        assert refused("compute", *tiny.arguments(out)) == f"{out} exists and is not a run; choose another --out"
    under = tmp_path / "mine.txt" / "run"
    assert refused("compute", *tiny.arguments(under), "--quiet") == (
        f"{under}.partial cannot be written: Not a directory; choose another --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- numbers that are none ---


def test_an_infinite_weight_names_task_and_example(compute, tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    said = compute(base=write_base(tmp_path / "b", model), tasks={"red": write_task(tmp_path / "red.jsonl")})
    assert said.startswith("task 'red', example red.jsonl:")
    assert said.endswith("the loss is nan; the checkpoint is broken or its dtype too narrow (try dtype: float32)")


def test_an_infinite_gradient_names_task_example_and_block(compute, tmp_path):
    adapted = lora(llama(), ["q_proj"])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.zero_()  # so that the forward pass stays finite
        adapted.base_model.model.model.layers[1].self_attn.q_proj.lora_B["default"].weight.fill_(3e38)
    adapted.peft_config["default"].lora_alpha = 10**20
    said = compute(adapter=write_adapter(tmp_path / "a", adapted))
    assert "example " in said and said.startswith("task ")
    assert "block language.1.q_proj.A: the gradient is not finite; the checkpoint is broken or its dtype" in said


def test_an_adapter_that_changes_nothing(compute, tmp_path):
    adapted = fresh_lora(llama())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.zero_()
    said = compute(adapter=write_adapter(tmp_path / "a", adapted))
    assert said == "every gradient is zero: the adapter changes no supervised token's loss"


def test_a_fresh_adapter_is_measured_and_its_zeros_explained(interference, refused, tiny, tmp_path):
    fresh = write_adapter(tmp_path / "fresh", fresh_lora(llama()))
    arguments = [*tiny.arguments(tmp_path / "run"), "--adapter", fresh, "--samples", 6, "--quiet"]
    assert interference("compute", *arguments).code == 0
    run = load(tmp_path / "run")
    assert run.zero_blocks() == [name for name in run.blocks["name"] if name.endswith("A")]
    said = interference("show", tmp_path / "run")
    text = " ".join(said.out.split())
    assert "note: 6 of 12 blocks have zero gradients (language.0.q_proj.A, ...) and add nothing: A's gradient" in text
    assert "nan" not in said.out and "inf" not in said.out
    assert refused("show", tmp_path / "run", "--side", "A") == (
        "every Gram is zero throughout: no unit has a gradient in this scope"
    )
    assert refused("compare", tmp_path / "run", tmp_path / "run", "--side", "A").startswith("every Gram is zero")


# --- show and compare ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "some"], "pairs is 'some', but must be one of 'leave-one-out', 'uni-perceiver', 'all'"),
        (["--reduce", "max"], "reduce is 'max', but must be one of 'ratio-of-means'"),
        (["--aggregate", "max"], "aggregate is 'max', but must be one of 'sum', 'mean'"),
        (["--side", "C"], "side 'C' is not one of A, B, W"),
        (["--space", "time"], "space 'time' is not one of parameters, weight, adam"),
        (["--space", "weight"], "this run has no weight-space Gram; compute it again with probe.weight_space: true"),
        (["--layers", "1"], "layer 1 is not among the adapted layers: 0, 2 (counted from 0)"),
        (["--modules", "eye"], "module 'eye' is not among those here: attention, down_proj"),
    ],
)
def test_show_refuses(refused, run_dir, arguments, message):
    assert refused("show", run_dir, *arguments).startswith(message)


def test_runs_that_are_none_or_do_not_match(refused, interference, tiny, run_dir, tmp_path):
    assert refused("show", tmp_path / "none") == f"there is no run at {tmp_path / 'none'}"
    assert refused("verify", tmp_path) == f"{tmp_path} is not a run: it has no run.json"
    assert refused("compute", tmp_path, "--out", tmp_path / "x") == (
        f"{tmp_path} is a directory, but has no run.json; name a YAML file or a run's directory"
    )
    assert interference("compute", run_dir, "--samples", 5, "--out", tmp_path / "run", "--quiet").code == 0
    assert refused("compare", run_dir, tmp_path / "run") == (
        "the runs do not have the same examples in the same order; compute both with the same seed"
    )


def test_configurations_of_peft_that_are_not_probed(compute, tmp_path):
    only = get_peft_model(llama(), LoraConfig(r=4, target_modules=["embed_tokens"]))
    assert compute(adapter=write_adapter(tmp_path / "a", only)) == (
        "adapter 'default' adapts no Linear module; only adapters of Linear layers are probed"
    )


def test_the_root_of_all_is_no_place_for_a_run(tiny, interference):
    said = interference("compute", *tiny.arguments("/"))
    assert said.code == 2 and "error: / exists and is not a run; choose another --out" in said.err
