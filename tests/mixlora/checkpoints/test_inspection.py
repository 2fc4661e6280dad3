"""`mixlora info`: what lies on disk, counted and judged without a model."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from mixlora.checkpoints.conversion import import_checkpoint
from mixlora.checkpoints.inspection import describe, outside_initial_range
from mixlora.common.errors import CheckpointError
from tests.support.released import (
    LAYERS,
    SHAPES,
    STEM,
    D,
    E,
    R,
    lora_tensors,
    mixlora_tensors,
    projector_tensors,
    write_lora,
    write_mixlora,
)

INPUTS, OUTPUTS = (LAYERS * sum(shape[i] for shape in SHAPES.values()) for i in (1, 0))  # summed over the Linears
PROJECTOR = D * 6 + D
UNTRAINED = "inside their initial range (as released: never trained, or hardly)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_released_checkpoint_and_its_conversion_count_the_same(tmp_path, conditional, dtype):
    write_mixlora(tmp_path / "in", mixlora_tensors(conditional, dtype), shards=2)
    import_checkpoint(tmp_path / "in", tmp_path / "out")
    old, new = describe(tmp_path / "in"), describe(tmp_path / "out")
    routers = 2 * E * INPUTS + (E * R * INPUTS if conditional else 0)
    counts = {"factors A": E * INPUTS, "factors B": E * OUTPUTS, "routers": routers}
    assert old.parameters == counts | {"projector": PROJECTOR}
    assert new.parameters == counts | {"projector": PROJECTOR + D * D + D}  # with the identity as second Linear
    for found in (old, new):
        assert (found.r, found.factors, found.alpha, found.scaling) == (R, E, 2 * E, 2 * E / R)
        assert (found.modules, found.outside, found.routers) == (7 * LAYERS, 0, UNTRAINED)
        assert found.options["routing"] == "instance" and found.options["conditional"] is conditional
    assert (old.kind, new.kind) == ("released MixLoRA checkpoint", "MixLoRA adapter")
    assert new.options["cfs_form"] == "official" and new.options["router_gradient"] == "none"


def test_trained_routers_are_seen_in_both_layouts(tmp_path):
    tensors = mixlora_tensors()
    key = f"{STEM}layers.0.mlp.up_proj.cmoa_loarB_extra_selector.loraA_param2loraB_selector.weight"
    tensors[key][0, :3] = 1.01 / (R * D) ** 0.5
    write_mixlora(tmp_path / "in", tensors)
    import_checkpoint(tmp_path / "in", tmp_path / "out")
    share = 3 / (2 * E * INPUTS + E * R * INPUTS)
    for path in (tmp_path / "in", tmp_path / "out"):
        found = describe(path)
        assert found.outside == pytest.approx(share)
        assert found.routers == f"trained: {100 * share:.3g}% of their entries are outside the initial range"


@pytest.mark.parametrize(("name", "shape", "inputs"), [("independent_A", (4, 25), 25), ("conditional", (2, 8, 4), 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_range_ends_where_initialisation_does(name, shape, inputs, dtype):
    key, bound = f"x.mixlora_router.{name}.weight", inputs**-0.5
    rounding = 1e-6 if dtype is torch.float32 else torch.finfo(dtype).eps
    weight = torch.full(shape, -bound).to(dtype)
    assert outside_initial_range({key: weight}) == 0
    weight.view(-1)[0] = bound * (1 + 3 * rounding)
    assert outside_initial_range({key: weight}) == 1 / weight.numel()
    weight.view(-1)[1] = float("nan")
    assert outside_initial_range({key: weight}) == 2 / weight.numel()
    assert outside_initial_range({"x.mixlora_A": weight}) is None


def test_an_adapter_that_routes_by_task_has_its_embeddings_counted(tmp_path):
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    tensors = {f"{stem}mixlora_A": torch.zeros(4, 8), f"{stem}mixlora_B": torch.zeros(4, 6)}
    tensors |= {f"{stem}mixlora_router.independent_{side}.weight": torch.full((4, 100), 0.1) for side in "AB"}
    tensors |= {
        "base_model.mixlora_tasks.embeddings": torch.zeros(3, 100),
        "base_model.model.head.weight": torch.ones(5),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "MIXLORA", "r": 2, "num_factors": 4, "lora_alpha": None, "routing": "task"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = describe(tmp_path)
    assert found.parameters == {"factors A": 32, "factors B": 24, "routers": 800, "task embeddings": 300, "other": 5}
    assert (found.alpha, found.scaling, found.modules, found.outside) == (8, 4, 1, 0)  # alpha is 2E where none is named


def test_an_adapter_of_the_method_itself_is_described(tmp_path):
    from peft import get_peft_model
    from torch import nn

    from mixlora import MixLoraConfig

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 8))
    model = get_peft_model(base, MixLoraConfig(r=2, num_factors=4, target_modules=["0"], pooling="all"))
    model.save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert found.parameters == {"factors A": 64, "factors B": 32, "routers": 2 * 64 + 2 * 16 * 4}
    assert (found.scaling, found.modules, found.routers) == (4, 1, UNTRAINED)
    assert found.options["pooling"] == "all" and found.options["cfs_form"] == "exact"


def test_loras_are_described_with_their_scaling(tmp_path):
    write_lora(tmp_path / "plain", lora_tensors(), projector=False)
    write_lora(tmp_path / "llava", lora_tensors(), use_rslora=True)
    plain, llava = describe(tmp_path / "plain"), describe(tmp_path / "llava")
    counts = {"factors A": R * INPUTS, "factors B": R * OUTPUTS}
    assert (plain.kind, plain.scaling, plain.parameters) == ("LoRA adapter", 8, counts)
    assert (llava.kind, llava.parameters) == ("LLaVA v1 LoRA", counts | {"projector": D * 6 + D + D * D + D})
    assert llava.scaling == pytest.approx(16 / R**0.5) and llava.options == {"use_rslora": True}
    assert plain.modules == llava.modules == 7 * LAYERS
    assert plain.factors is None and plain.outside is None and plain.routers == "none"


def test_projectors_are_described(tmp_path, mixlora):
    torch.save(projector_tensors(), tmp_path / "mm_projector.bin")
    import_checkpoint(tmp_path, tmp_path / "out")
    assert describe(tmp_path).parameters == {"projector": PROJECTOR}
    assert describe(tmp_path / "out").parameters == {"projector": PROJECTOR + D * D + D}
    code, out, err = mixlora("info", tmp_path / "mm_projector.bin")
    assert (code, err) == (0, "")
    assert out == "kind                   LLaVA v1 projector\nparameters, projector  56\n"


def test_the_command_prints_what_a_person_and_a_script_read(tmp_path, mixlora):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    code, out, err = mixlora("info", tmp_path / "in")
    assert (code, err) == (0, "")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    shown = {name: value.strip() for name, value in lines.items()}
    assert shown == {
        "kind": "released MixLoRA checkpoint",
        "r": "2",
        "E": "4",
        "alpha": "8",
        "scaling": "4",
        "routing": "instance",
        "conditional": "yes",
        "adapted modules": "14",
        "parameters, factors A": f"{E * INPUTS:,}",
        "parameters, factors B": f"{E * OUTPUTS:,}",
        "parameters, routers": f"{E * (2 + R) * INPUTS:,}",
        "parameters, projector": "56",
        "routers": UNTRAINED,
    }
    code, out, err = mixlora("info", tmp_path / "in", "--json")
    found = json.loads(out)
    assert (code, err, found["kind"], found["scaling"]) == (0, "", "released MixLoRA checkpoint", 4.0)
    assert found["parameters"]["routers"] == E * (2 + R) * INPUTS and found["outside"] == 0
    assert found["routers"] == UNTRAINED
    code, out, err = mixlora("info", "--help")
    assert code == 0 and "Example: mixlora info" in out


def test_other_paths_are_refused_with_what_is_understood(tmp_path, mixlora):
    code, out, err = mixlora("info", tmp_path)
    assert (code, out) == (2, "") and err == (
        f"error: {tmp_path} has an unknown format; supported are a directory with adapter_config.json "
        "(a MixLoRA or LoRA adapter, LLaVA v1's too), one with cmoa_args.bin (a released MixLoRA checkpoint), "
        "and mm_projector.bin or a directory with it\n"
    )
    assert mixlora("info", tmp_path / "none")[2].startswith(f"error: {tmp_path / 'none'} does not exist; supported are")
    torch.save({"x": torch.zeros(1)}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"mm_projector\.bin has no projector"):
        describe(tmp_path)
    (tmp_path / "mm_projector.bin").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin has an unknown format"):
        describe(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no cmoa_args.bin, where a released MixLoRA keeps r and alpha"):
        describe(tmp_path)
    config = tmp_path / "adapter_config.json"
    for text, words in (
        ('{"peft_type": "IA3"}', "peft_type 'IA3'; only MIXLORA and LORA"),
        ("[]", "contains a list, but must contain a JSON object"),
        ('{"peft_type": "LORA"}', "r is None in .*, but must be a whole number from 1"),
        (f'{{"peft_type": "LORA", "r": {10**400}}}', "r is 100.* must be a whole number from 1 to 1000000000"),
        (f'{{"peft_type": "LORA", "r": 2, "lora_alpha": {10**400}}}', "lora_alpha is 100.* from 0 to 1000000000"),
        ('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}', "no tensors can be read from .*: No such file"),
    ):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=words):
            describe(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no tensors can be read from .*adapter_model.safetensors"):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_whose_weights_are_a_pipe_is_not_waited_for(tmp_path, mixlora, name):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    os.mkfifo(tmp_path / name)
    code, out, err = mixlora("info", tmp_path)
    said = "it is not a regular file" if name.endswith("safetensors") else "No such file or directory"
    path = tmp_path / "adapter_model.safetensors"
    assert (code, out) == (2, "") and err.startswith(f"error: no tensors can be read from {path}: {said}")


def test_a_released_checkpoint_whose_weights_are_a_pipe_is_not_waited_for(tmp_path):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    (tmp_path / "in" / "pytorch_model.bin").unlink()
    os.mkfifo(tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"no tensors can be read from .*pytorch_model\.bin: it is not a regular file"
    ):
        describe(tmp_path / "in")


def test_what_a_stranger_wrote_cannot_steer_the_terminal(tmp_path, mixlora):
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "MIXLORA", "r": 2, "num_factors": 4, "routing": "\x1b[2Jevil\nr  9"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    code, out, err = mixlora("info", tmp_path)
    row = next(line for line in out.splitlines() if line.startswith("routing"))
    assert (code, err) == (0, "")
    assert row.endswith("\N{REPLACEMENT CHARACTER}[2Jevil\N{REPLACEMENT CHARACTER}r  9") and "\x1b" not in out
    assert json.loads(mixlora("info", tmp_path, "--json")[1])["options"]["routing"] == config["routing"]


def test_a_path_that_no_file_can_have(tmp_path, mixlora):
    code, out, err = mixlora("info", tmp_path / ("n" * 300))
    assert (code, out) == (2, "") and " does not exist; supported are " in err
    with pytest.raises(CheckpointError, match="does not exist; supported are"):
        describe(tmp_path / "a\0b")


def test_describing_changes_nothing_on_disk(tmp_path):
    write_mixlora(tmp_path / "in", mixlora_tensors())
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    describe(tmp_path / "in")
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
