"""verify passes what is right and fails what is not; the model and its weights come back as they were."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

import interference as package
from interference import config, load
from interference.errors import MeasurementError, RunError, ScopeError
from interference.measurement.compute import compute_config
from interference.run import Run
from interference.run.grams import pack
from interference.verification import derivation, steps, verify
from tests.support.checkpoints import data, write_adapter, write_task
from tests.support.models import batch, llama, lora

TASKS = {
    "red": [batch([12, 7, 9], [3, 1, 5], seed=2), batch([8, 8], [2, 4], seed=3)],
    "blue": [batch([6, 11], [2, 6], seed=4), batch([9], [3], seed=5)],
}


def tampered(run, change):
    grams = {name: change(run._grams[name].copy()) for name in run.blocks["name"]}
    return package.Run(run.probes, run.blocks, grams, run.meta)


@pytest.fixture(scope="module")
def model():
    return lora(llama())


@pytest.fixture(scope="module")
def measured(model):
    return package.compute(model, TASKS)


def test_a_right_run_passes(model, measured):
    found = package.verify(measured, model, TASKS)
    assert found.passed and found.dtype == "float32"
    assert found.error < 1e-5 and found.gram_error < 1e-5
    assert found.gradients["task"].tolist() == ["red", "red", "blue", "blue"]
    assert (found.gradients["worst_error"] >= found.gradients["error"] * 0.1).all()
    small = found.steps.iloc[:4]
    np.testing.assert_allclose(small["slope"], 1, atol=0.05)
    assert (small["correlation"] > 0.99).all() and (found.steps["pairs"] == 12).all()
    assert (found.steps["step"].diff().dropna() > 0).all()
    assert found.linear_until >= found.steps["step"][3]


@pytest.mark.parametrize(
    "options",
    [
        {"unit": "batch"},
        {"unit": "batch", "token_mean": True},
        {"granularity": "layer"},
        {"layers": [1], "modules": ["mlp"]},
    ],
)
def test_other_units_and_scopes_pass(model, options):
    found = package.verify(package.compute(model, TASKS, **options), model, TASKS)
    assert found.passed and found.error < 1e-5 and found.gram_error < 1e-5


@pytest.fixture(scope="module")
def weighed(model):
    return package.compute(model, TASKS, weight_space=True)


def with_blocks(run, **changed):
    """The run with other Gram matrices in some blocks."""
    grams = {name: changed.get(name, run._grams[name]) for name in run.blocks["name"]}
    return Run(run.probes, run.blocks, grams, run.meta)


def test_a_right_run_of_the_weight_space_passes(model, weighed):
    found = package.verify(weighed, model, TASKS)
    assert found.passed and found.gram_error < 1e-5 and found.loss_error < 1e-5
    assert found.gram_block in set(weighed.blocks["name"])


@pytest.mark.parametrize("options", [{"granularity": "group"}, {"granularity": "layer"}, {"sketch": 64}])
def test_the_weight_space_of_sums_and_of_sketches_passes(model, options):
    run = package.compute(model, TASKS, weight_space=True, **options)
    assert package.verify(run, model, TASKS).gram_error < 1e-5


@pytest.mark.parametrize("scale", [0, 0.5])
def test_the_weight_space_passes_where_b_is_of_lower_rank(scale):
    model = lora(llama())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter[:, 1:] = 0
                parameter.mul_(scale)
    run = package.compute(model, TASKS, weight_space=True)
    assert package.verify(run, model, TASKS).gram_error < 1e-5


@pytest.mark.parametrize("pair", [("A", "A"), ("A", "B"), ("W", "W")])
def test_swapped_blocks_fail(model, weighed, pair):
    first, second = f"language.0.q_proj.{pair[0]}", f"language.1.up_proj.{pair[1]}"
    swapped = with_blocks(weighed, **{first: weighed._grams[second], second: weighed._grams[first]})
    found = package.verify(swapped, model, TASKS)
    assert not found.passed and found.gram_block in (first, second)


@pytest.mark.parametrize("factor", [0, 1.01])
@pytest.mark.parametrize("name", ["language.0.q_proj.A", "language.1.down_proj.B", "language.2.v_proj.W"])
def test_a_wrong_block_fails_and_is_named(model, weighed, name, factor):
    wrong = with_blocks(weighed, **{name: weighed._grams[name] * np.float32(factor)})
    found = package.verify(wrong, model, TASKS, units=1)
    assert not found.passed and found.gram_block == name


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("loss", lambda values: 3 * values),
        ("loss", lambda values: values * np.nan),
        ("tokens", lambda values: values + 1),
    ],
)
def test_wrong_losses_and_tokens_fail(model, measured, column, change):
    probes = measured.probes.assign(**{column: change(measured.probes[column])})
    found = package.verify(Run(probes, measured.blocks, measured._grams, measured.meta), model, TASKS)
    assert not found.passed and found.gram_error < 1e-5 and found.loss_error > 0.1


def test_a_wrong_loss_of_another_part_fails(model):
    tasks = {task: [batch([9, 7], [3, 2], seed) for seed in seeds] for task, seeds in (("a", (1, 2, 3)), ("b", (4, 5)))}
    run = package.compute(model, tasks)
    place = next(place for place in range(0, 10, 2) if not {place, place + 1} & set(verify._chosen(run, 1)))
    probes = run.probes.copy()
    probes.loc[place, "loss"] *= 1.01
    assert not package.verify(Run(probes, run.blocks, run._grams, run.meta), model, tasks, units=1).passed


@pytest.mark.parametrize("factor", [4.0, 1.01])
def test_a_scaled_gram_fails(model, measured, factor):
    found = package.verify(tampered(measured, lambda packed: packed * np.float32(factor)), model, TASKS)
    assert not found.passed
    assert found.error < 1e-5  # its gradients are right, its Gram is not
    assert found.gram_error > 0.005


def test_a_permuted_gram_fails(model, measured):
    found = package.verify(tampered(measured, lambda packed: packed[::-1]), model, TASKS)
    assert not found.passed and found.gram_error > 0.1


def test_one_wrong_cell_fails(model, measured):
    place = verify._chosen(measured, 2)
    upper = np.triu_indices(8)
    at = [(a, b) for a, b in zip(*upper, strict=True)].index((place[0], place[2]))

    def change(packed):
        packed[at] += 0.05 * np.abs(packed).max()
        return packed

    assert not package.verify(tampered(measured, change), model, TASKS).passed


def test_wrong_gradients_fail(model, measured, monkeypatch):
    own = derivation.unit_gradients
    monkeypatch.setattr(
        verify,
        "unit_gradients",
        lambda *given: {name: 1.001 * rows for name, rows in own(*given).items()},
    )
    found = package.verify(measured, model, TASKS)
    assert not found.passed and found.error == pytest.approx(1e-3, rel=0.05)


def test_another_model_fails(measured):
    other = lora(llama())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.5)
    with pytest.raises(RunError, match=r"^the model's adapter weights changed since the run was computed"):
        package.verify(measured, other, TASKS)


def test_adapters_beside_the_probed_one_do_not_count():
    model = lora(llama())
    run = package.compute(model, TASKS)
    model.add_adapter("other", LoraConfig(target_modules=["q_proj", "lm_head"]))
    model.add_adapter("saving", LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    assert package.verify(run, model, TASKS).passed
    again = package.compute(model, TASKS)
    assert again.meta["fingerprints"] == run.meta["fingerprints"]
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_A.other" in name).mul_(2)
    model.delete_adapter("saving")
    assert package.verify(again, model, TASKS, adapter="default").passed
    with pytest.raises(
        RunError, match=r"^the model's adapter weights, adapter configuration and scaling of adapted lay"
    ):
        package.verify(run, model, TASKS, adapter="other")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_A.default" in name).mul_(2)
    with pytest.raises(RunError, match=r"^the model's adapter weights changed since the run was computed"):
        package.verify(run, model, TASKS)


def test_other_batches_are_refused(model, measured):
    with pytest.raises(RunError, match="the batches contain 7 units, but the run has 8; pass the run's own batches"):
        package.verify(measured, model, {"red": TASKS["red"], "blue": TASKS["blue"][:1]})


def test_the_weights_come_back_to_the_bit_even_if_it_fails(measured):
    model = lora(llama()).train()
    before = [parameter.clone() for parameter in model.parameters()]
    package.verify(measured, model, TASKS)

    def stop(stage, done, total):
        if stage == "steps":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.verify(measured, model, TASKS, progress=stop)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad == ("lora_" in name) and p.grad is None for name, p in model.named_parameters())


# --- from the run's own configuration, on the command line ---


@pytest.fixture
def own(tiny, tmp_path):
    """A checkpoint, tasks and run that a test may change."""
    shutil.copytree(tiny.adapter, tmp_path / "adapter")
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, k) for k, name in enumerate(["red", "blue"])}
    values = data(tiny.base, tmp_path / "adapter", tasks, tmp_path / "run")
    compute_config(config.build(values, "test"))
    return tmp_path


def test_the_command_passes(interference, run_dir):
    said = interference("verify", run_dir, "--units", 1, "--json", "--quiet")
    rows = json.loads(said.out)
    assert said.code == 0 and said.err == ""
    assert all(row["passed"] is True and row["gradient_error"] < 1e-5 and row["gram_error"] < 1e-5 for row in rows)
    assert len(rows) == len(steps.SHARES) and abs(rows[0]["slope"] - 1) < 0.05


def rewritten(run_dir, change):
    """Change the Gram file of a run, and its checksum with it."""
    run = load(run_dir)
    grams = {name: change(packed) for name, packed in load_file(run_dir / "gram.safetensors").items()}
    shutil.rmtree(run_dir)
    Run(run.probes, run.blocks, grams, run.meta).save(run_dir)


def test_the_command_says_so_and_exits_1_on_a_run_that_is_wrong(interference, own):
    rewritten(own / "run", lambda packed: packed * np.float32(2))
    said = interference("verify", own / "run", "--quiet")
    assert said.code == 1
    assert "FAILED: gradients equal autograd to" in said.out


def test_a_gram_that_is_not_finite_does_not_pass(interference, own):
    rewritten(own / "run", lambda packed: np.where(np.arange(len(packed)) == 3, np.float32("nan"), packed))
    said = interference("verify", own / "run", "--quiet")
    assert said.code == 1 and "the Gram to inf" in said.out


def test_a_damaged_file_is_refused_by_its_name(refused, own):
    file = own / "run" / "gram.safetensors"
    save_file({name: packed * np.float32(2) for name, packed in load_file(file).items()}, file)
    assert refused("show", own / "run") == (
        f"{file} is damaged: its checksum differs from the recorded one; compute it again"
    )


def test_changed_examples_are_refused(refused, own):
    write_task(own / "red.jsonl", 6, seed=9)
    assert refused("verify", own / "run", "--quiet") == (
        "the examples have changed since the run was computed; compute it again"
    )


def test_a_changed_adapter_is_refused(refused, own):
    changed = lora(llama())
    with torch.no_grad():
        next(p for n, p in changed.named_parameters() if "lora_B" in n)[0, 0] += 1e-3
    write_adapter(own / "adapter", changed)
    assert refused("verify", own / "run", "--quiet") == (
        "the model's adapter weights changed since the run was computed; compute it again"
    )


def test_a_notebook_run_is_verified_in_its_notebook(refused, measured, tmp_path):
    measured.save(tmp_path / "run")
    assert load(tmp_path / "run").meta["config"] is None
    assert refused("verify", tmp_path / "run", "--quiet") == (
        "the run was computed from a notebook; verify it there: interference.verify(run, model, batches)"
    )


@pytest.mark.parametrize("granularity", ["group", "layer"])
def test_a_run_of_some_modules_of_a_group_passes(tiny, tmp_path, model, granularity):
    scope = {"layers": [0, 2], "modules": ["q_proj", "up_proj"], "granularity": granularity}
    run = package.compute(model, TASKS, out=tmp_path / "notebook", **scope)
    assert package.verify(run, model, TASKS).passed
    assert package.verify(load(tmp_path / "notebook"), model, TASKS).passed
    assert verify.verify_config(compute_config(tiny.config(tmp_path / "run", **scope))).passed


def test_layers_and_modules_may_be_arrays(model, tmp_path):
    scope = {"layers": np.array([0, 2]), "modules": np.array(["q_proj"])}
    run = package.compute(model, TASKS, out=tmp_path / "run", **scope)
    assert run.meta["scope"] == {"layers": [0, 2], "modules": ["q_proj"]}
    assert package.verify(load(tmp_path / "run"), model, TASKS).passed


def test_one_unit_alone_cannot_be_verified(model):
    run = package.compute(model, {"red": TASKS["red"]})
    with pytest.raises(ScopeError, match="a run of one task is verified by two units or more"):
        package.verify(run, model, {"red": TASKS["red"]}, units=1)
    assert package.verify(run, model, {"red": TASKS["red"]}, units=2).passed


def test_units_that_move_no_other_are_told(model, measured, monkeypatch):
    monkeypatch.setattr(verify, "gram_of", lambda rows: np.diag(np.ones(len(next(iter(rows.values()))))))
    size = len(measured.probes)
    unrelated = tampered(measured, lambda packed: pack(np.eye(size, dtype=np.float32)))
    with pytest.raises(MeasurementError, match="no step of a unit that was drawn moves another's loss; draw more"):
        package.verify(unrelated, model, TASKS)


def test_gradients_are_measured_in_padded_batches_and_derived_one_by_one():
    model = lora(llama())
    data = {task: [batch([12, 7, 9, 5], [3, 1, 5, 2], seed=k)] for k, task in enumerate("ab")}
    found = package.verify(package.compute(model, data), model, data, units=4)
    assert 0 < found.error < 2e-5
    assert set(found.gradients["worst_block"]) - {""} <= set(package.compute(model, data).blocks["name"])


def test_pictures_of_other_sizes_do_not_meet_in_a_batch():
    ids = torch.zeros(1, 5, dtype=torch.long)
    small, large = ({"labels": ids, "pixel_values": torch.zeros(1, 3, size, size)} for size in (8, 16))
    groups = derivation._alike([(0, small), (1, large), (2, small), (3, {"labels": ids})])
    assert [[k for k, _ in group] for group in groups] == [[0, 2], [1], [3]]


def part_of(run, places, factor):
    """The run with the rows of a part scaled, as if its gradients had been damaged while they waited."""
    scale = np.ones(len(run.probes))
    scale[places] = factor
    upper = np.triu_indices(len(scale))
    return tampered(run, lambda packed: packed * np.outer(scale, scale)[upper].astype(np.float32))


@pytest.mark.parametrize("places", [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]])
@pytest.mark.parametrize("factor", [0, 1.01])
def test_a_part_with_other_gradients_fails_wherever_it_is(model, places, factor):
    tasks = {task: [batch([9, 7], [3, 2], seed) for seed in seeds] for task, seeds in (("a", (1, 2, 3)), ("b", (4, 5)))}
    run = package.compute(model, tasks)
    assert package.verify(run, model, tasks).passed
    found = package.verify(part_of(run, places, factor), model, tasks)
    assert not found.passed and found.error < 1e-5 and found.gram_error > 0.005


@pytest.mark.slow
def test_a_part_of_files_with_other_gradients_fails(own):
    whole = compute_config(
        config.load(own / "run", (), {"out": str(own / "small"), "probe": {"batch_size": 1, "sketch": 64}})
    )
    assert verify.verify_config(whole).passed
    chosen = verify._chosen(whole, 2)
    for place in [place for place in range(len(whole.probes)) if place not in chosen]:
        assert not verify.verify_config(part_of(whole, [place], 0.5)).passed
