"""Released checkpoints to adapters: every entry in its place, every refusal in words."""

import json
import os
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from mixlora.checkpoints.conversion import import_checkpoint
from mixlora.checkpoints.projector import load_projector
from mixlora.common.errors import CheckpointError, WriteError
from tests.support.paths import GOLDEN
from tests.support.released import (
    LAYERS,
    SHAPES,
    STEM,
    D,
    E,
    R,
    llava,
    mixlora_tensors,
    projector_tensors,
    refused,
    write_mixlora,
)

LINEAR = GOLDEN / "mixlora_linear.safetensors"
Q = f"{STEM}layers.1.self_attn.q_proj."


# --- a released MixLoRA


@pytest.mark.parametrize(
    ("conditional", "dtype", "shards"),
    [(True, torch.float32, 1), (False, torch.float32, 1), (True, torch.bfloat16, 3), (False, torch.bfloat16, 2)],
)
def test_every_entry_of_a_released_mixlora_finds_its_place(tmp_path, conditional, dtype, shards):
    tensors = mixlora_tensors(conditional, dtype)
    write_mixlora(tmp_path / "in", tensors, shards)
    done = import_checkpoint(tmp_path / "in", tmp_path / "out", base="my-llava")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    extra = "cmoa_loarB_extra_selector" if conditional else "cmoa_selector"
    for layer in range(LAYERS):
        for name, (d_out, d_in) in SHAPES.items():
            old = f"{STEM}layers.{layer}.{name}."
            new = f"base_model.model.model.language_model.layers.{layer}.{name}."
            for side, d in (("A", d_in), ("B", d_out)):
                factors = found.pop(f"{new}mixlora_{side}")
                assert factors.shape == (E, d) and factors.dtype == dtype
                for e in range(E):
                    assert torch.equal(factors[e], tensors[f"{old}lora_{side}.default.{e}"][0])
            router = f"{new}mixlora_router."
            a, b = (found.pop(f"{router}independent_{side}.weight") for side in "AB")
            assert torch.equal(a, tensors[f"{old}cmoa_selector.loraA_selector.weight"])
            assert torch.equal(b, tensors[f"{old}{extra}.loraB_selector.weight"])
            if conditional:
                weight = found.pop(f"{router}conditional.weight")
                released = tensors[f"{old}{extra}.loraA_param2loraB_selector.weight"]
                assert weight.shape == (R, d_in, E)
                for slot in range(R):
                    for d in range(d_in):
                        assert torch.equal(weight[slot, d], released[:, slot * d_in + d])
    assert found == {}  # nothing else is written
    assert (done.modules, done.projector_hidden_act) == (LAYERS * 7, "linear")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == {
        "peft_type": "MIXLORA",
        "task_type": None,
        "base_model_name_or_path": "my-llava",
        "inference_mode": True,
        "r": R,
        "num_factors": E,
        "lora_alpha": 2 * E,
        "lora_dropout": 0.05,
        "target_modules": r".*language_model.*\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)",
        "routing": "instance",
        "conditional": conditional,
        "router_gradient": "none",
        "pooling": "all",
        "decode_routing": "token",
        "cfs_form": "official",
        "factor_init": "kaiming",
        "format_version": 1,
    }


def test_the_language_model_is_adapted_and_the_image_encoder_is_not(tmp_path):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    import_checkpoint(tmp_path / "in", tmp_path / "out")
    pattern = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    matched = {name for name, _ in llava().named_modules() if re.fullmatch(pattern, name)}
    assert matched == {f"model.language_model.layers.{layer}.{name}" for layer in range(LAYERS) for name in SHAPES}


class Nested(nn.Module):
    """One Linear at a path."""

    def __init__(self, path, weight):
        super().__init__()
        self.path, place = path, self
        *above, last = path.split(".")
        for name in above:
            place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        place.add_module(last, nn.Linear(*weight.T.shape, bias=False))
        place.get_submodule(last).weight.data = weight.clone()

    def linear(self):
        return self.get_submodule(self.path)

    def forward(self, x):
        return self.linear()(x)


