"""What a page and `show` say of a validation: whose run it judges, the answer in words, and the page's tables."""

import numpy as np
import pytest

import interference
from interference import prediction
from interference.prediction import holding
from interference.report import data, directory
from interference.report.html.render import render
from tests.support import validated
from tests.support.reported import axis, made

MEANS = {
    "a": axis(1, 2), "b": axis(1, 2, 3), "c": axis(1, 4, 5), "d": axis(-1, 4), "e": axis(-1, 2, 6), "f": axis(-1, -2),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The validation of a run whose I ranks what training did after 10 steps, and knows nothing of it after 40."""
    run, place = made(MEANS), tmp_path_factory.mktemp("validations") / "whole"
    truth = run.matrix("interference").to_numpy()
    return validated.write(place, run, {10: truth, 40: np.random.default_rng(5).permuted(truth, axis=1)}, (10, 20))


def run_of(place, step=10):
    path = place / "runs" / f"step-{step}"
    return path, interference.load(path)


def test_a_run_finds_the_validation_that_it_is_a_checkpoint_of(place):
    path, run = run_of(place, 20)
    found, step, why = holding.beside(path, run)
    assert found.outcomes.tasks == list("abcdef") and step == 20 and why == ""


def test_a_run_elsewhere_finds_the_one_beside_it(place, tmp_path):
    _, run = run_of(place, 20)
    run.save(tmp_path / "mine")
    (tmp_path / "mine-validation").symlink_to(place)
    assert holding.beside(tmp_path / "mine", run)[1] == 20
    run.meta["fingerprints"] = {"model": "f" * 32}
    assert holding.words(tmp_path / "mine", run) == [
        f"the validation in {tmp_path / 'mine-validation'} is not shown: this run is of another checkpoint, or of "
        "other examples or blocks"
    ]
    assert holding.words(tmp_path / "other", run) == []


def test_a_run_of_other_examples_or_blocks_is_not_judged(place, tmp_path):
    _, run = run_of(place, 20)
    (tmp_path / "mine-validation").symlink_to(place)
    for meta in ({"data": {"fingerprint": "0" * 32}}, {"config": {"probe": {"layers": [3]}}}):
        other = interference.load(place / "runs" / "step-20")
        other.meta.update(meta)
        assert "is not shown: this run is of another checkpoint" in holding.words(tmp_path / "mine", other)[0]
    fewer = made({name: MEANS[name] for name in "abc"}, meta=dict(run.meta))
    assert "is not shown" in holding.words(tmp_path / "mine", fewer)[0]


def test_a_damaged_validation_is_told(place, tmp_path):
    _, run = run_of(place)
    (tmp_path / "mine-validation").mkdir()
    (tmp_path / "mine-validation" / "validation.json").write_text("{")
    (said,) = holding.words(tmp_path / "mine", run)
    assert said.startswith("the validation beside it is not shown: ") and "holds no validation" in said


def test_the_answer_names_the_horizons_that_hold(place):
    (said,) = holding.words(*run_of(place))
    found = prediction.load_validation(place)
    table = found.prediction("interference", 10)
    near, far = (table[table["horizon"] == horizon].iloc[0] for horizon in (10, 40))
    assert near["low"] > 0.5 and far["low"] < 0
    ceilings = found.ceilings().query("score == 'spearman_within'")["ceiling"].tolist()
    assert said == (
        "I over all its blocks was found to rank what training did after 10 steps (truth by pairs; Spearman within "
        f"rows after 10 steps {near['value']:.2f} [{near['low']:.2f}, {near['high']:.2f}], ceiling {ceilings[0]:.2f}; "
        f"40 steps {far['value']:.2f} [{far['low']:.2f}, {far['high']:.2f}], ceiling {ceilings[1]:.2f})"
    )


def test_a_matrix_that_ranks_nothing(tmp_path):
    run = made(MEANS)
    place = validated.write(tmp_path / "v", run, {10: -run.matrix("interference").to_numpy()})
    assert holding.words(*run_of(place))[0].startswith(
        "I over all its blocks was not found to rank what training did ("
    )


def test_too_few_tasks(tmp_path):
    run = made({name: MEANS[name] for name in "abcd"})
    place = validated.write(tmp_path / "v", run, {10: run.matrix("interference").to_numpy()})
    (said,) = holding.words(*run_of(place))
    assert said.startswith("tasks or seeds are too few to say whether I ranks what training did (truth by pairs")
    assert "[no interval]" in said


def test_the_page_has_each_prediction_at_the_runs_step(place):
    _, run = run_of(place)
    found = prediction.load_validation(place)
    made_of = data.report({"lora": run}, judged={"lora": (found, 10)}, detail="small", replicates=100, examples=False)
    (shown,) = made_of.validations
    assert shown["step"] == 10 and shown["horizons"] == [10, 40]
    (truth,) = shown["truths"]
    table = found.table().query("step == 10").set_index(["prediction", "horizon"])
    assert {row["name"] for row in truth["rows"]} >= {"interference", "delta", "cosine", "progress", "smallness"}
    assert not any("in layer" in row["name"] for row in truth["rows"])
    for row in truth["rows"]:
        for cell, horizon in zip(row["cells"], (10, 40), strict=True):
            wanted = table.loc[(row["name"], horizon)]
            for name in ("value", "low", "high"):
                assert cell[name] == (None if np.isnan(wanted[name]) else pytest.approx(wanted[name]))
    assert truth["counts"][0]["hurt"] > 0 and truth["words"].startswith("I over all its blocks was found to rank what")
    assert shown["recipe"] == (
        "Truth: 63 trainings (3 seeds) with 8 examples of each task in a step. Predictions: of the checkpoint at step "
        "10, with other seeds. What is read was neither probed nor trained on by them."
    )
    html = render(made_of.to_json())
    assert "Does it predict?" in html and "Spearman within rows, by steps of training (pairs)" in html


def test_a_report_of_a_checkpoint_has_it(place, tmp_path):
    directory.write([run_of(place)[0]], None, tmp_path / "page", "small", examples=False)
    html = (tmp_path / "page" / "report.html").read_text()
    assert (
        'href="#predict"' in html and "I over all its blocks was found to rank what training did after 10 steps" in html
    )
