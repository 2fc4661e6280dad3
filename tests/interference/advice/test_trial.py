"""A trial of the planted suite: groups that help by construction, equal examples, losses whose limits are known."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

import interference
from interference import advice
from interference.advice import setup, tried
from interference.advice.trial import compute
from interference.advice.tried import MARKER
from interference.branching.branches import Branches
from interference.errors import ConfigError, RunError, ScopeError
from interference.measurement import sample
from interference.prediction.trainings import rates_of
from mixlora.common.progress import silent
from mixlora.training.run import train
from tests.support import planted
from tests.support.killing import kill_until_done

TASKS = list(planted.ANGLES)


@pytest.fixture(scope="module")
def place(suite, tmp_path_factory):
    """The directory of an advice whose trial is done; no test changes it."""
    out = tmp_path_factory.mktemp("advice") / "run-advice"
    interference.advise(suite.run, suite.asked(), out)
    return out


@pytest.fixture(scope="module")
def found(place):
    return advice.load_trial(tried.place_of(place))


def limit(groups):
    """The loss of each task where every adapter has converged: W h lies at the mean of its group's targets.

    An answer has two tokens, and the second, which ends it, costs nothing.
    """
    aims = planted.targets()
    return {
        task: ((aims[task] - np.mean([aims[own] for own in group], axis=0)) ** 2).sum() / 4
        for group in groups
        for task in group
    }


def test_losses_are_those_of_the_construction(found):
    """Against the closed form, but of specialists, which take too few steps to converge, and of cures."""
    table = found.by_task()
    for arm in found.meta["arms"]:
        if arm["name"] not in ("specialists", "together, weights", "together, upgrad"):
            own = table[table["arm"] == arm["name"]].set_index("task")["loss"]
            wanted = limit(arm["groups"])
            assert own[TASKS].to_numpy() == pytest.approx([wanted[task] for task in TASKS], abs=0.06), arm["name"]


def test_the_advised_groups_are_the_planted_ones_and_beat_random_ones(found):
    (advised,) = (arm["groups"] for arm in found.meta["arms"] if arm["name"] == "advised groups")
    assert [set(group) for group in advised] == planted.GROUPS
    outcome = found.outcome
    assert outcome.helps and 0 < outcome.low <= outcome.value <= outcome.high
    others = [np.mean(list(limit(arm["groups"]).values())) for arm in found.meta["arms"] if "random" in arm["name"]]
    assert outcome.value == pytest.approx(np.mean(others) - np.mean(list(limit(advised).values())), abs=0.015)
    assert (outcome.count, outcome.among) == (2, 9)
    assert outcome.words.startswith("The advised groups beat 2 random splits into groups of the same sizes: their held")


def test_parameters(found):
    """LoRA of rank 2 on one 8 x 8 Linear has 32; a MixLoRA of 4 factors has 64 of them, and routers."""
    sizes = {arm["name"]: arm["parameters"] for arm in found.meta["arms"]}
    assert sizes["together"] == 32 and sizes["advised groups"] == sizes["random groups 1"] == 64
    assert sizes["specialists"] == 6 * 32 and sizes["together, 2 times the rank"] == 64 < sizes["mixlora"]


def test_a_table_by_hand(found):
    """Plain means of the losses that were kept."""
    table = found.table().set_index("arm")
    owner, arms = found.examples["task"].to_numpy(), found.arms
    means = np.mean([found.losses[:, :, owner == task].mean(axis=(0, 2)) for task in TASKS], axis=0)
    assert table.loc[arms, "loss"].to_numpy() == pytest.approx(means)
    random = means[[name.startswith("random") for name in arms]].mean()
    assert table.loc["random groups, mean", "loss"] == pytest.approx(random)
    assert table.loc["mixlora", "against_random"] == pytest.approx(random - means[arms.index("mixlora")])
    assert table.loc["mixlora", "against_together"] == pytest.approx(means[0] - means[-1])
    assert np.isnan(table.loc["together", "against_together"])
    assert np.isnan(table.loc["random groups, mean", "against_random"])
    one = found.table("west").set_index("arm")["loss"]
    assert one["together"] == pytest.approx(found.losses[:, 0][:, owner == "west"].mean())
    with pytest.raises(ScopeError, match="there is no task 'up'; there is east, "):
        found.table("up")


def test_every_arm_takes_as_many_steps_and_sees_every_task_as_often(suite, tmp_path, monkeypatch):
    """Counted in the batches that branches really step on."""
    along, step, taken = Branches.along, Branches._step, []

    def started(self, tasks, seed, *given):
        taken.append((tuple(tasks), seed, []))
        return along(self, tasks, seed, *given)

    def stepped(self, optimizer, rows, rate):
        taken[-1][2].append(Counter(one.example.task for one in rows))
        return step(self, optimizer, rows, rate)

    monkeypatch.setattr(Branches, "along", started)
    monkeypatch.setattr(Branches, "_step", stepped)
    asked = suite.asked(steps=12, share=3)
    found = interference.advise(suite.run, out=tmp_path / "a")
    job = setup.prepared(asked, planted.GROUPS, found.weights)
    compute(asked, found, tmp_path / "trial")
    assert len(taken) == 2 * len(job.pieces)
    steps = {(tasks, seed): batches for tasks, seed, batches in taken}
    assert all(steps[tasks, seed] == batches for tasks, seed, batches in taken)  # of three shapes on all tasks
    for arm in job.arms:
        batches = [batch for piece in arm.pieces for batch in steps[piece.tasks, 2001]]
        assert len(batches) == 12 and {batch.total() for batch in batches} == {3 * 6}
        assert sum(batches, Counter()) == dict.fromkeys(TASKS, 12 * 3)


def test_batches_may_be_larger_than_what_there_is(suite):
    """Every epoch whole, one after the other."""
    stream = setup.prepared(suite.asked(steps=6), planted.GROUPS).pools.streams["east"]
    count = len(stream.examples)
    batches = stream.batches(3 * count, "shuffled", 3)
    rows = [one.example.id for one in [*next(batches), *next(batches)]]
    epochs = [rows[k : k + count] for k in range(0, 6 * count, count)]
    assert all(len(set(epoch)) == count for epoch in epochs) and epochs[0] != epochs[1]


def test_rates_run_through_the_schedule_within_each_adapters_own_steps(suite, tmp_path):
    """A warm-up of 6 of 12 steps is half of any adapter's steps."""
    recipe = {"lr_scheduler_type": "linear", "warmup": 6}
    train(suite.trained(tmp_path / "lora", training=recipe))
    job = setup.prepared(suite.asked(tmp_path / "lora", steps=24), planted.GROUPS)
    for piece in job.pieces:
        steps = job.steps_of(piece)
        rates = rates_of(job.recipe_of(piece).training, steps, steps)
        assert len(rates) == steps == 24 * len(piece.tasks) // 6
        assert rates[steps // 2] == max(rates) == 5e-2 and rates[0] == 0


def test_nothing_that_is_read_is_probed_or_trained_on(suite, tmp_path):
    """By ids, of the trial's probe, the run's and a lookahead's examples; every arm has one pool."""
    asked = suite.asked(held_out=9)
    more = asked.model_copy(update={"lookahead": interference.config.LookaheadConfig(held_out=20)})
    run = asked.model_copy(update={"probe": asked.probe.model_copy(update={"seed": 5})})
    job = setup.prepared(more, planted.GROUPS, runs=[run])
    collator = job.pools.held_out.collator

    def ids(config, count=None):
        probe = config.probe.model_copy(update={"samples": count or config.probe.samples})
        own = config.model_copy(update={"probe": probe})
        units = sample.encode(sample.read(own), collator, own).units
        return {(unit.task, one.id) for unit in units for one in unit.examples}

    probed = ids(asked) | ids(run) | ids(asked, 20)
    read = {(unit.task, one.id) for unit in job.pools.held_out.units for one in unit.examples}
    on = {(task, one.id) for task, stream in job.pools.streams.items() for one in stream.examples}
    assert len(read) == 6 * 9 and len(probed) > 6 * 20
    assert not read & probed and not read & on and not probed & on


def test_exact_answers_are_counted(suite, tmp_path, monkeypatch):
    """What HeldOut.answers gives is what the table has."""
    told = torch.arange(24) % 2
    monkeypatch.setattr("interference.branching.held_out.HeldOut.answers", lambda self, model: told.double())
    compute(suite.asked(steps=6), interference.advise(suite.run, out=tmp_path / "a"), tmp_path / "trial")
    found = advice.load_trial(tmp_path / "trial")
    np.testing.assert_array_equal(found.right, np.broadcast_to(told, found.right.shape))
    assert set(found.table()["right"]) == {0.5}


# --- a job that goes on ---


@pytest.mark.slow
def test_it_continues_and_a_finished_one_is_read(suite, tmp_path, monkeypatch):
    found = interference.advise(suite.run, out=tmp_path / "a")
    whole = compute(suite.asked(steps=6), found, tmp_path / "whole")
    own, left = Branches.along, [7]

    def along(self, *given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return own(self, *given)

    monkeypatch.setattr(Branches, "along", along)
    with pytest.raises(KeyboardInterrupt):
        compute(suite.asked(steps=6), found, tmp_path / "trial")
    left[0] = 100
    again = compute(suite.asked(steps=6), found, tmp_path / "trial")
    pieces = len(setup.prepared(suite.asked(), planted.GROUPS, found.weights).pieces)
    assert left[0] == 100 - (2 * pieces - 7)
    np.testing.assert_array_equal(again.losses, whole.losses)
    left[0] = 0
    assert compute(suite.asked(steps=6), found, tmp_path / "trial").arms == whole.arms  # nothing is trained


def work(given):
    torch.set_num_threads(1)
    config, run, out, folder = given
    compute(interference.config.build(config, "the test"), interference.advise(run, out=folder), out, (), silent)


@pytest.mark.slow
def test_a_killed_one_ends_as_if_it_had_not_been(suite, tmp_path):
    values = suite.asked(steps=6).model_dump(mode="json")
    made, whole = tmp_path / "made", tmp_path / "whole"
    made.mkdir()
    done = (made / "trial" / MARKER).exists
    given = (values, suite.run, whole, tmp_path / "a")
    kill_until_done(work, given, (values, suite.run, made / "trial", tmp_path / "b"), made, 40, done)
    one, other = (advice.load_trial(folder) for folder in (made / "trial", whole))
    np.testing.assert_array_equal(one.losses, other.losses)
    assert [path.name for path in made.iterdir()] == ["trial"]


def test_another_trial_is_refused(suite, place):
    out = tried.place_of(place)
    with pytest.raises(RunError, match=r"holds another trial \(config.trial.steps was 36 and is now 12, steps was"):
        compute(suite.asked(steps=12), advice.load(place), out)


@pytest.mark.parametrize("name", ["trial.json", "examples.parquet", "losses.safetensors"])
def test_a_damaged_one_is_not_read(place, tmp_path, name):
    out = shutil.copytree(tried.place_of(place), tmp_path / "out")
    raw = bytearray((out / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (out / name).write_bytes(raw)
    with pytest.raises(RunError, match=r"damaged|differs"):
        advice.load_trial(out)
    (out / name).unlink()
    with pytest.raises(RunError, match=f"holds no trial: it has no {name}"):
        advice.load_trial(out)


def test_a_trial_without_an_arm_is_damaged(found, tmp_path):
    arms = [arm for arm in found.meta["arms"] if arm["name"] != "together"]
    tried.Trial(found.examples, found.losses[:, 1:], found.right[:, 1:], {**found.meta, "arms": arms}).save(
        tmp_path / "x"
    )
    with pytest.raises(RunError, match=r"trial.json is damaged: its arms are not whole; compute it again"):
        advice.load_trial(tmp_path / "x")


# --- what cannot be done ---


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seed": 0}, "trial.seed: 0 is the seed of .*lora; choose others, so that the trial knows nothing"),
        ({"seed": 1001}, "trial.seed: 1001 is also a seed of validation.seed; choose others"),
        ({"seed": 1}, "trial.seed: 1 is also a seed of lookahead.seed; choose others"),
        ({"steps": 20}, "trial.steps is 20, but must be a multiple of the 6 tasks"),
        ({"seeds": 1}, "trial.seeds: Input should be greater than or equal to 2"),
        ({"random": 1}, "trial.random: Input should be greater than or equal to 2"),
        ({"seed": 2**32 - 1}, "trial: seed 4294967295 and the 1 after it must stay below"),
        ({"share": 80}, r"task 'east' has \d+ examples to train on, but a step takes 80; .*lower trial.held_out, "),
    ],
)
def test_values_that_cannot_be_used(suite, tmp_path, values, words):
    found = interference.advise(suite.run, out=tmp_path / "a")
    with pytest.raises((ConfigError, ScopeError), match=words):
        compute(suite.asked(**values), found, tmp_path / "trial")
    assert not (tmp_path / "trial").exists()


def test_trainings_that_cannot_be_followed(suite, tmp_path):
    found = interference.advise(suite.run, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="is not of a `mixlora train`"):
        compute(suite.asked("base"), found, tmp_path / "trial")
    train(suite.trained(tmp_path / "mixed", method="mixlora", training={"steps": 1, "snapshots": []}))
    with pytest.raises(ConfigError, match="is a training of method mixlora, but a trial compares LoRAs and a MixLoRA"):
        compute(suite.asked(tmp_path / "mixed"), found, tmp_path / "trial")


def test_other_tasks_are_refused(suite, tmp_path):
    asked = suite.asked()
    fewer = asked.model_copy(update={"tasks": {task: asked.tasks[task] for task in TASKS[:4]}})
    with pytest.raises(ConfigError, match=r"the trial's tasks are east, .*, but the advice is of east, .* the same"):
        compute(fewer, interference.advise(suite.run, out=tmp_path / "a"), tmp_path / "trial")


def test_a_directory_of_something_else(suite, tmp_path):
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and holds something else; choose another --out"):
        compute(suite.asked(), interference.advise(suite.run, out=tmp_path / "a"), tmp_path / "trial")


def test_it_says_how_it_came_about(place):
    told = json.loads((tried.place_of(place) / MARKER).read_text())
    assert told["seeds"] == [2000, 2001] and told["steps"] == 36 and told["share"] == 2
    assert told["trained_on"]["east"]["examples"] == 80 - 10 - 4 and told["matrix"]["name"] == "interference"
