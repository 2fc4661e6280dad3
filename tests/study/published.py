"""What is published of a suite: its tables as CSV, the figure, and the page of a checkpoint."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from interference import figures
from interference.advice import load_trial
from interference.prediction import Validation, load_validation
from interference.statistics.ranking import SCORES
from tests.support.paths import ROOT

PAGE = 20
"""The step of the checkpoint on the page: half way."""


def write(validation: Path, out: Path) -> None:
    """Write `scores.csv`, `ceilings.csv`, `truth.csv`, `validation.png`, `report.html`, and `trial.csv` of a trial.

    Args:
        validation: as `interference validate` left it.
        out: the folder, which is made.
    """
    found = load_validation(validation)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables(found).items():
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
    figures.save(figures.validation(found), out, "validation", ("png",))
    for trial in validation.glob("runs/step-*-trial"):
        tried = load_trial(trial)
        frame = pd.concat([tried.table().assign(task="mean"), tried.by_task()], ignore_index=True)
        frame.to_csv(out / "trial.csv", index=False, float_format="%.4g")
    run = str(validation / "runs" / f"step-{PAGE}")
    report = [sys.executable, "-m", "interference.cli", "report", run, "--detail", "small", "--quiet"]
    label = f"--label={out.name}, step {PAGE}"
    subprocess.run([*report, label, "--out", str(validation / "page")], check=True)
    page = (validation / "page" / "report.html").read_text(encoding="utf-8")
    for folder in (validation.parent, ROOT):  # of this machine
        page = page.replace(f"{folder}/", "")
    (out / "report.html").write_text(page, encoding="utf-8")


def tables(found: Validation) -> dict[str, pd.DataFrame]:
    """The tables of a validation, by file name.

    Args:
        found: the validation.
    """
    scores = pd.concat([found.table(score).assign(score=score) for score in SCORES], ignore_index=True)
    truth = pd.concat([found.truth(kind).assign(truth=str(kind)) for kind in found.outcomes.kinds], ignore_index=True)
    return {"scores": scores, "ceilings": found.ceilings(None), "truth": truth}
