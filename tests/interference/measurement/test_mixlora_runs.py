"""Runs of MixLoRA: recorded selections, routers and tasks, comparison with LoRA, verification."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from peft import get_peft_model
from rich.console import Console

import interference
from interference import config, load
from interference.cli import printing
from interference.errors import CheckpointError, ScopeError
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.measurement import checkpoint
from interference.measurement.compute import compute_config
from interference.verification.verify import verify_config
from mixlora import MixLoraConfig
from mixlora.checkpoints import loading
from tests.support.checkpoints import data, write_base, write_task
from tests.support.mixtures import batches, mixture, perturb
from tests.support.models import llama, lora


def test_a_run_keeps_selections_and_they_survive_the_disk(tmp_path):
    model, given = mixture(), batches()
    run = interference.compute(model, given, out=tmp_path / "run", memory_budget=2**16)
    assert run.selections["unit"].tolist() == list(range(24))
    rows = [row for task in given.values() for row in task]
    with Probe(model, find_targets(model, "default")) as probe:
        expected = torch.cat([probe.gradients(row).selections["language.2.up_proj.B"] for row in rows])
    assert run.selections["language.2.up_proj.B"].tolist() == expected.tolist()
    again = load(tmp_path / "run")
    assert again.selections.keys() == run.selections.keys()
    assert all(np.array_equal(again.selections[name], run.selections[name]) for name in run.selections)
    assert (tmp_path / "run" / "selections.safetensors").exists()


def test_a_lora_run_has_no_selections(tmp_path):
    run = interference.compute(lora(llama()), batches(1), out=tmp_path / "run")
    assert run.selections == {} and load(tmp_path / "run").selections == {}
    assert not (tmp_path / "run" / "selections.safetensors").exists()


def test_lora_and_mixlora_compare_pair_by_pair():
    given = batches()
    plain, mixed = (interference.compute(model, given, layers=[1]) for model in (lora(llama()), mixture()))
    table = interference.compare(plain, mixed, "delta")
    both = [run.matrix("delta").to_numpy().ravel() for run in (plain, mixed)]
    np.testing.assert_allclose(table["difference"], both[1] - both[0])
    table = interference.compare(plain, mixed)
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()


def test_routers_are_blocks_of_their_own_on_request():
    model, given = mixture(target_modules=["q_proj"]), batches(1)
    run = interference.compute(model, given, routers=True)
    assert run.blocks["side"].unique().tolist() == ["A", "B", "router-A", "router-B", "router-AB"]
    sides = [run.gram(side=side) for side in run.blocks["side"].unique()]
    np.testing.assert_allclose(sum(sides), run.gram(), rtol=1e-4, atol=1e-6)
    without = interference.compute(model, given)
    np.testing.assert_allclose(without.gram(), sides[0] + sides[1], rtol=1e-4, atol=1e-6)


def test_verify_finds_gradients_and_first_steps_right():
    model, given = mixture(router_gradient="none"), batches(2)
    found = interference.verify(interference.compute(model, given), model, given)
    assert found.passed and found.error < 2e-5 and found.gram_error < 1e-4
    assert found.steps["slope"][0] == pytest.approx(1, abs=0.02)
    assert "note:" not in printed(found) and "not judged" not in printed(found)
    rounded = dataclasses.replace(found, dtype="bfloat16", linear_until=0.0)
    assert "Steps were not judged: bfloat16 rounds losses by more than small steps move them" in printed(rounded)


def printed(found):
    screen = Console(file=io.StringIO(), width=200)
    printing.verification(found, screen)
    return screen.file.getvalue()


def test_straight_through_is_what_training_follows_but_no_derivative_of_the_loss():
    """The estimate of a router far from its start moves no loss by itself, and verify's real steps show it."""
    model, given = mixture(), batches(2)
    found = interference.verify(interference.compute(model, given, routers=True), model, given)
    assert found.error < 2e-5 and found.gram_error < 1e-4
    assert found.linear_until == 0 and not found.passed
    assert "note: routers were measured. Their straight-through gradient is an estimate" in printed(found)


def test_the_weight_space_is_refused():
    with pytest.raises(ScopeError, match="weight_space is for LoRA: MixLoRA has no single weight"):
        interference.compute(mixture(), batches(1), weight_space=True)


@pytest.fixture(scope="module")
def by_task(tmp_path_factory):
    """A base and a MixLoRA that routes by task, on disk, and the files of two tasks."""
    folder = tmp_path_factory.mktemp("by-task")
    base = write_base(folder / "base")
    tokens = loading.load_processor(config.build(data(base, base, {"red": base}), "test").model)
    definitions = {"red": "w1 w2 w3", "blue": "w9 w8"}
    adapted = get_peft_model(
        llama(),
        MixLoraConfig.paper(
            r=2, num_factors=5, target_modules=["q_proj", "up_proj"], routing="task", task_definitions=definitions
        ),
    )
    adapted.base_model.encode_tasks(tokens)
    perturb(adapted)
    adapted.save_pretrained(folder / "adapter")
    return (
        base,
        folder / "adapter",
        {name: write_task(folder / f"{name}.jsonl", seed=k) for k, name in enumerate(definitions)},
    )


def test_task_routing_is_measured_from_the_command_line_configuration(by_task, tmp_path):
    base, adapter, tasks = by_task
    settings = config.build(data(base, adapter, tasks, tmp_path / "run", unit_size=2), "test")
    run = compute_config(settings)
    chosen, owner = run.selections["language.1.q_proj.A"], run.selections["unit"]
    assert owner.tolist() == [unit for unit in range(6) for _ in range(2)]
    names = run.probes["task"].to_numpy()[owner]
    assert {len({tuple(row) for row in chosen[names == name].tolist()}) for name in ("red", "blue")} == {1}
    assert chosen[names == "red"].tolist() != chosen[names == "blue"].tolist()
    model = checkpoint.load_model(settings.model)
    for task in ("red", "blue"):
        model(input_ids=torch.tensor([[5, 6, 7]]), tasks=[task])
        layer = model.get_base_model().model.layers[1].self_attn.q_proj
        assert layer.selection.A.tolist() == chosen[names == task][:1].tolist()
    assert verify_config(run).error < 2e-5


def test_a_task_that_the_adapter_does_not_know_is_named(by_task, tmp_path):
    base, adapter, tasks = by_task
    settings = config.build(
        data(base, adapter, {"red": tasks["red"], "green": tasks["blue"]}, tmp_path / "run"), "test"
    )
    with pytest.raises(Exception, match=r"task 'green' is unknown to the adapter, which knows: blue, red"):
        compute_config(settings)


def test_an_adapter_for_another_base_is_refused_in_one_sentence(by_task, tmp_path):
    _, adapter, tasks = by_task
    other = write_base(tmp_path / "other", llama(hidden_size=64))
    settings = config.build(data(other, adapter, tasks, tmp_path / "run"), "test")
    with pytest.raises(
        CheckpointError, match=r"does not fit the base: .*mixlora_A.* has shape \(5, 32\), but .*\(5, 64\)"
    ):
        compute_config(settings)


def test_a_plan_counts_the_factors_of_a_mixture(by_task):
    from interference.measurement.plan import plan

    base, adapter, tasks = by_task
    found = plan(config.build(data(base, adapter, tasks), "test"))
    assert (found.units, found.blocks, found.width) == (12, 4, 5 * (32 + 32) + 5 * (32 + 48))
