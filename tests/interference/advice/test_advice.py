"""What runs say can be done: groups and the matrix behind them, configurations that train, and what is refused."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml

import interference
from interference import advice, prediction
from interference.advice import evidence as library
from interference.advice.advice import of_runs
from interference.advice.configurations import configurations, steps_of
from interference.errors import ConfigError, RunError, ScopeError
from mixlora.common.sections import TaskSection
from mixlora.data.reading.tasks import read_task
from mixlora.training.config import TrainConfig
from mixlora.training.run import train
from tests.support import planted, tried_out, validated
from tests.support.reported import APART, TWO_GROUPS, axis, made

MEANS = {
    "a": axis(1, 2), "b": axis(1, 2, 3), "c": axis(1, 4, 5), "d": axis(-1, 4), "e": axis(-1, 2, 6), "f": axis(-1, -2),
}  # fmt: skip


def saved(run, place, model="a" * 32):
    """The run's directory, with a fingerprint."""
    run.meta["fingerprints"] = {"model": model}
    run.save(place)
    return place


# --- the planted suite ---


def test_it_finds_the_planted_groups(suite, tmp_path):
    found = interference.advise(suite.run, out=tmp_path / "out")
    assert [set(group) for group in found.groups] == planted.GROUPS
    assert found.grouping.stability[2] > 0.95 and not found.matrix["validated"]
    assert found.matrix["words"] == "I over all its blocks; not validated: there is no validation beside the run"
    split, weights = found.sentences
    assert split == (
        "Split the tasks, with one adapter for each group: east, northeast and southeast; west, northwest and "
        "southwest."
    )
    assert weights.startswith("Weigh the losses of the tasks (training.weights): east 0.")
    assert repr(found) == "Advice(6 tasks; east, northeast and southeast; west, northwest and southwest)"


def test_its_configurations_train(suite, tmp_path):
    found = interference.advise(suite.run, out=tmp_path / "out")
    assert found.configurations == ["group-1.yaml", "group-2.yaml", "weights.yaml"] and found.unwritten == ""
    values = yaml.safe_load((tmp_path / "out" / "group-2.yaml").read_text(encoding="utf-8"))
    own = TrainConfig.model_validate(values)
    assert set(own.tasks) == planted.GROUPS[1] and own.tasks["west"].file == suite.tasks["west"]["file"]
    assert own.training.steps == 6 and own.training.snapshots == [0, 6]  # half of 12, and none beyond
    assert own.training.learning_rate == 5e-2 and own.out == f"{suite.folder / 'lora'}-group-2"
    train(own.model_copy(update={"out": str(tmp_path / "trained")}))
    assert (tmp_path / "trained" / "adapter_model.safetensors").exists()


def with_examples(suite, folder, examples):
    """The planted suite's advice with examples to look at, and the files that follow."""
    found = interference.advise(suite.run, out=folder / "out")
    return configurations(replace(found, examples=examples), interference.load(suite.run), folder / "there")[0]


def test_a_training_without_the_examples_to_look_at(suite, tmp_path):
    ids = [example.id for example in read_task(TaskSection(file=str(suite.tasks["east"]["file"])), "east")[:2]]
    files = with_examples(suite, tmp_path, [{"task": "east", "ids": own, "source": "", "q": 0.01} for own in ids])
    assert files["without-east.txt"] == "".join(f"{own}\n" for own in ids)
    own = TrainConfig.model_validate(yaml.safe_load(files["without.yaml"]))
    assert own.out == f"{suite.folder / 'lora'}-without" and own.tasks["west"].without is None
    assert own.tasks["east"].without == str(tmp_path / "there" / "without-east.txt")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "without-east.txt").write_text(files["without-east.txt"], encoding="utf-8")
    known = {example.id for example in read_task(own.tasks["east"], "east")}
    assert known and not known & set(ids)


def test_examples_that_were_not_trained_on_are_not_left_out(suite, tmp_path):
    """Their ids are those of another file, which the training does not read."""
    other = {**suite.tasks, "east": {"file": suite.tasks["west"]["file"]}}
    run = interference.load(suite.run)
    run.meta["config"]["tasks"] |= {"east": {**run.meta["config"]["tasks"]["east"], **other["east"]}}
    found = interference.advise(suite.run, out=tmp_path / "out")
    found = replace(found, examples=[{"task": "east", "ids": "1", "source": "", "q": 0.01}])
    files, why = configurations(found, run, tmp_path)
    assert why == "" and not [name for name in files if "without" in name]


