"""Which loss is measured: the plain one, the model's own, or the caller's; each by name in the run."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import MixtralConfig, MixtralForCausalLM

import interference
from interference import config
from interference.errors import ConfigError, MeasurementError, RunError, ScopeError
from interference.measurement.compute import compute_config
from interference.run.remarks import PLAIN_LOSS, other_loss
from interference.verification.verify import verify_config
from tests.support.checkpoints import data, write_adapter, write_base, write_task
from tests.support.mixtures import mixture
from tests.support.models import SHAPE, batch, llama, llava, lora

BATCHES = {
    "a": [batch([12, 7, 9], [3, 1, 5], seed=2), batch([8], [4], seed=3)],
    "b": [batch([6, 11], [2, 6], seed=4), batch([9, 10], [3, 3], seed=5)],
}


def smoothed(logits, labels, vocab_size, num_items_in_batch=None, **_):
    """Cross-entropy with label smoothing, as a replaced loss_function computes it."""
    targets = F.pad(labels, (0, 1), value=-100)[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.2)


def by_hand(model, loss):
    """The Gram matrix of every example's gradient by autograd, of a function of (model, batch without padding)."""
    model.eval()
    weights = [p for n, p in model.named_parameters() if "lora_" in n]
    for weight in weights:
        weight.requires_grad_(True)
    rows = []
    for one in [one for given in BATCHES.values() for one in given]:
        for row in range(len(one["labels"])):
            kept = one["attention_mask"][row].bool()
            example = {key: value[row : row + 1, kept] for key, value in one.items()}
            found = torch.autograd.grad(loss(model, example), weights)
            rows.append(torch.cat([gradient.flatten() for gradient in found]).double())
    whole = torch.stack(rows)
    return (whole @ whole.T).numpy()


def close(gram, expected):
    norms = np.sqrt(np.diagonal(expected))
    return (np.abs(gram - expected) / np.outer(norms, norms)).max() < 2e-5


def test_a_replaced_loss_function_is_measured_and_named():
    model = lora(llama())
    before = interference.compute(model, BATCHES)
    model.get_base_model().loss_function = smoothed
    run = interference.compute(model, BATCHES)
    assert close(run.gram(), by_hand(model, lambda model, example: model(**example).loss))
    assert not close(run.gram(), before.gram())
    assert before.meta["loss"] == PLAIN_LOSS and other_loss(before.meta) is None
    assert run.meta["loss"] == "the model's own loss (smoothed), one example per backward pass"
    assert run.meta["conventions"]["loss"] == run.meta["loss"]
    assert other_loss(run.meta) == f"the loss that was measured: {run.meta['loss']}"
    found = interference.verify(run, model, BATCHES)
    assert found.passed and found.gram_error < 1e-5
    model.get_base_model().loss_function = lambda **given: 2 * smoothed(**given)
    with pytest.raises(RunError, match=r"measured the model's own loss \(smoothed\).*pass loss=the same function"):
        interference.verify(run, model, BATCHES)


