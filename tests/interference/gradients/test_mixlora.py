"""Measuring MixLoRA: per-example gradients of factors and routers, recorded selections, comparison with LoRA."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from peft import get_peft_model
from rich.console import Console

import interference
from interference import config, load
from interference.blocks import Side
from interference.cli import printing
from interference.errors import CheckpointError, ScopeError
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.measurement import checkpoint
from interference.measurement.compute import compute_config
from interference.verification import reference
from interference.verification.verify import verify_config
from mixlora import MixLoraConfig, routed
from mixlora.checkpoints import loading
from tests.support.checkpoints import data, write_base, write_task
from tests.support.mixtures import batches, mixture, perturb
from tests.support.models import batch, gpt2, llama, llava, lora, opt, qwen2

MODELS = {
    "llama": llama,
    "llama, eager": lambda: llama("eager"),
    "qwen2": qwen2,
    "opt": opt,
    "llava": llava,
}


def relative(found, expected):
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


def probed(model, rows, **scope):
    with Probe(model, find_targets(model, "default", **scope)) as probe:
        return probe.gradients(rows)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_factors_and_routers_equal_batch_1_autograd(name, conditional):
    targets = (
        r".*language_model.*(q_proj|up_proj|down_proj)" if name == "llava" else ["q_proj", "v_proj", "fc1", "up_proj"]
    )
    model = mixture(MODELS[name](), target_modules=targets, conditional=conditional)
    rows = batch([12, 7, 9, 12], [3, 1, 5, 4], image=name == "llava")
    found = probed(model, rows, routers=True)
    expected = reference.gradients(model, rows, routers=True)
    assert found.gradients.keys() == expected.keys()
    sides = {key.rpartition(".")[2] for key in expected}
    assert sides == {"A", "B", "router-A", "router-B"} | ({"router-AB"} if conditional else set())
    assert relative(found.gradients, expected) < 2e-5


def test_torch_func_agrees_where_routers_choose():
    model = mixture(llama("eager"))
    rows = batch([12, 7, 9], [3, 1, 5])
    targets = find_targets(model, "default", routers=True)
    functional = reference.gradients_functional(model, rows, targets)
    assert relative(functional, reference.of_targets(model, rows, targets)) < 2e-5


def test_one_deep_layer_gives_the_gradients_that_all_layers_give():
    model, rows = mixture(), batch([12, 7, 9], [3, 1, 5])
    whole, one = probed(model, rows), probed(model, rows, layers=[2], modules=["q_proj"])
    assert set(one.gradients) == {"language.2.q_proj.A", "language.2.q_proj.B"}
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(gradient, whole.gradients[name], rtol=1e-4, atol=1e-6)


def test_factors_that_an_example_did_not_select_have_gradient_zero():
    model, rows = mixture(), batch([12, 7, 9], [3, 1, 5])
    found = probed(model, rows)
    for name, gradient in found.gradients.items():
        assert gradient.shape[:2] == (3, 5)
        used = gradient.flatten(2).norm(dim=2) > 0
        for row in range(3):
            assert set(used[row].nonzero()[:, 0].tolist()) == set(found.selections[name][row].tolist())


def test_routing_looks_at_the_prompt_as_in_training():
    model, rows = mixture(), batch([12, 7, 9], [3, 1, 5])
    found = probed(model, rows)
    model.eval()(**rows)
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    assert torch.equal(found.selections["language.1.q_proj.A"], layer.selection.A)
    model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
    assert not torch.equal(layer.selection.scores_A, torch.zeros_like(layer.selection.scores_A))
    without = layer.selection.scores_A
    model(**rows)
    assert (layer.selection.scores_A - without).abs().max() > 1e-4


def test_pooling_over_everything_is_measured_as_if_each_example_were_alone():
    model, rows = mixture(preset="official"), batch([12, 7, 9, 12], [3, 1, 5, 11])
    found, expected = probed(model, rows), reference.gradients(model, rows)
    assert relative(found.gradients, expected) < 2e-5
    model.eval()(**rows)
    padded = model.get_base_model().model.layers[0].self_attn.q_proj.selection.scores_A
    with routed(model, alone=True):
        model(**rows)
    alone = model.get_base_model().model.layers[0].self_attn.q_proj.selection.scores_A
    assert (padded - alone)[1].abs().max() > 1e-4


def test_the_model_comes_back_as_it_was():
    model = mixture()
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    probed(model, batch([9, 7], [2, 1]), routers=True)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0] and torch.equal(parameter, before[name][1])


def test_a_run_keeps_selections_and_they_survive_the_disk(tmp_path):
    model, given = mixture(), batches()
    run = interference.compute(model, given, out=tmp_path / "run", memory_budget=2**16)
    assert run.selections["unit"].tolist() == list(range(24))
    rows = [row for task in given.values() for row in task]
    expected = torch.cat([probed(model, row).selections["language.2.up_proj.B"] for row in rows])
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
    assert "note: routers were measured; their straight-through gradient is an estimate" in printed(found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "official"}, "the routers of adapter 'default' have no gradient; leave routers out"),
        ({"routing": "random"}, "the routers of adapter 'default' have no gradient; leave routers out"),
    ],
)
def test_routers_without_a_gradient_are_refused(options, words):
    with pytest.raises(ScopeError, match=words):
        find_targets(mixture(**options), "default", routers=True)


def test_the_weight_space_is_refused():
    with pytest.raises(ScopeError, match="weight_space is for LoRA: MixLoRA has no single weight"):
        interference.compute(mixture(), batches(1), weight_space=True)


def test_a_switched_off_adapter_is_refused():
    model = mixture()
    with model.disable_adapter(), pytest.raises(CheckpointError, match="adapters are switched off"):
        find_targets(model, "default")


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


def test_a_module_that_is_no_linear_is_refused():
    with pytest.raises(ValueError, match="is a Conv1D, but only Linear modules can be adapted"):
        mixture(gpt2(), target_modules=["c_attn"])


def test_sides_of_routers_are_named_for_the_command_line():
    assert [str(side) for side in Side] == ["A", "B", "W", "router-A", "router-B", "router-AB"]