def test_several_checkpoints(suite, tmp_path):
    """The mean of their matrices; the first run's directory names the result."""
    one, other = (shutil.copytree(suite.folder / name, tmp_path / name) for name in ("run", "earlier"))
    found = interference.advise([one, other])
    assert [set(group) for group in found.groups] == planted.GROUPS
    assert found.matrix["words"].startswith("the mean of I over 2 runs") and len(found.runs) == 2
    assert advice.load(tmp_path / "run-advice").groups == found.groups


def test_a_run_that_is_named_twice_is_refused(suite):
    with pytest.raises(ScopeError) as told:
        interference.advise([suite.run, suite.folder / "earlier", suite.run])
    assert str(told.value) == f"{suite.run} is named twice; name each run once, so that it counts once in the mean"


def test_what_is_written_is_read(suite, tmp_path):
    found = interference.advise(suite.run, out=tmp_path / "out")
    assert advice.load(tmp_path / "out") == found
    again = interference.advise(suite.run, out=tmp_path / "out")  # over what it wrote itself
    assert again == found
    told = json.loads((tmp_path / "out" / "advice.json").read_text(encoding="utf-8"))
    assert told["sentences"] == found.sentences


@pytest.mark.parametrize(
    ("steps", "size", "count", "own"), [(12, 3, 6, 6), (10, 1, 3, 3), (1, 1, 6, 1), (100, 5, 6, 83)]
)
def test_steps_of_a_group(steps, size, count, own):
    assert steps_of(steps, size, count) == own


# --- made-up runs ---


def test_no_split_is_supported(tmp_path):
    found = interference.advise(saved(made(APART), tmp_path / "run"))
    assert found.groups == [] and found.configurations == [] and found.unwritten == ""
    assert found.sentences == [
        "No split is supported by this run: no pair of tasks conflicts beyond noise.",
    ]
    assert repr(found) == "Advice(3 tasks; no split)"


def test_a_run_of_no_known_training(tmp_path):
    found = interference.advise(saved(made(TWO_GROUPS), tmp_path / "run"))
    assert found.groups == [["a", "b"], ["c", "d"]] and found.configurations == []
    assert found.unwritten == "the run is not of a `mixlora train`, whose record would tell how to train"


def test_the_mean_of_several_runs_by_hand(tmp_path):
    """Two runs on the same units, one of which knows nothing of task a: its row is of the other alone."""
    clear, deaf = made(TWO_GROUPS), made({**TWO_GROUPS, "a": np.zeros(8)}, noise=0.1, seed=1)
    found = library.evidence([clear, deaf], [tmp_path, tmp_path])
    tables = [library._of_run(run, "interference") for run in (clear, deaf)]
    one, other = (table["value"].to_numpy().reshape(4, 4) for table, _ in tables)
    assert set(tables[1][0]["verdict"].to_numpy().reshape(4, 4)[0]) == {"no-signal", "self"}
    values = found.table["value"].to_numpy().reshape(4, 4)
    np.testing.assert_allclose(values[0], one[0])
    np.testing.assert_allclose(values[1:], ((one + other) / 2)[1:])
    np.testing.assert_allclose(found.draws[:, 1:], ((tables[0][1] + tables[1][1]) / 2)[:, 1:])
    verdicts = found.table["verdict"].to_numpy().reshape(4, 4)
    assert verdicts[0].tolist() == ["self", "synergy", "conflict", "conflict"]
    quiet = library.evidence([deaf, deaf], [tmp_path, tmp_path]).table["verdict"].to_numpy().reshape(4, 4)
    assert set(quiet[0]) == {"no-signal", "self"}


def test_after_a_trial_what_helped_most_comes_first(tmp_path):
    """Weights lowered the loss by 0.8; a split by 0.3, or it lost to random ones."""
    run = made(TWO_GROUPS)
    found = replace(of_runs([run], [tmp_path]), weights={"a": 0.5, "b": 1.5, "c": 1.0, "d": 1.0})
    split, weights = found.sentences
    assert split.startswith("Split the tasks") and weights.startswith("Weigh the losses")
    for gain, first in ((0.3, [weights, split]), (1.2, [split, weights])):
        trial = tried_out.made(run, found.groups, gain=gain, weights=0.8)
        assert replace(found, trial=trial).sentences == first
    lost = tried_out.made(run, found.groups, gain=-0.5, weights=0.8)
    assert replace(found, trial=lost).sentences == [weights, lost.words] and "withdrawn" in lost.words


