"""probe.step: adam from a configuration: the state beside the adapter, a named one, none; resumed, told and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from interference import config, load
from interference.errors import ConfigError, RunError
from interference.measurement import plan
from interference.measurement.compute import compute_config
from interference.run import Run, remarks
from interference.run.record import write_meta
from tests.support.checkpoints import data, write_base, write_task
from tests.support.stepped import trained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A base, a Trainer's checkpoint with its optimizer's state, and task files."""
    folder = tmp_path_factory.mktemp("checkpoint")
    _, adapter = trained(folder / "training", steps=3)
    tasks = {name: write_task(folder / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    return write_base(folder / "base"), adapter, tasks


def settings(checkpoint, out, adapter=None, **probe):
    base, own, tasks = checkpoint
    probe = {"step": "adam", "batch_size": 2, **probe}
    return config.build(data(base, adapter or own, tasks, out, **probe), "test")


def without_state(checkpoint, folder):
    shutil.copytree(checkpoint[1], folder, ignore=shutil.ignore_patterns("optimizer.pt"))
    return folder


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    return compute_config(settings(checkpoint, tmp_path_factory.mktemp("out") / "run"))


def test_the_state_beside_the_adapter_is_read(checkpoint, run):
    adam = run.meta["adam"]
    assert (adam["source"], adam["step"]) == (str(checkpoint[1] / "optimizer.pt"), 3)
    assert run.table("delta", space="adam", replicates=50)["value"].notna().all()
    assert not np.allclose(run.matrix(space="adam"), run.matrix())


def test_a_named_state_is_read_and_its_content_counts_alone(checkpoint, run, tmp_path):
    own = without_state(checkpoint, tmp_path / "adapter")
    moved = shutil.copy(checkpoint[1] / "optimizer.pt", tmp_path / "moved.pt")
    named = compute_config(settings(checkpoint, tmp_path / "run", own, optimizer=str(moved)))
    assert (named.gram(space="adam") == run.gram(space="adam")).all()
    assert named.meta["adam"] == {**run.meta["adam"], "source": str(moved)}


def test_without_a_state_it_is_estimated_and_told(checkpoint, run, tmp_path):
    found = compute_config(settings(checkpoint, tmp_path / "run", without_state(checkpoint, tmp_path / "adapter")))
    (said,) = remarks.adam_step(found.meta)
    assert (
        "second moments estimated as the mean of the units' squared gradients, with equal weight for each task" in said
    )
    assert "momentum, weight decay and clipping are left out" in said
    assert found.meta["adam"] == {"source": None} and (found.gram() == run.gram()).all()
    assert not np.allclose(found.matrix(space="adam"), run.matrix(space="adam"))


def interrupted(asked, units=6):
    def stop(stage, done, total):
        if done >= units:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_config(asked, stop)
    return {path.name: path.stat().st_mtime_ns for path in Path(asked.out + ".partial").glob("part-*")}


def test_a_killed_job_continues_to_the_same_run(checkpoint, run, tmp_path):
    asked = settings(checkpoint, tmp_path / "run")
    assert len(interrupted(asked)) >= 3
    again = compute_config(asked)
    assert (again.gram(space="adam") == run.gram(space="adam")).all() and again.meta["measured_again"] == 0
    assert (tmp_path / "run" / "gram.safetensors").read_bytes() == (
        Path(run.meta["config"]["out"]) / "gram.safetensors"
    ).read_bytes()


def test_a_changed_state_is_another_job(checkpoint, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(checkpoint[1], adapter)
    asked = settings(checkpoint, tmp_path / "run", adapter)
    interrupted(asked)
    state = torch.load(adapter / "optimizer.pt", weights_only=True)
    state["state"][0]["exp_avg"].mul_(2)  # momentum is no part of the step
    torch.save(state, adapter / "optimizer.pt")
    interrupted(asked)
    last = max(state["state"])
    for number in range(last + 1):
        state["state"][number]["exp_avg_sq"].mul_(1.001)
    torch.save(state, adapter / "optimizer.pt")
    with pytest.raises(RunError, match=r"optimizer"):
        compute_config(asked)
    (adapter / "optimizer.pt").unlink()
    with pytest.raises(RunError, match=r"optimizer"):
        compute_config(asked)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"step": "sgd"}, "step"),
        ({"step": "gradient", "optimizer": "x.pt"}, "optimizer is named, but only the step of AdamW reads it"),
        ({"step": "adam", "sketch": 32}, "sketch keeps sums of entries, which AdamW's step divides one by one"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(checkpoint, tmp_path, probe, words):
    with pytest.raises(ConfigError, match=words):
        settings(checkpoint, tmp_path / "run", **probe)


def test_a_demanded_state_that_is_not_there_is_refused_before_anything_is_measured(checkpoint, refused, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings(checkpoint, tmp_path / "run", optimizer=str(tmp_path / "no.pt")).model_dump()))
    for command in ("compute", "plan"):
        said = refused(command, path, out=tmp_path / "run")
        assert said.startswith(f"there is no optimizer's state at {tmp_path / 'no.pt'}; name the state that was saved")


def test_the_command_tells_and_shows_the_step(checkpoint, interference, tmp_path):
    base, adapter, tasks = checkpoint
    given = [part for name, file in tasks.items() for part in ("--task", f"{name}={file}")]
    given += [
        "--base",
        base,
        "--adapter",
        adapter,
        "--samples",
        "6",
        "--set",
        "probe.step=adam",
        "--out",
        tmp_path / "r",
    ]
    said = interference("compute", *given)
    note = f"the second moments in {adapter / 'optimizer.pt'} after 3 steps; momentum, weight decay and clipping are"
    assert said.code == 0 and "note: the run also has AdamW's step (space adam)" in said.err and note in said.err
    shown = interference("show", tmp_path / "r", "--space", "adam", "--metric", "delta", "--json")
    run = load(tmp_path / "r")
    values = [row["value"] for row in json.loads(shown.out)]
    np.testing.assert_allclose(values, run.table("delta", space="adam")["value"])
    told = " ".join(interference("show", tmp_path / "r", "--space", "adam").out.split())
    assert "space adam" in told and "note: the run also has AdamW's step" in told
    for space, notes in (("adam", 1), ("parameters", 0)):
        compared = interference("compare", tmp_path / "r", tmp_path / "r", "--space", space)
        assert compared.code == 0 and " ".join(compared.out.split()).count("note: the run also has AdamW's") == notes


def test_a_run_without_the_step_says_how_to_get_it(refused, run_dir):
    said = refused("show", run_dir, "--space", "adam")
    assert said == "this run has no Gram of AdamW's step; compute it again with probe.step: adam"


def test_a_damaged_step_is_refused_by_its_file(run, tmp_path):
    plain = Run(run.probes, run.blocks, run._grams, {**run.meta, "adam": None})
    plain.save(tmp_path / "run")
    assert not load(tmp_path / "run").meta["adam"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record.pop("seal")
    write_meta(tmp_path / "run" / "run.json", {**record, "adam": run.meta["adam"]})
    with pytest.raises(RunError, match=r"gram\.safetensors is damaged: it lacks block .* adam"):
        load(tmp_path / "run")


def test_the_plan_counts_both_matrices(checkpoint, tmp_path):
    one = plan.plan(settings(checkpoint, tmp_path / "run", step="gradient"))
    both = plan.plan(settings(checkpoint, tmp_path / "run"))
    blocks, units = one.blocks, one.units
    assert both.stored - one.stored == 4 * blocks * (units * (units + 1) // 2 + units)
    assert both.stored == sum(v.nbytes for v in compute_config(settings(checkpoint, tmp_path / "run"))._grams.values())


def test_entries_that_were_hardly_trained_are_told():
    meta = {"adam": {"source": "x/optimizer.pt", "step": 1, "cold": 0.42}}
    said = remarks.adam_step(meta)
    assert len(said) == 2 and said[1].startswith("42% of the squared length of AdamW's steps lies in entries that have")
    assert len(remarks.adam_step({"adam": {**meta["adam"], "cold": 0.05}})) == 1
    assert remarks.adam_step({}) == [] and remarks.adam_step({"adam": None}) == []
