"""From a configuration to a lookahead on disk: its losses, its tables, a killed one, a changed one, a damaged one."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

import interference
from interference import config, prediction
from interference.branching.branches import Branches
from interference.errors import BusyError, ConfigError, MeasurementError, RunError, ScopeError
from interference.measurement import checkpoint
from interference.prediction import lookahead as library
from mixlora.common.locks import locked
from tests.support.checkpoints import write_adapter, write_task
from tests.support.killing import files, kill_until_done
from tests.support.mixtures import mixture
from tests.support.starts import ASKED, RECIPE, Start

FILES = ["examples.parquet", "lookahead.json", "losses.safetensors"]


@pytest.fixture(scope="module")
def place(start, tmp_path_factory):
    """The directory of a lookahead that no test changes."""
    out = tmp_path_factory.mktemp("lookaheads") / "whole"
    interference.lookahead(start.config(), out)
    return out


@pytest.fixture(scope="module")
def found(place):
    return prediction.load(place)


def copied(place, tmp_path):
    return shutil.copytree(place, tmp_path / "copy")


def test_losses_before_are_those_of_the_checkpoint(start, found):
    """Against the model's own loss of one example at a time."""
    job = start.job()
    model = checkpoint.load_model(job.config.model)
    for row, unit in zip(found.examples.to_dict("records"), job.pools.held_out.units, strict=True):
        batch = job.pools.collator.collate(list(unit.examples))
        with torch.no_grad():
            assert row["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)
        assert (row["task"], row["id"], row["tokens"]) == (unit.task, unit.examples[0].id, unit.examples[0].supervised)


def test_the_matrix_is_of_plain_means(found):
    before, tasks = found.examples["loss"].to_numpy(), found.examples["task"].to_numpy()
    for at, steps in enumerate(found.steps):
        fallen = (before - found.losses[:, :, at]).mean(axis=0)
        delta = [[fallen[j, tasks == task].mean() for j in range(2)] for task in found.tasks]
        np.testing.assert_allclose(found.matrix("delta", steps), delta)
        own = np.diagonal(delta)[:, None]
        np.testing.assert_allclose(found.matrix(steps=steps), np.array(delta) / own)
    assert found.matrix("delta").loc["red", "red"] > found.matrix("delta", 1).loc["red", "red"] > 0
    assert found.matrix().index.name == "affected" and found.matrix().columns.name == "stepped"


def test_the_table_has_a_row_a_cell_and_number_of_steps(found):
    table = found.table("delta")
    assert table.columns.tolist() == ["steps", "affected", "stepped", "value", "low", "high", "p", "q", "verdict"]
    assert table["steps"].tolist() == [1] * 4 + [2] * 4 + [5] * 4
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    one = found.table("delta", 2)
    assert one.equals(table[table["steps"] == 2].reset_index(drop=True))
    assert (found.table("delta", 2, level=0.5)["high"] < one["high"]).all()
    with pytest.raises(ScopeError, match="losses were read after 1, 2, 5 steps, not after 3"):
        found.table(steps=3)


def test_branches_are_rows_of_losses(found):
    rows = found.branches()
    assert len(rows) == found.losses.size == 2 * 2 * 3 * 20
    one = rows[(rows["seed"] == 1) & (rows["stepped"] == "blue") & (rows["steps"] == 5)]
    np.testing.assert_array_equal(one["loss"], found.losses[1, 1, 2])
    assert one["affected"].tolist() == ["red"] * 10 + ["blue"] * 10 and one["id"].equals(one["id"])
    own = rows.assign(fall=rows["before"] - rows["loss"]).groupby(["steps", "affected", "stepped"], sort=False)["fall"]
    assert own.mean()[5, "red", "blue"] == pytest.approx(found.matrix("delta").loc["red", "blue"])


def test_it_says_how_it_came_about(start, place, found):
    assert sorted(path.name for path in place.iterdir()) == FILES
    meta = json.loads((place / "lookahead.json").read_text())
    assert (
        meta["steps"] == [1, 2, 5] and meta["seeds"] == [0, 1] and meta["schema"] == 1 and meta["adapter"] == "default"
    )
    assert meta["recipe"]["batch_size"] == 8 and meta["recipe"]["learning_rate"] == 0.01
    assert meta["config"]["lookahead"]["held_out"] == 10
    assert meta["config"]["tasks"]["red"]["file"] == str(start.tasks["red"].resolve())
    assert repr(found) == "Lookahead(2 seeds; 1, 2, 5 steps; 20 examples: red 10, blue 10)"


def test_the_checkpoint_is_not_touched(start, place):
    before = files(start.adapter)
    interference.lookahead(start.config(steps=[1]), place.parent / "other")
    assert files(start.adapter) == before


def test_it_is_asked_for_by_a_file_and_settings(start, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(start.data(tmp_path / "run")))
    found = interference.lookahead(tmp_path / "c.yaml", settings=["lookahead.steps=[1]"])
    assert found.steps == [1] and (tmp_path / "run-lookahead" / "lookahead.json").is_file()
    with pytest.raises(ConfigError, match="there is no directory for the lookahead; give --out, or out: of the run"):
        interference.lookahead(start.config())


@pytest.mark.parametrize("kind", ["lora", "mixture"])
def test_a_second_one_is_the_same(start, tmp_path, kind):
    own = start if kind == "lora" else Start(start.base, write_adapter(tmp_path / "adapter", mixture()), start.tasks)
    one, other = (interference.lookahead(own.config(steps=[1, 3]), tmp_path / name) for name in ("one", "other"))
    assert np.array_equal(one.losses, other.losses) and one.examples.equals(other.examples)
    assert len(np.unique(one.losses[:, :, -1].reshape(4, -1).round(9), axis=0)) == 4  # every branch is another


def test_the_batch_size_of_readings_does_not_matter(start, tmp_path, found):
    values = start.data()
    values["probe"]["batch_size"] = 1
    other = interference.lookahead(config.build(values, "test"), tmp_path / "one")
    np.testing.assert_allclose(other.losses, found.losses, rtol=1e-5)


# --- interrupted ---


def work(given):
    torch.set_num_threads(1)
    values, out = given
    with pytest.raises(RunError, match="already holds a lookahead") if out.exists() else nullcontext():
        library.compute(config.build(values, "test"), out)


@pytest.mark.slow
def test_a_killed_one_ends_as_if_it_had_not_been(start, tmp_path):
    made, kept = tmp_path / "made", []

    def done():
        if not (made / "found").exists():
            kept.append({path.name: path.stat().st_mtime_ns for path in made.rglob("part-*.safetensors")})
        return (made / "found").exists()

    values = start.data(seeds=3, steps=[1, 2])
    made.mkdir()
    kill_until_done(work, (values, tmp_path / "whole"), (values, made / "found"), made, 48, done)
    (one, meta), (other, expected) = (told(files(folder)) for folder in (made / "found", tmp_path / "whole"))
    assert one == other and meta == expected
    assert [path.name for path in made.iterdir()] == ["found"]
    assert len({len(parts) for parts in kept}) > 1
    for earlier, later in pairwise(kept):
        assert earlier.items() <= later.items()  # no branch is trained twice


def told(found):
    """The files, and what lookahead.json says but for when it was, and how long it took."""
    meta = json.loads(found.pop("lookahead.json"))
    for when in ("seconds", "computed", "seal"):
        del meta[when]
    return found, meta


def interrupted(start, out, branches, **asked):
    """Leave a lookahead after some branches."""
    own, taken = Branches.along, []

    def along(self, *arguments):
        if len(taken) == branches:
            raise KeyboardInterrupt
        taken.append(arguments[:2])
        return own(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Branches, "along", along)
        library.compute(start.config(**asked), out)


def counted(monkeypatch):
    """The branches that are trained from now on."""
    own, taken = Branches.along, []
    monkeypatch.setattr(
        Branches, "along", lambda self, *given: taken.append((*given[0], given[1])) or own(self, *given)
    )
    return taken


def test_finished_branches_are_kept(start, tmp_path, monkeypatch, found):
    interrupted(start, tmp_path / "out", 3)
    taken, steps = counted(monkeypatch), []
    again = library.compute(start.config(), tmp_path / "out", lambda stage, done, total: steps.append((done, total)))
    assert taken == [("blue", 1)] and steps[:4] == [(5, 20), (10, 20), (15, 20), (16, 20)]
    assert np.array_equal(again.losses, found.losses)


def test_a_damaged_branch_is_trained_again(start, tmp_path, monkeypatch, found):
    interrupted(start, tmp_path / "out", 3)
    part = tmp_path / "out.partial" / "part-000001.safetensors"
    raw = bytearray(part.read_bytes())
    raw[-1] ^= 1
    part.write_bytes(raw)
    taken = counted(monkeypatch)
    again = library.compute(start.config(), tmp_path / "out")
    assert taken == [("blue", 0), ("blue", 1)] and np.array_equal(again.losses, found.losses)


def test_changed_examples_are_trained_on_again(start, tmp_path, monkeypatch):
    tasks = {name: shutil.copy(file, tmp_path / file.name) for name, file in start.tasks.items()}
    own = Start(start.base, start.adapter, tasks)
    interrupted(own, tmp_path / "out", 3)
    held = {unit.examples[0].id for unit in own.job().pools.held_out.units if unit.task == "red"}
    other = next(k for k in range(40) if f"r{k}" not in held)
    write_task(tasks["red"], 40, 0, lambda k, record: record | ({"response": "w1 w2 w3"} if k == other else {}))
    taken = counted(monkeypatch)
    library.compute(own.config(), tmp_path / "out")
    assert taken == [("red", 0), ("red", 1), ("blue", 1)]  # what blue was trained on and what is read are as before


def test_another_job_is_not_continued(start, tmp_path):
    interrupted(start, tmp_path / "out", 1)
    with pytest.raises(
        RunError, match=r"out.partial holds unfinished work of another job \(config.lookahead.seed was 0 and is "
    ):
        library.compute(start.config(seed=5), tmp_path / "out")
    with pytest.raises(RunError, match=r"another job \(.*recipe.learning_rate was 0.01 and is now 0.02"):
        library.compute(start.config(recipe={**RECIPE, "learning_rate": 0.02}), tmp_path / "out")


def test_what_a_lookahead_does_not_read_changes_nothing(start, tmp_path, monkeypatch):
    interrupted(start, tmp_path / "out", 3)
    values, taken = start.data(), counted(monkeypatch)
    values["probe"] |= {"layers": [0, 2], "samples": 7}
    library.compute(config.build(values, "test"), tmp_path / "out")
    assert taken == [("blue", 1)]


def test_defaults_that_are_written_out_are_the_same_job(start):
    job = start.job()
    none, written = (
        replace(job, config=job.config.model_copy(update={"lookahead": asked}))
        for asked in (None, config.LookaheadConfig())
    )
    assert none.identity() == written.identity() != job.identity()


def test_one_process_at_a_time(start, tmp_path):
    interrupted(start, tmp_path / "out", 1)
    with locked(tmp_path / "out.partial" / "lock", "testing"), pytest.raises(BusyError):
        library.compute(start.config(), tmp_path / "out")


def test_a_diverged_branch_leaves_nothing(start, tmp_path):
    with pytest.raises(MeasurementError, match="the branch along 'red' with seed 0 diverged at step "):
        library.compute(start.config(recipe={**RECIPE, "learning_rate": 1e30}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- on disk ---


def test_what_is_not_whole_is_refused(place, tmp_path):
    with pytest.raises(RunError, match="there is no lookahead at"):
        prediction.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"holds no lookahead: it has no lookahead\.json"):
        prediction.load(tmp_path / "empty")
    damaged = copied(place, tmp_path)
    (damaged / "losses.safetensors").write_bytes((damaged / "losses.safetensors").read_bytes()[:-8] + bytes(8))
    with pytest.raises(RunError, match=r"losses\.safetensors is damaged: its checksum differs from the recorded one"):
        prediction.load(damaged)
    text = (place / "lookahead.json").read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.02')
    shutil.copy(place / "losses.safetensors", damaged)
    (damaged / "lookahead.json").write_text(text)
    with pytest.raises(RunError, match=r"lookahead\.json is damaged: its checksum differs from the recorded one"):
        prediction.load(damaged)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meta": {"steps": [2, 1, 5]}}, "lookahead.json is damaged: its 'steps' are not ascending numbers"),
        ({"meta": {"seeds": None}}, "lookahead.json is damaged: its 'seeds' are not ascending numbers"),
        (
            {"meta": {"seeds": [0, 1, 2]}},
            "losses.safetensors is damaged: it has no loss of every seed, task, number of",
        ),
        ({"meta": {"recipe": {}}}, "lookahead.json is damaged: its 'recipe' or 'trained_on' is not whole"),
        ({"meta": {"trained_on": {"red": 3}}}, "lookahead.json is damaged: its 'recipe' or 'trained_on' is not whole"),
        ({"meta": {"seed": "x"}}, "lookahead.json is damaged: its 'seed' is 'x'"),
        (
            {"losses": np.nan},
            "losses.safetensors is damaged: it has no loss of every seed, task, number of steps and ex",
        ),
        ({"group": 0}, "examples.parquet is damaged: a task has fewer than two groups"),
        ({"loss": np.nan}, "examples.parquet is damaged: a task, group or loss is missing"),
    ],
)
def test_a_sealed_one_that_makes_no_sense_is_refused(found, tmp_path, change, words):
    examples, losses = found.examples.copy(), found.losses.copy()
    for column in ("group", "loss"):
        if column in change:
            examples[column] = change[column]
    losses[..., 0] = change.get("losses", losses[..., 0])
    made = prediction.Lookahead(examples, losses, {**found.meta, **change.get("meta", {})})
    made.save(tmp_path / "made")
    with pytest.raises(RunError, match=words):
        prediction.load(tmp_path / "made")