def test_weights_that_did_not_help_are_withdrawn(tmp_path):
    run = made(TWO_GROUPS)
    found = replace(of_runs([run], [tmp_path]), weights={"a": 0.5, "b": 1.5, "c": 1.0, "d": 1.0})
    split = found.sentences[0]
    worse, same, better = (tried_out.made(run, found.groups, gain=0.3, weights=gain) for gain in (-0.4, 0, 0.4))
    assert replace(found, trial=worse).sentences == [split, worse.weights_withdrawn]
    told = r"The advised weights of the losses raised the held-out loss \(higher by 0\.40 \[.*\] nats per token than "
    assert re.match(told, worse.weights_withdrawn) and worse.weights_withdrawn.endswith("so they are withdrawn.")
    assert "did not surely lower" in same.weights_withdrawn
    assert better.weights_withdrawn == "" == tried_out.made(run, found.groups, gain=0.3).weights_withdrawn


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A validation whose truth follows the cosine after 10 and after 40 steps, and I less well."""
    run, place = made(MEANS, noise=0.4), tmp_path_factory.mktemp("validations") / "whole"
    return validated.write(place, run, {10: run.matrix("cosine").to_numpy(), 40: run.matrix("cosine").to_numpy()})


def test_the_matrix_is_the_one_that_a_validation_found_best(judged):
    place = judged / "runs" / "step-10"
    run = interference.load(place)
    found = library.evidence([run], [place])
    table = prediction.load_validation(judged).table(parts=False)
    scores = table[table["prediction"].isin(["interference", "cosine"]) & (table["horizon"] == 40)]
    best = scores.loc[scores["value"].idxmax()]
    assert (best["low"] > 0) and found.validated and found.name == best["prediction"]
    assert found.words.startswith(
        f"{best['prediction']}, which the validation beside the run found to rank what training"
    )
    assert "after 40 steps (Spearman within rows " in found.words and found.words.endswith(", pairs)")
    wanted = run.matrix(found.name).to_numpy()
    np.testing.assert_allclose(found.table["value"].to_numpy().reshape(6, 6), wanted)
    assert of_runs([run], [place]).matrix["validated"]


def test_a_validation_that_finds_nothing(tmp_path):
    run = made(MEANS)
    truth = np.random.default_rng(0).normal(size=(6, 6))
    place = validated.write(tmp_path / "v", run, {10: truth}, noise=1.0) / "runs" / "step-10"
    found = library.evidence([interference.load(place)], [place])
    assert not found.validated and found.name == "interference"
    assert found.words == (
        "I over all its blocks; not validated: the validation beside the run did not find any of 2 matrices to rank "
        "what training did"
    )


# --- what cannot be done ---


def test_runs_that_do_not_go_together(tmp_path):
    one = saved(made(TWO_GROUPS), tmp_path / "one")
    with pytest.raises(ScopeError, match="there is no run to advise on; name at least one"):
        interference.advise([])
    other = saved(made(APART), tmp_path / "other")
    with pytest.raises(
        ScopeError, match=r"other has the tasks a, b and c, but .*one has a, b, c and d; name runs of the"
    ):
        interference.advise([one, other])
    elsewhere = saved(made(TWO_GROUPS, ids="s"), tmp_path / "elsewhere")
    with pytest.raises(ScopeError, match=r"one and .*elsewhere cannot be averaged: the runs do not have the same"):
        interference.advise([one, elsewhere])
    lonely = saved(made({"a": axis(1)}), tmp_path / "lonely")
    with pytest.raises(ScopeError, match=r"lonely has one task \(a\), so there is nothing to split; measure two"):
        interference.advise(lonely)
    with pytest.raises(RunError, match="there is no run at "):
        interference.advise(tmp_path / "no")


def test_a_directory_of_something_else(tmp_path):
    one = saved(made(TWO_GROUPS), tmp_path / "run")
    (tmp_path / "run-advice").mkdir()
    (tmp_path / "run-advice" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"notes.txt is not listed as written by interference advise"):
        interference.advise(one)


def test_a_damaged_one_is_not_read(suite, tmp_path):
    interference.advise(suite.run, out=tmp_path / "out")
    file = tmp_path / "out" / "advice.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("east", "EAST", 1))
    with pytest.raises(RunError, match=r"advice.json is damaged: its checksum differs"):
        advice.load(tmp_path / "out")
    with pytest.raises(RunError, match=r"holds no advice: it has no advice.json"):
        advice.load(tmp_path)


def test_a_run_from_a_notebook_is_not_tried(suite, tmp_path):
    """What it probed is not known, so a trial could read it."""
    run = made({task: axis(k + 1) for k, task in enumerate(planted.ANGLES)})
    with pytest.raises(ConfigError, match="was computed from a notebook and does not tell which"):
        interference.advise(saved(run, tmp_path / "run"), suite.asked())
