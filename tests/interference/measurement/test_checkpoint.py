"""Checkpoints from disk: what is loaded is what was saved, and a fingerprint tells one from another."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import peft_model
from transformers import AutoModelForCausalLM

import interference
from interference.config import ModelConfig
from interference.errors import CheckpointError
from interference.measurement import checkpoint
from mixlora.checkpoints import lengths, loading
from tests.support.checkpoints import write_adapter
from tests.support.models import batch, gpt2, llama, llava, lora, opt


@pytest.fixture
def settings(tiny):
    return ModelConfig(base=str(tiny.base), adapter=str(tiny.adapter), device="cpu")


def test_the_model_is_the_one_that_was_saved(settings):
    found, expected = checkpoint.load_model(settings), lora(llama()).eval()
    data = batch([9, 7], [3, 2])
    torch.testing.assert_close(found(**data).loss, expected(**data).loss)
    assert not found.training and found.dtype == torch.float32
    assert loading.load_processor(settings).convert_tokens_to_ids("<image>") == 63


@pytest.mark.parametrize(("model", "expected"), [(gpt2, 64), (opt, 64), (llama, None), (llava, None)])
def test_positions_are_limited_where_they_are_learned(model, expected, tmp_path):
    model().config.save_pretrained(tmp_path)
    assert lengths.positions(ModelConfig(base=str(tmp_path), adapter="a")) == expected


def test_a_dtype_is_that_of_the_base(settings):
    found = checkpoint.load_model(settings.model_copy(update={"dtype": "bfloat16"}))
    dtypes = {name.split(".")[-3]: parameter.dtype for name, parameter in found.named_parameters() if "q_proj" in name}
    assert dtypes == {"q_proj": torch.bfloat16, "lora_A": torch.float32, "lora_B": torch.float32}


def test_an_adapter_of_embeddings_too_is_loaded(settings, tmp_path):
    adapter = write_adapter(tmp_path / "a", lora(llama(), ["q_proj", "embed_tokens"]))
    found = checkpoint.load_model(settings.model_copy(update={"adapter": str(adapter)}))
    weights = dict(found.named_parameters())
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight"
    torch.testing.assert_close(weights[name], dict(lora(llama(), ["q_proj", "embed_tokens"]).named_parameters())[name])


def test_an_adapter_that_saves_modules_is_loaded(settings, tmp_path):
    adapted = lora(llama(), ["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight.fill_(0.5)
    adapter = write_adapter(tmp_path / "a", adapted)
    found = checkpoint.load_model(settings.model_copy(update={"adapter": str(adapter)}))
    assert (found.base_model.model.lm_head.modules_to_save["default"].weight == 0.5).all()


def test_an_empty_model_has_shapes_and_no_weights(settings):
    with torch.device("meta"):
        found = checkpoint.empty_adapted(settings)
    shapes = {name: tuple(parameter.shape) for name, parameter in found.named_parameters()}
    assert shapes == {name: tuple(p.shape) for name, p in checkpoint.load_model(settings).named_parameters()}
    assert all(parameter.is_meta for parameter in found.parameters())


def test_bars_of_other_libraries_are_off_only_while_loading(settings, capfd):
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    checkpoint.load_model(settings)
    assert logging.is_progress_bar_enabled()
    assert "Loading" not in capfd.readouterr().err


def test_a_device_that_is_not_there(settings):
    with pytest.raises(CheckpointError, match=r"^device 'moon' cannot be used: .+"):
        checkpoint.load_model(settings.model_copy(update={"device": "moon"}))


def test_a_model_that_is_spread_over_devices_is_the_same(settings, monkeypatch):
    given, own = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *base, **how: given.append(how.get("device_map")) or own(*base, **how),
    )
    found, plain = (checkpoint.load_model(settings.model_copy(update={"device": name})) for name in ("split", "cpu"))
    assert given == ["auto", None]
    data = batch([9, 7], [3, 2])
    split = found(**{name: tensor.to(found.device) for name, tensor in data.items()})
    torch.testing.assert_close(split.loss, plain(**data).loss, check_device=False)


def test_an_adapter_goes_to_its_base_and_to_no_gpu_beside_it(settings, monkeypatch):
    monkeypatch.setattr(peft_model, "infer_device", lambda: pytest.fail("PEFT looks for a GPU of its own"))
    found = checkpoint.load_model(settings.model_copy(update={"device": "cpu"}))
    assert {parameter.device.type for parameter in found.parameters()} == {"cpu"}


def test_hooks_that_move_tensors_between_devices_change_no_gradient(settings):
    """What accelerate puts on every module of a model that is spread; here all of its devices are the CPU."""
    plain, spread = checkpoint.load_model(settings), checkpoint.load_model(settings)
    dispatch_model(spread.get_base_model(), {"": "cpu"}, force_hooks=True)
    hooked = [name for name, module in spread.named_modules() if hasattr(module, "_hf_hook")]
    tasks = {task: [batch([12, 7, 9], [3, 1, 5], seed)] for seed, task in enumerate("ab")}
    found, expected = interference.compute(spread, tasks), interference.compute(plain, tasks)
    torch.testing.assert_close(torch.tensor(found.gram()), torch.tensor(expected.gram()))
    assert [name for name, module in spread.named_modules() if hasattr(module, "_hf_hook")] == hooked != []


OFFLOADED = (
    r"^{} of the model's {} weights are offloaded to the CPU or a disk; load it smaller \(quantization: 4bit or 8bit, "
    r"dtype: bfloat16\), or onto more GPUs$"
)


def test_a_base_that_the_gpus_cannot_hold_is_refused(settings, monkeypatch):
    """Weights would stay on the CPU, and accelerate would bring each where its module runs."""
    own = AutoModelForCausalLM.from_pretrained

    def offloaded(*base, device_map, **how):
        return cpu_offload(own(*base, **how), torch.device("cpu"))

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", offloaded)
    with pytest.raises(CheckpointError, match=OFFLOADED.format(30, 30)):
        checkpoint.load_model(settings.model_copy(update={"device": "split"}))


def test_an_offloaded_model_of_a_notebook_is_refused(settings):
    model = checkpoint.load_model(settings)
    cpu_offload(model.get_base_model(), torch.device("cpu"))
    weights = len(list(model.parameters()))
    with pytest.raises(CheckpointError, match=OFFLOADED.format(weights, weights)):
        interference.compute(model, {"a": [batch([9, 7], [3, 2])], "b": [batch([9, 7], [3, 2], 3)]})