def test_a_directory_that_is_taken_is_refused(start, place, tmp_path):
    with pytest.raises(RunError, match="already holds a lookahead; choose another --out or delete it first"):
        interference.lookahead(start.config(), place)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(RunError, match="exists and holds something else"):
        interference.lookahead(start.config(), tmp_path / "taken")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"steps": [0, 1]}, "lookahead.steps: a branch of 0 steps is the checkpoint itself; begin with 1 or more"),
        ({"steps": [2, 1]}, "lookahead.steps: is not ascending; list each number of steps once, the smallest first"),
        ({"steps": [1, 1]}, "lookahead.steps: is not ascending"),
        ({"steps": []}, "lookahead.steps: it is empty; give at least one"),
        ({"seeds": 1}, "lookahead.seeds: Input should be greater than or equal to 2"),
        ({"seed": 2**32 - 1}, "seed 4294967295 and the 1 after it must stay below 4294967296"),
        ({"held_out": 1}, "lookahead.held_out: Input should be greater than or equal to 2"),
        ({"step": [1]}, "unknown key 'lookahead.step'; did you mean 'steps'?"),
        ({"recipe": {"epochs": 3}}, "unknown key 'lookahead.recipe.epochs'"),
        ({"recipe": {"learning_rate": 0}}, "lookahead.recipe.learning_rate: Input should be greater than 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(start, asked, words):
    with pytest.raises(ConfigError) as told:
        start.config(**asked)
    assert words in str(told.value)


def test_compute_does_not_depend_on_it(start, tmp_path):
    """A lookahead that is asked for otherwise continues the same measurement."""
    from interference.measurement.compute import compute_config

    one, other = (start.config(tmp_path / "run", **asked) for asked in ({}, {"steps": [7]}))
    run = compute_config(one)
    shutil.rmtree(tmp_path / "run")
    again = compute_config(other)
    assert again.meta["fingerprints"] == run.meta["fingerprints"] and np.array_equal(again.gram(), run.gram())
    pd.testing.assert_frame_equal(again.probes, run.probes)
    assert ASKED["held_out"] == run.meta["config"]["lookahead"]["held_out"]
