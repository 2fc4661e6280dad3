"""What a page and `show` say of a trial: whose run it is of, what stands in place of the advice, and when it is taken
back.
"""

import pandas as pd
import pytest

import interference
from interference.advice import tried
from interference.report import data, directory
from interference.report.html.render import render
from tests.support import tried_out
from tests.support.reported import TWO_GROUPS, made

GROUPS = [["a", "b"], ["c", "d"]]
BARE = "Split the tasks, with one adapter for each group: a and b; c and d."


@pytest.fixture
def run():
    return made(TWO_GROUPS, meta={"fingerprints": {"model": "a" * 32}})


def page(run, trial=None):
    return data.report({"r": run}, "small", replicates=200, tried={} if trial is None else {"r": trial})


def test_without_a_trial_there_is_the_bare_advice(run):
    found = page(run)
    assert found.advice[0] == BARE and found.trials == []


def test_where_groups_win_the_outcome_stands_in_place_of_the_advice(run):
    trial = tried_out.made(run, GROUPS, gain=0.5)
    found = page(run, trial)
    assert BARE not in found.advice and trial.outcome.helps
    assert found.advice[:2] == [trial.words, trial.best]
    assert trial.words.startswith(
        "The advised groups beat all 2 other splits into groups of the same sizes: their held"
    )
    assert trial.best.startswith(
        "The lowest held-out loss that is surely below that of all tasks together is that of: ad"
    )
    assert "withdrawn" not in found.runs[0]["grouping"]["words"]
    (shown,) = found.trials
    assert [row["arm"] for row in shown["rows"]] == [*trial.arms, "random groups, mean"]
    assert shown["rows"][1]["groups"] == GROUPS
    table = trial.table().set_index("arm")
    own = shown["rows"][1]["against_random"]
    assert own["value"] == table.loc["advised groups", "against_random"] == pytest.approx(0.5, abs=0.05)
    assert shown["rows"][0]["against_together"] == {"value": None, "low": None, "high": None}
    assert set(shown["rows"][0]["tasks"]) == set("abcd")


@pytest.mark.parametrize(("gain", "verb"), [(-0.5, "lost to"), (0.0, "did not surely beat")])
def test_where_groups_do_not_win_the_split_is_withdrawn(run, gain, verb):
    trial = tried_out.made(run, GROUPS, gain=gain)
    found = page(run, trial)
    words = f"The advised groups {verb} all 2 other splits into groups of the same sizes (held-out loss "
    assert BARE not in found.advice and found.advice[0] == trial.words
    assert trial.words.startswith(words) and trial.words.endswith(" nats per token), so the split is withdrawn.")
    assert "(held-out loss higher by 0." in trial.words or gain == 0
    assert found.advice[1] == "No way to train them is surely better than to train all tasks together."
    assert found.runs[0]["grouping"]["words"].endswith(trial.words)


def test_a_trial_without_random_groups(run):
    """No split was advised; or there is no other one of the same sizes."""
    none = tried_out.made(run, [], gain=0)
    assert none.outcome is None and page(run, none).advice[0] == none.words
    assert none.words == "No split was advised, so none was compared with random ones."
    single = tried_out.made(run, [["a"], ["b"], ["c"], ["d"]], gain=0)
    assert single.words.startswith("There is no other split into groups of the same sizes that the advised one could")
    assert single.table()["against_random"].isna().all()


def test_a_run_finds_the_trial_beside_it(run, tmp_path):
    trial = tried_out.made(run, GROUPS, gain=0.5)
    place = tried_out.beside(run, tmp_path / "run", trial)
    found, why = tried.beside(place, run)
    pd.testing.assert_frame_equal(found.table(), trial.table())
    assert why == "" and tried.words(place, run) == [f"a trial of its advice: {trial.words.rstrip('.')}"]
    assert tried.words(tmp_path / "other", run) == []
    run.meta["fingerprints"] = {"model": "b" * 32}
    assert tried.words(place, run) == [
        f"the trial in {tmp_path / 'run-advice-trial'} is not shown: it is of another checkpoint, or of other examples "
        "or blocks"
    ]
    (tmp_path / "run-advice-trial" / "losses.safetensors").write_bytes(b"")
    assert tried.words(place, run)[0].startswith("the trial beside it is not shown: ")


def test_the_page_on_disk(run, tmp_path):
    trial = tried_out.made(run, GROUPS, gain=0.5)
    place = tried_out.beside(run, tmp_path / "run", trial)
    directory.write([place], ["mine"], tmp_path / "page", "small")
    html = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "What trainings did" in html and "random groups, mean" in html
    sheet = pd.read_csv(tmp_path / "page" / "tables" / "trial.csv")
    assert list(sheet["arm"]) == [*trial.arms, "random groups, mean"]
    assert sheet["loss: a"].tolist() == pytest.approx(trial.table("a")["loss"].tolist())
    assert interference.load(place).tasks == list("abcd")


def test_a_trial_of_another_run_is_told(run, tmp_path):
    trial = tried_out.made(made(TWO_GROUPS, meta={"fingerprints": {"model": "c" * 32}}), GROUPS, gain=0.5)
    place = tried_out.beside(run, tmp_path / "run", trial)
    directory.write([place], ["mine"], tmp_path / "page", "small")
    html = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "What trainings did" not in html and "is not shown: it is of another checkpoint" in html


def test_names_of_tasks_are_text(run):
    names = {"<b>a</b>": TWO_GROUPS["a"], "b&b": TWO_GROUPS["b"], "c": TWO_GROUPS["c"], "d": TWO_GROUPS["d"]}
    strange = made(names, meta={"fingerprints": {"model": "a" * 32}})
    trial = tried_out.made(strange, [["<b>a</b>", "b&b"], ["c", "d"]], gain=0.5)
    html = render(page(strange, trial).to_json())
    assert "<b>a</b>" not in html.replace("\\u003cb\\u003e", "")
