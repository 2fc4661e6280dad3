"""From a configuration to a validation on disk: examples, trainings, predictions; interrupted, changed, extended."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import interference
from interference import config, prediction
from interference.branching.branches import Branches
from interference.branching.pools import draw
from interference.branching.recipe import asked_of
from interference.errors import BusyError, ConfigError, MeasurementError, RunError, ScopeError
from interference.measurement import sample
from interference.prediction import validate as library
from interference.prediction.predictors import AVERAGED
from interference.prediction.trainings import fresh_model, rates_of
from interference.prediction.truth import gains, sets_of
from mixlora.checkpoints.prompting import load_collator
from mixlora.common import settings
from mixlora.common.locks import LOCK, locked
from mixlora.common.progress import silent
from mixlora.training.config import TrainConfig
from mixlora.training.run import train
from tests.support.checkpoints import write_base, write_task
from tests.support.killing import kill_until_done
from tests.support.sharing import leaving

TASKS = ["red", "blue", "green", "gold"]
ASKED = {"truth": ["pairs", "leave-one-out"], "horizons": [1, 3], "seeds": 2, "held_out": 8}


def trained(folder, out, **recipe):
    """The nested values of a training of four tasks."""
    values = {"steps": 4, "batch_size": 8, "learning_rate": 1e-2, "order": "shuffled", "snapshots": [0, 2, 4]}
    return {
        "method": "lora",
        "model": {"base": str(folder / "base"), "device": "cpu"},
        "tasks": {task: {"file": str(folder / f"{task}.jsonl")} for task in TASKS},
        "adapter": {"dropout": 0.1, "target_modules": ["q_proj", "up_proj"]},
        "lora": {"r": 2, "alpha": 4},
        "training": values | recipe,
        "out": str(out),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, four tasks, and a training on all of them."""
    made = tmp_path_factory.mktemp("validated")
    write_base(made / "base")
    for k, task in enumerate(TASKS):
        write_task(made / f"{task}.jsonl", 60, k)
    train(settings.build(TrainConfig, trained(made, made / "lora"), "the test"))
    return made


def asked(folder, out=None, adapter="lora", **validation):
    values = {
        "model": {"base": str(folder / "base"), "adapter": str(folder / adapter), "device": "cpu"},
        "tasks": {task: {"file": str(folder / f"{task}.jsonl")} for task in TASKS},
        "probe": {"samples": 6, "layers": [1], "batch_size": 8},
        "lookahead": {"steps": [1, 2], "seeds": 2, "held_out": 9},
        "validation": {**ASKED, **validation},
        **({} if out is None else {"out": str(out)}),
    }
    return config.build(values, "the test")


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """The directory of a validation that no test changes."""
    out = tmp_path_factory.mktemp("validations") / "whole"
    interference.validate(asked(folder), out)
    return out


@pytest.fixture(scope="module")
def found(place):
    return prediction.load_validation(place)


def test_no_example_is_in_two_of_probed_read_and_trained_on(folder):
    job = library.prepared(asked(folder), folder / "out")
    units = sample.encode(sample.read(job.config), job.pools.held_out.collator, job.config).units
    branch = draw(job.config, job.trained.recipe, 1, apart=job.pools.held_out.units)
    ahead = branch.held_out.units
    stepped = {(task, one.id) for task, stream in branch.streams.items() for one in stream.examples}
    probed = {(unit.task, one.id) for unit in [*units, *ahead] for one in unit.examples}
    read = {(unit.task, one.id) for unit in job.pools.held_out.units for one in unit.examples}
    on = {(task, one.id) for task, stream in job.pools.streams.items() for one in stream.examples}
    assert len(probed) == 4 * 9 and len(read) == 4 * 8 and len(on) == 4 * (60 - 9 - 8)
    assert not probed & read and not read & on and not probed & on
    assert stepped == on  # branches of lookaheads see nothing that is read, either


def test_a_lookahead_of_a_checkpoint_trains_on_nothing_that_is_read(place):
    told = json.loads((place / "runs" / "step-2-lookahead" / "lookahead.json").read_text())["trained_on"]
    assert {task: own["examples"] for task, own in told.items()} == dict.fromkeys(TASKS, 60 - 9 - 8)


def test_sets_of_tasks():
    assert sets_of(["a", "b", "c"], ["pairs"]) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")]
    assert sets_of(["a", "b", "c", "d"], ["leave-one-out"]) == [
        ("a", "b", "c"), ("a", "b", "d"), ("a", "c", "d"), ("b", "c", "d"), ("a", "b", "c", "d"),
    ]  # fmt: skip
    assert sets_of(["a", "b"], ["pairs", "leave-one-out"]) == [("a",), ("b",), ("a", "b")]