@pytest.mark.parametrize("case", [0, 1, 2, 3])
def test_an_imported_layer_computes_what_the_released_one_did(tmp_path, case):
    golden = {k.removeprefix(f"{case}."): v for k, v in load_file(LINEAR).items() if k.startswith(f"{case}.")}
    factors, r, alpha = golden["hyper"][2:5].long().tolist()
    stem = f"{STEM}layers.0.mlp.up_proj."
    tensors = projector_tensors(1, STEM)
    for side in "AB":
        rows = golden[f"factors_{side}"]
        tensors |= {f"{stem}lora_{side}.default.{e}": rows[e : e + 1].clone() for e in range(factors)}
    extra = f"{stem}cmoa_loarB_extra_selector."
    tensors[f"{stem}cmoa_selector.loraA_selector.weight"] = golden["ifs_A.weight"]
    if "cfs.weight" in golden:
        tensors[f"{extra}loraB_selector.weight"] = golden["ifs_B.weight"]
        tensors[f"{extra}loraA_param2loraB_selector.weight"] = golden["cfs.weight"]
    else:
        tensors[f"{stem}cmoa_selector.loraB_selector.weight"] = golden["ifs_B.weight"]
    write_mixlora(tmp_path / "in", tensors, n_experts=factors, n_selected=r, lora_alpha=alpha)
    (tmp_path / "in" / "config.json").unlink()
    import_checkpoint(tmp_path / "in", tmp_path / "out")
    from mixlora import MixLoraConfig  # registers the method

    base = Nested("model.language_model.layers.0.mlp.up_proj", golden["weight"])
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    assert isinstance(model.peft_config["default"], MixLoraConfig)
    torch.testing.assert_close(model(golden["x"]), golden["y"], rtol=1e-5, atol=1e-5)
    assert torch.equal(base.linear().selection.A, golden["selected_A"].long())
    assert torch.equal(base.linear().selection.B, golden["selected_B"].long())


@pytest.mark.parametrize("conditional", [True, False])
def test_peft_loads_an_imported_mixlora(tmp_path, conditional):
    write_mixlora(tmp_path / "in", mixlora_tensors(conditional))
    import_checkpoint(tmp_path / "in", tmp_path / "out")
    from mixlora import MixLoraConfig  # registers the method

    model = PeftModel.from_pretrained(llava("linear"), tmp_path / "out")
    load_projector(model, tmp_path / "out")
    assert isinstance(model.peft_config["default"], MixLoraConfig)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert saved.keys() == again.keys() and all(torch.equal(saved[key], again[key]) for key in saved)


def test_only_the_adapter_is_read_from_a_large_file(tmp_path, monkeypatch):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    asked = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **options: asked.append(options) or load(*a, **options))
    import_checkpoint(tmp_path / "in", tmp_path / "out")
    assert asked == [{"mmap": True, "weights_only": True, "map_location": "cpu"}]


