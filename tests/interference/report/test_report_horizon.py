"""A run's I beside what real steps did: agreement, words, tables, and lookaheads that are not of the run."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interference import prediction
from interference.prediction.horizons import beside
from interference.report import data, directory, tables
from interference.report.html.render import render
from interference.statistics.agreement import agreement
from tests.support.reported import APART, TWO_GROUPS, made

KNOWN = {"fingerprints": {"model": "0" * 32}}
FEW = {"detail": "small", "replicates": 50}


def ahead(run, steps=(1, 5), noise=0.0, meta=KNOWN):
    """A lookahead whose falls are the run's I after the first number of steps, and turned round after the last."""
    rng = np.random.default_rng(0)
    tasks, matrix = run.tasks, run.matrix("interference").to_numpy()
    frame = pd.DataFrame({"task": np.repeat(tasks, 10), "id": [f"x{k}" for k in range(10 * len(tasks))]})
    frame = frame.assign(source="a.jsonl:1", group=range(len(frame)), tokens=3, loss=4.0)
    falls = np.repeat(matrix.T, 10, axis=1)  # [stepped, examples]
    turned = np.repeat((2 * np.eye(len(tasks)) - matrix).T, 10, axis=1)
    fallen = np.stack([falls, turned], axis=1)[None] + noise * rng.normal(size=(2, len(tasks), 2, len(frame)))
    recipe = {"learning_rate": 0.01, "batch_size": 8, "weight_decay": 0, "max_grad_norm": 1, "of": "runs/lora"}
    known = {"steps": list(steps), "seeds": [0, 1], "recipe": recipe, "trained_on": {}, "seed": 0}
    return prediction.Lookahead(frame, 4.0 - fallen, {**known, **meta})


def test_agreement_with_what_steps_did():
    run = made(TWO_GROUPS)
    (found,) = data.report({"lora": run}, ahead={"lora": ahead(run)}, **FEW, examples=False).horizons
    assert found["tasks"] == list("abcd") and [point["steps"] for point in found["points"]] == [1, 5]
    near, far = found["points"]
    assert near["within"] == pytest.approx(1) and near["overall"] == pytest.approx(1)
    assert far["within"] == pytest.approx(-1) and far["overall"] == pytest.approx(-1)
    assert near["conflict"] + near["synergy"] + near["unclear"] + near["no-signal"] == 12
    assert found["words"] == (
        "Within rows, I ranks the tasks as real steps along them do with a Spearman correlation of 1.00 after 1 step "
        "and of -1.00 after 5 (12 pairs of tasks, 4 rows). 1 is the same order, 0 none."
    )
    assert found["recipe"] == (
        "Each branch trains on one task alone, 2 seeds of it: AdamW without a state, a constant rate of 0.01, batches "
        "of 8 examples."
    )


def test_the_matrices_are_those_of_the_lookahead():
    run = made(APART)
    given = ahead(run, noise=0.3)
    (found,) = data.report({"lora": run}, ahead={"lora": given}, detail="small", replicates=50, examples=False).horizons
    for shown in found["matrices"]:
        table = given.table("interference", shown["steps"])
        for name in ("value", "low", "high"):
            values = [cell[name] for row in shown["rows"] for cell in row]
            np.testing.assert_allclose(values, table[name])
    matrix = given.matrix(steps=5).to_numpy()
    agreed = agreement(run.matrix("interference").to_numpy(), matrix)
    assert found["points"][1]["overall"] == pytest.approx(agreed.overall)


def test_two_tasks_are_too_few_to_rank():
    run = made({name: APART[name] for name in "ab"})
    (found,) = data.report({"lora": run}, ahead={"lora": ahead(run)}, **FEW, examples=False).horizons
    assert found["points"][0]["within"] is None
    assert found["words"] == "2 pairs of tasks are too few to say whether I ranks what real steps do."


def test_the_table_and_the_page_have_every_cell():
    run = made(TWO_GROUPS)
    report = data.report({"lora": run, "other": made(TWO_GROUPS, seed=1)}, ahead={"lora": ahead(run)}, **FEW)
    rows = list(csv.DictReader(io.StringIO(tables.render(report)["lookahead.csv"].decode("utf-8-sig"))))
    assert len(rows) == 2 * 16 and rows[1].keys() >= {"run", "steps", "affected", "stepped", "value", "verdict"}
    assert (rows[1]["run"], rows[1]["steps"], rows[1]["affected"], rows[1]["stepped"]) == ("lora", "1", "a", "b")
    page = render(report.to_json())
    assert "How far does the first order hold?" in page and "Interference after 5 real steps" in page
    assert page.count('<details class="reached" open>\n<summary>Interference after') == 2
    assert "\N{MINUS SIGN}1.00" in page
    without = data.report({"lora": run}, **FEW)
    assert without.horizons == [] and "How far does the first order hold?" not in render(without.to_json())
    assert "lookahead.csv" not in tables.render(without)


def test_a_lookahead_beside_a_run_is_found(tmp_path):
    run = made(APART, meta=KNOWN)
    run.save(tmp_path / "run")
    assert beside(tmp_path / "run", run) == (None, "")
    ahead(run).save(tmp_path / "run-lookahead")
    found, words = beside(tmp_path / "run", run)
    assert found.steps == [1, 5] and words == ""
    directory.write([tmp_path / "run"], None, tmp_path / "report", "small", examples=False)
    assert (tmp_path / "report" / "tables" / "lookahead.csv").is_file()
    assert "How far does the first order hold?" in (tmp_path / "report" / "report.html").read_text()


def test_a_run_is_named_from_within(tmp_path, monkeypatch):
    run = made(APART, meta=KNOWN)
    run.save(tmp_path / "run")
    ahead(run).save(tmp_path / "run-lookahead")
    monkeypatch.chdir(tmp_path / "run")
    assert beside(Path(), run)[0].steps == [1, 5]


def test_one_of_another_checkpoint_is_told_and_not_shown(tmp_path):
    run = made(APART, meta=KNOWN)
    ahead(run, meta={"fingerprints": {"model": "1" * 32}}).save(tmp_path / "run-lookahead")
    found, words = beside(tmp_path / "run", run)
    assert found is None
    assert words == f"The lookahead in {tmp_path / 'run-lookahead'} is not shown: it is of another checkpoint"
    (tmp_path / "run-lookahead" / "losses.safetensors").write_bytes(b"")
    found, words = beside(tmp_path / "run", run)
    assert found is None and words.startswith("The lookahead beside it is not shown: ") and "is damaged" in words
