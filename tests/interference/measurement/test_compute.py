"""`interference.compute` in a notebook: K is G G^T of reference gradients, whatever the budget or granularity."""

import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig

import interference
from interference.errors import CheckpointError, ConfigError, MeasurementError, RunError, ScopeError
from interference.measurement.spool import DiskSpool
from interference.measurement.units import contents
from interference.verification import reference
from tests.support.models import batch, llama, llava, lora, perturb

RED = [batch([12, 7, 9], [3, 1, 5], seed=2), batch([8, 8], [2, 4], seed=3)]
BLUE = [batch([6, 11], [2, 6], seed=4), batch([9], [3], seed=5)]
TASKS = {"red": RED, "blue": BLUE}
OWNERS = [0, 0, 0, 1, 1, 2, 2, 3]  # the batch of each example


@pytest.fixture(scope="module")
def model():
    return lora(llama())


@pytest.fixture(scope="module")
def run(model):
    return interference.compute(model, TASKS)


def expected(model, **scope):
    """{block: [examples, size]} by batch-1 autograd."""
    parts = [reference.gradients(model, data, **scope) for data in RED + BLUE]
    return {name: torch.cat([part[name].flatten(1) for part in parts]).double().numpy() for name in parts[0]}


def gram_of(rows):
    whole = np.concatenate(list(rows.values()), axis=1)
    return whole @ whole.T


def close(found, wanted, tolerance=1e-5):
    scale = np.sqrt(np.outer(np.diagonal(wanted), np.diagonal(wanted)))
    assert found.shape == wanted.shape
    np.testing.assert_array_less(np.abs(found - wanted), tolerance * scale + 1e-30)


def test_the_signature_is_the_promised_one():
    names = list(inspect.signature(interference.compute).parameters)
    assert names[:7] == ["model", "batches", "layers", "modules", "adapter", "out", "seed"]
    defaults = [p.default for p in inspect.signature(interference.compute).parameters.values()][2:7]
    assert defaults == [None, None, None, None, 0]


def test_probes_and_blocks(model, run):
    assert list(run.probes) == ["task", "loss", "tokens", "ids", "source", "content"]
    assert run.probes["task"].tolist() == ["red"] * 5 + ["blue"] * 3
    assert run.probes["tokens"].tolist() == [3, 1, 5, 2, 4, 2, 6, 3]
    assert run.probes["ids"].tolist() == ["0.0", "0.1", "0.2", "1.0", "1.1", "0.0", "0.1", "1.0"]
    singles = [reference.single(data, row) for data in RED + BLUE for row in range(len(data["labels"]))]
    own = [model.eval()(**single).loss.item() for single in singles]
    np.testing.assert_allclose(run.probes["loss"], own, rtol=1e-5)
    assert list(run.blocks) == ["name", "component", "layer", "module", "group", "side", "size"]
    assert run.blocks.iloc[0].tolist() == ["language.0.q_proj.A", "language", 0, "q_proj", "attention", "A", 128]
    assert len(run.blocks) == 3 * 7 * 2
    assert set(run.blocks.loc[run.blocks["module"] == "down_proj", "group"]) == {"mlp"}
    assert repr(run) == "Run(8 units: red 5, blue 3; 42 blocks)"


def test_other_batches_of_the_same_names_are_not_compared(model, run):
    other = {"red": RED, "blue": [*BLUE[:-1], batch([9], [3], seed=77)]}
    changed = interference.compute(model, other)
    assert [a == b for a, b in zip(run.probes["content"], changed.probes["content"], strict=True)] == [True] * 7 + [
        False
    ]
    interference.compare(run, interference.compute(model, TASKS, layers=[1]), layers=[1], replicates=50)
    with pytest.raises(
        ScopeError, match="1 of the runs' 8 units have the same names and other content, the first is 1"
    ):
        interference.compare(run, changed, replicates=50)
    whole = [interference.compute(model, tasks, unit="batch") for tasks in (TASKS, other)]
    same = [a == b for a, b in zip(*(one.probes["content"] for one in whole), strict=True)]
    assert same == [True, True, True, False]


def test_content_is_of_what_an_example_shows_whatever_its_batch():
    both = batch([6, 11], [2, 6], seed=4)
    both["pixel_values"] = torch.rand(2, 3, 4, 4)
    first, second = contents(both)
    assert first != second
    alone = [reference.single(both, row) for row in (0, 1)]
    assert [contents(one) for one in alone] == [[first], [second]]
    narrow = both | {"pixel_values": both["pixel_values"].bfloat16(), "input_ids": both["input_ids"].int()}
    assert contents(narrow) == contents(both | {"tasks": ["a", "b"]}) == [first, second]
    for key in ("input_ids", "labels", "pixel_values"):
        changed = both[key].clone()
        changed[1, -1 if key != "pixel_values" else 2] += 1
        assert [a == b for a, b in zip(contents(both | {key: changed}), (first, second), strict=True)] == [True, False]


