"""InterferenceCallback: a series of runs along a training that goes on as if nobody had looked."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from transformers import EarlyStoppingCallback, Trainer

import interference
from interference import load
from interference.callback.measuring import _logged
from interference.errors import MeasurementError, RunError
from interference.figures import matrices
from interference.measurement.series import RUNS, Series
from tests.support.mixtures import mixture
from tests.support.models import VOCABULARY, batch, llama, llava, lora
from tests.support.needed import needed
from tests.support.small_processors import spaced
from tests.support.watching import (
    MODELS,
    PROBES,
    Everywhere,
    arguments,
    callback_of,
    examples,
    grams,
    measuring,
    own_log,
    trained,
    weights,
)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_training_goes_on_as_if_nobody_had_looked(tmp_path, kind, checkpointing):
    options = {"gradient_accumulation_steps": 2, "gradient_checkpointing": checkpointing}
    alone = trained(tmp_path, MODELS[kind](), **options)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    watched = trained(tmp_path, MODELS[kind](), [{"kind": Everywhere, "every": 1}], **options)
    assert list(callback_of(watched).runs) == [0, 1, 2, 3, 4]
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    before = weights(MODELS[kind]())
    for (name, mine), theirs in zip(weights(watched.model).items(), weights(alone.model).values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert any(not torch.equal(value, before[name]) for name, value in weights(watched.model).items())
    assert own_log(watched) == own_log(alone) and len(own_log(alone)) == 5


@pytest.mark.slow
def test_a_shuffling_loader_gives_every_measurement_the_same_units_and_no_draw_to_the_training(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        """Examples that come with a draw of every generator that a training may use."""

        def __len__(self):
            return 6

        def __getitem__(self, place):
            shift = random.randrange(5) + np.random.randint(5) + int(torch.randint(5, ()))
            found = {key: value.clone() for key, value in examples(6)[place].items()}
            found["input_ids"][:4] = (found["input_ids"][:4] + shift) % VOCABULARY
            return found

    loader = torch.utils.data.DataLoader(Noisy(), batch_size=2, shuffle=True)
    alone = trained(tmp_path, MODELS["lora"](), dataset=Noisy())
    probes = {"red": loader, "blue": PROBES["blue"]}
    frozen = [{"batches": probes, "every": 1, "layers": [2]}]
    watched = trained(tmp_path, MODELS["lora"](), frozen, dataset=Noisy(), learning_rate=0.0)
    runs = list(callback_of(watched).runs.values())
    assert all(np.array_equal(run.gram(), runs[0].gram()) for run in runs)
    watched = trained(tmp_path, MODELS["lora"](), frozen, dataset=Noisy())
    assert all(torch.equal(p, weights(alone.model)[name]) for name, p in weights(watched.model).items())


def test_gradients_modes_and_forward_are_handed_back_between_two_backward_passes(tmp_path):
    model = mixture()
    trainer = Trainer(model=model, args=arguments(tmp_path, bf16=True), train_dataset=examples())
    callback = measuring(trainer, kind=Everywhere)
    trainer.accelerator.prepare_model(model)
    model.train()
    model.base_model.model.model.layers[1].eval()
    model(**PROBES["red"][0]).loss.backward()
    gradients = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None}
    modes, forward = [module.training for module in model.modules()], model.forward
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    required = [parameter.requires_grad for parameter in model.parameters()]
    callback.on_substep_end(trainer.args, trainer.state, trainer.control)
    assert gradients and all(p.grad is gradients[name][0] and torch.equal(p.grad, gradients[name][1])
                             for name, p in model.named_parameters() if p.grad is not None)  # fmt: skip
    assert modes == [module.training for module in model.modules()]
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert required == [parameter.requires_grad for parameter in model.parameters()] and model.forward is forward
    broken = {**PROBES, "blue": [{**PROBES["blue"][0], "labels": torch.full((2, 11), -100)}]}
    state = torch.get_rng_state()
    with pytest.raises(MeasurementError, match="no supervised token"):
        callback._compute(broken)
    assert model.forward is forward and torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [0, 2, 4, 5]),
        ({"first": False}, [2, 4, 5]),
        ({"last": False}, [0, 2, 4]),
        ({"every": 5}, [0, 5]),
        ({"every": 50, "first": False, "last": False}, []),
    ],
)
def test_when_it_measures(tmp_path, options, steps):
    trainer = trained(tmp_path, lora(llama()), [options], max_steps=5)
    assert list(callback_of(trainer).runs) == steps
    logged = [entry["step"] for entry in trainer.state.log_history if "loss/red" in entry]
    assert logged == steps


def test_a_run_is_that_of_compute_on_the_weights_of_its_step(tmp_path):
    options = {"layers": [1, 2], "modules": ["attention"], "unit": "batch", "token_mean": True, "seed": 3}
    first = interference.compute(lora(llava()), IMAGES, **options)
    model = lora(llava(), lora_dropout=0.1)
    dataset = examples(image=True)
    trainer = trained(
        tmp_path, model, [{"batches": IMAGES, **options}], dataset=dataset, save_steps=2, save_strategy="steps"
    )
    runs = callback_of(trainer).runs
    assert np.array_equal(runs[0].gram(), first.gram()) and runs[0].meta["step"] == 0 and runs[4].seed == 3
    model.load_adapter(str(tmp_path / "trained" / "checkpoint-2"), "second")
    for step, adapter in ((2, "second"), (4, "default")):
        found, wanted = runs[step], interference.compute(model, IMAGES, adapter=adapter, **options)
        assert np.array_equal(found.gram(), wanted.gram()), step
        pd.testing.assert_frame_equal(found.probes, wanted.probes)
        pd.testing.assert_frame_equal(found.blocks, wanted.blocks)
    assert not np.array_equal(runs[2].gram(), runs[4].gram())


IMAGES = {task: [batch([12, 9], [3, 2], seed=4 * k + n, image=True) for n in range(3)] for k, task in enumerate("ab")}


def test_what_is_logged(tmp_path):
    trainer = trained(tmp_path, lora(llama()), [{"batches": SURE, "every": 4}])
    runs = callback_of(trainer).runs
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "loss/red" in entry}
    assert list(logged) == [0, 4]
    for step, run in runs.items():
        table, signal = run.table("interference", reduce="ratio-of-means"), run.signal()
        assert "no-signal" not in set(table["verdict"])
        wanted = {f"interference/{r.affected}/{r.stepped}": r.value for r in table.itertuples() if r.verdict != "self"}
        counts = [
            ("conflict", "conflicts"),
            ("synergy", "synergies"),
            ("unclear", "unclear"),
            ("no-signal", "no_signal"),
            ("carried", "carried"),
        ]
        wanted |= {f"interference/{name}": float((table["verdict"] == verdict).sum()) for verdict, name in counts}
        for task in SURE:
            wanted |= {f"loss/{task}": signal["loss"][task], f"signal/{task}": signal["snr"][task]}
        found = {key: value for key, value in logged[step].items() if key not in ("step", "epoch")}
        assert found == wanted and all(type(value) is float for value in found.values())
    assert logged[0]["interference/red/blue"] != logged[4]["interference/red/blue"]


def same(count, seed):
    """A batch of examples that differ little, so that their gradients agree."""
    made = batch([10] * count, [4] * count, seed)
    for key in made:
        made[key][:] = made[key][:1]
    made["input_ids"][:, 1] = torch.arange(3, 3 + count)
    return made


SURE = {"red": [same(6, 7)], "blue": [same(6, 8)]}


def test_what_means_nothing_is_left_out_of_the_log():
    model = lora(llama())
    model.base_model.model.lm_head.weight.requires_grad_(False)[:] = 0  # no gradient reaches the adapter ...
    with pytest.raises(MeasurementError, match="every gradient is zero"):
        interference.compute(model, PROBES)
    run = interference.compute(lora(llama()), {**SURE, "noise": PROBES["red"]})
    for name, packed in run._grams.items():  # ... as it does not for one task of these
        square = np.zeros((17, 17), bool)
        square[12:] = square[:, 12:] = True
        run._grams[name] = np.where(square[np.triu_indices(17)], 0, packed).astype(np.float32)
    plain, sure = _logged(run, None), _logged(run, run.table())
    cells = {"interference/red/blue", "interference/blue/red"}
    losses = {f"loss/{task}" for task in ("red", "blue", "noise")} | {"signal/red", "signal/blue"}
    assert all(np.isfinite(list(found.values())).all() for found in (plain, sure))
    assert cells | losses <= plain.keys() & sure.keys()
    assert not {key for key in plain.keys() | sure.keys() if key.startswith(("interference/noise", "signal/noise"))}
    counts = {f"interference/{name}" for name in ("conflicts", "synergies", "unclear", "no_signal", "carried")}
    assert counts <= sure.keys() and not counts & plain.keys() and sure["interference/no_signal"] == 2


def test_a_row_without_signal_is_counted_but_not_logged(tmp_path):
    run = interference.compute(lora(llama()), PROBES)
    quiet = run.table("interference", reduce="ratio-of-means").query("verdict == 'no-signal'")
    sure, plain = _logged(run, run.table()), _logged(run, None)
    missing = {f"interference/{row.affected}/{row.stepped}" for row in quiet.itertuples()}
    assert missing and missing == {key for key in plain if key not in sure}
    assert sure["interference/no_signal"] == len(quiet)


def test_a_cell_at_odds_is_counted_under_no_verdict():
    run = interference.compute(lora(llama()), SURE)
    table = run.table().assign(verdict=["self", "conflict", "synergy", "self"])
    plain = _logged(run, table)
    shown = _logged(run, table.assign(at_odds=["", "sign", "", ""]))
    counts = [{name: found[f"interference/{name}"] for name in ("conflicts", "synergies")} for found in (plain, shown)]
    assert sum(counts[0].values()) == 2 and sum(counts[1].values()) == 1


@pytest.mark.parametrize("kind", ["lora", "random"])
def test_mixed_precision_is_left_outside(tmp_path, kind):
    """Measured is what the weights say in their own precision; under autocast the same, to bfloat16."""
    seen = []

    class Dtype(torch.nn.Module):
        def forward(self, module, inputs, output):
            seen.append((module.training, output.dtype))

    model = MODELS[kind]()
    module = next(m for name, m in model.named_modules() if name.endswith("mlp.act_fn"))
    module.register_forward_hook(Dtype())
    trainer = trained(tmp_path, model, [{"every": 4}], bf16=True)
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
    assert {dtype for training, dtype in seen if not training} == {torch.float32}
    run = callback_of(trainer).runs[4]
    assert "_original_forward" in model.__dict__
    torch.manual_seed(0)  # as random routing was drawn
    rounded = interference.compute(model, PROBES)
    forward, model.forward = model.forward, model._original_forward
    torch.manual_seed(0)
    exact = interference.compute(model, PROBES)
    model.forward = forward
    assert np.array_equal(run.gram(), exact.gram())
    scale = np.sqrt(np.outer(np.diagonal(exact.gram()), np.diagonal(exact.gram())))
    error = np.abs(rounded.gram() - exact.gram()) / scale
    assert error.max() > 1e-5 and np.median(error) < 0.01


@pytest.mark.slow
def test_a_resumed_training_continues_the_series(tmp_path):
    whole = trained(tmp_path / "whole", MODELS["random"](), [{"out": tmp_path / "whole" / "runs"}], max_steps=6)
    out = tmp_path / "runs"
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    trained(tmp_path, MODELS["random"](), [{"out": out}], **settings)
    kept = load(out / "step-2").meta["computed"], (out / "step-2" / "run.json").stat().st_mtime_ns
    (out / "step-5").mkdir()
    for path in (out / "step-6").iterdir():  # of another schedule
        (out / "step-5" / path.name).write_bytes(path.read_bytes())
    checkpoint = str(tmp_path / "trained" / "checkpoint-2")
    resumed = trained(tmp_path, MODELS["random"](), [{"out": out}], resume=checkpoint, **settings)
    callback = callback_of(resumed)
    assert sorted(path.name for path in out.iterdir()) == ["step-0", "step-2", "step-4", "step-6"]
    assert kept == (load(out / "step-2").meta["computed"], (out / "step-2" / "run.json").stat().st_mtime_ns)
    wanted = grams(callback_of(whole).runs)
    assert list(callback.runs) == list(wanted) == [0, 2, 4, 6]
    for step, gram in grams(callback.runs).items():
        assert_close(gram, wanted[step], rtol=1e-4, atol=1e-5 * wanted[step].max(), msg=lambda m, s=step: f"{s}: {m}")
    logged = [entry["step"] for entry in resumed.state.log_history if "loss/red" in entry]
    assert logged == [0, 2, 4, 6]
    with pytest.raises(RunError, match=r"already holds a series \(step-0\); choose another out, delete the directory"):
        trained(tmp_path, lora(llama()), [{"out": out}])


def test_a_resumed_training_that_ends_early_leaves_later_runs(tmp_path):
    out, settings = tmp_path / "runs", {"save_strategy": "steps", "save_steps": 2}
    trained(tmp_path, lora(llama()), [{"out": out}], max_steps=6, **settings)
    checkpoint = str(tmp_path / "trained" / "checkpoint-2")
    resumed = trained(tmp_path, lora(llama()), [{"out": out}], resume=checkpoint, max_steps=4, **settings)
    assert sorted(path.name for path in out.iterdir()) == ["step-0", "step-2", "step-4", "step-6"]
    assert list(callback_of(resumed).runs) == [0, 2, 4]
    assert len({load(folder).meta["series"] for folder in out.iterdir()}) == 1
    (out / "step-6" / "run.json").write_text(
        (out / "step-6" / "run.json").read_text().replace(load(out / "step-6").meta["series"], "another")
    )
    with pytest.raises(RunError, match=r"holds step-6, which is not of this training's series; move it away, or"):
        trained(tmp_path, lora(llama()), [{"out": out}], resume=checkpoint, max_steps=8, **settings)
    assert (out / "step-6").is_dir() and load(out / "step-4").meta["step"] == 4


def test_a_run_that_no_callback_made_is_not_removed(tmp_path):
    run = interference.compute(lora(llama()), PROBES)
    run.save(tmp_path / "runs" / "step-6")
    series = Series(tmp_path / "runs", RUNS)
    with pytest.raises(RunError, match="holds step-6, which is not of this training's series"):
        series.begin(2, again=False)
    series.begin(6, again=False)  # it goes on after that step
    series.add(8, run)
    assert list(series.all()) == [6, 8]


def test_a_series_may_lie_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    trainer = trained(tmp_path, lora(llama()), [{"out": "~/series"}])
    assert list(callback_of(trainer).runs) == [0, 2, 4]
    assert sorted(path.name for path in (tmp_path / "home" / "series").iterdir()) == ["step-0", "step-2", "step-4"]
    assert not (tmp_path / "~").exists()
    with pytest.raises(RunError, match="already holds a series"):
        trained(tmp_path, lora(llama()), [{"out": "~/series"}])


def test_a_second_training_in_memory_starts_a_new_series(tmp_path):
    model = lora(llama())
    trainer = trained(tmp_path, model, [{}])
    first = grams(callback_of(trainer).runs)
    trainer.train()
    second = grams(callback_of(trainer).runs)
    assert list(first) == list(second) == [0, 2, 4] and not np.array_equal(first[0], second[0])


def test_a_series_is_drawn(tmp_path):
    callback = callback_of(trained(tmp_path, lora(llama()), [{"out": str(tmp_path / "runs")}]))
    series = callback.series()
    assert list(series) == ["step 0", "step 2", "step 4"]
    assert [axes.get_title() for axes in matrices.series(series).axes[:3]] == list(series)
    assert interference.compare(series["step 0"], series["step 4"])["difference"].abs().max() > 0


def test_the_last_run_is_of_the_last_weights_not_of_the_best(tmp_path):
    options = {"load_best_model_at_end": True, "learning_rate": 0.5, "max_steps": 12}
    options |= {f"{kind}_strategy": "steps" for kind in ("eval", "save")} | {"eval_steps": 1, "save_steps": 1}
    model = lora(llama())
    trainer = Trainer(
        model=model, args=arguments(tmp_path, **options), train_dataset=examples(), eval_dataset=EVALUATED
    )
    trainer.add_callback(EarlyStoppingCallback(1))
    trainer.add_callback(measuring(trainer, every=100))
    trainer.train()
    stopped, best = trainer.state.global_step, trainer.state.best_global_step
    assert best < stopped < 12
    runs = callback_of(trainer).runs
    assert list(runs) == [0, stopped]
    model.load_adapter(str(tmp_path / "trained" / f"checkpoint-{stopped}"), "end")
    assert np.array_equal(runs[stopped].gram(), interference.compute(model, PROBES, adapter="end").gram())


EVALUATED = [{key: value[row] for key, value in batch([12] * 4, [4] * 4, seed=9).items()} for row in range(4)]


def test_trl_keeps_its_running_means(tmp_path):
    datasets, trl = needed("datasets"), needed("trl")
    rows = datasets.Dataset.from_list([{"prompt": "what is the colour of a red", "completion": " ball this thing"}] * 8)

    def run(watched):
        settings = {"bf16": False, "max_length": 32, "max_steps": 4, "logging_steps": 3}
        trainer = trl.SFTTrainer(
            model=lora(llama()), args=arguments(tmp_path, trl.SFTConfig, **settings), train_dataset=rows,
            processing_class=spaced(),
        )  # fmt: skip
        if watched:
            trainer.add_callback(measuring(trainer))
        trainer.train()
        return trainer

    alone, watched = run(False), run(True)
    assert own_log(watched) == own_log(alone) and "mean_token_accuracy" in own_log(alone)[0]
    assert list(callback_of(watched).runs) == [0, 2, 4]
    assert all(torch.equal(p, weights(alone.model)[name]) for name, p in weights(watched.model).items())


def test_the_trainers_own_loss_is_measured_and_the_training_goes_on_as_if_nobody_had_looked(tmp_path):
    settings = {"label_smoothing_factor": 0.1}
    alone = trained(tmp_path, MODELS["lora"](), **settings)
    watched = trained(tmp_path, MODELS["lora"](), [{"every": 1}], **settings)
    assert all(torch.equal(p, weights(alone.model)[name]) for name, p in weights(watched.model).items())
    assert own_log(watched) == own_log(alone)
    runs = callback_of(watched).runs
    assert {run.meta["loss"] for run in runs.values()} == {
        "Trainer.compute_loss with label smoothing 0.1, one example per backward pass"
    }
    trainer = Trainer(model=MODELS["lora"](), args=arguments(tmp_path, **settings), train_dataset=examples())
    smoothed = interference.compute(trainer.model, PROBES, loss=trainer.compute_loss)
    assert_close(runs[0].gram(), smoothed.gram(), rtol=1e-5, atol=1e-7)
    assert list(runs) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("settings", [{}, {"label_smoothing_factor": 0.1}], ids=["plain", "smoothing"])
def test_rows_of_a_column_are_the_probe_set(tmp_path, settings):
    rows = [{**row, "task": "red" if k % 2 else "blue"} for k, row in enumerate(examples())]
    trainer = trained(tmp_path, lora(llama()), [{"batches": "task", "samples": 3}], dataset=rows, **settings)
    runs = callback_of(trainer).runs
    assert list(runs) == [0, 2, 4] and [len(run.probes) for run in runs.values()] == [6, 6, 6]
    wanted = interference.from_trainer(trainer, by="task", samples=3)
    assert_close(runs[4].gram(), wanted.gram(), rtol=1e-4, atol=1e-6)
    assert runs[4].meta["loss"] == wanted.meta["loss"]