DAMAGES = {  # what is done to the tensors, and words of the message
    "a missing A factor": (lambda t: t.pop(f"{Q}lora_A.default.2"), [f"lacks {Q}lora_A.default.2"]),
    "fewer B than A factors": (lambda t: t.pop(f"{Q}lora_B.default.3"), [f"lacks {Q}lora_B.default.3"]),
    "more factors than n_experts": (
        lambda t: t.update({f"{Q}lora_A.default.4": torch.zeros(1, D)}),
        [f"{Q}lora_A.default.4", "n_experts = 4"],
    ),
    "a missing A router": (
        lambda t: t.pop(f"{Q}cmoa_selector.loraA_selector.weight"),
        [f"lacks {Q}cmoa_selector.loraA_selector.weight"],
    ),
    "a missing B router": (
        lambda t: t.pop(f"{Q}cmoa_loarB_extra_selector.loraB_selector.weight"),
        [f"lacks {Q}cmoa_loarB_extra_selector.loraB_selector.weight"],
    ),
    "a missing conditional router": (
        lambda t: t.pop(f"{Q}cmoa_loarB_extra_selector.loraA_param2loraB_selector.weight"),
        [f"lacks {Q}cmoa_loarB_extra_selector.loraA_param2loraB_selector.weight"],
    ),
    "a factor of another width": (
        lambda t: t.update({f"{Q}lora_A.default.1": torch.zeros(1, 9)}),
        [f"{Q}lora_A.default.1", "(1, 9)", "(1, 8)"],
    ),
    "a router of another width": (
        lambda t: t.update({f"{Q}cmoa_selector.loraA_selector.weight": torch.zeros(E, 9)}),
        [f"{Q}cmoa_selector.loraA_selector.weight", "(4, 9)", "(4, 8)"],
    ),
    "a conditional router of another r": (
        lambda t: t.update({f"{Q}cmoa_loarB_extra_selector.loraA_param2loraB_selector.weight": torch.zeros(E, 24)}),
        ["loraA_param2loraB_selector", "(4, 24)", "(4, 16)"],
    ),
    "factors that do not fit the base weight": (
        lambda t: t.update({f"{Q}weight": torch.zeros(D, 10)}),
        [f"{Q}weight", "(8, 10)", "(8, 8)"],
    ),
    "a layer without its factors": (
        lambda t: [t.pop(key) for key in list(t) if ".layers.1." in key],
        [f"lacks {STEM}layers.1.mlp.down_proj.lora_A.default.0"],
    ),
    "no factors at all": (lambda t: [t.pop(key) for key in list(t) if "lora_" in key or "cmoa" in key], ["no factors"]),
    "no projector": (lambda t: t.pop(f"{STEM}mm_projector.weight"), [f"lacks {STEM}mm_projector.weight"]),
    "not a trace of a projector": (
        lambda t: [t.pop(key) for key in list(t) if "mm_projector" in key],
        ["lacks model.mm_projector.weight"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_the_name_of_the_tensor(tmp_path, damage):
    tensors = mixlora_tensors()
    harm, words = DAMAGES[damage]
    harm(tensors)
    write_mixlora(tmp_path / "in", tensors)
    refused(tmp_path / "in", tmp_path / "out", *words, str(tmp_path / "in"))


def test_another_models_config_is_refused(tmp_path):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    (tmp_path / "in" / "config.json").write_text('{"hidden_size": 10}')
    refused(tmp_path / "in", tmp_path / "out", "q_proj.lora_A.default.0", "(1, 8)", "(1, 10)", "hidden_size")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cond_type": "task_embed"}, ["cond_type is 'task_embed'", "input, input_lora_a_param"]),
        ({"independent_rank": False}, ["independent_rank is False", "only True"]),
        ({"mix_mm_projector": True}, ["mix_mm_projector is True"]),
        ({"mix_start_layer": 3}, ["mix_start_layer is 3"]),
        ({"ifs_weight": 0.5}, ["ifs_weight is 0.5"]),
        ({"n_experts": 10**400}, ["n_experts is 1000", "a whole number from 1 to 1000000000"]),
        ({"n_experts": "16"}, ["n_experts is '16'", "a whole number from 1"]),
        ({"n_selected": 5}, ["n_selected is 5", "from 1 to 4"]),
        ({"n_selected": True}, ["n_selected is True"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha is nan", "a number from 0"]),
        ({"lora_dropout": 2.0}, ["lora_dropout is 2.0", "from 0 to 1"]),
        (
            {"n_selected": None, "lora_alpha": None},
            ["lacks n_selected, lora_alpha; it has only: attribute_dim, cond_t"],
        ),
    ],
)
def test_settings_that_cannot_be_expressed_are_refused(tmp_path, settings, words):
    write_mixlora(tmp_path / "in", mixlora_tensors(), **settings)
    refused(tmp_path / "in", tmp_path / "out", *words, "cmoa_args.bin")


def test_shards_must_be_there_and_lie_beside_their_index(tmp_path):
    write_mixlora(tmp_path / "in", mixlora_tensors(), shards=2)
    index = tmp_path / "in" / "pytorch_model.bin.index.json"
    (tmp_path / "in" / "pytorch_model-00002-of-00002.bin").unlink()
    refused(tmp_path / "in", tmp_path / "out", "pytorch_model-00002-of-00002.bin", "No such file")
    index.write_text(json.dumps({"weight_map": {"a": "../secret.bin"}}))
    refused(tmp_path / "in", tmp_path / "out", "'../secret.bin'", "not a file in that directory")
    index.write_text("{}")
    refused(tmp_path / "in", tmp_path / "out", "no weight_map")
    index.write_text("{")
    refused(tmp_path / "in", tmp_path / "out", "not valid JSON")


# --- nothing is overwritten


def test_an_existing_directory_is_left_alone(tmp_path):
    torch.save(projector_tensors(), tmp_path / "mm_projector.bin")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "mine" / "notes"):
        with pytest.raises(CheckpointError, match="is not empty; name a new directory"):
            import_checkpoint(tmp_path, out)
    with pytest.raises(CheckpointError, match="cannot be written"):
        import_checkpoint(tmp_path, tmp_path / "mine" / "notes" / "out")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    (tmp_path / "empty").mkdir()
    import_checkpoint(tmp_path, tmp_path / "empty")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["projector.safetensors"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    torch.save(projector_tensors(), tmp_path / "mm_projector.bin")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        WriteError, match="cannot be written: No space left on device; make room there, and start again"
    ):
        import_checkpoint(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mm_projector.bin"]


def test_converting_twice_is_refused(tmp_path):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    import_checkpoint(tmp_path / "in", tmp_path / "out")
    refused(tmp_path / "out", tmp_path / "again", "is already a MixLoRA adapter")


# --- the command


def test_the_command_converts_and_says_what_the_base_needs(mixlora, tmp_path):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    out = tmp_path / "deep" / "out"
    code, said, err = mixlora("import-official", tmp_path / "in", out, "--base", "my-llava")
    count = sum(tensor.numel() for tensor in load_file(out / "adapter_model.safetensors").values())
    assert (code, err) == (0, f"next: mixlora info {out}\n") and said == (
        f"released MixLoRA checkpoint: {count:,} parameters in 14 modules, in {out}\n"
        f"projector: {out / 'projector.safetensors'}, for a base with projector_hidden_act=linear; "
        "load it with mixlora.official.load_projector\n"
    )
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "my-llava"
    code, said, err = mixlora("import-official", tmp_path / "in", out)
    assert (code, said, err) == (2, "", f"error: {out} is not empty; name a new directory\n")
    code, said, err = mixlora("import-official", "--help")
    assert code == 0 and "Example: mixlora import-official" in said