def test_gains_by_hand():
    """One seed, one example a task: losses are numbers that name their training."""
    tasks = ["a", "b", "c"]
    named = ["", "a", "b", "ab", "ac", "bc", "abc"]
    losses = {frozenset(own): np.full((1, 3), float(k)) for k, own in enumerate(named)}
    pairs = gains({**losses, frozenset("c"): np.full((1, 3), 9.0)}, tasks, tasks, "pairs")[0]
    np.testing.assert_array_equal(pairs, [[0 - 1, 2 - 3, 9 - 4], [1 - 3, 0 - 2, 9 - 5], [1 - 4, 2 - 5, 0 - 9]])
    rest = gains(losses, tasks, tasks, "leave-one-out")[0]
    np.testing.assert_array_equal(rest, [[5 - 6] * 3, [4 - 6] * 3, [3 - 6] * 3])


def test_a_new_adapter_is_the_one_that_a_training_begins_with(folder, tmp_path):
    values = trained(folder, tmp_path / "lora", seed=7, steps=1, snapshots=[0])
    train(settings.build(TrainConfig, values, "the test"))
    saved = load_file(tmp_path / "lora" / "snapshots" / "step-0" / "adapter_model.safetensors")
    own = asked(folder)
    model = fresh_model(own, settings.build(TrainConfig, values, "the test"), load_collator(own.model).tokenizer, 7)
    here = {name.replace(".default", ""): value for name, value in model.state_dict().items() if "lora_" in name}
    assert here.keys() == saved.keys() and all(torch.equal(here[name], saved[name]) for name in saved)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup", "inverse_sqrt"])
@pytest.mark.parametrize("warmup", [0, 0.3, 2])
def test_rates_are_those_of_a_training(folder, tmp_path, kind, warmup):
    """Against what transformers' Trainer logs of a training by the same recipe."""
    recipe = {"lr_scheduler_type": kind, "warmup": warmup, "steps": 6, "logging_steps": 1, "snapshots": []}
    rates = []

    class Heard(TrainerCallback):
        def on_pre_optimizer_step(self, *states, optimizer, **given):
            rates.append(optimizer.param_groups[0]["lr"])

    values = settings.build(TrainConfig, trained(folder, tmp_path / "lora", **recipe), "the test")
    train(values, callbacks=[lambda trainer: Heard()])
    assert rates_of(values.training, 6, 6) == pytest.approx(rates)
    assert rates_of(values.training, 4, 6) == pytest.approx(rates[:4])
    assert len(rates_of(values.training, 9, 6)) == 9


def test_every_set_begins_with_the_same_adapter_and_sees_the_same_examples(folder, place, found):
    """The losses of a training alone, against a branch taken by itself."""
    job = library.prepared(asked(folder), folder / "out")
    work = job.trainings()
    assert work.share == 2 and found.outcomes.meta["share"] == 2
    branches = work.fresh(1001)
    read = branches.along(["green", "gold"], 1001, [1, 3], work.rates, 2).numpy()
    place = found.outcomes.meta["sets"].index(["green", "gold"])
    np.testing.assert_array_equal(found.outcomes.losses[1, place], read)
    np.testing.assert_array_equal(found.outcomes.before[1], branches.before().numpy())


@pytest.mark.slow
def test_two_processes_train_the_same_to_the_bit(folder, tmp_path, found):
    job = library.prepared(asked(folder).model_copy(update={"processes": 2}), folder / "out")
    with leaving(tmp_path / "outcomes.partial" / "part-000002.safetensors") as taken:
        read = job.trainings().outcomes(tmp_path / "outcomes", {"job": "one"}, {})
    np.testing.assert_array_equal(read.losses, found.outcomes.losses)
    np.testing.assert_array_equal(read.before, found.outcomes.before)
    assert 1 <= len(taken) < 2 * len(found.outcomes.meta["sets"])


