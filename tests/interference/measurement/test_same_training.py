"""A trainer of TRL as it is, and what it saved beside files of the same records, are measured alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import interference
from interference import config
from interference.measurement.compute import compute_config
from interference.verification.verify import verify_config
from tests.interference.measurement.test_trainer import TASKS, records, talkative, tuned
from tests.support.checkpoints import CHATML
from tests.support.small_processors import byte_level

torch.set_num_threads(1)
FORMS = {
    "messages": ({"assistant_only_loss": True}, {}),
    "messages, all": ({}, {"loss_on": "everything"}),
    "completion": ({"completion_only_loss": True}, {}),
    "text": ({}, {}),
}


def files(folder: Path, form: str) -> dict[str, Path]:
    """The rows of each task as a file; the id of a record is its row's number."""
    found = {}
    for task in TASKS:
        rows = [
            {key: value for key, value in row.items() if key != "task"} | {"id": str(k)}
            for k, row in enumerate(records(form)) if row["task"] == task
        ]  # fmt: skip
        found[task] = folder / f"{task}.jsonl"
        found[task].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_run_of_the_files_is_that_of_the_trainer(tmp_path, form):
    kind, (options, of_task) = form.partition(",")[0], FORMS[form]
    trainer = tuned(tmp_path / "trainer", form=kind, **options)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    talkative().save_pretrained(tmp_path / "base")
    other = byte_level()
    other.chat_template = CHATML  # not the one that the adapter was trained with
    other.save_pretrained(tmp_path / "base")
    expected = interference.from_trainer(trainer, by="task", samples=50)
    tasks = {name: {"file": str(file), **of_task} for name, file in files(tmp_path, kind).items()}
    values = {
        "model": {"base": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter"), "device": "cpu"},
        "tasks": tasks,
        "out": str(tmp_path / "run"),
    }
    run = compute_config(config.build(values, "test"))
    order = [list(run.probes["ids"]).index(one) for one in expected.probes["ids"]]
    assert list(run.probes["task"].iloc[order]) == list(expected.probes["task"])
    np.testing.assert_allclose(run.probes["loss"].iloc[order], expected.probes["loss"], rtol=1e-6)
    scale = np.abs(expected.gram()).max()
    np.testing.assert_allclose(run.gram()[np.ix_(order, order)] / scale, expected.gram() / scale, atol=1e-6)
    assert run.meta["data"]["template"]["source"] == f"the adapter's ({tmp_path / 'adapter'})"
    assert verify_config(run).passed