def mixtral(**changes):
    torch.manual_seed(0)
    shape = {"intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**SHAPE, **shape, router_aux_loss_coef=0.5, **changes))


def test_a_term_that_the_forward_adds_is_part_of_the_loss():
    targets = ["q_proj", "v_proj"]
    without = interference.compute(lora(mixtral(), targets), BATCHES)
    model = lora(mixtral(output_router_logits=True), targets)
    run = interference.compute(model, BATCHES)
    assert without.meta["loss"] == PLAIN_LOSS
    assert (
        run.meta["loss"] == "the model's own loss (that of MixtralForCausalLM.forward), one example per backward pass"
    )
    assert close(run.gram(), by_hand(model, lambda model, example: model(**example).loss))
    assert not close(run.gram(), without.gram())


def test_a_loss_of_the_callers_is_measured_one_example_at_a_time():
    sizes = []

    def squared(model, one):
        sizes.append(len(one["labels"]))
        assert "tasks" not in one and "num_items_in_batch" not in one
        return model(**one).loss ** 2

    model = lora(llama())
    run = interference.compute(model, BATCHES, loss=squared)
    assert sizes == [1] * 8 and run.meta["loss"].startswith("test_a_loss_of_the_callers")
    assert run.meta["loss"].endswith("squared, given by the caller, one example per backward pass")
    assert close(run.gram(), by_hand(model, lambda model, example: model(**example).loss ** 2))
    losses = interference.compute(model, BATCHES).probes["loss"]
    assert_close(run.probes["loss"].to_numpy(), losses.to_numpy() ** 2, rtol=1e-5, atol=0)
    found = interference.verify(run, model, BATCHES, loss=squared)
    assert found.passed and found.linear_until > 0
    together = interference.compute(model, BATCHES, loss=squared, unit="batch")
    mean = np.repeat(np.eye(4), [3, 1, 2, 2], axis=1) / np.array([3, 1, 2, 2])[:, None]
    assert close(together.gram(), mean @ run.gram().astype(float) @ mean.T)


def test_the_plain_loss_given_by_the_caller_equals_the_fast_path():
    for model in (lora(llama()), mixture()):
        fast = interference.compute(model, BATCHES)
        slow = interference.compute(model, BATCHES, loss=lambda model, one: model(**one).loss)
        assert close(slow.gram(), fast.gram()) and fast.meta["loss"] == PLAIN_LOSS
        for name, chosen in fast.selections.items():
            assert np.array_equal(slow.selections[name], chosen)


@pytest.mark.parametrize(
    ("loss", "kind", "words"),
    [
        ("mean", ConfigError, r"loss is a str, but must be a function of \(model, batch of one example\)"),
        (lambda model, one: model(**one).logits, MeasurementError, r"tensor of shape \(1, 12, 64\), but must"),
        (lambda model, one: 1.0, MeasurementError, r"is a float, but must be a scalar tensor"),
        (lambda model, one: model(**one).loss.detach(), MeasurementError, r"does not depend on the adapter"),
    ],
)  # fmt: skip
def test_losses_that_cannot_be_measured(loss, kind, words):
    model = lora(llama())
    required = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(kind, match=words):
        interference.compute(model, BATCHES, loss=loss)
    assert [parameter.requires_grad for parameter in model.parameters()] == required


def test_a_batch_that_no_loss_can_take_apart_is_refused():
    pictured = batch([12, 9], [3, 2], image=True)
    pictured["pixel_values"] = pictured["pixel_values"][:1]
    words = r"pixel_values of shape \(1, 3, 16, 16\) cannot be split into the 2 examples.*one example per batch"
    with pytest.raises(MeasurementError, match=words):
        interference.compute(lora(llava()), {"a": [pictured]}, loss=lambda model, one: model(**one).loss)


@pytest.mark.parametrize("count", [7, torch.tensor(7)])
@pytest.mark.parametrize("loss", [None, lambda model, one: model(**one).loss])
def test_the_count_of_a_trainers_step_changes_nothing(count, loss):
    model = lora(llama())
    counted = {task: [{**one, "num_items_in_batch": count} for one in given] for task, given in BATCHES.items()}
    plain, found = (interference.compute(model, given, loss=loss) for given in (BATCHES, counted))
    assert np.array_equal(found.gram(), plain.gram())
    assert interference.verify(found, model, counted, loss=loss).passed
    own = interference.reference.gradients(model, counted["a"][0])
    assert all(torch.equal(g, own[n]) for n, g in interference.reference.gradients(model, BATCHES["a"][0]).items())


def test_packed_rows_are_refused():
    model = lora(llama())
    (one,) = [batch([12], [12])]
    positions = torch.arange(12)[None]
    again = torch.cat([torch.arange(7), torch.arange(5)])[None]
    kept = {"a": [{**one, "position_ids": positions}] * 2}
    assert np.isfinite(interference.compute(model, kept).gram()).all()
    for more in (
        {"position_ids": again},
        {"seq_lengths": [[7, 5]]},
        {"seq_lengths": torch.tensor([7, 5])},
        {"cu_seq_lens_q": torch.tensor([0, 7, 12])},
    ):
        with pytest.raises(ScopeError, match=r"task 'a', batch 0: a row holds several packed.*packing=False"):
            interference.compute(model, {"a": [{**one, **more}] * 2})


def test_positions_of_padding_are_no_packing():
    model = lora(llama())
    padded = {
        task: [{**one, "position_ids": (one["attention_mask"].cumsum(1) - 1) * one["attention_mask"]} for one in given]
        for task, given in BATCHES.items()
    }
    assert close(interference.compute(model, padded).gram(), interference.compute(model, BATCHES).gram())


def test_a_configuration_measures_the_models_own_loss(tmp_path):
    targets = ["q_proj", "v_proj"]
    base = write_base(tmp_path / "base", mixtral(output_router_logits=True))
    adapter = write_adapter(tmp_path / "adapter", lora(mixtral(), targets))
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", seed=k) for k, name in enumerate(("red", "blue"))}
    run = compute_config(config.build(data(base, adapter, tasks, tmp_path / "run"), "test"))
    assert (
        run.meta["loss"] == "the model's own loss (that of MixtralForCausalLM.forward), one example per backward pass"
    )
    found = verify_config(run)
    assert found.passed and found.gram_error < 1e-4