def test_verdicts_of_the_truth_do_not_wait_for_a_tasks_own_fall(found):
    """As where a task gains nothing from its own presence among all."""
    known = found.outcomes
    still = replace(known, losses=known.losses.copy(), before=known.before)
    sets = [frozenset(own) for own in known.meta["sets"]]
    whole, owner = sets.index(frozenset(TASKS)), known.examples["task"].to_numpy()
    still.losses[:, sets.index(frozenset(TASKS) - {"red"})] = still.losses[:, whole]  # red's own presence does nothing
    lowered = still.losses[:, whole][:, :, owner == "red"] - 0.5
    still.losses[:, sets.index(frozenset(TASKS) - {"blue"})][:, :, owner == "red"] = lowered
    rows = np.ix_(range(2), [sets.index(frozenset(TASKS) - {"blue"})], range(2), np.flatnonzero(owner == "red"))
    still.losses[rows] = lowered[:, None]
    table = replace(found, outcomes=still).truth("leave-one-out", 3).set_index(["affected", "stepped"])
    assert table.loc[("red", "blue"), "value"] == pytest.approx(-0.5)
    assert table.loc[("red", "blue"), "verdict"] == "conflict"


def test_truth_is_of_plain_means(found):
    known, owner = found.outcomes, found.outcomes.examples["task"].to_numpy()
    sets = [frozenset(own) for own in known.meta["sets"]]
    table = found.truth("pairs", 3).set_index(["affected", "stepped"])["value"]

    def after(*tasks, horizon):
        return known.losses[:, sets.index(frozenset(tasks)), horizon]

    alone, both, gold = (after(*tasks, horizon=1) for tasks in (["red"], ["red", "gold"], ["gold"]))
    assert table["red", "gold"] == pytest.approx((alone - both)[:, owner == "red"].mean())
    assert table["gold", "gold"] == pytest.approx((known.before - gold)[:, owner == "gold"].mean())
    rest = found.truth("leave-one-out", 1).set_index(["affected", "stepped"])["value"]
    without, whole = after("red", "green", "gold", horizon=0), after(*TASKS, horizon=0)
    assert rest["red", "blue"] == pytest.approx((without - whole)[:, owner == "red"].mean())


def test_predictions_are_those_of_the_runs(place, found):
    run = interference.load(place / "runs" / "step-2")
    rows = found.predictions
    for name in ("interference", "delta", "cosine"):
        own = rows[(rows["prediction"] == name) & (rows["step"] == 2)]
        np.testing.assert_allclose(own["value"].to_numpy().reshape(4, 4), run.matrix(name))
    layer = rows[(rows["prediction"] == "interference, in q_proj") & (rows["step"] == 2)]["value"].to_numpy()
    np.testing.assert_allclose(layer.reshape(4, 4), run.matrix(modules=["q_proj"]))
    ahead = prediction.load(place / "runs" / "step-2-lookahead")
    own = rows[(rows["prediction"] == "lookahead delta, 2 steps") & (rows["step"] == 2)]["value"].to_numpy()
    np.testing.assert_allclose(own.reshape(4, 4), ahead.matrix("delta", 2))
    matrices = dict(found.matrices())
    mean = np.mean([matrices["cosine", step] for step in (0, 2, 4)], axis=0)
    np.testing.assert_allclose(matrices[f"cosine{AVERAGED}", 4], mean)


def test_progress_by_hand(place):
    """cos(G_i, G_i + G_j) where units are so many that a mean's noise does not matter: of the means themselves."""
    run = interference.load(place / "runs" / "step-4")
    gram, tasks = run.gram().astype(float), run.probes["task"].to_numpy()
    apart = ~np.eye(len(tasks), dtype=bool)

    def product(one, other):
        rows = np.ix_(tasks == one, tasks == other)
        return gram[rows][apart[rows]].mean()

    table = prediction.predictors.progress(run)
    a, b, c = product("red", "red"), product("red", "gold"), product("gold", "gold")
    expected = (a + b) / np.sqrt(a * (a + 2 * b + c)) if min(a, c, a + 2 * b + c) > 0 else np.nan
    assert table.loc["red", "gold"] == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_tables(found):
    table = found.table("kendall_overall")
    assert set(table["truth"]) == {"pairs", "leave-one-out"} and set(table["horizon"]) == {1, 3}
    assert table["value"].abs().max() <= 1
    assert found.ceilings(None)["score"].nunique() == 4 and found.ceilings()["score"].nunique() == 1
    one = found.judged(pd.DataFrame(np.arange(16.0).reshape(4, 4), TASKS, TASKS))
    assert len(one) == 4 and set(one["prediction"]) == {"your own"}
    with pytest.raises(ScopeError, match="prediction 'your own' has rows"):
        found.judged(pd.DataFrame(np.ones((1, 1)), ["blue"], ["blue"]))
    pd.testing.assert_frame_equal(found.judged(np.arange(16.0).reshape(4, 4)), one)
    with pytest.raises(ScopeError, match="there is no score 'best'; there is spearman_within, "):
        found.table("best")
    with pytest.raises(ScopeError, match="losses were read after 1, 3 steps, not after 2"):
        found.truth("pairs", 2)
    with pytest.raises(ScopeError, match="'twins' was not trained; there is pairs, leave-one-out"):
        found.truth("twins")
    assert repr(found).startswith("Validation(4 tasks; 15 sets x 2 seeds; ")