@pytest.mark.parametrize(
    "scope", [{}, {"layers": [1]}, {"modules": ["mlp"]}, {"layers": [0, 2], "modules": ["q_proj", "attention"]}]
)
def test_gram_is_that_of_the_reference_gradients(model, run, scope):
    close(run.gram(**scope), gram_of(expected(model, **scope)))
    alone = interference.compute(model, TASKS, **scope)
    np.testing.assert_allclose(alone.gram(), run.gram(**scope), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", ["A", "B"])
def test_gram_of_a_side(model, run, side):
    rows = {name: row for name, row in expected(model, modules=["v_proj"]).items() if name.endswith(side)}
    close(run.gram(modules=["v_proj"], side=side), gram_of(rows))


@pytest.mark.parametrize("token_mean", [False, True])
def test_batch_units_average_their_examples(run, model, token_mean):
    weights = run.probes["tokens"].to_numpy(float) if token_mean else np.ones(8)
    mean = np.zeros((4, 8))
    mean[OWNERS, range(8)] = weights
    mean /= mean.sum(axis=1, keepdims=True)
    found = interference.compute(model, TASKS, unit="batch", token_mean=token_mean)
    close(found.gram(), mean @ run.gram().astype(float) @ mean.T)
    np.testing.assert_allclose(found.probes["loss"], mean @ run.probes["loss"], rtol=1e-5)
    assert found.probes["tokens"].tolist() == [9, 6, 8, 3]
    assert found.probes["source"].tolist() == ["red batch 0", "red batch 1", "blue batch 0", "blue batch 1"]


@pytest.mark.parametrize("granularity", ["group", "layer"])
def test_coarse_blocks_are_sums(run, model, granularity):
    coarse = interference.compute(model, TASKS, granularity=granularity)
    assert len(coarse.blocks) == {"group": 12, "layer": 6}[granularity]
    assert coarse.blocks["size"].sum() == run.blocks["size"].sum()
    np.testing.assert_allclose(coarse.gram(), run.gram(), rtol=1e-5, atol=1e-6)
    names = {"group": "attention, language, mlp", "layer": "all, language"}[granularity]
    told = f"module 'q_proj' is not among those here: {names}; the run summed its modules (probe.granularity)"
    with pytest.raises(ScopeError, match=f"^{re.escape(told)}$"):
        coarse.matrix(modules=["q_proj"])
    if granularity == "group":
        mlp = {"layers": [1], "modules": ["mlp"], "side": "B"}
        np.testing.assert_allclose(coarse.gram(**mlp), run.gram(**mlp), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(coarse.gram(layers=[2]), run.gram(layers=[2]), rtol=1e-5, atol=1e-6)


def test_spilling_to_disk_changes_nothing(run, model, monkeypatch):
    parts, own = [], DiskSpool.write
    monkeypatch.setattr(DiskSpool, "write", lambda self, part, rows: parts.append(part) or own(self, part, rows))
    spilled = interference.compute(model, TASKS, memory_budget=200_000)
    assert parts == [1, 2, 3]  # the first part fits
    np.testing.assert_allclose(spilled.gram(), run.gram(), rtol=1e-5, atol=1e-6)
    assert spilled.probes.equals(run.probes)


def test_weight_space_does_not_depend_on_the_split(run):
    model = lora(llama())
    before = interference.compute(model, TASKS, weight_space=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(4.0 if "lora_A" in name else 0.25)
    after = interference.compute(model, TASKS, weight_space=True)
    assert set(before.blocks["side"]) == {"A", "B", "W"}
    np.testing.assert_allclose(before.gram(), run.gram(), rtol=1e-6)
    close(after.gram(space="weight"), before.gram(space="weight"), 1e-4)
    weight, factors = ([a.matrix("cosine", space=space) for a in (before, after)] for space in ("weight", "parameters"))
    np.testing.assert_allclose(weight[0], weight[1], atol=1e-4)
    assert (factors[0] - factors[1]).abs().to_numpy().max() > 0.001


def test_the_run_that_is_saved_is_the_one_returned(model, run, tmp_path):
    made = interference.compute(model, TASKS, out=tmp_path / "run", seed=7)
    loaded = interference.load(tmp_path / "run")
    assert loaded.seed == made.seed == 7
    assert np.array_equal(loaded.gram(), made.gram()) and np.array_equal(loaded.gram(), run.gram())
    pd.testing.assert_frame_equal(loaded.table("delta", replicates=50), made.table("delta", replicates=50))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_vision_language_components():
    model = lora(llava(), r".*(q_proj|linear_1)")
    data = {name: [batch([12, 9], [3, 2], seed=k, image=True)] for k, name in enumerate(["red", "blue"])}
    scope = {"components": ["vision", "projector", "language"]}
    found = interference.compute(model, data, **scope)
    rows = [reference.gradients(model, parts[0], **scope) for parts in data.values()]
    whole = torch.cat([torch.cat([g.flatten(1) for g in row.values()], dim=1) for row in rows]).double().numpy()
    assert set(found.blocks["component"]) == {"vision", "projector", "language"}
    close(found.gram(), whole @ whole.T)


def test_the_model_comes_back_as_it_was(run):
    model = lora(llama())
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    perturb(model, seed=5)
    model.set_adapter("other")
    model.train()
    model.base_model.model.model.norm.requires_grad_(True)
    state = [(p.requires_grad, p.grad, p.clone()) for p in model.parameters()]
    other = interference.compute(model, TASKS, adapter="other")
    assert other.blocks["module"].unique().tolist() == ["q_proj"] and other.meta["adapter"] == "other"
    interference.verify(other, model, TASKS, units=1)
    for (required, grad, value), parameter in zip(state, model.parameters(), strict=True):
        assert parameter.requires_grad == required and parameter.grad is grad and torch.equal(parameter, value)
    assert model.active_adapters == ["other"] and all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_the_model_comes_back_when_progress_fails():
    model = lora(llama()).train()

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interference.compute(model, TASKS, progress=stop)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


ONE = {"red": RED, "blue": BLUE[1:]}
UNLABELLED = {"red": [{"input_ids": torch.ones(1, 3, dtype=torch.long)}]}


@pytest.mark.parametrize(
    ("batches", "options", "kind", "message"),
    [
        (ONE, {}, ScopeError, "task 'blue' has 1 units; at least 2 are needed: give it more examples"),
        ({"red": RED, "blue": []}, {}, ScopeError, "task 'blue' has 0 units; at least 2 are needed"),
        ({}, {}, ScopeError, "there is nothing to measure: no task was given"),
        (UNLABELLED, {}, ScopeError, r"task 'red', batch 0 has no labels; collate it with labels \[batch, seq\]"),
        (TASKS, {"layers": [1, 3]}, ScopeError, r"layer 3 is not among the adapted layers: 0-2 \(counted from 0\)"),
        (TASKS, {"modules": ["fc1"]}, ScopeError, "module 'fc1' is not among those here: attention, down_proj, gate"),
        (TASKS, {"components": ["vision"]}, ScopeError, "'default' adapts nothing in vision; it adapts: language"),
        (TASKS, {"components": ["eye"]}, ScopeError, "component 'eye' is not one of language, vision, projector"),
        (TASKS, {"adapter": "nobody"}, CheckpointError, "adapter 'nobody' is not loaded; loaded are: default"),
        (TASKS, {"unit": "token"}, ScopeError, "unit 'token' is not one of example, batch"),
        (TASKS, {"layers": 2}, ScopeError, r"layers is 2, but must be a list, as \[2\]"),
        (TASKS, {"modules": "mlp"}, ScopeError, r"modules is 'mlp', but must be a list, as \['mlp'\]"),
        (
            {"a": {"labels": 0}},
            {},
            ScopeError,
            r"the batches of task 'a' are a dict; give a list of them, as \[batch\]",
        ),
        (TASKS, {"granularity": "block"}, ConfigError, "granularity is 'block', but must be one of 'module', 'g"),
    ],
)
def test_what_cannot_be_measured_is_told(model, batches, options, kind, message):
    with pytest.raises(kind, match=message):
        interference.compute(model, batches, **options)


def test_a_directory_in_use_is_refused_before_anything_runs(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and is not a run; choose another --out"):
        interference.compute(model, {"red": iter(())}, out=tmp_path)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["notes.txt"]


def test_a_model_without_gradients_is_refused():
    model = lora(llama())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
    with pytest.raises(MeasurementError, match="every gradient is zero: the adapter changes no supervised token's los"):
        interference.compute(model, TASKS)


def test_batches_of_no_task_are_refused():
    model = lora(llama())
    with pytest.raises(ScopeError, match=r"batches is a list, but must be a dict {task: its batches}"):
        interference.compute(model, [batch([9], [2])])
