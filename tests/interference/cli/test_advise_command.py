"""interference advise: what it prints and writes, its trial, what that takes, and what it refuses."""

import json
import shutil

import pytest
import yaml

from interference import advice
from interference.advice import tried
from interference.branching.branches import Branches
from tests.support.reported import APART, TWO_GROUPS, made


@pytest.fixture(scope="module")
def trial(suite, tmp_path_factory):
    """The configuration of a small trial."""
    path = tmp_path_factory.mktemp("trial") / "trial.yaml"
    asked = suite.asked(steps=6).model_dump(mode="json", exclude_none=True)
    path.write_text(yaml.safe_dump(asked), encoding="utf-8")
    return path


@pytest.fixture
def done(interference, suite, trial):
    """The directory of a run whose advice was tried, made once."""
    place = trial.with_name("run")
    if not place.exists():
        shutil.copytree(suite.run, place)
        said = interference("advise", place, "--train", trial, "--quiet")
        assert said.code == 0, said.err
    return place


def flat(text):
    return " ".join(text.split())


def test_it_prints_groups_and_why(interference, suite, tmp_path):
    said = interference("advise", suite.run, "--out", tmp_path / "out")
    words = flat(said.out)
    assert said.code == 0 and words.startswith("by I over all its blocks; not validated: there is no validation beside")
    assert "1. Split the tasks, with one adapter for each group: east, northeast and southeast; west, " in words
    assert "18 of the 18 pairs between them conflict beyond noise, and 0 within them. Resamples find the same" in words
    assert f"configurations: {tmp_path / 'out' / 'group-1.yaml'}, " in words
    assert said.out.splitlines()[-1].startswith("Advice(6 tasks; east, ") and f" in {tmp_path / 'out'}" in said.out
    assert said.err == (
        f"next: mixlora train {tmp_path / 'out' / 'group-1.yaml'} follows the first of these configurations; --train "
        "tries first whether the advice helps\n"
    )


def test_nothing_is_supported(interference, tmp_path):
    made(APART).save(tmp_path / "run")
    said = interference("advise", tmp_path / "run")
    assert said.code == 0 and "1. " not in said.out
    assert "No split is supported by this run: no pair of tasks conflicts beyond noise." in flat(said.out)
    assert said.err == f"next: interference report {tmp_path / 'run'}\n"


def test_a_run_of_no_known_training(interference, tmp_path):
    made(TWO_GROUPS).save(tmp_path / "run")
    said = interference("advise", tmp_path / "run", "--quiet")
    assert "no configuration is written: the run is not of a `mixlora train`, whose record would" in flat(said.out)
    assert said.err == ""


def test_json_has_everything(interference, done, trial):
    said = interference("advise", done, "--train", trial, "--json", "--quiet")
    told = json.loads(said.out)
    assert said.code == 0 and told["grouping"]["stability"]["2"] > 0.9 and told["matrix"]["name"] == "interference"
    found = advice.load_trial(done.with_name("run-advice-trial"))
    assert len(told["trial"]["arms"]) == len(found.arms) + 1 and len(told["trial"]["tasks"]) == 6 * len(found.table())
    assert told["trial"]["words"][0] == found.words
    bare = json.loads(interference("advise", done, "--json").out)
    assert "trial" not in bare and bare["sentences"][0].startswith("Split the tasks, with one adapter for each group")
    assert told["sentences"][0] == found.words and "withdrawn" in found.words  # after 6 steps


def test_a_trial_prints_every_arm(interference, done, trial, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = interference("advise", done, "--train", trial)
    words = flat(said.out)
    assert "every arm takes 6 steps of 12 examples in all, with 2 seeds from 2000 on; 4 held-out examples" in words
    for arm in (
        "together",
        "together, upgrad",
        "advised groups",
        "random groups 1",
        "specialists",
        "together, 2 times the rank",
        "mixlora",
    ):
        assert f"│ {arm} " in said.out, arm
    assert "held-out loss by task" in words and "2 random splits into groups of the same sizes" in words
    assert "The MixLoRA has 64 parameters of factors, as many as the LoRA with more ranks, and 128 of routers" in words
    assert said.err == f"next: interference report {done} shows the trial on the page of the run\n"


def test_show_says_what_came_of_it(interference, done):
    found = advice.load_trial(done.with_name("run-advice-trial"))
    assert f"note: a trial of its advice: {found.words.rstrip('.')}" in interference("show", done).out


def test_a_plan_says_what_it_takes(interference, trial):
    said = interference("plan", trial, "--no-time")
    assert (
        "trial: with two groups 8 arms of 6 steps, 2 seeds, each step of 12 examples; 32 readings of 24 held-out "
        "examples" in flat(said.out)
    )
    told = json.loads(interference("plan", trial, "--json").out)["trial"]
    assert told["seconds"] == pytest.approx(2 * 8 * 6 * told["step_seconds"] + 32 * told["reading_seconds"])
    assert told["seconds"] > 0


def test_ctrl_c_keeps_what_is_finished(interference, suite, trial, tmp_path, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(Branches, "along", interrupt)
    said = interference("advise", suite.run, "--train", trial, "--out", tmp_path / "out", "--quiet")
    assert said.code == 130
    assert said.err == (
        f"interrupted: finished trainings are kept beside {tried.place_of(tmp_path / 'out')}; the same command "
        "continues\n"
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("steps=7", "trial.steps is 7, but must be a multiple of the 6 tasks"),
        ("seed=1000", "trial.seed: 1000 is also a seed of validation.seed; choose others"),
        ("random=1", "trial.random: Input should be greater than or equal to 2"),
        ("seconds=1", "unknown key 'trial.seconds'"),
    ],
)
def test_what_it_refuses(refused, suite, trial, tmp_path, setting, words):
    out = tmp_path / "out"
    assert words in refused("advise", suite.run, "--train", trial, "--quiet", "--out", out, "--set", f"trial.{setting}")
    assert not tried.place_of(out).exists()


def test_settings_without_a_trial(refused, suite, tmp_path):
    words = "--set changes the configuration of a trial, but there is none; add --train, or drop --set"
    assert words in refused("advise", suite.run, "--set", "trial.steps=6", out=tmp_path / "out")


def test_no_such_run(refused, tmp_path):
    assert refused("advise", tmp_path / "no") == f"there is no run at {tmp_path / 'no'}"
