"""Measuring at the edges of numbers: narrow types, quantised bases, very short and very long answers."""

import re

import numpy as np
import pytest
import torch
from peft import PeftModel

import interference
from interference import config
from interference.errors import MeasurementError
from interference.measurement.compute import compute_config
from interference.verification import reference, result, verify
from mixlora.checkpoints import loading
from tests.support.checkpoints import data, write_adapter, write_base, write_task
from tests.support.models import VOCABULARY, batch, llama, lora
from tests.support.needed import needed


def loaded(dtype="float32", **changes) -> PeftModel:
    """A LoRA in float32 on a base of another type."""
    model = lora(llama(**changes))
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def tasks(count=4):
    lengths, answers = [12, 7, 9, 11], [3, 1, 5, 4]
    return {task: [batch(lengths, answers, 20 * k + n) for n in range(count // 4)] for k, task in enumerate("ab")}


# --- narrow types ---


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_a_narrow_base_gives_the_matrix_within_its_precision(dtype, tolerance):
    exact = interference.compute(loaded(), tasks())
    found = interference.compute(loaded(dtype), tasks())
    norms = np.sqrt(np.diag(exact.gram()))
    assert found.gram().dtype == np.float32
    assert np.abs(found.gram() - exact.gram()).max() > 0
    assert (np.abs(found.gram() - exact.gram()) <= tolerance * np.outer(norms, norms)).all()


def test_an_overflow_of_float16_is_told_with_its_task_and_remedy():
    model = loaded("float16")
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.down_proj.base_layer.weight.fill_(60000)
    with pytest.raises(
        MeasurementError, match=r"task 'a', example a batch 0 row 0: the loss is nan; .*(try dtype: float32)"
    ):
        interference.compute(model, tasks())


def test_verify_prints_the_error_that_a_bfloat16_base_brings(interference, tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    files = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    values = data(base, adapter, files, tmp_path / "run")
    values["model"]["dtype"] = "bfloat16"
    run = compute_config(config.build(values, "test"))
    said = interference("verify", tmp_path / "run", "--quiet")
    assert said.code == 0, said.out + said.err
    printed = re.search(r"passed: gradients equal autograd to (\S+) \(relative,\s+bfloat16\)", said.out)
    found = verify.verify_config(run)
    assert float(printed[1]) == pytest.approx(found.error, rel=5e-3)  # three digits are printed
    assert 1e-4 < found.error < result.TOLERANCES["bfloat16"]  # more than float32 would bring


# --- quantised bases ---


@pytest.mark.parametrize(
    ("bits", "tolerance"),
    [  # 8-bit Linears round their inputs, too: what padding changes in the last digit may be a whole step of 127
        ("4bit", 1e-4),
        ("8bit", 0.1),
    ],
)
def test_on_a_quantised_base_gradients_are_those_of_batch_1_autograd(tmp_path, bits, tolerance):
    needed("bitsandbytes")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    base = write_base(tmp_path / "base", llama(**shape))
    adapter = write_adapter(tmp_path / "adapter", lora(llama(**shape)))
    files = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    values = data(base, adapter, files, tmp_path / "run", layers=None)
    values["model"]["quantization"] = bits
    settings = config.build(values, "test")
    found = compute_config(settings)
    values["model"].pop("quantization")
    values["out"] = str(tmp_path / "plain")
    plain = compute_config(config.build(values, "test"))
    norms = np.sqrt(np.diag(plain.gram()))
    assert np.abs(found.gram() - plain.gram()).max() > 1e-3 * norms.max() ** 2  # so it is another base indeed
    checked = verify.verify_config(found, units=2)
    assert checked.passed and checked.error < tolerance and checked.gram_error < 3 * tolerance


def test_a_4_bit_base_is_measured_on_any_cpu_as_its_dequantized_weights_are(tmp_path, monkeypatch):
    """Inputs of 32 are no multiple of bitsandbytes' 64, which its kernel for AVX512-BF16 cannot take."""
    bnb = needed("bitsandbytes")
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    files = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    values = data(base, adapter, files, tmp_path / "run")
    values["model"] |= {"quantization": "4bit", "device": "cpu"}
    settings = config.build(values, "test")
    found = compute_config(settings)
    plain, quantized = llama(), loading.load_base(settings.model)
    for name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = module.weight
            plain.get_submodule(name).weight.data = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    plain.save_pretrained(base)
    values["model"] |= {"quantization": None}
    expected = compute_config(config.build(values | {"out": str(tmp_path / "plain")}, "test"))
    size = np.sqrt(np.diag(expected.gram())).max() ** 2
    np.testing.assert_allclose(found.gram() / size, expected.gram() / size, rtol=0, atol=1e-5)


# --- lengths ---


def long_and_short():
    """One supervised token beside four thousand, in one batch."""
    ids = torch.randint(3, VOCABULARY - 1, (2, 4040), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    labels = torch.full_like(ids, -100)
    labels[0, 40:] = ids[0, 40:]
    labels[1, 11] = ids[1, 11]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_one_supervised_token_and_four_thousand_are_measured_alike():
    model, together = loaded(max_position_embeddings=4096), long_and_short()
    run = interference.compute(model, {"a": [together], "b": tasks()["b"]}, layers=[1])
    assert run.probes["tokens"].tolist()[:2] == [4000, 1]
    for row in (0, 1):
        alone = reference.gradients(model, reference.single(together, row), layers=[1])
        norm = sum(float((gradient.double() ** 2).sum()) for gradient in alone.values())
        assert run.gram()[row, row] == pytest.approx(norm, rel=1e-4)