def test_adams_step_is_tested_where_runs_have_it(folder, tmp_path):
    """Each checkpoint's own state divides, not another's."""
    train(settings.build(TrainConfig, trained(folder, tmp_path / "lora", optimizer_state=True), "the test"))
    own = asked(folder, adapter=tmp_path / "lora", truth=["pairs"], horizons=[1], lookahead=False, checkpoints=[2, 4])
    probe = own.probe.model_copy(update={"step": "adam"})
    found = interference.validate(own.model_copy(update={"probe": probe}), tmp_path / "out")
    rows = found.predictions
    for step in (2, 4):
        run = interference.load(tmp_path / "out" / "runs" / f"step-{step}")
        assert "estimated" not in str(run.meta["adam"])
        for metric in ("interference", "delta"):
            kept = rows[(rows["prediction"] == f"{metric} of AdamW's step") & (rows["step"] == step)]["value"]
            np.testing.assert_allclose(kept.to_numpy().reshape(4, 4), run.matrix(metric, space="adam"))
    named = own.model_copy(update={"probe": probe.model_copy(update={"optimizer": str(tmp_path)})})
    with pytest.raises(
        ConfigError, match=r"probe.optimizer names the state of one checkpoint .*; drop it: beside each"
    ):
        interference.validate(named, tmp_path / "other")


# --- a job that goes on ---


def counted(monkeypatch):
    """The branches that are trained from now on."""
    own, taken = Branches.along, []
    monkeypatch.setattr(Branches, "along", lambda self, *given: taken.append(given[0]) or own(self, *given))
    return taken


def interrupted(folder, out, branches, **validation):
    """Leave a validation after some branches."""
    own, left = Branches.along, [branches]

    def along(self, *given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return own(self, *given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Branches, "along", along)
        interference.validate(asked(folder, **validation), out)


@pytest.mark.slow
def test_it_continues(folder, tmp_path, monkeypatch, found):
    interrupted(folder, tmp_path / "out", 3 * 2 * 4 + 4)  # all lookaheads, and four trainings
    taken = counted(monkeypatch)
    again = interference.validate(asked(folder), tmp_path / "out")
    assert len(taken) == 2 * 15 - 4
    assert np.array_equal(again.outcomes.losses, found.outcomes.losses)
    pd.testing.assert_frame_equal(again.predictions, found.predictions)


def work(given):
    torch.set_num_threads(1)
    values, out = given
    library.compute(config.build(values, "test"), out, {}, silent)


@pytest.mark.slow
def test_a_killed_one_ends_as_if_it_had_not_been(folder, tmp_path):
    values = asked(folder, truth=["pairs"], horizons=[1], checkpoints=[4]).model_dump(mode="json")
    values["lookahead"] |= {"steps": [1], "recipe": {}}
    made, whole = tmp_path / "made", tmp_path / "whole"
    made.mkdir()
    done = (made / "found" / "validation.json").exists
    kill_until_done(work, (values, whole), (values, made / "found"), made, 90, done)
    one, other = (prediction.load_validation(place) for place in (made / "found", whole))
    assert np.array_equal(one.outcomes.losses, other.outcomes.losses)
    pd.testing.assert_frame_equal(one.predictions, other.predictions)
    names = [sorted(str(path.relative_to(place)) for path in place.rglob("*")) for place in (made / "found", whole)]
    assert names[0] == names[1] and [path.name for path in made.iterdir()] == ["found"]


@pytest.mark.slow
def test_more_checkpoints_and_predictions_train_nothing_again(folder, tmp_path, monkeypatch, found):
    out = tmp_path / "out"
    first = interference.validate(asked(folder, checkpoints=[2], lookahead=False), out)
    assert set(first.predictions["step"]) == {2} and not first.predictions["prediction"].str.contains("lookahead").any()
    taken = counted(monkeypatch)
    mine = {"mine": lambda run: run.matrix("cosine") * 2, "array": lambda run: np.eye(len(run.tasks))}
    again = interference.validate(asked(folder, checkpoints=[2, 4]), out, predictors=mine)
    assert len(taken) == 2 * 2 * 4  # the branches of two lookaheads
    assert np.array_equal(again.outcomes.losses, found.outcomes.losses)
    table = again.table().set_index(["truth", "horizon", "prediction", "step"])["value"]
    assert table["pairs", 3, "mine", 4] == pytest.approx(table["pairs", 3, "cosine", 4], nan_ok=True)
    later = interference.validate(asked(folder, checkpoints=[4]), out)  # without them: they are kept
    assert len(later.predictions) == len(again.predictions) and {"mine", "array"} <= set(
        later.predictions["prediction"]
    )
    kept = out / "runs" / "step-2" / "run.json"
    assert kept.stat().st_mtime_ns < (out / "validation.json").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("predictor", "words"),
    [
        (lambda run: np.ones(3), r"prediction 'mine' is \(3,\), but there are 4 tasks"),
        (lambda run: "high", "prediction 'mine' is a str, but must be tasks x tasks"),
        (
            lambda run: pd.DataFrame(np.ones((4, 4))),
            r"prediction 'mine' has rows \[0, 1, 2, 3\], but the tasks are",
        ),
    ],
)
def test_a_predictor_that_returns_no_matrix(folder, place, tmp_path, predictor, words):
    out = shutil.copytree(place, tmp_path / "out")
    with pytest.raises(ScopeError, match=words):
        interference.validate(asked(folder), out, predictors={"mine": predictor})
    assert prediction.load_validation(out)  # what was there is still there


def test_another_job_is_refused(folder, place, tmp_path):
    out = shutil.copytree(place, tmp_path / "out")
    with pytest.raises(RunError, match=r"holds a validation of another job \(config.validation.horizons.* choose"):
        interference.validate(asked(folder, horizons=[1, 4]), out)
    shutil.copytree(folder / "lora", tmp_path / "lora")
    weights = tmp_path / "lora" / "snapshots" / "step-2" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(RunError, match=r"another job \(adapters.2 has changed\)"):
        interference.validate(asked(folder, adapter=tmp_path / "lora"), out)


def test_another_recipe_of_lookaheads_is_another_job(folder, tmp_path):
    """The file behind lookahead.training may change under its name."""
    file = tmp_path / "recipe.yaml"

    def identity(rate):
        file.write_text(json.dumps(trained(folder, "unused", learning_rate=rate)))
        own = asked(folder)
        ahead = own.lookahead.model_copy(update={"training": str(file)})
        job = library.prepared(own.model_copy(update={"lookahead": ahead}), tmp_path / "out")
        return job.identity(), job.trainings().rates

    (one, rates), (other, same) = identity(1e-2), identity(1e-1)
    assert one != other and rates == same  # the truth follows the probed training, not lookahead.training


def test_a_directory_of_something_else(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and holds no validation; choose another --out"):
        interference.validate(asked(folder), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_one_process_at_a_time(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / LOCK, "validating"), pytest.raises(BusyError, match="another process is validating"):
        interference.validate(asked(folder), tmp_path / "out")


# --- what cannot be done ---


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"seed": 0},
            "validation.seed: 0 is the seed of .*lora, whose checkpoints are judged; choose seeds of your own",
        ),
        ({"checkpoints": [3]}, "validation.checkpoints asks for step 3, but .*snapshots has 0, 2, 4"),
        ({"seed": 1}, "validation.seed: 1 is also a seed of lookahead.seed; choose others, so that the truth"),
        ({"horizons": [0, 1]}, "validation.horizons: after 0 steps nothing is trained; begin with 1 or more"),
        ({"seeds": 1}, "validation.seeds: Input should be greater than or equal to 2"),
        ({"truth": ["thirds"]}, "validation.truth"),
        (
            {"share": 50},
            "task 'red' has 43 examples to train on, but a step takes 50; .*lower validation.held_out, val",
        ),
    ],
)
def test_values_that_cannot_be_used(folder, tmp_path, values, words):
    with pytest.raises((ConfigError, ScopeError), match=words):
        interference.validate(asked(folder, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_tasks(folder, tmp_path, count):
    own = asked(folder)
    few = own.model_copy(update={"tasks": {task: own.tasks[task] for task in TASKS[:count]}})
    words = f"a validation ranks the rivals of each task, which takes 4 tasks, but the configuration has {count}"
    with pytest.raises(ScopeError, match=words):
        interference.validate(few, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "predictor", "words"),
    [
        ("interference", np.eye, "predictor 'interference' has a name that is taken or kept for others"),
        ("lookahead delta, 1 step", np.eye, "predictor 'lookahead delta, 1 step' has a name that is taken"),
        ("mine, averaged so far", np.eye, "predictor 'mine, averaged so far' has a name that is taken"),
        ("", np.eye, "predictor '' has a name that is taken"),
        ("mine", np.eye(4), "predictor 'mine' is an? .*array, but must be a function of a Run"),
    ],
)
def test_predictors_are_looked_at_first(folder, tmp_path, name, predictor, words):
    with pytest.raises(ConfigError, match=words):
        interference.validate(asked(folder), tmp_path / "out", predictors={name: predictor})
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_no_training_made(folder, tmp_path):
    shutil.copytree(folder / "lora" / "snapshots" / "step-4", tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"is not of a `mixlora train`, whose training\.json would tell"):
        interference.validate(asked(folder, adapter=tmp_path / "adapter"), tmp_path / "out")


def test_a_training_that_combines_gradients_is_refused(folder, tmp_path):
    """New trainings follow the sum: they would answer for another training."""
    values = trained(folder, tmp_path / "lora", weights={"red": 2})
    train(settings.build(TrainConfig, values, "the test"))
    with pytest.raises(
        ConfigError, match=r"was trained with training\.combine or training\.weights, which the trainings"
    ):
        interference.validate(asked(folder, adapter=tmp_path / "lora"), tmp_path / "out")


def test_a_training_without_snapshots(folder, tmp_path):
    shutil.copytree(folder / "lora", tmp_path / "lora", ignore=lambda *_: ["snapshots"])
    with pytest.raises(ConfigError, match=r"has no snapshots to predict from; train with training\.snapshots"):
        interference.validate(asked(folder, adapter=tmp_path / "lora"), tmp_path / "out")


def test_too_few_examples_to_read(folder, tmp_path):
    own = asked(folder)
    probe = own.probe.model_copy(update={"samples": 59})
    with pytest.raises(ScopeError, match="task 'red' has 1 examples that share nothing with those that are probed"):
        interference.validate(own.model_copy(update={"probe": probe}), tmp_path / "out")


@pytest.mark.parametrize("name", ["validation.json", "predictions.parquet", "outcomes/losses.safetensors"])
def test_a_damaged_one_is_not_read(place, tmp_path, name):
    out = shutil.copytree(place, tmp_path / "out")
    raw = bytearray((out / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (out / name).write_bytes(raw)
    with pytest.raises(RunError, match=r"damaged|differs"):
        prediction.load_validation(out)
    (out / name).unlink()
    with pytest.raises(RunError):
        prediction.load_validation(out)


def test_it_names_what_it_followed(place):
    told = json.loads((place / "outcomes" / "outcomes.json").read_text())
    assert told["recipe"]["learning_rate"] == 0.01 and told["recipe"]["of"].endswith("lora")
    assert told["seeds"] == [1000, 1001] and told["trained_on"]["red"]["examples"] == 43
    assert asked_of(config.build(json.loads((place / "validation.json").read_text())["config"], "it")).steps == [1, 2]


def test_a_file_in_its_place(folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunError, match="exists and holds no validation; choose another --out"):
        interference.validate(asked(folder), tmp_path / "out")


def test_predictions_go_by_the_tasks_names(folder, place, found):
    """The same validation of a configuration that names the tasks in another order."""
    own = asked(folder)
    turned = own.model_copy(update={"tasks": {task: own.tasks[task] for task in reversed(TASKS)}})
    job = library.prepared(turned, place)
    rows = library._predictions(job, list(reversed(TASKS)), {}).set_index(["prediction", "step", "affected", "stepped"])
    expected = found.predictions.set_index(["prediction", "step", "affected", "stepped"])
    pd.testing.assert_frame_equal(rows.sort_index(), expected.sort_index())


def test_a_training_that_diverges_is_told(folder, tmp_path):
    values = trained(folder, tmp_path / "lora", learning_rate=1e30, snapshots=[0], steps=1)
    train(settings.build(TrainConfig, values, "the test"))
    with pytest.raises(MeasurementError, match=r"branch along 'red' with seed 1000 diverged at step .* judge a train"):
        interference.validate(asked(folder, adapter=tmp_path / "lora", lookahead=False), tmp_path / "out")
